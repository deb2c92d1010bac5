"""Where the images are looked for that a file of annotations names."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from openblip.runtime.errors import DataError
from openblip.sources.records import ImageFolder, coco_names, find_images
from openblip.sources.source import SourceOptions, UnsafePath

OTHERS = "/export/share/datasets/vision"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "annotations").mkdir()
    return tmp_path / "annotations" / "captions.json"


def put(folder: Path, names: Sequence[str]) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def found(file: Path, names: Sequence[str], root: Path | None = None) -> ImageFolder:
    return find_images(file, names, SourceOptions(image_root=root))


def test_a_few_images_of_a_long_list_are_found(file: Path) -> None:
    put(file.parent / "images", ["99998.jpg"])
    folder = found(file, [f"{number}.jpg" for number in range(100_000)])
    assert folder.root == file.parent / "images"


def test_the_folder_that_has_most_of_them_is_taken(file: Path) -> None:
    put(file.parent, ["1.jpg"])
    put(file.parent / "data", ["1.jpg", "2.jpg"])
    assert found(file, ["1.jpg", "2.jpg", "3.jpg"]).root == file.parent / "data"


def test_absolute_names_of_another_machine_are_mapped(file: Path, tmp_path: Path) -> None:
    put(tmp_path, ["image/1.jpg"])
    names = [f"{OTHERS}/image/{number}.jpg" for number in (1, 2)]
    folder = found(file, names)
    assert folder == ImageFolder(file.parent / "..", f"{OTHERS}/")
    assert [folder.below(name) for name in names] == ["image/1.jpg", "image/2.jpg"]
    assert folder.path(names[0]).is_file()
    # The folders of that machine say nothing, but for those that are kept.
    assert folder.folder_of(names[0]) == "image"


def test_all_absolute_names_are_mapped_alike_so_that_no_two_mean_one_file(
    file: Path, tmp_path: Path
) -> None:
    put(tmp_path / "root", ["train/1.jpg", "2.jpg"])
    folder = found(file, [f"{OTHERS}/train/{n}.jpg" for n in (1, 2)], tmp_path / "root")
    # 2.jpg beside the folder is another image than train/2.jpg, which is missing.
    assert folder.below(f"{OTHERS}/train/2.jpg") == "train/2.jpg"
    with pytest.raises(UnsafePath):
        folder.path("/elsewhere/2.jpg")


def test_a_bare_name_is_mapped_only_into_a_folder_that_the_user_names(file: Path) -> None:
    put(file.parent, ["1.jpg"])
    with pytest.raises(DataError, match="--image-root"):
        found(file, [f"{OTHERS}/1.jpg"])
    folder = found(file, [f"{OTHERS}/1.jpg"], file.parent)
    assert folder.path(f"{OTHERS}/1.jpg") == file.parent / "1.jpg"


def test_beside_relative_names_others_are_not_guessed(file: Path) -> None:
    put(file.parent, ["x/1.jpg"])
    folder = found(file, ["x/1.jpg", f"{OTHERS}/x/1.jpg", f"{file.parent}/x/1.jpg"], file.parent)
    assert folder.path(f"{file.parent}/x/1.jpg") == file.parent / "x/1.jpg"
    with pytest.raises(UnsafePath):
        folder.path(f"{OTHERS}/x/1.jpg")


def test_absolute_names_of_windows_are_mapped_too(file: Path) -> None:
    put(file.parent, ["x/1.jpg"])
    folder = found(file, ["C:\\photos\\x\\1.jpg"])
    assert folder.below("C:\\photos\\x\\1.jpg") == "x/1.jpg"
    assert found(file, ["x\\1.jpg"]).below("x\\1.jpg") == "x/1.jpg"


def test_images_that_are_nowhere_are_an_error_that_says_what_to_name(file: Path) -> None:
    names = ["1.jpg", "no\0file", "\ud83d.jpg", "../../../x.jpg", "/"]
    with pytest.raises(DataError, match="--image-root") as caught:
        found(file, names)
    assert len(str(caught.value)) < 300 + len(str(file))


def test_where_nothing_is_named_or_only_addresses_nothing_is_searched(file: Path) -> None:
    assert found(file, []).root == file.parent
    assert found(file, ["https://a.example/1.jpg"]).root == file.parent


def test_the_images_of_coco_may_lie_as_in_any_year() -> None:
    names = coco_names(9)
    assert {"train2017/000000000009.jpg", "val2014/COCO_val2014_000000000009.jpg"} <= set(names)
