"""`openblip evaluate classify` and `video`: tasks for which nothing was trained."""

from pathlib import Path

import tyro

from openblip.cli.flags import Count, CountOrNone
from openblip.cli.output import (
    check_outputs,
    dominant_json,
    print_dominant,
    print_json,
    print_table,
)


def classify(
    model: tyro.conf.Positional[str],
    table: tyro.conf.Positional[str],
    /,
    *,
    split: str = "test",
    label_field: str = "label",
    templates: tuple[str, ...] = ("a photo of {}.",),
    exclude: tuple[str, ...] = (),
    k: CountOrNone = 0,
    batch_size: Count = 32,
    results: Path | None = None,
    json: bool = False,
) -> int:
    """Accuracy of naming the classes of images by prompts, without training for it.

    Example: openblip evaluate classify runs/new xrays.lance --templates "an X-ray of {}" \
        --exclude todo

    Args:
        model: model folder, run directory, file, https address or hub repository; also a CLIP of
            transformers, or open_clip:ARCHITECTURE/PRETRAINED.
        table: pair table whose rows have a label in their metadata.
        split: which rows.
        label_field: field of the metadata with a label, or a list of them: then any is a hit.
        templates: prompts with {} for the name of a class; embeddings of several are averaged.
        exclude: labels that do not count; images without another one are left out.
        k: classes of each image that matching ranks again; 0 for contrast alone, all that a CLIP
            has.
        batch_size: images that are encoded together.
        results: write the predictions there, as .csv or .json.
        json: print JSON.
    """
    from openblip.data.table import PairTable
    from openblip.evaluation.classification import evaluate_classification
    from openblip.evaluation.results_file import check_results_path, save_records
    from openblip.inference.embedder import load_embedder

    check_outputs({"--results": results})
    if results is not None:
        check_results_path(results)
    found = evaluate_classification(
        load_embedder(model),
        PairTable.open(table),
        split=split,
        label_field=label_field,
        templates=templates,
        exclude=exclude,
        k=k,
        batch_size=batch_size,
    )
    if results is not None:
        save_records(results, found.predictions)
    if json:
        shown = ("metrics", "contrastive", "per_class", "num_images", "classes", "k", "seconds")
        values = {name: getattr(found, name) for name in shown}
        print_json(values | dominant_json(found.dominant))
        return 0
    print_dominant(found.dominant)
    print(f"{found.num_images} images, {len(found.classes)} classes, {found.seconds:.0f} s")
    rows = {"ITC": found.contrastive} | ({f"ITM of the top {k}": found.metrics} if k else {})
    print_table(
        ["ranking by", *found.metrics],
        [[name, *(f"{value:.1f}" for value in values.values())] for name, values in rows.items()],
    )
    print()
    print_table(
        ["class", "top-1"], [[name, f"{value:.1f}"] for name, value in found.per_class.items()]
    )
    return 0


def video(
    model: tyro.conf.Positional[str],
    annotations: tyro.conf.Positional[Path],
    videos: tyro.conf.Positional[Path],
    /,
    *,
    num_frames: Count = 8,
    k: CountOrNone = 64,
    batch_size: Count = 4,
    results: Path | None = None,
    json: bool = False,
) -> int:
    """Recall of texts and of videos by a model that was trained on images; needs the extra video.

    Example: openblip evaluate video runs/retrieval msrvtt_test.jsonl MSRVTT/videos

    Args:
        model: model folder, run directory, file, https address or hub repository.
        annotations: JSON lines, or a JSON list, with clip_name and caption, as of MSR-VTT.
        videos: folder of the clips.
        num_frames: taken from each clip at even distances.
        k: candidates that matching ranks again; 0 for contrast alone.
        batch_size: clips whose frames are encoded together.
        results: write what each text found there, as .csv or .json.
        json: print JSON.
    """
    from openblip.data.video import read_clips
    from openblip.evaluation.results_file import check_results_path, save_records
    from openblip.evaluation.video import evaluate_video
    from openblip.inference import load

    check_outputs({"--results": results})
    if results is not None:
        check_results_path(results)
    clips = read_clips(annotations, videos)
    found = evaluate_video(load(model), clips, num_frames=num_frames, k=k, batch_size=batch_size)
    if results is not None:
        save_records(results, found.searches)
    if json:
        shown = ("metrics", "contrastive", "num_videos", "num_texts", "k", "seconds")
        print_json({name: getattr(found, name) for name in shown})
        return 0
    print(
        f"{found.num_videos} videos, {found.num_texts} texts, {num_frames} frames, "
        f"{found.seconds:.0f} s"
    )
    names = ["TR@1", "TR@5", "TR@10", "VR@1", "VR@5", "VR@10", "mean", "MdR"]
    rows = {"ITC": found.contrastive} | ({f"ITM of the top {k}": found.metrics} if k else {})
    print_table(
        ["ranking by", *names],
        [[name, *(f"{values[n]:.1f}" for n in names)] for name, values in rows.items()],
    )
    return 0
