"""What is gained by made texts: captioners that read the web text, filters with typed negatives.

    python benchmarks/given.py --folder given --seeds 3 --output benchmarks/results/given.md

Everything is trained on a drawn world of the demo's size whose web captions name somebody or a
place in half of the rows: a model on the noise, then of it, for each seed, a captioner that reads
the web text and one that reads nothing, and filters with several shares of typed negatives. What a
seed came to lies in FOLDER; a stopped command goes on. A seed takes about half an
hour of one core.
"""

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from openblip import metrics
from openblip.batches.shuffle import named_seed
from openblip.batches.transforms import eval_transform
from openblip.capfilt.select import TextScores, precision_at_recall
from openblip.evaluation.captioning import evaluate_caption
from openblip.inference.blip import Blip
from openblip.inference.captions import PROMPT, GivenPrompt
from openblip.inference.decoding import Decoding
from openblip.inference.loading import load
from openblip.runtime.threads import wait_without_spinning
from openblip.sources.row_images import row_image
from openblip.table.table import PairTable
from openblip.training.recipe import Recipe
from openblip.training.run import train
from openblip.world import is_true_caption, open_or_create_world, truth_of
from openblip.world.build import human_captions, names_in, without_names
from openblip.world.demo import (
    WORLD,
    world_captioner,
    world_filter,
    world_given_captioner,
    world_pretrain,
)
from openblip.world.scene import Dice

NAMED = replace(WORLD, names=0.5)
SHARES = (0.0, 0.25, 0.5)
"""Of typed negatives."""
THRESHOLD = 0.01
"""Of the filter, above which a given text is read."""
WRITING = {
    "nucleus": Decoding(method="nucleus", top_p=0.9, max_length=32),
    "beam": Decoding(num_beams=3, max_length=32),
}
NOISE = ("wrong_attribute", "wrong_object", "other_image", "boilerplate")
COLUMNS = ["id", "image", "image_uri", "captions", "origin", "split", "meta"]
BATCH = 32


class Rows:
    """The first web rows of a world, and what is known of them."""

    def __init__(self, table: PairTable, count: int) -> None:
        self.rows = table.take(np.arange(count), COLUMNS).to_pylist()
        self.truths = [truth_of(row["meta"]) for row in self.rows]
        self.texts = [row["captions"][0] for row in self.rows]

    def batches(self, blip: Blip) -> Any:
        """Encoded images, and which rows they are of."""
        import torch

        for start in range(0, len(self.rows), BATCH):
            places = range(start, min(start + BATCH, len(self.rows)))
            images = [eval_transform(row_image(self.rows[p]), blip.image_size) for p in places]
            yield blip.encode(torch.stack(images)), places


def written(rows: Rows, blip: Blip, decoding: Decoding, given: Sequence[str] | None) -> list[str]:
    """A caption of each row, as CapFilt writes it.

    Args:
        rows: the images.
        blip: a captioner.
        decoding: how it writes.
        given: what it reads of each, empty for nothing; None for one that cannot read.
    """
    texts = []
    for encoded, places in rows.batches(blip):
        prompts = [PROMPT if given is None else GivenPrompt(given[place]) for place in places]
        seeds = [named_seed(0, rows.rows[place]["id"]) for place in places]
        texts += [own[0].text for own in blip.generate(encoded, decoding, prompts, seeds)]
    return texts


def names_kept(rows: Rows, texts: Sequence[str]) -> dict[str, float]:
    """Shares in per cent: of the true names that are kept, of the written ones that are false."""
    true = kept = false_given = false_kept = num_written = num_false = 0
    for truth, given, text in zip(rows.truths, rows.texts, texts, strict=True):
        stands, told = names_in(given), names_in(text)
        mine = stands if truth.noise != "other_image" else set()
        true, kept = true + len(mine), kept + len(mine & told)
        false_given += len(stands - mine)
        false_kept += len((stands - mine) & told)
        num_written, num_false = num_written + len(told), num_false + len(told - mine)
    return {
        "true names kept": 100 * kept / max(true, 1),
        "false among written names": 100 * num_false / max(num_written, 1),
        "false names copied": 100 * false_kept / max(false_given, 1),
    }


def described(rows: Rows, texts: Sequence[str]) -> dict[str, float]:
    """How well captions describe the images, their names aside."""
    plain = [without_names(text) for text in texts]
    true = [
        is_true_caption(text, truth.scene) is True
        for text, truth in zip(plain, rows.truths, strict=True)
    ]
    references = {
        place: human_captions(truth.scene, NAMED, Dice(7, place))
        for place, truth in enumerate(rows.truths)
    }
    cider = metrics.caption(dict(enumerate(plain)), references)["CIDEr"]
    return {"true": 100 * sum(true) / len(true), "CIDEr": 100 * cider}


def trained(recipe: Recipe, folder: Path, seed: int, steps: int | None) -> str:
    loop = replace(recipe.train, seed=seed, steps=steps or recipe.train.steps)
    result = train(replace(recipe, train=loop), folder)
    if result.interrupted:
        raise KeyboardInterrupt
    return str(result.model_folder)


def captioners(
    table: str, noisy: str, folder: Path, seed: int, itm: np.ndarray, args: Any
) -> dict[str, Any]:
    """The figures of a captioner that reads the web text, and of one that reads nothing."""
    rows = Rows(PairTable.open(table), args.rows)
    # As many steps each: the one with the harder task has no more of them.
    steps = args.steps or world_given_captioner(table, noisy, 64).train.steps
    blips = {
        name: load(trained(recipe(table, noisy, 64), folder / name, seed, steps), device="cpu")
        for name, recipe in (("alone", world_captioner), ("given", world_given_captioner))
    }
    admitted = [text if own > THRESHOLD else "" for text, own in zip(rows.texts, itm, strict=True)]
    found: dict[str, Any] = {}
    for method, decoding in WRITING.items():
        texts = {
            "alone": written(rows, blips["alone"], decoding, None),
            "given": written(rows, blips["given"], decoding, rows.texts),
            f"given above {THRESHOLD:g}": written(rows, blips["given"], decoding, admitted),
        }
        found[method] = {
            name: {**names_kept(rows, own), **described(rows, own)} for name, own in texts.items()
        }
    for name, blip in blips.items():
        # The captioner that reads must write as well where there is nothing to read.
        test = evaluate_caption(blip, PairTable.open(table), decoding=WRITING["beam"])
        found["beam"][name]["test CIDEr, nothing given"] = 100 * test.metrics["CIDEr"]
    return found


def filters(
    table: str, noisy: str, folder: Path, seed: int, args: Any
) -> tuple[dict[str, Any], dict[float, np.ndarray]]:
    """How well filters with each share of typed negatives tell noise, and their scores."""
    rows = Rows(PairTable.open(table), args.rows)
    found, scores = {}, {}
    for share in SHARES:
        recipe = world_filter(table, noisy, 64)
        recipe = replace(recipe, objectives=replace(recipe.objectives, typed_negatives=share))
        model = trained(recipe, folder / f"filter{share:g}", seed, args.filter_steps)
        blip = load(model, device="cpu")
        clean, itm = blip.tokenizer.cleaning.caption, []
        for encoded, places in rows.batches(blip):
            own = blip.score(encoded, [[clean(rows.texts[place])] for place in places])
            itm += [match[0].itm for match in own]
        scores[share] = np.array(itm)
        found[f"{share:g}"] = told_apart(rows, scores[share])
    return found, scores


def told_apart(rows: Rows, itm: np.ndarray) -> dict[str, float]:
    """Per cent: the area under each kind's curve, and the precision at a recall of 0.8."""
    kinds = np.array([truth.noise for truth in rows.truths])
    true = itm[kinds == "true"]
    figures = {}
    for kind in NOISE:
        noise = itm[kinds == kind]
        # How often a text of the kind scores below a true one; equal scores count half.
        below = (noise[:, None] < true).mean() + 0.5 * (noise[:, None] == true).mean()
        figures[f"{kind}, area"] = 100 * float(below)
    zeros = np.zeros(len(itm), dtype=np.int64)
    scores = TextScores("web", zeros, zeros, itm, itm.astype(np.float32), kinds)
    noise_or_true = replace(scores, kinds=np.where(kinds == "true", "true", "all"))
    for kind in ("all", *NOISE):
        precision, _ = precision_at_recall(noise_or_true if kind == "all" else scores, kind, 0.8)
        figures[f"{kind}, precision at recall 0.8"] = 100 * precision
    return figures


def of_seed(seed: int, args: Any) -> dict[str, Any]:
    folder = Path(args.folder) / f"seed{seed}"
    result = folder / "result.json"
    if result.exists():
        return json.loads(result.read_text(encoding="utf-8"))
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / "pairs.lance"
    open_or_create_world(table, replace(NAMED, seed=seed, web_rows=args.web_rows))
    noisy = trained(world_pretrain(str(table)), folder / "noisy", seed, args.pretrain_steps)
    told, scores = filters(str(table), noisy, folder, seed, args)
    itm = scores[SHARES[0]]
    written_by = captioners(str(table), noisy, folder, seed, itm, args)
    found = {"captioners": written_by, "filters": told}
    result.write_text(json.dumps(found, indent=2), encoding="utf-8")
    return found


def table_of(found: Sequence[Mapping[str, Mapping[str, float]]], names: Sequence[str]) -> list[str]:
    """Lines of a table: means over seeds, and how the others differ from the first, paired."""
    header = ["", *names, *(f"{name} - {names[0]}" for name in names[1:])]
    lines = [f"| {' | '.join(header)} |", f"|{' --- |' * len(header)}"]
    for figure in found[0][names[0]]:
        # Not every column has every figure.
        values = [[own[name].get(figure) for own in found] for name in names]
        cells = ["" if own[0] is None else f"{statistics.mean(own):.1f}" for own in values]
        for own in values[1:]:
            cells.append("" if own[0] is None else _difference(values[0], own))
        lines.append(f"| {figure} | {' | '.join(cells)} |")
    return lines


def _difference(first: Sequence[float], second: Sequence[float]) -> str:
    differences = [b - a for a, b in zip(first, second, strict=True)]
    margin = _half_width(differences)
    return f"{statistics.mean(differences):+.1f}" + ("" if margin is None else f" ± {margin:.1f}")


# Student's t at 97.5 per cent, by the number of differences.
_T = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}


def _half_width(differences: Sequence[float]) -> float | None:
    """Of the 95 % interval of their mean; None of one, or of more than ten."""
    factor = _T.get(len(differences))
    if factor is None:
        return None
    return factor * statistics.stdev(differences) / len(differences) ** 0.5


def page(found: Sequence[Mapping[str, Any]], args: Any) -> str:
    lines = [
        "# Captioners that read the web text, and filters with typed negatives",
        "",
        "Made by `python benchmarks/given.py --output benchmarks/results/given.md`: "
        f"{len(found)} seeds, drawn worlds of the demo's size with names in half of the web texts, "
        f"{args.rows} web rows each. Means over seeds; differences are paired by seed, with 95 % "
        "intervals (Student's t). Everything is in per cent but CIDEr, which is times 100.",
        "",
        "## Captioners",
        "",
        "`alone` reads nothing, `given` the row's web text, in the last column only where the "
        f"filter gives it more than {THRESHOLD:g} (`capfilt run --given web --given-above "
        f"{THRESHOLD:g}`). Both are fine-tuned for as many steps from the same model. Names are "
        "taken out before truth and CIDEr are measured, against five human captions of the image, "
        "which have no names.",
        "",
    ]
    for method in WRITING:
        own = [seed["captioners"][method] for seed in found]
        lines += [f"### Written by {method}", "", *table_of(own, [*own[0]]), ""]
    lines += [
        "## Filters, by share of typed negatives",
        "",
        "Area: how often a text of that kind scores below a true one (50 is chance).",
        "",
        *table_of([own["filters"] for own in found], [f"{share:g}" for share in SHARES]),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", default="given")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--web-rows", type=int, default=WORLD.web_rows, help="of the world")
    parser.add_argument("--rows", type=int, default=1500, help="of them that are captioned")
    parser.add_argument("--steps", type=int, help="of both captioners")
    parser.add_argument("--pretrain-steps", type=int)
    parser.add_argument("--filter-steps", type=int)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    wait_without_spinning()
    found = [of_seed(seed, args) for seed in range(args.seeds)]
    text = page(found, args)
    print(text)
    if args.output:
        args.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
