"""Questions and statements about images, in the files of all their datasets.

VQA v2 and its relatives; Visual Genome's questions, and descriptions of regions; sentences about
two images, in NLVR2's own files and in the lists that BLIP's authors distribute.
"""

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from openblip.runtime.errors import DataError
from openblip.sources.caption_lists import gathered_with_names, image_key
from openblip.sources.json_files import read_document
from openblip.sources.records import (
    ROOTS,
    Gathered,
    GatheredImage,
    GatheredSource,
    fields_of,
    find_images,
    listed,
)
from openblip.sources.source import SourceOptions, id_text, known_id, written_list
from openblip.sources.splits import both_splits, pop_split

# VQA v2's test-dev2015 asks about images of test2015.
_COCO_PART = re.compile(r"(train|val|test)(?:-dev)?(\d{4})")
_ANNOTATION_FIELDS = ("question_type", "answer_type")
# Besides the question and its answers, what is kept of a record of a list.
_QUESTION_FIELDS = (
    *("question_type", "answer_type", "answerable", "choices", "correct_choice_idx"),
    *("rationales", "difficult_direct_answer"),
)
# The first of these that has any; what else is called an answer is not known.
_ANSWERS = ("answers", "answer", "direct_answers", "multiple_choice_answer")
_KNOWN_ANSWERS = (*_ANSWERS, *_QUESTION_FIELDS, "answer_confidence", "fullAnswer")


def shorten_answers(value: dict[str, Any]) -> Any:
    """What is kept of an object while a file is parsed; the whole would take gigabytes.

    Of an annotator's answer in VQA v2 that is its text, of a question in Visual Genome or GQA its
    texts and its ids, of a region in Visual Genome its phrase and box, of a localized narrative
    what is not its traces.
    """
    # Ten annotators answer each question, mostly in the same few words: each is held once.
    if "answer_confidence" in value and isinstance(value.get("answer"), str):
        return sys.intern(value["answer"])
    if "qa_id" in value:
        return {name: value.get(name) for name in ("question", "answer", "qa_id")}
    if "imageId" in value:
        return {name: value.get(name) for name in ("question", "answer", "imageId")}
    if "region_id" in value:
        return {name: value.get(name) for name in ("phrase", "x", "y", "width", "height")}
    if "timed_caption" in value:
        return {name: value.get(name) for name in ("dataset_id", "image_id", "caption")}
    return value


def vqa_source(file: Path, document: Mapping[str, Any], options: SourceOptions) -> GatheredSource:
    """The questions of VQA v2 about images of COCO, with the annotations that lie beside them.

    The id is COCO's image id; the split is that of COCO. `v2_OpenEnded_mscoco_val2014_questions`
    is annotated in `v2_mscoco_val2014_annotations`; the test splits have no annotations. A question
    with its annotation is one record.

    Raises:
        DataError: which part of COCO it is does not show, annotations of a split that has them
            are not there, or the images are nowhere to be found.
    """
    told = _COCO_PART.search(str(document.get("data_subtype", "")))
    found = told or _COCO_PART.search(file.name)
    if found is None:
        raise DataError(
            f"{file}: neither data_subtype nor the file's name says which images it is about; "
            "name it as the official one, such as v2_OpenEnded_mscoco_val2014_questions.json"
        )
    part = found[1] + found[2]
    questions = [fields_of(entry) for entry in listed(file, document, "questions")]
    names = [_official_name(part, entry.get("image_id")) for entry in questions]
    roots = (*ROOTS, part, f"../{part}", f"../images/{part}")
    folder = find_images(file, (name for name in names if name), options, roots)
    # What a name says needs no telling: names have a rank of their own.
    gathered = Gathered(file, folder, found[1] if told else None)
    annotations = _annotations(gathered, document, options.encoding, needed=found[1] != "test")
    for number, (entry, name) in enumerate(zip(questions, names, strict=True)):
        text, key = entry.get("question"), known_id(entry.get("question_id"))
        if name is None or not isinstance(text, str) or key is None:
            gathered.refuse(f"question {number}", "needs a question, its question_id and image_id")
            continue
        question = {"question": text, "question_id": key}
        # Taken out: what is left at the end has no question.
        annotation = annotations.pop(str(key), None)
        if annotation is None and found[1] != "test":
            gathered.refuse(f"question {key}", "is not in the file of annotations")
            continue
        if annotation is not None and not _annotate(question, annotation):
            gathered.refuse(f"annotation of question {key}", "needs answers, a list of texts")
            continue
        # The id that COCO's captions give the image, also where somebody has padded it.
        image = str(known_id(entry["image_id"])).lstrip("0") or "0"
        _ask(gathered, image, (name,), question, pop_split(entry))
    for left in annotations:
        gathered.refuse(f"annotation of question {left}", "has no question in the file")
    return GatheredSource("vqa", gathered)


def _official_name(part: str, image_id: Any) -> str | None:
    text = str(known_id(image_id))
    return f"COCO_{part}_{text:0>12}.jpg" if text.isascii() and text.isdecimal() else None


def _annotate(question: dict[str, Any], annotation: Mapping[str, Any]) -> bool:
    """Adds what an annotation says; whether it has answers."""
    try:
        answers = _texts(annotation.get("answers"))
    except ValueError:
        return False
    known = {name: annotation.get(name) for name in _ANNOTATION_FIELDS}
    question |= {**known, "answers": answers}
    return bool(answers)


def _ask(
    gathered: Gathered,
    key: str,
    names: tuple[str, ...],
    question: dict[str, Any],
    split: str | None,
) -> None:
    """Adds a question about an image, as `openblip.batches.questions` reads it."""
    image = gathered.image(key, names, split)
    image.may_lack_captions = True
    image.meta.setdefault("questions", []).append(question)


def _texts(value: Any) -> list[str]:
    """The answers of a text or number, or a list of them or of objects with one in `answer`.

    Raises:
        ValueError: it is something else.
    """
    value = written_list(value) if isinstance(value, str) else value
    several = value if isinstance(value, list) else [value]
    texts = [e["answer"] if isinstance(e, dict) and "answer" in e else e for e in several]
    # "How many?" is answered with a number now and then.
    said = [
        id_text(e) if isinstance(e, int | float) and not isinstance(e, bool) else e for e in texts
    ]
    known = [text for text in said if text is not None]
    if not all(isinstance(text, str) for text in known):
        raise ValueError("needs an image, a question, and answers as texts")
    return [text for text in known if text.strip()]


def answers_beside(file: Path) -> Path | None:
    """Where the annotations of a file of questions are looked for; None if no name says it."""
    name = re.sub("(OpenEnded|MultipleChoice)_", "", file.name)
    beside = file.with_name(name.replace("questions", "annotations"))
    return None if beside == file else beside


def _annotations(
    gathered: Gathered, document: Mapping[str, Any], encoding: str | None, needed: bool
) -> dict[str, Mapping[str, Any]]:
    """The annotations that belong to a file of questions, by question id."""
    file = gathered.file
    beside = answers_beside(file)
    if "annotations" in document:
        entries = listed(file, document, "annotations")
    elif beside is None or not beside.exists():
        if not needed:
            return {}
        raise DataError(
            f"{file}: its answers are looked for in {beside or file}, which is not there: put the "
            "official annotations beside the questions, under that name"
        )
    else:
        found = fields_of(read_document(beside, shorten_answers, encoding))
        entries = listed(beside, found, "annotations")
    by_id: dict[str, Mapping[str, Any]] = {}
    for number, entry in enumerate(map(fields_of, entries)):
        key = known_id(entry.get("question_id"))
        if key is None:
            gathered.refuse(f"annotation {number}", "needs a question_id")
        elif str(key) in by_id:
            gathered.refuse(f"annotation {number}", f"is a second one of question {key}")
        else:
            by_id[str(key)] = entry
    return by_id


def question_list_source(
    file: Path, records: Sequence[Any], options: SourceOptions, split: str | None = None
) -> GatheredSource:
    """A list of objects with `image`, `question`, answers, and perhaps `question_id`, `dataset`.

    This is the form of `vqa_train.json`, `vqa_val.json`, `vqa_test.json` and `vg_qa.json` of BLIP,
    of VizWiz, TextVQA and A-OKVQA. Answers are in `answers`, `answer`, `direct_answers` or
    `multiple_choice_answer`, or are the right one of `choices`; those of the data set `vg` weigh
    0.2. The id is the path of the image, or its `image_id`.

    Args:
        file: that holds them.
        records: the objects.
        options: may name the folder of images.
        split: of all records, where the file says it.

    Raises:
        DataError: the images are nowhere to be found.
    """
    gathered, own = gathered_with_names(file, records, options, split)
    for number, (record, names) in enumerate(zip(records, own, strict=True)):
        entry = fields_of(record)
        text = entry.get("question")
        try:
            if not names or not isinstance(text, str):
                raise ValueError("needs an image, a question, and answers as texts")
            question: dict[str, Any] = {"question": text, "answers": _answers(entry)}
        except ValueError as error:
            gathered.refuse(f"record {number}", str(error))
            continue
        question |= {n: entry[n] for n in _QUESTION_FIELDS if entry.get(n) is not None}
        if (key := known_id(entry.get("question_id"))) is not None:
            question["question_id"] = key
        if entry.get("dataset") == "vg":
            question["weight"] = _ANSWER_WEIGHT
        _ask(gathered, image_key(entry, gathered.folder, names), names, question, pop_split(entry))
    return GatheredSource("questions", gathered)


def keyed_questions_source(
    file: Path, document: Mapping[str, Any], options: SourceOptions
) -> GatheredSource:
    """An object that has a question under each question's id, as GQA; its image is `imageId`."""
    records = [
        {**fields_of(v), "question_id": k, "image": f"{fields_of(v).get('imageId')}.jpg"}
        for k, v in document.items()
    ]
    return question_list_source(file, records, options)


def _answers(entry: Mapping[str, Any]) -> list[str]:
    """The answers of a record; none of a test set, whose are not published.

    Raises:
        ValueError: they are no texts, or in a field that is not known.
    """
    for name in _ANSWERS:
        if "choices" in entry and isinstance(entry.get(name), int | float):
            raise ValueError(
                f"has a number in {name!r}, and choices: call it correct_choice_idx if it is the "
                "place of one, from 0, or write it as a text"
            )
        if answers := _texts(entry.get(name)):
            return answers
    choices, right = entry.get("choices"), known_id(entry.get("correct_choice_idx"))
    if isinstance(choices, list) and isinstance(right, int) and 0 <= right < len(choices):
        return _texts(choices[right])
    for name, value in entry.items():
        is_said = bool(value) and isinstance(value, str | list | dict)
        is_answer = "answer" in name.lower() or name.lower() in ("label", "labels", "target")
        if is_said and is_answer and name not in _KNOWN_ANSWERS:
            raise ValueError(f"has answers in {name!r}, which is not known: call it answers")
    return []


# What its answers count beside those of VQA v2, in the original's data set.
_ANSWER_WEIGHT = 0.2
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
    return {"question": text, "answers": answers, "question_id": key, "weight": _ANSWER_WEIGHT}


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


# "split-set_id-pair_id-sentence_id"; images are called after the first three.
_IDENTIFIER = re.compile(r"^(?P<pair>(?P<split>train|dev|test\d?)-\d+-\d+)-\d+$")
_Names = list[tuple[str, ...]]


def nlvr_source(file: Path, records: Sequence[Any], options: SourceOptions) -> GatheredSource:
    """The official `train.json`, `dev.json` and `test1.json`: an example a line.

    The left image of `dev-850-0-0` is `dev-850-0-img0.png`, the right one `dev-850-0-img1.png`, in
    the folder of images or in `dev` below it; those of training in their `directory`. The split
    is that of the identifier.

    Raises:
        DataError: the images are nowhere to be found.
    """
    entries = [fields_of(record) for record in records]
    gathered = _gathered_sentences(file, (_official_names(entry) for entry in entries), options)
    for number, entry in enumerate(entries, 1):
        found = _identified(entry)
        if found is None:
            gathered.refuse(f"line {number}", "needs an identifier such as dev-850-0-0")
            continue
        names = _official_names(entry)
        split = both_splits(pop_split(entry), found["split"])
        _add(gathered, f"line {number}", entry, names, split, found[0])
    return GatheredSource("nlvr", gathered)


def nlvr_list_source(file: Path, records: Sequence[Any], options: SourceOptions) -> GatheredSource:
    """A list of objects with `images` (two paths), `sentence` and `label`.

    This is the form of `nlvr_train.json`, `nlvr_dev.json` and `nlvr_test.json` of BLIP. They have
    no identifiers: predictions for the official evaluation need the official files. The split is
    what the record or the file's name says.
    """
    entries = [fields_of(record) for record in records]
    gathered = _gathered_sentences(file, (_listed_names(entry) for entry in entries), options)
    for number, entry in enumerate(entries):
        names = _listed_names(entry)
        if not names:
            gathered.refuse(f"record {number}", "needs two paths in images")
            continue
        _add(gathered, f"record {number}", entry, names, pop_split(entry), None)
    return GatheredSource("nlvr", gathered)


def _identified(entry: Mapping[str, Any]) -> re.Match[str] | None:
    return _IDENTIFIER.match(str(entry.get("identifier")))


def _official_names(entry: Mapping[str, Any]) -> _Names:
    """Where the two images may be, the id of each last; none without an identifier."""
    if (found := _identified(entry)) is None:
        return []
    folders = [f"{found['split']}/"]
    if entry.get("directory") is not None:
        own = f"{entry['directory']}/"
        folders = [f"train/{own}", f"images/train/{own}", own]
    names = [f"{found['pair']}-img{side}.png" for side in (0, 1)]
    return [(*(folder + name for folder in folders), name) for name in names]


def _listed_names(entry: Mapping[str, Any]) -> _Names:
    names = entry.get("images")
    is_pair = isinstance(names, list) and len(names) == 2
    is_named = is_pair and all(isinstance(name, str) for name in names or ())
    return [(str(name),) for name in names or ()] if is_named else []


def _gathered_sentences(file: Path, pairs: Iterable[_Names], options: SourceOptions) -> Gathered:
    names = (name for pair in pairs for several in pair for name in several)
    return Gathered(file, find_images(file, names, options))


def _add(
    gathered: Gathered,
    what: str,
    entry: Mapping[str, Any],
    names: _Names,
    split: str | None,
    identifier: str | None,
) -> None:
    """Adds a sentence about two images, as `openblip.batches.image_pairs` reads it.

    The record is the first image's; one that is never first is none.
    """
    sentence, label = entry.get("sentence"), str(entry.get("label")).lower()
    if not isinstance(sentence, str) or label not in ("true", "false"):
        gathered.refuse(what, "needs a sentence, and a label that is true or false")
        return
    keys = [gathered.folder.below(several[-1]) for several in names]
    for number, key, several in zip((1, 0), keys, names, strict=True):
        image = gathered.image(key, several, split, number)
        image.may_lack_captions = True
    pair = {"second": keys[1], "sentence": sentence, "label": label == "true"}
    if identifier is not None:
        pair["pair_id"] = identifier
    gathered.images[keys[0]].meta.setdefault("pairs", []).append(pair)
