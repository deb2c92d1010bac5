"""Questions about images, in the layouts that they are published in."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openblip.batches.questions import Question, QuestionIndex
from openblip.runtime.errors import DataError
from openblip.sources.importing import import_pairs
from openblip.sources.report import ImportReport
from openblip.table.table import PairTable

OFFICIAL = "v2_OpenEnded_mscoco_val2014_questions.json"
ANNOTATIONS = "v2_mscoco_val2014_annotations.json"
HUMAN = ["yes"] * 7 + ["no"] * 3


def _write(file: Path, document: object) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(document))
    return file


def _images(folder: Path, jpeg: Callable[..., bytes], names: list[str]) -> None:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(jpeg(number))


def _import(source: Path, **options: Any) -> tuple[ImportReport, PairTable]:
    uri = source.parent / "out.lance"
    return import_pairs(source, uri, show_progress=False, **options), PairTable.open(uri)


def _questions(table: PairTable, split: str) -> list[tuple[str, Question]]:
    index = QuestionIndex.resolve(table, split, with_answers=False)
    ids = table.take(index.rows, ["id"])["id"].to_pylist()
    return list(zip(ids, index.read(np.arange(len(index))), strict=True))


def _question(key: int, image: int) -> dict[str, object]:
    return {"question_id": key, "image_id": image, "question": f"question {key}?"}


def _annotation(key: int, image: int) -> dict[str, object]:
    return {
        "question_id": key,
        "image_id": image,
        "question_type": "is the",
        "answer_type": "yes/no",
        "multiple_choice_answer": "yes",
        "answers": [
            {"answer": text, "answer_confidence": "maybe", "answer_id": number}
            for number, text in enumerate(HUMAN, 1)
        ],
    }


def _official(folder: Path, jpeg: Callable[..., bytes], questions: list[object]) -> Path:
    names = [f"COCO_val2014_{image:012d}.jpg" for image in (42, 73)]
    _images(folder / "val2014", jpeg, names)
    subtype = {"data_subtype": "val2014", "data_type": "mscoco"}
    annotated = [_annotation(42000, 42), _annotation(73000, 73), _annotation(42001, 42)]
    _write(folder / ANNOTATIONS, {**subtype, "annotations": annotated})
    return _write(folder / OFFICIAL, {**subtype, "questions": questions})


def test_questions_of_vqa_are_grouped_by_image_with_their_ten_answers(
    tmp_path: Path, jpeg: Callable[..., bytes]
) -> None:
    asked = [_question(42000, 42), _question(73000, 73), _question(42001, 42)]
    report, table = _import(_official(tmp_path, jpeg, asked), origin="human")

    assert (report.format, report.splits) == ("vqa", {"val": 2})
    assert report.skipped == {}
    found = _questions(table, "val")
    assert [(row, question.key) for row, question in found] == [
        ("42", "42000"),
        ("42", "42001"),
        ("73", "73000"),
    ]
    question = found[1][1]
    assert question.text == "question 42001?"
    assert list(question.answers) == HUMAN
    assert (question.question_type, question.answer_type) == ("is the", "yes/no")
    assert question.weighted_answers == pytest.approx({"yes": 0.7, "no": 0.3})


def test_an_import_goes_on_where_it_stopped(tmp_path: Path, jpeg: Callable[..., bytes]) -> None:
    asked = [_question(42000, 42), _question(73000, 73), _question(42001, 42)]
    source = _official(tmp_path, jpeg, asked)
    report, table = _import(source, limit=1)
    assert (len(table), report.complete) == (1, False)
    report, table = _import(source)
    assert (len(table), report.complete, report.skipped) == (2, True, {})
    assert [row for row, _ in _questions(table, "val")] == ["42", "42", "73"]


def test_what_belongs_to_nothing_is_reported(tmp_path: Path, jpeg: Callable[..., bytes]) -> None:
    asked = [
        _question(42000, 42),
        _question(42009, 42),
        {"question_id": 1, "question": "of no image?"},
        _question(73000, 73),
    ]
    report, table = _import(_official(tmp_path, jpeg, asked))
    details = {example.where: example.detail for example in report.examples["bad record"]}
    assert details == {
        f"{OFFICIAL} question 42009": "is not in the file of annotations",
        f"{OFFICIAL} question 2": "needs a question, its question_id and image_id",
        f"{OFFICIAL} annotation of question 42001": "has no question in the file",
    }
    assert [question.key for _, question in _questions(table, "val")] == ["42000", "73000"]


def test_malformed_annotations_are_reported(tmp_path: Path, jpeg: Callable[..., bytes]) -> None:
    asked = [_question(42000, 42), _question(73000, 73), _question(42001, 42)]
    source = _official(tmp_path, jpeg, asked)
    without_answers = {**_annotation(73000, 73), "answers": None}
    of_numbers = {**_annotation(42001, 42), "answers": [{"answer": True}]}
    unnamed = {**_annotation(1, 1), "question_id": "first"}
    annotated = [unnamed, {}, _annotation(42000, 42), without_answers, of_numbers]
    _write(tmp_path / ANNOTATIONS, {"annotations": annotated})

    report, table = _import(source)

    details = {example.where: example.detail for example in report.examples["bad record"]}
    assert details == {
        f"{OFFICIAL} annotation 1": "needs a question_id",
        f"{OFFICIAL} annotation of question first": "has no question in the file",
        f"{OFFICIAL} annotation of question 73000": "needs answers, a list of texts",
        f"{OFFICIAL} annotation of question 42001": "needs answers, a list of texts",
    }
    assert [question.key for _, question in _questions(table, "val")] == ["42000"]


def test_the_test_questions_have_no_answers(tmp_path: Path, jpeg: Callable[..., bytes]) -> None:
    _images(tmp_path / "test2015", jpeg, ["COCO_test2015_000000000005.jpg"])
    file = _write(
        tmp_path / "v2_OpenEnded_mscoco_test-dev2015_questions.json",
        {"data_subtype": "test-dev2015", "questions": [_question(5000, 5)]},
    )
    _, table = _import(file)
    ((row, question),) = _questions(table, "test")
    assert (row, question.key, question.answers) == ("5", "5000", ())


def test_annotations_that_are_not_there_are_missed_by_name(
    tmp_path: Path, jpeg: Callable[..., bytes]
) -> None:
    file = _official(tmp_path, jpeg, [_question(42000, 42)])
    (tmp_path / ANNOTATIONS).rename(tmp_path / "other.json")
    with pytest.raises(DataError, match=ANNOTATIONS):
        _import(file)
    with pytest.raises(DataError, match="import the file of questions"):
        _import(tmp_path / "other.json")
    unnamed = _write(tmp_path / "mine.json", {"questions": []})
    with pytest.raises(DataError, match="name it as the official one"):
        _import(unnamed)


def test_the_lists_that_blip_distributes(tmp_path: Path, jpeg: Callable[..., bytes]) -> None:
    records: list[object] = [
        {
            "image": "val2014/a.jpg",
            "question": "q1?",
            "question_id": 7,
            "answer": HUMAN,
            "dataset": "vqa",
        },
        {"image": "VG_100K/2.jpg", "question": "q2?", "answer": "on the grass", "dataset": "vg"},
        {"image": "val2014/a.jpg", "question": "q3?", "answer": ["red"], "dataset": "vqa"},
        {"image": "val2014/a.jpg", "question": "q4?", "answer": [True]},
        {"image": "../../secret.jpg", "question": "q5?", "answer": "no"},
        {"image": "VG_100K/2.jpg", "question": "q6?", "answer": "red", "question_id": None},
    ]
    root = tmp_path / "coco"
    _images(root, jpeg, ["val2014/a.jpg", "VG_100K/2.jpg"])
    report, table = _import(_write(tmp_path / "vqa_train.json", records), image_root=root)

    assert (report.format, report.splits) == ("questions", {"train": 2})
    assert report.skipped == {"bad record": 1, "unsafe path": 1}
    found = _questions(table, "train")
    assert [(row, question.text, question.weight) for row, question in found] == [
        ("val2014/a.jpg", "q1?", 1.0),
        ("val2014/a.jpg", "q3?", 1.0),
        ("VG_100K/2.jpg", "q2?", 0.2),
        ("VG_100K/2.jpg", "q6?", 1.0),
    ]
    assert found[3][1].key == "VG_100K/2.jpg/1"
    assert list(found[0][1].answers) == HUMAN
    assert found[0][1].key == "7"
    assert found[2][1].weighted_answers == {"on the grass": 0.2}


def test_a_list_of_test_questions_needs_no_answers(
    tmp_path: Path, jpeg: Callable[..., bytes]
) -> None:
    _images(tmp_path, jpeg, ["test2015/a.jpg"])
    records = [{"image": "test2015/a.jpg", "question": "q?", "question_id": 3, "dataset": "vqa"}]
    _, table = _import(_write(tmp_path / "vqa_test.json", records))
    ((_, question),) = _questions(table, "test")
    assert (question.key, question.answers) == ("3", ())


def test_answers_of_visual_genome_weigh_a_fifth_and_end_without_a_full_stop(
    tmp_path: Path, jpeg: Callable[..., bytes]
) -> None:
    objects = [{"object_id": 1, "names": ["clock"], "synsets": ["clock.n.01"]}]
    records = [
        {
            "id": image,
            "qas": [
                {
                    "qa_id": image * 10 + number,
                    "image_id": image,
                    "question": "What is it?",
                    "answer": "A clock.",
                    "a_objects": objects,
                    "q_objects": [],
                }
                for number in range(2)
            ],
        }
        for image in (1, 2)
    ]
    # Its images come in two archives.
    _images(tmp_path, jpeg, ["VG_100K/1.jpg", "VG_100K_2/2.jpg"])
    file = _write(tmp_path / "question_answers.json", [*records, {"id": 3}])
    report, table = _import(file)
    assert (report.format, report.splits) == ("visual_genome", {"train": 2})
    assert report.skipped == {"bad record": 1}
    found = _questions(table, "train")
    assert [(row, question.key) for row, question in found] == [
        ("visual_genome/1", "10"),
        ("visual_genome/1", "11"),
        ("visual_genome/2", "20"),
        ("visual_genome/2", "21"),
    ]
    assert found[0][1].weighted_answers == {"A clock": 0.2}


def test_malformed_questions_of_visual_genome_are_reported(
    tmp_path: Path, jpeg: Callable[..., bytes]
) -> None:
    _images(tmp_path, jpeg, ["VG_100K/1.jpg"])
    said = {"question": "What is it?", "answer": "A clock."}
    qas = [said, 5, {**said, "qa_id": 1, "answer": 3}, {**said, "qa_id": 2}]
    report, table = _import(_write(tmp_path / "question_answers.json", [{"id": 1, "qas": qas}]))

    assert [example.where for example in report.examples["bad record"]] == [
        f"question_answers.json image 1, qas {place}" for place in (0, 1, 2)
    ]
    assert [question.key for _, question in _questions(table, "train")] == ["2"]


def test_json_lines_may_bring_questions(write_jsonl: Callable[..., Path]) -> None:
    questions = [{"question": "what colour?", "answer": "black, gray"}]
    folder = write_jsonl([{"image": "images/0.jpg", "captions": [], "questions": questions}], 1)
    _, table = _import(folder)
    ((row, question),) = _questions(table, "train")
    assert (row, question.text, question.answers) == (
        "images/0.jpg",
        "what colour?",
        ("black, gray",),
    )


def test_the_pairs_of_daquar_are_imported_whole(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "vqa_daquar"
    if not source.is_dir():
        pytest.skip(f"reference data not found: {source}")
    uri = tmp_path / "daquar.lance"
    report = import_pairs(source, uri, origin="human", store="uri", show_progress=False)
    lines = [json.loads(line) for line in (source / "captions.jsonl").read_text().splitlines()]
    assert report.num_rows == len(lines)
    assert set(report.skipped) <= {"other file"}
    expected = [q["answer"] for line in lines if line["split"] == "test" for q in line["questions"]]
    found = [question.answers for _, question in _questions(PairTable.open(uri), "test")]
    assert found == [(answer,) for answer in expected]


def test_answers_are_read_from_every_field_that_is_known(
    tmp_path: Path, jpeg: Callable[..., bytes]
) -> None:
    _images(tmp_path, jpeg, ["a.jpg"])
    vizwiz = [{"answer": "beans", "answer_confidence": c} for c in ("yes", "maybe", "no")]
    said = [
        {"answers": ["x", "y", None]},
        {"answers": None, "answer": "z"},
        {"answers": vizwiz, "answer_type": "other", "answerable": 1},
        {"answers": [{"answer": "u"}, {"answer": None}]},
        {"direct_answers": ["bus", "bus"], "choices": ["a", "b"], "correct_choice_idx": 0},
        {"direct_answers": None, "choices": ["a", "b"], "correct_choice_idx": 1},
        {"multiple_choice_answer": "dog"},
        {"answers": "['p', 'q']"},
    ]
    records = [{"image": "a.jpg", "question": f"q{n}?", **entry} for n, entry in enumerate(said)]
    report, table = _import(_write(tmp_path / "train.json", records))
    assert report.num_skipped == 0
    assert [question.answers for _, question in _questions(table, "train")] == [
        ("x", "y"), ("z",), ("beans",) * 3, ("u",), ("bus", "bus"), ("b",), ("dog",), ("p", "q"),
    ]  # fmt: skip
    kept = json.loads(table.take([0], ["meta"])["meta"][0].as_py())["questions"]
    assert (kept[2]["answerable"], kept[4]["choices"]) == (1, ["a", "b"])


def test_answers_that_cannot_be_read_refuse_their_record(
    tmp_path: Path, jpeg: Callable[..., bytes]
) -> None:
    _images(tmp_path, jpeg, ["a.jpg"])
    said: list[dict[str, object]] = [
        {"answers": {"yes": 3}}, {"answers": [True]}, {"answer": 1, "choices": ["a", "b"]},
        {"gt_answers": ["x"]}, {"label": "red"}, {"answers": ["good"]},
    ]  # fmt: skip
    records = [{"image": "a.jpg", "question": "q?", **entry} for entry in said]
    report, table = _import(_write(tmp_path / "train.json", records))
    assert (report.num_seen, report.skipped) == (6, {"bad record": 5})
    assert "has answers in 'gt_answers'" in report.to_text()
    assert [question.answers for _, question in _questions(table, "train")] == [("good",)]


def test_ids_of_questions_may_be_texts_and_floats(
    tmp_path: Path, jpeg: Callable[..., bytes]
) -> None:
    asked = [{**_question(1, 42), "question_id": key} for key in ("x1", 42000.0, True)]
    file = _official(tmp_path, jpeg, [*asked, None])
    annotated = [{**_annotation(42000, 42)}, {**_annotation(1, 42), "question_id": "x1"}]
    _write(tmp_path / ANNOTATIONS, {"annotations": [*annotated, annotated[0]]})
    report, table = _import(file)
    assert [question.key for _, question in _questions(table, "val")] == ["x1", "42000"]
    assert (report.num_seen, report.skipped) == (5, {"bad record": 3})


def test_the_split_of_a_question_file_is_said_by_it_or_by_its_name(
    tmp_path: Path, jpeg: Callable[..., bytes]
) -> None:
    file = _official(tmp_path, jpeg, [_question(42000, 42)])
    report, _ = _import(file)
    assert report.split_from == {"val": {"a field of the record": 1}}
    unsaid = _write(file, {"questions": [_question(42000, 42)]})
    report = import_pairs(unsaid, tmp_path / "t", show_progress=False)
    assert report.split_from == {"val": {"the name of a file or folder": 1}}


def test_questions_and_annotations_may_be_in_one_file(
    tmp_path: Path, jpeg: Callable[..., bytes]
) -> None:
    _official(tmp_path, jpeg, [])
    document = {"questions": [_question(42000, 42)], "annotations": [_annotation(42000, 42)]}
    _, table = _import(_write(tmp_path / "mine_val2014.json", document))
    ((_, question),) = _questions(table, "val")
    assert list(question.answers) == HUMAN


def test_records_without_a_path_have_the_id_of_their_image(
    tmp_path: Path, jpeg: Callable[..., bytes]
) -> None:
    _images(tmp_path, jpeg, ["val2017/000000000042.jpg", "train_images/0054c9.jpg"])
    asked = {"image_id": 42, "question_id": "x", "question": "q?", "direct_answers": ["bus"]}
    _, table = _import(_write(tmp_path / "aokvqa.json", [{**asked, "split": "val"}]))
    assert [(row, q.key) for row, q in _questions(table, "val")] == [("42", "x")]
    data = [{**asked, "image_id": "0054c9", "answers": ["nokia"], "set_name": "val"}]
    document = {"dataset_type": "val", "data": data}
    file = _write(tmp_path / "b" / "TextVQA_0.5.1_val.json", document)
    _, table = _import(file, image_root=tmp_path)
    assert [row for row, _ in _questions(table, "val")] == ["0054c9"]


def test_questions_of_gqa_are_under_their_ids(tmp_path: Path, jpeg: Callable[..., bytes]) -> None:
    _images(tmp_path, jpeg, ["images/2405722.jpg"])
    said = {"question": "What bird?", "imageId": "2405722", "answer": "parrot", "types": {}}
    file = _write(tmp_path / "val_balanced_questions.json", {"05515938": said, "1": None})
    report, table = _import(file)
    ((row, question),) = _questions(table, "val")
    assert (row, question.key, question.answers) == ("2405722.jpg", "05515938", ("parrot",))
    assert report.num_seen == 2


def test_lines_of_questions_are_questions(tmp_path: Path, jpeg: Callable[..., bytes]) -> None:
    _images(tmp_path, jpeg, ["a.jpg"])
    record = {"image": "a.jpg", "question": "how many?"}
    lines = [json.dumps({**record, "answer": 5}), json.dumps({**record, "answers": [2.0, "two"]})]
    (tmp_path / "vqa.jsonl").write_text("\n".join(lines))
    report, table = _import(tmp_path / "vqa.jsonl", split="train")
    assert (report.format, report.num_skipped) == ("questions", 0)
    assert json.loads(table.take([0], ["meta"])["meta"][0].as_py())["questions"] == [
        {"question": "how many?", "answers": ["5"]},
        {"question": "how many?", "answers": ["2", "two"]},
    ]
