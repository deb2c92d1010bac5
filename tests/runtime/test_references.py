"""A class or function of anybody is found by its `module:name`, and what is wrong is one line."""

import subprocess
import sys
from pathlib import Path

import pytest

from openblip.runtime.errors import RecipeError
from openblip.runtime.references import find_object, is_reference, reference_to

MODULE = "class Outer:\n    class Inner: pass\n\ndef make(): pass\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory, where Python does not look by itself."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place not in ("", ".")])
    return tmp_path


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("module:name", True),
        ("package.module:Class.inner", True),
        ("tiny", False),
        ("recipe.yaml", False),
        ("module:", False),
        ("module:name()", False),
        ("s3://bucket/file", False),
        ("C:\\runs", False),
    ],
)
def test_its_form(text: str, is_one: bool) -> None:
    assert is_reference(text) is is_one


def test_a_module_of_the_current_directory_is_found(here: Path) -> None:
    (here / "found_here.py").write_text(MODULE)
    inner = find_object("found_here:Outer.Inner")
    assert inner.__qualname__ == "Outer.Inner"
    assert reference_to(inner) == "found_here:Outer.Inner"
    assert find_object(reference_to(find_object("found_here:make"))).__name__ == "make"


def test_a_package_of_the_current_directory_is_found(here: Path) -> None:
    (here / "package_here").mkdir()
    (here / "package_here" / "__init__.py").touch()
    (here / "package_here" / "part.py").write_text(MODULE)
    assert find_object("package_here.part:make").__name__ == "make"


def test_what_python_has_comes_before_the_current_directory(here: Path) -> None:
    (here / "colorsys.py").write_text("raise SystemExit('not this one')\n")
    assert find_object("colorsys:rgb_to_hsv")(0, 0, 0) == (0.0, 0.0, 0)
    assert str(here) not in sys.path


@pytest.mark.parametrize(
    ("code", "reference", "message"),
    [
        (MODULE, "error_0:mak", r"error_0:mak: .*error_0.py has no mak; did you mean make\?"),
        (MODULE, "error_1:Outer.Other", "error_1.py has no Other"),
        ("\n1 / 0\n", "error_2:x", "error_2.py, line 2: ZeroDivisionError: division by zero"),
        ("def f(:\n", "error_3:x", "error_3.py, line 1: invalid syntax"),
        ("import no_such_thing\n", "error_4:x", "error_4.py, line 1: ModuleNotFoundError"),
        ("import json\njson.loads('{')\n", "error_5:x", "error_5.py, line 2: JSONDecodeError"),
        ("raise SystemExit(2)\n", "error_6:x", "error_6.py, line 1: SystemExit: 2"),
        ("", "error_7.part:x", "error_7.part cannot be imported|no module 'error_7.part'"),
        ("", "no_such_module:x", "no module 'no_such_module', neither where Python looks nor in /"),
        ("", "not a name", "'not a name' is no module:name"),
    ],
)
def test_what_is_wrong_is_one_line(here: Path, code: str, reference: str, message: str) -> None:
    (here / f"{reference.partition(':')[0].partition('.')[0]}.py").write_text(code)
    if "no_such" in reference:
        (here / "no_such_module.py").unlink()
    with pytest.raises(RecipeError, match=message) as raised:
        find_object(reference)
    assert "\n" not in str(raised.value)


def test_what_a_function_defines_cannot_be_named() -> None:
    def inner() -> None: ...

    with pytest.raises(RecipeError, match="define it at the top level"):
        reference_to(inner)  # type: ignore[arg-type]  # mypy: a callable


def test_what_a_script_defines_is_named_after_its_file_and_is_there_once(tmp_path: Path) -> None:
    script = tmp_path / "my_script.py"
    script.write_text(
        "from openblip.runtime.references import find_object, reference_to\n"
        "class Mine: pass\n"
        "assert reference_to(Mine) == 'my_script:Mine', reference_to(Mine)\n"
        "assert find_object('my_script:Mine') is Mine\n"
    )
    subprocess.run([sys.executable, str(script)], check=True)
    subprocess.run([sys.executable, "-m", "my_script"], check=True, cwd=tmp_path)
