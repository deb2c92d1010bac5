"""What can be said of a text besides its filter's opinion, as columns beside the texts.

| score | higher means |
| --- | --- |
| `contrast` | text and image are nearer to each other than to their neighbours in the table |
| `agreement` | a synthetic text of the image says nearly the same, to the text encoder |
| `overlap` | a synthetic text of the image has the same words |
| `common` | more texts of other web images are the same, or nearly |
| `frequency` | its words are frequent in the table's web texts |
| `length` | it has more words |
| `unknown` | more of it is outside the filter's vocabulary |
| `copies` | more images of the table are like its image (after `openblip data duplicates`) |

All of them are functions of a text, its image and the table, so that a text which the table does
not have (a corrupted one, whose fate is known) gets its scores by the same code.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from openblip.batches.unknown_words import count_texts
from openblip.capfilt.filters import TABLE_SCORES, Filter, NamedFilter, name_filters
from openblip.capfilt.job import METADATA_KEY
from openblip.curation.marks import EMBEDDING_KEY, embeddings_of
from openblip.curation.near_texts import CommonTexts, num_words, overlap
from openblip.inference.blip import Blip
from openblip.inference.encoding import FirstTokenName
from openblip.runtime.errors import CheckpointError, DataError, RecipeError
from openblip.runtime.ranges import Count, Seed, check_ranges
from openblip.sources.row_images import check_reachable, row_image
from openblip.table.columns import column_state, compute_columns
from openblip.table.scores import SCORES_KEY, TEXT_COLUMNS, score_column, scores_of
from openblip.table.table import PairTable

if TYPE_CHECKING:
    import pyarrow as pa

SOURCES_KEY = "score_models"
"""Entry of a table's metadata: where the models of its scores lay, by fingerprint."""
_COPIES_KEY = "score_copies"
OF_GIVEN = ("agreement", "overlap")
"""Scores that compare a given text with synthetic ones: synthetic texts have none of them."""
_IMAGE_COLUMNS = ["id", "image", "image_uri"]


@dataclass(frozen=True, kw_only=True)
class ScoreSettings:
    """What decides scores, besides the table."""

    filters: tuple[str, ...] = ()
    """Models, as of `openblip capfilt run`. In the space of the first, texts and images are
    compared with their neighbours and each other; each one whose scores the table lacks gives them
    too. By default the filters of the table's CapFilt job."""
    neighbours: Count = 10
    """How many of the nearest texts (and images) of the sample normalise a cosine."""
    sample: Count = 2048
    """Rows of the table among which neighbours are looked for."""
    batch_size: Count = 32
    """Rows that are read and scored together."""
    seed: Seed = 0
    """Decides which rows are in the sample."""

    def __post_init__(self) -> None:
        """Checks every field."""
        check_ranges(self)


@dataclass(frozen=True)
class RowTexts:
    """An image and some texts about it, which are to be scored."""

    row: int
    """Of the table: an image is no neighbour of its own."""
    image: Image.Image | None
    """None where nothing needs it."""
    embedding: NDArray[np.float32] | None
    """Of the image, if the table has those of the first filter."""
    texts: list[str]
    synthetic: list[str]
    """What the texts are compared with."""
    num_own: int = 0
    """So many of the first texts stand in the table, and are no copies of themselves."""


@dataclass(frozen=True, eq=False)
class Neighbourhood:
    """A sample of a table's images and texts in the space of a model."""

    rows: NDArray[np.int64]
    """Row of each image and text."""
    images: NDArray[np.float32]
    """(sample, embed), of unit length."""
    texts: NDArray[np.float32]
    """(sample, embed): the first given text of each row."""
    neighbours: int

    def contrast(
        self,
        cosines: NDArray[np.float32],
        images: NDArray[np.float32],
        texts: NDArray[np.float32],
        rows: NDArray[np.int64],
    ) -> NDArray[np.float64]:
        """A pair's cosine less the mean of both sides' nearest neighbours, (pairs,).

        Cross-domain similarity local scaling (Conneau et al., 2018), halved: a text that is near
        to every image, and an image that is near to every text, prove nothing.

        Args:
            cosines: of the pairs.
            images: (pairs, embed).
            texts: (pairs, embed).
            rows: of each pair; what stands in it is no neighbour.
        """
        around = 0.5 * (
            self._nearest(images, self.texts, rows) + self._nearest(texts, self.images, rows)
        )
        return np.asarray(cosines - around, dtype=np.float64)

    def _nearest(
        self, points: NDArray[np.float32], others: NDArray[np.float32], rows: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        # Of unit length, so that products are cosines.
        similar = points @ others.T
        # Below any cosine, so that its own text or image is never among the nearest.
        similar[rows[:, None] == self.rows[None, :]] = -1.0
        # One of the sample may be its own, which is excluded.
        count = min(self.neighbours, max(similar.shape[1] - 1, 1))
        nearest = np.partition(similar, -count, axis=1)[:, -count:]
        return np.asarray(nearest.mean(axis=1))


class TextScorer:
    """Scores texts of images, whether or not the table has them.

    Attributes:
        filters: that it computes.
        first_token: of a text that is matched, as in the table's CapFilt job.
        names: of all scores that it gives a given text.
    """

    def __init__(
        self,
        table: PairTable,
        settings: ScoreSettings,
        named: Sequence[NamedFilter],
        computed: Sequence[NamedFilter],
        device: str | None = None,
    ) -> None:
        """Loads the models, and reads what of the table texts are compared with.

        Args:
            table: with at least one row.
            settings: of the sample.
            named: the filters; the first one embeds.
            computed: those of them whose own scores are wanted.
            device: such as "cpu".

        Raises:
            CheckpointError, MissingHead: a model cannot be loaded.
        """
        self.settings = settings
        # As the job has matched its texts: `[ENC]` and `[CLS]` give probabilities on two scales.
        self.first_token = _first_token(table)
        self._base = Filter(named[0], device)
        others = [Filter(one, device) for one in computed if one != named[0]]
        self.filters = [*([self._base] if named[0] in computed else []), *others]
        self._common = CommonTexts.of(table)
        self.reads_embeddings = _has_embeddings(table, named[0].fingerprint)
        # After `reads_embeddings`, which says how its rows are read.
        self._around = self._neighbourhood(table)
        self._vocabulary = next(
            (f.model for f in [self._base, *others] if isinstance(f.model, Blip)), None
        )

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Of all scores that it gives a given text."""
        own = [name for each in self.filters for name in each.named.scores]
        unknown = ["unknown"] if self._vocabulary is not None else []
        return (*own, "contrast", *OF_GIVEN, "common", "frequency", "length", *unknown)

    @property
    def needs_images(self) -> bool:
        """Whether images must be read, and not embeddings alone."""
        return bool(self.filters) or not self.reads_embeddings

    def score(self, rows: Sequence[RowTexts]) -> dict[str, list[list[float]]]:
        """By score, for each row the values of its texts; NaN for what does not apply."""
        lengths = [len(row.texts) for row in rows]
        texts = [text for row in rows for text in row.texts]
        found = self._by_filters(rows)
        if not texts:
            return {name: [[] for _ in rows] for name in self.names}
        of_row = np.repeat(np.arange(len(rows)), lengths)
        images = self._image_embeddings(rows)[of_row]
        # A phrase that a thousand images have is embedded once in a batch.
        known = list(dict.fromkeys([*texts, *(text for row in rows for text in row.synthetic)]))
        place = {text: number for number, text in enumerate(known)}
        embeds = self._embed_texts(known)
        own = embeds[[place[text] for text in texts]]
        cosines = np.einsum("pe,pe->p", images, own)
        numbers = np.array([row.row for row in rows], dtype=np.int64)[of_row]
        is_own = np.concatenate([np.arange(len(row.texts)) < row.num_own for row in rows])
        flat: dict[str, NDArray[np.float64]] = {
            "contrast": self._around.contrast(cosines, images, own, numbers),
            "common": self._common.common(texts, is_own),
            "frequency": self._common.frequency(texts, is_own),
            "length": np.array([num_words(text) for text in texts], dtype=np.float64),
        }
        if self._vocabulary is not None:
            flat["unknown"] = np.array([_unknown_share(self._vocabulary, text) for text in texts])
        pairs = [(text, row.synthetic) for row in rows for text in row.texts]
        flat["agreement"] = np.array(
            [
                # Without a synthetic text there is nothing to agree with, which is no disagreement:
                # NaN.
                max(
                    (float(embeds[place[text]] @ embeds[place[s]]) for s in written), default=np.nan
                )
                for text, written in pairs
            ]
        )
        flat["overlap"] = np.array(
            [max((overlap(text, s) for s in written), default=np.nan) for text, written in pairs]
        )
        ends = np.cumsum(lengths)[:-1]
        return found | {
            name: [part.tolist() for part in np.split(values, ends)]
            for name, values in flat.items()
        }

    def _by_filters(self, rows: Sequence[RowTexts]) -> dict[str, list[list[float]]]:
        found: dict[str, list[list[float]]] = {}
        for each in self.filters:
            images = self._prepared(each, rows)
            cleaned = [[each.clean(text) for text in row.texts] for row in rows]
            for name, values in each.score(images, cleaned, self.first_token).items():
                found[name] = [[np.nan if v is None else v for v in own] for own in values]
        return found

    def _prepared(self, each: Filter, rows: Sequence[RowTexts]) -> torch.Tensor:
        images = [row.image for row in rows]
        assert all(image is not None for image in images), "these scores need the images"
        return torch.stack([each.prepare(image) for image in images if image is not None])

    def _image_embeddings(self, rows: Sequence[RowTexts]) -> NDArray[np.float32]:
        if self.reads_embeddings and all(row.embedding is not None for row in rows):
            return np.stack([row.embedding for row in rows if row.embedding is not None])
        embeds = self._base.model.embed_prepared(self._prepared(self._base, rows))
        return np.asarray(embeds.numpy(), dtype=np.float32)

    def _embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return np.asarray(self._base.embed_texts(texts).numpy())

    def _neighbourhood(self, table: PairTable) -> Neighbourhood:
        """The sampled rows that have an image and a text."""
        size = min(self.settings.sample, len(table))
        chosen = np.random.default_rng(self.settings.seed).choice(len(table), size, replace=False)
        rows: list[int] = []
        images: list[NDArray[np.float32]] = []
        texts: list[str] = []
        for start in range(0, size, self.settings.batch_size):
            some = np.sort(chosen)[start : start + self.settings.batch_size]
            batch = read_rows_of(self, table, some.tolist())
            batch = [row for row in batch if row.texts]
            if batch:
                images.append(self._image_embeddings(batch))
                rows += [row.row for row in batch]
                texts += [row.texts[0] for row in batch]
        if not rows:
            raise DataError(f"{table.uri}: no image that can be read has a text; nothing to score")
        numbers = np.array(rows, dtype=np.int64)
        neighbours = self.settings.neighbours
        return Neighbourhood(numbers, np.concatenate(images), self._embed_texts(texts), neighbours)


def read_rows_of(
    scorer: TextScorer, table: PairTable, numbers: Sequence[int], wants_images: bool = False
) -> list[RowTexts]:
    """The given texts of some rows with their images; rows whose image cannot be read are left out.

    Args:
        scorer: says whether it needs images or embeddings.
        table: where they are.
        numbers: of the rows.
        wants_images: also where the scorer needs none.
    """
    embedded, wants_images = scorer.reads_embeddings, wants_images or scorer.needs_images
    columns = ["id", "captions", *(["synthetic"] if "synthetic" in table.columns else [])]
    columns += _IMAGE_COLUMNS[1:] if wants_images else []
    read = table.take(numbers, [*columns, *([EMBEDDING_KEY] if embedded else [])])
    vectors = embeddings_of(read[EMBEDDING_KEY]) if embedded else None
    found = []
    for place, row in enumerate(read.select(columns).to_pylist()):
        try:
            image = row_image(row) if wants_images else None
        except DataError:
            continue
        vector = None if vectors is None else vectors[place]
        # An image that could not be read when the table was embedded has zeros.
        if vector is not None and not vector.any():
            continue
        texts = [text or "" for text in row["captions"] or []]
        synthetic = [text or "" for text in row.get("synthetic") or []]
        found.append(RowTexts(numbers[place], image, vector, texts, synthetic, len(texts)))
    return found


def _unknown_share(model: Blip, text: str) -> float:
    return count_texts(
        model.tokenizer, [model.tokenizer.cleaning.caption(text)], model.max_tokens
    ).unknown_share


def _has_embeddings(table: PairTable, fingerprint: str) -> bool:
    state = column_state(table, EMBEDDING_KEY)
    # Those of another model lie in another space, and tell nothing beside these texts.
    is_whole = state.get("rows") == len(table) and EMBEDDING_KEY in table.columns
    return is_whole and state["settings"].get("model") == fingerprint


def _first_token(table: PairTable) -> FirstTokenName:
    stored: FirstTokenName = column_state(table, METADATA_KEY).get("first_token", "[ENC]")
    return stored


def known_filters(table: PairTable) -> dict[str, tuple[str, ...]]:
    """The scores of the filters of a table's CapFilt job, by fingerprint."""
    stored = column_state(table, METADATA_KEY)
    prints = stored.get("filter_fingerprint", [])
    prints = [prints] if isinstance(prints, str) else prints
    # A job with one filter that matches says nothing of it, as those of before there were several.
    scores = stored.get("scores", [["itm", "itc"]])
    return {key: tuple(own) for key, own in zip(prints, scores, strict=False)}


def filters_for(table: PairTable, filters: Sequence[str]) -> tuple[NamedFilter, ...]:
    """What the filters of scores are; by default those of the table's CapFilt job.

    Raises:
        DataError: the table has no such job, and none is named.
        CheckpointError: a model is not there, or is another one than that of the job.
    """
    known = known_filters(table)
    if filters:
        return name_filters(filters, known)
    stored = column_state(table, METADATA_KEY).get("filter")
    if not stored or not known:
        raise DataError(
            f"{table.uri}: no filter has scored it yet: run `openblip capfilt run`, or name a "
            "model with --filter"
        )
    sources = [stored] if isinstance(stored, str) else stored
    try:
        named = name_filters(sources, known)
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}; it is the filter of the table's job: name where it lies now with --filter"
        ) from error
    for one in named:
        if one.fingerprint not in known:
            raise CheckpointError(
                f"{one.source} is the model {one.fingerprint} now, but the table was scored with "
                f"{', '.join(known)}: name that one with --filter, or run CapFilt again"
            )
    return named


@dataclass(frozen=True)
class ScoreReport:
    """What was computed."""

    scores: tuple[str, ...]
    """Names of the scores that the table has now."""
    rows: int
    """That were computed; the others were done before."""
    missing: tuple[str, ...]
    """What could not be, with the reason."""


def score_table(
    table: PairTable,
    settings: ScoreSettings | None = None,
    *,
    device: str | None = None,
    show_progress: bool = True,
) -> ScoreReport:
    """Adds the scores of this module, and those of further filters, as columns of a table.

    A call that was stopped goes on with the parts that are missing; nothing is done again for the
    same table, texts, models and settings. Neighbours and repetitions are those of the whole
    table, so that a table which has grown is scored anew.

    Args:
        table: with web rows.
        settings: models and sample.
        device: by default the GPU where there is one.
        show_progress: on stderr.

    Raises:
        DataError: no filter is known, or no image can be read.
        CheckpointError, MissingHead: a model cannot be used.
    """
    settings = settings or ScoreSettings()
    check_reachable(table)
    if not len(table):
        raise DataError(f"{table.uri} has no rows")
    named = filters_for(table, settings.filters)
    known = known_filters(table)
    computed = [one for one in named if one.fingerprint not in known]
    _refuse_names(table, computed)
    told = settings_told(table, settings, named)
    # JSON has no tuples: what is compared with a stored note must be as it is read again.
    state = column_state(table, SCORES_KEY)
    wanted = [score_column("captions", name) for name in ("contrast", "length")]
    # Columns that another CapFilt job has dropped are made anew, whatever the note says.
    if state and not set(wanted) <= set(table.columns):
        table.update_metadata({SCORES_KEY: "{}"})
        state = {}
    rows = 0
    # Apart from the settings: where a model lies decides no score.
    sources = {one.fingerprint: one.source for one in named}
    if state.get("settings") != told or state.get("rows") != len(table):
        scorer = TextScorer(table, settings, named, computed, device)
        rows = compute_columns(
            table,
            SCORES_KEY,
            told,
            lambda some: _columns_of(scorer, table, some),
            show_progress=show_progress,
            beside={SOURCES_KEY: json.dumps(sources)},
        )
    elif column_state(table, SOURCES_KEY) != sources:  # the same models, elsewhere
        table.update_metadata({SOURCES_KEY: json.dumps(sources)})
    _write_copies(table)
    there = scores_of(table)
    missing = {name: _WHY_MISSING[name] for name in TABLE_SCORES if name not in there}
    return ScoreReport(there, rows, tuple(f"{name}: {why}" for name, why in missing.items()))


_WHY_MISSING = {
    **dict.fromkeys(OF_GIVEN, "there are no synthetic texts (`openblip capfilt run`)"),
    "copies": "images were not compared with each other yet (`openblip data duplicates`)",
    "unknown": "none of the filters has a vocabulary of whole words",
    **dict.fromkeys(("contrast", "common", "frequency", "length"), "not computed"),
}


def settings_told(
    table: PairTable, settings: ScoreSettings, named: Sequence[NamedFilter]
) -> dict[str, Any]:
    """All that decides the scores of a table, as JSON values."""
    first_token = _first_token(table)
    return {
        "filters": [[one.fingerprint, *one.scores] for one in named],
        "neighbours": settings.neighbours,
        "sample": settings.sample,
        "seed": settings.seed,
        # Neighbours and repetitions are of all rows, agreement is with certain synthetic texts.
        "rows": len(table),
        "capfilt": column_state(table, METADATA_KEY).get("fingerprint", ""),
        # What was noted before it was passed on goes on; what was scored, or fitted, with another
        # token than the job's is not believed any more.
        **({} if first_token == "[ENC]" else {"first_token": first_token}),
    }


def _refuse_names(table: PairTable, computed: Sequence[NamedFilter]) -> None:
    of_job = {name for own in known_filters(table).values() for name in own}
    for one in computed:
        if clash := of_job & set(one.scores):
            raise RecipeError(
                f"--filter {one.source}: the table has the score {min(clash)!r} of another model; "
                f"name this one's: --filter NAME={one.source}"
            )


def _write_copies(table: PairTable) -> None:
    """The score `copies`: log(1 + how many other images of the table are like a text's image)."""
    import pyarrow as pa

    if "duplicate_of" not in table.columns:
        return
    leaders: list[str] = []
    for batch in table.scan(["id", "duplicate_of"]):
        pairs = zip(batch["duplicate_of"].to_pylist(), batch["id"].to_pylist(), strict=True)
        # An image that is kept leads its own group.
        leaders += [leader or own for leader, own in pairs]
    _, groups, counts = np.unique(np.array(leaders), return_inverse=True, return_counts=True)
    copies = np.log1p(counts[groups] - 1)
    columns = [name for name in TEXT_COLUMNS.values() if name in table.columns]

    def of_rows(rows: range) -> "pa.Table":
        read = table.take(list(rows), ["origin", *columns]).to_pylist()
        names = {column: score_column(column, "copies") for column in columns}
        values = {
            names[column]: [
                [copies[number]] * len(row[column] or []) if row["origin"] == "web" else None
                for number, row in zip(rows, read, strict=True)
            ]
            for column in columns
        }
        return pa.table(values, schema=pa.schema([(n, pa.list_(pa.float32())) for n in values]))

    told = {
        "groups": hashlib.sha256(groups.tobytes()).hexdigest()[:16],
        "capfilt": column_state(table, METADATA_KEY).get("fingerprint", ""),
        "columns": columns,
    }
    if score_column("captions", "copies") not in table.columns:
        table.update_metadata({_COPIES_KEY: "{}"})
    compute_columns(table, _COPIES_KEY, told, of_rows, show_progress=False)


def _columns_of(scorer: TextScorer, table: PairTable, rows: range) -> "pa.Table":
    import pyarrow as pa

    written = "synthetic" in table.columns
    names = [name for name in scorer.names if written or name not in OF_GIVEN]
    values: dict[str, list[list[float] | None]] = {
        score_column(column, name): [None] * len(rows)
        for column in TEXT_COLUMNS.values()
        for name in names
        if column == "captions" or (written and name not in OF_GIVEN)
    }
    is_web = table.take(list(rows), ["origin"])["origin"].to_pylist()
    wanted = [row for row, origin in zip(rows, is_web, strict=True) if origin == "web"]
    size = scorer.settings.batch_size
    for start in range(0, len(wanted), size):
        batch = read_rows_of(scorer, table, wanted[start : start + size])
        both = [replace(row, texts=row.texts + row.synthetic) for row in batch]
        scores = scorer.score(both) if both else {}
        for place, row in enumerate(batch):
            at, given = row.row - rows.start, len(row.texts)
            for name in names:
                own = scores[name][place]
                values[score_column("captions", name)][at] = own[:given]
                if (column := score_column("synthetic", name)) in values:
                    values[column][at] = own[given:]
    # Half the room of float64, as the job's own scores have it.
    schema = pa.schema([(name, pa.list_(pa.float32())) for name in values])
    return pa.table(values, schema=schema)
