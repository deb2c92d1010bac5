import json
import random
import shutil
from pathlib import Path

import pytest

from openblip.metrics import caption, caption_tokens

# What the Java tokenizer made of each caption, then joined by spaces (a no-break space is inside
# a token).
CASES = json.loads(Path(__file__).with_name("ptb_cases.json").read_text())

# The reference tokenises all captions as one text and looks beyond the end of a line. A plain word
# between two captions keeps them apart.
GUARD = "and"


@pytest.mark.parametrize(("caption", "expected"), CASES)
def test_tricky_captions_become_the_tokens_of_the_java_tokenizer(caption, expected):
    assert " ".join(caption_tokens(caption)) == expected


def test_every_kind_of_white_space_separates():
    assert caption_tokens("a\tdog\r\non\u00a0the\u2003grass\n") == (
        "a",
        "dog",
        "on",
        "the",
        "grass",
    )


def test_a_sentence_start_takes_the_stop_of_a_single_letter():
    assert caption_tokens("player J. The ball") == ("player", "j", "the", "ball")
    assert caption_tokens("player J. Theo") == ("player", "j.", "theo")
    assert caption_tokens("player J.") == ("player", "j.")


def test_the_tokens_of_a_caption_do_not_depend_on_other_captions():
    alone = caption_tokens("chest X-ray (Fig.")
    caption_tokens("50-year-old man")
    assert caption_tokens("chest X-ray (Fig.") == alone
    assert alone == ("chest", "x-ray", "-lrb-", "fig")


def test_a_plain_word_has_the_same_tokens_inside_and_outside_a_sentence():
    for word in ("dog", "cannot", "etc", "no", "it's", "t-shirt"):
        assert caption_tokens(f"the {word} ran")[1:-1] == caption_tokens(word)


@pytest.fixture(scope="module")
def java_tokens():
    """Tokens of the reference tokenizer, caption by caption."""
    if shutil.which("java") is None:
        pytest.skip("no java: the reference tokenizer is a Java program")
    module = pytest.importorskip("pycocoevalcap.tokenizer.ptbtokenizer")

    def tokens(captions):
        lines = [line for caption in captions for line in (caption, GUARD)]
        keyed = {number: [{"caption": line}] for number, line in enumerate(lines)}
        found = module.PTBTokenizer().tokenize(keyed)
        return [found[number][0] for number in range(0, len(lines), 2)]

    return tokens


def captions_of(shared_data, name):
    lines = (shared_data / name / "captions.jsonl").read_text().splitlines()
    texts = []
    for row in map(json.loads, lines):
        texts += row["captions"]
        texts += [row["clinical_notes"]] if row.get("clinical_notes") else []
        for pair in row.get("questions", []):
            texts += [pair["question"], pair["answer"]]
    # The reference cannot take a line break.
    return [text.replace("\n", " ") for text in texts]


def assert_equal_tokens(captions, reference):
    differing = {
        caption: (theirs, " ".join(caption_tokens(caption)))
        for caption, theirs in zip(captions, reference, strict=True)
        if theirs != " ".join(caption_tokens(caption))
    }
    assert not differing


def damaged(caption, rng):
    """A caption with up to four typing errors of the kinds that web captions have."""
    marks = [*".,;:!?-/'\"()&@#$%*+=_~<>|0123456789", "\u2019", "\u201c", "\u2026", "'s", "n't"]
    words = ["U.S.", "Dr.", "No.", "5", "a.m.", "1/2", "'90s", "y'all", "cannot", "J.", "R&B", "$5"]
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(caption) + 1)
        kind = rng.randrange(4)
        if kind == 0:
            caption = caption[:place] + caption[place + 1 :]
        elif kind == 1:
            caption = caption[:place] + rng.choice(marks) + caption[place:]
        elif kind == 2:
            caption = caption[:place] + caption[place:].upper()
        else:
            caption = f"{caption[:place]} {rng.choice(words)} {caption[place:]}"
    return caption


def test_the_stored_cases_are_what_java_says(java_tokens):
    assert java_tokens([caption for caption, _ in CASES]) == [expected for _, expected in CASES]


def test_two_thousand_real_captions_equal_the_java_tokenizer(shared_data, java_tokens):
    captions = random.Random(0).sample(captions_of(shared_data, "flickr8k"), 2000)
    assert_equal_tokens(captions, java_tokens(captions))


def test_damaged_captions_equal_the_java_tokenizer(shared_data, java_tokens):
    rng = random.Random(1)
    captions = rng.sample(captions_of(shared_data, "flickr8k"), 2000)
    captions = [damaged(caption, rng) for caption in captions]
    assert_equal_tokens(captions, java_tokens(captions))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["flickr8k", "medical_covid_cxr", "vqa_daquar", "art_wikiart7", "industrial_deeppcb"],
)
def test_every_real_text_equals_the_java_tokenizer(name, shared_data, java_tokens):
    captions = captions_of(shared_data, name)
    assert_equal_tokens(captions, java_tokens(captions))


def test_where_spaces_tell_no_words_each_character_is_one() -> None:
    assert caption_tokens("一只狗，在 TV 旁。") == ("一", "只", "狗", "在", "tv", "旁")
    assert caption_tokens("犬が走る") == ("犬", "が", "走", "る")
    assert caption_tokens("วิ่งอยู่") == ("วิ่", "ง", "อ", "ยู่")
    # A text of words stays as the reference has it, whatever stands in it.
    assert caption_tokens("a sign that says 停车场") == ("a", "sign", "that", "says", "停车场")


def test_near_captions_without_spaces_score() -> None:
    references = {1: ["一只狗在公园里跑"], 2: ["两只猫睡在沙发上"]}
    near = caption({1: "一只狗在公园里走", 2: "两只猫睡在床上"}, references)
    far = caption({1: "红色的汽车", 2: "很多人吃饭"}, references)
    assert near["CIDEr"] > 5 > 0.5 > far["CIDEr"]
