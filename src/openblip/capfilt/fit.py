"""From many scores to one: `right`, the calibrated probability that a text is right.

What is learnt from: human pairs of the table, whose texts are right, and typed corruptions of them,
which are wrong (or right, with names added); and what people have said of its web and synthetic
texts. Corrupted texts get their scores from the same models and the same code as the table's own.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from openblip.batches.corruption import Corruptions
from openblip.batches.shuffle import named_seed
from openblip.batches.transforms import eval_transform
from openblip.capfilt.captioners import divided
from openblip.capfilt.combination import (
    Combination,
    Examples,
    at_base_rate,
    check_library,
    combine,
    share_of_right,
)
from openblip.capfilt.filters import NamedFilter, name_filters
from openblip.capfilt.job import METADATA_KEY
from openblip.capfilt.scores import (
    OF_GIVEN,
    SOURCES_KEY,
    RowTexts,
    ScoreSettings,
    TextScorer,
    known_filters,
    read_rows_of,
    settings_told,
)
from openblip.capfilt.select import FIT_REPORT
from openblip.inference.blip import Blip
from openblip.inference.decoding import Decoding
from openblip.inference.loading import load
from openblip.runtime.errors import CheckpointError, DataError, OpenBlipError, RecipeError, one_line
from openblip.runtime.progress import Progress
from openblip.runtime.ranges import Count, Seed, check_ranges
from openblip.table.agreement import AgreedTexts
from openblip.table.columns import column_state, compute_columns
from openblip.table.judging import string_values
from openblip.table.reviews import PARTIAL_SAMPLES, verdicts_digest
from openblip.table.scores import (
    FIT_KEY,
    RIGHT,
    SCORES_KEY,
    TEXT_COLUMNS,
    score_column,
    scores_among,
    sources_with,
)
from openblip.table.table import PairTable

if TYPE_CHECKING:
    import pyarrow as pa

_LEAST_IMAGES = 50
_LEAST_REVIEWED = 30
# Of the weight of right texts, the part of those with added names; the wrong kinds share equally.
_NAMED_PART = 0.2


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """What decides a fit, besides the table."""

    filters: tuple[str, ...] = ()
    """Where the models of the table's scores lie now; by default where they were."""
    captioners: tuple[str, ...] = ()
    """Where the captioners of the table's CapFilt job lie now; by default where they were."""
    images: Count = 1000
    """Human images whose texts are corrupted; drawn by the seed where there are more."""
    folds: Count = 5
    """Of the cross-validation."""
    batch_size: Count = 32
    """Images that are scored together."""
    seed: Seed = 0
    """Decides images, corruptions, folds and models."""
    partly_is_right: bool = False
    """Whether a reviewed text with a wrong detail is right."""

    def __post_init__(self) -> None:
        """Checks every field."""
        check_ranges(self)
        if self.folds < 2:
            raise RecipeError(f"folds is {self.folds}; give at least 2")


@dataclass(frozen=True)
class SourceFit:
    """The fit for the texts of one source."""

    source: str
    """`web` or `synthetic`."""
    share: float
    """Estimated share of right texts in the table, by which probabilities are moved."""
    share_from: str
    """`scores` (expectation-maximisation) or `verdicts`."""
    told: dict[str, Any]
    """Of `Combined`."""


@dataclass(frozen=True)
class FitReport:
    """What was fitted; stored in the table's metadata."""

    images: int
    """Human images that were corrupted."""
    texts: dict[str, int]
    """Their texts, by kind."""
    fits: tuple[SourceFit, ...]
    left_out: tuple[str, ...]
    """What could not be used, with the reason."""

    def as_plain(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)

    @classmethod
    def of(cls, stored: dict[str, Any]) -> "FitReport":
        """That of which a table's metadata has the values."""
        fits = tuple(SourceFit(**fit) for fit in stored["fits"])
        left_out = tuple(stored["left_out"])
        return cls(**{**stored, "fits": fits, "left_out": left_out})


def fit_table(
    table: PairTable,
    settings: FitSettings | None = None,
    *,
    device: str | None = None,
    show_progress: bool = True,
) -> FitReport:
    """Fits the score `right` and writes it beside the web and synthetic texts of a table.

    The same table, verdicts and settings give the same probabilities.

    Args:
        table: with human pairs in its training split, and the scores of `score_table`.
        settings: of the fit.
        device: by default the GPU where there is one.
        show_progress: on stderr.

    Raises:
        DataError: a score is missing or out of date, or there are too few human pairs.
        CheckpointError: a model of the scores is not there any more.
        RecipeError: scikit-learn is not installed.
    """
    settings = settings or FitSettings()
    check_library()
    score_settings, named = _scores_of(table, settings)
    features = _features(table, named)
    left_out = [f"{name}: no model of this table gives it" for name in _strange(table, features)]
    rows = _human_rows(table, settings)
    writer, why = None, ""
    if set(OF_GIVEN) & set(features["web"]):
        writer, why = _writer(table, settings, device)
    if why:
        left_out += [f"{name}: {why}" for name in OF_GIVEN]
        features["web"] = [name for name in features["web"] if name not in OF_GIVEN]
    verdicts = table.verdicts()
    # Where models lie, and what goes through them together, decides nothing.
    elsewhere = ("filters", "captioners", "batch_size")
    told = {
        "scores": column_state(table, SCORES_KEY)["settings"],
        "settings": {k: v for k, v in asdict(settings).items() if k not in elsewhere},
        "features": features,
        "verdicts": verdicts_digest(verdicts),
    }
    if not sources_with(table, RIGHT) or not column_state(table, FIT_REPORT):
        # Another job has dropped the column: the note of a fit that has it is not to be believed.
        # Nor is one that lacks its report.
        table.update_metadata({FIT_KEY: "{}"})
    elif column_state(table, FIT_KEY) == {"settings": told, "rows": len(table)}:
        return FitReport.of(column_state(table, FIT_REPORT))
    computed = [one for one in named if set(one.scores) & set(features["web"])]
    scorer = TextScorer(table, score_settings, named, computed, device)
    made, kinds = _corrupted(table, scorer, writer, rows, settings, show_progress)
    fits, combinations = [], {}
    # Synthetic texts are of another distribution, and lack the scores that compare with them.
    for source, names in features.items():
        own = _scored_texts(table, TEXT_COLUMNS[source], names)
        reviewed = _reviewed(table, source, own, settings) if verdicts else None
        examples = _examples(made, names, own, reviewed)
        found = combine(examples, folds=settings.folds, seed=settings.seed)
        share, share_from = _base_rate(found, own, reviewed)
        combinations[TEXT_COLUMNS[source]] = (found, share)
        fits.append(SourceFit(source, share, share_from, asdict(found.told)))
    report = FitReport(len(np.unique(made.images)), kinds, tuple(fits), tuple(left_out))
    compute_columns(
        table,
        FIT_KEY,
        told,
        lambda some: _columns_of(table, some, combinations),
        show_progress=show_progress,
        beside={FIT_REPORT: json.dumps(report.as_plain())},
    )
    return FitReport.of(column_state(table, FIT_REPORT))


def _scores_of(
    table: PairTable, settings: FitSettings
) -> tuple[ScoreSettings, tuple[NamedFilter, ...]]:
    """How the table was scored, and the models that did it.

    Raises:
        DataError: it was not, or it has changed since.
        CheckpointError: a model is not there.
    """
    remedy = f"run `openblip capfilt scores {table.uri}` first"
    stored = column_state(table, SCORES_KEY)
    if not stored or score_column("captions", "contrast") not in table.columns:
        raise DataError(f"{table.uri} has no score 'contrast' of its given texts: {remedy}")
    told = stored["settings"]
    score_settings = ScoreSettings(
        neighbours=told["neighbours"], sample=told["sample"], seed=told["seed"]
    )
    known = {**known_filters(table), **{key: tuple(own) for key, *own in told["filters"]}}
    sources = settings.filters or tuple(column_state(table, SOURCES_KEY).values())
    named = name_filters(sources, known)
    found = {one.fingerprint: one for one in named}
    if lacking := [key for key, *_ in told["filters"] if key not in found]:
        raise CheckpointError(
            f"{table.uri} was scored with the model {lacking[0]}, which is not among "
            f"{', '.join(one.source for one in named)}: name where it lies now with --filter"
        )
    ordered = tuple(found[key] for key, *_ in told["filters"])
    if settings_told(table, score_settings, ordered) != told:
        raise DataError(
            f"{table.uri} has changed since its scores were computed (rows or synthetic texts): "
            f"{remedy}"
        )
    return score_settings, ordered


def _features(table: PairTable, named: Sequence[NamedFilter]) -> dict[str, list[str]]:
    """The scores that are combined, by source."""
    own = {name for one in named for name in one.scores}
    given = own | {"contrast", *OF_GIVEN, "common", "frequency", "length", "unknown"}
    features = {}
    for source, column in TEXT_COLUMNS.items():
        there = [name for name in scores_among(table.columns, column) if name in given]
        # An image's copies say nothing of which of its texts is right.
        if there and column in table.columns:
            features[source] = there
    return features


def _strange(table: PairTable, features: dict[str, list[str]]) -> list[str]:
    there = scores_among(table.columns, "captions")
    return [n for n in there if n not in features.get("web", []) and n not in (RIGHT, "copies")]


def _human_rows(table: PairTable, settings: FitSettings) -> list[int]:
    """Rows of human pairs of the training split, drawn by the seed.

    Raises:
        DataError: there are too few.
    """
    rows, start = [], 0
    for batch in table.scan(["origin", "split", "captions"]):
        is_human = string_values(batch["origin"]) == "human"
        is_human &= string_values(batch["split"]) == "train"
        is_human &= np.asarray(batch["captions"].value_lengths().fill_null(0)) > 0
        rows += (start + np.flatnonzero(is_human)).tolist()
        start += batch.num_rows
    if len(rows) < _LEAST_IMAGES:
        raise DataError(
            f"{table.uri} has {len(rows)} human images with texts in its split 'train', and a fit "
            f"needs {_LEAST_IMAGES}: import annotated pairs beside the web's "
            "(`openblip data import ... --origin human`)"
        )
    generator = np.random.default_rng(settings.seed)
    # The first of a permutation: more images have the fewer among them.
    chosen = generator.permutation(len(rows))[: settings.images]
    return sorted(rows[place] for place in chosen.tolist())


class _Writer:
    """The captioners of a table's job: what they would have written for a human image."""

    def __init__(self, captioners: Sequence[Blip], stored: dict[str, Any]) -> None:
        self._captioners, self._stored = captioners, stored
        self._decoding = Decoding(**stored["decoding"])

    def write(self, images: Sequence[Any], ids: Sequence[str]) -> list[list[str]]:
        """The synthetic texts of some images, as their rows would get them."""
        # As the job draws for a row of that id: what it would have written.
        seeds = [named_seed(self._stored["seed"], row_id) for row_id in ids]
        written: list[list[str]] = [[] for _ in ids]
        for captioner in self._captioners:
            prepared = torch.stack(
                [eval_transform(image, captioner.image_size) for image in images]
            )
            captions = captioner.generate(
                captioner.encode(prepared),
                self._decoding,
                prompt=self._stored["prompt"],
                seeds=seeds,
                num_captions=self._stored["num_captions"],
            )
            for of_image, own in zip(written, captions, strict=True):
                of_image += [caption.text for caption in own]
        return written


def _writer(
    table: PairTable, settings: FitSettings, device: str | None
) -> tuple[_Writer | None, str]:
    """The job's captioners; or none, and why."""
    from openblip.checkpoints.reading import model_fingerprint

    stored = column_state(table, METADATA_KEY)
    sources = settings.captioners or stored.get("captioner") or ()
    sources = (sources,) if isinstance(sources, str) else tuple(sources)
    if any(divided(source)[0] != "ours" for source in sources):
        return None, "captioners that are not ours do not write for human images yet"
    if stored.get("given"):
        return None, "its captioner has read the given text, which would be a corrupted one here"
    prints = stored.get("captioner_fingerprint", [])
    prints = [prints] if isinstance(prints, str) else prints
    try:
        found = [model_fingerprint(source) for source in sources]
        if found != list(prints):
            return None, "its captioner is not where it was; name it with --captioner"
        return _Writer([load(source, device) for source in sources], stored), ""
    except OpenBlipError as error:
        return None, f"human images get no synthetic text ({one_line(error)})"


@dataclass(frozen=True, eq=False)
class _Made:
    """Texts of human images with all their scores."""

    scores: dict[str, NDArray[np.float64]]
    right: NDArray[np.bool_]
    kinds: NDArray[np.str_]
    images: NDArray[np.int64]


def _corrupted(
    table: PairTable,
    scorer: TextScorer,
    writer: _Writer | None,
    rows: Sequence[int],
    settings: FitSettings,
    show_progress: bool,
) -> tuple[_Made, dict[str, int]]:
    """Human texts and their corruptions, scored."""
    corruptions = Corruptions.of(table, settings.seed)
    scores: dict[str, list[float]] = {name: [] for name in scorer.names}
    told: list[tuple[str, bool, int]] = []
    # The writer and the filters read pixels, whatever embeddings the table has.
    with Progress("fit", len(rows), "images", enabled=show_progress) as progress:
        for start in range(0, len(rows), settings.batch_size):
            some = rows[start : start + settings.batch_size]
            batch = read_rows_of(scorer, table, some, wants_images=True)
            ids = dict(zip(some, table.take(some, ["id"])["id"].to_pylist(), strict=True))
            images = [row.image for row in batch]
            written = (
                writer.write(images, [ids[row.row] for row in batch]) if writer and batch else None
            )
            made = []
            for place, row in enumerate(batch):
                texts = list(corruptions.of_row(ids[row.row], [t for t in row.texts if t.strip()]))
                told += [(text.kind or "true", text.is_right, row.row) for text in texts]
                synthetic = written[place] if written is not None else []
                words = [text.text for text in texts]
                made.append(RowTexts(row.row, row.image, row.embedding, words, synthetic))
            for name, values in scorer.score(made).items():
                scores[name] += [value for own in values for value in own]
            progress.update(len(some))
    kinds = np.array([kind for kind, _, _ in told])
    counts = dict(
        zip(*(part.tolist() for part in np.unique(kinds, return_counts=True)), strict=True)
    )
    arrays = {name: np.array(values, dtype=np.float64) for name, values in scores.items()}
    right = np.array([is_right for _, is_right, _ in told])
    return _Made(arrays, right, kinds, np.array([row for _, _, row in told])), counts


@dataclass(frozen=True, eq=False)
class _Own:
    """The scored texts of one source in a table."""

    scores: NDArray[np.float64]
    """(texts, scores)."""
    rows: NDArray[np.int64]
    places: NDArray[np.int64]


def _scored_texts(table: PairTable, column: str, names: Sequence[str]) -> _Own:
    """All texts of a column that have scores.

    Raises:
        DataError: a row has another number of one score than of the others.
    """
    columns = [score_column(column, name) for name in names]
    parts, rows, places, start = [], [], [], 0
    for batch in table.scan(["origin", *columns]):
        matrix, of_row, place = _matrix(batch, columns, start, table.uri)
        parts.append(matrix)
        rows.append(of_row)
        places.append(place)
        start += batch.num_rows
    none = np.zeros(0, np.int64)
    return _Own(
        np.concatenate([np.zeros((0, len(names))), *parts]),
        np.concatenate([none, *rows]),
        np.concatenate([none, *places]),
    )


def _matrix(
    batch: "pa.RecordBatch | pa.Table", columns: Sequence[str], start: int, uri: str
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Scores (texts, columns) of the web rows of a batch that have all of them; row and place."""
    found: list[tuple[float, ...]] = []
    rows: list[int] = []
    places: list[int] = []
    lists = zip(*(batch[name].to_pylist() for name in columns), strict=True)
    origins = batch["origin"].to_pylist()
    for number, (origin, own) in enumerate(zip(origins, lists, strict=True)):
        if origin != "web" or any(values is None for values in own):
            continue
        if len({len(values) for values in own}) > 1:
            raise DataError(
                f"row {start + number} of {uri} has not equally many values of all scores: run "
                f"`openblip capfilt scores {uri}` again"
            )
        found += list(zip(*own, strict=True))
        rows += [start + number] * len(own[0])
        places += range(len(own[0]))
    # Reshaped, since of no text NumPy makes an array without columns.
    matrix = np.array(found, dtype=np.float64).reshape(len(found), len(columns))
    return matrix, np.array(rows, np.int64), np.array(places, np.int64)


@dataclass(frozen=True, eq=False)
class _Reviewed:
    """Texts of one source on which people agree."""

    at: NDArray[np.int64]
    """Places among the source's scored texts."""
    right: NDArray[np.bool_]
    weights: NDArray[np.float64]
    """One over the probability with which each was drawn, 1 on average."""
    is_drawn: NDArray[np.bool_]
    """Whether it was drawn into a sample of all texts, and not of a part, or looked at freely."""


def _reviewed(table: PairTable, source: str, own: _Own, settings: FitSettings) -> _Reviewed:
    places = {
        pair: at for at, pair in enumerate(zip(own.rows.tolist(), own.places.tolist(), strict=True))
    }
    agreed, start = AgreedTexts.of(table), 0
    found: list[tuple[int, bool, float, bool]] = []
    for batch in table.scan(["id"]):
        for place in agreed.places_in(batch["id"]).tolist():
            for text in agreed.of_row(batch["id"][place].as_py()):
                at = places.get((start + place, text.place))
                # Corrected words have no scores; the table's own were not right as they stand.
                if text.source != source or at is None or text.verdict is None:
                    continue
                is_right = text.verdict == "right" and not text.is_edited
                is_right |= settings.partly_is_right and text.verdict == "partly"
                drawn = [
                    record.probability
                    for record in text.records
                    if record.probability is not None
                    and not (record.sample or "").startswith(PARTIAL_SAMPLES)
                ]
                found.append((at, is_right, 1 / drawn[0] if drawn else np.nan, bool(drawn)))
        start += batch.num_rows
    weights = np.array([weight for _, _, weight, _ in found], dtype=np.float64)
    # Who looked freely chose by who knows what: such a text counts as an average one.
    mean = np.nanmean(weights) if np.isfinite(weights).any() else 1.0
    return _Reviewed(
        np.array([at for at, *_ in found], dtype=np.int64),
        np.array([is_right for _, is_right, *_ in found], dtype=bool),
        np.nan_to_num(weights / mean, nan=1.0),
        np.array([drawn for *_, drawn in found], dtype=bool),
    )


def _examples(made: _Made, names: Sequence[str], own: _Own, reviewed: _Reviewed | None) -> Examples:
    """What is learnt from: corruptions, right and wrong ones of equal weight, and verdicts."""
    # Half of the weight is right and half wrong, however many texts a kind gave: the base rate of
    # the table comes later, and no kind is learnt at the cost of the others.
    weights = np.zeros(len(made.right))
    wrong = sorted(set(made.kinds[~made.right].tolist()))
    parts = {kind: 0.5 / len(wrong) for kind in wrong}
    has_names = "names" in made.kinds
    parts |= {"true": 0.5 * (1 - _NAMED_PART * has_names), "names": 0.5 * _NAMED_PART}
    for kind, part in parts.items():
        inside = made.kinds == kind
        weights[inside] = part * len(weights) / max(int(inside.sum()), 1)
    scores = np.stack([made.scores[name] for name in names], axis=1)
    examples = Examples(tuple(names), scores, made.right, made.kinds, made.images, weights)
    if reviewed is None or not len(reviewed.at):
        return examples
    return Examples(
        tuple(names),
        np.concatenate([scores, own.scores[reviewed.at]]),
        np.concatenate([made.right, reviewed.right]),
        np.concatenate([made.kinds, np.full(len(reviewed.at), "reviewed")]),
        np.concatenate([made.images, own.rows[reviewed.at]]),
        np.concatenate([weights, reviewed.weights]),
    )


def _base_rate(found: Combination, own: _Own, reviewed: _Reviewed | None) -> tuple[float, str]:
    """The share of right texts among a table's own, and where it is from."""
    if reviewed is not None and reviewed.is_drawn.sum() >= _LEAST_REVIEWED:
        drawn = reviewed.is_drawn
        share = float(np.average(reviewed.right[drawn], weights=reviewed.weights[drawn]))
        return min(max(share, 0.02), 0.98), "verdicts"
    return share_of_right(found.predict(own.scores)) if len(own.scores) else 0.5, "scores"


def _columns_of(
    table: PairTable, rows: range, combinations: dict[str, tuple[Combination, float]]
) -> "pa.Table":
    import pyarrow as pa

    values: dict[str, list[list[float] | None]] = {}
    for column, (found, share) in combinations.items():
        columns = [score_column(column, name) for name in found.names]
        batch = table.take(list(rows), ["origin", *columns])
        # A row without scores (an unreadable image) gets no probability either.
        matrix, of_row, _ = _matrix(batch, columns, rows.start, table.uri)
        right = at_base_rate(found.predict(matrix), share) if len(matrix) else np.zeros(0)
        lists: list[list[float] | None] = [None] * len(rows)
        scored = zip(batch["origin"].to_pylist(), batch[columns[0]].to_pylist(), strict=True)
        for place, (origin, one) in enumerate(scored):
            if origin == "web" and one is not None:
                lists[place] = []
        for row, value in zip(of_row.tolist(), right.tolist(), strict=True):
            own = lists[row - rows.start]
            assert own is not None
            own.append(value)
        values[score_column(column, RIGHT)] = lists
    schema = pa.schema([(name, pa.list_(pa.float32())) for name in values])
    return pa.table(values, schema=schema)
