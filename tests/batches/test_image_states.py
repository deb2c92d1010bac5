"""States of images that are computed once, kept, found by content, and never taken for others."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from openblip.batches.image_states import (
    ImageStates,
    RowStates,
    content_digest,
    encoder_fingerprint,
    pixel_digest,
    states_of_rows,
)
from openblip.batches.transforms import eval_transform
from openblip.runtime.errors import DataError
from openblip.table.table import PairRow, PairTable

SIZE, SHAPE = 8, (4, 6)


class Encoder(nn.Module):
    """Mean colours of four stripes, twice; counts the images that it has seen."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))
        self.seen = 0

    def forward(self, images: Tensor) -> Tensor:
        self.seen += len(images)
        stripes = images.unflatten(2, (4, 2)).mean(dim=(3, 4)).transpose(1, 2)
        return torch.cat([stripes, stripes], dim=2) * self.factor


def picture(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def table_of(place: Path, numbers: list[int]) -> PairTable:
    rows = (PairRow(f"r{at}", picture(n), captions=["a"]) for at, n in enumerate(numbers))
    return PairTable.create(place, rows)


def expected(encoder: Encoder, numbers: list[int]) -> Tensor:
    opened = [Image.open(io.BytesIO(picture(number))).convert("RGB") for number in numbers]
    return encoder(torch.stack([eval_transform(image, SIZE) for image in opened])).detach()


def found(states: ImageStates, table: PairTable, encoder: Encoder) -> RowStates:
    with torch.no_grad():
        return states_of_rows(states, table, np.arange(len(table)), SIZE, encoder)


@pytest.fixture
def states(tmp_path: Path) -> ImageStates:
    return ImageStates(tmp_path / "states", SHAPE)


@pytest.fixture
def encoder() -> Encoder:
    return Encoder()


def test_states_are_those_of_the_encoder_to_the_rounding_of_float16(
    states: ImageStates, encoder: Encoder, tmp_path: Path
) -> None:
    rows = found(states, table_of(tmp_path / "t.lance", [0, 1, 2]), encoder)
    given = rows.read(np.array([2, 0, 2]))
    assert given.dtype == torch.float16
    torch.testing.assert_close(given.float(), expected(encoder, [2, 0, 2]), rtol=1e-3, atol=1e-4)


def test_what_is_known_is_not_computed_again_whoever_asks(
    states: ImageStates, encoder: Encoder, tmp_path: Path
) -> None:
    found(states, table_of(tmp_path / "t.lance", [0, 1, 2]), encoder)
    assert encoder.seen == 3
    # Other rows, another table, another process: images are known by what is in their files.
    again = ImageStates(states.folder, SHAPE)
    rows = found(again, table_of(tmp_path / "other.lance", [2, 3, 0]), encoder)
    # The new one, and one that is computed to compare.
    assert encoder.seen == 3 + 2
    torch.testing.assert_close(
        rows.read(np.arange(3)).float(), expected(encoder, [2, 3, 0]), rtol=1e-3, atol=1e-4
    )
    assert len(again) == 4


def test_an_image_that_was_changed_has_states_of_its_own(
    states: ImageStates, encoder: Encoder, tmp_path: Path
) -> None:
    file = tmp_path / "image.png"
    file.write_bytes(picture(0))
    table = PairTable.create(tmp_path / "t.lance", [PairRow("a", None, str(file), captions=["a"])])
    before = found(states, table, encoder).read(np.array([0]))
    file.write_bytes(picture(1))
    after = found(states, table, encoder).read(np.array([0]))
    assert not torch.equal(before, after)
    torch.testing.assert_close(after.float(), expected(encoder, [1]), rtol=1e-3, atol=1e-4)


def test_an_encoder_that_computes_something_else_is_noticed(
    states: ImageStates, encoder: Encoder, tmp_path: Path
) -> None:
    table = table_of(tmp_path / "t.lance", [0, 1])
    found(states, table, encoder)
    with pytest.raises(DataError, match=r"gives other states today .* remove the folder"):
        found(states, table, Encoder(1.1))


def test_weights_and_sizes_of_images_have_folders_of_their_own(encoder: Encoder) -> None:
    names = {
        encoder_fingerprint(encoder, 8),
        encoder_fingerprint(encoder, 16),
        encoder_fingerprint(Encoder(2.0), 8),
    }
    assert len(names) == 3
    assert encoder_fingerprint(Encoder(), 8) == encoder_fingerprint(encoder, 8)


@pytest.mark.parametrize("torn", ["index.bin", "states.f16"])
def test_a_process_may_be_killed_at_any_moment(
    states: ImageStates, encoder: Encoder, tmp_path: Path, torn: str
) -> None:
    found(states, table_of(tmp_path / "t.lance", [0, 1]), encoder)
    # States come first: behind the last record there may be anything.
    with (states.folder / torn).open("ab") as file:
        file.write(b"half of a rec")
    again = ImageStates(states.folder, SHAPE)
    assert len(again) == 2
    rows = found(again, table_of(tmp_path / "more.lance", [0, 1, 5]), encoder)
    torch.testing.assert_close(
        rows.read(np.arange(3)).float(), expected(encoder, [0, 1, 5]), rtol=1e-3, atol=1e-4
    )
    assert len(ImageStates(states.folder, SHAPE)) == 3


def test_two_processes_share_the_work(
    states: ImageStates, encoder: Encoder, tmp_path: Path
) -> None:
    other = ImageStates(states.folder, SHAPE)
    table = table_of(tmp_path / "t.lance", [0, 1])
    found(other, table, encoder)
    # Opened before the other one wrote: it looks again before it computes.
    found(states, table, encoder)
    assert encoder.seen == 2
    # And what both have computed at once is kept once.
    values = expected(encoder, [7])
    for one in (states, other):
        one.add([content_digest(picture(7))], [b"p" * 16], values)
    assert len(states) == len(other) == len(ImageStates(states.folder, SHAPE)) == 3


def test_damage_is_told_and_never_learnt_from(
    states: ImageStates, encoder: Encoder, tmp_path: Path
) -> None:
    rows = found(states, table_of(tmp_path / "t.lance", [0, 1]), encoder)
    place = states.folder / "states.f16"
    content = bytearray(place.read_bytes())
    content[-1] ^= 1
    place.write_bytes(content)
    reopened = RowStates(ImageStates(states.folder, SHAPE), rows.number_of_row)
    with pytest.raises(DataError, match="image 1 are damaged: remove it"):
        reopened.read(np.array([0, 1]))


def test_numbers_that_float16_cannot_hold_are_refused(states: ImageStates) -> None:
    with pytest.raises(DataError, match="not finite"):
        states.add([None], [b"p" * 16], torch.full((1, *SHAPE), 1e5))
    assert len(states) == 0


def test_an_image_that_cannot_be_read_names_its_row(
    states: ImageStates, encoder: Encoder, tmp_path: Path
) -> None:
    table = PairTable.create(tmp_path / "t.lance", [PairRow("bad", b"no image", captions=["a"])])
    with pytest.raises(DataError, match=r"row 0 \(id 'bad'\) of .*t.lance"):
        found(states, table, encoder)


def test_who_has_pixels_alone_finds_states_too(
    states: ImageStates, encoder: Encoder, tmp_path: Path
) -> None:
    found(states, table_of(tmp_path / "t.lance", [0, 1]), encoder)
    opened = [Image.open(io.BytesIO(picture(number))).convert("RGB") for number in (1, 9)]
    images = torch.stack([eval_transform(image, SIZE) for image in opened])
    encoder.seen = 0
    given = [states.looked_up(encoder)(images) for _ in range(2)]
    # The second one was not known, and is from then on.
    assert encoder.seen == 1
    assert torch.equal(*given)
    torch.testing.assert_close(given[0], encoder(images).detach(), rtol=1e-3, atol=1e-4)
    assert pixel_digest(images[0]) != pixel_digest(images[1])


def test_a_folder_of_other_states_is_refused(states: ImageStates) -> None:
    with pytest.raises(DataError, match="states of another form"):
        ImageStates(states.folder, (SHAPE[0], SHAPE[1] + 1))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OSError, match="Permission"):
        ImageStates(tmp_path / "states", SHAPE)
