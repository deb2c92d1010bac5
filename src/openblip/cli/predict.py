"""`openblip caption`, `match`, `ask` and `explain`."""

import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from openblip.checkpoints.hub import PUBLISHED
from openblip.cli.flags import Backend, UsageError, takes
from openblip.cli.output import (
    check_texts,
    complain,
    dominant_json,
    end_of_each,
    print_each,
    print_json,
    print_table,
    printable,
)
from openblip.inference.decoding import Decoding
from openblip.runtime.atomic import check_output
from openblip.runtime.errors import OpenBlipWarning, RecipeError
from openblip.runtime.ranges import Count, CountOrNone, Seed

if TYPE_CHECKING:
    from openblip.inference.answers import Answer
    from openblip.inference.blip import Blip
    from openblip.inference.encoding import FirstTokenName
    from openblip.inference.image_sources import ImageSources
    from openblip.inference.many_images import CaptionJobResult, CaptionJobSettings, CaptionTarget
    from openblip.inference.matching import Match

DtypeName = Literal["float32", "bfloat16", "float16", "int8"]


@takes(Decoding, "decoding")
def caption(
    paths: tyro.conf.Positional[tuple[str, ...]],
    /,
    *,
    model: str | None = None,
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None,
    format: Literal["jsonl", "csv", "coco", "txt"] | None = None,
    sidecar: bool = False,
    overwrite: bool = False,
    split: str | None = None,
    decoding: Decoding,
    prompt: str = "a picture of ",
    given: str | None = None,
    num_captions: Count = 1,
    seed: Seed = 0,
    batch_size: Count = 16,
    image_size: Count | None = None,
    dtype: DtypeName = "float32",
    device: str | None = None,
    backend: Backend | None = None,
    json: bool = False,
) -> int:
    """Caption any number of images; one line of JSON an image on standard output, or in a file.

    With -o or --sidecar the same command goes on after it was stopped. A broken image is reported
    on standard error, the others are captioned, and the exit code is 1; the next run tries it
    again. Example: openblip caption photos/ --model demo/captioner -o captions.jsonl

    Args:
        paths: image files, folders (with the folders in them), quoted patterns such as
            'photos/*.jpg', tar archives, pair tables (a folder, or s3://...).
        model: a checkpoint that can caption: folder, run directory, file, https address or hub
            repository; by default the published base model.
        output: a file for all captions: .jsonl, .csv, .txt, or .json for COCO results. What is
            in it is not done again, if the settings are those of FILE.settings.json beside it.
        format: of the file or of standard output, where the suffix does not say it. COCO's
            image_id is the number at the end of a name, or else the name.
        sidecar: write a .txt beside each image; images that have one are left out.
        overwrite: begin again, and replace the file (or the .txt files) that is there.
        split: of pair tables only this one.
        decoding: how tokens are chosen.
        prompt: what the model continues.
        given: of one image: a text about it whose names the caption may keep, as of a web page; for
            a captioner that was fine-tuned with --given web.
        num_captions: captions an image.
        seed: nucleus: same seed and name of an image within its folder, same captions.
        batch_size: images at once.
        image_size: pixels of a side that images are brought to, where not the model's own.
        dtype: of the weights; int8 is --backend onnx-int8.
        device: cpu, cuda, mps; by default the best that there is.
        backend: what computes the model on a processor in the place of PyTorch: ONNX Runtime, also
            in 8-bit integers, or OpenVINO.
        json: with -o or --sidecar: print as JSON what became of the images, and what was left out.
    """
    from openblip.inference.loading import source_of
    from openblip.inference.many_images import CaptionJobSettings, CaptionTarget

    if given is not None and not _is_one_file(paths):
        raise RecipeError(
            "--given is about one image: give one image file, or write the texts of many into a "
            "table and let `openblip capfilt run --given web` read them"
        )
    if json and not sidecar and (output is None or _is_standard_output(output)):
        raise UsageError(
            "--json is about the captions, which go to standard output themselves: give -o FILE or "
            "--sidecar with it"
        )
    settings = CaptionJobSettings(
        model=source_of(model or PUBLISHED["caption"], backend, dtype),
        decoding=decoding,
        prompt=prompt,
        given=given,
        num_captions=num_captions,
        seed=seed,
        image_size=image_size,
        dtype=dtype,
        device=device,
    )
    target = CaptionTarget(file=output, form=format, sidecar=sidecar, overwrite=overwrite)
    return _caption(paths, split, settings, target, batch_size, json)


def _is_standard_output(output: Path) -> bool:
    from openblip.runtime.atomic import is_stream

    return is_stream(output) and os.path.samestat(output.stat(), os.fstat(1))


def _is_one_file(paths: tuple[str, ...]) -> bool:
    from openblip.inference.image_sources import is_single

    return len(paths) == 1 and is_single(paths[0])


def _caption(
    paths: tuple[str, ...],
    split: str | None,
    settings: "CaptionJobSettings",
    target: "CaptionTarget",
    batch_size: int,
    json: bool,
) -> int:
    from openblip.inference.image_sources import ImageSources, left_out_text
    from openblip.inference.many_images import caption_images

    sources = ImageSources(paths, split)
    try:
        result = caption_images(
            sources,
            settings,
            target,
            batch_size=batch_size,
            report=partial(complain, "openblip caption"),
            # Below the buffer, which on a full disk or a closed pipe would complain again at the
            # end; and below `sys.stdout`, which a progress bar redirects to its terminal.
            stdout=getattr(sys.stdout.buffer, "raw", sys.stdout.buffer),
        )
    except BrokenPipeError:
        return 1  # whoever reads, such as `head`, has read enough
    if json:
        print_json(_caption_report(result, sources))
    else:
        _tell_captioned(result, left_out_text(sources.left_out))
    if result.interrupted:
        print(f"interrupted; {_what_next(target)}", file=sys.stderr)
        return 130
    return 1 if result.failed or result.empty else 0


def _tell_captioned(result: "CaptionJobResult", left_out: str) -> None:
    empty = f" ({result.empty:,} of them empty)" if result.empty else ""
    print(
        f"{result.captioned:,} captioned{empty}, {result.failed:,} failed, "
        f"{result.skipped:,} skipped, "
        f"{result.rate:,.1f} images/s",
        file=sys.stderr,
    )
    if result.others:
        print(
            f"captions of other images that stand in the same file: {result.others:,}",
            file=sys.stderr,
        )
    if result.changed is not None:
        print(
            f"{result.changed.count:,} of the skipped images are newer than the captions that "
            f"stand (such as {printable(result.changed.example)}): --overwrite captions all again",
            file=sys.stderr,
        )
    if left_out:
        print(f"left out: {printable(left_out)}", file=sys.stderr)
    if result.dominant is not None:
        complain("openblip caption", result.dominant)


def _caption_report(result: "CaptionJobResult", sources: "ImageSources") -> dict[str, object]:
    """What became of all that was seen, in the words of the report of an import."""
    left_out = sources.left_out
    skipped = {reason: found.count for reason, found in left_out.items()}
    examples = {reason: [{"where": found.example}] for reason, found in left_out.items()}
    if result.failures:
        examples["failed"] = [asdict(failure) for failure in result.failures]
    done = result.captioned + result.failed + result.skipped
    return {
        "num_seen": done + sum(skipped.values()),
        "num_captioned": result.captioned,
        "num_empty": result.empty,
        "num_known": result.skipped,
        "num_others": result.others,
        "num_changed": result.changed.count if result.changed is not None else 0,
        "num_failed": result.failed,
        "skipped": skipped,
        "examples": examples,
        "seconds": result.seconds,
        "complete": not result.interrupted,
        **dominant_json(result.dominant),
    }


def _what_next(target: "CaptionTarget") -> str:
    if target.overwrite and target.sidecar:
        return "the same command begins again"
    if target.file is None and not target.sidecar:
        return "with -o FILE or --sidecar the same command would go on"
    return f"the same command{' without --overwrite' if target.overwrite else ''} goes on"


def match(
    image: tyro.conf.Positional[str],
    texts: tyro.conf.Positional[tuple[str, ...]],
    /,
    *,
    split: str | None = None,
    model: str | None = None,
    first_token: Literal["[ENC]", "[CLS]"] = "[ENC]",
    dtype: DtypeName = "float32",
    device: str | None = None,
    backend: Backend | None = None,
    json: bool = False,
) -> int:
    """How well texts match an image, or each of many: ITM probability and ITC cosine.

    Of many images there is a line each: the name, and the ITM probability of each text. One that
    cannot be read is reported on standard error, and the exit code is 1.
    Example: openblip match photo.jpg "a dog on a beach" "a red car" --model demo/filter

    Args:
        image: an image file; or a folder, a quoted pattern, a tar archive or a pair table.
        texts: one or more texts.
        split: of a pair table only this one.
        model: a checkpoint that can match: folder, run directory, file, https address or hub
            repository; by default the published base model.
        first_token: of a text: [ENC] as in training, or [CLS] as transformers does.
        dtype: of the weights; int8 is --backend onnx-int8.
        device: cpu, cuda, mps; by default the best that there is.
        backend: what computes the model on a processor in the place of PyTorch: ONNX Runtime, also
            in 8-bit integers, or OpenVINO.
        json: print JSON; of many images a line each.
    """
    from openblip.inference.image_sources import ImageSources, is_single
    from openblip.inference.loading import load

    check_texts(texts, "text")
    source = model or PUBLISHED["match"]
    if split is not None or not is_single(image):
        sources = ImageSources([image], split)
        blip = load(source, device, dtype, backend=backend)
        return _match_each(blip, sources, texts, first_token, json)
    blip = load(source, device, dtype, backend=backend)
    matches = blip.match(Path(image), list(texts), first_token)
    if json:
        print_json(_matches_as_json(texts, matches))
        return 0
    rows = [
        [text, f"{match.itm:.4f}", "-" if match.itc is None else f"{match.itc:.3f}"]
        for text, match in zip(texts, matches, strict=True)
    ]
    print_table(["text", "ITM probability", "ITC cosine"], rows)
    return 0


def _matches_as_json(texts: Sequence[str], matches: "Sequence[Match]") -> list[dict[str, object]]:
    return [{"text": t, "itm": m.itm, "itc": m.itc} for t, m in zip(texts, matches, strict=True)]


def _match_each(
    blip: "Blip",
    sources: "ImageSources",
    texts: tuple[str, ...],
    first_token: "FirstTokenName",
    json: bool,
) -> int:
    from openblip.inference.many_images import match_each

    def tell(name: str, matches: "list[Match]") -> None:
        if json:
            print_json({"image": name, "matches": _matches_as_json(texts, matches)})
        else:
            print_each(name, [f"{match.itm:.4f}" for match in matches])

    if not json:
        note = "the ITM probability of each text; --json has the ITC cosine too"
        print(f"openblip match: {note}", file=sys.stderr)
        print_each("image", texts)
    counts = match_each(
        blip,
        sources,
        texts,
        tell,
        partial(complain, "openblip match"),
        first_token=first_token,
        show_progress=not sys.stdout.isatty(),
    )
    return end_of_each("openblip match", counts)


def ask(
    image: tyro.conf.Positional[str],
    questions: tyro.conf.Positional[tuple[str, ...]],
    /,
    *,
    split: str | None = None,
    model: str | None = None,
    candidates: tuple[str, ...] = (),
    candidates_file: Path | None = None,
    top: Count = 1,
    device: str | None = None,
    backend: Backend | None = None,
    json: bool = False,
) -> int:
    """Answer questions about an image, or about each of many.

    Answers are generated, or chosen among candidates where some are given. Of many images there is
    a line each: the name, and the answer, or answers, to each question. One that cannot be read is
    reported on standard error, and the exit code is 1.
    Example: openblip ask photo.jpg "how many dogs are there?" --candidates one two three

    Args:
        image: an image file; or a folder, a quoted pattern, a tar archive or a pair table.
        questions: one or more questions.
        split: of a pair table only this one.
        model: question-answering checkpoint: folder, file, address or hub repository; by default
            the published base model.
        candidates: the answers to choose from.
        candidates_file: the same from a file: one a line, or a list in JSON.
        top: so many answers to each question, best first: candidates by their share of the
            probability, written ones by their own.
        device: cpu, cuda, mps; by default the best that there is.
        backend: what computes the model on a processor in the place of PyTorch: ONNX Runtime, also
            in 8-bit integers, or OpenVINO.
        json: print JSON; of many images a line each.
    """
    from openblip.batches.questions import read_answers
    from openblip.inference.image_sources import ImageSources, is_single
    from openblip.inference.loading import load

    check_texts(questions, "question")
    for candidate in candidates:
        if Path(candidate).suffix and Path(candidate).is_file():
            raise RecipeError(f"--candidates {candidate} is a file: --candidates-file reads it")
    choices = [*candidates, *(read_answers(candidates_file) if candidates_file else [])]
    if split is not None or not is_single(image):
        sources = ImageSources([image], split)
        blip = load(model or PUBLISHED["ask"], device=device, backend=backend)
        return _ask_each(blip, sources, questions, choices or None, top, json)
    blip = load(model or PUBLISHED["ask"], device=device, backend=backend)
    answers = blip.ask_top(Path(image), list(questions), top, choices or None)
    if json:
        print_json([_as_json(*each, top) for each in zip(questions, answers, strict=True)])
        return 0
    print_table(
        ["question", "answer", "probability"],
        [
            [question, answer.text, f"{answer.probability:.3f}"]
            for question, own in zip(questions, answers, strict=True)
            for answer in own
        ],
    )
    return 0


def _as_json(question: str, answers: "list[Answer]", top: Count) -> dict[str, object]:
    """The best answer, and with more than one the ranking."""
    ranked = [{"answer": answer.text, "probability": answer.probability} for answer in answers]
    return {"question": question, **ranked[0]} | ({"ranking": ranked} if top > 1 else {})


def _in_a_cell(ranked: "list[Answer]") -> str:
    """An answer; of several each with its probability."""
    if len(ranked) == 1:
        return ranked[0].text
    return ", ".join(f"{answer.text} {answer.probability:.3f}" for answer in ranked)


def _ask_each(
    blip: "Blip",
    sources: "ImageSources",
    questions: tuple[str, ...],
    candidates: Sequence[str] | None,
    top: int,
    json: bool,
) -> int:
    from openblip.inference.many_images import answer_each_image
    from openblip.metrics.accuracy import Tally

    given = [Tally() for _ in questions]

    def tell(name: str, answers: "list[list[Answer]]") -> None:
        for tally, ranked in zip(given, answers, strict=True):
            tally.add(ranked[0].text)
        if json:
            found = [_as_json(*each, top) for each in zip(questions, answers, strict=True)]
            print_json({"image": name, "answers": found})
        else:
            print_each(name, [_in_a_cell(ranked) for ranked in answers])

    if not json:
        print_each("image", questions)
    counts = answer_each_image(
        blip,
        sources,
        questions,
        tell,
        partial(complain, "openblip ask"),
        top=top,
        candidates=candidates,
        show_progress=not sys.stdout.isatty(),
    )
    for question, tally in zip(questions, given, strict=True):
        if tally.dominant is not None:
            about = f"{question} " if len(questions) > 1 else ""
            complain("openblip ask", f"{about}{tally.dominant}")
    return end_of_each("openblip ask", counts)


def explain(
    image: tyro.conf.Positional[Path],
    text: tyro.conf.Positional[str | None] = None,
    /,
    *,
    model: str | None = None,
    question: str | None = None,
    answer: str | None = None,
    layer: CountOrNone | None = None,
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("explained.png"),
    device: str | None = None,
) -> int:
    """Show where the model looks: a heat map for each word, on one sheet.

    Explains the match of a given text, the answer to a question, or, with neither, the caption
    that the model writes. Example: openblip explain photo.jpg "a dog on a beach" -o dog.png

    Args:
        image: an image file.
        text: a text that may describe it.
        model: a checkpoint that can match, caption or answer: folder, file, address or hub
            repository; by default the published base model for it.
        question: a question about the image.
        answer: an answer to explain; by default the model's own.
        layer: text layer whose attention is shown, counted from 0.
        output: the PNG file.
        device: cpu, cuda, mps; by default the best that there is.
    """
    from openblip.inference.loading import load
    from openblip.sources.images import open_image

    if text and question:
        raise RecipeError("give a text or --question, not both")
    check_output(output, "-o")
    if output.exists() and output.samefile(image):
        raise RecipeError(f"-o {output}: is the image that is explained; give another name")
    task = "ask" if question else "match" if text else "caption"
    blip = load(model or PUBLISHED[task], device=device)
    picture = open_image(image)
    if question and not answer:
        with warnings.catch_warnings():
            # The explanation says the same of the question.
            warnings.simplefilter("ignore", OpenBlipWarning)
            answer = blip.ask(picture, question)[0].text
    heatmap = blip.explain(picture, text, question=question, answer=answer, layer=layer)
    heatmap.save(output, picture)
    shown = f"{question} {answer}" if question else " ".join(heatmap.tokens)
    print(f"{shown} (score {heatmap.score:.3f}): {output}")
    return 0
