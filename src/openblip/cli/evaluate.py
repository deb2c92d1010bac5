"""`openblip evaluate`."""

from dataclasses import asdict
from pathlib import Path
from typing import Literal

import tyro

from openblip.cli.output import print_json, print_table


def evaluate(
    task: tyro.conf.Positional[Literal["retrieval", "caption"]],
    model: tyro.conf.Positional[str],
    table: tyro.conf.Positional[str],
    /,
    *,
    split: str = "test",
    k: int = 128,
    num_beams: int = 3,
    max_length: int = 20,
    min_length: int = 5,
    prompt: str = "a picture of ",
    batch_size: int = 32,
    results: Path | None = None,
    json: bool = False,
) -> int:
    """Recall of retrieval, or BLEU, ROUGE-L and CIDEr of captions, on a split of a table.

    Example: openblip evaluate retrieval runs/new pairs.lance --split test --k 128

    Args:
        task: what to measure.
        model: model folder or run directory.
        table: pair table with human captions in the split.
        split: which rows.
        k: retrieval: candidates that matching ranks again.
        num_beams: captioning: beam width.
        max_length: captioning: tokens, prompt included.
        min_length: captioning: tokens, prompt included.
        prompt: captioning: what the model continues.
        batch_size: images that are encoded together.
        results: captioning: write the captions there as a COCO results file.
        json: print JSON.
    """
    from openblip.data.table import PairTable
    from openblip.inference import load

    blip, opened = load(model), PairTable.open(table)
    if task == "retrieval":
        from openblip.evaluation.retrieval import evaluate_retrieval

        found = evaluate_retrieval(blip, opened, split=split, k=k, batch_size=batch_size)
        if json:
            print_json(asdict(found))
            return 0
        names = ["TR@1", "TR@5", "TR@10", "IR@1", "IR@5", "IR@10", "mean"]
        print(
            f"{found.num_images} images, {found.num_texts} texts, k = {found.k}, "
            f"{found.seconds:.0f} s"
        )
        rows = {"ITC": found.contrastive, f"ITM of the top {found.k}": found.metrics}
        print_table(
            ["ranking by", *names],
            [[name, *(f"{values[n]:.1f}" for n in names)] for name, values in rows.items()],
        )
        return 0
    from openblip.evaluation.caption import evaluate_caption
    from openblip.inference import Decoding

    written = evaluate_caption(
        blip,
        opened,
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
