"""`openblip ask`."""

from pathlib import Path

import tyro

from openblip.cli.output import print_json, print_table
from openblip.errors import DataError


def ask(
    image: tyro.conf.Positional[Path],
    questions: tyro.conf.Positional[tuple[str, ...]],
    /,
    *,
    model: str | None = None,
    candidates: tuple[str, ...] = (),
    candidates_file: Path | None = None,
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
    answers = blip.ask(image, list(questions), choices or None)
    if json:
        print_json(
            [
                {"question": q, "answer": a.text, "probability": a.probability}
                for q, a in zip(questions, answers, strict=True)
            ]
        )
        return 0
    print_table(
        ["question", "answer", "probability"],
        [[q, a.text, f"{a.probability:.3f}"] for q, a in zip(questions, answers, strict=True)],
    )
    return 0
