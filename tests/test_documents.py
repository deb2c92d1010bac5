"""What the documents say exists: commands, targets, files, links."""

import re
from pathlib import Path

import pytest

from openblip.cli import _COMMANDS

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def code_lines(document: Path) -> list[str]:
    blocks = re.findall(r"```(?:sh)?\n(.*?)```", document.read_text(encoding="utf-8"), re.S)
    return [line.strip() for block in blocks for line in block.splitlines()]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_exist(document: Path) -> None:
    for line in code_lines(document):
        if line.startswith("openblip "):
            words = line.split()[1:]
            names = {" ".join(words[:2]), words[0]}
            assert names & set(_COMMANDS), line


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_make_targets_exist(document: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    for target in re.findall(r"make ([a-z]+)", "\n".join(code_lines(document))):
        assert target in targets


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_source_files_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        if "://" not in link:
            assert (document.parent / link).exists(), link
    package = ROOT / "src" / "openblip"
    for name in re.findall(r"`((?:[a-z_]+/)+[a-z_0-9]+\.py)`", text):
        homes = [ROOT / name, package / name, package / "data" / "importers" / name]
        assert any(home.exists() for home in homes), name


def test_every_dependency_has_its_reason() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = project.split("dependencies = [", 1)[1].split("]", 1)[0]
    reasons = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    for name in re.findall(r'"([A-Za-z_]+)', block):
        assert f"| {name}" in reasons, name


def test_documents_are_short_enough_to_be_read() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
    assert len((ROOT / "docs" / "architecture.md").read_text().splitlines()) <= 150
