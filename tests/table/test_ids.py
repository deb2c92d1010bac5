import hashlib
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openblip.table.rows import IdSet, file_key, id_hash


@given(st.lists(st.text(max_size=3)))
def test_an_id_is_new_exactly_once(texts: list[str]) -> None:
    ids, seen = IdSet(), set()
    for text in texts:
        assert ids.add(text) == (text not in seen)
        seen.add(text)
    assert len(ids) == len(seen)


def test_ids_are_remembered_after_they_have_left_the_buffer() -> None:
    ids = IdSet()
    assert all(ids.add(str(number)) for number in range(70_000))
    assert len(ids) == 70_000
    assert not any(ids.add(str(number)) for number in range(0, 70_000, 97))
    assert "69999" in ids
    assert "70000" not in ids


@given(st.text(min_size=1))
def test_a_file_key_is_safe_as_a_name_and_stays_itself(row_id: str) -> None:
    key = file_key(row_id)
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,100}", key)
    assert file_key(key) == key


@pytest.mark.parametrize(
    "row_id", ["a.b", "a/b", "../up", ".hidden", "-flag", "a\n", "ü", "x" * 101]
)
def test_unsafe_ids_become_their_hash(row_id: str) -> None:
    assert file_key(row_id) == hashlib.sha256(row_id.encode()).hexdigest()


def test_safe_ids_are_kept() -> None:
    assert [file_key(row_id) for row_id in ("00012", "COCO_val-1")] == ["00012", "COCO_val-1"]


def test_many_hashes_are_added_at_once_as_one_by_one() -> None:
    rng = np.random.default_rng(0)
    texts = [str(number) for number in rng.integers(0, 3000, 6000)]
    alone, together = IdSet(), IdSet()
    for start in range(0, len(texts), 500):
        # A set takes both ways in turn.
        for text in texts[start : start + 100]:
            assert alone.add(text) == together.add(text)
        several = list(dict.fromkeys(texts[start + 100 : start + 500]))
        hashes = np.array([id_hash(text) for text in several], dtype=np.uint64)
        assert together.add_hashes(hashes).tolist() == [alone.add(text) for text in several]
    assert len(together) == len(alone) == len(set(texts))
    assert together.add_hashes(np.empty(0, dtype=np.uint64)).tolist() == []
