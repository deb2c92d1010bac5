"""Questions about images: VQA v2, the lists that BLIP's authors distribute, Visual Genome."""

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from openblip.data.importers.coco import ROOTS, objects_of
from openblip.data.importers.gathered import Gathered, GatheredSource
from openblip.data.importers.source import SourceOptions, parse_json
from openblip.errors import DataError

# What answers of Visual Genome count beside those of VQA v2, in the original's data set.
_VISUAL_GENOME_WEIGHT = 0.2
# Its images come in two archives; which has an image its annotations do not say.
_VISUAL_GENOME_FOLDERS = ("VG_100K/", "VG_100K_2/", "")
_COCO_PART = re.compile(r"(train|val|test)(?:-dev)?(\d{4})")
_ANNOTATION_FIELDS = ("question_type", "answer_type", "answers")


def shorten_answers(value: dict[str, Any]) -> Any:
    """What is kept of an object while a file is parsed; the whole would take gigabytes.

    Of an annotator's answer in VQA v2 that is its text, of a question in Visual Genome its texts
    and its id.
    """
    if "answer_confidence" in value and isinstance(value.get("answer"), str):
        return sys.intern(value["answer"])
    if "qa_id" in value:
        return {name: value.get(name) for name in ("question", "answer", "qa_id")}
    return value


def vqa_source(file: Path, document: Mapping[str, Any], options: SourceOptions) -> GatheredSource:
    """The questions of VQA v2 about images of COCO, with the annotations that lie beside them.

    The id is COCO's image id; the split is that of COCO. `v2_OpenEnded_mscoco_val2014_questions`
    is annotated in `v2_mscoco_val2014_annotations`; the test splits have no annotations.

    Raises:
        DataError: which part of COCO it is does not show, annotations of a split that has them
            are not there, or the images are nowhere to be found.
    """
    found = _COCO_PART.search(str(document.get("data_subtype", ""))) or _COCO_PART.search(file.name)
    if found is None:
        raise DataError(
            f"{file}: neither data_subtype nor the file's name says which images it is about; "
            "name it as the official one, such as v2_OpenEnded_mscoco_val2014_questions.json"
        )
    split, part = found[1], found[1] + found[2]
    gathered = Gathered(file)
    annotations = _annotations(gathered, needed=split != "test")
    for number, entry in enumerate(objects_of(file, document, "questions")):
        image, text, key = (entry.get(name) for name in ("image_id", "question", "question_id"))
        if not isinstance(image, int) or not isinstance(text, str) or not isinstance(key, int):
            gathered.refuse(f"question {number}", "needs a question, its question_id and image_id")
            continue
        annotation = annotations.pop(key, None)
        if annotation is None and split != "test":
            gathered.refuse(f"question {key}", "is not in the file of annotations")
            continue
        known = {name: annotation.get(name) for name in _ANNOTATION_FIELDS} if annotation else {}
        if annotation is not None and not _are_answers(annotation.get("answers")):
            gathered.refuse(f"annotation of question {key}", "needs answers, a list of texts")
            continue
        name = f"COCO_{part}_{image:012d}.jpg"
        _ask(gathered, str(image), (name,), {"question": text, "question_id": key, **known})
    for key in annotations:
        gathered.refuse(f"annotation of question {key}", "has no question in the file")
    roots = (*ROOTS, part, f"../{part}", f"../images/{part}")
    return GatheredSource("vqa", gathered, roots, split, options)


def _ask(gathered: Gathered, key: str, names: tuple[str, ...], question: dict[str, Any]) -> None:
    """Adds a question about an image, as `openblip.data.questions` reads it."""
    gathered.image(key, names).meta.setdefault("questions", []).append(question)


def _are_answers(values: object) -> bool:
    """Whether it is a list of texts, or of objects with a text `answer`."""
    if not isinstance(values, list):
        return False
    texts = (value.get("answer") if isinstance(value, dict) else value for value in values)
    return all(isinstance(text, str) for text in texts)


def _annotations(gathered: Gathered, needed: bool) -> dict[int, Mapping[str, Any]]:
    """The annotations that belong to a file of questions, by question id."""
    file = gathered.file
    name = file.name.replace("OpenEnded_", "").replace("questions", "annotations")
    beside = file.with_name(name)
    if beside == file or not beside.is_file():
        if not needed:
            return {}
        raise DataError(
            f"{file}: its answers are looked for in {beside}, which is not there: put the official "
            "annotations beside the questions, under that name"
        )
    try:
        document = parse_json(beside.read_bytes(), shorten_answers)
    except (OSError, ValueError) as error:
        raise DataError(f"{beside} cannot be read as JSON: {error}") from error
    entries = objects_of(beside, document if isinstance(document, dict) else {}, "annotations")
    found: dict[int, Mapping[str, Any]] = {}
    for number, entry in enumerate(entries):
        key = entry.get("question_id")
        if isinstance(key, int):
            found[key] = entry
        else:
            gathered.refuse(f"annotation {number}", "needs a question_id, a number")
    return found


def question_list_source(
    file: Path, records: Sequence[Any], options: SourceOptions
) -> GatheredSource:
    """A list of objects with `image`, `question`, `answer` and perhaps `question_id`, `dataset`.

    This is the form of `vqa_train.json`, `vqa_val.json`, `vqa_test.json` and `vg_qa.json` of BLIP.
    Answers of the data set `vg` weigh 0.2. The id is the path of the image; the split is what the
    file's name says.
    """
    gathered = Gathered(file)
    for number, record in enumerate(records):
        entry = record if isinstance(record, dict) else {}
        image, text, answers = (entry.get(name) for name in ("image", "question", "answer"))
        listed = [answers] if isinstance(answers, str) else answers or []
        is_listed = isinstance(listed, list) and all(isinstance(answer, str) for answer in listed)
        if not isinstance(image, str) or not isinstance(text, str) or not is_listed:
            gathered.refuse(f"record {number}", "needs an image, a question, and answers as texts")
            continue
        question: dict[str, Any] = {"question": text, "answers": listed}
        if entry.get("question_id") is not None:
            question["question_id"] = entry["question_id"]
        if entry.get("dataset") == "vg":
            question["weight"] = _VISUAL_GENOME_WEIGHT
        _ask(gathered, image, (image,), question)
    return GatheredSource("questions", gathered, ROOTS, None, options)


def visual_genome_source(
    file: Path, records: Sequence[Any], options: SourceOptions
) -> GatheredSource:
    """`question_answers.json` of Visual Genome: a list of images with `qas`, which weigh 0.2.

    Its answers are sentences: a closing full stop goes, as answers of VQA v2 have none. The id is
    "visual_genome/" and its image id.
    """
    gathered = Gathered(file)
    for number, record in enumerate(records):
        entry = record if isinstance(record, dict) else {}
        image, questions = entry.get("id"), entry.get("qas")
        if not isinstance(image, int) or not isinstance(questions, list):
            gathered.refuse(f"image {number}", "needs an id and a list of qas")
            continue
        names = tuple(f"{folder}{image}.jpg" for folder in _VISUAL_GENOME_FOLDERS)
        for place, qa in enumerate(questions):
            said = qa if isinstance(qa, dict) else {}
            text, answer, key = (said.get(name) for name in ("question", "answer", "qa_id"))
            if not isinstance(text, str) or not isinstance(answer, str) or key is None:
                detail = "needs a question and an answer, both texts, and its qa_id"
                gathered.refuse(f"image {image}, qas {place}", detail)
                continue
            question = {
                "question": text,
                "answers": [answer.strip().removesuffix(".")],
                "question_id": key,
                "weight": _VISUAL_GENOME_WEIGHT,
            }
            _ask(gathered, f"visual_genome/{image}", names, question)
    return GatheredSource("visual_genome", gathered, ROOTS, None, options)
