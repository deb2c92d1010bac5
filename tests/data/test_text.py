"""Cleaning of captions and questions."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openblip.data.text import clean_caption, clean_question, encodable


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


@given(st.text(max_size=5))
def test_what_utf8_can_hold_stays(text):
    assert encodable(text) == text


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        ("caf\udce9.jpg", r"caf\xe9.jpg"),
        ("caf\udce8.jpg", r"caf\xe8.jpg"),
        ("cut \ud83d", r"cut \ud83d"),
        ("cut \ude00", r"cut \ude00"),
        (r"C:\photos\xe9", r"C:\photos\xe9"),
    ],
)
def test_bytes_and_halves_become_escapes(text, stored):
    assert encodable(text) == stored
