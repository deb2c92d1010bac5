"""Places with images become a stream of images with names that stay."""

import io
import os
import re
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from openblip.inference.caption_output import FileOutput, caption_format, format_name
from openblip.inference.image_sources import ImageSources, SourceImage, left_out_text
from openblip.runtime.errors import DataError, RecipeError
from openblip.runtime.locks import only_one
from openblip.table.table import PairRow, PairTable


def png(colour: str = "red") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 6), colour).save(stream, "PNG")
    return stream.getvalue()


def every(sources: ImageSources) -> list[SourceImage]:
    return list(sources.images(lambda name, file: True))


def write_tar(path: Path, members: dict[str, bytes | None]) -> Path:
    """Members of None are links."""
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            if data is None:
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            else:
                info.size = len(data)
            tar.addfile(info, io.BytesIO(data or b""))
    return path


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, named relative to the current one."""
    monkeypatch.chdir(tmp_path)
    names = ["b.png", "a.PNG", "sub/c.png", "sub/deeper/d.png", ".hidden.png", ".trash/e.png"]
    for name in names:
        file = Path("photos") / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png())
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    return Path("photos")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rows = [
        PairRow(id=f"row {n}", image=png(), captions=["a"], split="test" if n % 2 else "train")
        for n in range(5)
    ]
    rows.append(PairRow(id="broken", image=b"no image", captions=["a"], split="test"))
    PairTable.create(tmp_path / "pairs.lance", rows)
    return tmp_path / "pairs.lance"


class TestFolders:
    def test_are_searched_in_the_order_of_names_without_what_is_hidden(self, photos: Path) -> None:
        sources = ImageSources(["photos/"])
        assert [image.name for image in every(sources)] == [
            "photos/a.PNG",
            "photos/b.png",
            "photos/sub/c.png",
            "photos/sub/deeper/d.png",
        ]
        assert sources.total() == 4

    def test_the_key_does_not_depend_on_where_the_folder_lies(self, photos: Path) -> None:
        keys = [image.key for image in every(ImageSources(["photos"]))]
        assert keys == ["a.PNG", "b.png", "sub/c.png", "sub/deeper/d.png"]
        assert [i.key for i in every(ImageSources([str(photos.resolve())]))] == keys

    def test_without_an_image_are_an_error(self, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").touch()
        with pytest.raises(DataError, match=r"no image in this folder; .*notes\.txt.*archives"):
            ImageSources([str(tmp_path)]).total()

    def test_what_is_an_image_shows_in_its_content(self, photos: Path) -> None:
        for name in ("photo", "c.jfif", "d.upload"):
            (photos / name).write_bytes(png())
        keys = [image.key for image in every(ImageSources(["photos"]))]
        assert {"photo", "c.jfif", "d.upload"} <= set(keys)

    def test_every_file_is_yielded_or_counted_with_its_reason(
        self, photos: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "far.png").write_bytes(png())
        (photos / "linked").symlink_to(tmp_path / "other")
        (photos / "lost.png").symlink_to("nowhere")
        os.mkfifo(photos / "pipe.png")
        (photos / "shard.tar").touch()
        sources = ImageSources(["photos"])
        found = {image.key: image for image in every(sources)}
        assert "linked/far.png" in found
        for name, why in {"lost.png": "a link to nothing", "pipe.png": "a pipe"}.items():
            with pytest.raises(DataError, match=why):
                found[f"photos/{name}"].open()
        counts = {reason: left.count for reason, left in sources.left_out.items()}
        assert counts == {"hidden": 2, "not an image": 1, "an archive, to be named itself": 1}
        assert "1 not an image (such as photos/notes.txt)" in left_out_text(sources.left_out)
        assert sources.total() == len(found) == 7

    @pytest.mark.parametrize("name", ["c.csv", "c.jsonl", "c.json", f"{'long' * 20}.txt"])
    def test_what_captions_are_written_into_is_not_counted(self, photos: Path, name: str) -> None:
        lines = caption_format(format_name(Path(name).suffix), 1)
        with only_one(photos / name, "writing captions into"):
            output = FileOutput(photos / name, lines, {}, overwrite=False)
            sources = ImageSources(["photos"])
            assert sources.total() == len(every(sources)) == 4
            left_out = {reason: left.count for reason, left in sources.left_out.items()}
            assert left_out == {"hidden": 2, "not an image": 1}
            output.close(is_complete=True)
        every(sources)
        assert sources.left_out["not an image"].example == "photos/notes.txt"
        # Settings of nothing are somebody else's.
        (photos / "x.settings.json").touch()
        every(sources)
        assert sources.left_out["not an image"].count == 2

    def test_a_link_that_leads_back_is_not_followed(self, photos: Path) -> None:
        (photos / "sub" / "again").symlink_to(photos.resolve())
        assert ImageSources(["photos"]).total() == 4


class TestFilesAndPatterns:
    def test_a_file_is_taken_whatever_it_is_called(self, photos: Path) -> None:
        (photos / "b.png").rename("upload")
        (image,) = every(ImageSources(["upload"]))
        assert (image.name, image.key, image.file) == ("upload", "upload", Path("upload"))
        assert image.open().size == (8, 6)

    @pytest.mark.parametrize("pattern", ["photos/*.png", "{here}/photos/*.png"])
    def test_a_quoted_pattern_counts_as_its_matches(self, photos: Path, pattern: str) -> None:
        quoted = ImageSources([pattern.format(here=Path.cwd())])
        assert [image.key for image in every(quoted)] == [".hidden.png", "b.png"]
        assert quoted.total() == 2

    def test_a_range_of_archives(self, tmp_path: Path) -> None:
        for number in range(3):
            write_tar(tmp_path / f"{number:02d}.tar", {f"{number}.png": png()})
        sources = ImageSources([f"{tmp_path}/{{01..02}}.tar"])
        assert [image.key for image in every(sources)] == ["1.png", "2.png"]

    def test_a_pattern_may_find_folders(self, photos: Path) -> None:
        keys = [image.key for image in every(ImageSources(["photos/s*"]))]
        assert keys == ["c.png", "deeper/d.png"]

    def test_a_name_with_brackets_is_a_name_first(self, photos: Path) -> None:
        (photos / "b.png").rename("photos/b[1].png")
        assert [i.key for i in every(ImageSources(["photos/b[1].png"]))] == ["b[1].png"]

    @pytest.mark.parametrize(
        ("place", "message"),
        [
            ("nowhere/x.jpg", "nowhere/x.jpg: no such file or folder"),
            ("nowhere/*.jpg", "nor a pattern that finds one"),
            ("s3:/typo", "no such file"),
            ("https://example.com/a.jpg", "an address (https), not a file; download"),
            ("-", "standard input is not read"),
        ],
    )
    def test_what_is_not_there_is_named_at_once(self, place: str, message: str) -> None:
        with pytest.raises(DataError, match=re.escape(message)):
            ImageSources([place])

    def test_nothing_is_an_error(self) -> None:
        with pytest.raises(DataError, match="no image was given"):
            ImageSources([])


class TestArchives:
    @pytest.mark.parametrize("name", ["shard.tar", "shard.tar.gz"])
    def test_members_that_are_images_count(self, tmp_path: Path, name: str) -> None:
        members = {"./x/a.png": png(), "x/a.txt": b"text", "x/b.png": b"broken"}
        archive = write_tar(tmp_path / name, members)
        sources = ImageSources([str(archive)])
        good, bad = every(sources)
        assert (good.name, good.key, good.file) == (f"{archive}/x/a.png", "x/a.png", None)
        assert good.open().size == (8, 6)
        with pytest.raises(DataError, match=r"shard.*x/b\.png: not an image"):
            bad.open()
        assert sources.total() is None

    def test_other_members_are_counted_and_content_decides(self, tmp_path: Path) -> None:
        members = {"a": png(), "b.txt": b"text", "._b.png": b"of a Mac", "c.tar": b"nested"}
        sources = ImageSources([str(write_tar(tmp_path / "a.tar", members))])
        assert [image.key for image in every(sources)] == ["a"]
        assert {reason: left.count for reason, left in sources.left_out.items()} == {
            "not an image": 2,
            "hidden": 1,
        }

    def test_dangerous_members_fail_and_the_others_are_read(self, tmp_path: Path) -> None:
        members = {"../up.png": png(), "link.png": None, "link.txt": None, "ok.png": png()}
        archive = write_tar(tmp_path / "a.tar", members)
        up, link, ok = every(ImageSources([str(archive)]))
        with pytest.raises(DataError, match=r"up\.png.*leaves"):
            up.open()
        with pytest.raises(DataError, match="link or a device"):
            link.open()
        assert ok.open().size == (8, 6)

    def test_a_cut_off_archive_fails_at_its_end(self, tmp_path: Path) -> None:
        archive = write_tar(tmp_path / "a.tar", {"1.png": png(), "2.png": png()})
        archive.write_bytes(archive.read_bytes()[:1200])
        images = every(ImageSources([str(archive)]))
        assert images[0].open().size == (8, 6)
        with pytest.raises(DataError, match=r"a\.tar: breaks off.*fetch the archive again"):
            images[-1].open()

    def test_members_that_are_not_wanted_are_not_read(self, tmp_path: Path) -> None:
        archive = write_tar(tmp_path / "a.tar", {f"{n}.png": png() for n in range(3)})
        images = ImageSources([str(archive)]).images(lambda name, file: name.endswith("1.png"))
        assert [image.key for image in images] == ["1.png"]


class TestTables:
    def test_rows_are_named_by_their_ids(self, table: Path) -> None:
        sources = ImageSources([str(table)])
        images = every(sources)
        assert [image.name for image in images] == [*(f"row {n}" for n in range(5)), "broken"]
        assert (images[0].key, images[0].file) == ("row 0", None)
        assert images[0].open().size == (8, 6)
        assert sources.total() == 6
        with pytest.raises(DataError, match="row 'broken': not an image"):
            images[-1].open()

    def test_a_split(self, table: Path) -> None:
        sources = ImageSources([str(table)], split="test")
        assert [image.name for image in every(sources)] == ["row 1", "row 3", "broken"]
        assert sources.total() == 3
        with pytest.raises(DataError, match=r"no row in the split 'val'.*test 3, train 3"):
            ImageSources([str(table)], split="val").total()

    def test_a_split_needs_a_table(self, photos: Path) -> None:
        with pytest.raises(RecipeError, match=r"--split test.*photos is none"):
            ImageSources(["photos"], split="test")

    def test_images_are_read_as_they_are_asked_for(self, tmp_path: Path) -> None:
        rows = (PairRow(id=str(n), image=png(), captions=["a"]) for n in range(100))
        PairTable.create(tmp_path / "t.lance", rows)
        asked: list[str] = []
        images = ImageSources([str(tmp_path / "t.lance")]).images(
            lambda name, file: asked.append(name) is None
        )
        next(images)
        assert len(asked) == 32


def test_places_of_all_kinds_follow_each_other(photos: Path, table: Path) -> None:
    archive = write_tar(Path("a.tar"), {"1.png": png()})
    sources = ImageSources(["photos/sub", str(archive), str(table)])
    assert [image.key for image in every(sources)][:3] == ["c.png", "deeper/d.png", "1.png"]
    assert sources.without_own_file() == "a.tar"
    assert ImageSources(["photos"]).without_own_file() is None


def test_a_damaged_table_fails_and_the_other_sources_do_not(photos: Path, table: Path) -> None:
    (file,) = (table / "data").iterdir()
    file.write_bytes(file.read_bytes()[:40])
    damaged, *others = every(ImageSources([str(table), "photos/sub"]))
    assert [image.key for image in others] == ["c.png", "deeper/d.png"]
    with pytest.raises(DataError, match="a file of this table is missing or damaged"):
        damaged.open()
