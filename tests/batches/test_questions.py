"""Questions about the images of a table, and batches of them."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from openblip.batches.augmentation import Augmentation
from openblip.batches.questions import Question, QuestionIndex, QuestionLoader, questions_of
from openblip.batches.tokenizer import TextTokenizer
from openblip.runtime.errors import DataError
from openblip.table.table import PairRow, PairTable

COLOURS = ("red", "green", "blue", "white", "black")


def picture(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (24, 20), colour).save(file, "PNG")
    return file.getvalue()


def row(number: int, split: str = "train") -> PairRow:
    colour = COLOURS[number % 5]
    questions = [
        {
            "question": "What colour is it?",
            "answers": [colour] * 3 + ["dark"],
            "question_id": number,
        },
        {"question": "Is it red?", "answer": "yes" if colour == "red" else "no", "weight": 0.2},
    ]
    # The last rows have none.
    meta = {"questions": questions[: 0 if number == 9 else number % 2 + 1]}
    return PairRow(f"row-{number}", picture(colour), split=split, meta=meta)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> PairTable:
    uri = tmp_path_factory.mktemp("questions") / "pairs.lance"
    rows = [row(number) for number in range(10)] + [row(number, "test") for number in range(20, 22)]
    return PairTable.create(uri, rows)


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer.train(["what colour is it is it red yes no dark", " ".join(COLOURS)], 200)


@pytest.fixture(scope="module")
def index(table: PairTable) -> QuestionIndex:
    return QuestionIndex.resolve(table, "train")


def loader(index: QuestionIndex, tokenizer: TextTokenizer, **settings: object) -> QuestionLoader:
    defaults = {
        "batch_size": 4,
        "image_size": 16,
        "augmentation": None,
        "max_tokens": 16,
        "max_words": 50,
        "seed": 0,
        "num_threads": 2,
    }
    return QuestionLoader(index, tokenizer, **{**defaults, **settings})


class TestMetadata:
    def test_equal_answers_weigh_together(self) -> None:
        entry = {"question": "q", "answers": ["a", "b", "a", "a"]}
        (question,) = questions_of("row", json.dumps({"questions": [entry]}))
        assert question.weighted_answers == {"a": 0.75, "b": 0.25}
        assert question.key == "row/0"

    def test_one_answer_may_weigh_less_as_those_of_visual_genome_do(self) -> None:
        entry = {"question": "q", "answer": "a", "weight": 0.2}
        (question,) = questions_of("row", json.dumps({"questions": [entry]}))
        assert question.weighted_answers == {"a": 0.2}

    def test_the_objects_of_the_official_files_are_read(self) -> None:
        answers = [{"answer": "net", "answer_confidence": "maybe", "answer_id": 1}]
        entry = {
            "question": "q",
            "answers": answers,
            "question_id": 458752000,
            "question_type": "what",
            "answer_type": "other",
        }
        (question,) = questions_of("row", json.dumps({"questions": [entry]}))
        assert question.answers == ("net",)
        assert (question.key, question.question_type) == ("458752000", "what")

    @pytest.mark.parametrize("meta", [None, "", "{}", '{"questions": null}'])
    def test_a_row_may_have_none(self, meta: str | None) -> None:
        assert questions_of("row", meta) == []

    def test_what_is_null_is_not_known(self) -> None:
        names = ("answers", "answer", "question_id", "question_type", "answer_type", "weight")
        entry = {"question": "q", **dict.fromkeys(names)}
        (question,) = questions_of("row", json.dumps({"questions": [entry]}))
        assert question == Question("q", (), "row/0")

    @pytest.mark.parametrize(
        "entry",
        [
            *({"answer": "a"}, "q", {"question": "q", "answers": [1]}),
            *({"question": "q", "answers": 5}, {"question": "q", "answer": "a", "weight": "w"}),
            *({"question": "q", "answer": "a", "weight": w} for w in (-1.0, float("nan"))),
        ],
    )
    def test_what_is_malformed_is_named(self, entry: object) -> None:
        with pytest.raises(DataError, match="row/0"):
            questions_of("row", json.dumps({"questions": [entry]}))


class TestIndex:
    def test_it_holds_every_question_of_the_split(self, index: QuestionIndex) -> None:
        found = list(zip(index.rows.tolist(), index.places.tolist(), strict=True))
        assert found == [(r, p) for r in range(9) for p in range(r % 2 + 1)]
        first, second = index.read(np.array([2, 1]))
        assert (first.text, second.text) == ("Is it red?", "What colour is it?")

    def test_a_split_without_questions_is_an_error(self, table: PairTable) -> None:
        with pytest.raises(DataError, match="'val' has a question"):
            QuestionIndex.resolve(table, "val")


class TestBatches:
    def test_a_batch_holds_questions_answers_and_what_belongs_together(
        self, index: QuestionIndex, tokenizer: TextTokenizer
    ) -> None:
        batch = loader(index, tokenizer).make(0)
        assert batch.images.shape == (4, 3, 16, 16)
        assert (batch.tokens[:, 0] == tokenizer.special.enc).all()
        assert (batch.answers[:, 0] == tokenizer.special.dec).all()
        sums = torch.zeros(4).index_add(0, batch.question_of_answer, batch.weights)
        for place in range(4):
            question = tokenizer.decode(batch.tokens[place])
            answers = {
                tokenizer.decode(batch.answers[number])
                for number in (batch.question_of_answer == place).nonzero().flatten()
            }
            colour = COLOURS[int(batch.ids[place].removeprefix("row-")) % 5]
            if question.startswith("what"):
                assert answers == {colour, "dark"}
                assert sums[place] == pytest.approx(1.0)
            else:
                assert answers == {"yes" if colour == "red" else "no"}
                assert sums[place] == pytest.approx(0.2)

    def test_two_ranks_together_have_the_batch_of_one(
        self, index: QuestionIndex, tokenizer: TextTokenizer
    ) -> None:
        whole = loader(index, tokenizer, augmentation=Augmentation()).make(3)
        parts = [
            loader(
                index,
                tokenizer,
                batch_size=2,
                rank=rank,
                world_size=2,
                augmentation=Augmentation(),
            ).make(3)
            for rank in range(2)
        ]
        assert parts[0].ids + parts[1].ids == whole.ids
        assert torch.equal(torch.cat([part.images for part in parts]), whole.images)

    def test_it_goes_on_at_any_step(self, index: QuestionIndex, tokenizer: TextTokenizer) -> None:
        with loader(index, tokenizer) as batches:
            assert next(batches.iterate(5)).ids == batches.make(5).ids
        assert batches.batches_per_epoch == len(index) / 4

    def test_too_few_questions_are_refused(
        self, index: QuestionIndex, tokenizer: TextTokenizer
    ) -> None:
        with pytest.raises(DataError, match=r"lower train\.batch_size"):
            loader(index, tokenizer, batch_size=64)


def test_other_answers_have_another_fingerprint(
    index: QuestionIndex, tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    def fingerprint(name: str, rows: list[PairRow]) -> str:
        table = PairTable.create(tmp_path / name, rows)
        return loader(QuestionIndex.resolve(table, "train"), tokenizer).fingerprint()

    rows = [row(number) for number in range(10)]
    assert fingerprint("same", rows) == loader(index, tokenizer).fingerprint()
    rows[1] = replace(rows[1], meta=row(2).meta | row(3).meta)
    assert fingerprint("other", rows) != loader(index, tokenizer).fingerprint()
