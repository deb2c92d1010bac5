"""What is gathered of one image from several records."""

from collections.abc import Callable
from pathlib import Path

import pytest

from openblip.sources.records import Gathered, GatheredSource, ImageFolder
from openblip.sources.report import Reason
from openblip.sources.source import Entry, Found, Refused, known_id


@pytest.fixture
def gathered(tmp_path: Path, jpeg: Callable[..., bytes]) -> Gathered:
    (tmp_path / "b.jpg").write_bytes(jpeg(0))
    return Gathered(tmp_path / "list.json", ImageFolder(tmp_path))


def entries(gathered: Gathered) -> list[Entry]:
    return list(GatheredSource("captions", gathered).entries(None))


def test_records_of_an_image_are_counted_and_its_file_is_the_first_that_is_there(
    gathered: Gathered,
) -> None:
    for text in ("x", "y"):
        gathered.image("7", ("a.jpg", "b.jpg")).captions.append(text)
    (found,) = entries(gathered)
    assert isinstance(found, Found)
    assert (found.num_records, found.captions, found.key) == (2, ["x", "y"], "7")
    assert found.image == gathered.folder.root / "b.jpg"


def test_one_id_of_two_files_is_a_contradiction_that_names_both(gathered: Gathered) -> None:
    gathered.image("7", ("a.jpg",))
    gathered.image("7", ("b.jpg",))
    (refused,) = entries(gathered)
    assert isinstance(refused, Refused)
    assert (refused.reason, refused.num_records) == (Reason.CONTRADICTION, 2)
    assert "'a.jpg'" in refused.detail
    assert "'b.jpg'" in refused.detail


@pytest.mark.parametrize(
    ("words", "of_file", "said"),
    [
        (("train", "restval"), None, "train"),
        (("train", None), "train", "train"),
        (("train", "test"), None, "train and test"),
        (("train", "test", "test"), None, "train and test"),
        ((None,), "test", "test"),
        (("val",), "test", "val and test"),
        (("val",), "all", "val"),
        ((None,), "all", "all"),
    ],
)
def test_records_say_one_split_or_both(
    gathered: Gathered, words: tuple[str | None, ...], of_file: str | None, said: str
) -> None:
    for word in words:
        gathered.image("7", ("b.jpg",), word)
    gathered.split = of_file
    (found,) = entries(gathered)
    assert isinstance(found, Found)
    assert found.split == said


def test_reading_goes_on_after_any_entry(gathered: Gathered) -> None:
    for name in ("a.jpg", "b.jpg"):
        gathered.image(name, (name,))
    gathered.refuse("record 2", "is none")
    source = GatheredSource("captions", gathered)
    all_of_it = list(source.entries(None))
    assert len(all_of_it) == source.total() == 3
    for number, entry in enumerate(all_of_it, 1):
        assert list(source.entries(entry.cursor)) == all_of_it[number:]


@pytest.mark.parametrize(
    ("value", "expected"),
    [(9, 9), (391895.0, 391895), ("x1", "x1"), (0, 0), (None, None), (True, None), ("", None),
     (1.5, None), ([1], None), (10**30, 10**30)],
)  # fmt: skip
def test_ids_are_numbers_or_texts(value: object, expected: object) -> None:
    assert known_id(value) == expected
