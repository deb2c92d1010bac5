"""Lists of the answers that a question may have."""

from collections import Counter
from pathlib import Path

import numpy as np

from openblip.data.lists import read_list
from openblip.data.questions import QuestionIndex
from openblip.data.table import PairTable
from openblip.errors import DataError

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
