"""`openblip evaluate TASK`."""

import os
import sys
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
    results: Path | None = None,
    json: bool = False,
) -> int:
    """Recall of texts and images on a split of a table, by contrast and then by matching.

    Example: openblip evaluate retrieval runs/new pairs.lance --split test --k 128

    Args:
        model: model folder or run directory.
        table: pair table with human captions in the split.
        split: which rows.
        k: candidates that matching ranks again; the paper takes 256 on COCO, 128 on Flickr30k.
        batch_size: images that are encoded together.
        results: write the first candidates of every image and of every text there, as JSON.
        json: print JSON.
    """
    from openblip.data.table import PairTable
    from openblip.evaluation.retrieval import evaluate_retrieval
    from openblip.inference import load

    blip, opened = load(model), PairTable.open(table)
    found = evaluate_retrieval(blip, opened, split=split, k=k, batch_size=batch_size)
    if results is not None:
        found.rankings.save(results)
    if json:
        shown = ("metrics", "contrastive", "num_images", "num_texts", "k", "seconds")
        print_json({name: getattr(found, name) for name in shown})
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
    java_metrics: Path | None = None,
    json: bool = False,
) -> int:
    """BLEU, ROUGE-L and CIDEr of a model's captions on a split of a table.

    Where rows have a `domain` in their metadata, as those of NoCaps, also by domain.
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
        java_metrics: add METEOR, and SPICE if its language models are there, by the Java programs
            in this folder, which is laid out as the package pycocoevalcap; by default the
            environment variable OPENBLIP_JAVA_METRICS names it.
        json: print JSON.
    """
    from openblip.data.table import PairTable
    from openblip.evaluation.caption import evaluate_caption
    from openblip.evaluation.java_metrics import JavaPrograms
    from openblip.inference import Decoding, load

    folder = java_metrics or _folder_named("OPENBLIP_JAVA_METRICS")
    # Before the captions are written, which takes long.
    java = JavaPrograms.find(folder) if folder is not None else None
    if java is not None and java.spice_lacks:
        print(f"SPICE is left out: there is no {java.spice_lacks[0]}", file=sys.stderr)
    written = evaluate_caption(
        load(model),
        PairTable.open(table),
        split=split,
        decoding=Decoding(
            method="beam", num_beams=num_beams, max_length=max_length, min_length=min_length
        ),
        prompt=prompt,
        batch_size=batch_size,
        java=java,
    )
    if results is not None:
        written.save_coco(results)
    if json:
        shown = ("metrics", "domains", "num_images")
        print_json({name: getattr(written, name) for name in shown})
        return 0
    print(f"{written.num_images} images, {written.seconds:.0f} s")
    rows = {"all": written.metrics, **written.domains}
    print_table(
        ["images", *written.metrics],
        [[name, *(f"{100 * value:.1f}" for value in own.values())] for name, own in rows.items()],
    )
    return 0


def _folder_named(variable: str) -> Path | None:
    value = os.environ.get(variable)
    return Path(value) if value else None
