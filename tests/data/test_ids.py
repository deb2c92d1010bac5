from hypothesis import given
from hypothesis import strategies as st

from openblip.data.ids import IdSet


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
