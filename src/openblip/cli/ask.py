"""`openblip ask`."""

from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from openblip.cli.output import print_json, print_table
from openblip.errors import DataError

if TYPE_CHECKING:
    from openblip.inference import Answer


def ask(
    image: tyro.conf.Positional[Path],
    questions: tyro.conf.Positional[tuple[str, ...]],
    /,
    *,
    model: str | None = None,
    candidates: tuple[str, ...] = (),
    candidates_file: Path | None = None,
    top: int = 1,
    device: str | None = None,
    json: bool = False,
) -> int:
    """Answer questions about an image.

    Answers are generated, or chosen among candidates where some are given.
    Example: openblip ask photo.jpg "how many dogs are there?" --candidates one two three

    Args:
        image: an image file.
        questions: one or more questions.
        model: question-answering checkpoint: folder, file, address or hub repository; by default
            the published base model.
        candidates: the answers to choose from.
        candidates_file: the same from a file: one a line, or a list in JSON.
        top: so many answers to each question, best first: candidates by their share of the
            probability, written ones by their own.
        device: cpu, cuda, mps; by default the best that there is.
        json: print JSON.
    """
    from openblip.data.answer_lists import read_answers
    from openblip.inference import load
    from openblip.inference.published import PUBLISHED

    if not questions:
        raise DataError("no question was given; put one or more behind the image")
    choices = [*candidates, *(read_answers(candidates_file) if candidates_file else [])]
    blip = load(model or PUBLISHED["ask"], device=device)
    answers = blip.ask_top(image, list(questions), top, choices or None)
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


def _as_json(question: str, answers: "list[Answer]", top: int) -> dict[str, object]:
    """The best answer, and with more than one the ranking."""
    ranked = [{"answer": answer.text, "probability": answer.probability} for answer in answers]
    return {"question": question, **ranked[0]} | ({"ranking": ranked} if top > 1 else {})
