"""Captions say what their claim means, in many words but few different ones."""

import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from openblip.world.claims import Claim, Mention, make_claim
from openblip.world.english import (
    ENGLISH,
    caption_errors,
    is_true_caption,
    parse_caption,
    write_boilerplate,
    write_human_caption,
    write_web_caption,
)
from openblip.world.scene import (
    COLOURS,
    GROUND_COLOURS,
    KINDS,
    PATTERNS,
    SIZES,
    Background,
    Dice,
    ObjectGroup,
    Scene,
)

SCENE = Scene(
    (ObjectGroup("circle", "orange", "large", 1), ObjectGroup("cross", "red", "small", 3)),
    "row",
    Background("striped", "gray"),
)

mentions = st.builds(
    Mention,
    kind=st.sampled_from(KINDS),
    colour=st.sampled_from((None, *COLOURS)),
    size=st.sampled_from((None, *SIZES)),
    count=st.integers(1, 3),
)


@st.composite
def claims(draw: st.DrawFn) -> Claim:
    num_groups, relation = draw(st.sampled_from(sorted(ENGLISH.bodies, key=str)))
    named = draw(st.lists(mentions, min_size=num_groups, max_size=num_groups))
    pattern = draw(st.sampled_from((None, *PATTERNS)))
    ground = draw(st.sampled_from((None, *GROUND_COLOURS)))
    return make_claim(tuple(named), relation, pattern, ground)


# A busy machine is no failure.
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(claims(), st.integers(0, 2**32))
def test_every_caption_is_parsed_back_to_its_claim(claim, seed):
    assert parse_caption(write_human_caption(claim, Dice(seed))) == claim
    assert parse_caption(write_web_caption(claim, Dice(seed))) == claim


@pytest.mark.parametrize(
    ("text", "errors"),
    [
        ("a large orange circle left of three small red crosses", ()),
        ("three red crosses to the right of an orange disc on a striped background", ()),
        ("there are three crosses and a circle against a gray backdrop", ()),
        ("Buy Orange Circle With Three Little Red Crosses | Stock Image", ()),
        ("on a gray striped background an orange circle is to the left of three crosses", ()),
        ("an orange circle", ()),
        ("a red circle next to three red crosses", ("colour",)),
        ("two red crosses", ("count",)),
        ("a big red cross", ("count", "size")),
        ("an orange square and three red crosses", ("object",)),
        ("three red crosses left of an orange circle", ("relation",)),
        ("an orange circle on the right and three red crosses on the left", ("relation",)),
        ("a plain background with an orange circle", ("background",)),
        ("a red star on a navy speckled background", ("background", "object")),
    ],
)
def test_errors_are_named(text, errors):
    assert caption_errors(text, SCENE) == errors
    assert is_true_caption(text, SCENE) is (not errors)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a circle a",
        "red crosses",
        "two cross",
        "a circles",
        "a red",
        "a circle on a background",
        "a circle left of",
        "a green elephant",
        "a circle and a cross and a star",
        *(text.format(number=1234) for text in ENGLISH.boilerplate),
    ],
)
def test_what_is_no_sentence_of_the_grammar_is_neither_true_nor_false(text):
    assert is_true_caption(text, SCENE) is None


def test_number_and_article_agree():
    orange = make_claim((Mention("ring", "orange", None, 1),))
    texts = {write_human_caption(orange, Dice(seed)) for seed in range(100)}
    assert texts == {
        "an orange ring",
        "one orange ring",
        "there is an orange ring",
        "there is one orange ring",
    }
    crosses = make_claim((Mention("cross", None, None, 2),))
    texts = {write_human_caption(crosses, Dice(seed)) for seed in range(100)}
    assert texts == {
        "two crosses",
        "a couple of crosses",
        "there are two crosses",
        "there are a couple of crosses",
    }


def test_one_claim_has_many_sentences():
    circle, cross = Mention("circle", "red", None, 1), Mention("cross", "blue", "large", 1)
    claim = make_claim((circle, cross), "left_of", "striped", None)
    assert len({write_human_caption(claim, Dice(seed)) for seed in range(300)}) > 80


def test_both_directions_of_a_relation_are_used():
    claim = make_claim((Mention("ring", "red", None, 1), Mention("star", "blue", None, 1)), "above")
    texts = [write_human_caption(claim, Dice(seed)) for seed in range(100)]
    assert any(re.search("ring .*above .*star", text) for text in texts)
    assert any(re.search("star .*below .*ring", text) for text in texts)


def test_boilerplate_has_no_meaning():
    for seed in range(100):
        assert parse_caption(write_boilerplate(Dice(seed))) is None
