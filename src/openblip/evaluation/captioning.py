"""Captioning: write captions of a split and compare them with the human ones."""

import math
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from openblip.batches.images import every_image
from openblip.batches.shuffle import named_seed
from openblip.evaluation.java_metrics import JavaPrograms
from openblip.evaluation.results import UnitScores, save_json, unit_scores
from openblip.evaluation.settings import CaptionSettings
from openblip.inference.blip import Blip
from openblip.inference.captions import Caption
from openblip.inference.decoding import Decoding
from openblip.metrics.accuracy import Dominant, dominant
from openblip.metrics.caption import CaptionScores, caption_scores
from openblip.runtime.errors import DataError
from openblip.runtime.progress import Progress
from openblip.sources.coco import CocoIds
from openblip.sources.row_images import check_reachable
from openblip.table.rows import read_meta
from openblip.table.table import PairTable
from openblip.table.views import split_rows


@dataclass(frozen=True)
class CaptionResult:
    """Metrics of one split, and the captions that were judged."""

    metrics: dict[str, float]
    """BLEU-1 to BLEU-4, ROUGE-L and CIDEr, each as the field's tools give it (not per cent); METEOR
    and SPICE where they were asked for and their programs did not fail."""
    domains: dict[str, dict[str, float]]
    """The same of the rows of each `domain` in their metadata, as NoCaps has them; each is a set of
    its own, with CIDEr's document frequencies from its own references."""
    captions: dict[str, str]
    """Caption by the row's id."""
    units: dict[str, UnitScores] = field(repr=False)
    """CIDEr and ROUGE-L image by image, times 100. BLEU is no mean over images."""
    rows: NDArray[np.int64] = field(repr=False)
    """Row numbers of the images, in the order of `captions`."""
    references: dict[str, list[str]] = field(repr=False)
    """The human captions by the row's id."""
    confidence: dict[str, float] = field(repr=False)
    """Geometric mean of the probabilities of a caption's words, by the row's id."""
    coco_ids: CocoIds = field(repr=False)
    """What numbers the images have in files for COCO."""
    num_images: int
    seconds: float

    @property
    def dominant(self) -> Dominant | None:
        """The caption of nearly all, if there is one."""
        return dominant(self.captions.values())

    def save_coco(self, path: Path) -> None:
        """Write the captions as a COCO results file: a list of image_id and caption.

        The evaluation servers of COCO and NoCaps take it, and `loadRes` of pycocotools with what
        `openblip data export --format coco` writes of the split.

        Raises:
            OSError: if it cannot be written.
        """
        captions = zip(self.captions.items(), self.rows.tolist(), strict=True)
        save_json(
            path,
            [
                {**self.coco_ids.fields(key, row, "image_id"), "caption": text}
                for (key, text), row in captions
            ],
        )


def evaluate_caption(
    blip: Blip,
    table: PairTable,
    *,
    split: str = "test",
    decoding: Decoding | None = None,
    prompt: str = CaptionSettings.prompt,
    seed: int = CaptionSettings.seed,
    batch_size: int = CaptionSettings.batch_size,
    java: JavaPrograms | None = None,
) -> CaptionResult:
    """Captions of a split, by default with beam 3 as the original, against the given captions.

    The table has human captions in the split. `java` are the programs for METEOR and SPICE; without
    them these are left out, as is one whose program fails (`MetricLeftOut`). Other keywords are
    fields of `CaptionSettings`.

    Raises:
        DataError: the split is empty, or an image cannot be read.
        MissingExtra: an image lies in an object store, whose packages are not installed.
        MissingHead: the model has no LM head.
        RecipeError: a number is too small.
    """
    settings = CaptionSettings(
        decoding=decoding or Decoding(), prompt=prompt, seed=seed, batch_size=batch_size
    )
    started = time.perf_counter()
    rows = split_rows(table, split)
    known = table.take(rows, ["id", "captions", "meta"]).to_pylist()
    rows = rows[[bool(row["captions"]) for row in known]]
    known = [row for row in known if row["captions"]]
    references: dict[str, list[str]] = {row["id"]: row["captions"] for row in known}
    ids = list(references)
    if not ids:
        raise DataError(f"{table.uri}: no row of the split {split!r} has a caption")
    check_reachable(table, rows)
    blip.warn_of_unknown_words([settings.prompt], "prompts")
    images = every_image(table, rows, settings.batch_size, blip.image_size)
    written = dict(zip(ids, _written(blip, images, ids, settings), strict=True))
    captions = {key: best.text for key, best in written.items()}
    confidence = {key: _confidence(best) for key, best in written.items()}
    scores = caption_scores(captions, references)
    units = {
        "CIDEr": unit_scores(100 * scores.cider),
        "ROUGE-L": unit_scores(100 * scores.rouge_l),
    }
    metrics = _metrics(scores, captions, references, java)
    # Each domain by itself: CIDEr is no mean over domains, its weights come from the whole set.
    domains = {}
    for domain, members in sorted(_domains(known).items()):
        own = {key: captions[key] for key in members}
        human = {key: references[key] for key in members}
        domains[domain] = _metrics(caption_scores(own, human), own, human, java)
    seconds = time.perf_counter() - started
    return CaptionResult(
        metrics,
        domains,
        captions,
        units,
        rows,
        references,
        confidence,
        CocoIds(table, split),
        len(captions),
        seconds,
    )


def _written(
    blip: Blip, images: Iterable[Tensor], ids: Sequence[str], settings: CaptionSettings
) -> Iterator[Caption]:
    """The best caption of each image, from batches of them."""
    done = 0
    with Progress("captioning", total=len(ids), unit="images") as progress:
        for batch in images:
            keys = ids[done : done + len(batch)]
            # By the row's id, so that a row's caption depends on no batch and no other row.
            seeds = [named_seed(settings.seed, key) for key in keys]
            encoded = blip.encode(batch)
            found = blip.generate(encoded, settings.decoding, settings.prompt, seeds)
            yield from (best for best, *_ in found)
            done += len(batch)
            progress.update(len(batch))


def _confidence(caption: Caption) -> float:
    """Geometric mean over the words; of a caption without a word 0."""
    # A probability may underflow to 0, and would take the whole mean with it.
    logs = [math.log(max(word.probability, 1e-12)) for word in caption.words]
    return math.exp(sum(logs) / len(logs)) if logs else 0.0


def _metrics(
    scores: CaptionScores,
    captions: Mapping[str, str],
    references: Mapping[str, list[str]],
    java: JavaPrograms | None,
) -> dict[str, float]:
    metrics = scores.summary()
    if java is not None:
        human = [references[key] for key in captions]
        metrics |= java.metrics(list(captions.values()), human)
    return metrics


def _domains(rows: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Ids of the rows of each domain; those without one are in none."""
    found: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        domain = read_meta(row["id"], row["meta"]).get("domain")
        if domain is not None:
            found[str(domain)].append(row["id"])
    return found
