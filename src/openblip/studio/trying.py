"""The room Try: what the models say of one picture, a row's or an uploaded one.

Each answer is that of the command of the same name: the picture goes to the model as it is.
"""

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from openblip.runtime.errors import DataError
from openblip.studio.models import Role
from openblip.studio.routes import Asked, Refused, Route, post

if TYPE_CHECKING:
    from openblip.inference.blip import Blip
    from openblip.inference.explanation import Heatmap
    from openblip.studio.app import Studio

_MOST_BEAMS, _MOST_ANSWERS, _MOST_LENGTH = 10, 20, 64
_COLOUR_STOPS = 16

Question = Callable[["Blip", bytes, Asked], dict[str, Any]]


def routes(studio: "Studio") -> list[Route]:
    """`/api/try/caption`, `ask`, `match` and `explain`."""

    def asking(question: Question, role_of: Callable[[Asked], Role]) -> Callable[[Asked], object]:
        def answer(asked: Asked) -> dict[str, Any]:
            # Before the model is there: a person waits for that, too.
            started = time.monotonic()
            role = role_of(asked)
            picture = _picture(studio, asked)
            with studio.models.using(role) as blip:
                found = question(blip, picture, asked)
            model = studio.models.source_of(role)
            return {**found, "model": model, "seconds": time.monotonic() - started}

        return answer

    return [
        post("/api/try/caption", asking(_caption, lambda asked: "captioner")),
        post("/api/try/ask", asking(_ask, lambda asked: "vqa")),
        post("/api/try/match", asking(_match, lambda asked: "filter")),
        post("/api/try/explain", asking(_explain, _explaining)),
    ]


def _picture(studio: "Studio", asked: Asked) -> bytes:
    """The uploaded picture, or that of a row, encoded."""
    uploaded = asked.picture()
    if uploaded is not None:
        return uploaded
    if asked.values.get("row") is None:
        raise Refused(400, "there is no picture: choose one, or name a row of the collection")
    return studio.need_place().encoded(asked.whole("row", 0, 1 << 53))


def _caption(blip: "Blip", picture: bytes, asked: Asked) -> dict[str, Any]:
    """Captions, each with its words and how sure the model was of them."""
    method = asked.text("method", "beam")
    if method not in ("beam", "nucleus"):
        raise Refused(400, "method must be beam or nucleus")
    beams = asked.whole("beams", 1, _MOST_BEAMS, 3)
    # A search ends with as many captions as it has beams.
    most = beams if method == "beam" else _MOST_BEAMS
    (captions,) = blip.caption(
        picture,
        method="nucleus" if method == "nucleus" else "beam",
        num_beams=beams,
        max_length=asked.whole("max_length", 6, _MOST_LENGTH, 20),
        num_captions=asked.whole("count", 1, most, min(3, most)),
    )
    return {
        "captions": [
            {
                "text": caption.text,
                "logprob": caption.logprob,
                "probability": math.exp(caption.logprob),
                "words": [
                    {"text": word.text, "probability": word.probability} for word in caption.words
                ],
                "reason": caption.reason,
            }
            for caption in captions
        ]
    }


def _ask(blip: "Blip", picture: bytes, asked: Asked) -> dict[str, Any]:
    """The best answers: written ones as beam search ranks them, candidates by their share."""
    candidates = asked.texts("candidates", most=2000)
    (answers,) = blip.ask_top(
        picture,
        [_needed(asked, "question")],
        asked.whole("top", 1, _MOST_ANSWERS, 5),
        candidates or None,
    )
    return {
        "ranked": bool(candidates),
        "answers": [
            {"text": answer.text, "probability": answer.probability, "logprob": answer.logprob}
            for answer in answers
        ],
    }


def _match(blip: "Blip", picture: bytes, asked: Asked) -> dict[str, Any]:
    """How well each text fits, the best first."""
    texts = asked.texts("texts")
    if not texts:
        raise DataError("no text was given: write one or more, each in a line of its own")
    matches = sorted(
        zip(texts, blip.match(picture, texts), strict=True), key=lambda one: -one[1].itm
    )
    return {"matches": [{"text": t, "itm": match.itm, "itc": match.itc} for t, match in matches]}


def _explaining(asked: Asked) -> Role:
    roles: dict[str, Role] = {"match": "filter", "caption": "captioner", "answer": "vqa"}
    what = asked.text("what", "match")
    if what not in roles:
        raise Refused(400, "what must be match, caption or answer")
    return roles[what]


def _explain(blip: "Blip", picture: bytes, asked: Asked) -> dict[str, Any]:
    """Where the model looks, word by word, as grids of numbers from 0 to 1."""
    what = asked.text("what", "match")
    if what == "match":
        blip.require("itm")
        return _maps(blip.explain(picture, _needed(asked, "text")))
    if what == "caption":
        return _maps(blip.explain(picture))
    question = _needed(asked, "question")
    # Named, so that the page can say what it is that is explained.
    answer = asked.text("answer", "") or blip.ask(picture, question)[0].text
    return {**_maps(blip.explain(picture, question=question, answer=answer)), "answer": answer}


def _needed(asked: Asked, name: str) -> str:
    text = asked.text(name, "")
    if not text:
        raise DataError(f"the {name} is empty: write one")
    return text


def _maps(heatmap: "Heatmap") -> dict[str, Any]:
    """The maps, each from 0 to its own largest value, and how large that is beside the others'."""
    from openblip.inference.explanation import heat_colours

    peaks = heatmap.maps.amax(dim=(1, 2))
    highest = float(peaks.max())
    colours = list(heat_colours())
    triples = [colours[place : place + 3] for place in range(0, len(colours), 3)]
    step = (len(triples) - 1) / (_COLOUR_STOPS - 1)
    # What has no heat at all stays so: nothing is divided by zero.
    scaled = heatmap.maps / peaks.clamp(min=1e-30)[:, None, None]
    overall = heatmap.overall / heatmap.overall.max().clamp(min=1e-30)
    return {
        "tokens": heatmap.tokens,
        "maps": _rounded(scaled.tolist()),
        "overall": _rounded([overall.tolist()])[0],
        "peaks": [float(peak) / highest if highest else 0.0 for peak in peaks],
        "score": heatmap.score,
        "colours": [triples[round(stop * step)] for stop in range(_COLOUR_STOPS)],
    }


def _rounded(maps: list[list[list[float]]]) -> list[list[list[float]]]:
    """A thousand levels: more than a screen shows, and a third of the bytes."""
    return [[[round(value, 3) for value in row] for row in rows] for rows in maps]
