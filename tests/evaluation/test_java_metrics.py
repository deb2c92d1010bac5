"""METEOR and SPICE by their own programs, where these and Java are."""

import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from openblip.evaluation.java_metrics import JavaPrograms
from openblip.runtime.errors import DataError, MetricLeftOut

CAPTIONS = ["A dog runs on the grass.", "a red car", "two ||| men"]
REFERENCES = [
    ["A dog is running on grass.", "the dog runs"],
    ["a blue car parked on a street"],
    ["Two men walk."],
]
# What `Meteor().compute_score` of pycocoevalcap 1.2 gives for their tokens.
METEOR = 0.21301316146484853

needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="there is no Java")


@pytest.fixture(scope="module")
def folder() -> Path:
    """The programs, in the folder of pycocoevalcap or where OPENBLIP_JAVA_METRICS says."""
    named = os.environ.get("OPENBLIP_JAVA_METRICS")
    if named:
        return Path(named)
    package = find_spec("pycocoevalcap")
    if package is None or not package.submodule_search_locations:
        pytest.skip("neither OPENBLIP_JAVA_METRICS nor pycocoevalcap is there")
    return Path(package.submodule_search_locations[0])


def put(folder: Path, *names: str) -> None:
    """Files that are no programs."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"no archive")


@needs_java
@pytest.mark.slow
def test_meteor_is_that_of_pycocoevalcap(folder: Path) -> None:
    found = JavaPrograms.find(folder).metrics(CAPTIONS, REFERENCES)
    assert found["METEOR"] == pytest.approx(METEOR, abs=1e-9)


@needs_java
@pytest.mark.slow
def test_spice_is_the_mean_over_captions(folder: Path) -> None:
    programs = JavaPrograms.find(folder)
    if programs.spice_lacks:
        pytest.skip(f"SPICE lacks {programs.spice_lacks[0].name}, which is not on PyPI")
    assert programs.metrics(["a red dog"], [["a red dog"]])["SPICE"] == 1.0
    both = programs.metrics(["a red dog", "a cat"], [["a red dog"], ["a boat"]])
    assert both["SPICE"] == 0.5


@needs_java
def test_a_program_that_fails_is_left_out_with_its_reason(tmp_path: Path) -> None:
    put(tmp_path, "meteor/meteor-1.5.jar")
    with pytest.warns(MetricLeftOut, match=r"METEOR .*meteor-1.5.jar failed \(Error: .*corrupt"):
        assert JavaPrograms.find(tmp_path).metrics(["a cat"], [["a cat"]]) == {}


def test_what_a_program_says_last_is_told_where_it_names_no_error(tmp_path: Path) -> None:
    said = "\n".join(f"line {number}" for number in range(5))
    java = tmp_path / "java"
    java.write_text(f"#!/bin/sh\necho '{said}' >&2\nexit 3\n")
    java.chmod(0o755)
    put(tmp_path, "meteor/meteor-1.5.jar", "spice/spice-1.0.jar")
    meteor, spice = tmp_path / "meteor" / "meteor-1.5.jar", tmp_path / "spice" / "spice-1.0.jar"
    programs = JavaPrograms(str(java), meteor, spice, spice_lacks=())
    with pytest.warns(MetricLeftOut) as told:
        assert programs.metrics(["a cat"], [["a cat"]]) == {}
    for name, warning in zip(("METEOR", "SPICE"), told, strict=True):
        assert f"{name} is left out" in str(warning.message)
        assert "failed (line 2; line 3; line 4)" in str(warning.message)


@needs_java
def test_spice_is_left_out_where_something_is_missing(tmp_path: Path) -> None:
    put(tmp_path, "meteor/meteor-1.5.jar", "spice/spice-1.0.jar")
    lacking = JavaPrograms.find(tmp_path).spice_lacks
    assert [file.name for file in lacking] == [
        "stanford-corenlp-3.6.0.jar",
        "stanford-corenlp-3.6.0-models.jar",
    ]


@needs_java
def test_a_folder_without_meteor_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"meteor-1.5.jar: no such file; .*pycocoevalcap"):
        JavaPrograms.find(tmp_path)


def test_java_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match="no program `java`"):
        JavaPrograms.find(tmp_path)
