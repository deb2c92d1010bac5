"""Lines of captions: each format, what is read back from it, and how a file is gone on with."""

import io
import json
from pathlib import Path

import pytest

from openblip.errors import DataError, RecipeError
from openblip.inference import Caption
from openblip.inference.caption_formats import FormatName, caption_format, format_name, image_id
from openblip.inference.caption_output import FileOutput, SidecarOutput, StreamOutput, Written

NAMES = ["a/COCO_val2014_000000000042.jpg", 'odd, "name"\twith\na break.png', "\udcff一只狗.png"]
ALL: list[FormatName] = ["jsonl", "csv", "coco", "txt"]
SETTINGS = {"method": "beam", "model": "0f"}


def caption(text: str, logprob: float = -1.23456) -> Caption:
    return Caption(text, logprob, (1, 2))


def results(*names: str) -> list[Written]:
    return [(name, None, [caption(f'a "dog", of {name[:1]}')]) for name in names]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("image", NAMES)
def test_a_line_tells_whose_it_is(name: FormatName, image: str) -> None:
    lines = caption_format(name, 1)
    line = lines.line(image, [caption("a dog")])
    assert "\n" not in line
    assert lines.mark_of(line) == lines.mark(image)


def test_the_formats() -> None:
    two = [caption("a dog"), caption("a cat, or so", -2.0)]
    assert caption_format("jsonl", 2).line("狗.jpg", two) == (
        '{"image": "狗.jpg", "captions": [{"text": "a dog", "logprob": -1.2346}, '
        '{"text": "a cat, or so", "logprob": -2.0}]}'
    )
    table = caption_format("csv", 2)
    assert table.head == "image,caption,logprob,caption_2,logprob_2"
    assert table.line("x.jpg", two) == 'x.jpg,a dog,-1.2346,"a cat, or so",-2.0000'
    assert caption_format("txt", 2).line("x.jpg", two) == "x.jpg\ta dog\ta cat, or so"
    assert caption_format("coco", 1).line("7.jpg", two[:1]) == '{"image_id": 7, "caption": "a dog"}'
    with pytest.raises(RecipeError, match=r"--num-captions 2.*one caption an image"):
        caption_format("coco", 2)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("val2014/COCO_val2014_000000391895.jpg", 391895),
        ("000000391895.jpg", 391895),
        ("391895", 391895),
        ("img7.jpg", "img7.jpg"),
        ("a/12b.jpg", "a/12b.jpg"),
        ("row/7.5", "row/7.5"),
        ("123456789012345678901.jpg", "123456789012345678901.jpg"),
    ],
)
def test_an_image_id_is_the_number_of_a_coco_name(name: str, expected: int | str) -> None:
    assert image_id(name) == expected


def test_the_suffix_names_the_format() -> None:
    assert [format_name(s) for s in (".jsonl", ".CSV", ".json", ".txt")] == ALL
    with pytest.raises(RecipeError, match=r"suffix '\.parquet'; end the name in \.jsonl"):
        format_name(".parquet")


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_list_on_a_stream_is_valid_json(count: int) -> None:
    stream = io.BytesIO()
    output = StreamOutput(stream, "standard output", caption_format("coco", 1))
    output.write(results(*(f"{n}.jpg" for n in range(count))))
    output.close(is_complete=False)
    assert [item["image_id"] for item in json.loads(stream.getvalue())] == list(range(count))


def open_file(path: Path, name: FormatName = "jsonl", **changes: object) -> FileOutput:
    overwrite = bool(changes.pop("overwrite", False))
    return FileOutput(path, caption_format(name, 1), SETTINGS | changes, overwrite)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("cut", [1, 4])
def test_a_line_that_was_cut_off_is_done_again(tmp_path: Path, name: FormatName, cut: int) -> None:
    whole, file = tmp_path / "whole", tmp_path / "file"
    for path in (whole, file):
        output = open_file(path, name)
        output.write(results(*NAMES[:2]))
    open_file(whole, name).write(results(NAMES[2]))
    journal = file if name != "coco" else tmp_path / "file.partial"
    journal.write_bytes(journal.read_bytes()[:-cut])

    output = open_file(file, name)
    assert [output.has(output.mark(image, None)) for image in NAMES] == [True, False, False]
    output.write(results(*NAMES[1:]))
    for path in (whole, file):
        open_file(path, name).close(is_complete=True)
    assert file.read_bytes() == whole.read_bytes()
    assert not list(tmp_path.glob("*.partial"))


def test_a_header_that_was_cut_off_is_written_again(tmp_path: Path) -> None:
    open_file(tmp_path / "a.csv", "csv")
    (tmp_path / "a.csv").write_text("image,cap")
    open_file(tmp_path / "a.csv", "csv")
    assert (tmp_path / "a.csv").read_text() == "image,caption,logprob\n"


def test_a_finished_list_can_be_added_to(tmp_path: Path) -> None:
    for numbers in (["1.jpg", "2.jpg"], ["3.jpg"], []):
        output = open_file(tmp_path / "a.json", "coco")
        output.write(results(*numbers))
        output.close(is_complete=True)
    assert [v["image_id"] for v in json.loads((tmp_path / "a.json").read_text())] == [1, 2, 3]
    assert open_file(tmp_path / "a.json", "coco").has("2")


def test_a_list_that_is_not_complete_leaves_the_old_one(tmp_path: Path) -> None:
    output = open_file(tmp_path / "a.json", "coco")
    output.write(results("1.jpg"))
    output.close(is_complete=False)
    assert not (tmp_path / "a.json").exists()
    assert open_file(tmp_path / "a.json", "coco").has("1")


def test_other_settings_are_refused_by_name_and_change_nothing(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    open_file(file).write(results("1.jpg"))
    before = file.read_bytes()
    with pytest.raises(RecipeError, match=r"a\.jsonl.*method 'beam', not 'greedy'.*--overwrite"):
        open_file(file, method="greedy")
    assert file.read_bytes() == before
    assert not open_file(file, method="greedy", overwrite=True).has("1.jpg")
    assert file.read_bytes() == b""


def test_a_file_of_someone_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("precious\n")
    with pytest.raises(RecipeError, match=r"a\.jsonl: it exists.*--overwrite, or another name"):
        open_file(tmp_path / "a.jsonl")
    assert (tmp_path / "a.jsonl").read_text() == "precious\n"


def test_damage_in_the_middle_is_named(tmp_path: Path) -> None:
    open_file(tmp_path / "a.jsonl").write(results("1.jpg", "2.jpg"))
    lines = (tmp_path / "a.jsonl").read_text().splitlines()
    (tmp_path / "a.jsonl").write_text(f"{lines[0][:9]}\n{lines[1]}\n")
    with pytest.raises(DataError, match=r"a\.jsonl, line 1: not written by this command"):
        open_file(tmp_path / "a.jsonl")


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a folder; give the name of a file in it"):
        open_file(tmp_path)


def test_a_full_device_is_named() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with Path("/dev/full").open("wb", buffering=0) as stream:
        output = StreamOutput(stream, "standard output", caption_format("csv", 1))
        with pytest.raises(DataError, match=r"standard output: cannot be written \(No space left"):
            output.write(results("1.jpg"))


def test_sidecars_are_left_alone_or_replaced(tmp_path: Path) -> None:
    photo = tmp_path / "a.b.jpg"
    (tmp_path / "a.b.txt").write_text("by hand")
    for overwrite in (False, True):
        output = SidecarOutput(overwrite)
        assert output.has(output.mark(str(photo), photo)) is not overwrite
    output.write([(str(photo), photo, [caption("a dog"), caption("a cat")])])
    assert [file.name for file in tmp_path.iterdir()] == ["a.b.txt"]
    assert (tmp_path / "a.b.txt").read_text() == "a dog\na cat\n"
