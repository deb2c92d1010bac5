"""Videos: retrieval (BLIP, table 10) and questions (table 11), by models that saw images alone."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from openblip.batches.video import Clip, iterate_clips
from openblip.evaluation.results import UnitScores, retrieval_units
from openblip.evaluation.retrieval import (
    candidates,
    embed_protocol_texts,
    matching_scores,
    tokens_to_match,
    unmatched_scores,
)
from openblip.evaluation.settings import VideoQaSettings, VideoSettings
from openblip.evaluation.vqa import answer_all, distinct_keys, encode_for_questions, judge_answers
from openblip.inference.answers import Answer
from openblip.inference.blip import Blip
from openblip.inference.encoding import embed_images
from openblip.metrics import image_ranks, retrieval
from openblip.metrics.accuracy import Dominant, dominant
from openblip.runtime.errors import DataError
from openblip.runtime.progress import Progress

_LISTED = 10


@dataclass(frozen=True)
class VideoResult:
    """Recalls of texts and of videos, per cent, and the median rank of a text's video."""

    metrics: dict[str, float]
    """TR@k (texts of a video), VR@k (videos of a text), their means, and "MdR"; after re-ranking by
    matching, if there was any."""
    contrastive: dict[str, float]
    """Ranking by ITC alone."""
    units: dict[str, UnitScores] = field(repr=False)
    """TR@k and VR@k of `metrics`, video by video."""
    searches: list[dict[str, Any]] = field(repr=False)
    """For each text its `caption`, its `clip`, the `rank` of that clip, and the first `found`."""
    num_videos: int
    num_texts: int
    k: int
    seconds: float


def evaluate_video(
    blip: Blip,
    clips: Sequence[Clip],
    *,
    num_frames: int = VideoSettings.num_frames,
    k: int = VideoSettings.k,
    batch_size: int = VideoSettings.batch_size,
    max_words: int = VideoSettings.max_words,
) -> VideoResult:
    """Text and video recall on the protocol of MSR-VTT, without training on videos.

    As the original: ITC compares a text with the mean of the projected class tokens of a video's
    frames; matching attends to the patches of all frames one after the other, and so is blind to
    their order. The k best texts of each video and the k best videos of each text are ranked again
    by ITM logit + cosine; the others stay behind them, in the order of ITC.

    The model has an ITC head, and an ITM head if it is to re-rank; the clips have captions.
    Keywords are fields of `VideoSettings`.

    Raises:
        DataError: there are no clips, or one cannot be decoded.
        RecipeError: a number is too small, or PyAV is not installed.
        MissingHead: the model cannot do it.
    """
    settings = VideoSettings(num_frames=num_frames, k=k, batch_size=batch_size, max_words=max_words)
    if settings.k:
        blip.require("itm")
    if not clips:
        raise DataError("there are no clips to search")
    started = time.perf_counter()
    clean = blip.tokenizer.cleaning.caption
    texts = [clean(text, settings.max_words) for clip in clips for text in clip.captions]
    counts = [len(clip.captions) for clip in clips]
    ends = np.cumsum(counts).tolist()
    captions = [list(range(end - n, end)) for n, end in zip(counts, ends, strict=True)]
    with torch.inference_mode():
        text_embeds = embed_protocol_texts(blip, texts)
        embeds = [_embed(blip, hidden) for hidden in _encoded(blip, clips, settings)]
        cosines = torch.cat(embeds) @ text_embeds.T
        for_videos = for_texts = cosines
        if k:
            # Encoded once more: the patches of all frames of all clips would fill the memory.
            frames = _encoded(blip, clips, settings)
            for_videos, for_texts = _rerank(blip, frames, texts, cosines, k)
    ranked = for_videos.numpy(), captions, for_texts.numpy().T
    return VideoResult(
        _metrics(*ranked),
        _metrics(cosines.numpy(), captions, cosines.numpy().T),
        {_renamed(name): own for name, own in retrieval_units(*ranked).items()},
        _searches(clips, *ranked[1:]),
        len(clips),
        len(texts),
        k,
        time.perf_counter() - started,
    )


def _encoded(blip: Blip, clips: Sequence[Clip], settings: VideoSettings) -> Iterator[Tensor]:
    """Patch tokens of some videos' frames at a time, (videos, frames, patches, width)."""
    with Progress("encoding", total=len(clips), unit="videos") as progress:
        for frames in _frames(blip, clips, settings):
            hidden = blip.encode(frames.flatten(0, 1)).hidden
            yield hidden.reshape(*frames.shape[:2], *hidden.shape[1:])
            progress.update(len(frames))


def _frames(
    blip: Blip, clips: Sequence[Clip], settings: VideoSettings | VideoQaSettings
) -> Iterator[Tensor]:
    return iterate_clips(clips, settings.num_frames, settings.batch_size, blip.image_size)


def _embed(blip: Blip, hidden: Tensor) -> Tensor:
    """Unit-length embeddings (videos, embed), on the CPU.

    The original averages projections and then brings the mean to unit length; a projection is
    linear, so that the projection of the mean is the same.
    """
    return embed_images(blip.matcher, hidden[:, :, :1].mean(dim=1)).cpu()


def _rerank(
    blip: Blip, encoded: Iterator[Tensor], texts: Sequence[str], cosines: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """Scores (videos, texts) that rank texts, and those that rank videos."""
    of_video, of_text = candidates(cosines, k, dim=1), candidates(cosines, k, dim=0)
    tokens = tokens_to_match(blip, texts)
    parts: list[Tensor] = []
    first = 0
    for hidden in encoded:
        own = slice(first, first + len(hidden))
        # One long image a video: attention reads the patches of all frames, in no order.
        memory = blip.matcher.text.remember(hidden.flatten(1, 2))
        wanted = (of_video | of_text)[own]
        parts.append(matching_scores(blip, memory, tokens, cosines[own], wanted)[0])
        first += len(hidden)
    scores, behind = torch.cat(parts), unmatched_scores(cosines)
    return torch.where(of_video, scores, behind), torch.where(of_text, scores, behind)


def _metrics(
    for_videos: np.ndarray, captions: list[list[int]], for_texts: np.ndarray
) -> dict[str, float]:
    recalls = retrieval(for_videos, captions, for_texts)
    # The median over texts, ties at the mean of their places, as MSR-VTT's protocol has it.
    ranks = image_ranks(for_texts, captions).expected
    return {_renamed(name): value for name, value in recalls.items()} | {
        "MdR": float(np.median(ranks))
    }


def _renamed(name: str) -> str:
    """What image retrieval calls IR is VR of videos."""
    return name.replace("IR", "VR")


def _searches(
    clips: Sequence[Clip], captions: list[list[int]], for_texts: np.ndarray
) -> list[dict[str, Any]]:
    ranks = image_ranks(for_texts, captions).expected.tolist()
    best = np.argsort(-for_texts, axis=1, kind="stable")[:, :_LISTED].tolist()
    found: list[dict[str, Any]] = []
    for clip in clips:
        for caption in clip.captions:
            text = len(found)
            names = [clips[video].name for video in best[text]]
            found.append(
                {"caption": caption, "clip": clip.name, "rank": ranks[text], "found": names}
            )
    return found


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
    num_frames: int = VideoQaSettings.num_frames,
    candidates: Sequence[str] | None = VideoQaSettings.candidates,
    k: int = VideoQaSettings.k,
    batch_size: int = VideoQaSettings.batch_size,
) -> VideoQaResult:
    """Answers to questions about videos, without training on videos.

    As for retrieval the model attends to the patches of all frames one after the other, and so is
    blind to their order.

    The model answers questions; the clips have some. Keywords are fields of `VideoQaSettings`; the
    paper takes 16 frames.

    Raises:
        DataError: there is no question, two have one id, or a clip cannot be decoded.
        RecipeError: a number is too small, or PyAV is not installed.
        MissingHead: the model answers no questions.
    """
    settings = VideoQaSettings(
        num_frames=num_frames,
        candidates=None if candidates is None else tuple(candidates),
        k=k,
        batch_size=batch_size,
    )
    questions = [question for clip in clips for question in clip.questions]
    if not questions:
        raise DataError("there is no question to answer")
    keys = distinct_keys(questions, "the clips")
    started = time.perf_counter()
    texts = [[question.text for question in clip.questions] for clip in clips]
    answers: list[Answer] = []
    with Progress("answering", total=len(questions), unit="questions") as progress:
        encoded = _encoded_questions(blip, clips, settings)
        for own in answer_all(blip, encoded, texts, settings.candidates, settings.k):
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


def _encoded_questions(
    blip: Blip, clips: Sequence[Clip], settings: VideoQaSettings
) -> Iterator[Tensor]:
    """Patch tokens of all frames of a video, one after the other, (videos, tokens, width)."""
    for frames in _frames(blip, clips, settings):
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
