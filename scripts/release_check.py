"""What a release needs, as a list with yes and no: `make release-check`, which builds first.

Exit code 1 if one of them is missing. Nothing is changed, nothing is published.
"""

import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DIST, SITE = ROOT / "dist", ROOT / "build" / "site"
LICENCE = "LICENSE"
PEOPLE_LOOK_FOR = (
    LICENCE, "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "CODE_OF_CONDUCT.md",
    "CITATION.cff", "Dockerfile", "compose.yaml", "constraints.txt", "docs/versions.md",
)  # fmt: skip
# Unfinished work, conflicts, secrets, and places of one person's machine.
FORBIDDEN = re.compile(
    r"\b(?:FIXME|XXX)\b|^(?:<{7}|>{7}) |/(?:home|Users)/(?!openblip|you)\w+/"
    r"|BEGIN [A-Z ]*PRIVATE KEY|\bAKIA[0-9A-Z]{16}\b|\bhf_[A-Za-z0-9]{30,}",
    re.M,
)
TEXTS = {".py", ".md", ".toml", ".yaml", ".yml", ".cff", ".sh", ".js", ".css", ".html", ".txt"}
Check = Callable[[], Iterator[str]]
CHECKS: dict[str, Check] = {}


def check(title: str) -> Callable[[Check], Check]:
    """Puts a check on the list; it yields what is wrong."""

    def listed(run: Check) -> Check:
        CHECKS[title] = run
        return run

    return listed


def output(*words: str) -> str:
    """What a command prints."""
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def tracked() -> list[Path]:
    """The files of the repository."""
    return [ROOT / name for name in output("git", "ls-files", "-z").split("\0") if name]


def version() -> str:
    """The package's own, read and not imported."""
    text = (ROOT / "src" / "openblip" / "__init__.py").read_text(encoding="utf-8")
    (found,) = re.findall(r'^__version__ = "(.+)"$', text, re.M)
    return str(found)


@check("one version: package, CHANGELOG, CITATION, wheel, source archive")
def _() -> Iterator[str]:
    ours = version()
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    first = re.search(r"^## (\S+)(.*)$", changes, re.M)
    if first is None or first[1] != ours:
        yield f"CHANGELOG.md begins with {first and first[1]}, not {ours}"
    elif "unreleased" in first[2]:
        yield f"CHANGELOG.md says that {ours} is unreleased: give it its date"
    cited = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.M)
    if cited is None or cited[1] != ours:
        yield f"CITATION.cff has {cited and cited[1]}, not {ours}"
    for name in (f"openblip-{ours}-py3-none-any.whl", f"openblip-{ours}.tar.gz"):
        if not (DIST / name).is_file():
            yield f"dist/{name} is not there: make build"


@check("the tree is clean")
def _() -> Iterator[str]:
    yield from output("git", "status", "--porcelain").splitlines()


@check("files that people look for")
def _() -> Iterator[str]:
    yield from (f"{name} is not there" for name in PEOPLE_LOOK_FOR if not (ROOT / name).is_file())


@check("no unfinished work, no secret, no path of one person's machine")
def _() -> Iterator[str]:
    for path in tracked():
        if path.suffix not in TEXTS or path == Path(__file__).resolve():
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        here = re.compile(f"{FORBIDDEN.pattern}|{re.escape(str(ROOT.parent))}/", re.M)
        for found in here.finditer(text):
            line = text.count("\n", 0, found.start()) + 1
            yield f"{path.relative_to(ROOT)}:{line}: {found[0].strip()}"


@check("links between the files of the repository")
def _() -> Iterator[str]:
    for path in (path for path in tracked() if path.suffix == ".md"):
        text = re.sub(r"^ *```.*?^ *```$|`[^`\n]*`", "", path.read_text("utf-8"), flags=re.M | re.S)
        for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", text):
            if not (path.parent / target).exists():
                yield f"{path.relative_to(ROOT)}: {target}"


@check("lint and types")
def _() -> Iterator[str]:
    for words in (("ruff", "check", "--quiet", "."), ("ruff", "format", "--check", "."), ("mypy",)):
        done = subprocess.run(
            [sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True
        )
        if done.returncode:
            yield from [" ".join(words), *(done.stdout + done.stderr).splitlines()[-3:]]


@check("wheel: the package whole, its licence, its types, nothing else")
def _() -> Iterator[str]:
    for wheel in DIST.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            names = set(archive.namelist())
        source = ROOT / "src"
        package = {p.relative_to(source).as_posix() for p in tracked() if source in p.parents}
        about = f"openblip-{version()}.dist-info/"
        yield from (f"missing: {name}" for name in sorted(package - names))
        extra = sorted(name for name in names - package if not name.startswith(about))
        yield from (f"too much: {name}" for name in extra)
        if f"{about}licenses/{LICENCE}" not in names:
            yield f"{wheel.name} has no {LICENCE}"
        if "openblip/py.typed" not in names:
            yield f"{wheel.name} has no py.typed"


@check("source archive: builds, tests and pages are in it")
def _() -> Iterator[str]:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = listed["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    for archive in DIST.glob("*.tar.gz"):
        with tarfile.open(archive) as tar:
            names = {name.partition("/")[2] for name in tar.getnames()}
        for each in wanted:
            if not any(name == each or name.startswith(f"{each}/") for name in names):
                yield f"missing: {each}"
    untold = [name for name in PEOPLE_LOOK_FOR if not any(name.startswith(w) for w in wanted)]
    yield from (f"pyproject.toml's sdist leaves out {n}" for n in untold if n.endswith(".md"))


@check("what the package index shows: twine, whole addresses alone")
def _() -> Iterator[str]:
    for wheel in DIST.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            about = archive.read(f"openblip-{version()}.dist-info/METADATA").decode()
        for target in re.findall(r"\]\((?!https://|#)([^)]+)\)", about):
            yield f"the README there links to {target}, which lies in the repository"
    words = [sys.executable, "-m", "twine", "check", "--strict", *map(str, DIST.glob("openblip-*"))]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    if done.returncode or not DIST.is_dir():
        yield from (done.stdout + done.stderr).splitlines()[-4:] or ["dist is not there"]


@check("the site is built, and is newer than its pages")
def _() -> Iterator[str]:
    index = SITE / "index.html"
    if not index.is_file():
        yield "build/site is not there: make docs"
        return
    pages = [path for path in tracked() if path.suffix == ".md" or path.name == "mkdocs.yml"]
    newer = [p for p in pages if p.stat().st_mtime > index.stat().st_mtime]
    yield from (f"{path.relative_to(ROOT)} is newer: make docs" for path in newer)


def main() -> int:
    """Goes through the list."""
    wrong = 0
    for title, run in CHECKS.items():
        found = list(run())
        wrong += bool(found)
        print(f"{'no ' if found else 'yes'}  {title}", flush=True)
        for line in found[:12]:
            print(f"       {line}")
        if len(found) > 12:
            print(f"       and {len(found) - 12} more")
    print(f"\n{version()}: {'ready' if not wrong else f'{wrong} of {len(CHECKS)} are missing'}")
    print("By hand: make test, make slow, make test-oldest; then tag, and upload dist/.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
