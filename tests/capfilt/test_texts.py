"""Captions that were made elsewhere: matched with the rows, told of, and scored like others."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from openblip.capfilt.job import CAPFILT
from openblip.capfilt.run import run_capfilt
from openblip.capfilt.texts import Left, add_texts
from openblip.cli import main
from openblip.jobs.ledger import open_store
from openblip.jobs.lock import JobLock, JobLockedError
from openblip.runtime.errors import DataError, RecipeError
from openblip.table.columns import read_rows
from openblip.table.table import PairRow, PairTable

from .jobs import columns, job_settings, make_table
from .test_run import copy_of

Models = dict[str, str]


def written(folder: Path, *records: object, name: str = "captions.jsonl") -> Path:
    """A file with a record a line."""
    file = folder / name
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


def web_ids(table: PairTable) -> list[str]:
    rows = PairTable.open(table.uri).take(range(len(table)), ["id", "origin"]).to_pylist()
    return [row["id"] for row in rows if row["origin"] == "web"]


def test_texts_are_those_of_the_rows_that_the_file_names(table: PairTable, tmp_path: Path) -> None:
    first, second, third, *rest = web_ids(table)
    file = written(
        tmp_path,
        {"id": first, "text": "one"},
        {"id": first, "texts": ["two", "one"]},
        {"image": second, "captions": [{"text": "as openblip caption writes it", "logprob": -1}]},
        {"id": third, "caption": " "},
        {"id": "nobody", "text": "lost"},
        {"text": "whose?"},
    )
    added = add_texts(table.uri, file, "other")
    assert (added.rows, added.texts, added.repeated) == (2, 3, 1)
    assert added.without == len(rest) + 1
    assert added.unknown == Left(1, ("nobody",))
    assert added.refused.count == 2
    assert "captions.jsonl" in added.refused.examples[0]
    opened = PairTable.open(table.uri)
    rows = opened.take(range(len(opened)), ["id", "texts_other"]).to_pylist()
    found = {row["id"]: row["texts_other"] for row in rows}
    assert found.pop(first) == ["one", "two"]
    assert found.pop(second) == ["as openblip caption writes it"]
    assert set(found.values()) == {None}


def test_an_image_is_named_by_the_last_part_of_its_path_unless_several_have_it(
    pair_rows: object, tmp_path: Path
) -> None:
    names = ("a/1.jpg", "a/2.jpg", "b/2.jpg", "3.jpg", "c/3.jpg")
    rows = [replace(row, id=name) for row, name in zip(pair_rows(5), names, strict=True)]
    table = PairTable.create(tmp_path / "pairs.lance", rows)
    records = [{"file_name": f"{n}.jpg", "text": f"text {n}"} for n in (1, 2, 3)]
    added = add_texts(table.uri, written(tmp_path, *records), "other")
    assert added.ambiguous == Left(1, ("2.jpg",))
    assert added.unknown.count == 0
    texts = PairTable.open(table.uri).take(range(5), ["texts_other"])["texts_other"].to_pylist()
    # "3.jpg" is one row's whole id, and so none of the other.
    assert texts == [["text 1"], None, None, ["text 3"], None]


def test_half_a_character_in_a_text_costs_no_other_record(table: PairTable, tmp_path: Path) -> None:
    (first, second), file = table.take([0, 1], ["id"])["id"].to_pylist(), tmp_path / "t.jsonl"
    records = [{"id": first, "text": "cut \ud83d"}, {"id": second, "text": "whole"}]
    file.write_text("\n".join(map(json.dumps, records)))
    added = add_texts(table.uri, file, "other")
    assert added.rows == 2
    assert PairTable.open(table.uri).take([0], ["texts_other"])["texts_other"].to_pylist() == [
        ["cut ?"]
    ]


def test_a_text_counts_once_by_whatever_names_its_row_is_meant(tmp_path: Path) -> None:
    rows = [
        PairRow(id="k/one.jpg", image=b"x", image_uri="/photos/two.jpg"),
        PairRow(id="x/same.jpg", image=b"x"),
        PairRow(id="y/same.jpg", image=b"x"),
    ]
    table = PairTable.create(tmp_path / "named.lance", rows)
    file = written(
        tmp_path,
        {"image": "one.jpg", "texts": ["a dog", "a cat"]},
        {"image": "two.jpg", "texts": ["a dog", "a bird"]},
        {"image": "x/same.jpg", "text": "a house"},
        # Of one row by its whole path, it is no less the name of two.
        {"image": "same.jpg", "text": "a tree"},
    )
    added = add_texts(table.uri, file, "other")
    texts = PairTable.open(table.uri).take(range(3), ["texts_other"])["texts_other"].to_pylist()
    assert texts == [["a dog", "a cat", "a bird"], ["a house"], None]
    assert (added.rows, added.texts, added.repeated) == (2, 4, 1)
    assert added.ambiguous == Left(1, ("same.jpg",))
    assert added.unknown == Left()


def test_a_file_that_fits_nothing_reads_no_more_than_one_row_to_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = PairTable.create(tmp_path / "t.lance", [PairRow(id=f"r{n}", image=b"x") for n in "ab"])
    scan, batches = PairTable.scan, []

    def counted(self: PairTable, *asked: object, **how: object) -> Iterator[object]:
        for batch in scan(self, *asked, **how):  # type: ignore[arg-type]
            batches.append(how.get("batch_size"))
            yield batch

    monkeypatch.setattr(PairTable, "scan", counted)
    with pytest.raises(DataError, match=r"a row's id there is \['ra'\]"):
        add_texts(table.uri, written(tmp_path, {"id": "nobody", "text": "lost"}), "other")
    assert batches == [None]


def test_rows_of_people_are_counted_since_a_job_adds_nothing_to_them(
    table: PairTable, tmp_path: Path
) -> None:
    rows = table.take(range(len(table)), ["id", "origin"]).to_pylist()
    human = next(row["id"] for row in rows if row["origin"] == "human")
    file = written(tmp_path, *({"id": i, "text": "a"} for i in (human, web_ids(table)[0])))
    assert add_texts(table.uri, file, "other").of_people == 1


def test_a_file_that_fits_nothing_leaves_the_table_as_it_was(
    table: PairTable, tmp_path: Path
) -> None:
    version = table.version
    file = written(tmp_path, {"id": "nobody", "text": "lost"})
    with pytest.raises(DataError, match=r"none of its 1 ids .* such as nobody; a row's id there"):
        add_texts(table.uri, file, "other")
    with pytest.raises(DataError, match="no such file"):
        add_texts(table.uri, tmp_path / "none.jsonl", "other")
    file = written(tmp_path, {"name": "nobody", "text": "lost"})
    with pytest.raises(DataError, match=r"no record .* and a text: .*fields \(name, text\)"):
        add_texts(table.uri, file, "other")
    file.write_text("")
    with pytest.raises(DataError, match=r"no record .* and a text: it is empty"):
        add_texts(table.uri, file, "other")
    with pytest.raises(RecipeError, match="cannot be the name of texts"):
        add_texts(table.uri, file, "a.b")
    assert PairTable.open(table.uri).version == version


def test_texts_of_a_name_are_replaced_only_where_that_is_asked_for(
    table: PairTable, models: Models, tmp_path: Path
) -> None:
    ids = web_ids(table)
    file = written(tmp_path, *({"id": i, "text": "a dog"} for i in ids))
    add_texts(table.uri, file, "other")
    settings = job_settings(models, captioner="texts:other")
    run_capfilt(table.uri, settings, processes=1)
    assert run_capfilt(table.uri, settings, processes=1).computed == 0
    written(tmp_path, *({"id": i, "text": "a cat"} for i in ids))
    with pytest.raises(DataError, match="--replace"):
        add_texts(table.uri, file, "other")
    add_texts(table.uri, file, "other", replace=True)
    # Other texts are another job.
    assert run_capfilt(table.uri, settings, processes=1).computed == len(table)
    assert "a cat" in columns(table.uri)["synthetic"].to_pylist()[0]


def test_nothing_is_added_while_a_job_works_on_the_table(table: PairTable, tmp_path: Path) -> None:
    file = written(tmp_path, {"id": web_ids(table)[0], "text": "a"})
    with JobLock(open_store(CAPFILT.folder(table.uri)), CAPFILT), pytest.raises(JobLockedError):
        add_texts(table.uri, file, "other")


def test_texts_that_were_broken_off_are_no_captioner(
    table: PairTable, models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(tmp_path, {"id": web_ids(table)[0], "text": "a"})

    def broken(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PairTable, "add_columns", broken)
        with pytest.raises(KeyboardInterrupt):
            add_texts(table.uri, file, "other")
    settings = job_settings(models, captioner="texts:other")
    with pytest.raises(DataError, match=r"was broken off: run .*--replace` again"):
        run_capfilt(table.uri, settings, processes=1)
    add_texts(table.uri, file, "other", replace=True)
    assert run_capfilt(table.uri, settings, processes=1).errors == 1


def test_they_stand_behind_those_of_other_captioners_with_their_name_and_scores(
    table: PairTable, models: Models, tmp_path: Path
) -> None:
    ids = web_ids(table)
    texts = {i: [f"text {n}" for n in range(place % 3)] for place, i in enumerate(ids)}
    file = written(tmp_path, *({"id": i, "texts": own} for i, own in texts.items() if own))
    add_texts(table.uri, file, "captioner2")
    alone = copy_of(table, tmp_path / "alone")
    run_capfilt(alone.uri, job_settings(models), processes=1)
    both = (models["captioner"], "texts:captioner2")
    with pytest.raises(DataError, match=r"no texts of the name captioner3 \(it has captioner2\)"):
        run_capfilt(table.uri, job_settings(models, captioner="texts:captioner3"), processes=1)
    run_capfilt(table.uri, job_settings(models, captioner=both), processes=1)
    opened, other = PairTable.open(table.uri), PairTable.open(alone.uri)
    rows = opened.take(range(len(opened))).to_pylist()
    for row, own in zip(rows, other.take(range(len(other))).to_pylist(), strict=True):
        if row["origin"] != "web" or row["capfilt_error"]:
            continue
        mine = texts[row["id"]]
        assert row["synthetic"] == own["synthetic"] + mine
        assert row["synthetic_captioner"] == own["synthetic_captioner"] + ["captioner2"] * len(mine)
        assert len(row["synthetic_itm"]) == len(row["synthetic"])
        assert row["synthetic_error"] is None
    assert json.loads(opened.metadata["capfilt"])["captioner_fingerprint"][1] == "captioner2"


def test_rows_that_come_later_have_none_and_no_error(
    table: PairTable, models: Models, tmp_path: Path, rows: list[PairRow]
) -> None:
    file = written(tmp_path, *({"id": i, "text": "a dog"} for i in web_ids(table)))
    add_texts(table.uri, file, "other")
    settings = job_settings(models, captioner="texts:other")
    run_capfilt(table.uri, settings, processes=1)
    later = [replace(row, id=f"later {row.id}") for row in rows[:4]]
    PairTable.open(table.uri).append(later)
    assert run_capfilt(table.uri, settings, processes=1).computed == 4
    assert columns(table.uri)["synthetic"].to_pylist()[-4] == []
    assert PairTable.open(table.uri).count_values("synthetic_error") == 0


def test_they_change_no_fragment_so_that_nothing_else_is_computed_again(
    rows: list[PairRow], models: Models, tmp_path: Path
) -> None:
    table = make_table(str(tmp_path / "pairs.lance"), rows, 3)
    run_capfilt(table.uri, job_settings(models), processes=1)
    add_texts(table.uri, written(tmp_path, {"id": rows[0].id, "text": "a"}), "other")
    assert run_capfilt(table.uri, job_settings(models), processes=1).computed == 0
    opened = PairTable.open(table.uri)
    assert read_rows(opened, 0, range(1), ["texts_other"])["texts_other"].to_pylist() == [["a"]]


def test_the_command_tells_what_was_left_out_and_scores_at_once(
    table: PairTable, models: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = web_ids(table)
    file = written(tmp_path, {"id": "nobody", "text": "x"}, *({"id": i, "text": "a"} for i in ids))
    words = ["capfilt", "add-texts", table.uri, str(file), "--name", "other"]
    assert main([*words, "--filter", models["filter"]]) == 0
    told = capsys.readouterr()
    assert f"{len(ids)} texts for {len(ids)} rows; 0 web rows have none" in told.out
    assert "ids or images that no row has: 1 (nobody)" in told.err
    names = {n for own in columns(table.uri)["synthetic_captioner"].to_pylist() for n in own or []}
    assert names == {"other"}
    # Alone it would replace what is there.
    words[words.index("other")] = "another"
    assert main([*words, "--filter", models["filter"]]) == 1
    assert "--captioner texts:other texts:another" in capsys.readouterr().err
