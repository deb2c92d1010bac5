"""Something that is told of each of many images: how texts match it, what is answered."""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TypeVar

from jaxtyping import Float
from torch import Tensor

from openblip.inference.answers import Answer, AnswerList, answer_each
from openblip.inference.blip import Blip
from openblip.inference.image_input import tried_batches
from openblip.inference.image_sources import ImageSources
from openblip.inference.matching import Match
from openblip.inference.texts import FirstTokenName
from openblip.runtime.errors import DataError
from openblip.runtime.interruption import Interruption
from openblip.runtime.progress import Progress

Result = TypeVar("Result")
Tell = Callable[[str, Result], None]
"""Gets the name of an image, and what there is to tell of it."""


@dataclass(frozen=True)
class ImageCounts:
    """What became of the images."""

    done: int
    failed: int
    """Each was reported."""
    interrupted: bool
    """A signal ended it; what was told is right."""


def match_each(
    blip: Blip,
    sources: ImageSources,
    texts: Sequence[str],
    tell: "Tell[list[Match]]",
    report: Callable[[str], None],
    *,
    first_token: FirstTokenName = "[ENC]",
    batch_size: int = 16,
    show_progress: bool = True,
) -> ImageCounts:
    """How well every text describes each image, told image by image.

    Args:
        blip: a model that can match.
        sources: the images.
        texts: compared with every image.
        tell: gets a match for each text.
        report: is told of each image that cannot be read; the others are worked on.
        first_token: of a text.
        batch_size: images that go through the model together.
        show_progress: on stderr.

    Raises:
        DataError: there is no image.
        MissingHead: the model does not match.
    """
    blip.matcher.require("itm")

    def work(images: Float[Tensor, "images 3 height width"]) -> list[list[Match]]:
        encoded = blip.encode(images)
        return blip.score(encoded, [texts] * len(images), first_token, warns=True)

    return _each(blip, sources, work, tell, report, "matching", batch_size, show_progress)


def answer_each_image(
    blip: Blip,
    sources: ImageSources,
    questions: Sequence[str],
    tell: "Tell[list[Answer]]",
    report: Callable[[str], None],
    *,
    candidates: Sequence[str] | None = None,
    batch_size: int = 16,
    show_progress: bool = True,
) -> ImageCounts:
    """The answers to the same questions about each image, told image by image.

    Args:
        blip: a model that answers questions.
        sources: the images.
        questions: asked of every image.
        tell: gets an answer for each question.
        report: is told of each image that cannot be read; the others are worked on.
        candidates: what may be answered; None lets the model write.
        batch_size: images that go through the model together.
        show_progress: on stderr.

    Raises:
        DataError: there is no image.
        MissingHead: the model answers no questions.
    """
    vqa = blip.vqa
    longest = vqa.config.text.max_positions
    ranked = None if candidates is None else AnswerList.of(blip.tokenizer, candidates, longest)

    def work(images: Float[Tensor, "images 3 height width"]) -> list[list[Answer]]:
        hidden = vqa.encode_images(images.to(blip.device, blip.dtype))
        return answer_each(vqa, blip.tokenizer, hidden, [questions] * len(images), ranked)

    return _each(blip, sources, work, tell, report, "answering", batch_size, show_progress)


def _each(
    blip: Blip,
    sources: ImageSources,
    work: Callable[[Tensor], list[Result]],
    tell: "Tell[Result]",
    report: Callable[[str], None],
    what: str,
    batch_size: int,
    show_progress: bool,
) -> ImageCounts:
    done = failed = 0
    images = sources.images(lambda name, file: True)
    batches = tried_batches(images, lambda image: image.open(), blip.image_size, batch_size)
    progress = Progress(what, sources.total(), "images", enabled=show_progress)
    interrupted = False
    with progress, closing(batches), Interruption() as interruption:
        for batch in batches:
            for _, error in batch.failures:
                report(str(error))
            results = work(batch.images) if batch.items else []
            for image, result in zip(batch.items, results, strict=True):
                tell(image.name, result)
            done, failed = done + len(batch.items), failed + len(batch.failures)
            progress.update(len(batch.items) + len(batch.failures))
            if interruption.requested:
                interrupted = True
                break
    if not (done or failed or interrupted):
        raise DataError("no image in what was given; name other files, folders or archives")
    return ImageCounts(done, failed, interrupted)
