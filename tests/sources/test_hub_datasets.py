"""Datasets as the `datasets` library reads them: saved ones, folders, and a hub on this machine."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value
from pyarrow import parquet

from openblip.runtime.errors import DataError
from openblip.sources.datasets_library import dataset_name
from openblip.sources.detect import open_source
from openblip.sources.importing import import_pairs
from openblip.sources.report import ImportReport
from openblip.sources.source import Entry, Found, SourceOptions
from openblip.table.table import PairTable

from ..checkpoints.hub_server import COMMIT, serve_hub

FEATURES = Features({"image": Image(), "caption": Value("string")})


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The library's lock files stay out of the home folder, and its bars out of the output."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture
def pairs(jpeg: Callable[..., bytes]) -> Callable[..., Dataset]:
    """Makes images `numbers` with a text each, and further columns."""

    def make(
        numbers: Sequence[int], features: Features = FEATURES, **columns: Sequence[Any]
    ) -> Dataset:
        images = [{"bytes": jpeg(number), "path": None} for number in numbers]
        texts = [f"text {number}" for number in numbers]
        return Dataset.from_dict({"image": images, "caption": texts, **columns}, features=features)

    return make


def _import(
    source: Path | str, uri: Path, **options: Any
) -> tuple[ImportReport, list[dict[str, Any]]]:
    report = import_pairs(source, uri, show_progress=False, **options)
    assert report.num_seen == report.num_used + report.num_skipped
    rows = PairTable.open(uri).take(range(report.num_rows)).to_pylist() if report.num_rows else []
    return report, rows


def _captions(rows: Sequence[dict[str, Any]]) -> list[str]:
    return [text for row in rows for text in row["captions"]]


def _details(report: ImportReport, reason: str) -> list[str]:
    return [example.detail for example in report.examples[reason]]


def _entries(source: Path | str, cursor: dict[str, int | str] | None = None) -> Iterator[Entry]:
    return open_source(str(source), SourceOptions()).entries(cursor)


def test_a_saved_dataset_with_its_splits(
    tmp_path: Path, pairs: Callable[..., Dataset], jpeg: Callable[..., bytes]
) -> None:
    splits = {"train": pairs([0, 1]), "validation": pairs([2]), "test": pairs([3])}
    DatasetDict(splits).save_to_disk(tmp_path / "saved")
    report, rows = _import(tmp_path / "saved", tmp_path / "t")
    assert report.format == "datasets"
    assert _captions(rows) == [f"text {number}" for number in range(4)]
    assert [row["split"] for row in rows] == ["train", "train", "val", "test"]
    # As it was given, not decoded and encoded again.
    assert rows[0]["image"] == jpeg(0)
    assert _import(f"hf:{tmp_path / 'saved'}", tmp_path / "u")[1] == rows


def test_a_saved_dataset_without_splits_is_training_unless_its_folder_says_otherwise(
    tmp_path: Path, pairs: Callable[..., Dataset]
) -> None:
    for name in ("mine", "test"):
        pairs(range(5)).save_to_disk(tmp_path / name, num_shards=2)
    assert _import(tmp_path / "mine", tmp_path / "t")[0].splits == {"train": 5}
    assert _import(tmp_path / "test", tmp_path / "u")[0].splits == {"test": 5}
    assert _import(f"hf:{tmp_path / 'test'}", tmp_path / "v")[0].splits == {"test": 5}


def test_a_folder_that_the_library_reads(tmp_path: Path, pairs: Callable[..., Dataset]) -> None:
    folder = tmp_path / "pq"
    (folder / "data").mkdir(parents=True)
    pairs([0, 1]).to_parquet(folder / "data" / "train-00000-of-00002.parquet")
    pairs([2]).to_parquet(folder / "data" / "train-00001-of-00002.parquet")
    pairs([3]).to_parquet(folder / "data" / "test-00000-of-00001.parquet")
    report, rows = _import(f"hf:{folder}", tmp_path / "t")
    assert _captions(rows) == [f"text {number}" for number in range(4)]
    assert report.splits == {"train": 3, "test": 1}
    assert report.source == f"hf:{folder}"


def test_an_unnamed_split_of_a_folder_says_nothing(
    tmp_path: Path, pairs: Callable[..., Dataset]
) -> None:
    # The library calls it `train` then.
    (tmp_path / "test").mkdir()
    pairs([0]).to_parquet(tmp_path / "test" / "pairs.parquet")
    assert _import(f"hf:{tmp_path / 'test'}", tmp_path / "t")[0].splits == {"test": 1}


def test_a_folder_of_images_gives_their_paths_as_ids(
    tmp_path: Path, jpeg: Callable[..., bytes]
) -> None:
    for split, number in (("train", 0), ("test", 1)):
        folder = tmp_path / "photos" / split
        folder.mkdir(parents=True)
        (folder / "a.jpg").write_bytes(jpeg(number))
        (folder / "metadata.jsonl").write_text(f'{{"file_name": "a.jpg", "text": "{split}"}}\n')
    _, rows = _import(f"hf:{tmp_path / 'photos'}", tmp_path / "t", store="uri")
    assert [(row["id"], row["split"]) for row in rows] == [
        ("train/a.jpg", "train"),
        ("test/a.jpg", "test"),
    ]
    assert rows[1]["image_uri"] == str(tmp_path / "photos" / "test" / "a.jpg")


def test_an_archive_of_images_is_read_where_it_is(
    tmp_path: Path, jpeg: Callable[..., bytes]
) -> None:
    import zipfile

    folder = tmp_path / "packed"
    folder.mkdir()
    with zipfile.ZipFile(folder / "photos.zip", "w") as archive:
        archive.writestr("a.jpg", jpeg(0))
        archive.writestr("metadata.jsonl", '{"file_name": "a.jpg", "text": "packed"}\n')
    _, rows = _import(f"hf:{folder}", tmp_path / "t")
    assert [(row["image"], row["captions"]) for row in rows] == [(jpeg(0), ["packed"])]


def test_class_labels_become_their_names(tmp_path: Path, pairs: Callable[..., Dataset]) -> None:
    label = ClassLabel(names=["cat", "dog"])
    features = Features({**FEATURES, "label": label, "all": List(label), "in": {"it": label}})
    labelled = pairs(
        [0, 1], features, label=[1, -1], all=[[0, 1], []], **{"in": [{"it": 0}, {"it": None}]}
    )
    labelled.save_to_disk(tmp_path / "saved")
    _, rows = _import(tmp_path / "saved", tmp_path / "t")
    assert [json.loads(row["meta"]) for row in rows] == [
        {"label": "dog", "all": ["cat", "dog"], "in": {"it": "cat"}},
        # No label, as the library marks it.
        {"label": -1, "all": [], "in": {"it": None}},
    ]
    _, rows = _import(tmp_path / "saved", tmp_path / "u", caption_column="label")
    assert _captions(rows) == ["dog"]


def test_lists_of_captions_and_texts_that_are_missing(
    tmp_path: Path, pairs: Callable[..., Dataset]
) -> None:
    features = Features({**FEATURES, "captions": List(Value("string")), "id": Value("int64")})
    captions = [["a", None, "b"], None, []]
    pairs(range(3), features, captions=captions, id=[7, 8, 9]).save_to_disk(tmp_path / "saved")
    _, rows = _import(tmp_path / "saved", tmp_path / "t")
    found = [(row["id"], row["captions"]) for row in rows]
    assert found == [("7", ["a", "b"]), ("8", ["text 1"]), ("9", ["text 2"])]


def test_images_that_are_null_damaged_or_several(
    tmp_path: Path, jpeg: Callable[..., bytes]
) -> None:
    features = Features({"images": List(Image(decode=False)), "caption": Value("string")})
    one = {"bytes": jpeg(0), "path": None}
    images = [[one], None, [], [one, one], [{"bytes": b"none", "path": None}], [None]]
    data = {"images": images, "caption": list("abcdef")}
    Dataset.from_dict(data, features=features).save_to_disk(tmp_path / "saved")
    report, rows = _import(tmp_path / "saved", tmp_path / "t", image_column="images")
    assert _captions(rows) == ["a"]
    assert report.skipped == {"missing image": 3, "bad record": 1, "unreadable image": 1}
    assert _details(report, "bad record") == ["images has 2 images; a row has one"]


def test_paths_lead_below_the_folder_or_the_one_that_is_named(
    tmp_path: Path, jpeg: Callable[..., bytes]
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "1.jpg").write_bytes(jpeg(1))
    paths = ["0.jpg", str(elsewhere / "1.jpg"), "https://x/2.jpg", "zip://a.jpg::/etc/a.zip"]
    data = {"image": paths, "caption": list("abcd")}
    Dataset.from_dict(data).save_to_disk(tmp_path / "saved")
    (tmp_path / "saved" / "0.jpg").write_bytes(jpeg(0))
    report, rows = _import(tmp_path / "saved", tmp_path / "t")
    assert [(row["id"], row["captions"]) for row in rows] == [("0.jpg", ["a"])]
    assert report.skipped == {"unsafe path": 3}
    _, rows = _import(tmp_path / "saved", tmp_path / "u", image_root=elsewhere)
    assert [(row["id"], row["captions"]) for row in rows] == [("1.jpg", ["b"])]


def test_rows_of_one_path_become_one_row(tmp_path: Path, jpeg: Callable[..., bytes]) -> None:
    data = {"file_name": ["0.jpg", "0.jpg", "1.jpg"], "caption": ["a", "b", "c"]}
    Dataset.from_dict(data).save_to_disk(tmp_path / "saved")
    for number in range(2):
        (tmp_path / "saved" / f"{number}.jpg").write_bytes(jpeg(number))
    report, rows = _import(tmp_path / "saved", tmp_path / "t")
    assert [row["captions"] for row in rows] == [["a", "b"], ["c"]]
    assert (report.num_seen, report.num_used) == (3, 3)


def test_the_split_of_a_row_counts_before_that_of_the_dataset(
    tmp_path: Path, pairs: Callable[..., Dataset]
) -> None:
    features = Features({**FEATURES, "split": Value("string")})
    told = ["val", None, "train"]
    splits = {"train": pairs(range(3), features, split=told)}
    splits["test"] = pairs(range(3, 6), features, split=told)
    DatasetDict(splits).save_to_disk(tmp_path / "saved")
    report, rows = _import(tmp_path / "saved", tmp_path / "t")
    assert [row["split"] for row in rows] == ["val", "train", "train", "val", "test"]
    (detail,) = _details(report, "contradiction")
    assert "'train'" in detail
    assert "'test'" in detail
    report, _ = _import(tmp_path / "saved", tmp_path / "u", split="val")
    assert report.splits == {"val": 6}


@pytest.mark.parametrize(
    ("name", "split"),
    [("train_sft", "train"), ("val2014", "val"), ("test.human", "test"), ("full", "train")],
)
def test_words_in_the_name_of_a_split(
    tmp_path: Path, pairs: Callable[..., Dataset], name: str, split: str
) -> None:
    DatasetDict({name: pairs([0])}).save_to_disk(tmp_path / "saved")
    assert _import(tmp_path / "saved", tmp_path / "t")[0].splits == {split: 1}


@pytest.mark.parametrize("name", ["contest", "valminusminival", "trainval", "devil"])
def test_a_split_that_may_be_a_test_is_not_taken_for_training(
    tmp_path: Path, pairs: Callable[..., Dataset], name: str
) -> None:
    DatasetDict({"train": pairs([0]), name: pairs([1])}).save_to_disk(tmp_path / "saved")
    report, _ = _import(tmp_path / "saved", tmp_path / "t")
    assert report.splits == {"train": 1}
    assert name in _details(report, "bad record")[0]
    assert _import(tmp_path / "saved", tmp_path / "u", split="test")[0].splits == {"test": 2}


@pytest.fixture
def cards(tmp_path: Path, pairs: Callable[..., Dataset]) -> Path:
    """A folder with two configurations, of which none is the default."""
    folder = tmp_path / "cards"
    for number, config in enumerate("ab"):
        (folder / config).mkdir(parents=True)
        pairs([number]).to_parquet(folder / config / "x.parquet")
    files = "data_files: [{split: test, path: a/*}]"
    header = f"configs:\n- config_name: a\n  {files}\n- config_name: b\n  data_files: b/*\n"
    (folder / "README.md").write_text(f"---\n{header}---\n")
    return folder


def test_configurations_are_listed_and_named(cards: Path, tmp_path: Path) -> None:
    listed = f"configurations a, b, and no default: name one, as hf:{cards}:a"
    with pytest.raises(DataError, match=listed):
        _import(f"hf:{cards}", tmp_path / "t")
    with pytest.raises(DataError, match="no configuration 'c', but a, b"):
        _import(f"hf:{cards}:c", tmp_path / "t")
    report, rows = _import(f"hf:{cards}:a", tmp_path / "t")
    assert (_captions(rows), report.splits) == (["text 0"], {"test": 1})
    # The remedy that a folder itself names leads there.
    with pytest.raises(DataError, match=f"hf:{cards}:NAME"):
        _import(cards, tmp_path / "t")


def test_what_is_no_dataset_is_said_in_one_line(
    cards: Path, tmp_path: Path, pairs: Callable[..., Dataset]
) -> None:
    pairs([0]).save_to_disk(tmp_path / "saved")
    (tmp_path / "empty").mkdir()
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "old.py").write_text("raise SystemExit")
    for source, said in {
        "hf:": "names no dataset",
        f"hf:{tmp_path}/no": "does not exist",
        "hf:./no": "does not exist",
        f"hf:{cards}/README.md": "is a file",
        f"hf:{tmp_path}/saved:a": "no configurations",
        f"hf:{tmp_path}/empty": "doesn't contain any data files",
        f"hf:{tmp_path}/old": "scripts are no longer supported, but found old.py",
    }.items():
        with pytest.raises(DataError, match=said) as raised:
            _import(source, tmp_path / "t")
        assert "\n" not in str(raised.value)
    assert not (tmp_path / "t").exists()


def test_columns_that_are_not_there(tmp_path: Path, pairs: Callable[..., Dataset]) -> None:
    splits = {"train": pairs([0]), "test": pairs([1]).remove_columns("caption")}
    DatasetDict(splits).save_to_disk(tmp_path / "saved")
    report, rows = _import(tmp_path / "saved", tmp_path / "t")
    assert _captions(rows) == ["text 0"]
    assert _details(report, "bad record")[0].startswith("no column of texts among image")
    report, _ = _import(tmp_path / "saved", tmp_path / "u", caption_column="words")
    assert (report.num_rows, report.skipped) == (0, {"bad record": 2})
    assert not (tmp_path / "u").exists()


def test_what_is_for_files_of_text_is_refused(
    tmp_path: Path, pairs: Callable[..., Dataset]
) -> None:
    pairs([0]).save_to_disk(tmp_path / "saved")
    for option in ({"columns": ("a", "b")}, {"encoding": "cp1252"}):
        with pytest.raises(DataError, match="no --columns or --encoding"):
            _import(tmp_path / "saved", tmp_path / "t", **option)


def test_a_dataset_without_rows_makes_no_table(
    tmp_path: Path, pairs: Callable[..., Dataset]
) -> None:
    DatasetDict({"train": pairs([])}).save_to_disk(tmp_path / "saved", num_shards={"train": 1})
    report, _ = _import(tmp_path / "saved", tmp_path / "t")
    assert (report.num_rows, report.num_skipped) == (0, 1)
    assert not (tmp_path / "t").exists()


def test_the_format_makes_the_library_read_a_folder(
    tmp_path: Path, pairs: Callable[..., Dataset]
) -> None:
    (tmp_path / "pq").mkdir()
    pairs([0]).to_parquet(tmp_path / "pq" / "a.parquet")
    report, _ = _import(tmp_path / "pq", tmp_path / "t", format="datasets")
    assert (report.format, report.num_rows) == ("datasets", 1)
    with pytest.raises(DataError, match="not as table"):
        _import(f"hf:{tmp_path / 'pq'}", tmp_path / "u", format="table")


def test_a_damaged_file_of_a_saved_dataset_does_not_keep_the_others_out(
    tmp_path: Path, pairs: Callable[..., Dataset]
) -> None:
    splits = {"train": pairs(range(4)), "val": pairs([4]), "test": pairs([5])}
    DatasetDict(splits).save_to_disk(
        tmp_path / "saved", num_shards={"train": 2, "val": 1, "test": 1}
    )
    file = tmp_path / "saved" / "train" / "data-00000-of-00002.arrow"
    file.write_bytes(file.read_bytes()[:500])
    (tmp_path / "saved" / "val" / "state.json").write_text("{")
    report, rows = _import(tmp_path / "saved", tmp_path / "t")
    assert _captions(rows) == ["text 2", "text 3", "text 5"]
    assert [example.where for example in report.examples["bad record"]] == [
        "train/data-00000-of-00002.arrow",
        "val",
    ]


def _damage(file: Path) -> bytes:
    """Overwrites the begin of a Parquet file's first column; its footer stays as it is."""
    data = bytearray(file.read_bytes())
    begin = parquet.ParquetFile(file).metadata.row_group(0).column(0).data_page_offset
    data[begin : begin + 40] = b"\xff" * 40
    file.write_bytes(data)
    return bytes(data)


def _three_files(tmp_path: Path, pairs: Callable[..., Dataset]) -> Path:
    folder = tmp_path / "pq"
    folder.mkdir()
    for number in range(3):
        pairs([2 * number, 2 * number + 1]).to_parquet(folder / f"train-{number}.parquet")
    return folder


def test_files_before_and_after_a_damaged_one_are_read(
    tmp_path: Path, pairs: Callable[..., Dataset]
) -> None:
    folder = _three_files(tmp_path, pairs)
    _damage(folder / "train-1.parquet")
    report, rows = _import(f"hf:{folder}", tmp_path / "t")
    assert _captions(rows) == ["text 0", "text 1", "text 4", "text 5"]
    (example,) = report.examples["bad record"]
    assert example.where == "train, shard 2 of 3"


def test_a_damaged_begin_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "pq").mkdir()
    (tmp_path / "pq" / "a.parquet").write_bytes(b"none")
    with pytest.raises(DataError, match=r"a\.parquet"):
        _import(f"hf:{tmp_path / 'pq'}", tmp_path / "t")


def test_a_value_that_python_cannot_hold_costs_its_row_alone(
    tmp_path: Path, jpeg: Callable[..., bytes]
) -> None:
    (tmp_path / "pq").mkdir()
    times = pa.array([0, 10**12, 1], pa.timestamp("s"))
    columns = {"image": [jpeg(n) for n in range(3)], "caption": list("abc"), "taken": times}
    parquet.write_table(pa.table(columns), tmp_path / "pq" / "a.parquet")
    report, rows = _import(f"hf:{tmp_path / 'pq'}", tmp_path / "t")
    assert _captions(rows) == ["a", "c"]
    assert report.skipped == {"bad record": 1}


@pytest.fixture
def several(tmp_path: Path, pairs: Callable[..., Dataset]) -> Path:
    """Three files in two splits, with a row that is refused and an empty file among them."""
    folder = tmp_path / "several"
    folder.mkdir()
    pairs(range(4)).to_parquet(folder / "train-0.parquet")
    pairs([]).to_parquet(folder / "train-1.parquet", batch_size=1)
    broken = pairs(range(4, 7)).to_dict()
    broken["image"][1] = None
    Dataset.from_dict(broken, features=FEATURES).to_parquet(folder / "test-0.parquet")
    return folder


def test_every_cursor_leads_on_exactly(several: Path, pairs: Callable[..., Dataset]) -> None:
    saved = several.parent / "saved"
    splits = {"train": pairs(range(5)), "test": pairs([5])}
    DatasetDict(splits).save_to_disk(saved, num_shards={"train": 2, "test": 1})
    for source in (f"hf:{several}", saved):
        whole = list(_entries(source))
        assert len(whole) in (6, 8)
        for number, entry in enumerate(whole, start=1):
            cursor = json.loads(json.dumps(entry.cursor))
            assert list(_entries(source, cursor)) == whole[number:]


def test_an_import_in_steps_equals_one_in_one_go(several: Path, tmp_path: Path) -> None:
    whole, rows = _import(f"hf:{several}", tmp_path / "whole")
    assert whole.skipped == {"empty file": 1, "missing image": 1}
    for limit in range(1, 6):
        report, _ = _import(f"hf:{several}", tmp_path / "t", limit=limit, commit_rows=1)
        assert report.num_rows == limit
    report, found = _import(f"hf:{several}", tmp_path / "t")
    assert (found, report.skipped, report.complete) == (rows, whole.skipped, True)


def test_an_import_does_not_go_on_in_another_dataset(
    several: Path, tmp_path: Path, pairs: Callable[..., Dataset]
) -> None:
    _import(f"hf:{several}", tmp_path / "t", limit=1)
    pairs([7]).to_parquet(several / "train-2.parquet")
    with pytest.raises(DataError, match="has changed since its import was stopped"):
        _import(f"hf:{several}", tmp_path / "t")


def test_rows_are_read_when_they_are_asked_for(
    tmp_path: Path, pairs: Callable[..., Dataset]
) -> None:
    folder = _three_files(tmp_path, pairs)
    entries = _entries(f"hf:{folder}")
    first = next(entries)
    assert isinstance(first, Found)
    # What is not there any more has not been read before.
    (folder / "train-1.parquet").unlink()
    rest = [entry.captions[0] for entry in entries if isinstance(entry, Found)]
    assert rest == ["text 1", "text 4", "text 5"]


def test_without_the_library_it_is_said_what_to_install(
    tmp_path: Path, pairs: Callable[..., Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs([0]).save_to_disk(tmp_path / "saved")
    monkeypatch.setitem(sys.modules, "datasets", None)
    for source in ("hf:organisation/name", tmp_path / "saved"):
        with pytest.raises(DataError, match=r"pip install 'openblip\[datasets\]'"):
            _import(source, tmp_path / "t")


def test_names_with_configurations() -> None:
    assert str(dataset_name("hf:org/name")) == "hf:org/name"
    found = dataset_name("hf:org/name:en")
    assert (found.name, found.config, found.folder) == ("org/name", "en", None)


def _imported(code: str, tmp_path: Path, **settings: str) -> list[str]:
    """What a process of its own prints: the client reads its settings when it is imported."""
    before = (
        "import sys\n"
        "from openblip.sources.importing import import_pairs\n"
        "from openblip.runtime.errors import DataError\n"
        "def run(source, uri, **options):\n"
        "    try:\n"
        "        report = import_pairs(source, uri, show_progress=False, **options)\n"
        "        print(report.num_rows, report.splits, report.skipped)\n"
        "    except DataError as error: print(error)\n"
    )
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    client = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(
        [sys.executable, "-c", before + code],
        env={**kept, **client, **settings},
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_offline_and_without_network_it_is_said_at_once(tmp_path: Path) -> None:
    # The library's own way of trying takes 24 seconds.
    call = (
        "import time, datasets\n"
        "began = time.monotonic()\n"
        "run('hf:nowhere/nothing', 't')\n"
        "assert time.monotonic() - began < 10\n"
    )
    (offline,) = _imported(call, tmp_path, HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE is set, and the library has it not in its cache" in offline
    # Nothing listens on port 9: a machine without network.
    (unreached,) = _imported(call, tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert "http://127.0.0.1:9 cannot be reached" in unreached
    assert not (tmp_path / "t").exists()


def test_datasets_of_a_hub(
    tmp_path: Path, pairs: Callable[..., Dataset], jpeg: Callable[..., bytes]
) -> None:
    files = {}
    for name, numbers in {"train-0": [0, 1], "train-1": [2], "test-0": [3]}.items():
        pairs(numbers).to_parquet(tmp_path / "x.parquet")
        files[f"data/{name}.parquet"] = (tmp_path / "x.parquet").read_bytes()
    damaged = {**files, "data/train-1.parquet": _damage(tmp_path / "x.parquet")}
    record = json.dumps({"file_name": "a.jpg", "text": "a"}).encode()
    photos = {"test/a.jpg": jpeg(4), "test/metadata.jsonl": record}
    leak = [{"bytes": None, "path": path} for path in ("/etc/hostname", "hf://datasets/o/pairs/x")]
    spying = pa.table({"image": pa.array(leak, Image.pa_type), "caption": ["a", "b"]})
    parquet.write_table(spying, tmp_path / "x.parquet")
    repositories = {
        "datasets/o/pairs": files,
        "datasets/o/photos": photos,
        "datasets/o/spying": {"train.parquet": (tmp_path / "x.parquet").read_bytes()},
        "datasets/o/damaged": damaged,
        "datasets/o/gated": files,
        "datasets/o/script": {"script.py": b"raise SystemExit"},
    }
    names = ("photos", "spying", "damaged", "gated", "script", "none")
    code = (
        "run('hf:o/pairs', 'pairs', limit=1)\n"
        "run('hf:o/pairs', 'pairs')\n"
        f"for name in {names}: run(f'hf:o/{{name}}', name)\n"
    )
    with serve_hub(repositories=repositories, gated={"datasets/o/gated"}) as hub:
        said = _imported(code, tmp_path, HF_ENDPOINT=hub.url)
        # It goes on with the commit that it was begun with.
        assert f"/api/datasets/o/pairs/revision/{COMMIT}" in {path for _, path, _ in hub.requests}
        assert hub.fetched().count("test/a.jpg") == 1
    assert said[:2] == ["1 {'train': 1} {}", "4 {'train': 3, 'test': 1} {}"]
    assert said[2] == "1 {'test': 1} {}"
    assert said[3] == "0 {} {'missing image': 1, 'unsafe path': 1}"
    assert said[4] == "3 {'train': 2, 'test': 1} {'bad record': 1}"
    assert "gated" in said[5]
    assert "scripts are no longer supported" in said[6]
    assert "no such dataset" in said[7]
    assert len(said) == 2 + len(names)
    image = PairTable.open(tmp_path / "photos").take([0]).to_pylist()[0]["image"]
    assert image == jpeg(4)
