import gc
import io
import itertools
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from openblip.batches.augmentation import Augmentation
from openblip.batches.corruption import Corruptions
from openblip.batches.images import every_image, every_image_of
from openblip.batches.loader import Batch, MadeTexts, PairLoader, text_id
from openblip.batches.mixture import WeightedIndex
from openblip.batches.step_loader import copied_ahead
from openblip.batches.text import clean_caption
from openblip.batches.tokenizer import TextTokenizer, TokenBatch
from openblip.batches.transforms import eval_transform
from openblip.runtime.errors import DataError
from openblip.table.table import PairRow, PairTable
from openblip.table.views import CaptionView

SIZE = 16


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    numbers = " ".join(str(number) for number in range(100))
    return TextTokenizer.train(["a photo of picture number this is", numbers], vocab_size=200)


@pytest.fixture
def make(table: PairTable, tokenizer: TextTokenizer) -> Callable[..., PairLoader]:
    """Makes a loader of the 20-row table; keywords override its settings."""

    def loader(**changes: object) -> PairLoader:
        settings: dict[str, object] = {
            "batch_size": 4,
            "image_size": SIZE,
            "augmentation": Augmentation(),
            "max_tokens": 32,
            "seed": 3,
            "num_threads": 2,
        }
        return PairLoader([_whole(table)], tokenizer, **{**settings, **changes})

    return loader


def _whole(table: PairTable, weight: float = 1.0) -> WeightedIndex:
    return WeightedIndex(CaptionView().resolve(table), weight)


def _first(loader: PairLoader, count: int, start_step: int = 0) -> list[Batch]:
    with loader:
        return list(itertools.islice(loader.iterate(start_step), count))


def _assert_equal(one: Batch, other: Batch) -> None:
    assert (one.ids, one.step) == (other.ids, other.step)
    for name in ("images", "tokens", "mask", "image_ids", "text_ids"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name


def _num_threads() -> int:
    return sum(thread.name.startswith("openblip-data") for thread in threading.enumerate())


def test_a_batch_has_the_promised_shapes_and_types(make: Callable[..., PairLoader]) -> None:
    (batch,) = _first(make(), 1)
    assert batch.images.shape == (4, 3, SIZE, SIZE)
    assert batch.images.dtype == torch.float32
    assert batch.tokens.dtype == batch.image_ids.dtype == batch.text_ids.dtype == torch.int64
    assert batch.mask.dtype == torch.bool
    assert batch.tokens.shape == batch.mask.shape
    assert batch.tokens.shape[1] % 8 == 0
    assert batch.ids == tuple(f"r{row}" for row in batch.image_ids.tolist())
    assert batch.step == 0


def test_texts_are_the_captions_of_their_rows_behind_the_prefix(
    make: Callable[..., PairLoader], tokenizer: TextTokenizer
) -> None:
    for batch in _first(make(prefix="a photo of "), 5):
        for row, tokens, key in zip(batch.image_ids, batch.tokens, batch.text_ids, strict=True):
            captions = [f"picture number {row}", f"this is {row}"]
            assert tokens[0] == tokenizer.special.cls
            assert tokenizer.decode(tokens) in [f"a photo of {caption}" for caption in captions]
            assert key in [text_id(caption) for caption in captions]


def test_an_epoch_shows_every_row_once_and_the_next_one_in_another_order(
    make: Callable[..., PairLoader],
) -> None:
    loader = make()
    assert loader.batches_per_epoch == 5
    rows = [row for batch in _first(loader, 10) for row in batch.image_ids.tolist()]
    assert sorted(rows[:20]) == sorted(rows[20:]) == list(range(20))
    assert rows[:20] != rows[20:]


def test_the_batch_in_which_an_epoch_ends_goes_on_with_the_next(
    make: Callable[..., PairLoader],
) -> None:
    loader = make(batch_size=6)
    assert loader.batches_per_epoch == 20 / 6
    rows = [row for batch in _first(loader, 10) for row in batch.image_ids.tolist()]
    for epoch in range(3):
        assert sorted(rows[20 * epoch : 20 * (epoch + 1)]) == list(range(20))


def test_the_order_does_not_depend_on_the_batch_size(make: Callable[..., PairLoader]) -> None:
    orders = [
        [key for batch in _first(make(batch_size=size), 60 // size) for key in batch.ids]
        for size in (3, 4, 10)
    ]
    assert orders[0] == orders[1] == orders[2]


def test_other_captions_come_in_other_epochs(make: Callable[..., PairLoader]) -> None:
    loader = make(batch_size=20)
    seen = [dict(zip(b.ids, b.text_ids.tolist(), strict=True)) for b in _first(loader, 8)]
    num_texts = [len({epoch[f"r{row}"] for epoch in seen}) for row in range(20)]
    # A row with two captions misses one of them in 8 epochs once in 128 times.
    assert sum(num_texts) >= 38


@pytest.mark.parametrize("start_step", [1, 4, 7])
def test_starting_at_a_step_equals_skipping_to_it(
    make: Callable[..., PairLoader], start_step: int
) -> None:
    skipped = _first(make(), start_step + 2)[start_step:]
    for one, other in zip(skipped, _first(make(), 2, start_step), strict=True):
        _assert_equal(one, other)


@pytest.mark.parametrize("num_threads", [1, 3, 8])
def test_the_number_of_threads_changes_nothing(
    make: Callable[..., PairLoader], num_threads: int
) -> None:
    threaded = _first(make(num_threads=num_threads), 6)
    for one, other in zip(_first(make(), 6), threaded, strict=True):
        _assert_equal(one, other)


def test_the_parts_of_two_ranks_make_the_global_batch(make: Callable[..., PairLoader]) -> None:
    ranks = [_first(make(batch_size=2, rank=rank, world_size=2), 6) for rank in range(2)]
    for whole, first, second in zip(_first(make(), 6), *ranks, strict=True):
        assert whole.ids == first.ids + second.ids
        for name in ("images", "image_ids", "text_ids"):
            parts = torch.cat([getattr(first, name), getattr(second, name)])
            assert torch.equal(getattr(whole, name), parts), name


def test_another_seed_gives_another_order(make: Callable[..., PairLoader]) -> None:
    (one,), (other,) = _first(make(batch_size=20), 1), _first(make(batch_size=20, seed=4), 1)
    assert one.ids != other.ids


def test_augmentation_differs_between_epochs_and_none_does_not(
    make: Callable[..., PairLoader],
) -> None:
    def image_of_row_0(epoch: int, augmentation: Augmentation | None) -> torch.Tensor:
        loader = make(batch_size=20, augmentation=augmentation)
        (batch,) = _first(loader, 1, start_step=epoch)
        return batch.images[batch.ids.index("r0")]

    assert not torch.equal(image_of_row_0(0, Augmentation()), image_of_row_0(1, Augmentation()))
    assert torch.equal(image_of_row_0(0, None), image_of_row_0(1, None))


def test_scaled_decoding_changes_pixels_and_nothing_else(
    tmp_path: Path, tokenizer: TextTokenizer, jpeg: Callable[..., bytes]
) -> None:
    rows = [PairRow(str(n), jpeg(n, 96, 96), captions=["x"]) for n in range(4)]
    parts = [_whole(PairTable.create(tmp_path / "t", rows))]
    plain, scaled = (
        _first(PairLoader(parts, tokenizer, 4, SIZE, Augmentation(), 8, 0, scaled_decoding=on), 1)
        for on in (False, True)
    )
    assert plain[0].ids == scaled[0].ids
    assert not torch.equal(plain[0].images, scaled[0].images)
    assert torch.equal(plain[0].tokens, scaled[0].tokens)


def test_equal_texts_have_equal_ids_that_never_change(
    tmp_path: Path, tokenizer: TextTokenizer, jpeg: Callable[..., bytes]
) -> None:
    captions = ["A dog.", "a dog !", "a cat"]
    rows = [PairRow(str(n), jpeg(n), captions=[text]) for n, text in enumerate(captions)]
    table = PairTable.create(tmp_path / "t", rows)
    loader = PairLoader([_whole(table)], tokenizer, 3, SIZE, None, 8, seed=0)
    (batch,) = _first(loader, 1)
    ids = dict(zip(batch.ids, batch.text_ids.tolist(), strict=True))
    assert ids["0"] == ids["1"] == text_id(clean_caption("A dog."))
    assert ids["2"] != ids["0"]
    assert text_id("a dog") == 7182415866560184703
    assert min(ids.values()) >= 0


@pytest.fixture
def mixed(
    table: PairTable, tmp_path: Path, tokenizer: TextTokenizer, jpeg: Callable[..., bytes]
) -> Callable[..., PairLoader]:
    """Makes a loader of the 20-row table, twice an epoch, and half of five other rows."""
    others = [
        PairRow(f"s{number}", jpeg(50 + number), captions=[f"number {number}"])
        for number in range(5)
    ]
    other = PairTable.create(tmp_path / "other.lance", others)

    def loader(**changes: object) -> PairLoader:
        parts = [_whole(table, 2.0), _whole(other, 0.5)]
        settings = {"batch_size": 6, "num_threads": 2, **changes}
        return PairLoader(
            parts,
            tokenizer,
            image_size=SIZE,
            augmentation=Augmentation(),
            max_tokens=32,
            seed=3,
            **settings,
        )

    return loader


def test_pairs_of_several_tables_come_with_their_own_texts(
    mixed: Callable[..., PairLoader], tokenizer: TextTokenizer
) -> None:
    # Two epochs, of 42 and 43 pairs.
    batches = _first(mixed(batch_size=5), 17)
    ids = [key for batch in batches for key in batch.ids]
    assert all(ids.count(f"r{row}") == 4 for row in range(20))
    assert all(ids.count(f"s{row}") == 1 for row in range(5))
    for batch in batches:
        for key, tokens in zip(batch.ids, batch.tokens, strict=True):
            number, text = key[1:], tokenizer.decode(tokens)
            expected = {f"picture number {number}", f"this is {number}"}
            assert text in (expected if key.startswith("r") else {f"number {number}"})


def test_a_row_that_comes_twice_in_an_epoch_looks_different_each_time(
    mixed: Callable[..., PairLoader],
) -> None:
    (batch,) = _first(mixed(batch_size=42), 1)
    images = [image for key, image in zip(batch.ids, batch.images, strict=True) if key == "r0"]
    assert len(images) == 2
    assert not torch.equal(*images)


def test_ranks_and_restarts_change_nothing_of_a_mixture(
    mixed: Callable[..., PairLoader],
) -> None:
    whole = _first(mixed(), 9)[7:]
    ranks = [_first(mixed(batch_size=2, rank=r, world_size=3), 2, start_step=7) for r in range(3)]
    for joint, *parts in zip(whole, *ranks, strict=True):
        assert joint.ids == sum((part.ids for part in parts), ())
        for name in ("images", "image_ids", "text_ids"):
            assert torch.equal(getattr(joint, name), torch.cat([getattr(p, name) for p in parts]))


def test_a_view_smaller_than_a_batch_says_the_numbers(make: Callable[..., PairLoader]) -> None:
    with pytest.raises(DataError, match=r"20 rows .* 6 x 4 = 24: lower .*--train.batch-size 20"):
        make(batch_size=6, world_size=4)


def test_a_broken_image_reaches_the_consumer_with_its_row(
    tmp_path: Path, tokenizer: TextTokenizer, jpeg: Callable[..., bytes]
) -> None:
    data = [jpeg(0), jpeg(1)[:200], jpeg(2)]
    rows = [PairRow(f"key{n}", image, captions=["x"]) for n, image in enumerate(data)]
    table = PairTable.create(tmp_path / "t", rows)
    loader = PairLoader([_whole(table)], tokenizer, 3, SIZE, None, 8, seed=0)
    with pytest.raises(DataError, match=r"row 1 \(id 'key1'\) of .*damaged"):
        next(loader.iterate())
    assert _num_threads() == 0


def test_a_batch_on_a_device_knows_the_one_that_it_was_copied_from(
    make: Callable[..., PairLoader],
) -> None:
    device = torch.device("meta")
    with make() as loader:
        first, second = itertools.islice(copied_ahead(loader.iterate(), device), 2)
    for number, batch in enumerate((first, second)):
        assert batch.images.device == batch.mask.device == device
        assert batch.step == number
        assert torch.equal(batch.on_host.mask, loader.make(number).mask)
        assert batch.to(device) is batch
    # Other texts are none that the host has.
    other = replace(first, tokens=first.tokens[:, 1:], mask=first.mask[:, 1:])
    assert other.on_host is other
    here = loader.make(0)
    assert here.on_host is here
    assert here.to(torch.device("cpu")) is here


def test_threads_end_with_the_iterator(make: Callable[..., PairLoader]) -> None:
    with make() as loader:
        batches, others = loader.iterate(), loader.iterate(3)
        next(batches), next(others)
        assert _num_threads() > 0
    assert _num_threads() == 0
    with pytest.raises(StopIteration):
        next(batches)
    forgotten = make().iterate()
    next(forgotten)
    del forgotten
    gc.collect()
    assert _num_threads() == 0


def test_waiting_is_measured(make: Callable[..., PairLoader]) -> None:
    loader = make()
    assert loader.waited_seconds == 0
    _first(loader, 1)
    assert loader.waited_seconds > 0


def test_images_may_lie_outside_the_table(
    tmp_path: Path, tokenizer: TextTokenizer, jpeg: Callable[..., bytes]
) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg(0))
    row = PairRow("a", image_uri=str(path), captions=["x"])
    table = PairTable.create(tmp_path / "t", [row])
    loader = PairLoader([_whole(table)], tokenizer, 1, SIZE, None, 8, seed=0)
    (batch,) = _first(loader, 1)
    assert torch.equal(batch.images[0], eval_transform(Image.open(path), SIZE))
    path.unlink()
    with pytest.raises(DataError, match=r"row 0 \(id 'a'\).*No such file"):
        next(loader.iterate())


def test_images_come_in_the_order_of_the_rows(table: PairTable) -> None:
    rows = [5, 1, 19, 5, 0]
    batches = list(every_image(table, rows, batch_size=2, image_size=SIZE))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    images = torch.cat(batches)
    encoded = table.take(rows, ["image"])["image"].to_pylist()
    for image, data in zip(images, encoded, strict=True):
        assert torch.equal(image, eval_transform(Image.open(io.BytesIO(data)), SIZE))


def test_batches_of_images_may_differ_in_size(table: PairTable) -> None:
    rows = np.array([5, 1, 5, 0])
    found = list(every_image_of(table, [rows[:3], rows[3:]], SIZE))
    assert [len(images) for images in found] == [3, 1]
    (expected,) = every_image(table, rows, batch_size=4, image_size=SIZE)
    assert torch.equal(torch.cat(found), expected)


def test_a_broken_image_is_named_after_the_good_ones_before_it(
    tmp_path: Path, jpeg: Callable[..., bytes]
) -> None:
    def rows() -> Iterator[PairRow]:
        for number in range(5):
            data = b"no image" if number in (1, 4) else jpeg(number)
            yield PairRow(str(number), data)

    table = PairTable.create(tmp_path / "t", rows())
    needed = every_image(table, np.array([0, 2, 3, 4]), batch_size=2, image_size=SIZE)
    expected = [eval_transform(Image.open(io.BytesIO(jpeg(n))), SIZE) for n in (0, 2)]
    assert torch.equal(next(needed), torch.stack(expected))
    with pytest.raises(DataError, match=r"row 4 of .*not an image"):
        next(needed)


def test_other_texts_in_the_same_rows_have_another_fingerprint(
    make: Callable[..., PairLoader],
    pair_rows: Callable[..., list[PairRow]],
    tokenizer: TextTokenizer,
    tmp_path: Path,
) -> None:
    def loader(name: str, rows: list[PairRow]) -> PairLoader:
        parts = [_whole(PairTable.create(tmp_path / name, rows))]
        return PairLoader(parts, tokenizer, 4, SIZE, None, 32, 3)

    other = [*pair_rows(19), replace(pair_rows(20)[19], captions=["another", "this is 19"])]
    assert loader("same", pair_rows(20)).fingerprint() == make().fingerprint()
    assert loader("other", other).fingerprint() != make().fingerprint()


@pytest.fixture
def made(table: PairTable) -> MadeTexts:
    """Both kinds of made texts; every other row of the table is a person's."""
    ids = [f"row-{number}" for number in range(20)]
    texts = [f"a photo of picture number {number}" for number in range(20)]
    own = tuple((name, (text,)) for name, text in zip(ids, texts, strict=True))
    return MadeTexts(corruptions=[Corruptions.of_rows(own)], given_tokens=6, typed_negatives=0.5)


def test_given_texts_stand_before_the_prompt_and_are_counted(
    make: Callable[..., PairLoader], made: MadeTexts, tokenizer: TextTokenizer
) -> None:
    prompt = "this is "
    batches = _first(make(made=made, prefix=prompt), 10)
    plain = _first(make(prefix=prompt), 10)
    special, seen = tokenizer.special, set()
    prompt_ids = tokenizer.pieces([prompt])[0]
    for batch, without in zip(batches, plain, strict=True):
        assert batch.ids == without.ids
        assert without.given_tokens is None
        assert without.corrupted is None
        assert batch.given_tokens is not None
        for number, given in enumerate(batch.given_tokens.tolist()):
            ids = TokenBatch(batch.tokens, batch.mask).row(number)
            assert ids[0] == special.cls
            assert given in (0, *range(2, 8))
            if given:
                # Cut to six, and ended: the caption is behind a [SEP] of its own.
                assert ids[given] == special.sep
                assert special.sep not in ids[1:given]
            assert ids[given + 1 :][: len(prompt_ids)] == prompt_ids
            seen.add(given)
    assert {0, 7} <= seen


def test_made_texts_do_not_depend_on_ranks_or_threads(
    make: Callable[..., PairLoader], made: MadeTexts
) -> None:
    whole = _first(make(made=made, batch_size=4), 3)
    halves = [
        _first(make(made=made, batch_size=2, rank=rank, world_size=2, num_threads=3), 3)
        for rank in (0, 1)
    ]
    for step, batch in enumerate(whole):
        for name in ("given_tokens", "text_ids"):
            parts = [getattr(half[step], name) for half in halves]
            assert torch.equal(torch.cat(parts), getattr(batch, name)), name


def test_typed_negatives_are_wrong_texts_of_a_share_of_the_rows(
    make: Callable[..., PairLoader], made: MadeTexts
) -> None:
    batches = _first(make(made=replace(made, given_tokens=0)), 20)
    masks = [batch.corrupted.mask.any(dim=1) for batch in batches if batch.corrupted is not None]
    assert 0.3 < torch.cat(masks).float().mean() < 0.7
    for batch in batches:
        assert batch.given_tokens is None
        assert batch.corrupted is not None
        width = min(batch.tokens.shape[1], batch.corrupted.ids.shape[1])
        same = (batch.corrupted.ids[:, :width] == batch.tokens[:, :width]).all(dim=1)
        assert not (same & batch.corrupted.mask.any(dim=1)).any()


def test_other_made_texts_are_other_data(make: Callable[..., PairLoader], made: MadeTexts) -> None:
    (own,) = made.corruptions
    other = replace(made, corruptions=[replace(own, boilerplate=("something else",))])
    prints = {make(made=texts).fingerprint() for texts in (None, made, other)}
    assert len(prints) == 3
    assert make(made=made).fingerprint() in prints


@pytest.fixture
def weighed(
    tmp_path: Path, tokenizer: TextTokenizer, jpeg: Callable[..., bytes]
) -> Callable[..., PairLoader]:
    """Makes a loader of a weighed view: ten rows with a given and a synthetic text each.

    Row 0 is a person's; of the others the texts are right with a probability of n / 10 and 0.3.
    """
    rows = [
        PairRow(str(n), jpeg(n), captions=[f"picture {n}"], origin="web" if n else "human")
        for n in range(10)
    ]
    table = PairTable.create(tmp_path / "weighed.lance", rows)
    table.add_columns(
        pa.table(
            {
                "captions_itm": [[n / 10] for n in range(10)],
                "synthetic": [[f"this {n}"] for n in range(10)],
                "synthetic_itm": [[0.3] for _ in range(10)],
            }
        )
    )
    view = CaptionView(sources=("human", "web", "synthetic"), weights="calibrated")

    def loader(**changes: object) -> PairLoader:
        fixed = {"batch_size": 3, "num_threads": 2, "seed": 3, **changes}
        images = {"image_size": SIZE, "augmentation": None, "max_tokens": 24}
        return PairLoader([WeightedIndex(view.resolve(table))], tokenizer, **images, **fixed)

    return loader


def test_texts_and_images_come_as_often_as_they_are_likely_right(
    weighed: Callable[..., PairLoader],
) -> None:
    loader = weighed(batch_size=5)
    best = [1, 0.3, 0.3, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    size = int(sum(best))
    assert loader.mixture.pairs_per_epoch == size
    batches = _first(loader, 500)
    given = {text_id(f"picture {n}"): n for n in range(10)}
    rows = np.array([int(key) for batch in batches for key in batch.ids])
    is_given = np.array([key in given for batch in batches for key in batch.text_ids.tolist()])
    counts = np.bincount(rows, minlength=10)
    assert np.abs(counts - len(rows) * np.array(best) / sum(best)).max() < 5
    for n in range(10):
        share = 1.0 if n == 0 else (n / 10) / (n / 10 + 0.3)
        drawn = is_given[rows == n].mean()
        # Four standard deviations of as many independent draws.
        assert abs(drawn - share) <= 4 * np.sqrt(share * (1 - share) / counts[n]) + 1e-9


def test_ranks_threads_and_restarts_change_nothing_of_a_weighed_view(
    weighed: Callable[..., PairLoader],
) -> None:
    whole = _first(weighed(batch_size=4, num_threads=1), 9)
    ranks = [_first(weighed(batch_size=2, rank=rank, world_size=2), 9) for rank in range(2)]
    for one, first, second in zip(whole, *ranks, strict=True):
        assert one.ids == first.ids + second.ids
        assert torch.equal(one.text_ids, torch.cat([first.text_ids, second.text_ids]))
    for one, other in zip(whole[4:], _first(weighed(batch_size=4), 5, start_step=4), strict=True):
        _assert_equal(one, other)


def test_other_weights_are_other_data(weighed: Callable[..., PairLoader]) -> None:
    loader = weighed()
    (part,) = loader.mixture.parts
    other = PairLoader(
        [WeightedIndex(replace(part.index, weights=np.ones(10, np.float32)))],
        loader._tokenizer,
        3,
        SIZE,
        None,
        8,
        seed=3,
    )
    assert other.fingerprint() != loader.fingerprint() == weighed().fingerprint()
    assert "5 of 10 rows" in loader.summary()[0]


def test_short_texts_for_the_contrast_and_long_ones_for_the_decoder(
    tmp_path: Path, tokenizer: TextTokenizer, jpeg: Callable[..., bytes]
) -> None:
    captions = ["this", "this is number", "this is picture number 3"]
    rows = [PairRow(str(n), jpeg(n), captions=captions[: n + 1]) for n in range(3)]
    table = PairTable.create(tmp_path / "t", rows)

    def seen(**rules: str) -> tuple[dict[str, set[str]], dict[str, set[str]]]:
        index = CaptionView(**rules).resolve(table)  # type: ignore[arg-type]
        loader = PairLoader([WeightedIndex(index)], tokenizer, 3, SIZE, None, 32, seed=0)
        read: dict[str, set[str]] = {"0": set(), "1": set(), "2": set()}
        written: dict[str, set[str]] = {"0": set(), "1": set(), "2": set()}
        for batch in _first(loader, 24):
            tokens = batch.written[0]
            for key, one, other, own in zip(
                batch.ids, batch.tokens, tokens, batch.text_ids.tolist(), strict=True
            ):
                read[key].add(tokenizer.decode(one))
                written[key].add(tokenizer.decode(other))
                assert own == text_id(tokenizer.decode(one))
        return read, written

    everything = {key: set(captions[: int(key) + 1]) for key in "012"}
    assert seen() == (everything, everything)
    short = {"0": {"this"}, "1": {"this"}, "2": set(captions[:2])}
    long = {"0": {"this"}, "1": {"this is number"}, "2": set(captions[1:])}
    assert seen(contrast_text="short", decoder_text="long") == (short, long)
    assert seen(contrast_text="short") == (short, everything)
    assert seen(decoder_text="long") == (everything, long)
    assert seen(contrast_text="long", decoder_text="long") == (long, long)


def test_texts_of_a_source_where_there_are_any(weighed: Callable[..., PairLoader]) -> None:
    loader = weighed(batch_size=5)
    (part,) = loader.mixture.parts
    rules = {"contrast_text": "web", "decoder_text": "synthetic"}
    view = replace(part.index.view, weights="equal", **rules)
    two = PairLoader(
        [WeightedIndex(replace(part.index, view=view))],
        loader._tokenizer,
        5,
        SIZE,
        None,
        24,
        seed=3,
    )
    assert two.make(0).decoder_tokens is not None
    assert loader.make(0).decoder_tokens is loader.make(0).decoder_mask is None
    for batch in _first(two, 4):
        for key, seen, written in zip(batch.ids, batch.tokens, batch.written[0], strict=True):
            assert loader._tokenizer.decode(seen) == f"picture {key}"
            # A person's image has no other text.
            expected = f"picture {key}" if key == "0" else f"this {key}"
            assert loader._tokenizer.decode(written) == expected
