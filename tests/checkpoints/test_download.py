"""Checkpoints from web addresses, against a server on this machine."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from openblip.checkpoints.download import fetch_url, is_url
from openblip.runtime.errors import CheckpointError

from .file_server import FileServer, serve_file
from .small_disk import small_disk

DATA = random.Random(0).randbytes(3_500_000)
OTHER = random.Random(1).randbytes(3_600_000)
CHECKSUM = hashlib.sha256(DATA).hexdigest()
HALF = 2_000_000


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serve_file(DATA) as server:
        yield server


def fetch(server: FileServer, folder: Path, *, fragment: str = "", num_retries: int = 0) -> Path:
    url = f"{server.url}/files/model_base.pth{fragment}"
    return fetch_url(url, folder, retry_delays_seconds=[0.0] * num_retries)


def left_in(folder: Path) -> list[str]:
    """What is there besides locks, by the ending alone."""
    names = (path.name.removeprefix("model_base-")[8:] for path in folder.iterdir())
    return sorted(name for name in names if not name.endswith(".lock"))


def interrupt(server: FileServer, folder: Path) -> None:
    """Leaves the first half of the file."""
    server.cut_after = [HALF]
    with pytest.raises(CheckpointError, match=r"2,000,000 bytes are kept"):
        fetch(server, folder)
    server.ranges.clear()


def test_a_file_comes_whole_with_its_checksum(
    server: FileServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = fetch(server, tmp_path)
    assert file.read_bytes() == DATA
    assert file.name.startswith("model_base-")
    assert left_in(tmp_path) == [".pth", ".pth.sha256"]
    assert (tmp_path / f"{file.name}.sha256").read_text() == f"{CHECKSUM}  {file.name}\n"
    said = capsys.readouterr().err
    assert f"{file}: SHA-256 {CHECKSUM}" in said
    assert f"downloading {file.name}: 4 of 4 MB" in said


def test_a_finished_file_is_not_asked_for_again(server: FileServer, tmp_path: Path) -> None:
    file = fetch(server, tmp_path)
    server.ranges.clear()
    assert fetch(server, tmp_path) == file
    assert server.ranges == []


def test_the_same_name_elsewhere_is_another_file(server: FileServer, tmp_path: Path) -> None:
    first = fetch_url(f"{server.url}/a/model.pth", tmp_path)
    server.data = OTHER
    second = fetch_url(f"{server.url}/b/model.pth?download=true", tmp_path)
    assert first.suffix == second.suffix == ".pth"
    assert (first.read_bytes(), second.read_bytes()) == (DATA, OTHER)


def test_files_are_kept_in_a_folder_of_the_user(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENBLIP_CACHE", str(tmp_path / "mine"))
    assert fetch_url(f"{server.url}/model.pth").parent == tmp_path / "mine"
    monkeypatch.delenv("OPENBLIP_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert fetch_url(f"{server.url}/model.pth").parent == tmp_path / ".cache/openblip/checkpoints"


@pytest.mark.parametrize("validator", ["ETag", "Last-Modified"])
def test_an_unfinished_file_is_gone_on_with(
    server: FileServer, tmp_path: Path, validator: str
) -> None:
    server.validator = validator
    interrupt(server, tmp_path)
    assert left_in(tmp_path) == [".pth.part", ".pth.part.json"]
    assert fetch(server, tmp_path).read_bytes() == DATA
    assert server.ranges == [f"bytes={HALF}-"]
    assert left_in(tmp_path) == [".pth", ".pth.sha256"]


@pytest.mark.parametrize("validator", ["weak", None])
def test_what_cannot_be_told_from_another_version_starts_again(
    server: FileServer, tmp_path: Path, validator: str | None
) -> None:
    server.validator = validator
    interrupt(server, tmp_path)
    assert fetch(server, tmp_path).read_bytes() == DATA
    assert server.ranges == [None]


def test_a_server_without_ranges_sends_it_all_again(server: FileServer, tmp_path: Path) -> None:
    server.takes_ranges = False
    interrupt(server, tmp_path)
    assert fetch(server, tmp_path).read_bytes() == DATA


@pytest.mark.parametrize("checks_if_range", [True, False])
@pytest.mark.parametrize(
    "other", [OTHER, OTHER[:1000], DATA[::-1]], ids=["longer", "shorter", "as long"]
)
def test_a_file_that_changed_is_not_spliced(
    server: FileServer, tmp_path: Path, checks_if_range: bool, other: bytes
) -> None:
    interrupt(server, tmp_path)
    server.data, server.checks_if_range = other, checks_if_range
    assert fetch(server, tmp_path, num_retries=1).read_bytes() == other


def test_a_process_killed_before_the_last_step_left_a_whole_file(
    server: FileServer, tmp_path: Path
) -> None:
    interrupt(server, tmp_path)
    next(tmp_path.glob("*.part")).write_bytes(DATA)
    assert fetch(server, tmp_path).read_bytes() == DATA
    assert server.ranges == []


def test_ctrl_c_keeps_what_came(server: FileServer, tmp_path: Path) -> None:
    server.pause_after = HALF
    url = f"{server.url}/files/model_base.pth"
    code = (
        "import signal, sys; from pathlib import Path\n"
        "from openblip.checkpoints.download import fetch_url\n"
        # A process that is started in the background ignores it otherwise.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "fetch_url(sys.argv[1], Path(sys.argv[2]))\n"
    )
    words = [sys.executable, "-c", code, url, str(tmp_path)]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        assert server.paused.wait(120)
        while not any(path.stat().st_size for path in tmp_path.glob("*.part")):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert "KeyboardInterrupt" in process.communicate()[1]
    server.go_on.set()
    server.pause_after = None
    num_kept = next(tmp_path.glob("*.part")).stat().st_size
    assert num_kept > 0
    assert fetch(server, tmp_path).read_bytes() == DATA
    assert server.ranges == [None, f"bytes={num_kept}-"]


def test_two_at_once_fetch_it_once(server: FileServer, tmp_path: Path) -> None:
    server.pause_after = HALF
    threads = [threading.Thread(target=fetch, args=(server, tmp_path)) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert server.paused.wait(120)
    server.go_on.set()
    for thread in threads:
        thread.join()
    assert server.ranges == [None]
    assert left_in(tmp_path) == [".pth", ".pth.sha256"]


@pytest.mark.parametrize("status", [500, 503, 429])
def test_an_error_that_may_pass_is_tried_again(
    server: FileServer, tmp_path: Path, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    server.statuses = [status, status]
    assert fetch(server, tmp_path, num_retries=2).read_bytes() == DATA
    assert f"status {status}" in capsys.readouterr().err


def test_an_error_that_does_not_pass_is_told(server: FileServer, tmp_path: Path) -> None:
    server.statuses = [503] * 3
    with pytest.raises(CheckpointError, match=r"model_base\.pth: .* status 503 .* run the same"):
        fetch(server, tmp_path, num_retries=2)
    assert len(server.ranges) == 3


def test_attempts_are_counted_anew_when_bytes_came(server: FileServer, tmp_path: Path) -> None:
    server.cut_after = [1_000_000] * 3
    assert fetch(server, tmp_path, num_retries=1).read_bytes() == DATA
    assert server.ranges == [None, "bytes=1000000-", "bytes=2000000-", "bytes=3000000-"]


@pytest.mark.parametrize(
    ("status", "said"), [(404, "no such file"), (401, "login"), (403, "denied"), (400, "address")]
)
def test_an_error_of_the_address_is_told_at_once(
    server: FileServer, tmp_path: Path, status: int, said: str
) -> None:
    server.statuses = [status]
    with pytest.raises(CheckpointError, match=rf"model_base\.pth: .* status {status} .*{said}"):
        fetch(server, tmp_path, num_retries=5)
    assert len(server.ranges) == 1
    assert left_in(tmp_path) == []


def test_a_truncated_answer_is_no_file(server: FileServer, tmp_path: Path) -> None:
    server.says_length = len(DATA) + 1
    with pytest.raises(CheckpointError, match="after 3,500,000 of 3,500,001 bytes"):
        fetch(server, tmp_path)
    assert ".pth" not in left_in(tmp_path)


def test_a_file_of_unknown_length_comes_whole(server: FileServer, tmp_path: Path) -> None:
    server.has_length = False
    server.cut_after = [HALF]
    assert fetch(server, tmp_path, num_retries=1).read_bytes() == DATA


def test_a_checksum_in_the_address_is_verified(server: FileServer, tmp_path: Path) -> None:
    file = fetch(server, tmp_path, fragment=f"#sha256={CHECKSUM.upper()}")
    assert file.read_bytes() == DATA
    # The same file, however it is asked for.
    assert fetch(server, tmp_path) == file


def test_a_file_with_another_checksum_is_discarded(server: FileServer, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"SHA-256 is {CHECKSUM}, expected 0{{64}}"):
        fetch(server, tmp_path, fragment=f"#sha256={'0' * 64}")
    assert left_in(tmp_path) == []


def test_a_finished_file_is_held_to_a_checksum_too(server: FileServer, tmp_path: Path) -> None:
    file = fetch(server, tmp_path)
    with pytest.raises(CheckpointError, match="delete it to fetch it again"):
        fetch(server, tmp_path, fragment=f"#sha256={'0' * 64}")
    assert file.is_file()


def test_a_checksum_is_64_digits(server: FileServer, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="sha256=abc is no SHA-256"):
        fetch(server, tmp_path, fragment="#sha256=abc")


def test_a_redirect_is_followed(server: FileServer, tmp_path: Path) -> None:
    server.redirects = {"/files/model_base.pth": f"{server.url}/moved"}
    server.cut_after = [HALF]
    assert fetch(server, tmp_path, num_retries=1).read_bytes() == DATA
    # The Range goes along with the redirect.
    assert server.ranges == [None, None, f"bytes={HALF}-", f"bytes={HALF}-"]


def test_a_redirect_to_plain_http_elsewhere_is_refused(server: FileServer, tmp_path: Path) -> None:
    server.redirects = {"/files/model_base.pth": "http://example.invalid/model.pth"}
    with pytest.raises(CheckpointError, match=r"redirects to http://example\.invalid/model\.pth"):
        fetch(server, tmp_path)


@pytest.mark.parametrize(
    "url",
    [
        "http://example.invalid/model.pth",
        "http://localhost.example.invalid/model.pth",
        "ftp://127.0.0.1/model.pth",
        "file:///etc/passwd",
        "https:///model.pth",
    ],
)
def test_only_https_is_fetched(url: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="only https"):
        fetch_url(url, tmp_path)


def test_an_address_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no web address"):
        fetch_url("https://[model.pth", tmp_path)
    with pytest.raises(CheckpointError, match="cannot be reached"):
        fetch_url("https://example.invalid/a b.pth", tmp_path)


def test_a_server_that_is_not_there_is_told_at_once(tmp_path: Path) -> None:
    # Nothing listens on port 9.
    with pytest.raises(CheckpointError, match=r"127\.0\.0\.1:9/model\.pth: cannot be reached"):
        fetch_url("http://127.0.0.1:9/model.pth", tmp_path)


def test_a_web_page_is_no_checkpoint(server: FileServer, tmp_path: Path) -> None:
    server.content_type = "text/html; charset=utf-8"
    with pytest.raises(CheckpointError, match="a web page instead of a checkpoint"):
        fetch(server, tmp_path)


def test_a_key_in_an_address_is_not_told(server: FileServer, tmp_path: Path) -> None:
    server.statuses = [404]
    with pytest.raises(CheckpointError) as caught:
        fetch_url(f"{server.url}/model.pth?key=secret", tmp_path)
    assert "secret" not in str(caught.value)


def test_too_little_space_is_told_before_the_download(server: FileServer, tmp_path: Path) -> None:
    server.says_length = 1 << 60
    with pytest.raises(CheckpointError, match=r"no space .*1,152,921,504,606,846,976 bytes"):
        fetch(server, tmp_path)


def test_a_disk_that_fills_up_is_told(server: FileServer, tmp_path: Path) -> None:
    server.has_length = False
    code = (
        "import sys; from pathlib import Path\n"
        "from openblip.runtime.errors import CheckpointError\n"
        "from openblip.checkpoints.download import fetch_url\n"
        "try: fetch_url(sys.argv[1], Path(sys.argv[2]))\n"
        "except CheckpointError as error: print(error)\n"
    )
    url = f"{server.url}/files/model_base.pth"
    words = [*small_disk(tmp_path), sys.executable, "-c", code, url, str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"{tmp_path}: no space for the download")


@pytest.mark.skipif(os.geteuid() == 0, reason="an administrator may write anywhere")
def test_a_folder_that_cannot_be_written_is_told(server: FileServer, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(CheckpointError, match="OPENBLIP_CACHE"):
        fetch(server, tmp_path)


def test_a_file_in_place_of_the_folder_is_told(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="OPENBLIP_CACHE"):
        fetch(server, tmp_path / "file")


def test_an_address_is_told_from_a_path() -> None:
    assert is_url("https://a/b.pth")
    assert is_url("HTTP://a/b.pth")
    assert not is_url("https/b.pth")
    assert not is_url("org/name")
