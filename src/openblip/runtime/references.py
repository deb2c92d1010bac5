"""Names of classes and functions as `module:name`: how recipes speak of other people's code."""

import difflib
import importlib.util
import re
import sys
import sysconfig
import traceback
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from openblip.runtime.errors import OpenBlipError, RecipeError, one_line

_FORM = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
_LIBRARIES = tuple(sysconfig.get_path(kind) for kind in ("stdlib", "purelib", "platlib"))


def is_reference(text: str) -> bool:
    """Whether a text has the form `module:name`."""
    return _FORM.fullmatch(text) is not None


def reference_to(named: type | FunctionType) -> str:
    """The `module:name` of a class or function, under which another process finds it again.

    What a script defines is named after the script's file, not `__main__`.

    Raises:
        RecipeError: it is defined within a function, where nobody finds it.
    """
    if "<" in named.__qualname__:
        raise RecipeError(
            f"{named.__qualname__} of {named.__module__} is defined within a function, where a "
            "resumed run cannot find it: define it at the top level of a module"
        )
    module = _name_of_main() if named.__module__ == "__main__" else named.__module__
    return f"{module}:{named.__qualname__}"


def find_object(reference: str, error: type[OpenBlipError] = RecipeError) -> Any:
    """What `module:name` names; its module is imported if it is not yet.

    A module is looked for where Python looks, and then in the current directory, as `python -m`
    does.

    Args:
        reference: of a class, a function, or what else a module has.
        error: what is raised.

    Raises:
        error: it has another form, there is no such module or name, or the import fails: then the
            message names file and line.
    """
    if not is_reference(reference):
        raise error(f"{reference!r} is no module:name, such as my_module:MyClass")
    module_name, _, path = reference.partition(":")
    found: Any = _module(module_name, error)
    for name in path.split("."):
        if not hasattr(found, name):
            where = getattr(sys.modules.get(module_name), "__file__", None) or module_name
            near = difflib.get_close_matches(name, dir(found), 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise error(f"{reference}: {where} has no {name}{hint}")
        found = getattr(found, name)
    return found


def _module(name: str, error: type[OpenBlipError]) -> ModuleType:
    if name == _name_of_main():
        # Imported by its own name it would be there twice, with two classes of one name.
        return sys.modules["__main__"]
    _look_here(name.partition(".")[0])
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as why:
        if why.name is not None and f"{name}.".startswith(f"{why.name}."):
            raise error(
                f"no module {why.name!r}, neither where Python looks nor in {Path.cwd()}"
            ) from why
        raise _failed(name, why, error) from why
    except (Exception, SystemExit) as why:
        raise _failed(name, why, error) from why


def _look_here(package: str) -> None:
    """Let Python look in the current directory, last, if it has the module and no one else."""
    here = Path.cwd()
    # A folder need not have an `__init__.py`: Python takes it for a package all the same.
    if str(here) in sys.path or not (
        (here / f"{package}.py").is_file() or (here / package).is_dir()
    ):
        return
    if package not in sys.modules and importlib.util.find_spec(package) is None:
        sys.path.append(str(here))
        importlib.invalidate_caches()


def _failed(name: str, why: BaseException, error: type[OpenBlipError]) -> OpenBlipError:
    return error(f"{name} cannot be imported: {told(why)}")


def told(why: BaseException) -> str:
    """What somebody else's code has raised, in one line with its file and line."""
    if isinstance(why, SyntaxError) and why.filename:
        return f"{why.filename}, line {why.lineno}: {why.msg}"
    frames = [
        frame
        for frame in traceback.extract_tb(why.__traceback__)
        if not frame.filename.startswith("<frozen") and frame.filename != __file__
    ]
    # Where the user's own code is, not the library that it calls.
    own = [frame for frame in frames if not frame.filename.startswith(_LIBRARIES)]
    where = "".join(f"{place.filename}, line {place.lineno}: " for place in (own or frames)[-1:])
    return f"{where}{type(why).__name__}: {one_line(why)}"


def _name_of_main() -> str:
    """By what name another process would import the module that runs as `__main__`."""
    main = sys.modules["__main__"]
    spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    if spec is not None:
        return str(spec.name)
    name = Path(file).stem if file else ""
    return name if name.isidentifier() else "__main__"
