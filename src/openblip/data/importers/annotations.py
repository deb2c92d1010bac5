"""Which kind of annotations a JSON file holds."""

from collections.abc import Callable, Iterable, Set
from pathlib import Path
from typing import Any

from openblip.data.importers.captions import (
    CAPTION_FIELDS,
    IMAGE_FIELDS,
    caption_list_source,
    is_result,
    keyed_captions_source,
    results_source,
)
from openblip.data.importers.coco import coco_source, karpathy_source
from openblip.data.importers.documents import first_line, read_document
from openblip.data.importers.gathered import GatheredSource, fields_of
from openblip.data.importers.nlvr import nlvr_list_source, nlvr_source
from openblip.data.importers.questions import (
    keyed_questions_source,
    question_list_source,
    shorten_answers,
    vqa_source,
)
from openblip.data.importers.source import PairSource, SourceOptions
from openblip.data.importers.splits import both_splits, pop_split
from openblip.data.importers.visual_genome import genome_questions_source, genome_regions_source
from openblip.errors import DataError

ANNOTATION_FORMATS = ("coco", "karpathy", "captions", "vqa", "questions", "visual_genome", "nlvr")
_KNOWN = (
    "COCO captions (images, annotations), a Karpathy split (images with sentences), a list of "
    "captions, questions of VQA v2, a list of questions, Visual Genome's questions or regions, or "
    "sentences of NLVR2"
)
_REFERRING = "referring expressions (as of RefCOCO), which are about regions and no captions"
# What is known and holds no captions of images, by the fields of its first object.
_REFUSED = (
    ({"conversations"}, "conversations (as of LLaVA): put what is a caption into a captions.jsonl"),
    ({"ref_id"}, _REFERRING),
    ({"refs"}, _REFERRING),
    ({"img_id", "sent", "label"}, "questions in the form of LXMERT: import the official files"),
)
_REFUSED_OBJECTS = (
    ({"classes", "labels"}, "class labels (as of FiftyOne): export captions as COCO annotations"),
    *_REFUSED,
)
_CAPTION = frozenset((*CAPTION_FIELDS, "img_id"))
_IMAGE = frozenset((*IMAGE_FIELDS, "image_id"))
_ADDRESSES = frozenset(("url", "image_url", "image_urls", "img_url"))
# Of how many objects at the beginning one must say what they all are.
_NUM_FIRST = 20

_Opener = Callable[[Path, list[Any], SourceOptions], GatheredSource]


class UnknownAnnotations(DataError):  # noqa: N818 - says what it is
    """A JSON file that holds no known kind of annotations."""


def read_annotations(file: Path, options: SourceOptions) -> PairSource:
    """The source that a JSON file of annotations is; which kind shows in its keys.

    Raises:
        UnknownAnnotations: it is of no known kind.
        DataError: it is no JSON, or known and without captions.
    """
    document = read_document(file, shorten_answers)
    if isinstance(document, dict) and {"sentence", "identifier"} <= document.keys():
        document = [document]
    if isinstance(document, dict):
        return _of_object(file, document, options)
    return _of_list(file, document if isinstance(document, list) else [], options)


def has_annotation_lines(file: Path) -> bool:
    """Whether the lines of a file are annotations of a known form, and not paths with texts."""
    first = fields_of(first_line(file)).keys()
    is_narrative = {"dataset_id", "image_id", "caption"} <= first
    is_question = "question" in first and not _CAPTION & first
    return is_narrative or is_question or {"sentence", "identifier"} <= first


def _of_list(
    file: Path, records: list[Any], options: SourceOptions, split: str | None = None
) -> GatheredSource:
    """Which list it is shows in the fields of one of its first objects."""
    first = [record.keys() for record in records[:_NUM_FIRST] if isinstance(record, dict)]
    for keys in first:
        _refuse_by_name(file, keys, _REFUSED)
        if "question" in keys and not {"sentence", "qas"} & keys:
            return question_list_source(file, records, options, split)
        for fields, opener in _LISTS:
            if fields <= keys:
                return opener(file, records, options)
        if is_result(keys) and (source := results_source(file, records, options)) is not None:
            return source
        if _IMAGE & keys and _CAPTION & keys:
            return caption_list_source(file, records, options, split)
        _refuse_addresses(file, keys)
    said = f"; its first object has {_short(first[0])}" if first else ""
    raise UnknownAnnotations(f"{file} is none of {_KNOWN}{said}")


_LISTS: tuple[tuple[set[str], _Opener], ...] = (
    ({"qas"}, genome_questions_source),
    ({"regions"}, genome_regions_source),
    ({"sentence", "identifier"}, nlvr_source),
    ({"sentence", "images"}, nlvr_list_source),
)


def _of_object(file: Path, document: dict[str, Any], options: SourceOptions) -> PairSource:
    _refuse_by_name(file, document.keys(), _REFUSED_OBJECTS)
    _refuse_addresses(file, document.keys())
    if "questions" in document:
        return vqa_source(file, document, options)
    if "annotations" in document and "images" not in document:
        raise DataError(f"{file} has annotations without images: import the file of questions")
    if "annotations" in document:
        return coco_source(file, document, options)
    images, data = document.get("images"), document.get("data")
    if isinstance(images, list) and any("sentences" in fields_of(i) for i in images[:_NUM_FIRST]):
        return karpathy_source(file, document, options)
    if isinstance(data, list):
        # TextCaps and TextVQA say what all are of.
        return _of_list(file, data, options, _split_of(document))
    values = [value for value in list(document.values())[:_NUM_FIRST] if isinstance(value, dict)]
    if any({"question", "imageId"} <= value.keys() for value in values):
        return keyed_questions_source(file, document, options)
    if any("caption" in value for value in values):
        return keyed_captions_source(file, document, options)
    said = f"; its keys are {_short(document)}" if document else "; it is empty"
    raise UnknownAnnotations(f"{file} is none of {_KNOWN}{said}")


def _split_of(document: dict[str, Any]) -> str | None:
    told = document.get("dataset_type")
    return both_splits(pop_split(document), told if isinstance(told, str) else None)


def _refuse_by_name(file: Path, keys: Set[str], kinds: tuple[tuple[set[str], str], ...]) -> None:
    for fields, what in kinds:
        if fields <= keys:
            raise DataError(f"{file} holds {what}")


def _refuse_addresses(file: Path, keys: Set[str]) -> None:
    if _ADDRESSES & keys and _CAPTION & keys:
        raise DataError(
            f"{file} holds web addresses (as SBU captions do): download the images first with "
            "img2dataset, and import its output"
        )


def _short(names: Iterable[str]) -> str:
    """The first few names, for a message."""
    return ", ".join(name[:40] for name in list(names)[:10])
