import subprocess
import sys
import threading
from pathlib import Path

import pytest

from openblip.runtime.errors import StorageError
from openblip.table.storage import ObjectFolder, is_object_address, lance_options, read_object

from ..s3_server import S3Proxy


@pytest.fixture
def folder(s3: S3Proxy) -> ObjectFolder:
    return ObjectFolder(f"{s3.bucket}/some/folder/")


def test_addresses_are_told_from_paths() -> None:
    assert is_object_address("s3://bucket/x")
    assert is_object_address("gs://bucket/x")
    assert not is_object_address("/data/s3/x")
    assert lance_options("relative/x") is None


def test_a_folder_of_objects_reads_what_was_written(folder: ObjectFolder) -> None:
    assert folder.read("a/1") is None
    folder.write("a/1", b"one")
    folder.write("a/1", b"two")
    assert folder.read("a/1") == b"two"
    assert read_object(f"{folder.uri}/a/1") == b"two"
    folder.remove("a/1")
    folder.remove("a/1")
    assert folder.read("a/1") is None


def test_any_character_may_stand_in_a_name(folder: ObjectFolder) -> None:
    for name in ("a b", "a#b", "a?b", "a%20b", "é/ü"):
        folder.write(name, name.encode())
    assert folder.names() == sorted(["a b", "a#b", "a?b", "a%20b", "é/ü"])
    assert read_object(f"{folder.uri}/a#b") == b"a#b"


def test_names_are_sorted_and_begin_with_the_prefix(folder: ObjectFolder, s3: S3Proxy) -> None:
    for name in ("b/2", "b/1", "a", "bb", "b/sub/3"):
        folder.write(name, b"")
    ObjectFolder(f"{s3.bucket}/some/folder-of-others").write("b/0", b"")
    assert folder.names() == ["a", "b/1", "b/2", "b/sub/3", "bb"]
    assert folder.names("b/") == ["b/1", "b/2", "b/sub/3"]
    assert folder.names("b") == ["b/1", "b/2", "b/sub/3", "bb"]
    assert ObjectFolder(s3.bucket).names("some/folder/a") == ["some/folder/a"]


def test_an_object_is_created_once_however_many_try(folder: ObjectFolder) -> None:
    created: list[int] = []
    start = threading.Barrier(8)

    def create(number: int) -> None:
        start.wait()
        if folder.create("lease", str(number).encode()):
            created.append(number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(created) == 1
    assert folder.read("lease") == str(created[0]).encode()


@pytest.mark.parametrize("fault", ["lose answer", "deny answer"])
def test_whose_creation_got_no_answer_still_learns_that_it_is_his(
    folder: ObjectFolder, s3: S3Proxy, fault: str
) -> None:
    s3.faults, s3.failing = (fault,), 2
    assert folder.create("lease", b"mine")
    assert not folder.create("lease", b"mine")
    assert s3.failed[fault] == 2


def test_a_storm_of_errors_is_survived(folder: ObjectFolder, s3: S3Proxy) -> None:
    s3.share = 0.3
    s3.faults = ("slow down", "drop", "cut", "lose answer", "deny answer")
    for number in range(10):
        assert folder.create(str(number), bytes([number]) * 1000)
    assert folder.names() == [str(number) for number in range(10)]
    assert [folder.read(str(number)) for number in range(10)] == [
        bytes([number]) * 1000 for number in range(10)
    ]
    assert s3.failed.total() > 5


@pytest.mark.parametrize("fault", ["slow down", "drop"])
def test_a_total_outage_is_survived(folder: ObjectFolder, s3: S3Proxy, fault: str) -> None:
    folder.write("a", b"1")
    s3.faults, s3.failing = (fault,), 6
    assert folder.read("a") == b"1"


def test_an_outage_past_the_patience_is_an_error_that_says_how_to_go_on(
    folder: ObjectFolder, s3: S3Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OBJECT_STORE_CLIENT_RETRY_TIMEOUT", "1")
    s3.faults, s3.share = ("slow down",), 1.0
    with pytest.raises(StorageError) as caught:
        folder.read("a")
    message = str(caught.value)
    assert f"{folder.uri}/a: {s3.url} has failed for 1 s (SlowDown)" in message
    assert "run the same command again" in message
    assert "\n" not in message


def test_a_larger_object_than_allowed_is_not_read(folder: ObjectFolder) -> None:
    folder.write("a", b"1" * 100)
    with pytest.raises(ValueError, match="has 100 bytes, more than 99"):
        folder.read("a", max_bytes=99)


def test_a_missing_bucket_is_named(s3: S3Proxy) -> None:
    folder = ObjectFolder("s3://no-such-bucket/x")
    for act in (
        lambda: folder.read("a"),
        lambda: folder.write("a", b""),
        lambda: folder.create("a", b""),
        lambda: folder.names(),
        lambda: folder.remove("a"),
    ):
        with pytest.raises(StorageError, match=rf"no-such-bucket.*no such bucket at {s3.url}"):
            act()


def test_wrong_credentials_are_an_error_that_says_what_to_set(
    folder: ObjectFolder, s3: S3Proxy
) -> None:
    with (
        s3.checking_credentials(),
        pytest.raises(StorageError, match=r"\(InvalidAccessKeyId\): set AWS_ACCESS_KEY_ID"),
    ):
        folder.read("a")


def test_no_credentials_are_an_error_that_says_what_to_set(
    s3: S3Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(StorageError, match="no credentials: set AWS_ACCESS_KEY_ID"):
        ObjectFolder(s3.bucket)


def test_neither_region_nor_endpoint_is_an_error_that_says_what_to_set(
    s3: S3Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    with pytest.raises(StorageError, match="set AWS_REGION, or AWS_ENDPOINT_URL"):
        ObjectFolder(s3.bucket)


def test_a_profile_gives_credentials_region_and_endpoint(
    s3: S3Proxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name)
    profile = f"aws_access_key_id = a\naws_secret_access_key = b\nendpoint_url = {s3.url}\n"
    (tmp_path / "config").write_text(f"[profile lab]\n{profile}region = eu-west-1\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "lab")
    ObjectFolder(s3.bucket).write("a", b"1")
    assert ObjectFolder(s3.bucket).read("a") == b"1"
    options = lance_options(s3.bucket)
    assert options is not None
    assert (options["aws_region"], options["aws_endpoint"]) == ("eu-west-1", s3.url)


def test_an_unknown_profile_is_named(s3: S3Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "none")
    with pytest.raises(StorageError, match=r"none.* mend AWS_PROFILE"):
        ObjectFolder(s3.bucket)


def test_a_patience_that_is_no_number_is_an_error(
    s3: S3Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OBJECT_STORE_CLIENT_RETRY_TIMEOUT", "2m")
    with pytest.raises(StorageError, match=r"a number of seconds. Got '2m'"):
        ObjectFolder(s3.bucket)


def test_a_missing_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['obstore'] = None\n"
        "from openblip.table.table import PairTable\n"
        "PairTable.open('s3://bucket/pairs.lance')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "pip install 'openblip[cloud]'" in done.stderr.splitlines()[-1]
