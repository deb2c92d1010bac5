"""Builds the site: `make docs`, into build/site.

The tree is copied as it lies, so that the links between its pages hold; README.md is the first one.
What is generated comes beside it: a page for each command from its `--help`, and a page for each
room with the names of `import openblip` in it, from their docstrings. Links to what is no page
(a script, a folder) lead to the repository. MkDocs then refuses a link that leads nowhere, and a
page that nothing names.
"""

import argparse
import contextlib
import importlib
import io
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections import defaultdict
from functools import partial
from pathlib import Path

import yaml

import openblip
from openblip import cli

ROOT = Path(__file__).resolve().parent.parent
REPOSITORY = "https://github.com/openblip/openblip/blob/main/"
PAGES = ("*.md", "docs/**/*.md", "benchmarks/results/*.md")
BESIDE = ("docs/**/*.png", "docs/**/*.jpg", "docs/site/*")
COMMANDS, NAMES = "reference/commands", "reference/python"
WIDTH = 88
# A recipe's flags are shown for these words; other commands need none to show theirs.
RECIPE_WORDS = {
    "pretrain": ["tiny", "TABLE", "RUN_DIR"],
    "finetune": ["captioner", "TABLE", "RUN_DIR"],
}
ROOMS = {
    "inference": "Models at work",
    "index": "Search",
    "table": "Tables and views",
    "sources": "Import",
    "batches": "Batches",
    "model": "Models",
    "training": "Training",
    "recipes": "Recipes",
    "objectives": "Objectives of your own",
    "capfilt": "CapFilt",
    "evaluation": "Evaluation",
    "metrics": "Metrics",
    "runtime": "Errors",
}
LINK = re.compile(r"(?<!`)(\[[^\]]*\]\()(?!https?:|#|mailto:)([^)#\s]+)(#[^)\s]*)?\)")


def stage(folder: Path) -> None:
    """The pages and pictures of the tree; links to what is no page lead to the repository."""
    pages = [path for pattern in PAGES for path in sorted(ROOT.glob(pattern))]
    beside = [path for pattern in BESIDE for path in sorted(ROOT.glob(pattern))]
    copied = {path.relative_to(ROOT).as_posix() for path in (*pages, *beside)}
    for path in pages:
        name = path.relative_to(ROOT)
        led_on = partial(led, parent=name.parent, copied=copied)
        write(folder / name, LINK.sub(led_on, path.read_text(encoding="utf-8")))
    for path in beside:
        target = folder / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)


def led(link: re.Match[str], parent: Path, copied: set[str]) -> str:
    """A link of a page below `parent`, as it stands on the site."""
    before, target, anchor = link.group(1), link.group(2), link.group(3) or ""
    path = os.path.normpath(parent / target)
    if path in copied or not (ROOT / path).exists():  # what is not there MkDocs tells
        return link.group(0)
    return f"{before}{REPOSITORY}{path}{anchor})"


def write(path: Path, text: str) -> None:
    """A page that is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def help_of(name: str) -> str:
    """What `openblip NAME --help` prints."""
    printed = io.StringIO()
    words = [*name.split(), *RECIPE_WORDS.get(name, []), "--help"]
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        cli.main(words)
    text = re.sub(r"\x1b\[[0-9;]*m", "", printed.getvalue()).rstrip()
    if "--help" not in text:
        raise SystemExit(f"`openblip {' '.join(words)}` shows no help")
    # The parser wraps what it says of flags, but not a command's own text.
    lines = [
        textwrap.wrap(line, WIDTH, subsequent_indent="  ") or [""] for line in text.split("\n")
    ]
    return "\n".join(part.rstrip() for line in lines for part in line)


def command_pages(folder: Path) -> list[dict[str, str]]:
    """A page for each first word, and their places in the navigation."""
    groups = defaultdict(list)
    for name in cli.COMMANDS:
        groups[name.split()[0]].append(name)
    places = []
    for word, names in groups.items():
        parts = [f"# openblip {word}", ""]
        for name in names:
            shown = " ".join(["openblip", name, *RECIPE_WORDS.get(name, []), "--help"])
            parts += [] if names == [word] else [f"## {name}", ""]
            parts += ["```text", f"$ {shown}", help_of(name), "```", ""]
        page = f"{COMMANDS}/openblip-{word}.md"
        write(folder / page, "\n".join(parts))
        places.append({word: page})
    return places


def name_pages(folder: Path) -> list[dict[str, str]]:
    """A page for each room with its names in `import openblip`, and their places."""
    rooms = defaultdict(list)
    for name in openblip.__all__:
        found = getattr(openblip, name)
        if name in ("metrics", "recipes"):
            rooms[name] += [(f"{name}.{own}", getattr(found, own)) for own in found.__all__]
        else:
            rooms[found.__module__.split(".")[1]].append((name, found))
    if unknown := set(rooms) - set(ROOMS):
        raise SystemExit(f"scripts/site.py: ROOMS has no title for {', '.join(sorted(unknown))}")
    places = []
    for room, title in ROOMS.items():
        doc = (importlib.import_module(f"openblip.{room}").__doc__ or "").strip().split("\n")[0]
        parts = [f"# {title}", "", doc, ""]
        for name, found in rooms[room]:
            parts += [f"::: {found.__module__}.{found.__qualname__}", "    options:"]
            parts += [f"      heading: openblip.{name}", f"      toc_label: {name}", ""]
        page = f"{NAMES}/openblip-{room}.md"
        write(folder / page, "\n".join(parts))
        places.append({title: page})
    return places


def titled(pattern: str) -> list[str]:
    """Pages of a pattern, for the navigation, which takes their titles."""
    return [path.relative_to(ROOT).as_posix() for path in sorted(ROOT.glob(pattern))]


def configure(folder: Path, made: dict[str, list[dict[str, str] | str]]) -> Path:
    """mkdocs.yml beside the pages, with what is made in its navigation."""
    settings = yaml.unsafe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))

    def filled(part: object) -> object:
        if isinstance(part, list):
            return [filled(each) for each in part]
        if isinstance(part, dict):
            return {title: filled(each) for title, each in part.items()}
        return made.get(str(part), part)

    settings["nav"] = filled(settings["nav"])
    settings["docs_dir"] = str(folder)
    path = folder.parent / "mkdocs.yml"
    path.write_text(yaml.dump(settings, sort_keys=False), encoding="utf-8")
    return path


def foreign(site: Path) -> list[str]:
    """What pages would fetch from other hosts: a script, a style, a font, a picture."""
    fetched = re.compile(
        r"""<(?:script|img|link rel="(?:stylesheet|preload)")[^>]+(?:src|href)="(https?:[^"]+)"""
    )
    return sorted(
        {
            f"{page.relative_to(site)}: {url}"
            for page in site.rglob("*.html")
            for url in fetched.findall(page.read_text())
        }
    )


def main() -> int:
    """Stages, builds, checks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "build" / "site")
    output = parser.parse_args().output.resolve()
    os.environ.update(COLUMNS=str(WIDTH), NO_COLOR="1", NO_MKDOCS_2_WARNING="1")
    pages = output.parent / "pages"
    shutil.rmtree(pages, ignore_errors=True)
    stage(pages)
    made = {
        "COMMANDS": command_pages(pages),
        "NAMES": name_pages(pages),
        "MEASUREMENTS": titled("benchmarks/results/*.md"),
        "DECISIONS": titled("docs/decisions/*.md"),
    }
    file = configure(pages, made)
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"]
    built = subprocess.run([*command, "--config-file", str(file), "--site-dir", str(output)])
    if built.returncode:
        return built.returncode
    if found := foreign(output):
        print("\n".join(["the site fetches from other hosts:", *found]), file=sys.stderr)
        return 1
    print(f"{output / 'index.html'}: {len(list(output.rglob('*.html')))} pages")
    return 0


if __name__ == "__main__":
    sys.exit(main())
