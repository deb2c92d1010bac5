"""Any number of images, captioned, matched or asked about, in jobs that a signal stops cleanly.

Captions in files are resumed: what is there is not done again.
"""

import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from torch import Tensor

from openblip.batches.shuffle import named_seed
from openblip.batches.transforms import eval_transform
from openblip.checkpoints.reading import model_fingerprint
from openblip.inference.answers import Answer, AnswerList, top_answers
from openblip.inference.blip import Blip
from openblip.inference.caption_output import (
    CaptionOutput,
    FileOutput,
    FormatName,
    SidecarOutput,
    StreamOutput,
    Written,
    caption_format,
    format_name,
)
from openblip.inference.captions import PROMPT, GivenPrompt, Prompt, cut_given
from openblip.inference.decoding import Decoding
from openblip.inference.encoding import FirstTokenName
from openblip.inference.image_sources import (
    NOTHING_FOUND,
    ImageSources,
    LeftOut,
    SourceImage,
    TriedBatch,
    tried_batches,
)
from openblip.inference.loading import load
from openblip.inference.matching import Match
from openblip.metrics.accuracy import Dominant, Tally
from openblip.runtime.atomic import check_output, is_stream, open_stream
from openblip.runtime.errors import DataError, OpenBlipWarning, RecipeError
from openblip.runtime.interruption import Interruption
from openblip.runtime.locks import only_one
from openblip.runtime.progress import Progress
from openblip.sources.report import Example
from openblip.table.rows import IdSet

Result = TypeVar("Result")
Tell = Callable[[str, Result], None]
"""Gets the name of an image, and what there is to tell of it."""
Report = Callable[[str], None]
"""Is told why an image failed; the others are worked on."""
# Of what failed: a result is kept, and shown, whole.
_MAX_EXAMPLES = 10


@dataclass(frozen=True, kw_only=True)
class CaptionJobSettings:
    """Everything besides the images that decides their captions."""

    model: str
    """What `load` takes: a model with an LM head."""
    decoding: Decoding = field(default_factory=Decoding)
    """How tokens are chosen."""
    prompt: str = PROMPT
    """What a caption continues; may be empty."""
    given: str | None = None
    """What is known of the image: a text that the captioner reads before the prompt."""
    num_captions: int = 1
    """Captions per image."""
    seed: int = 0
    """With an image's key it decides what is sampled for the image, whatever else there is."""
    dtype: str = "float32"
    """Of the weights, as `load` takes it."""
    image_size: int | None = None
    """Side of the square that images are resized to, with the model's positions interpolated; by
    default the model's own."""
    device: str | None = None
    """Where the model is; by default the best that there is."""

    @property
    def start(self) -> Prompt:
        """What stands before a caption."""
        return self.prompt if self.given is None else GivenPrompt(self.given, self.prompt)

    def stored(self, form: FormatName) -> dict[str, Any]:
        """What an output remembers: the model by its content, not by where it lies."""
        return {
            **self.decoding.stored(),
            # What came later stands there only where it is used, so that older files go on.
            **({} if self.image_size is None else {"image_size": self.image_size}),
            **({} if self.given is None else {"given": self.given}),
            "prompt": self.prompt,
            "num_captions": self.num_captions,
            "seed": self.seed,
            "dtype": self.dtype,
            "format": form,
            "model": model_fingerprint(self.model),
        }


@dataclass(frozen=True, kw_only=True)
class CaptionTarget:
    """Where captions go: standard output unless something else is said."""

    file: Path | None = None
    """One file for all; what it holds already is not done again."""
    form: FormatName | None = None
    """Format of the file or of standard output; by default by the file's suffix, or jsonl."""
    sidecar: bool = False
    """A text file beside each image instead; images that have one are left out."""
    overwrite: bool = False
    """Begin again, whatever is there."""

    def __post_init__(self) -> None:
        if self.sidecar and (self.file is not None or self.form is not None):
            raise RecipeError("--sidecar writes beside each image: leave out -o and --format")
        if self.overwrite and not self.sidecar and self.file is None:
            raise RecipeError("--overwrite replaces a file: give -o FILE or --sidecar with it")


@dataclass(frozen=True)
class CaptionJobResult:
    """What a job did."""

    captioned: int
    """Images."""
    failed: int
    """Images without captions; each was reported. They are tried again by the next run."""
    skipped: int
    """Images that were done before, or given twice."""
    empty: int
    """Captioned images all of whose captions are empty; each was reported. Beside an image no file
    is written then."""
    seconds: float
    """Time since the first image was read, without loading the model."""
    interrupted: bool
    """A signal stopped the job; what is finished was written."""
    others: int = 0
    """Images that were not given and whose captions stand in the same file; 0 after a stop."""
    changed: LeftOut | None = None
    """Skipped images whose files are newer than the captions that stand; None if there is none."""
    failures: tuple[Example, ...] = ()
    """The first few of the images that failed."""
    dominant: Dominant | None = None
    """The first caption of nearly all images of this call, if there is such a one."""

    @property
    def rate(self) -> float:
        """Captioned images per second."""
        return self.captioned / self.seconds if self.seconds > 0 else 0.0


def caption_images(
    sources: ImageSources,
    settings: CaptionJobSettings,
    target: CaptionTarget,
    *,
    batch_size: int = 16,
    report: Report,
    stdout: BinaryIO,
) -> CaptionJobResult:
    """Caption all images that are not done; the same call goes on after a stop of any kind.

    The images are read and decoded ahead by threads, and only those of two batches are held. What
    is sampled for an image depends on the seed and the image's key alone.

    Args:
        sources: the images.
        settings: model and decoding.
        target: where the captions go.
        batch_size: images that go through the model together.
        report: is told of each image that fails.
        stdout: where captions go if the target names nothing else.

    Raises:
        DataError: there is no image, or the output cannot be written; finished lines are kept.
        RecipeError: settings contradict each other, or those of an output that is there.
        CheckpointError, MissingHead: the model cannot be used.
    """
    if batch_size < 1 or settings.num_captions < 1:
        raise RecipeError("--batch-size and --num-captions must be at least 1")
    if target.sidecar and (place := sources.without_own_file()) is not None:
        raise RecipeError(
            f"--sidecar: the images of {place} are not files that a text could lie beside; give "
            "-o FILE instead"
        )
    # A bar would be drawn into lines that go to the same terminal.
    is_shown = target.file is not None or target.sidecar or not stdout.isatty()
    # Before the output is opened: where there is no image, no file is left behind.
    total = sources.total()
    with ExitStack() as opened:
        output = _open_output(settings, target, stdout, opened)
        progress = Progress("captioning", total=total, unit="images", enabled=is_shown)
        job = _Job(output, settings, opened.enter_context(progress), report)
        result = job.run(sources, batch_size)
    if not result.captioned + result.failed + result.skipped and not result.interrupted:
        raise DataError(NOTHING_FOUND)
    return result


class _Job:
    """Counts, and the way of a batch from the threads through the model to the output."""

    def __init__(
        self,
        output: CaptionOutput,
        settings: CaptionJobSettings,
        progress: Progress,
        report: Report,
    ) -> None:
        self._output, self._settings = output, settings
        self._progress, self._report = progress, report
        self._captioned = self._failed = self._skipped = self._empty = self._known = 0
        self._names, self._marks = IdSet(), IdSet()
        self._changed: LeftOut | None = None
        self._failures: list[Example] = []
        self._texts = Tally()

    def run(self, sources: ImageSources, batch_size: int) -> CaptionJobResult:
        """Work until no image is left or a signal comes."""
        images = sources.images(self._wants)
        is_interrupted = False
        started = time.perf_counter()
        # A model is not loaded if there is nothing to do.
        if (first := next(images, None)) is not None:
            settings = self._settings
            size = settings.image_size
            blip = load(settings.model, settings.device, settings.dtype, image_size=size)
            blip.require("lm")
            blip.warn_of_unknown_words([str(settings.start)], "prompts")
            _warn_of_cut(blip, settings.given)
            # Anew: the time that loading has taken is none of the images'.
            started = time.perf_counter()
            finish = partial(self._finish, blip)
            is_interrupted = _work_through(chain([first], images), blip, batch_size, finish)
        self._output.close(is_complete=not is_interrupted)
        seconds = time.perf_counter() - started
        return CaptionJobResult(
            self._captioned,
            self._failed,
            self._skipped,
            self._empty,
            seconds,
            is_interrupted,
            0 if is_interrupted else self._output.num_before - self._known,
            self._changed,
            tuple(self._failures),
            self._texts.dominant,
        )

    def _finish(self, blip: Blip, batch: TriedBatch[SourceImage]) -> None:
        for image, error in batch.failures:
            self._fail(image.name, str(error))
        if batch.items:
            settings = self._settings
            captions = blip.generate(
                blip.encode(batch.images),
                settings.decoding,
                settings.start,
                [named_seed(settings.seed, image.key) for image in batch.items],
                settings.num_captions,
            )
            written: Sequence[Written] = [
                (image.name, image.file, own)
                for image, own in zip(batch.items, captions, strict=True)
            ]
            # Counted and told of once it is on its way to the disk: what a count says is there.
            self._output.write(written)
            self._captioned += len(written)
            for name, _, own in written:
                self._texts.add(own[0].text)
                if not any(caption.text for caption in own):
                    self._empty += 1
                    self._report(f"{name}: the caption is empty: {own[0].reason}")
        self._progress.update(len(batch.items) + len(batch.failures))

    def _wants(self, name: str, file: Path | None) -> bool:
        mark = self._output.mark(name, file)
        # Asked before an image is read, so that going on over finished ones costs names alone.
        if not self._names.add(name):
            return self._skip()
        # Of two names one text file may come: `a.jpg` and `a.png` both lead to `a.txt`.
        if not self._marks.add(mark):
            place = f"another image has the same place in the output, {mark}"
            self._fail(name, f"{name}: {place}; rename it")
            self._progress.update(1)
            return False
        if not self._output.has(mark):
            return True
        # Texts beside images are not counted before, and so not here.
        self._known += bool(self._output.num_before)
        self._look_for_change(name, file)
        return self._skip()

    def _look_for_change(self, name: str, file: Path | None) -> None:
        """Counts an image that was put in the place of the one that has the caption."""
        since = self._output.since
        with suppress(OSError):  # one that is gone by now has not changed
            if since is not None and file is not None and file.stat().st_mtime > since:
                self._changed = self._changed or LeftOut(name)
                self._changed.count += 1

    def _skip(self) -> bool:
        self._skipped += 1
        self._progress.skip()
        return False

    def _fail(self, name: str, why: str) -> None:
        self._failed += 1
        if len(self._failures) < _MAX_EXAMPLES:
            self._failures.append(Example(name, why.removeprefix(f"{name}: ")))
        self._report(why)


def _open_output(
    settings: CaptionJobSettings, target: CaptionTarget, stdout: BinaryIO, opened: ExitStack
) -> CaptionOutput:
    if target.sidecar:
        return SidecarOutput(target.overwrite)
    file = target.file
    form = target.form or ("jsonl" if file is None else format_name(file.suffix))
    lines = caption_format(form, settings.num_captions)
    if file is None:
        return StreamOutput(stdout, "standard output", lines)
    check_output(file, "-o")
    if is_stream(file):
        device = opened.enter_context(open_stream(file))
        return StreamOutput(device, str(file), lines)
    # Two jobs that append to one file would each hold the other's images for not done.
    opened.enter_context(only_one(file, "writing captions into"))
    return FileOutput(file, lines, settings.stored(form), target.overwrite)


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
    tell: Tell[list[Match]],
    report: Report,
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
    blip.warn_of_unknown_words(texts)

    def work(images: Tensor) -> list[list[Match]]:
        encoded = blip.encode(images)
        return blip.score(encoded, [texts] * len(images), first_token, warns=True)

    return _each(blip, sources, work, tell, report, "matching", batch_size, show_progress)


def answer_each_image(
    blip: Blip,
    sources: ImageSources,
    questions: Sequence[str],
    tell: Tell[list[list[Answer]]],
    report: Report,
    *,
    top: int = 1,
    candidates: Sequence[str] | None = None,
    batch_size: int = 16,
    show_progress: bool = True,
) -> ImageCounts:
    """The answers to the same questions about each image, told image by image.

    Args:
        blip: a model that answers questions.
        sources: the images.
        questions: asked of every image.
        tell: gets the answers to each question, best first.
        report: is told of each image that cannot be read; the others are worked on.
        top: so many answers to each question, or as many as there are.
        candidates: what may be answered; None lets the model write.
        batch_size: images that go through the model together.
        show_progress: on stderr.

    Raises:
        DataError: there is no image.
        MissingHead: the model answers no questions.
    """
    vqa = blip.vqa
    longest = vqa.config.text.max_positions
    blip.warn_of_unknown_words([*questions, *(candidates or ())], "questions and candidates")
    ranked = None if candidates is None else AnswerList.of(blip.tokenizer, candidates, longest)

    def work(images: Tensor) -> list[list[list[Answer]]]:
        hidden = blip.encode_patches(images)
        each = [question for _ in images for question in questions]
        found = top_answers(vqa, blip.tokenizer, hidden, each, top, ranked)
        return [found[n : n + len(questions)] for n in range(0, len(found), len(questions))]

    return _each(blip, sources, work, tell, report, "answering", batch_size, show_progress)


def _each(
    blip: Blip,
    sources: ImageSources,
    work: Callable[[Tensor], list[Result]],
    tell: Tell[Result],
    report: Report,
    what: str,
    batch_size: int,
    show_progress: bool,
) -> ImageCounts:
    done = failed = 0

    def finish(batch: TriedBatch[SourceImage]) -> None:
        nonlocal done, failed
        for _, error in batch.failures:
            report(str(error))
        # Without an item the images have no dimensions that a model could take.
        results = work(batch.images) if batch.items else []
        for image, result in zip(batch.items, results, strict=True):
            tell(image.name, result)
        done, failed = done + len(batch.items), failed + len(batch.failures)
        progress.update(len(batch.items) + len(batch.failures))

    images = sources.images(lambda name, file: True)
    with Progress(what, sources.total(), "images", enabled=show_progress) as progress:
        interrupted = _work_through(images, blip, batch_size, finish)
    if not (done or failed or interrupted):
        raise DataError(NOTHING_FOUND)
    return ImageCounts(done, failed, interrupted)


def _work_through(
    images: Iterable[SourceImage],
    blip: Blip,
    batch_size: int,
    finish: Callable[[TriedBatch[SourceImage]], None],
) -> bool:
    """Whether a signal came before all images were given to `finish`, a batch at a time."""

    def prepare(image: SourceImage) -> Tensor:
        return eval_transform(image.open(), blip.image_size)

    batches = tried_batches(images, prepare, batch_size)
    with closing(batches), Interruption() as interruption:
        for batch in batches:
            finish(batch)
            # Here alone: a batch that has begun is told whole, so that no line of it is lost.
            if interruption.requested:
                return True
    return False


def _warn_of_cut(blip: Blip, given: str | None) -> None:
    if given and blip.given_tokens and cut_given(blip.tokenizer, [given], blip.given_tokens):
        warnings.warn(
            f"the given text has more than {blip.given_tokens} tokens, and is cut to them: longer "
            "ones are read by a captioner that is fine-tuned with a higher --data.given-tokens",
            OpenBlipWarning,
            stacklevel=2,
        )
