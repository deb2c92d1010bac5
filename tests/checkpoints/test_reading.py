"""Any layout is read in one place, and whatever is wrong with it is told in one short line."""

import json
import random
import struct
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from openblip.batches.tokenizer import TextTokenizer
from openblip.checkpoints.folder import save_folder
from openblip.checkpoints.huggingface import save_huggingface
from openblip.checkpoints.original import OriginalNote, to_original, write_original
from openblip.checkpoints.reading import find_model, read_model
from openblip.model import Med
from openblip.runtime.errors import CheckpointError, OpenBlipWarning

LAYOUTS = ("ours", "theirs", "model.pth", "weights.safetensors")


def write(layout: str, folder: Path, med: Med, tokenizer: TextTokenizer) -> Path:
    """A captioner in a layout, with its vocabulary beside or in it."""
    place = folder / layout
    if layout == "ours":
        save_folder(place, med, tokenizer, "captioner", 20)
    elif layout == "theirs":
        save_huggingface(place, med, tokenizer, "caption")
    else:
        write_original(place, to_original(med, "caption"), OriginalNote.of(med, tokenizer, 20))
    return place


def assert_one_short_line(error: CheckpointError, place: Path) -> None:
    text = str(error).replace(str(place.parent), "")
    assert place.stem in str(error), text
    assert "\n" not in text
    assert len(text) < 500, text
    assert "weights_only" not in text
    assert "\x1b" not in text


def read_or_refused(place: Path) -> str | None:
    """None if a model is read, else what was said; nothing but our own error may come."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OpenBlipWarning)
            read_model(find_model(place))
    except CheckpointError as error:
        assert_one_short_line(error, place)
        return str(error)
    return None


class TestPaddedRows:
    """Embeddings have often more rows than there are tokens, up to a multiple of 8 or 64."""

    @pytest.mark.parametrize("multiple", [8, 64])
    @pytest.mark.parametrize("layout", ["theirs", "model.pth"])
    def test_they_are_left_out(
        self, med: Med, tokenizer: TextTokenizer, tmp_path: Path, layout: str, multiple: int
    ) -> None:
        tokens = tokenizer.vocab_size
        place = write(layout, tmp_path, med, tokenizer)
        rows = tokens + (-tokens % multiple or multiple)

        def padded(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            longer = {
                name: torch.cat([t, torch.full((rows - tokens, *t.shape[1:]), 9.0)])
                for name, t in state.items()
                if len(t) == tokens
            }
            return {**state, **longer}

        if layout == "theirs":
            weights = place / "model.safetensors"
            save_file(padded(load_file(weights)), weights)
            config = json.loads((place / "config.json").read_text())
            config["text_config"]["vocab_size"] = rows
            (place / "config.json").write_text(json.dumps(config))
        else:
            content = torch.load(place, weights_only=True)
            torch.save({**content, "model": padded(content["model"])}, place)
        with pytest.warns(OpenBlipWarning, match=rf"{rows} rows .* for {tokens} tokens"):
            read = read_model(place)
        assert read.model.config.text.vocab_size == tokens
        state, expected = read.model.state_dict(), med.state_dict()
        assert all(torch.equal(state[name], expected[name]) for name in state)

    def test_another_vocabulary_is_still_refused(
        self, med: Med, tokenizer: TextTokenizer, tmp_path: Path
    ) -> None:
        place = write("model.pth", tmp_path, med, tokenizer)
        content = torch.load(place, weights_only=True)
        del content["openblip"]
        torch.save(content, place)
        TextTokenizer.train(["a b"], 60).save(tmp_path)
        if (med.config.text.vocab_size) % 8 == 0:
            pytest.skip("as many rows as padding would give")
        with pytest.warns(OpenBlipWarning), pytest.raises(CheckpointError, match=r"tokens, but"):
            read_model(place)


def test_what_the_note_says_goes_before_a_vocabulary_beside(
    med: Med, tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    place = write("model.pth", tmp_path, med, tokenizer)
    TextTokenizer.train(["a b"], 60).save(tmp_path)
    assert read_model(place).tokenizer.vocab_size == tokenizer.vocab_size
    assert read_model(place).max_tokens == 20


NOTES = ["[]", "3", "{}", "{", "null", '{"vision": 3, "text": {}}', '{"other": 1}', "NaN"]


@pytest.mark.parametrize("note", [*NOTES, 3, ["a"], {"vision": {}}])
def test_a_damaged_note(med: Med, tokenizer: TextTokenizer, tmp_path: Path, note: object) -> None:
    place = write("model.pth", tmp_path, med, tokenizer)
    torch.save({**torch.load(place, weights_only=True), "openblip": note}, place)
    assert "note 'openblip' is damaged" in (read_or_refused(place) or "")


@pytest.mark.parametrize("heads", [0, -1, 3, 10**9, 1.5, "2", None, True, [2], {}])
def test_heads_of_a_note_that_no_model_has(
    med: Med, tokenizer: TextTokenizer, tmp_path: Path, heads: object
) -> None:
    place = write("model.pth", tmp_path, med, tokenizer)
    content = torch.load(place, weights_only=True)
    note = json.loads(content["openblip"])
    note["text"]["heads"] = heads
    torch.save({**content, "openblip": json.dumps(note)}, place)
    said = read_or_refused(place)
    # JSON has true, which is not 1.
    assert said is not None


FILES = {
    "empty": (b"", "is empty"),
    "web page": (b"\n <!DOCTYPE html><html>404</html>", "is a web page"),
    "xml": (b'<?xml version="1.0"?><Error/>', "is a web page"),
    "git-lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "json": (b'{"error": "Entry not found"}', "truncated, or no"),
    "noise": (random.Random(0).randbytes(400), "truncated, or no"),
    "text": (b"hello, this is no model", "truncated, or no"),
    "zip": (b"PK\x03\x04" + bytes(200), "truncated, or no"),
    "header of 10^12": (struct.pack("<Q", 10**12) + b"{}", "truncated, or no"),
    "header is a list": (struct.pack("<Q", 2) + b"[]", "truncated, or no"),
    "header is not UTF-8": (struct.pack("<Q", 4) + b"{\xff\xfe}", "truncated, or no"),
}


class TestWhatIsSavedInThePlaceOfWeights:
    @pytest.mark.parametrize("content", FILES)
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_it_is_named(
        self, med: Med, tokenizer: TextTokenizer, tmp_path: Path, layout: str, content: str
    ) -> None:
        place = write(layout, tmp_path, med, tokenizer)
        file = place / "model.safetensors" if place.is_dir() else place
        data, message = FILES[content]
        file.write_bytes(data)
        assert message in (read_or_refused(place) or "")

    def test_a_text_is_told_as_what_no_program_for_weights_has_saved(self, tmp_path: Path) -> None:
        (tmp_path / "model.pth").write_text("hello, this is no model")
        told = read_or_refused(tmp_path / "model.pth") or ""
        assert "no checkpoint of tensors (not by torch.save)" in told

    @pytest.mark.parametrize(
        "content", [{}, [], [1], 3, None, "x", {3: torch.ones(1)}, {1: {2: 3}}]
    )
    def test_other_things_than_weights_in_a_pth(self, tmp_path: Path, content: object) -> None:
        for number, whole in enumerate((content, {"model": content}, {"state_dict": content})):
            place = tmp_path / f"model{number}.pth"
            torch.save(whole, place)
            assert read_or_refused(place) is not None

    @pytest.mark.parametrize(
        "dtype", [torch.int64, torch.bool, torch.uint8, torch.complex64, torch.float8_e4m3fn]
    )
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_numbers_of_another_kind(
        self, med: Med, tokenizer: TextTokenizer, tmp_path: Path, layout: str, dtype: torch.dtype
    ) -> None:
        place = write(layout, tmp_path, med, tokenizer)

        def cast(state: dict[str, Any]) -> dict[str, Any]:
            name = next(name for name in state if name.endswith("norm1.weight") or "norm" in name)
            return {**state, name: state[name].to(dtype)}

        if place.suffix == ".pth":
            content = torch.load(place, weights_only=True)
            torch.save({**content, "model": cast(content["model"])}, place)
        else:
            file = place / "model.safetensors" if place.is_dir() else place
            metadata = {"openblip": OriginalNote.of(med, tokenizer).to_json()}
            save_file(cast(load_file(file)), file, metadata)
        assert "expected floating-point numbers" in (read_or_refused(place) or "")

    def test_a_sparse_tensor(self, med: Med, tokenizer: TextTokenizer, tmp_path: Path) -> None:
        place = write("model.pth", tmp_path, med, tokenizer)
        content = torch.load(place, weights_only=True)
        key = "visual_encoder.norm.weight"
        torch.save(
            {**content, "model": content["model"] | {key: torch.ones(64).to_sparse()}}, place
        )
        assert read_or_refused(place) is not None


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(value, dict):
        for key in value:
            yield from leaves(value[key], (*path, key))


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    return {**value, path[0]: replaced(value[path[0]], path[1:], new)}


ODD = (
    0,
    -1,
    10**9,
    10**400,
    1.5,
    float("nan"),
    float("inf"),
    "x" * 3000,
    None,
    True,
    [],
    {},
    [[1]],
)


def drawn_changes(values: Any, seed: str, most: int = 40) -> list[tuple[tuple[Any, ...], Any]]:
    """Places of values, and what is put there; all of them would take minutes."""
    every = [(path, new) for path in leaves(values) for new in ODD]
    return random.Random(seed).sample(every, min(most, len(every)))


class TestConfigurations:
    """Values of each JSON file are replaced by odd ones: read, or refused in a line."""

    @pytest.mark.parametrize("field", ["heads", "width", "depth", "image_size", "vocab_size"])
    @pytest.mark.parametrize("size", [0, -1, 10**9, 10**400])
    def test_sizes_that_no_model_has(
        self, med: Med, tokenizer: TextTokenizer, tmp_path: Path, field: str, size: int
    ) -> None:
        place = write("ours", tmp_path, med, tokenizer)
        values = json.loads((place / "config.json").read_text())
        for part in ("vision", "text"):
            if field in values["model"][part]:
                odd = replaced(values, ("model", part, field), size)
                (place / "config.json").write_text(json.dumps(odd))
                assert field in (read_or_refused(place) or "")

    @pytest.mark.parametrize(
        ("layout", "name"),
        [
            ("ours", "config.json"),
            ("theirs", "config.json"),
            ("theirs", "preprocessor_config.json"),
            ("theirs", "tokenizer_config.json"),
        ],
    )
    def test_odd_values(
        self, med: Med, tokenizer: TextTokenizer, tmp_path: Path, layout: str, name: str
    ) -> None:
        place = write(layout, tmp_path, med, tokenizer)
        values = json.loads((place / name).read_text())
        refused = 0
        for path, new in drawn_changes(values, f"{layout} {name}"):
            (place / name).write_text(json.dumps(replaced(values, path, new)))
            refused += read_or_refused(place) is not None
        assert refused > 5

    @pytest.mark.parametrize("part", ["vision", "text"])
    @pytest.mark.parametrize("field", ["heads", "norm_eps"])
    def test_what_no_weight_shows_has_no_default(
        self, med: Med, tokenizer: TextTokenizer, tmp_path: Path, part: str, field: str
    ) -> None:
        place = write("ours", tmp_path, med, tokenizer)
        values = json.loads((place / "config.json").read_text())
        # A default of 12 heads would fit 120 channels.
        del values["model"][part][field]
        (place / "config.json").write_text(json.dumps(values))
        assert read_or_refused(place) is not None

    @pytest.mark.parametrize(
        "text",
        ["", "{", "[]", "null", "\ufeff{", "[" * 100_000, '{"a": ' * 5000, "\x00", "1" * 5000],
    )
    @pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "preprocessor_config.json"])
    def test_odd_files(
        self, med: Med, tokenizer: TextTokenizer, tmp_path: Path, name: str, text: str
    ) -> None:
        place = write("theirs", tmp_path, med, tokenizer)
        (place / name).write_text(text, encoding="utf-8")
        assert read_or_refused(place) is not None

    def test_a_byte_order_mark_is_no_part_of_it(
        self, med: Med, tokenizer: TextTokenizer, tmp_path: Path
    ) -> None:
        place = write("ours", tmp_path, med, tokenizer)
        text = (place / "config.json").read_text()
        (place / "config.json").write_text("\ufeff" + text, encoding="utf-8")
        assert read_or_refused(place) is None


def test_odd_tokenizers(med: Med, tokenizer: TextTokenizer, tmp_path: Path) -> None:
    place = write("ours", tmp_path, med, tokenizer)
    values = json.loads(tokenizer.to_json())
    values["model"]["vocab"] = dict(list(values["model"]["vocab"].items())[:9])
    for path, new in drawn_changes(values, "tokenizer"):
        (place / "tokenizer.json").write_text(json.dumps(replaced(values, path, new)))
        read_or_refused(place)


DAMAGE: dict[str, Callable[[random.Random, bytes], bytes]] = {
    "cut": lambda draw, data: data[: draw.randrange(len(data))],
    "bytes changed": lambda draw, data: (
        bytes(draw.randrange(256) if draw.random() < 0.002 else byte for byte in data[:4000])
        + data[4000:]
    ),
    "a piece doubled": lambda draw, data: data[: (at := draw.randrange(3000))] + data[at // 2 :],
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_damaged_weights(
    med: Med, tokenizer: TextTokenizer, tmp_path: Path, layout: str, damage: str
) -> None:
    place = write(layout, tmp_path, med, tokenizer)
    file = place / "model.safetensors" if place.is_dir() else place
    whole, draw = file.read_bytes(), random.Random(f"{layout} {damage}")
    for _ in range(25):
        file.write_bytes(DAMAGE[damage](draw, whole))
        read_or_refused(place)


HEADER = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": "F31"},
        {"dtype": 3},
        {"shape": [10**12]},
        {"shape": [-2]},
        {"shape": "2"},
        {"shape": [2**40, 2**40]},
        {"data_offsets": [0, 7]},
        {"data_offsets": [8, 0]},
        {"data_offsets": [0, 10**18]},
        {"data_offsets": [4, 12]},
        {"data_offsets": []},
    ],
)
@pytest.mark.parametrize("second", [None, {"data_offsets": [4, 12]}])
def test_headers_that_contradict_their_file(
    tmp_path: Path, changes: dict[str, Any], second: dict[str, Any] | None
) -> None:
    header = {"a": HEADER["a"] | changes}
    if second is not None:
        header["b"] = HEADER["a"] | second
    text = json.dumps(header).encode()
    place = tmp_path / "weights.safetensors"
    place.write_bytes(struct.pack("<Q", len(text)) + text + bytes(12))
    assert read_or_refused(place) is not None


def test_names_without_end_are_cut_short(med: Med, tmp_path: Path) -> None:
    state = to_original(med, "caption")
    place = tmp_path / "model.pth"
    torch.save({**state, **{f"{'x' * 3000}{n}": torch.ones(1) for n in range(300)}}, place)
    assert "and 295 more" in (read_or_refused(place) or "")


def test_a_name_that_is_nearly_there_is_asked_about(tmp_path: Path) -> None:
    (tmp_path / "captioner").mkdir()
    with pytest.raises(CheckpointError, match=r"did you mean .*captioner\?"):
        find_model(tmp_path / "captionerr")
    with pytest.raises(CheckpointError) as told:
        find_model(tmp_path / "something else")
    assert "did you mean" not in str(told.value)
