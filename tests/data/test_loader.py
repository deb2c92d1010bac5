import gc
import io
import itertools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from openblip.data.loader import Batch, PairLoader, iterate_images, text_id
from openblip.data.table import PairRow, PairTable
from openblip.data.text import clean_caption
from openblip.data.tokenizer import TextTokenizer
from openblip.data.transforms import Augmentation, eval_transform
from openblip.data.views import CaptionView
from openblip.errors import DataError

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
            "view": CaptionView(),
            "batch_size": 4,
            "image_size": SIZE,
            "augmentation": Augmentation(),
            "max_tokens": 32,
            "seed": 3,
            "num_threads": 2,
        }
        return PairLoader(table, tokenizer=tokenizer, **{**settings, **changes})

    return loader


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


def test_the_last_incomplete_batch_of_an_epoch_is_left_out(make: Callable[..., PairLoader]) -> None:
    loader = make(batch_size=6)
    assert loader.batches_per_epoch == 3
    rows = [row for batch in _first(loader, 3) for row in batch.image_ids.tolist()]
    assert len(set(rows)) == 18


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


def test_equal_texts_have_equal_ids_that_never_change(
    tmp_path: Path, tokenizer: TextTokenizer, jpeg: Callable[..., bytes]
) -> None:
    captions = ["A dog.", "a dog !", "a cat"]
    rows = [PairRow(str(n), jpeg(n), captions=[text]) for n, text in enumerate(captions)]
    table = PairTable.create(tmp_path / "t", rows)
    loader = PairLoader(table, CaptionView(), tokenizer, 3, SIZE, None, 8, seed=0)
    (batch,) = _first(loader, 1)
    ids = dict(zip(batch.ids, batch.text_ids.tolist(), strict=True))
    assert ids["0"] == ids["1"] == text_id(clean_caption("A dog."))
    assert ids["2"] != ids["0"]
    assert text_id("a dog") == 7182415866560184703
    assert min(ids.values()) >= 0


def test_a_view_smaller_than_a_batch_says_the_numbers(make: Callable[..., PairLoader]) -> None:
    with pytest.raises(DataError, match=r"20 rows .* 6 x 4 = 24: lower the batch size"):
        make(batch_size=6, world_size=4)


def test_a_broken_image_reaches_the_consumer_with_its_row(
    tmp_path: Path, tokenizer: TextTokenizer, jpeg: Callable[..., bytes]
) -> None:
    data = [jpeg(0), jpeg(1)[:200], jpeg(2)]
    rows = [PairRow(f"key{n}", image, captions=["x"]) for n, image in enumerate(data)]
    table = PairTable.create(tmp_path / "t", rows)
    loader = PairLoader(table, CaptionView(), tokenizer, 3, SIZE, None, 8, seed=0)
    with pytest.raises(DataError, match=r"row 1 \(id 'key1'\) of .*damaged"):
        next(loader.iterate())
    assert _num_threads() == 0


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
    loader = PairLoader(table, CaptionView(), tokenizer, 1, SIZE, None, 8, seed=0)
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
