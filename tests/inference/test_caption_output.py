"""Lines of captions: each format, what is read back from it, and how a file is gone on with."""

import io
import json
import re
from pathlib import Path

import pytest
from PIL import Image

from openblip.inference.caption_output import (
    FileOutput,
    FormatName,
    SidecarOutput,
    StreamOutput,
    Written,
    caption_format,
    format_name,
    image_id,
)
from openblip.inference.captions import Caption
from openblip.runtime.errors import DataError, RecipeError
from openblip.sources import import_pairs
from openblip.table.table import PairTable

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


def test_a_list_has_each_line_once_whenever_its_writer_was_killed(tmp_path: Path) -> None:
    file, journal = tmp_path / "a.json", tmp_path / "a.json.partial"
    output = open_file(file, "coco")
    output.write(results("1.jpg", "2.jpg"))
    lines = journal.read_bytes()
    output.close(is_complete=True)
    # As if the process had ended between the list and what is done after it.
    journal.write_bytes(lines)
    output = open_file(file, "coco")
    output.write(results("3.jpg"))
    output.close(is_complete=True)
    assert [v["image_id"] for v in json.loads(file.read_text())] == [1, 2, 3]


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


@pytest.mark.parametrize("text", ["a.caption", "a.TXT", "a.jpg.txt", "a.text", "a.captions.txt"])
def test_a_text_of_any_name_that_an_import_reads_is_left_alone(tmp_path: Path, text: str) -> None:
    (tmp_path / text).write_text("by hand")
    output = SidecarOutput(overwrite=False)
    for name, has_text in (("a.jpg", True), ("b.jpg", False), ("a.b.jpg", False)):
        assert output.has(output.mark(name, tmp_path / name)) is has_text


class TestAnImport:
    """What was written comes in, wherever it stands."""

    NAMES = (
        "a.jpg",
        "a.png",
        "sub/b.jpg",
        "=1+1.jpg",
        "new\nline.jpg",
        "COCO_val2014_000000000042.jpg",
    )

    @pytest.fixture
    def photos(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        for number, name in enumerate(self.NAMES):
            path = tmp_path / "home" / "photos" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8 + number)).save(path)
        monkeypatch.chdir(tmp_path / "home")
        return Path("photos")

    def write(self, file: Path, images: list[Path], num_captions: int = 1) -> None:
        file.parent.mkdir(exist_ok=True)
        form = format_name(file.suffix)
        output = FileOutput(file, caption_format(form, num_captions), SETTINGS, overwrite=False)
        texts = ['=HYPERLINK("x"), a dog', "-second"][:num_captions]
        output.write([(str(image), image, [*map(caption, texts)]) for image in images])
        output.close(is_complete=True)

    def captions_of(self, source: Path, tmp_path: Path, **told: Path) -> dict[int, list[str]]:
        """By the height of the image, which tells them apart."""
        report = import_pairs(source, tmp_path / "t", show_progress=False, **told)
        # It is told of its settings what they are, and of images that it does not name.
        assert set(report.skipped) <= {"other file", "missing caption"}, report.to_text()
        rows = PairTable.open(tmp_path / "t").take(range(report.num_rows), ["height", "captions"])
        return {row["height"]: row["captions"] for row in rows.to_pylist()}

    @pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".json", ".txt"])
    @pytest.mark.parametrize("place", ["photos", ".", "photos/sub/.."])
    @pytest.mark.parametrize("absolute", [False, True])
    def test_finds_the_images_from_where_the_file_stands(
        self, photos: Path, tmp_path: Path, suffix: str, place: str, absolute: bool
    ) -> None:
        file = (Path.cwd() if absolute else Path()) / place / f"captions{suffix}"
        self.write(file, [(photos.absolute() if absolute else photos) / n for n in self.NAMES])
        for source in (file, file.parent):
            found = self.captions_of(source, tmp_path / str(source.is_dir()))
            assert found == {8 + n: ['=HYPERLINK("x"), a dog'] for n in range(len(self.NAMES))}

    @pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".txt"])
    def test_is_told_the_folder_of_images_that_lie_elsewhere(
        self, photos: Path, tmp_path: Path, suffix: str
    ) -> None:
        file = Path("results", f"captions{suffix}")
        self.write(file, [photos / name for name in self.NAMES[:4]])
        try:
            said = import_pairs(file, tmp_path / "refused", show_progress=False).to_text()
            assert "unsafe path: 4" in said
        except DataError as error:  # nothing at all was found
            said = str(error)
        assert re.search("image.root", said)
        assert len(self.captions_of(file, tmp_path, image_root=photos.absolute())) == 4

    def test_finds_images_of_results_beside_their_folder(
        self, photos: Path, tmp_path: Path
    ) -> None:
        file = Path("results", "captions.json")
        self.write(file, [photos.absolute() / name for name in self.NAMES[:4]])
        assert len(self.captions_of(file, tmp_path)) == 4

    @pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".txt"])
    def test_takes_all_captions_of_an_image(
        self, photos: Path, tmp_path: Path, suffix: str
    ) -> None:
        file = photos / f"captions{suffix}"
        self.write(file, [photos / name for name in self.NAMES], num_captions=2)
        found = self.captions_of(file, tmp_path)
        assert list(found.values()) == [['=HYPERLINK("x"), a dog', "-second"]] * len(self.NAMES)

    def test_knows_a_text_by_its_settings_or_by_a_name_of_an_image(
        self, photos: Path, tmp_path: Path
    ) -> None:
        (photos / "no suffix").write_bytes((photos / "a.jpg").read_bytes())
        lines = caption_format("txt", 1)
        output = FileOutput(photos / "c.txt", lines, {"format": "txt"}, overwrite=False)
        output.write([("x", photos / "no suffix", [caption("a dog")])])
        output.close(is_complete=True)
        assert self.captions_of(photos / "c.txt", tmp_path / "1") == {8: ["a dog"]}
        (photos / "d.txt").write_text("a.jpg\ta dog\na.png\ta cat\n")
        assert self.captions_of(photos / "d.txt", tmp_path / "2") == {8: ["a dog"], 9: ["a cat"]}
        # A number is no caption, but the label of a class.
        (photos / "e.txt").write_text("a.jpg\t7\na.png\t8\n")
        with pytest.raises(DataError, match="is not a known source"):
            import_pairs(photos / "e.txt", tmp_path / "3", show_progress=False)

    def test_keeps_names_apart_that_are_no_unicode(self, photos: Path, tmp_path: Path) -> None:
        names = [photos / "caf\udce9.jpg", photos / "caf\udce8.jpg"]
        for number, name in enumerate(names):
            Image.new("RGB", (8, 20 + number)).save(name)
        self.write(photos / "captions.jsonl", names)
        assert set(self.captions_of(photos, tmp_path)) == {20, 21}

    def test_tells_why_a_caption_is_empty(self, photos: Path, tmp_path: Path) -> None:
        output = open_file(photos / "captions.jsonl")
        empty = Caption("", -1.0, (1,), reason="the model wrote no word")
        output.write([("photos/a.jpg", photos / "a.jpg", [empty])])
        output.write([("photos/a.png", photos / "a.png", [caption("b")])])
        output.close(is_complete=True)
        report = import_pairs(photos, tmp_path / "t", show_progress=False)
        assert report.num_rows == 1
        # The other images of the folder have no text at all.
        assert set(report.skipped) == {"missing caption", "other file"}
        assert "a.jpg: the model wrote no word" in report.to_text()

    def test_tells_of_a_number_that_is_that_of_two_files(
        self, photos: Path, tmp_path: Path
    ) -> None:
        Image.new("RGB", (8, 20)).save(photos / "sub" / "x_42.jpg")
        self.write(photos / "captions.json", [photos / name for name in self.NAMES])
        report = import_pairs(photos / "captions.json", tmp_path / "t", show_progress=False)
        assert report.skipped == {"bad record": 1}
        assert "several image files have the number 42" in report.to_text()
