"""Corruptions of human texts: what each kind changes, and that a draw depends on its key alone."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from openblip.batches.corruption import KINDS, Corruptions, Kind, Name, with_name
from openblip.batches.tokenizer import TextTokenizer
from openblip.runtime.errors import DataError, OpenBlipWarning
from openblip.table.table import PairRow, PairTable

HUMAN = {
    "a": ["a red dog runs on the beach", "a dog in the sand"],
    "b": ["two women sit in a kitchen", "women with a big cake"],
    "c": ["a boy throws a ball to the left", "a small boy plays"],
}
WEB = [
    *["click here to enlarge"] * 4,
    *[f"IMG_{number}.jpg" for number in range(1000, 1005)],
    "Fluffy on the beach",
    "sunset in Zanzibar",
    "Red Dog For Sale",
    "a dog for sale",
    "Quagga",
]


def corruptions(
    folder: Path,
    human: Mapping[str, Sequence[str]] = HUMAN,
    web: Sequence[str] = WEB,
    seed: int = 0,
) -> Corruptions:
    rows = [
        PairRow(id=name, image=b"x", captions=texts, origin="human")
        for name, texts in human.items()
    ]
    rows += [PairRow(id=f"web{n}", image=b"x", captions=[text]) for n, text in enumerate(web)]
    return Corruptions.of(PairTable.create(folder / "t.lance", rows), seed)


@pytest.fixture
def found(tmp_path: Path) -> Corruptions:
    return corruptions(tmp_path)


def drawn(
    found: Corruptions, kind: Kind, row_id: str, text: str | None = None, similar: bool = False
) -> set[str | None]:
    texts = HUMAN[row_id]
    return {
        found.corrupt(kind, row_id, text or texts[0], texts, number, similar)
        for number in range(80)
    }


def test_a_corruption_depends_on_seed_row_kind_and_number_alone(
    found: Corruptions, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    reordered = corruptions(tmp_path / "other", dict(reversed(HUMAN.items())), WEB[::-1])
    (tmp_path / "seed").mkdir()
    reseeded = corruptions(tmp_path / "seed", seed=1)
    for row_id, texts in HUMAN.items():
        assert list(found.of_row(row_id, texts)) == list(reordered.of_row(row_id, texts))
        assert list(found.of_row(row_id, texts)) != list(found.of_row(row_id, texts, 1))
        assert list(found.of_row(row_id, texts)) != list(reseeded.of_row(row_id, texts))


def test_a_row_gives_its_texts_as_right_and_one_text_of_each_kind(found: Corruptions) -> None:
    told = list(found.of_row("a", HUMAN["a"]))
    assert [(text.text, text.kind, text.is_right) for text in told[:2]] == [
        (text, None, True) for text in HUMAN["a"]
    ]
    assert tuple(text.kind for text in told[2:]) == KINDS
    assert [text.kind for text in told if text.is_right] == [None, None, "names"]


def test_a_text_of_another_image_says_something_that_the_rows_own_do_not(
    found: Corruptions,
) -> None:
    assert drawn(found, "other_image", "a") == {*HUMAN["b"], *HUMAN["c"]}
    # "a dog" would be true of the other image with a dog.
    dogs = Corruptions(0, (("x", ("a red dog",)), ("y", ("a dog",))))
    assert dogs.corrupt("other_image", "x", "a red dog") is None
    assert dogs.corrupt("other_image", "y", "a dog") == "a red dog"


def test_a_similar_text_has_the_most_words_in_common() -> None:
    near = Corruptions(
        0,
        (
            ("x", ("a red dog on a beach",)),
            ("y", ("a red dog on a sofa",)),
            ("z", ("two men",)),
        ),
    )
    assert near.corrupt("other_image", "x", "a red dog on a beach", similar=True) == (
        "a red dog on a sofa"
    )


def test_an_attribute_is_swapped_within_its_group_and_not_for_what_may_be_true(
    found: Corruptions,
) -> None:
    swapped = drawn(found, "attribute", "a", "a red dog")
    # No other colour or animal stands in the table: any of the group serves.
    assert {"a blue dog", "an orange dog", "a red cat"} <= swapped
    assert not {text for text in swapped if text and "puppy" in text}
    # "big" is opposed by "small", which the table has, and not by "little" or "tiny".
    assert drawn(found, "attribute", "b", "It Is BIG") == {"It Is SMALL"}
    # Another text of the row says "small".
    assert drawn(found, "attribute", "c", "a big thing") == {None}
    assert drawn(found, "attribute", "a", "a thing") == {None}


def test_boilerplate_is_what_web_rows_repeat_and_no_human_would_say(found: Corruptions) -> None:
    told = drawn(found, "boilerplate", "a")
    assert "click here to enlarge" in told
    numbered = {text for text in told if text and text.startswith("IMG_")}
    assert all(text and text[4:8].isdigit() for text in numbered)
    assert numbered
    assert told == {"click here to enlarge", *numbered}


def test_a_table_without_web_texts_gets_common_boilerplate(tmp_path: Path) -> None:
    found = corruptions(tmp_path, web=["a red dog"] * 5)
    assert "add to cart" in drawn(found, "boilerplate", "a")


def test_truncated_texts_are_the_first_words(found: Corruptions) -> None:
    assert drawn(found, "truncated", "a") == {"a", "a red"}
    assert drawn(found, "truncated", "a", "two dogs") == {None}
    assert found.corrupt("truncated", "a", "红色的圆形在左边") in ("红", "红色")


def test_names_stand_behind_what_may_have_one_and_places_at_the_end(found: Corruptions) -> None:
    assert with_name("A dog runs.", Name("Rex", False)) == "A dog named Rex runs."
    assert with_name("A dog runs.", Name("Rex", False), 1) == "A dog called Rex runs."
    assert with_name("A dog runs. ", Name("Oslo", True)) == "A dog runs in Oslo."
    assert with_name("trees", Name("Oslo", True), 1) == "trees at Oslo"
    # Where nothing may have a name, the name is a place's.
    assert all(found.name_for("b", HUMAN["b"], number).is_place for number in range(40))
    assert not all(found.name_for("a", HUMAN["a"], number).is_place for number in range(40))


def test_names_of_the_table_are_capital_words_of_web_texts_alone(found: Corruptions) -> None:
    words = {name.word for name in found.names}
    assert {"Fluffy", "Zanzibar", "Quagga"} <= words
    assert not {"Red", "Dog", "For", "Sale", "IMG"} & words


def test_tokens_of_names_stand_in_no_human_text(found: Corruptions) -> None:
    texts = [text for own in HUMAN.values() for text in own]
    tokenizer = TextTokenizer.train([*texts, *WEB, "named called in at"] * 3, 300)

    def pieces(text: str) -> set[int]:
        return set(tokenizer.pieces([tokenizer.cleaning.caption(text)])[0])

    begins, others = found.name_tokens(tokenizer)
    assert others >= pieces(" ".join(texts)) | pieces("named called in at")
    assert tokenizer.pieces(["zanzibar"])[0][0] in begins
    # What is capital at the beginning of a text or in a title may be any word.
    assert {"Fluffy", "Quagga", "Sale"}.isdisjoint(found.grounded)
    assert "Zanzibar" in found.grounded
    assert begins.isdisjoint(tokenizer.special.__dict__.values())


def test_a_draw_passes_over_kinds_that_a_text_does_not_allow(found: Corruptions) -> None:
    text = found.draw(("truncated", "attribute"), "a", "a thing", ["a thing"])
    assert text is None
    text = found.draw(("truncated", "boilerplate"), "a", "a thing", ["a thing"])
    assert text is not None
    assert (text.kind, text.is_right) == ("boilerplate", False)
    kinds = [found.draw(KINDS, "a", HUMAN["a"][0], HUMAN["a"], n) for n in range(60)]
    assert {text.kind for text in kinds if text} == set(KINDS)


def test_texts_in_another_language_are_told_of(tmp_path: Path) -> None:
    human = {f"{number}": ["ein Hund rennt über die Wiese"] for number in range(3)}
    with pytest.warns(OpenBlipWarning, match="English tables"):
        found = corruptions(tmp_path, human)
    assert found.corrupt("attribute", "0", human["0"][0]) is None
    (tmp_path / "english").mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        corruptions(tmp_path / "english")


def test_one_image_with_human_texts_is_too_few(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="human texts of 1 images"):
        corruptions(tmp_path, {"a": HUMAN["a"]})


def test_what_a_captioner_is_given_and_is_to_write(found: Corruptions) -> None:
    texts = HUMAN["a"]
    pairs = [found.given("a", texts[0], texts, number) for number in range(300)]
    assert pairs == [found.given("a", texts[0], texts, number) for number in range(300)]
    nothing = [pair for pair in pairs if pair.given is None]
    assert {pair.target for pair in nothing} == {texts[0]}
    assert 20 < len(nothing) < 80
    words = {name.word for name in found.names}
    kept = dropped = 0
    for pair in pairs:
        named = words & set((pair.given or "").split())
        told = words & set(pair.target.split())
        # A name is never made up, and what is written besides is what a person wrote.
        assert told <= named
        assert with_all_names_removed(pair.target, told) == texts[0]
        kept, dropped = kept + bool(told), dropped + bool(named - told)
    assert kept > 60
    assert dropped > 15


def with_all_names_removed(text: str, names: set[str]) -> str:
    for name in names:
        text = text.replace(f" named {name}", "").replace(f" in {name}", "")
    return text


def test_a_name_stays_with_whom_it_names() -> None:
    texts = ("a red circle left of a blue star", "a blue star right of a red circle")
    found = Corruptions(0, (("x", texts), ("y", ("a green cross",))), names=(Name("Zog", False),))
    pairs = [found.given("x", texts[0], texts, number) for number in range(300)]
    named = [pair for pair in pairs if "Zog" in pair.target and "star named" in (pair.given or "")]
    assert named
    assert all("star named Zog" in pair.target for pair in named)


def test_what_people_have_corrected_is_mended_again(found: Corruptions) -> None:
    texts = ["a red dog runs on the beach"]
    given = {
        found.given("a", texts[0], texts, number, "a green dog on sale").given
        for number in range(100)
    }
    assert "a green dog on sale" in given
    # Of what remains, nothing is made of the text that is to be written.
    others = {text for text in given if text and text not in found.boilerplate}
    assert not [text for text in others if "red" in text.lower()]
