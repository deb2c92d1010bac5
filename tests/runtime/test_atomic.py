"""Files and folders appear whole or not at all."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from openblip.runtime.atomic import check_output, replace_file, replace_folder
from openblip.runtime.errors import UnwritableError


class InterruptedWriteError(Exception):
    pass


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    with replace_file(path) as unfinished:
        unfinished.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert names(path.parent) == ["file"]


def test_an_interrupted_file_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def write() -> None:
        with replace_file(path) as unfinished:
            unfinished.write_text("ha")
            raise InterruptedWriteError

    with pytest.raises(InterruptedWriteError):
        write()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_a_folder_appears_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    with replace_folder(path) as unfinished:
        (unfinished / "a").write_text("whole")
        assert not path.exists()
    assert names(path) == ["a"]
    assert names(tmp_path) == ["folder"]


def test_a_folder_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    for name in ("a", "b"):
        with replace_folder(path) as unfinished:
            (unfinished / name).touch()
    assert names(path) == ["b"]
    assert names(tmp_path) == ["folder"]


def test_an_interrupted_folder_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    (path / "old").touch()

    def write() -> None:
        with replace_folder(path) as unfinished:
            (unfinished / "new").touch()
            raise InterruptedWriteError

    with pytest.raises(InterruptedWriteError):
        write()
    assert names(path) == ["old"]
    assert names(tmp_path) == ["folder"]


def test_the_old_folder_comes_back_if_the_new_one_cannot_take_its_place(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    (path / "old").touch()
    with pytest.raises(FileNotFoundError), replace_folder(path) as unfinished:
        # What the block leaves behind is gone, as if another process had removed it.
        unfinished.rename(tmp_path / "elsewhere")
    assert names(path) == ["old"]


def write(path: Path, text: str = "new") -> None:
    with replace_file(path) as unfinished:
        unfinished.write_text(text)


def test_a_link_stays_and_leads_to_the_new_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    (tmp_path / "link").symlink_to("file")
    write(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "new"
    (tmp_path / "folder").mkdir()
    (tmp_path / "to-folder").symlink_to("folder")
    with replace_folder(tmp_path / "to-folder") as unfinished:
        (unfinished / "a").touch()
    assert names(tmp_path / "folder") == ["a"]


def test_a_long_name_can_be_written(tmp_path: Path) -> None:
    write(tmp_path / ("x" * 250))
    assert names(tmp_path) == ["x" * 250]


def test_a_pipe_is_written_into(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    write(tmp_path / "pipe")
    reader.join(10)
    assert read == [b"new"]
    assert names(tmp_path) == ["pipe"]


def test_a_device_is_written_into_and_stays(tmp_path: Path) -> None:
    """Through a device of its own, for a fault would destroy the machine's."""
    master, slave = os.openpty()
    write(Path(os.ttyname(slave)))
    assert os.read(master, 3) == b"new"
    assert stat.S_ISCHR(Path(os.ttyname(slave)).stat().st_mode)


def test_standard_output_is_written_into_where_it_is_a_file(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from openblip.runtime.atomic import replace_file\n"
        "print('before', flush=True)\n"
        "with replace_file(Path('/dev/stdout')) as unfinished: unfinished.write_text('new\\n')\n"
        "print('after')"
    )
    with (tmp_path / "said").open("w") as said:
        subprocess.run([sys.executable, "-c", code], stdout=said, check=True)
    assert Path("/dev/stdout").is_symlink()
    assert (tmp_path / "said").read_text() == "before\nnew\nafter\n"


class TestWhatIsInTheWay:
    @pytest.fixture(params=["folder", "socket"])
    def place(self, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
        path = tmp_path / request.param
        if request.param == "folder":
            path.mkdir()
        else:
            with socket.socket(socket.AF_UNIX) as opened:
                opened.bind(str(path))
        return path

    def test_is_refused_by_name_and_stays(self, place: Path) -> None:
        before = place.stat().st_mode
        with pytest.raises(UnwritableError, match=rf"^{place}: it is a {place.name}"):
            write(place)
        with pytest.raises(UnwritableError, match=rf"^--page {place}: it is a {place.name}"):
            check_output(place, "--page")
        assert place.stat().st_mode == before
        assert names(place.parent) == [place.name]

    def test_of_a_folder(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("precious")
        for place in (tmp_path / "file", Path("/dev/null")):
            with pytest.raises(UnwritableError, match="it is a file; give the name of a folder"):
                check_output(place, "-o", is_folder=True)
            with pytest.raises(UnwritableError), replace_folder(place):
                pass
        assert (tmp_path / "file").read_text() == "precious"


class TestBeforeTheWork:
    def test_a_place_that_can_be_written_is_left_as_it_was(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("old")
        check_output(tmp_path / "file", "--results")
        check_output(tmp_path / "new" / "deeper" / "file", "--results")
        check_output(Path("/dev/null"), "--results")
        check_output(Path("/dev/stdout"), "--results")
        check_output(tmp_path / "new", "-o", is_folder=True)
        check_output(tmp_path, "-o", is_folder=True)
        assert names(tmp_path) == ["file"]
        assert (tmp_path / "file").read_text() == "old"

    @pytest.mark.parametrize("inside", ["file/results.json", "file/deeper/results.json"])
    def test_a_file_where_a_folder_should_be_is_told(self, tmp_path: Path, inside: str) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(UnwritableError, match=rf"^--results .*/{inside}: cannot be written"):
            check_output(tmp_path / inside, "--results")

    @pytest.mark.skipif(not Path("/proc").exists(), reason="is of Linux")
    def test_a_file_system_that_takes_no_files_is_told(self) -> None:
        with pytest.raises(UnwritableError, match=r"^--page /proc/page.html: cannot be written"):
            check_output(Path("/proc/page.html"), "--page")

    @pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only to root")
    def test_what_is_read_only_is_told(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch(0o444)
        with pytest.raises(UnwritableError, match="it is read-only"):
            check_output(tmp_path / "file", "--page")
        (tmp_path / "folder").mkdir(0o555)
        with pytest.raises(UnwritableError, match="Permission denied"):
            check_output(tmp_path / "folder" / "file", "--page")


# A process that cannot write files of more than 8000 bytes, as on a full disk, while it writes
# each of what it is given; it says what each error is.
LIMITED = """
import json, resource, signal, sys
from pathlib import Path
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
limit = resource.getrlimit(resource.RLIMIT_FSIZE)
told = {}
for name, (before, write) in json.load(sys.stdin).items():
    place = Path(sys.argv[1], name, "place")
    place.parent.mkdir()
    exec(before)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8000, limit[1]))
    try:
        exec(write)
    except Exception as error:
        told[name] = [kind.__name__ for kind in type(error).__mro__], str(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)
print(json.dumps(told))
"""
EXPORT = """
from openblip.sources.export import export_pairs
from openblip.table.table import PairRow, PairTable
from openblip.table.views import CaptionView
from openblip.world import WorldConfig, create_world
table = create_world(place.parent / "table", WorldConfig(web_rows=9, human_rows=9, image_size=64))
view = CaptionView(sources=("web", "human"))
"""
MODEL = """
import torch
from openblip.batches.tokenizer import TextTokenizer
from openblip.model import Med, MedConfig
tokenizer = TextTokenizer.train(["a red wall"] * 3, 40)
med = Med(MedConfig.preset("tiny", vocab_size=tokenizer.vocab_size, image_size=32))
"""
TASK = f"""{MODEL}
from openblip.objectives.pretrain import PretrainObjectives, PretrainTask
from openblip.training.checkpoint import CheckpointWriter, RunState
from openblip.training.parallelism import Processes
task = PretrainTask(med, tokenizer.special, PretrainObjectives(queue_size=4), 0)
optimiser = torch.optim.AdamW(task.student.parameters())
state = RunState(step=3)
"""
CHECKPOINT = """
with CheckpointWriter(Processes(), tokenizer, max_tokens=20) as writer:
    writer.write(place / "step-00000003", task, optimiser, state)
"""
FULL = {
    "model": (
        f"{MODEL}\nfrom openblip.checkpoints.folder import save_folder",
        "save_folder(place, med, tokenizer, 'pretrain', 20)",
    ),
    "checkpoint": (TASK, CHECKPOINT),
    "safetensors": (
        "import torch; from openblip.checkpoints.original import write_original",
        "write_original(place.with_suffix('.safetensors'), {'w': torch.zeros(9999)})",
    ),
    "pth": (
        "import torch; from openblip.checkpoints.original import write_original",
        "write_original(place.with_suffix('.pth'), {'w': torch.zeros(9999)})",
    ),
    "json": (
        "from openblip.evaluation.results import save_records",
        "save_records(place.with_suffix('.json'), [{'a': 'b' * 99}] * 999)",
    ),
    "csv": (
        "from openblip.evaluation.results import save_records",
        "save_records(place.with_suffix('.csv'), [{'a': 'b' * 99}] * 999)",
    ),
    "page": (
        "from openblip.runtime.page import Page",
        "page = Page('a', 'b'); page.facts({'c': 'd' * 9999}); page.save(place)",
    ),
    "table": (
        "from openblip.table.table import PairRow, PairTable",
        "PairTable.create(place, [PairRow('a', bytes(99999))])",
    ),
    "column": (
        "import pyarrow as pa; from openblip.table.table import PairRow, PairTable\n"
        "table = PairTable.create(place, [PairRow('a', bytes(99999))])",
        "table.add_columns(pa.table({'a': ['b' * 99999]}))",
    ),
    **{
        form: (EXPORT, f"export_pairs(table, place, '{form}', view, show_progress=False)")
        for form in ("webdataset", "parquet", "huggingface", "coco", "jsonl")
    },
}


@pytest.fixture(scope="module")
def written_on_a_full_disk(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, dict[str, tuple[list[str], str]]]:
    """The folder in which one process tried all of it, and its errors: classes and message."""
    folder = tmp_path_factory.mktemp("full")
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(folder)],
        input=json.dumps(FULL),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


@pytest.mark.parametrize("layout", FULL)
def test_a_full_disk_is_told_in_one_line_with_the_name_and_leaves_nothing(
    layout: str, written_on_a_full_disk: tuple[Path, dict[str, tuple[list[str], str]]]
) -> None:
    folder, told = written_on_a_full_disk
    kinds, said = told[layout]
    assert "OpenBlipError" in kinds, said
    assert len(said.splitlines()) == 1
    assert said.startswith(str(folder / layout / "place"))
    assert "cannot be written" in said
    left = (folder / layout).rglob("*")
    assert not [path for path in left if path.suffix in (".tmp", ".unfinished")]
    assert not list((folder / layout).glob(".*"))


def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path\n"
        "from openblip.runtime.atomic import replace_file, replace_folder\n"
        "place = Path(sys.argv[1])\n"
        "with replace_file(place / 'file') as file, replace_folder(place / 'folder') as folder:\n"
        "    file.write_text('ha'); (folder / 'a').write_text('ha'); time.sleep(60)"
    )
    # A suite in the background ignores Ctrl-C, and its processes would inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    words = [sys.executable, "-c", code, tmp_path]
    with subprocess.Popen(words, stderr=subprocess.DEVNULL) as process:
        signal.signal(signal.SIGINT, before)
        while len(list(tmp_path.rglob("*"))) < 3:
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        process.wait(30)
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", [".", "..", "/", "{here}", "{above}", "below/.."])
def test_the_folder_in_which_it_runs_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    here = tmp_path / "here"
    (here / "below").mkdir(parents=True)
    (here / "kept.txt").write_text("kept")
    monkeypatch.chdir(here)
    place = Path(name.format(here=here, above=tmp_path))
    with pytest.raises(UnwritableError, match="one inside of it"), replace_folder(place) as folder:
        (folder / "new.txt").write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["here"]
    assert (here / "kept.txt").read_text() == "kept"
