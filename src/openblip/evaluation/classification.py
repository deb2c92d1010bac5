"""Zero-shot classification: prompts of the class names, ranked for each image."""

import difflib
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from openblip.batches.text import Cleaning
from openblip.evaluation.results import UnitScores, unit_scores
from openblip.evaluation.retrieval import (
    can_match,
    candidates,
    cleaning_of,
    embed_protocol_texts,
    matching_scores,
    tokens_to_match,
    unmatched_scores,
)
from openblip.evaluation.settings import ClassificationSettings
from openblip.inference.blip import Blip
from openblip.inference.embedder import Embedder
from openblip.inference.encoding import embed_images
from openblip.inference.image_sources import image_batches
from openblip.metrics.accuracy import Dominant, class_accuracy, class_ranks, dominant
from openblip.runtime.errors import DataError, MissingHead
from openblip.runtime.progress import Progress
from openblip.sources.row_images import check_reachable, stream_images
from openblip.table.rows import read_meta
from openblip.table.table import PairTable

_TOP_AT = (1, 5)


@dataclass(frozen=True)
class LabelledImages:
    """The images of a split that have labels."""

    rows: np.ndarray
    """Row numbers, int64."""
    ids: list[str]
    """Ids of the rows."""
    classes: list[str]
    """All labels of the table, in alphabetical order."""
    classes_of_image: list[list[int]]
    """For each image the positions of its labels in `classes`."""


@dataclass(frozen=True)
class ClassificationResult:
    """Accuracies of one split, per cent, and what was predicted."""

    metrics: dict[str, float]
    """"top-1", "top-5" and "mean per class": top-1 averaged over the classes that have images."""
    contrastive: dict[str, float]
    """Ranking by ITC alone; the same as `metrics` without matching."""
    per_class: dict[str, float]
    """Top-1 among the images of each class; those without images are left out."""
    units: dict[str, UnitScores] = field(repr=False)
    """`metrics` image by image; of the mean per class an image weighs by how rare its class is."""
    predictions: list[dict[str, Any]] = field(repr=False)
    """For each image its `id`, its `labels`, the five best classes, best first, in `predictions`,
    and whether the first is `correct`."""
    scores: NDArray[np.floating[Any]] = field(repr=False)
    """(images, classes), by which the classes are ranked: cosines without matching."""
    classes: list[str]
    num_images: int
    k: int
    seconds: float

    @property
    def dominant(self) -> Dominant | None:
        """The class of nearly all, if there is one."""
        return dominant(image["predictions"][0] for image in self.predictions)


def evaluate_classification(
    model: Embedder,
    table: PairTable,
    *,
    split: str = "test",
    label_field: str = ClassificationSettings.label_field,
    templates: Sequence[str] = ClassificationSettings.templates,
    exclude: Sequence[str] = ClassificationSettings.exclude,
    k: int = ClassificationSettings.k,
    batch_size: int = ClassificationSettings.batch_size,
) -> ClassificationResult:
    """Accuracy of naming the class of each image without training for it (CLIP, section 3.1).

    ITC ranks the classes by the cosine of the image and the class: the mean of the embeddings of
    its prompts, brought to unit length (section 3.1.4 there). With `k` the best of them are ranked
    again by matching, each by the mean over its prompts.

    The model is a `Blip` with an ITC head, and an ITM head if it is to re-rank, or another one that
    embeds images and texts; the table has labels in the metadata of its rows. Prompts are cleaned
    as captions are. Other keywords are fields of `ClassificationSettings`.

    Raises:
        DataError: the split has no labels, an excluded one is unknown, or an image is unreadable.
        MissingExtra: an image lies in an object store, whose packages are not installed.
        RecipeError: a template has no place for the name, or `k` is negative.
        MissingHead: the model cannot do it.
    """
    settings = ClassificationSettings(
        label_field=label_field,
        templates=tuple(templates),
        exclude=tuple(exclude),
        k=k,
        batch_size=batch_size,
    )
    if k and not can_match(model):
        raise MissingHead(
            f"k is {k}, but the model has no itm head to match with: leave --k out, so that "
            "contrast alone ranks, or load a pre-trained, retrieval or filter checkpoint"
        )
    started = time.perf_counter()
    images = read_labels(table, split, label_field, exclude)
    check_reachable(table, images.rows)
    prompts = class_prompts(images.classes, templates, cleaning_of(model))
    cosines, scores = _rank(model, table, images, prompts, settings)
    right = images.classes_of_image
    contrastive = _units(cosines, right, len(images.classes))
    units = _units(scores, right, len(images.classes))
    accuracy = class_accuracy(class_ranks(scores, right).hits(1), right, len(images.classes))
    per_class = zip(images.classes, accuracy.tolist(), strict=True)
    return ClassificationResult(
        {name: own.estimate for name, own in units.items()},
        {name: own.estimate for name, own in contrastive.items()},
        {name: value for name, value in per_class if not np.isnan(value)},
        units,
        _predictions(images, scores),
        scores,
        images.classes,
        len(images.rows),
        k,
        time.perf_counter() - started,
    )


def read_labels(
    table: PairTable, split: str, label_field: str, exclude: Sequence[str] = ()
) -> LabelledImages:
    """The labelled images of a split, found in one scan without images.

    The classes are the labels of all splits, so that they are the same ones in each of them.

    Raises:
        DataError: no image has a label, fewer than two classes are left, or an excluded label is
            unknown.
    """
    found: list[tuple[int, str, list[str]]] = []
    counts: Counter[str] = Counter()
    fields: set[str] = set()
    start = 0
    for batch in table.scan(["id", "split", "meta"]):
        columns = (batch[name].to_pylist() for name in ("id", "split", "meta"))
        for row, (key, where, text) in enumerate(zip(*columns, strict=True), start):
            meta = read_meta(f"{row} of {table.uri}", text)
            fields |= meta.keys()
            labels = _labels(meta, label_field, f"row {row} of {table.uri}")
            counts.update(labels)
            if where == split:
                found.append((row, key, [label for label in labels if label not in exclude]))
        start += batch.num_rows
    # Counted before they are left out: an unknown label to leave out is a slip of the pen.
    _check_excluded(exclude, counts, table.uri)
    found = [image for image in found if image[2]]
    if not found:
        raise DataError(
            f"{table.uri}: no row of the split {split!r} has a label in the field {label_field!r} "
            f"of its metadata; fields are {', '.join(sorted(fields)) or 'none'} (label_field)"
        )
    # Also classes that only other splits have: they are wrong answers that a model may give.
    classes = sorted(set(counts) - set(exclude))
    if len(classes) < 2:
        raise DataError(f"{table.uri}: {classes[0]!r} is the only label: nothing to tell apart")
    place = {label: number for number, label in enumerate(classes)}
    return LabelledImages(
        np.array([row for row, _, _ in found], np.int64),
        [key for _, key, _ in found],
        classes,
        [sorted({place[label] for label in labels}) for _, _, labels in found],
    )


def class_prompts(
    classes: Sequence[str], templates: Sequence[str], cleaning: Cleaning | None = None
) -> list[list[str]]:
    """The prompts of each class.

    Args:
        classes: their names.
        templates: each with `{}` for the name.
        cleaning: that of the model's tokenizer; by default the original's.
    """
    clean = (cleaning or Cleaning()).caption
    return [[clean(template.replace("{}", name)) for template in templates] for name in classes]


def _labels(meta: Mapping[str, Any], label_field: str, where: str) -> list[str]:
    value = meta.get(label_field)
    values = value if isinstance(value, list) else [] if value in (None, "") else [value]
    if not all(isinstance(label, str | int) for label in values):
        raise DataError(
            f"{where}: its {label_field!r} is {str(value)[:60]}, not a label or a list of labels; "
            "name another field (label_field)"
        )
    return [str(label) for label in values]


def _check_excluded(exclude: Sequence[str], counts: Mapping[str, int], uri: str) -> None:
    for label in exclude:
        if label not in counts:
            near = difflib.get_close_matches(label, counts, 1, 0.0)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise DataError(f"{uri}: no row has the label {label!r}, which is to be left out{hint}")


@torch.inference_mode()
def _rank(
    model: Embedder,
    table: PairTable,
    images: LabelledImages,
    prompts: list[list[str]],
    settings: ClassificationSettings,
) -> tuple[np.ndarray, np.ndarray]:
    """Cosines (images, classes), and the scores that rank in the end."""
    texts = [prompt for own in prompts for prompt in own]
    # Every class has as many prompts as there are templates, one class behind the other.
    embeds = embed_protocol_texts(model, texts).view(len(prompts), len(prompts[0]), -1)
    class_embeds = F.normalize(embeds.mean(dim=1), dim=-1)
    with Progress("classifying", total=len(images.rows), unit="images") as progress:
        read = _counted(stream_images(table, images.rows), progress)
        if settings.k and can_match(model):
            batches = image_batches(read, model.image_size, settings.batch_size)
            return _matched(model, batches, texts, class_embeds, settings.k)
        cosines = (model.embed_images(read, settings.batch_size) @ class_embeds.T).numpy()
    return cosines, cosines


def _counted(images: Iterable[Image.Image], progress: Progress) -> Iterator[Image.Image]:
    for image in images:
        yield image
        progress.update(1)


def _matched(
    blip: Blip, batches: Iterable[Tensor], texts: list[str], class_embeds: Tensor, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """As `_rank`, of images that are encoded once for both; `texts` are the prompts in order."""
    num_classes = len(class_embeds)
    num_templates = len(texts) // num_classes
    tokens = tokens_to_match(blip, texts)
    cosines: list[Tensor] = []
    scores: list[Tensor] = []
    for batch in batches:
        encoded = blip.encode(batch)
        own = embed_images(blip.matcher, encoded.hidden).cpu() @ class_embeds.T
        wanted = candidates(own, k, dim=1)
        matched, _ = matching_scores(
            blip,
            encoded.encoder_memory,
            tokens,
            own.repeat_interleave(num_templates, dim=1),
            wanted.repeat_interleave(num_templates, dim=1),
        )
        # In float64, as the scores of classes behind them: float32 would tie cosines less 100.
        mean = matched.double().view(len(own), num_classes, num_templates).mean(dim=2)
        cosines.append(own)
        scores.append(torch.where(wanted, mean, unmatched_scores(own)))
    return torch.cat(cosines).numpy(), torch.cat(scores).numpy()


def _units(scores: np.ndarray, right: list[list[int]], num_classes: int) -> dict[str, UnitScores]:
    ranks = class_ranks(scores, right)
    units = {f"top-{k}": unit_scores(100 * ranks.hits(k)) for k in _TOP_AT}
    images = np.bincount(np.concatenate([np.array(own) for own in right]), minlength=num_classes)
    # An image counts in each of its classes by one part in that class's images, so that the sums
    # over images are those over classes, and images can be resampled.
    weights = np.array([(1 / images[own]).sum() for own in right])
    units["mean per class"] = UnitScores(100 * ranks.hits(1) * weights, weights)
    return units


def _predictions(images: LabelledImages, scores: np.ndarray) -> list[dict[str, Any]]:
    best = np.argsort(-scores, axis=1, kind="stable")[:, : max(_TOP_AT)]
    return [
        {
            "id": key,
            "labels": [images.classes[label] for label in right],
            "predictions": [images.classes[label] for label in first],
            "correct": first[0] in right,
        }
        for key, right, first in zip(
            images.ids, images.classes_of_image, best.tolist(), strict=True
        )
    ]
