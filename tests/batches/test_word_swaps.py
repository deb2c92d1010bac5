"""Words that may stand for each other and say something else."""

from random import Random

import pytest

from openblip.batches.corruption import Corruptions
from openblip.batches.word_swaps import Swap, find_named, other_meanings


def test_words_between_the_same_neighbours_are_learnt_from_the_table() -> None:
    animals = ("gecko", "iguana", "skink", "newt", "toad")
    verbs = ("hides", "waits", "drinks", "blinks", "shivers")
    texts = [f"a {animal} {verb} at once" for animal in animals for verb in verbs]
    # Two words for one thing come together in the texts of an image.
    rows = [(text, (text, text.replace("newt", "triton"))) for text in texts]
    found = Corruptions.of_rows(rows)

    def told(text: str) -> set[str | None]:
        return {found.corrupt("attribute", "x", text, number=number) for number in range(80)}

    assert told("a gecko hides") == {
        *(f"{'an' if name[0] == 'i' else 'a'} {name} hides" for name in (*animals[1:], "triton")),
        *(f"a gecko {verb}" for verb in verbs[1:]),
    }
    assert "a newt hides" in told("a toad hides")
    assert "a triton hides" not in told("a newt hides")


def test_words_of_the_tables_exclude_each_other_mutually() -> None:
    for word, others in other_meanings().items():
        assert others, word
        for meaning in others:
            for other in meaning:
                assert any(word in back for back in other_meanings()[other]), (word, other)


@pytest.mark.parametrize(
    ("text", "start", "word", "other", "swapped"),
    [
        ("A red dog", 2, "red", "orange", "An orange dog"),
        ("an orange", 3, "orange", "red", "a red"),
        ("Two dogs", 0, "Two", "three", "Three dogs"),
        ("BIG DOG", 0, "BIG", "small", "SMALL DOG"),
        ("the area", 4, "area", "lake", "the lake"),
    ],
)
def test_case_and_article_fit_the_new_word(
    text: str, start: int, word: str, other: str, swapped: str
) -> None:
    assert Swap(start, word, (other,)).apply(Random(0), text) == swapped


def test_who_may_have_a_name() -> None:
    def named(text: str, *nouns: str) -> str | None:
        found = find_named(text, nouns)
        return None if found is None else found[0]

    assert named("Two dogs and a Puppy") == "Puppy"
    assert named("a man and a dog", "dog") == "dog"
    assert named("a man and a dog", "cat") == "man"
    assert named("trees") is None
