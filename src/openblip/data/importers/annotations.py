"""Which kind of annotations a JSON file holds."""

from pathlib import Path
from typing import Any

from openblip.data.importers.coco import CocoSource, KarpathySource
from openblip.data.importers.questions import (
    question_list_source,
    shorten_answers,
    visual_genome_source,
    vqa_source,
)
from openblip.data.importers.source import PairSource, SourceOptions, parse_json
from openblip.errors import DataError

ANNOTATION_FORMATS = ("coco", "karpathy", "vqa", "questions", "visual_genome")
_KNOWN = (
    "COCO captions (images, annotations), a Karpathy split (images with sentences), questions of "
    "VQA v2, a list of questions, or question_answers of Visual Genome"
)


def read_annotations(file: Path, options: SourceOptions) -> PairSource:
    """The source that a JSON file of annotations is; which kind shows in its keys.

    Raises:
        DataError: it is of no known kind, or no JSON at all.
    """
    try:
        document = parse_json(file.read_bytes(), shorten_answers)
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read as JSON: {error}") from error
    if isinstance(document, dict):
        return _of_object(file, document, options)
    first = document[0] if isinstance(document, list) and document else None
    if isinstance(first, dict) and "qas" in first:
        return visual_genome_source(file, document, options)
    if isinstance(first, dict) and "question" in first:
        return question_list_source(file, document, options)
    raise DataError(f"{file} is none of {_KNOWN}")


def _of_object(file: Path, document: dict[str, Any], options: SourceOptions) -> PairSource:
    if "questions" in document:
        return vqa_source(file, document, options)
    images = document.get("images")
    if "annotations" in document and "images" not in document:
        raise DataError(f"{file} has annotations without images: import the file of questions")
    if "annotations" in document:
        return CocoSource(file, document, options)
    if isinstance(images, list) and images and "sentences" in images[0]:
        return KarpathySource(file, document, options)
    raise DataError(f"{file} is none of {_KNOWN}; its keys are {', '.join(list(document)[:10])}")
