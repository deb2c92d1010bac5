"""Which kind of annotations a JSON file holds."""

from pathlib import Path
from typing import Any

from openblip.data.importers.captions import caption_list_source, results_source
from openblip.data.importers.coco import CocoSource, KarpathySource
from openblip.data.importers.nlvr import nlvr_list_source, nlvr_source
from openblip.data.importers.questions import (
    question_list_source,
    shorten_answers,
    visual_genome_source,
    vqa_source,
)
from openblip.data.importers.source import PairSource, SourceOptions, parse_json
from openblip.errors import DataError

ANNOTATION_FORMATS = ("coco", "karpathy", "captions", "vqa", "questions", "visual_genome", "nlvr")
_KNOWN = (
    "COCO captions (images, annotations), a Karpathy split (images with sentences), a list of "
    "captions, questions of VQA v2, a list of questions, question_answers of Visual Genome, or "
    "sentences of NLVR2"
)
# Which list it is shows in the fields of its first object.
_LISTS = (
    ({"qas"}, visual_genome_source),
    ({"question"}, question_list_source),
    ({"sentence", "identifier"}, nlvr_source),
    ({"sentence", "images"}, nlvr_list_source),
    ({"image", "caption"}, caption_list_source),
    ({"image", "captions"}, caption_list_source),
    ({"image", "img_id"}, caption_list_source),
    ({"image_id", "caption"}, results_source),
)


def read_annotations(file: Path, options: SourceOptions) -> PairSource:
    """The source that a JSON file of annotations is; which kind shows in its keys.

    Raises:
        DataError: it is of no known kind, or no JSON at all.
    """
    document = _parsed(file)
    if isinstance(document, dict):
        return _of_object(file, document, options)
    first = document[0] if isinstance(document, list) and document else None
    if isinstance(first, dict):
        for fields, opener in _LISTS:
            if fields <= first.keys():
                return opener(file, document, options)
    raise DataError(f"{file} is none of {_KNOWN}")


def _parsed(file: Path) -> Any:
    """The JSON value of a file; a list of them where each line has one, as in NLVR2."""
    try:
        content = file.read_bytes()
        try:
            document = parse_json(content, shorten_answers)
        except ValueError:
            lines = content.splitlines()
            # A line that is a whole object, and not the end: damage is told as that of the file.
            if len(lines) < 2 or not lines[0].rstrip().endswith(b"}"):
                raise
            return [parse_json(line) for line in lines if line.strip()]
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read as JSON: {error}") from error
    is_line = isinstance(document, dict) and {"sentence", "identifier"} <= document.keys()
    return [document] if is_line else document


def _of_object(file: Path, document: dict[str, Any], options: SourceOptions) -> PairSource:
    if "questions" in document:
        return vqa_source(file, document, options)
    images = document.get("images")
    if "annotations" in document and "images" not in document:
        raise DataError(f"{file} has annotations without images: import the file of questions")
    if "annotations" in document:
        return CocoSource(file, document, options)
    first = images[0] if isinstance(images, list) and images else None
    if isinstance(first, dict) and "sentences" in first:
        return KarpathySource(file, document, options)
    raise DataError(f"{file} is none of {_KNOWN}; its keys are {', '.join(list(document)[:10])}")
