"""The room Review: texts one after the other, a verdict each, and what follows from them.

Nothing of a review is kept here that would be missed: sample and log are beside the table, so that
a page goes on with another server as if nothing had been. A page sends its verdicts one after the
other, and again when it got no answer; what stands already is not recorded twice.
"""

import json
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from openblip.runtime.errors import DataError
from openblip.studio.routes import Asked, Refused, Route, get, post
from openblip.table.reviews import VERDICTS, ReviewLog
from openblip.table.scores import score_words
from openblip.training.recipe_file import from_plain

if TYPE_CHECKING:
    from openblip.review.session import ReviewItem, ReviewSession
    from openblip.studio.app import Studio

# Each holds the scores of all texts of the table.
_MOST_OPEN = 4
_MOST_ITEMS = 50
_LONGEST_NAME, _LONGEST_TAB = 80, 40
# A tab that was closed in a crash keeps its texts from other tabs no longer than this.
_TAB_SECONDS = 90.0


@dataclass
class _Tab:
    """A page of a reviewer, and what it shows or is going to show."""

    keys: frozenset[str]
    heard: float


@dataclass
class _Opened:
    """A review with the pages that look at it."""

    session: "ReviewSession"
    log: ReviewLog
    tabs: dict[tuple[str, str], _Tab] = field(default_factory=dict)
    """By reviewer and tab."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Held while a verdict is judged to be new and recorded, so that a repetition waits."""
    conclusions: tuple[object, dict[str, Any]] | None = None
    """What was concluded last, and of what."""

    def others(self, reviewer: str, tab: str) -> list[frozenset[str]]:
        """What the reviewer's other pages show that have been heard of."""
        now = time.monotonic()
        gone = [key for key, own in self.tabs.items() if now - own.heard > _TAB_SECONDS]
        for key in gone:
            del self.tabs[key]
        return [own.keys for key, own in self.tabs.items() if key[0] == reviewer and key[1] != tab]


class Reviews:
    """The reviews of a studio's collection that pages look at; safe to use from threads."""

    def __init__(self, studio: "Studio") -> None:
        """Opens nothing yet."""
        self._studio = studio
        self._opened: OrderedDict[tuple[str, str], _Opened] = OrderedDict()
        self._lock = threading.Lock()

    def upcoming(self, asked: Asked) -> dict[str, Any]:
        """The next texts for a page: none that another page of the same reviewer has."""
        opened, mark = self._open(asked)
        reviewer, tab = _reviewer(asked), _tab(asked)
        skip = frozenset(asked.texts("skip", _MOST_ITEMS))
        count = asked.whole("count", 1, _MOST_ITEMS, 12)
        others = opened.others(reviewer, tab)
        taken = frozenset[str]().union(*others) if not asked.values.get("all") else frozenset()
        items = opened.session.upcoming(reviewer, count, skip | taken)
        keys = skip | {item.key for item in items}
        opened.tabs[reviewer, tab] = _Tab(keys, time.monotonic())
        judged = opened.session.standing(reviewer)
        return {
            "items": [_shown(item, opened.session.sample.settings.score) for item in items],
            "elsewhere": len((taken - judged.keys()) - keys),
            "tabs": len(others),
            "mark": mark,
        }

    def verdict(self, asked: Asked) -> dict[str, Any]:
        """Record a verdict; answers when it is on the disk."""
        opened, _ = self._open(asked)
        reviewer, key = _reviewer(asked), asked.text("item")
        verdict = asked.text("verdict")
        if verdict not in VERDICTS:
            raise Refused(400, f"verdict must be one of {', '.join(VERDICTS)}")
        edited = asked.text("edited", "", most=10_000) or None
        session = opened.session
        # Since it was shown, another job may have written another one there.
        if session.item(key).text != asked.values.get("text"):
            raise Refused(409, "the text is another one by now: it is shown again")
        with opened.lock:
            known = session.standing(reviewer).get(key)
            if known is not None and (known.verdict, known.edited) == (verdict, edited):
                return {"key": known.key, "what": "stands already"}
            record = session.record(reviewer, key, verdict, edited)
        return {"key": record, "what": "recorded"}

    def undo(self, asked: Asked) -> dict[str, Any]:
        """Take the reviewer's verdict on an item back, unless that has been done already."""
        opened, _ = self._open(asked)
        reviewer, key = _reviewer(asked), asked.text("item")
        session = opened.session
        with opened.lock:
            standing = session.standing(reviewer)
            if key not in standing:
                return {
                    "item": _shown(session.item(key), session.sample.settings.score),
                    "what": "stands already",
                }
            verdict, edited = standing[key].verdict, standing[key].edited
            session.undo(reviewer, key)
        return {
            "item": _shown(session.item(key), session.sample.settings.score),
            "verdict": verdict,
            "edited": edited,
            "what": "recorded",
        }

    def leave(self, asked: Asked) -> dict[str, Any]:
        """A page is closed: what it had goes to others."""
        opened, _ = self._open(asked)
        opened.tabs.pop((_reviewer(asked), _tab(asked)), None)
        return {}

    def state(self, asked: Asked) -> dict[str, Any]:
        """How far the review is and what follows from it, seen by a reviewer."""
        opened, mark = self._open(asked)
        session, reviewer = opened.session, _reviewer(asked)
        if (tab := opened.tabs.get((reviewer, _tab(asked)))) is not None:
            tab.heard = time.monotonic()
        precision = asked.number("precision", 0.01, 0.999, 0.9)
        confidence = asked.number("confidence", 0.5, 0.9999, 0.95)
        own = session.standing(reviewer)
        return {
            "progress": asdict(session.progress(reviewer)),
            "last": next(reversed(own), None),
            "tabs": len(opened.others(reviewer, _tab(asked))),
            "scope": session.sample.scope,
            "mark": mark,
            **_conclusions(opened, precision, confidence),
        }

    def choices(self, asked: Asked) -> dict[str, Any]:
        """What can be reviewed, and why nothing can."""
        from openblip.review.sampling import ReviewSettings
        from openblip.studio.arrays import choosable_scores
        from openblip.table.scores import check_scored

        place = self._studio.need_place()
        self._studio.refresh()
        problem, scores = None, choosable_scores(place.table)
        try:
            check_scored(place.table, (scores or ["itm"])[0])
        except DataError as error:
            problem = str(error)
        return {
            "problem": problem,
            "defaults": asdict(ReviewSettings()),
            "scores": scores,
            "searchable": place.index is not None,
            "verdicts": list(VERDICTS),
        }

    def _open(self, asked: Asked) -> tuple[_Opened, str]:
        """The review that the settings mean, and the mark of the table whose rows it numbers."""
        given = asked.values.get("settings", {})
        if isinstance(given, str):
            given = _from_json(given)
        if not isinstance(given, Mapping):
            raise Refused(400, "settings must be an object")
        place = self._studio.need_place()
        partly_is_right = asked.text("partly", "") == "1"
        key = (place.mark, json.dumps([given, partly_is_right], sort_keys=True))
        # One at a time: a sample of a million rows is not drawn twice because two pages ask.
        with self._lock:
            if key not in self._opened:
                from openblip.review.sampling import ReviewSettings
                from openblip.review.session import ReviewSession

                settings = from_plain(ReviewSettings, given, "")
                self._studio.refresh()
                place = self._studio.need_place()
                # `refresh` may have found another version: the review is kept as one of that.
                key = (place.mark, key[1])
                session = ReviewSession.open(place.table, settings, partly_is_right=partly_is_right)
                self._opened[key] = _Opened(session, ReviewLog.of(place.table.uri))
                while len(self._opened) > _MOST_OPEN:
                    self._opened.popitem(last=False)
            self._opened.move_to_end(key)
            return self._opened[key], key[0]


def routes(studio: "Studio") -> list[Route]:
    """`/api/review/...`: texts, verdicts, taking back, how far it is, what can be reviewed."""
    reviews = Reviews(studio)
    return [
        get("/api/review/choices", reviews.choices),
        get("/api/review/state", reviews.state),
        post("/api/review/next", reviews.upcoming),
        post("/api/review/verdict", reviews.verdict),
        post("/api/review/undo", reviews.undo),
        post("/api/review/leave", reviews.leave),
    ]


def _conclusions(opened: _Opened, precision: float, confidence: float) -> dict[str, Any]:
    """What follows from the verdicts; computed anew when there is another one."""
    session = opened.session
    # The log only grows, so that its length says whether there is anything new.
    state = (len(opened.log.records()), precision, confidence)
    if opened.conclusions is not None and opened.conclusions[0] == state:
        return opened.conclusions[1]
    told: dict[str, Any] = {"estimates": session.estimates().as_plain(), "certificate": None}
    if session.sample.settings.by != "rejected":
        found = session.certify(precision, confidence)
        told["certificate"] = {**asdict(found), "keeps": found.keeps, "told": str(found)}
    opened.conclusions = (state, told)
    return told


def _shown(item: "ReviewItem", score: str) -> dict[str, Any]:
    others = [{"source": s, "text": text, "itm": itm} for s, text, itm in item.others]
    words = "match probability (ITM)" if score == "itm" else score_words(score)
    return {**asdict(item), "others": others, "score_words": words}


def _from_json(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Refused(400, "settings are no JSON") from error


def _reviewer(asked: Asked) -> str:
    name = " ".join(asked.text("reviewer", most=_LONGEST_NAME).split())
    if not name:
        raise Refused(400, "reviewer is empty: give your name")
    return name


def _tab(asked: Asked) -> str:
    return asked.text("tab", "", most=_LONGEST_TAB)
