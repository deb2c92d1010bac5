"""The `openblip` command: finds the subcommand, prints errors as one line."""

import atexit
import difflib
import gc
import importlib
import inspect
import os
import select
import shutil
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, get_origin

from openblip.cli.flags import UsageError, checked, empty_name, wrapping
from openblip.cli.output import complain, is_first_process, replace_what_cannot_be_shown
from openblip.runtime.errors import OpenBlipError, tell_warnings
from openblip.runtime.threads import spin_briefly

# These answer at once; every other command says that it begins, see `announce`.
_QUICK = ("data show", "index show", "runs")
# The descriptor of standard output.
_OUTPUT = 1
# Narrower, the boxes of usage messages cannot be drawn.
_LEAST_COLUMNS = 40
# Command words -> (module under openblip.cli, function, one line of help).
COMMANDS: dict[str, tuple[str, str, str]] = {
    "demo": ("demo", "demo", "the whole loop on an embedded world, with a report page"),
    "data import": ("data", "import_", "bring image-text pairs into a pair table"),
    "data export": ("data", "export", "write a view of a pair table for other programs"),
    "data duplicates": ("data", "duplicates", "flag images and captions that repeat others"),
    "data leakage": ("data", "leakage", "flag training rows that an evaluation sees again"),
    "data show": ("data", "show", "what is in a pair table"),
    "pretrain": ("train", "pretrain", "train a MED from scratch on a view of a table"),
    "finetune": (
        "train",
        "finetune",
        "fine-tune for captions, retrieval, questions, image pairs, or as a filter",
    ),
    "runs": ("runs", "runs", "list and compare training runs; a page with curves"),
    "plan": ("plan", "plan", "memory, time and price of a training run, before it runs"),
    "capfilt run": ("capfilt", "run", "caption and score the web rows of a table"),
    "capfilt scores": ("scores", "scores", "say more of each text than its filter does"),
    "capfilt fit": ("scores", "fit", "fit one calibrated probability to all scores"),
    "capfilt add-texts": ("capfilt", "add_texts", "bring captions that were made elsewhere"),
    "capfilt status": ("capfilt", "status", "how far a job is, its rate and its cost"),
    "capfilt review": ("review", "review", "verdicts of people, and a certified threshold"),
    "capfilt select": ("capfilt", "select", "how many texts stay at which threshold"),
    "capfilt report": ("capfilt", "report", "a page of what is kept and what is rejected"),
    "evaluate retrieval": ("evaluate", "retrieval", "recall by contrast, then by matching"),
    "evaluate caption": ("evaluate", "caption", "BLEU, ROUGE-L and CIDEr of captions"),
    "evaluate vqa": ("evaluate", "vqa", "accuracy of answers to questions; WUPS"),
    "evaluate nlvr": ("evaluate", "nlvr", "accuracy and consistency of sentences on two images"),
    "evaluate classify": ("evaluate", "classify", "accuracy of naming classes by prompts"),
    "evaluate video": ("evaluate", "video", "recall of texts and of videos, and median rank"),
    "evaluate videoqa": ("evaluate", "videoqa", "accuracy of answers to questions about videos"),
    "index build": ("search", "build", "embed a folder or a table, to search it"),
    "index update": ("search", "update", "bring an index up to date with its files or rows"),
    "index show": ("search", "show", "what an index covers"),
    "search": ("search", "search", "find images by texts and images"),
    "studio": ("studio", "studio", "look into a collection in the browser"),
    "compare": ("compare", "compare", "models x tasks x seeds from one file: the tables"),
    "caption": ("predict", "caption", "caption images"),
    "match": ("predict", "match", "how well texts match images"),
    "ask": ("predict", "ask", "answer questions about an image"),
    "explain": ("predict", "explain", "show where the model looks, word by word"),
    "convert": ("convert", "convert", "write a model in another layout"),
    "export": ("export", "export", "write a model for ONNX Runtime or OpenVINO"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit code is 0 (done), 1 (failed) or 2 (wrong usage).

    It is 130 after Ctrl-C, and 141 if nobody reads the output any more, as `head` after its lines:
    what a shell reports of commands that a signal has ended.
    """
    # Before any command imports PyTorch.
    spin_briefly()
    # At its end the interpreter looks for garbage among all that was imported: of PyTorch alone it
    # takes a quarter of a second, for memory that is given back anyway.
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)
    code = 0
    replace_what_cannot_be_shown()
    if shutil.get_terminal_size().columns < _LEAST_COLUMNS:
        os.environ["COLUMNS"] = str(_LEAST_COLUMNS)
    try:
        try:
            code = _carry_out(list(sys.argv[1:] if argv is None else argv))
        finally:
            # Here an error can still be caught, at the interpreter's exit no more.
            print(end="", flush=True)
    except OSError as error:
        # What is still in the buffer goes nowhere, so that it does not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), _OUTPUT)
        if isinstance(error, BrokenPipeError):
            return 141
        if not code:  # else the command has said what failed
            complain("openblip", f"standard output: {error}")
        return 1
    return code


def _carry_out(words: list[str]) -> int:
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
        return 0
    if words[0] == "--version":
        from openblip import __version__

        print(f"openblip {__version__}")
        return 0
    name = _command_name(words)
    if name is None:
        return _unknown(words)
    if sys.platform == "win32":
        # Before anything is loaded or written: signals, pipes and locks are those of POSIX.
        complain("openblip", "this runs on Linux and macOS; on Windows, in WSL (`wsl --install`)")
        return 1
    module, function, _ = COMMANDS[name]
    run = getattr(importlib.import_module(f"openblip.cli.{module}"), function)
    prog = f"openblip {name}"
    with _warnings_in_one_line(prog):
        return _guarded(run, words[len(name.split()) :], prog, debug)


def _guarded(run: Callable[..., int], words: list[str], prog: str, debug: bool) -> int:
    try:
        if any("\x1b" in word for word in words):
            raise UsageError("a word has the code in it with which terminals are told what to do")
        if name := empty_name(run, words):
            raise UsageError(f"{name} is empty, where a name belongs: is a variable not set?")
        if run.__module__ in ("openblip.cli.train", "openblip.cli.plan"):
            # Their flags are, or include, the fields of a recipe that the first words name.
            return run(words, prog)
        if flag := _flag_without_values(run, words):
            raise UsageError(f"{flag} needs a value, or several")
        import tyro

        return tyro.cli(checked(_announced(run, prog)), args=words, prog=prog)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it can", file=sys.stderr)
        return 130
    except SystemExit:  # wrong usage, which has been told
        raise
    except BaseException as error:  # a panic of a library in Rust is no `Exception`
        if isinstance(error, BrokenPipeError) and _output_is_closed():
            raise
        if debug:
            traceback.print_exc()
        complain(prog, _explained(error))
        return 2 if isinstance(error, UsageError) else 1


def _explained(error: BaseException) -> str:
    """What a person is told of an error, foreseen or not."""
    if isinstance(error, MemoryError):
        return "there is not enough memory; give it less at once (--help lists the sizes)"
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, OpenBlipError | OSError):
        return str(error)
    return f"unexpected {type(error).__name__}: {error}; --debug shows the traceback"


def _flag_without_values(run: Callable[..., int], words: list[str]) -> str | None:
    """The first flag for any number of values that is given none: nobody means that."""
    lists = {
        f"--{name.replace('_', '-')}"
        for name, parameter in inspect.signature(run).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and get_origin(parameter.annotation) is tuple
    }
    for word, following in pairwise([*words, "--"]):
        is_flag = following.startswith("-") and not following[1:2].isdigit()
        if word.replace("_", "-") in lists and is_flag:
            return word
    return None


def _announced(run: Callable[..., int], prog: str) -> Callable[..., int]:
    """The command, which says that it begins: after its flags are read, before it loads."""
    from openblip.cli.output import announce

    @wrapping(run)
    def announced(*args: Any, **settings: Any) -> int:
        if prog.removeprefix("openblip ") not in _QUICK:
            announce(prog)
        return run(*args, **settings)

    return announced


def _output_is_closed() -> bool:
    """Whether nobody reads standard output any more: not every broken pipe is that one."""
    poll = select.poll()
    poll.register(_OUTPUT, 0)
    return bool(poll.poll(0))


@contextmanager
def _warnings_in_one_line(prog: str) -> Iterator[None]:
    with warnings.catch_warnings():
        if is_first_process():
            tell_warnings(lambda message: complain(prog, f"warning: {message}"))
        else:  # it would repeat the first one's
            warnings.simplefilter("ignore")
        yield


def _command_name(words: list[str]) -> str | None:
    for length in (2, 1):
        name = " ".join(words[:length])
        if name in COMMANDS:
            return name
    return None


def _unknown(words: list[str]) -> int:
    group = [name for name in COMMANDS if name.split()[0] == words[0]]
    if group:
        print(_overview(group))
        return 0 if words[1:2] in (["-h"], ["--help"]) else 2
    near = difflib.get_close_matches(" ".join(words[:2]), COMMANDS, 1, 0.4)
    hint = f"; did you mean `openblip {near[0]}`?" if near else ""
    print(f"openblip: no command {words[0]!r}{hint} (openblip --help lists all)", file=sys.stderr)
    return 2


def _overview(names: Sequence[str] = tuple(COMMANDS)) -> str:
    width = max(map(len, names))
    lines = [
        "usage: openblip COMMAND [options]",
        "",
        "Vision-language pre-training, and the cleaning of image-text data.",
        "",
        *(f"  openblip {name:<{width}}  {COMMANDS[name][2]}" for name in names),
        "",
        "openblip COMMAND --help shows a command's options with an example;",
        "--debug shows the traceback of an error; --version the version.",
    ]
    return "\n".join(lines)
