"""Questions about the images of a table, batches of them to learn from, and their usual answers.

A row's `meta` may hold `questions`: a list of objects with `question`, `answers` (texts of several
annotators) or `answer` (one text), and optionally `question_id`, `question_type`, `answer_type` and
`weight`.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from openblip.batches.images import read_images
from openblip.batches.step_loader import ExampleLoader, Examples, spread
from openblip.batches.unknown_words import TextSample, count_texts
from openblip.runtime.errors import DataError
from openblip.sources.text_files import read_list
from openblip.table.rows import read_meta
from openblip.table.table import PairTable

# Answers are short; a longer one is cut.
_ANSWER_TOKENS = 24


@dataclass(frozen=True)
class Question:
    """A question about an image."""

    text: str
    answers: tuple[str, ...]
    """Of the annotators, equal ones included; empty where they are not published."""
    key: str
    """Of the source, or the row's id and the question's place."""
    question_type: str = ""
    """As VQA v2 names it, such as "how many"; empty where it is not known."""
    answer_type: str = ""
    """Likewise, such as "yes/no"."""
    weight: float = 1.0
    """What its answers count in training together: 1 of VQA v2, 0.2 of Visual Genome in the
    original."""

    @property
    def weighted_answers(self) -> dict[str, float]:
        """The different answers and their weights, which sum to `weight`."""
        counts = Counter(self.answers)
        return {text: self.weight * count / len(self.answers) for text, count in counts.items()}


def questions_of(row_id: str, meta: str | None) -> list[Question]:
    """The questions in a row's metadata.

    Raises:
        DataError: one of them has no text, or answers of another form.
    """
    entries = read_meta(row_id, meta).get("questions") or []
    return [read_question(f"{row_id}/{place}", entry) for place, entry in enumerate(entries)]


def read_question(key: str, entry: Mapping[str, Any]) -> Question:
    """The question of an object as it stands in a row's metadata.

    Args:
        key: of a question without a `question_id`.
        entry: the object.

    Raises:
        DataError: it has no text, or answers of another form.
    """
    if not isinstance(entry, Mapping) or not isinstance(entry.get("question"), str):
        raise DataError(f"question {key}: expected an object with a text `question`, got {entry!r}")
    # What is null is not known.
    known = {name: value for name, value in entry.items() if value is not None}
    answers = known.get("answers", known.get("answer", []))
    listed = answers if isinstance(answers, list) else [answers]
    # The official files have objects with the annotator's confidence.
    found = [a.get("answer") if isinstance(a, Mapping) else a for a in listed]
    texts = [text for text in found if isinstance(text, str)]
    if len(texts) < len(found):
        raise DataError(f"question {key}: its answers are no texts: {answers!r}")
    weight = known.get("weight", 1.0)
    # JSON, as Python writes it, has NaN and infinities.
    if not isinstance(weight, int | float) or not (math.isfinite(weight) and weight >= 0):
        raise DataError(f"question {key}: its weight is {weight!r}, no finite number from 0 on")
    return Question(
        text=known["question"],
        answers=tuple(texts),
        key=str(known.get("question_id", key)),
        question_type=str(known.get("question_type", "")),
        answer_type=str(known.get("answer_type", "")),
        weight=float(weight),
    )


@dataclass(frozen=True, eq=False)
class QuestionIndex:
    """The questions of a split: which row each is about, and which of the row's it is."""

    table: PairTable
    split: str
    rows: np.ndarray
    """int64 (questions,), ascending."""
    places: np.ndarray
    """int64 (questions,), place among the row's questions."""
    text_digest: bytes
    """Another one where a question or an answer is another."""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def image_rows(self) -> np.ndarray:
        """Rows whose images the questions are about, int64 (questions,)."""
        return self.rows

    @classmethod
    def resolve(cls, table: PairTable, split: str, *, with_answers: bool = True) -> "QuestionIndex":
        """The questions of a split, found in one scan without images.

        Args:
            table: whose rows have questions in their metadata.
            split: which rows.
            with_answers: leave out questions whose answers are not known.

        Raises:
            DataError: there are none, or one is malformed.
        """
        rows: list[int] = []
        places: list[int] = []
        digest = hashlib.blake2b(digest_size=8)
        start = 0
        for batch in table.scan(["id", "meta", "split"]):
            columns = (batch[name].to_pylist() for name in ("id", "meta", "split"))
            for row, (key, meta, where) in enumerate(zip(*columns, strict=True), start):
                if where == split:
                    digest.update((meta or "").encode())
                    for place, question in enumerate(questions_of(key, meta)):
                        if question.answers or not with_answers:
                            rows.append(row)
                            places.append(place)
            start += batch.num_rows
        if not rows:
            raise DataError(
                f"{table.uri}: no row of the split {split!r} has a question"
                f"{' with an answer' if with_answers else ''} in its meta"
            )
        arrays = (np.array(rows, np.int64), np.array(places, np.int64))
        return cls(table, split, *arrays, digest.digest())

    def read(self, numbers: np.ndarray) -> list[Question]:
        """Questions by their number in this index."""
        rows = self.rows[numbers]
        found = self.table.take(rows, ["id", "meta"])
        pairs = zip(found["id"].to_pylist(), found["meta"].to_pylist(), strict=True)
        return [
            questions_of(key, meta)[place]
            for (key, meta), place in zip(pairs, self.places[numbers].tolist(), strict=True)
        ]


@dataclass(frozen=True)
class QuestionBatch(Examples):
    """Questions about images with their answers, ready for a model."""

    ids: tuple[str, ...]
    """Ids of the rows."""
    images: Tensor
    """float32 (questions, 3, height, width), normalised; or states, as in `Batch`."""
    tokens: Tensor
    """int64 (questions, tokens), the first token is `[ENC]`."""
    mask: Tensor
    """bool (questions, tokens), True = attend."""
    answers: Tensor
    """int64 (answers, tokens), the first token is `[DEC]`; a question's follow each other."""
    answers_mask: Tensor
    """bool (answers, tokens), True = attend."""
    question_of_answer: Tensor
    """int64 (answers,), which question each answers."""
    weights: Tensor
    """float32 (answers,): the share of the annotators who gave it, times the question's weight."""
    step: int
    """Number of the global batch that this is (a part of), from 0."""


class QuestionLoader(ExampleLoader[QuestionBatch, QuestionIndex]):
    """Endless batches of the questions of a table, shuffled anew in each epoch."""

    noun = "questions"

    def fingerprint(self) -> str:
        """A digest of the questions' places in the table, and of what they say."""
        digest = hashlib.blake2b(digest_size=8)
        for numbers in (self.index.rows, self.index.places):
            digest.update(numbers.astype("<i8").tobytes())
        digest.update(self.index.text_digest)
        return digest.hexdigest()

    def summary(self) -> list[str]:
        """How many questions there are, about how many images."""
        images = len(np.unique(self.index.rows))
        return [f"{self.index.table.uri}: {len(self.index):,} questions about {images:,} images"]

    def text_sample(self, most: int) -> TextSample:
        """As `StepLoader` says; of answers, which are short, the words alone count."""
        questions = self.index.read(spread(len(self.index), most))
        cleaning = self._tokenizer.cleaning
        texts = [cleaning.question(question.text, self._max_words) for question in questions]
        answers = [text for question in questions for text in question.weighted_answers]
        said = count_texts(self._tokenizer, answers, _ANSWER_TOKENS)
        return TextSample(
            count_texts(self._tokenizer, texts, self._max_tokens) + replace(said, num_cut=0),
            len(questions),
            len(self.index),
            self._max_tokens,
            self._max_words,
            sum(cleaning.exceeds(question.text, self._max_words) for question in questions),
        )

    def make(self, step: int) -> QuestionBatch:
        """This rank's part of the global batch of that number."""
        numbers, keys = self._drawn(step)
        questions = self.index.read(numbers)
        ids, images = read_images(
            self.index.table,
            self.index.rows[numbers],
            self._image_size,
            self._augmentation,
            [(self._seed, *key) for key in keys],
            self._states,
        )
        answers = [question.weighted_answers for question in questions]
        clean = self._tokenizer.cleaning.question
        texts = [clean(question.text, self._max_words) for question in questions]
        tokens = self._tokenizer.encode(texts, self._max_tokens, first="enc")
        answer_tokens = self._tokenizer.encode(
            [text for own in answers for text in own], _ANSWER_TOKENS, first="dec"
        )
        counts = torch.tensor([len(own) for own in answers])
        return QuestionBatch(
            ids=ids,
            images=images,
            tokens=tokens.ids,
            mask=tokens.mask,
            answers=answer_tokens.ids,
            answers_mask=answer_tokens.mask,
            question_of_answer=torch.arange(len(answers)).repeat_interleave(counts),
            weights=torch.tensor([weight for own in answers for weight in own.values()]),
            step=step,
        )


_CHUNK = 8192


def read_answers(file: Path) -> list[str]:
    """The answers in a file, as `read_list` reads them: `answer_list.json` of BLIP, or one a line.

    Raises:
        DataError: it cannot be read, or holds no answer.
    """
    return read_list(file, "candidate")


def frequent_answers(table: PairTable, split: str = "train", min_count: int = 1) -> list[str]:
    """The answers that the most annotators gave to at least `min_count` questions of a split.

    The usual list of VQA v2, some 3,100 answers, has `min_count` 9 (Teney et al. 2018). Of answers
    to one question that are equally frequent, the first counts.

    Returns:
        The most frequent first, of equally frequent ones in alphabetical order.

    Raises:
        DataError: the split has no question with an answer, or none is frequent enough.
    """
    index = QuestionIndex.resolve(table, split)
    counts: Counter[str] = Counter()
    for start in range(0, len(index), _CHUNK):
        numbers = np.arange(start, min(start + _CHUNK, len(index)))
        for question in index.read(numbers):
            answers = Counter(answer.strip() for answer in question.answers)
            counts[answers.most_common(1)[0][0]] += 1
    found = sorted((-count, text) for text, count in counts.items() if text and count >= min_count)
    if not found:
        raise DataError(
            f"{table.uri}: no answer was given to {min_count} questions of the split {split!r}"
        )
    return [text for _, text in found]
