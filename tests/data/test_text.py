"""Cleaning of captions and questions."""

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openblip.data.text import clean_caption, clean_question, encodable, without_halves


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("Two Dogs", "two dogs"),
        ("a.b!c(d)e:f", "a b c d e f"),
        ("a  dog ,   running", "a dog , running"),
        ("  ends are stripped \n", "ends are stripped"),
        ("don't, really? yes/no-maybe & co", "don't, really? yes/no-maybe & co"),
        ("one\ttab stays", "one\ttab stays"),
        ("...", ""),
    ],
)
def test_caption(text, cleaned):
    assert clean_caption(text) == cleaned


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("Is it ~10:30 #am*?", "is it 1030 am?"),
        (" spaces  stay, but at the right   ", " spaces  stay, but at the right"),
        ("(how) many!", "how many"),
    ],
)
def test_question(text, cleaned):
    assert clean_question(text) == cleaned


@pytest.mark.parametrize("clean", [clean_caption, clean_question])
def test_the_first_words_stay(clean):
    words = [f"w{number}" for number in range(60)]
    assert clean(" ".join(words)) == " ".join(words[:50])
    assert clean(" ".join(words), max_words=3) == "w0 w1 w2"


@settings(deadline=None, max_examples=50)
@given(st.text())
def test_a_cleaned_caption_has_no_marks_and_no_double_spaces(text):
    cleaned = clean_caption(text, max_words=5)
    assert not set(cleaned) & set('.!"()*#:;~')
    assert "  " not in cleaned
    assert len(cleaned.split(" ")) <= 5


@given(st.text(max_size=3) | st.text("\\\\xude9f\udce9\ud83d\udc00", max_size=9))
def test_what_utf8_can_hold_stays(text):
    encodable(text).encode()
    if "\\" not in text and not any("\ud800" <= c <= "\udfff" for c in text):
        assert encodable(text) == without_halves(text) == text


# Every text of up to six of these, many of which look like one another's escapes.
def test_different_texts_stay_different():
    parts = ("\\", "\udce9", "xe9", "\ud83d", "ud83d", "a")
    texts = {"".join(some) for size in range(6) for some in product(parts, repeat=size)}
    assert len({encodable(text) for text in texts}) == len(texts)


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        ("caf\udce9.jpg", r"caf\xe9.jpg"),
        ("cut \ud83d", r"cut \ud83d"),
        (r"caf\xe9.jpg", r"caf\\xe9.jpg"),
        (r"C:\photos\new", r"C:\photos\new"),
    ],
)
def test_bytes_and_halves_become_escapes(text, stored):
    assert encodable(text) == stored
