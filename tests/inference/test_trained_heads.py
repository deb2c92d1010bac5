"""What a model was not trained for is said, and what to load instead."""

import warnings

import pytest

from openblip.inference.blip import Blip
from openblip.inference.loading import load
from openblip.runtime.errors import CheckpointError, MissingHead, UntrainedHead

from .conftest import make_med

USES = {
    "caption": ("lm", lambda blip, image: blip.caption(image)),
    "match": ("itm", lambda blip, image: blip.match(image, "a red square")),
    "match_all": ("itm", lambda blip, image: blip.match_all(image, "a red square")),
    "embed_images": ("itc", lambda blip, image: blip.embed_images(image)),
    "embed_texts": ("itc", lambda blip, image: blip.embed_texts("a red square")),
    "explain a caption": ("lm", lambda blip, image: blip.explain(image)),
    "explain a match": ("itm", lambda blip, image: blip.explain(image, "a red square")),
}
HINTS = {"lm": "demo/captioner", "itm": "demo/filter", "itc": "demo/filter"}


def model_of(tokenizer, kind: str, trained=None, **changes) -> Blip:
    return Blip(make_med(tokenizer, **changes), tokenizer, kind, 32, 30, trained)


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize(
    ("kind", "trained", "heads"),
    [
        ("pretrain", None, {"itc", "itm", "lm"}),
        ("captioner", None, {"lm"}),
        ("filter", None, {"itc", "itm"}),
        ("filter", ("itc", "itm", "lm"), {"itc", "itm", "lm"}),
        ("pretrain", ("itc",), {"itc"}),
    ],
)
def test_a_head_that_was_not_trained_for_it_warns_once(
    tokenizer, pictures, use, kind, trained, heads
):
    head, ask = USES[use]
    blip = model_of(tokenizer, kind, trained)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        ask(blip, pictures[0])
        ask(blip, pictures[0])
    messages = [str(each.message) for each in told]
    assert len(messages) == (head not in heads)
    if messages:
        assert told[0].category is UntrainedHead
        assert f"this {kind} was trained for " in messages[0]
        assert messages[0].endswith(f"(such as {HINTS[head]})")


@pytest.mark.parametrize("use", USES)
def test_a_missing_head_names_a_model_for_the_task(tokenizer, vqa, pictures, use):
    head, ask = USES[use]
    for blip in (
        Blip(vqa, tokenizer, "vqa", 32, 30),
        model_of(tokenizer, "filter", heads=("itc", "itm") if head == "lm" else ("lm",)),
    ):
        if use.startswith("explain") and blip.kind != "vqa":
            continue  # it explains what the model can do
        with pytest.raises(MissingHead, match=HINTS[head]):
            ask(blip, pictures[0])


def test_what_was_trained_survives_its_folder(tokenizer, tmp_path):
    model_of(tokenizer, "filter", ("itc", "itm", "lm")).save(tmp_path / "model")
    assert load(tmp_path / "model").trained == ("itc", "itm", "lm")
    model_of(tokenizer, "filter").save(tmp_path / "old")
    assert "trained" not in (tmp_path / "old" / "config.json").read_text()
    assert load(tmp_path / "old").trained is None


@pytest.mark.parametrize("trained", ['"lm"', "[1]"])
def test_a_damaged_note_is_named(tokenizer, tmp_path, trained):
    model_of(tokenizer, "filter").save(tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    file.write_text(file.read_text().replace('"kind"', f'"trained": {trained}, "kind"'))
    with pytest.raises(CheckpointError, match=r"config\.json: trained is .*not a list of heads"):
        load(tmp_path / "model")
