"""Which text contrast and decoder see where texts are weighed by how likely they are right."""

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from openblip.batches.loader import Batch, PairLoader
from openblip.batches.mixture import WeightedIndex
from openblip.batches.tokenizer import TextTokenizer
from openblip.table.table import PairRow, PairTable
from openblip.table.views import CaptionView

NUM_ROWS = 12
LoaderOf = Callable[..., PairLoader]


@pytest.fixture
def loader_of(tmp_path: Path, jpeg: Callable[..., bytes]) -> LoaderOf:
    """Makes a loader of images with a web and a synthetic text each.

    What is asked for is how likely the one and the other is right, and the view's rules.
    """
    tokenizer = TextTokenizer.train(["web synthetic"], vocab_size=60)

    def make(web: float, synthetic: float, batch_size: int = 7, **view: object) -> PairLoader:
        images = [jpeg(number) for number in range(NUM_ROWS)]
        rows = [PairRow(str(n), image, captions=["web"]) for n, image in enumerate(images)]
        table = PairTable.create(tmp_path / f"{len(list(tmp_path.iterdir()))}.lance", rows)
        likely = {"captions_itm": web, "synthetic_itm": synthetic}
        columns = {name: [[value]] * NUM_ROWS for name, value in likely.items()}
        table.add_columns(pa.table({"synthetic": [["synthetic"]] * NUM_ROWS, **columns}))
        settings = {"sources": ("web", "synthetic"), "weights": "calibrated", **view}
        index = CaptionView(**settings).resolve(table)  # type: ignore[arg-type]
        return PairLoader([WeightedIndex(index)], tokenizer, batch_size, 16, None, 8, seed=3)

    return make


def first(loader: PairLoader, count: int, start: int = 0) -> list[Batch]:
    with loader:
        return list(itertools.islice(loader.iterate(start), count))


def is_web(loader: PairLoader, batches: list[Batch]) -> tuple[np.ndarray, np.ndarray]:
    """Of all pairs, whether contrast sees the web text, and whether the decoder writes it."""
    decode = loader._tokenizer.decode
    seen = [decode(row) == "web" for batch in batches for row in batch.tokens]
    written = [decode(row) == "web" for batch in batches for row in batch.written[0]]
    return np.array(seen), np.array(written)


def drawn(loader: PairLoader, count: int = 300) -> tuple[np.ndarray, np.ndarray]:
    return is_web(loader, first(loader, count))


def agrees(found: np.ndarray, share: float) -> bool:
    """Whether a share is within four standard deviations of what it should be."""
    return bool(abs(found.mean() - share) <= 4 * np.sqrt(share * (1 - share) / len(found)))


def test_a_rule_does_not_bring_texts_that_are_hardly_ever_right(loader_of: LoaderOf) -> None:
    followed = 0.02 / 0.90
    # Where the rule is not followed, one of all is drawn, by weight.
    share = followed + (1 - followed) * 0.02 / 0.92
    for rules in ({"contrast_text": "web"}, {"decoder_text": "web"}):
        seen, written = drawn(loader_of(0.02, 0.90, **rules))
        asked, other = (seen, written) if "contrast_text" in rules else (written, seen)
        assert agrees(asked, share)
        assert asked.mean() < 0.07
        assert agrees(other, 0.02 / 0.92)


def test_a_rule_for_the_likeliest_text_is_always_followed(loader_of: LoaderOf) -> None:
    seen, written = drawn(loader_of(0.02, 0.90, contrast_text="synthetic", decoder_text="long"))
    assert not seen.any()
    assert not written.any()


def test_a_rule_is_always_followed_where_texts_are_as_likely(loader_of: LoaderOf) -> None:
    for weights in ("calibrated", "equal"):
        rules = {"contrast_text": "web", "decoder_text": "synthetic", "weights": weights}
        seen, written = drawn(loader_of(0.9, 0.9, **rules), 40)
        assert seen.all()
        assert not written.any()
    assert drawn(loader_of(0.02, 0.9, contrast_text="web", weights="equal"), 40)[0].all()


def test_readers_whose_rules_take_the_same_texts_get_the_same_text(loader_of: LoaderOf) -> None:
    # The web text is the shorter one.
    seen, written = drawn(loader_of(0.3, 0.6, contrast_text="web", decoder_text="short"))
    assert agrees(seen, 0.5 + 0.5 * 0.3 / 0.9)
    assert np.array_equal(seen, written)


def test_readers_that_draw_from_all_get_the_same_text(loader_of: LoaderOf) -> None:
    seen, written = drawn(loader_of(0.3, 0.6, contrast_text="web", decoder_text="any"))
    # Where the rule is not followed both draw from all: the decoder's web text is the contrast's.
    assert seen[written].all()
    assert agrees(written, 1 / 3)


def test_the_decision_is_the_same_after_a_restart_and_on_any_rank(loader_of: LoaderOf) -> None:
    loader = loader_of(0.3, 0.6, batch_size=4, contrast_text="web", decoder_text="synthetic")
    whole = first(loader, 9)
    again = loader_of(0.3, 0.6, batch_size=4, contrast_text="web", decoder_text="synthetic")
    for one, other in zip(whole[4:], first(again, 5, start=4), strict=True):
        assert one.ids == other.ids
        assert one.tokens.tolist() == other.tokens.tolist()
        assert one.written[0].tolist() == other.written[0].tolist()


def test_a_run_knows_its_data_by_every_weight(loader_of: LoaderOf) -> None:
    known = loader_of(0.3, 0.6).fingerprint()
    assert loader_of(0.3, 0.6).fingerprint() == known
    # The largest is the same, so that the images come as often; and yet other texts are drawn.
    assert loader_of(0.2, 0.6).fingerprint() != known
    assert loader_of(0.3, 0.7).fingerprint() != known


def test_views_that_weigh_nothing_are_known_as_they_always_were(loader_of: LoaderOf) -> None:
    for web in (0.2, 0.3):
        assert loader_of(web, 0.6, weights="equal").fingerprint() == "b908e155dc79a3ab"
        assert loader_of(web, 0.6, weights="equal", itm=0.1).fingerprint() == "b908e155dc79a3ab"
