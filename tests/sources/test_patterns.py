"""Paths by pattern and by braces."""

from pathlib import Path

import pytest

from openblip.runtime.errors import DataError
from openblip.sources.paths import matching_paths


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("train", "val"):
        (tmp_path / folder).mkdir()
        for number in range(8, 12):
            (tmp_path / folder / f"{number:03d}.tar").touch()


def _found(source: str) -> list[str]:
    return [str(path) for path in matching_paths(source)]


@pytest.mark.usefixtures("names")
@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("train/{008..010}.tar", ["train/008.tar", "train/009.tar", "train/010.tar"]),
        (
            "{train,val}/{010..011}.tar",
            [f"{s}/{n}.tar" for s in ("train", "val") for n in (10, 11)],
        ),
        ("train/0{0..1}{1..1}.tar", None),
        ("train/0{1..1}{0..1}.tar", ["train/010.tar", "train/011.tar"]),
        ("{train,val}/*8.tar", ["train/008.tar", "val/008.tar"]),
        ("*/*1.tar", ["train/011.tar", "val/011.tar"]),
        ("train/{11..8}.tar", []),
        ("nothing", []),
        ("nothing*", []),
    ],
)
def test_what_patterns_and_braces_name(source: str, found: list[str] | None) -> None:
    if found is None:
        with pytest.raises(DataError, match=r"001\.tar does not exist \(1 are missing\)"):
            matching_paths(source)
        return
    padded = [name.replace("/1", "/01") for name in found]
    assert _found(source) == padded


@pytest.mark.usefixtures("names")
def test_a_file_whose_name_has_braces_is_that_file(tmp_path: Path) -> None:
    (tmp_path / "{0..1}.tar").touch()
    assert _found("{0..1}.tar") == ["{0..1}.tar"]


def test_too_many_names_are_refused_before_any_is_looked_for() -> None:
    with pytest.raises(DataError, match="more than 1,000,000 files"):
        matching_paths("{0..9999999}/{0..9999999}.tar")


def test_what_is_no_pattern_is_said() -> None:
    with pytest.raises(DataError, match="is no pattern"):
        matching_paths("a/**b")


def test_two_stars_at_the_end_are_folders_on_every_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "c.tar").touch()
    monkeypatch.chdir(tmp_path)
    assert _found("a/**") == ["a", "a/b"]
    assert _found("a/**/*.tar") == ["a/c.tar"]
