"""Questions about videos, answered by a model that learnt from images (BLIP, table 11)."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from openblip.data.video import Clip, iterate_clips
from openblip.errors import DataError, RecipeError
from openblip.evaluation.dominance import Dominant, dominant
from openblip.evaluation.units import UnitScores
from openblip.evaluation.vqa import (
    answer_all,
    distinct_keys,
    encode_for_questions,
    judge_answers,
)
from openblip.inference import Blip
from openblip.inference.answers import Answer
from openblip.progress import Progress


@dataclass(frozen=True)
class VideoQaResult:
    """Answers to the questions about some videos, and how good they are."""

    metrics: dict[str, float]
    """Per cent, as in `VqaResult`: "accuracy" where questions have one answer each. Empty where no
    answers are known."""
    units: dict[str, UnitScores] = field(repr=False)
    """The same video by video."""
    answers: list[dict[str, Any]] = field(repr=False)
    """Question by question its `question_id`, the `clip`, the `question`, the model's `answer` and
    its `probability` (as in `Answer`), and the `right` answers."""
    num_videos: int
    num_questions: int
    seconds: float

    @property
    def dominant(self) -> Dominant | None:
        """The answer of nearly all, if there is one."""
        return dominant(answer["answer"] for answer in self.answers)


def evaluate_videoqa(
    blip: Blip,
    clips: Sequence[Clip],
    *,
    num_frames: int = 16,
    candidates: Sequence[str] | None = None,
    k: int = 128,
    batch_size: int = 2,
) -> VideoQaResult:
    """Answers to questions about videos, without training on videos.

    As for retrieval the model attends to the patches of all frames one after the other, and so is
    blind to their order.

    Args:
        blip: a question-answering model.
        clips: with questions.
        num_frames: of each video; the paper takes 16.
        candidates: answers to rank; None lets the model write.
        k: candidates that are scored whole, those whose first token is likeliest.
        batch_size: videos whose frames are encoded together.

    Raises:
        DataError: there is no question, two have one id, or a clip cannot be decoded.
        RecipeError: a number is too small, or PyAV is not installed.
        MissingHead: the model answers no questions.
    """
    if num_frames < 1:
        raise RecipeError(f"num_frames is {num_frames}; give 1 or more")
    questions = [question for clip in clips for question in clip.questions]
    if not questions:
        raise DataError("there is no question to answer")
    keys = distinct_keys(questions, "the clips")
    started = time.perf_counter()
    texts = [[question.text for question in clip.questions] for clip in clips]
    answers: list[Answer] = []
    with Progress("answering", total=len(questions), unit="questions") as progress:
        encoded = _encoded(blip, clips, num_frames, batch_size)
        for own in answer_all(blip, encoded, texts, candidates, k):
            answers += own
            progress.update(len(own))
    given = {key: answer.text for key, answer in zip(keys, answers, strict=True)}
    video_of = np.repeat(np.arange(len(clips)), [len(own) for own in texts])
    metrics, units = judge_answers(questions, video_of, given)
    return VideoQaResult(
        metrics,
        units,
        _listed(clips, answers),
        len(clips),
        len(questions),
        time.perf_counter() - started,
    )


def _encoded(
    blip: Blip, clips: Sequence[Clip], num_frames: int, batch_size: int
) -> Iterator[Tensor]:
    """Patch tokens of all frames of a video, one after the other, (videos, tokens, width)."""
    for frames in iterate_clips(clips, num_frames, batch_size, blip.image_size):
        hidden = encode_for_questions(blip, frames.flatten(0, 1))
        yield hidden.reshape(len(frames), -1, hidden.shape[-1])


def _listed(clips: Sequence[Clip], answers: Sequence[Answer]) -> list[dict[str, Any]]:
    asked = [(clip.name, question) for clip in clips for question in clip.questions]
    return [
        {
            "question_id": question.key,
            "clip": name,
            "question": question.text,
            "answer": answer.text,
            "probability": answer.probability,
            "right": list(question.answers),
        }
        for (name, question), answer in zip(asked, answers, strict=True)
    ]
