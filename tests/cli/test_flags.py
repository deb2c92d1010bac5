"""Numbers on the command line: each has a range, and what is out of it is wrong usage."""

import importlib
import inspect
import types
from collections.abc import Iterator
from dataclasses import is_dataclass
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import pytest

from openblip.cli import COMMANDS, main
from openblip.runtime.ranges import Range

# Their flags are, or include, fields of a recipe, which checks them itself.
_OF_RECIPES = {"pretrain", "finetune", "plan"}


def numbers_without_range(hints: dict[str, Any]) -> Iterator[str]:
    for name, hint in hints.items():
        if isinstance(plain := _bare(hint), type) and is_dataclass(plain):
            yield from numbers_without_range(get_type_hints(plain, include_extras=True))
        elif _is_bare_number(hint):
            yield name


def _bare(hint: Any) -> Any:
    return _bare(get_args(hint)[0]) if get_origin(hint) is Annotated else hint


def _is_bare_number(hint: Any) -> bool:
    if hint in (int, float):
        return True
    if get_origin(hint) is Annotated:
        has_range = any(isinstance(part, Range) for part in hint.__metadata__)
        return not has_range and _is_bare_number(get_args(hint)[0])
    if get_origin(hint) in (Union, types.UnionType, tuple):
        return any(_is_bare_number(part) for part in get_args(hint))
    return False


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - _OF_RECIPES))
def test_every_number_of_a_command_has_a_range(name: str) -> None:
    module, function, _ = COMMANDS[name]
    run = getattr(importlib.import_module(f"openblip.cli.{module}"), function)
    hints = get_type_hints(inspect.unwrap(run), include_extras=True)
    hints.pop("return")
    assert list(numbers_without_range(hints)) == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("data show t --rows -1", "--rows must be at least 0, not -1"),
        ("data import s t --limit -3", "--limit must be at least 1, not -3"),
        ("data import s t --threads 0", "--threads must be from 1 to 4096, not 0"),
        ("data export t f --shard-size 0", "--shard-size must be at least 1, not 0"),
        ("data export t f --itm nan", "--itm must be from 0 to 1, not nan"),
        ("data duplicates t --threads -1", "--threads must be from 1 to 4096, not -1"),
        ("data duplicates t --radius 65", "--radius must be from 0 to 64, not 65"),
        ("capfilt select t --thresholds 0.5 7", "--thresholds must be from 0 to 1, not 7.0"),
        ("capfilt select t --thresholds", "--thresholds needs a value, or several"),
        ("capfilt run t --captioner c --filter f --workers 0", "--workers must be at least 1"),
        ("capfilt status t --price-per-hour inf", "--price-per-hour must be at least 0, not inf"),
        ("evaluate retrieval m t --batch-size -1", "--batch-size must be at least 1, not -1"),
        ("evaluate retrieval m t --max-words 0", "--max-words must be at least 1, not 0"),
        ("evaluate vqa m t --k 0", "--k must be at least 1, not 0"),
        ("evaluate classify m t --templates", "--templates needs a value, or several"),
        ("caption x --seed -1", "--seed must be at least 0, not -1"),
        ("compare f --jobs 0", "--jobs must be from 1 to 4096, not 0"),
        ("plan tiny --gpu l4 --gpus 0", "--gpus must be at least 1, not 0"),
        ("demo --seed -1", "--seed must be at least 0, not -1"),
    ],
)
def test_a_number_out_of_its_range_is_wrong_usage(
    line: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(line.split()) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["caption", ""], "word 1"),
        (["caption", "a.jpg", " "], "word 2"),
        (["match", "", "a dog"], "word 1"),
        (["ask", "", "what?"], "word 1"),
        (["data", "import", "", "t"], "word 1"),
        (["data", "import", "photos", ""], "word 2"),
        (["data", "export", "t", ""], "word 2"),
        (["data", "duplicates", ""], "word 1"),
        (["index", "build", ""], "word 1"),
        (["runs", ""], "word 1"),
        (["evaluate", "videoqa", "m", "", "videos"], "word 2"),
        (["pretrain", "tiny", "t", ""], "word 3"),
        (["pretrain", "tiny", "t", "run", "--init-image", ""], "--init-image"),
        (["finetune", "filter", "t", "run", "--init-from="], "--init-from"),
        (["caption", "a.jpg", "--model", ""], "--model"),
        (["search", "photos", "a dog", "--image", "a.jpg", ""], "--image"),
        (["evaluate", "caption", "m", "t", "--results="], "--results"),
    ],
)
def test_an_empty_word_is_no_name(
    words: list[str], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """As of a shell's variable that is not set; else it would be the folder that one is in."""
    assert main(words) == 2
    told = capsys.readouterr().err
    assert f"{name} is empty, where a name belongs: is a variable not set?" in told
    assert told.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["match", "nowhere.jpg", ""], "a text is empty; leave it out, or write one"),
        (["caption", "nowhere.jpg", "--prompt", ""], "nowhere.jpg"),
        (["pretrain", "tiny", "nowhere", "r", "--data.prefix", "", "--train.steps", "0"], "steps"),
    ],
)
def test_a_text_may_be_empty(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 1
    assert told in capsys.readouterr().err
