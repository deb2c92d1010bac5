"""`openblip evaluate TASK`."""

from dataclasses import asdict
from pathlib import Path

import tyro

from openblip.cli.output import print_json, print_table


def retrieval(
    model: tyro.conf.Positional[str],
    table: tyro.conf.Positional[str],
    /,
    *,
    split: str = "test",
    k: int = 128,
    batch_size: int = 32,
    json: bool = False,
) -> int:
    """Recall of texts and images on a split of a table, by contrast and then by matching.

    Example: openblip evaluate retrieval runs/new pairs.lance --split test --k 128

    Args:
        model: model folder or run directory.
        table: pair table with human captions in the split.
        split: which rows.
        k: candidates that matching ranks again.
        batch_size: images that are encoded together.
        json: print JSON.
    """
    from openblip.data.table import PairTable
    from openblip.evaluation.retrieval import evaluate_retrieval
    from openblip.inference import load

    blip, opened = load(model), PairTable.open(table)
    found = evaluate_retrieval(blip, opened, split=split, k=k, batch_size=batch_size)
    if json:
        shown = asdict(found)
        del shown["units"]
        print_json(shown)
        return 0
    names = ["TR@1", "TR@5", "TR@10", "IR@1", "IR@5", "IR@10", "mean"]
    print(
        f"{found.num_images} images, {found.num_texts} texts, k = {found.k}, {found.seconds:.0f} s"
    )
    rows = {"ITC": found.contrastive, f"ITM of the top {found.k}": found.metrics}
    print_table(
        ["ranking by", *names],
        [[name, *(f"{values[n]:.1f}" for n in names)] for name, values in rows.items()],
    )
    return 0


def caption(
    model: tyro.conf.Positional[str],
    table: tyro.conf.Positional[str],
    /,
    *,
    split: str = "test",
    num_beams: int = 3,
    max_length: int = 20,
    min_length: int = 5,
    prompt: str = "a picture of ",
    batch_size: int = 32,
    results: Path | None = None,
    json: bool = False,
) -> int:
    """BLEU, ROUGE-L and CIDEr of a model's captions on a split of a table.

    Example: openblip evaluate caption runs/captioner pairs.lance --results captions.json

    Args:
        model: model folder or run directory.
        table: pair table with human captions in the split.
        split: which rows.
        num_beams: beam width.
        max_length: tokens, prompt included.
        min_length: tokens, prompt included.
        prompt: what the model continues.
        batch_size: images that are encoded together.
        results: write the captions there as a COCO results file.
        json: print JSON.
    """
    from openblip.data.table import PairTable
    from openblip.evaluation.caption import evaluate_caption
    from openblip.inference import Decoding, load

    written = evaluate_caption(
        load(model),
        PairTable.open(table),
        split=split,
        decoding=Decoding(
            method="beam", num_beams=num_beams, max_length=max_length, min_length=min_length
        ),
        prompt=prompt,
        batch_size=batch_size,
    )
    if results is not None:
        written.save_coco(results)
    if json:
        print_json({"metrics": written.metrics, "num_images": written.num_images})
        return 0
    print(f"{written.num_images} images, {written.seconds:.0f} s")
    print_table(
        list(written.metrics), [[f"{100 * value:.1f}" for value in written.metrics.values()]]
    )
    return 0


def classify(
    model: tyro.conf.Positional[str],
    table: tyro.conf.Positional[str],
    /,
    *,
    split: str = "test",
    label_field: str = "label",
    templates: tuple[str, ...] = ("a photo of {}.",),
    exclude: tuple[str, ...] = (),
    k: int = 0,
    batch_size: int = 32,
    results: Path | None = None,
    json: bool = False,
) -> int:
    """Accuracy of naming the classes of images by prompts, without training for it.

    Example: openblip evaluate classify runs/new xrays.lance --templates "an X-ray of {}" \
        --exclude todo

    Args:
        model: model folder or run directory.
        table: pair table whose rows have a label in their metadata.
        split: which rows.
        label_field: field of the metadata with a label, or a list of them: then any is a hit.
        templates: prompts with {} for the name of a class; embeddings of several are averaged.
        exclude: labels that do not count; images without another one are left out.
        k: classes of each image that matching ranks again; 0 for contrast alone.
        batch_size: images that are encoded together.
        results: write the predictions there, as .csv or .json.
        json: print JSON.
    """
    from openblip.data.table import PairTable
    from openblip.evaluation.classification import evaluate_classification
    from openblip.evaluation.results_file import check_results_path
    from openblip.inference import load

    if results is not None:
        check_results_path(results)
    found = evaluate_classification(
        load(model),
        PairTable.open(table),
        split=split,
        label_field=label_field,
        templates=templates,
        exclude=exclude,
        k=k,
        batch_size=batch_size,
    )
    if results is not None:
        found.save(results)
    if json:
        shown = ("metrics", "contrastive", "per_class", "num_images", "classes", "k", "seconds")
        print_json({name: getattr(found, name) for name in shown})
        return 0
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
