"""Maps become pictures: where the heat is, in the shape of the upright image."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from openblip.inference.explanation import Heatmap, heat_colours
from openblip.runtime.errors import DataError, RecipeError


def heatmap(*tokens: str, grid: int = 4) -> Heatmap:
    """Word i looks at patch i alone, in the order of reading."""
    maps = torch.zeros(len(tokens), grid * grid)
    maps[range(len(tokens)), range(len(tokens))] = 0.001 * torch.arange(1.0, len(tokens) + 1)
    maps = maps.view(-1, grid, grid)
    return Heatmap(tokens, maps, 1.5, maps.mean(dim=0))


def grey(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height), (128, 128, 128))


def warmest(picture: Image.Image) -> tuple[int, int]:
    """Column and row of the pixel that is most yellow."""
    red, _, blue = np.asarray(picture).astype(int).transpose(2, 0, 1)
    row, column = np.unravel_index((red - blue).argmax(), red.shape)
    return int(column), int(row)


@pytest.mark.parametrize("size", [(400, 100), (100, 400), (120, 120), (7, 5), (1, 1)])
def test_an_overlay_has_the_size_of_the_image(size):
    overlay = heatmap("a", "b").overlay(grey(*size))
    assert overlay.size == size
    assert overlay.mode == "RGB"


def test_the_map_is_stretched_over_a_landscape():
    for number, expected in enumerate([(50, 12), (150, 12), (250, 12), (350, 12), (50, 37)]):
        overlay = heatmap(*"abcde").overlay(grey(400, 100), number)
        column, row = warmest(overlay)
        assert abs(column - expected[0]) <= 50
        assert abs(row - expected[1]) <= 13


def test_a_rotated_photograph_is_laid_upright():
    stored = Image.new("RGB", (40, 80))
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    stored.save(buffer, "JPEG", exif=exif)
    heat = heatmap("a", "b")
    assert heat.overlay(buffer.getvalue()).size == (80, 40)
    assert heat.contact_sheet(buffer.getvalue()).size == heat.contact_sheet(grey(80, 40)).size


def test_a_word_is_named_or_numbered():
    heat = heatmap("a", "dog", "a")
    picture = grey(64, 64)
    assert heat.overlay(picture, "dog") == heat.overlay(picture, 1)
    assert heat.overlay(picture, "a") == heat.overlay(picture, 0) != heat.overlay(picture, 2)
    assert warmest(heat.overlay(picture)) != warmest(heat.overlay(picture, 0))


@pytest.mark.parametrize(
    ("token", "message"),
    [("cat", "no word 'cat'; there are a, dog"), (2, "numbered 0 to 1"), (-1, "numbered 0 to 1")],
)
def test_a_word_that_is_not_there(token, message):
    with pytest.raises(RecipeError, match=message):
        heatmap("a", "dog").overlay(grey(8, 8), token)


def test_a_map_without_heat_is_cold_all_over():
    cold = Heatmap(("a",), torch.zeros(1, 3, 3), 0.0, torch.zeros(3, 3))
    assert len(cold.overlay(grey(30, 30)).getcolors()) == 1


def testheat_colours_grow_lighter_in_equal_steps():
    colours = np.frombuffer(heat_colours(), np.uint8).reshape(256, 3)
    luma = colours @ np.array([0.2126, 0.7152, 0.0722])
    assert luma[0] < 30
    assert luma[-1] > 200
    assert (np.diff(luma[::8]) > 0).all()
    assert tuple(colours[-1] > 128) == (True, True, False)


@pytest.mark.parametrize("size", [(640, 480), (300, 900), (9, 9), (3000, 20), (1, 1)])
@pytest.mark.parametrize("words", [1, 5, 40])
def test_a_contact_sheet_has_a_cell_for_all_and_for_each_word(size, words):
    heat = heatmap(*(f"word{number}" for number in range(words)), grid=7)
    sheet = heat.contact_sheet(grey(*size))
    columns = round((sheet.width - 12) / (max(_shown(size)[0], 112) + 12))
    rows = round((sheet.height - 12) / (_shown(size)[1] + 40))
    assert columns <= 6
    assert columns * (rows - 1) < words + 1 <= columns * rows


def _shown(size: tuple[int, int]) -> tuple[int, int]:
    scale = 224 / max(size)
    return max(round(size[0] * scale), 1), max(round(size[1] * scale), 1)


def test_every_label_fits_its_cell():
    narrow = heatmap("x" * 300, "wwwwwwwwwwwwwwwwwwwwwwwwwwwwww", "dog").contact_sheet(grey(10, 90))
    ink = np.asarray(narrow.convert("L")) < 200
    gap_between_cells = slice(12 + 112, 24 + 112)
    assert not ink[:, gap_between_cells].any()
    assert not ink[:, -12:].any()


def test_saved_is_the_contact_sheet(tmp_path):
    heat, picture = heatmap("a", "dog"), grey(32, 32)
    path = heat.save(tmp_path / "deep" / "heat.png", picture)
    with Image.open(path) as saved:
        assert saved.format == "PNG"
        assert saved.convert("RGB") == heat.contact_sheet(picture)
    assert [file.name for file in path.parent.iterdir()] == ["heat.png"]


def test_where_it_cannot_be_saved(tmp_path):
    heat, picture = heatmap("a"), grey(8, 8)
    with pytest.raises(DataError, match=r"heat.jpg: .* ends in .png"):
        heat.save(tmp_path / "heat.jpg", picture)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"heat.png: cannot be written"):
        heat.save(tmp_path / "file" / "heat.png", picture)


def test_words_that_the_font_cannot_write_are_numbered():
    picture = grey(80, 40)
    numbered = heatmap("dog", "#1", "#2").contact_sheet(picture)
    assert heatmap("dog", "狗", "कुत्ता").contact_sheet(picture) == numbered
    assert heatmap("dog", "café", "#2").contact_sheet(picture) != numbered


def test_a_scale_says_which_colour_is_most():
    sheet = np.asarray(heatmap("a", "dog").contact_sheet(grey(64, 64)))
    bar = sheet[12 : 12 + 224, -52]
    colours = np.frombuffer(heat_colours(), np.uint8).reshape(256, 3)
    assert bar[0].tolist() == colours[-1].tolist()
    assert bar[-1].tolist() == colours[0].tolist()
