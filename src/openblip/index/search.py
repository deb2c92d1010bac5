"""Searching in two stages: recall by contrast, then ranking by the probability of a match.

Contrast (ITC) compares embeddings that stand in the index. Matching (ITM) reads each text together
with each image of the first candidates: every image is encoded once, its texts go together.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from openblip.batches.transforms import eval_transform
from openblip.checkpoints.fingerprints import RememberedHashes, default_hashes
from openblip.curation.marks import EMBEDDING_KEY, embeddings_of
from openblip.index.noted import open_index
from openblip.index.query import Query, Terms
from openblip.index.states import StateCache, default_folder, states_of
from openblip.inference.blip import Blip
from openblip.inference.embedder import Embedder, embedder_fingerprint, load_embedder
from openblip.inference.encoding import EncodedImages
from openblip.inference.image_sources import tried_batches
from openblip.runtime.errors import CheckpointError, DataError
from openblip.runtime.page import CardText, Page
from openblip.sources.images import ImageSource, open_image
from openblip.sources.row_images import encoded_image, image_path, row_image
from openblip.table.table import PairTable
from openblip.table.vectors import nearest_rows

Rerank = int | Literal["auto"]
THRESHOLD = 0.5
"""Probability of a match above which something counts as found."""
CACHE_BYTES = 2 * 10**9
LEAST_RERANKED, MOST_RERANKED = 32, 128
"""What `auto` matches: fewer would hide what contrast misjudges, and more take minutes to encode on
a few cores."""
# Of the contrast's lead of the best over the k-th: what comes closer behind that may be better.
_MARGIN = 0.5
_OF_FILES = ("file_digest", "file_size", "file_mtime")
# Images that are matched together: fewer leave products small, and where long queries make keys and
# values worth it, those of each take 42 MB for a base model at 384 px.
_TOGETHER = 16


@dataclass(frozen=True)
class Hit:
    """An image that was found."""

    row: int
    """Its number in the table."""
    id: str
    """Its id; of a folder its path in there."""
    itc: float
    """Weighted mean of the cosines of all that shall fit."""
    itm: float | None
    """Probability that all texts fit, and none that shall not; None where it was not matched."""
    image_uri: str | None
    """Where the image lies; None where it is stored in the table."""
    captions: tuple[str, ...]
    """Its given texts."""


@dataclass(frozen=True)
class Found:
    """What a search has found."""

    hits: list[Hit]
    """What reaches the threshold first, ranked by both heads (`Terms.rank`), then what was matched
    besides, ranked likewise, then the others by contrast."""
    matched: int
    """Candidates that were matched."""
    cached: int
    """Those of them whose states were kept from an earlier search."""
    unreadable: int
    """Candidates whose images cannot be read any more: the index is older than the files."""
    margin: float | None
    """Of contrast, behind the k-th candidate, within which `auto` matched, within its bounds; None
    without `auto`."""
    best: float | None
    """The largest probability; None where nothing was matched."""
    threshold: float

    @property
    def nothing(self) -> bool:
        """Whether no image fits, as far as matching can tell."""
        return not self.hits or (self.best is not None and self.best < self.threshold)

    def counts(self) -> dict[str, int | float | None]:
        """How it was found, for programs."""
        names = ("matched", "cached", "unreadable", "margin", "best")
        return {name: getattr(self, name) for name in names}

    def __str__(self) -> str:
        """One line: what was matched, and whether anything was found."""
        told = "by contrast alone"
        if self.matched:
            told = f"the first {self.matched} by contrast were matched"
            if self.margin is not None:
                told += f" (auto: ITC at most {self.margin:.3f} behind the last that is shown)"
            told += f", {self.cached} of them from the cache" if self.cached else ""
        if self.unreadable:
            told += (
                f"; {self.unreadable} cannot be read: bring the index up to date "
                "(`openblip index update`)"
            )
        return told


class Searcher:
    """A model with an indexed table: answers any number of queries."""

    def __init__(
        self,
        table: PairTable,
        model: Embedder,
        cache: StateCache | None = None,
    ) -> None:
        """Reads nothing yet.

        Args:
            table: with embeddings of this model.
            model: a `Blip`, or another that embeds.
            cache: of hidden states; None for none.
        """
        self.table, self.model, self.cache = table, model, cache

    @classmethod
    def open(
        cls,
        place: str,
        model: str | None = None,
        *,
        device: str | None = None,
        cache_bytes: int = CACHE_BYTES,
        cache_folder: Path | None = None,
        load: Callable[[str, str | None], Embedder] = load_embedder,
    ) -> "Searcher":
        """The index of a folder or a table, with its model.

        Args:
            place: an indexed folder or table.
            model: where the model is now, if it has moved; its fingerprint must be the same.
            device: by default the best that there is.
            cache_bytes: of hidden states on disk; 0 keeps none.
            cache_folder: by default `openblip.index.states.default_folder`.
            load: how the model is had, from its source and device; one that is loaded already
                can be given so.

        Raises:
            DataError: there is no index, or it is of another model.
            CheckpointError: the model cannot be read.
        """
        table, state = open_index(place, model)
        source = model or state.model
        if not source:
            raise DataError(f"{place}: its index does not say where the model is: give --model")
        # All files of the model, which are read again only if they are not as they were.
        hashes = RememberedHashes(default_hashes())
        try:
            fingerprint = embedder_fingerprint(source, hashes.hash_file)
        except CheckpointError as error:
            if model is not None:
                raise
            raise CheckpointError(
                f"{place}: its index was made with {source}, which cannot be read ({error}); if "
                "the model lies elsewhere now, name it with --model"
            ) from error
        if fingerprint != state.fingerprint:
            raise DataError(
                f"{place}: its index is of another model than {source} is now: index it again "
                f"(`openblip index build {place} --model {source}`)"
            )
        loaded = load(source, device)
        cache = None
        if isinstance(loaded, Blip) and loaded.can_match and cache_bytes:
            key = f"{fingerprint}-{loaded.image_size}"
            cache = StateCache(cache_folder or default_folder(), cache_bytes, key)
        return cls(table, loaded, cache)

    def find(
        self,
        query: Query,
        k: int = 20,
        *,
        where: str | None = None,
        rerank: Rerank = "auto",
        threshold: float = THRESHOLD,
    ) -> Found:
        """The k best images for a query, or as many as there are.

        Args:
            query: what they shall show.
            k: how many; at least 1.
            where: what their rows must fulfil, as Lance's SQL.
            rerank: how many candidates of contrast are matched; 0 for none.
            threshold: probability below which nothing counts as found.

        Raises:
            DataError: a row of the query is not there, an image cannot be read, or the condition
                cannot be read.
        """
        if k < 1:
            raise DataError(f"k is {k}; give 1 or more")
        like = _rows_named(self.table, query.like)
        terms = Terms.of(query, self.model, self._embeddings(like))
        matcher = self._matcher(query, rerank)
        rows, cosines = self._recall(terms, self._breadth(k, rerank), where, like)
        itc = terms.contrast(cosines, with_not=matcher is None)
        # Stable: where cosines are equal, a query finds the same each time.
        order = np.argsort(-itc, kind="stable")
        rows, cosines, itc = rows[order], cosines[order], itc[order]
        chosen, margin = choose_candidates(itc, k, rerank) if matcher is not None else (0, None)
        itm, rank = np.full(len(rows), np.nan), np.full(len(rows), -np.inf)
        cached = 0
        if matcher is not None and chosen:
            matched = self._match(matcher, query, rows[:chosen])
            itm[:chosen], cached = terms.probability(matched.itm), matched.cached
            temperature = float(matcher.matcher.temperature.detach())
            rank[:chosen] = terms.rank(itm[:chosen], cosines[:chosen], temperature)
        # As those that were not matched: NaN would sort behind them.
        rank[np.isnan(itm)] = -np.inf
        # What counts as found comes first, whatever contrast says of it.
        is_found = itm >= threshold
        best = np.lexsort((-itc, -rank, ~is_found))[:k]
        known = itm[~np.isnan(itm)]
        return Found(
            hits=self._hits(rows[best], itc[best], itm[best]),
            matched=len(known),
            cached=cached,
            unreadable=chosen - len(known),
            margin=margin,
            best=float(known.max()) if known.size else None,
            threshold=threshold,
        )

    def _matcher(self, query: Query, rerank: Rerank) -> Blip | None:
        """The model, if it can tell a probability of this query and shall."""
        model = self.model
        if isinstance(model, Blip) and model.can_match and query.all_texts and rerank != 0:
            return model
        return None

    def _breadth(self, k: int, rerank: Rerank) -> int:
        """Candidates of each term: enough that one that is good in all of them is among them."""
        return max(4 * k, 2 * (MOST_RERANKED if rerank == "auto" else rerank))

    def _recall(
        self, terms: Terms, breadth: int, where: str | None, like: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Candidates, and their exact cosines with all terms (candidates, terms)."""
        fitting = terms.vectors[: terms.num_fitting]
        # Besides the nearest of each term those of all together.
        together = [terms.weights[: terms.num_fitting] @ fitting] if len(fitting) > 1 else []
        found = [
            nearest_rows(self.table, EMBEDDING_KEY, vector, breadth, where)
            for vector in [*fitting, *together]
        ]
        # Each candidate once, although several terms may find it.
        rows = np.setdiff1d(np.concatenate(found), like)
        embeds = self._embeddings(rows)
        # Zeros stand for an image that could not be read.
        readable = embeds.any(axis=1)
        return rows[readable], embeds[readable] @ terms.vectors.T

    def _embeddings(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        return embeddings_of(self.table.take(rows, [EMBEDDING_KEY])[EMBEDDING_KEY])

    def _match(self, blip: Blip, query: Query, rows: NDArray[np.int64]) -> "_Matched":
        """Probabilities of all texts of a query with the images of some rows."""
        texts = query.all_texts
        itm, cached = np.full((len(rows), len(texts)), np.nan), 0
        for start in range(0, len(rows), _TOGETHER):
            some = rows[start : start + _TOGETHER]
            states, had = self._states(blip, some)
            cached += had
            if states:
                hidden = torch.stack(list(states.values())).to(blip.device, blip.dtype)
                encoded = EncodedImages(blip.matcher, hidden)
                scores = blip.score(encoded, [texts] * len(states))
                places = [start + place for place in states]
                itm[places] = [[match.itm for match in of_image] for of_image in scores]
        return _Matched(itm, cached)

    def _states(self, blip: Blip, rows: NDArray[np.int64]) -> tuple[dict[int, Tensor], int]:
        """Hidden states by the places of rows; those of unreadable images are missing."""
        # Of a folder the index knows what its files were.
        known = [name for name in _OF_FILES if name in self.table.columns]
        found = self.table.take(rows, ["image", "image_uri", *known]).to_pylist()
        contents: dict[int, bytes] = {}
        digests = []
        for place, row in enumerate(found):
            # Of a folder the index knows it, and the file need not be read. Under the digest of
            # what it was, states of what it is now would be kept.
            digest = row.get("file_digest")
            if digest is None or _has_changed(row):
                contents[place] = _content(row)
                digest = hashlib.blake2b(contents[place], digest_size=16).hexdigest()
            digests.append(digest)

        def compute(places: list[int]) -> Mapping[int, Tensor]:
            def prepared(place: int) -> Tensor:
                encoded = contents.get(place) or _content(found[place], must=True)
                return eval_transform(open_image(encoded), blip.image_size)

            computed: dict[int, Tensor] = {}
            for batch in tried_batches(places, prepared, len(places)):
                if batch.items:
                    hidden = blip.encode(batch.images).hidden
                    computed |= dict(zip(batch.items, hidden.cpu().float(), strict=True))
            return computed

        return states_of(self.cache, digests, compute)

    def _hits(
        self, rows: NDArray[np.int64], itc: NDArray[np.float64], itm: NDArray[np.float64]
    ) -> list[Hit]:
        told = self.table.take(rows, ["id", "image_uri", "captions"]).to_pylist()
        return [
            Hit(
                row,
                of_row["id"],
                cosine,
                None if np.isnan(probability) else probability,
                of_row["image_uri"],
                tuple(of_row["captions"] or ()),
            )
            for row, of_row, cosine, probability in zip(
                rows.tolist(), told, itc.tolist(), itm.tolist(), strict=True
            )
        ]


@dataclass(frozen=True, eq=False)
class _Matched:
    itm: NDArray[np.float64]
    """(candidates, texts); NaN for an image that cannot be read."""
    cached: int


def _has_changed(row: Mapping[str, Any]) -> bool:
    """Whether a file is there, and another than the one that the index knows."""
    if row.get("file_size") is None:
        return False
    try:
        status = image_path(row["image_uri"]).stat()
    # A file that is away may come back: what is kept still tells what it showed.
    except OSError:
        return False
    return (status.st_size, status.st_mtime_ns) != (row["file_size"], row["file_mtime"])


def _content(row: Mapping[str, object], must: bool = False) -> bytes:
    try:
        return encoded_image(row["image"], row["image_uri"])  # type: ignore[arg-type]
    except DataError:
        if must:
            raise
        return b""


def choose_candidates(itc: NDArray[np.float64], k: int, rerank: Rerank) -> tuple[int, float | None]:
    """How many candidates are matched, and the margin by which `auto` chose them.

    Args:
        itc: by which contrast ranks them, descending.
        k: how many are shown in the end.
        rerank: a number, or "auto": those that are behind the k-th by at most half of the lead of
            the first over it, within `LEAST_RERANKED` and `MOST_RERANKED`.
    """
    if rerank != "auto":
        return min(rerank, len(itc)), None
    if not len(itc):
        return 0, 0.0
    last = min(k, len(itc)) - 1
    margin = float(_MARGIN * (itc[0] - itc[last]))
    near = int(np.count_nonzero(itc >= itc[last] - margin))
    return min(max(near, LEAST_RERANKED), MOST_RERANKED, len(itc)), margin


def _rows_named(table: PairTable, names: Sequence[str | int]) -> NDArray[np.int64]:
    """Numbers of rows that are named by id, or by number where no id is that.

    Raises:
        DataError: there is none.
    """
    wanted = {str(name): -1 for name in names}
    if wanted:
        start = 0
        for batch in table.scan(["id"]):
            ids = batch["id"].to_pylist()
            wanted |= {row_id: start + n for n, row_id in enumerate(ids) if row_id in wanted}
            start += len(ids)
    for name, number in wanted.items():
        if number < 0:
            if not name.isdecimal() or int(name) >= len(table):
                raise DataError(
                    f"{table.uri} has no row {name!r}: give an id, or a number of a row"
                )
            wanted[name] = int(name)
    return np.array(list(wanted.values()), np.int64)


def search(
    table: "PairTable | str | Path",
    query: str | Sequence[str] = (),
    *,
    k: int = 20,
    image: ImageSource | None = None,
    where: str | None = None,
    and_: str | Sequence[str] = (),
    not_: str | Sequence[str] = (),
    like: str | int | None = None,
    weights: Sequence[float] = (),
    rerank: Rerank = "auto",
    model: "str | Embedder | None" = None,
    device: str | None = None,
    cache_bytes: int = CACHE_BYTES,
) -> list[Hit]:
    """The k best images of an indexed table or folder, best first.

    Args:
        table: as for `Searcher.open`, or an open table with embeddings.
        query: a text that shall fit, or several.
        k: how many.
        image: what is found shall look like this image.
        where: what rows must fulfil, as Lance's SQL, such as "split = 'test' and width > 1000".
        and_: further texts that shall fit.
        not_: texts that shall not fit.
        like: what is found shall look like this row: an id, or a number.
        weights: how much each text counts, `query` first; 1 by default.
        rerank: how many candidates of contrast are matched; 0 for none.
        model: by default that of the index; one that is loaded already is taken as it is.
        device: by default the best that there is.
        cache_bytes: of hidden states that are kept on disk.

    Raises:
        DataError: there is no index, or it is of another model, or the query makes no sense.
        CheckpointError: the model cannot be read.
    """
    wanted = Query(
        texts=[*_several(query), *_several(and_)],
        images=() if image is None else (image,),
        without=_several(not_),
        like=() if like is None else (like,),
        weights=weights,
    )
    place = table.uri if isinstance(table, PairTable) else str(table)
    if model is None or isinstance(model, str):
        searcher = Searcher.open(place, model, device=device, cache_bytes=cache_bytes)
    else:
        searcher = Searcher(open_index(place)[0], model)
    return searcher.find(wanted, k, where=where, rerank=rerank).hits


def _several(texts: str | Sequence[str]) -> Sequence[str]:
    return [texts] if isinstance(texts, str) else texts


_SIDE = 320
_GREY = (128, 128, 128)


def write_page(path: Path, table: PairTable, query: Query, found: Found) -> Path:
    """Write a page with the images of some hits, and return where it is.

    An image that cannot be read any more is a grey square, and its card says why.

    Args:
        path: of the page.
        table: in which was searched.
        query: what was looked for.
        found: what was found.

    Raises:
        UnwritableError: it cannot be written.
    """
    page = Page(_title(query), f"{len(found.hits)} images of {table.uri}; {found}.")
    page.facts(_facts(query))
    if found.nothing:
        page.section(f"Nothing found above {found.threshold:g}")
        page.note("The nearest:" if found.hits else "No row fulfils what was asked.")
    page.cards([_card(table, hit) for hit in found.hits])
    return page.save(path)


def _facts(query: Query) -> dict[str, object]:
    """All that was asked for, which the title names in short."""
    weights = [*query.weights, *[1.0] * (len(query.texts) - len(query.weights))]
    asked = {
        "shall fit": [
            text if weight == 1 else f"{text} (weight {weight:g})"
            for text, weight in zip(query.texts, weights, strict=True)
        ],
        "shall not fit": query.without,
        "alike": [*(str(name) for name in query.like), *map(str, query.images)],
    }
    return {name: ", ".join(parts) for name, parts in asked.items() if parts}


def _title(query: Query) -> str:
    parts = [*query.texts, *(f"like {name}" for name in query.like)]
    parts += ["like an image"] * len(query.images)
    told = " and ".join(parts)
    return told + "".join(f", not {text}" for text in query.without)


def _card(table: PairTable, hit: Hit) -> tuple[Image.Image, list[CardText]]:
    probability = "" if hit.itm is None else f"match probability (ITM) {hit.itm:.3f}, "
    texts = [CardText(hit.id, f"{probability}ITC cosine {hit.itc:.3f}, row {hit.row}")]
    texts += [CardText(caption, "given text") for caption in hit.captions[:1]]
    try:
        # One at a time: as many photographs at once may fill the memory.
        (row,) = table.take([hit.row], ["id", "image", "image_uri"]).to_pylist()
        image = row_image(row)
        # Small, as the page has its images within it.
        image.thumbnail((_SIDE, _SIDE))
    except (DataError, OSError) as error:
        image = Image.new("RGB", (_SIDE, _SIDE), _GREY)
        texts.append(CardText(str(error), "cannot be read"))
    return image, texts
