"""Visual Genome: questions about its images, and descriptions of regions in them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from openblip.data.importers.gathered import (
    Gathered,
    GatheredImage,
    GatheredSource,
    fields_of,
)
from openblip.data.importers.image_folders import find_images
from openblip.data.importers.source import SourceOptions, known_id
from openblip.data.importers.splits import pop_split

ANSWER_WEIGHT = 0.2
"""What its answers count beside those of VQA v2, in the original's data set."""
# Its images come in two archives; which has an image its annotations do not say.
_FOLDERS = ("VG_100K/", "VG_100K_2/", "")
_BOX = ("x", "y", "width", "height")


def genome_questions_source(
    file: Path, records: Sequence[Any], options: SourceOptions
) -> GatheredSource:
    """`question_answers.json`: a list of images with `qas`, which weigh 0.2.

    Its answers are sentences: a closing full stop goes, as answers of VQA v2 have none. The id is
    "visual_genome/" and its image id. An image is a record.
    """
    gathered = _gathered(file, records, options)
    detail = "needs a question and an answer, both texts, and its qa_id"
    for image, questions in _images(gathered, records, "qas", _question, detail):
        image.meta.setdefault("questions", []).extend(questions)
        image.may_lack_captions = True
    return GatheredSource("visual_genome", gathered)


def genome_regions_source(
    file: Path, records: Sequence[Any], options: SourceOptions
) -> GatheredSource:
    """`region_descriptions.json`: a list of images with `regions`, each with a `phrase`.

    The phrases are the captions; the box of each stands in `regions` of the metadata. The id is
    that of the questions. An image is a record.
    """
    gathered = _gathered(file, records, options)
    for image, regions in _images(gathered, records, "regions", _region, "needs a phrase"):
        image.captions += [region.pop("phrase") for region in regions]
        image.meta.setdefault("regions", []).extend(regions)
    return GatheredSource("visual_genome", gathered)


def _question(said: Mapping[str, Any]) -> dict[str, Any] | None:
    text, answer, key = (said.get(name) for name in ("question", "answer", "qa_id"))
    if not isinstance(text, str) or not isinstance(answer, str) or key is None:
        return None
    answers = [answer.strip().removesuffix(".")]
    return {"question": text, "answers": answers, "question_id": key, "weight": ANSWER_WEIGHT}


def _region(said: Mapping[str, Any]) -> dict[str, Any] | None:
    phrase = said.get("phrase")
    if not isinstance(phrase, str) or not phrase.strip():
        return None
    return {name: said.get(name) for name in ("phrase", *_BOX)}


def _gathered(file: Path, records: Sequence[Any], options: SourceOptions) -> Gathered:
    names = (name for record in records for name in _names(_image_id(fields_of(record))))
    return Gathered(file, find_images(file, names, options))


def _images(
    gathered: Gathered,
    records: Sequence[Any],
    field: str,
    read: Callable[[Mapping[str, Any]], dict[str, Any] | None],
    needs: str,
) -> Iterator[tuple[GatheredImage, list[dict[str, Any]]]]:
    """The image of each record that has some of what is looked for, and that.

    Args:
        gathered: takes the images, and what else there is.
        records: of the file.
        field: that lists it.
        read: gives what an element says; None for a malformed one.
        needs: what it then lacks.
    """
    for number, record in enumerate(records):
        entry = fields_of(record)
        image_id, parts = _image_id(entry), entry.get(field)
        if not isinstance(image_id, int) or not isinstance(parts, list):
            gathered.refuse(f"image {number}", f"needs an id and a list of {field}")
            continue
        found = [read(fields_of(part)) for part in parts]
        good = [part for part in found if part is not None]
        if not good:
            gathered.refuse(f"image {image_id}", f"has no {field}, each of which {needs}")
            continue
        image = gathered.image(f"visual_genome/{image_id}", _names(image_id), pop_split(entry))
        for place in (place for place, part in enumerate(found) if part is None):
            gathered.remark(image, f"image {image_id}, {field} {place}", needs)
        yield image, good


def _image_id(record: dict[str, Any]) -> int | str | None:
    image_id = known_id(record.get("id"))
    return known_id(record.get("image_id")) if image_id is None else image_id


def _names(image_id: int | str | None) -> tuple[str, ...]:
    return tuple(f"{folder}{image_id}.jpg" for folder in _FOLDERS) if image_id is not None else ()
