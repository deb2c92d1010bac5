"""`openblip explain`."""

import warnings
from pathlib import Path
from typing import Annotated

import tyro

from openblip.atomic import check_output
from openblip.cli.flags import CountOrNone
from openblip.errors import OpenBlipWarning, RecipeError


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
    from openblip.data.images import open_image
    from openblip.inference import load
    from openblip.inference.published import PUBLISHED

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
