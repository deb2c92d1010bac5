import gc
import io
import itertools
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from openblip.batches.augmentation import Augmentation
from openblip.batches.loader import (
    Batch,
    PairLoader,
    every_image,
    every_image_of,
    iterate_images,
    text_id,
)
from openblip.batches.mixture import WeightedIndex
from openblip.batches.step_loader import copied_ahead
from openblip.batches.text import clean_caption
from openblip.batches.tokenizer import TextTokenizer
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
    with pytest.raises(DataError, match=r"20 rows .* 6 x 4 = 24: lower the batch size"):
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


def test_images_are_iterated_in_the_order_of_the_rows(table: PairTable) -> None:
    rows = [5, 1, 19, 5, 0]
    batches = list(iterate_images(table, rows, batch_size=2, image_size=SIZE, num_threads=3))
    assert [batch.rows.tolist() for batch in batches] == [[5, 1], [19, 5], [0]]
    assert all(batch.errors == {} for batch in batches)
    images = torch.cat([batch.images for batch in batches])
    encoded = table.take(rows, ["image"])["image"].to_pylist()
    for image, data in zip(images, encoded, strict=True):
        assert torch.equal(image, eval_transform(Image.open(io.BytesIO(data)), SIZE))


def test_batches_of_images_may_differ_in_size(table: PairTable) -> None:
    rows = np.array([5, 1, 5, 0])
    found = list(every_image_of(table, [rows[:3], rows[3:]], SIZE))
    assert [len(images) for images in found] == [3, 1]
    (expected,) = every_image(table, rows, batch_size=4, image_size=SIZE)
    assert torch.equal(torch.cat(found), expected)


def test_broken_images_are_told_beside_the_good_ones(
    tmp_path: Path, jpeg: Callable[..., bytes]
) -> None:
    def rows() -> Iterator[PairRow]:
        for number in range(5):
            data = b"no image" if number in (1, 4) else jpeg(number)
            yield PairRow(str(number), data)

    table = PairTable.create(tmp_path / "t", rows())
    found = list(iterate_images(table, np.arange(5), batch_size=2, image_size=SIZE))
    assert [batch.rows.tolist() for batch in found] == [[0], [2, 3], []]
    assert [len(batch.images) for batch in found] == [1, 2, 0]
    assert [list(batch.errors) for batch in found] == [[1], [], [4]]
    assert "not an image" in found[0].errors[1]

    needed = every_image(table, np.array([0, 2, 3, 4]), batch_size=2, image_size=SIZE)
    assert torch.equal(next(needed)[0], found[0].images[0])
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
