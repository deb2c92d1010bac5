"""The command's outer shape: help, exit codes, one-line errors."""

import io
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from openblip.cli import COMMANDS, _warnings_in_one_line, main
from openblip.cli.output import print_json
from openblip.runtime.errors import TextTruncated
from openblip.table.table import PairRow, PairTable


def unread(*words: str, **environment: str) -> tuple[int, str]:
    """Exit code and errors of a command whose reader is gone before it has written anything."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "openblip", *words],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
        timeout=120,
    )
    os.close(writer)
    return done.returncode, done.stderr


def test_without_words_it_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    text = capsys.readouterr().out
    assert all(f"openblip {name}" in text for name in COMMANDS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    from openblip import __version__

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"openblip {__version__}\n"


def test_at_the_end_nothing_is_searched_for_garbage() -> None:
    # What was registered first comes last.
    told = "atexit.register(lambda: print(gc.get_freeze_count() > 0, gc.isenabled()))"
    command = f"import atexit, gc; {told}; from openblip.cli import main; main(['--version'])"
    done = subprocess.run(
        [sys.executable, "-c", command], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[1:] == ["True True"]


def test_on_windows_a_command_says_where_it_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    assert main(["data", "show", "pairs.lance"]) == 1
    error = "openblip: this runs on Linux and macOS; on Windows, in WSL (`wsl --install`)\n"
    assert capsys.readouterr().err == error
    assert main(["--version"]) == 0


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_help_with_an_example(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*name.split(), "--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "Example:" in text
    assert f"openblip {name}" in text


def test_an_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["captoin"]) == 2
    assert "did you mean `openblip caption`" in capsys.readouterr().err


def test_a_group_lists_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["capfilt"]) == 2
    text = capsys.readouterr().out
    assert "capfilt run" in text
    assert "openblip demo" not in text


def test_an_unknown_flag_is_wrong_usage_and_names_the_nearest(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["data", "show", "t.lance", "--jsno"])
    assert stop.value.code == 2
    assert "--json" in capsys.readouterr().err


def test_an_error_is_one_line_without_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "show", str(tmp_path / "none.lance")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("openblip data show: ")
    assert error.count("\n") == 1
    assert "openblip data import" in error


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    "words", ["--help", pytest.param("data show --help", marks=pytest.mark.slow), "data show TABLE"]
)
def test_a_reader_that_has_had_enough_ends_it_in_silence(
    words: str, unbuffered: str, tmp_path: Path
) -> None:
    from openblip.world import WorldConfig, create_world

    table = tmp_path / "w.lance"
    create_world(table, WorldConfig(web_rows=3, human_rows=1, val_rows=1, test_rows=1))
    given = [str(table) if word == "TABLE" else word for word in words.split()]
    assert unread(*given, PYTHONUNBUFFERED=unbuffered) == (141, "")


def test_an_error_is_told_though_nobody_reads_the_output(tmp_path: Path) -> None:
    code, errors = unread("data", "show", str(tmp_path / "none.lance"))
    assert code == 1
    assert errors.startswith("openblip data show: no pair table")
    assert errors.count("\n") == 1


def test_debug_shows_the_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "show", str(tmp_path / "none.lance"), "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_of_the_processes_of_torchrun_the_first_one_warns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    with _warnings_in_one_line("openblip finetune"):
        warnings.warn("text 1 is cut at its word 31, 'dog'", TextTruncated, 1)
    assert capsys.readouterr().err == ""


def test_a_rank_alone_is_a_task_of_somebodys_array_of_jobs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with _warnings_in_one_line("openblip caption"):
        warnings.simplefilter("always")
        warnings.warn("text 1 is cut at its word 31, 'dog'", TextTruncated, 1)
    assert "is cut" in capsys.readouterr().err


def test_a_warning_is_one_line_without_code(capsys: pytest.CaptureFixture[str]) -> None:
    with _warnings_in_one_line("openblip match"):
        warnings.simplefilter("always")
        warnings.warn("text 1 is cut at its word 31, 'dog'", TextTruncated, 1)
        warnings.warn("of someone\nelse", UserWarning, 1)
    assert capsys.readouterr().err.splitlines() == [
        "openblip match: warning: text 1 is cut at its word 31, 'dog'",
        "openblip match: warning: UserWarning: of someone else",
    ]


def test_json_output_is_one_value(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from openblip.world import WorldConfig, create_world

    table = tmp_path / "w.lance"
    create_world(table, WorldConfig(web_rows=3, human_rows=1, val_rows=1, test_rows=1))
    capsys.readouterr()
    assert main(["data", "show", str(table), "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["rows"] == 6
    assert {"split": "train", "origin": "web", "images": 3, "captions": 3} in value["counts"]


# One command after the other: what one has imported would be found after it.
WITHOUT_TORCH = """
import sys
from openblip.cli import main
for line in sys.stdin:
    try:
        main(line.split())
    except SystemExit as end:
        assert not end.code, line
    assert not {"torch", "lance", "pyarrow"} & set(sys.modules), line
    print("=====")
"""


def test_help_comes_without_torch() -> None:
    lines = [
        "pretrain base t.lance run --help",
        "pretrain albef t.lance run --help",
        "finetune filter t.lance run --help",
        "finetune vqa t.lance run --help",
        "plan --help",
        "compare --help",
        "runs --help",
        "evaluate vqa --help",
    ]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH],
        input="\n".join(lines),
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    *told, rest = done.stdout.split("=====\n")
    assert (len(told), rest) == (len(lines), "")
    assert all("Example" in text or "example" in text for text in told)


# Ends a command where it imports torch, which is where waiting begins.
AT_TORCH = """
import sys
from openblip.cli import main

class Torch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print("torch", file=sys.stderr)
            raise SystemExit(0)

sys.meta_path.insert(0, Torch())
for line in sys.stdin:
    try:
        main(line.split())
    except SystemExit:
        pass
"""


def test_a_long_command_says_that_it_begins_before_it_loads_anything() -> None:
    lines = [
        "pretrain tiny t.lance run",
        "finetune filter t.lance run --init-from model",
        "plan tiny --gpu cpu",
        "capfilt run t.lance --captioner c --filter f",
        "evaluate retrieval m t.lance",
        "evaluate caption m t.lance",
        "evaluate vqa m t.lance",
        "evaluate nlvr m t.lance",
        "evaluate classify m t.lance",
        "caption x.jpg",
        "match x.jpg text",
        "ask x.jpg question",
        "explain x.jpg text",
        "convert a b",
        "compare file.yaml",
        "demo",
    ]
    done = subprocess.run(
        [sys.executable, "-c", AT_TORCH], input="\n".join(lines), capture_output=True, text=True
    )
    told = done.stderr.splitlines()
    assert told.count("torch") == len(lines), done.stderr
    for before, line in zip(told[::2], lines, strict=True):
        name = before.removeprefix("openblip ").removesuffix(": loading ...")
        assert line.startswith(name), before


def test_an_error_that_nobody_foresaw_is_one_line_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from openblip.cli import data

    def show(table: str) -> int:
        raise KeyError(f"{table}\n\x1b[31m{'x' * 2000}")

    monkeypatch.setattr(data, "show", show)
    assert main(["data", "show", "--table", "t"]) == 1
    told = capsys.readouterr().err
    assert told.startswith("openblip data show: unexpected KeyError: 't")
    assert told.endswith("; --debug shows the traceback\n")
    assert told.count("\n") == 1
    assert len(told) < 500
    assert main(["data", "show", "--table", "t", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def run_in(*words: str, **environment: str) -> tuple[int, bytes, bytes]:
    done = subprocess.run(
        [sys.executable, "-m", "openblip", *words],
        capture_output=True,
        env=os.environ | environment,
        timeout=120,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_what_an_encoding_lacks_is_replaced(encoding: str, tmp_path: Path) -> None:
    table = str(tmp_path / "t.lance")
    PairTable.create(table, [PairRow(id="\u732b", image=b"x", captions=["\u732b"])])
    code, told, errors = run_in("data", "show", table, PYTHONIOENCODING=encoding)
    assert (code, errors) == (0, b"")
    assert b'"id": "?"' in told
    code, _, errors = run_in("data", "show", "\u732b.lance", PYTHONIOENCODING=encoding)
    assert code == 1
    assert b"no pair table at ?.lance" in errors


def test_json_is_escaped_where_the_encoding_lacks_a_letter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "ascii", write_through=True))
    print_json({"caption": "\u732b"})
    assert json.loads(written.getvalue()) == {"caption": "\u732b"}


@pytest.mark.parametrize(
    "columns", ["1", "-5", *(pytest.param(word, marks=pytest.mark.slow) for word in ("0", "wide"))]
)
def test_a_terminal_of_one_column_gets_help_too(columns: str) -> None:
    code, told, errors = run_in("data", "show", "--help", COLUMNS=columns)
    assert (code, errors) == (0, b"")
    assert b"--rows" in told


def test_a_code_for_terminals_is_not_repeated(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "show", "t", "\x1b[31mred"]) == 2
    assert "\x1b" not in capsys.readouterr().err
