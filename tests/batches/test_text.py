"""Cleaning of captions and questions."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openblip.batches.text import Cleaning, clean_caption, clean_question, has_words
from openblip.runtime.documents import encodable


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


UNSPACED = {
    "chinese": "一只狗在公园里跑: 很快!",
    "japanese": "犬が公園を走っている (今日).",
    "thai": "สุนัขกำลังวิ่งอยู่ในสวน!",
    "khmer": "ឆ្កែកំពុងរត់នៅក្នុងសួន.",
    "burmese": "ခွေးသည်ပန်းခြံထဲတွင်ပြေးနေသည်။",
    "lao": "ໝາແລ່ນຢູ່ໃນສວນ",
}
SPACED = [
    "a dog",
    "Ein Hund läuft",
    "كلب يجري في الحديقة",
    "एक कुत्ता दौड़ रहा है",
    "개가 달리고 있다",
    "",
]


class TestCleaning:
    @pytest.mark.parametrize("lowercases", [True, False])
    @pytest.mark.parametrize("language", UNSPACED)
    def test_a_text_without_words_keeps_its_marks_and_its_length(self, language, lowercases):
        text, cleaning = UNSPACED[language], Cleaning(lowercases=lowercases)
        assert not has_words(text)
        for clean in (cleaning.caption, cleaning.question):
            assert clean(f"  {text}\n", 1) == text
            assert clean(" ".join([text] * 9), 3) == " ".join([text] * 9)
        assert not cleaning.exceeds(" ".join([text] * 9), 3)

    @pytest.mark.parametrize("text", SPACED)
    def test_other_scripts_have_words(self, text):
        assert has_words(text)

    def test_most_letters_of_a_mixed_text_decide(self):
        assert has_words("A sign that says 停!")
        assert not has_words("一台新的 TV 在客厅")

    @settings(deadline=None, max_examples=200)
    @given(st.text(st.characters(max_codepoint=0x24F)), st.integers(1, 5))
    def test_english_is_cleaned_as_in_the_original(self, text, most):
        assert Cleaning().caption(text, most) == clean_caption(text, most)
        assert Cleaning().question(text, most) == clean_question(text, most)

    def test_a_tokenizer_that_keeps_case_gets_marks_and_case(self):
        cleaning = Cleaning(lowercases=False)
        text = "Der Hund (groß) läuft: schnell!"
        assert cleaning.caption(f" {text}\n") == cleaning.question(text) == text
        assert cleaning.caption(text, 2) == "Der Hund"
        assert cleaning.exceeds(text, 4)
        assert not cleaning.exceeds(text, 5)

    def test_equal_texts_without_words_are_equal_whatever_their_case(self):
        assert Cleaning().caption("一台新的 TV 在客厅") == "一台新的 tv 在客厅"
        assert Cleaning(lowercases=False).caption("一台新的 TV 在客厅") == "一台新的 TV 在客厅"


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
