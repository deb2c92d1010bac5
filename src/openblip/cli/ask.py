"""`openblip ask`."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from openblip.cli.flags import Count
from openblip.cli.output import check_texts, end_of_each, print_each, print_json, print_table
from openblip.errors import DataError

if TYPE_CHECKING:
    from openblip.inference import Answer, Blip
    from openblip.inference.image_sources import ImageSources


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
    json: bool = False,
) -> int:
    """Answer questions about an image, or about each of many.

    Answers are generated, or chosen among candidates where some are given. Of many images there is
    a line each: the name, and an answer to each question. One that cannot be read is reported on
    standard error, and the exit code is 1.
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
        json: print JSON; of many images a line each.
    """
    from openblip.data.answer_lists import read_answers
    from openblip.inference import load
    from openblip.inference.image_sources import ImageSources, is_single
    from openblip.inference.published import PUBLISHED

    check_texts(questions, "question")
    choices = [*candidates, *(read_answers(candidates_file) if candidates_file else [])]
    if split is not None or not is_single(image):
        if top > 1:
            raise DataError("--top gives a ranking for one image; leave it out for many")
        sources = ImageSources([image], split)
        blip = load(model or PUBLISHED["ask"], device=device)
        return _ask_each(blip, sources, questions, choices or None, json)
    blip = load(model or PUBLISHED["ask"], device=device)
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


def _ask_each(
    blip: "Blip",
    sources: "ImageSources",
    questions: tuple[str, ...],
    candidates: Sequence[str] | None,
    json: bool,
) -> int:
    from openblip.inference.each_image import answer_each_image

    def tell(name: str, answers: "list[Answer]") -> None:
        if json:
            found = [
                {"question": q, "answer": a.text, "probability": a.probability}
                for q, a in zip(questions, answers, strict=True)
            ]
            print_json({"image": name, "answers": found})
        else:
            print_each(name, [answer.text for answer in answers])

    if not json:
        print_each("image", questions)
    counts = answer_each_image(
        blip,
        sources,
        questions,
        tell,
        lambda failure: print(f"openblip ask: {failure}", file=sys.stderr),
        candidates=candidates,
        show_progress=not sys.stdout.isatty(),
    )
    return end_of_each("openblip ask", counts.done, counts.failed, counts.interrupted)
