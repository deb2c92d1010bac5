import json
import random
import subprocess
import sys

import numpy as np
import pytest

from openblip.metrics import caption, caption_scores, caption_tokens
from openblip.runtime.errors import DataError

NAMES = ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr"]


def test_metrics_of_captions_worked_by_hand():
    found = caption(
        {"a": "A dog runs fast.", 7: "One cat sleeps here!"},
        {7: ["one cat sleeps here"], "a": ["a dog runs fast", "A DOG RUNS FAST"]},
    )
    assert list(found) == NAMES
    assert [found[name] for name in NAMES] == pytest.approx([1, 1, 1, 1, 1, 10], abs=1e-7)


def test_scores_per_image_come_in_the_order_of_the_candidates():
    references = {"a": ["red dog runs fast"], "b": ["blue cat sleeps here"]}
    candidates = {"b": "blue cat sleeps here", "a": "nothing of it"}
    found = caption_scores(candidates, references)
    assert found.rouge_l.tolist() == pytest.approx([1.0, 0.0])
    assert found.cider.tolist() == pytest.approx([10.0, 0.0])
    assert found.bleu_statistics[:, 0].tolist() == [4, 3]


@pytest.mark.parametrize(
    ("candidates", "references", "reason"),
    [
        ({}, {}, "no captions"),
        ({"a": "x", "b": "y"}, {"a": ["x"]}, "1 images have no reference captions, first: 'b'"),
        ({"a": "x"}, {"a": ["x"], "b": ["y"]}, "1 images have no candidate caption, first: 'b'"),
        ({"a": "x"}, {"a": []}, "'a': references must be a list"),
        ({"a": "x"}, {"a": "x y"}, "'a': references must be a list"),
    ],
)
def test_what_does_not_fit_is_named(candidates, references, reason):
    with pytest.raises(DataError, match=reason):
        caption(candidates, references)


def test_the_metrics_need_no_torch():
    code = "import sys, openblip.metrics; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def reference_metrics(candidates, references):
    """pycocoevalcap's values on our tokens: corpus values, ROUGE-L and CIDEr per image."""
    bleu = pytest.importorskip("pycocoevalcap.bleu.bleu").Bleu(4)
    rouge = pytest.importorskip("pycocoevalcap.rouge.rouge").Rouge()
    cider = pytest.importorskip("pycocoevalcap.cider.cider").Cider()
    ours = {key: [" ".join(caption_tokens(text))] for key, text in candidates.items()}
    human = {key: [" ".join(caption_tokens(t)) for t in references[key]] for key in candidates}
    bleus, _ = bleu.compute_score(human, ours, verbose=0)
    rouge_mean, rouges = rouge.compute_score(human, ours)
    cider_mean, ciders = cider.compute_score(human, ours)
    values = [*bleus, rouge_mean, cider_mean]
    return dict(zip(NAMES, values, strict=True)), rouges, ciders


def assert_equal_metrics(candidates, references):
    values, rouges, ciders = reference_metrics(candidates, references)
    found = caption_scores(candidates, references)
    assert found.summary() == pytest.approx(values, rel=0, abs=1e-12)
    assert np.abs(found.rouge_l - rouges).max() < 1e-12
    assert np.abs(found.cider - ciders).max() < 1e-12


@pytest.mark.parametrize("seed", range(4))
def test_random_sentences_equal_pycocoevalcap(seed):
    rng = random.Random(seed)
    words = ["a", "a", "a", "the", "dog", "cat", "runs", "2 1/2", "red", "on", "don't", "(x)", "!"]

    def sentence():
        return " ".join(rng.choices(words, k=rng.randint(0, 12)))

    references = {n: [sentence() for _ in range(rng.randint(1, 5))] for n in range(40)}
    assert_equal_metrics({n: sentence() for n in references}, references)


@pytest.fixture(scope="module")
def flickr(shared_data):
    """Five human captions of 1000 images."""
    lines = (shared_data / "flickr8k" / "captions.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return {row["image"]: row["captions"] for row in rows if row["split"] == "test"}


@pytest.mark.parametrize("left_out", [0, 3])
def test_one_human_caption_against_the_others_equals_pycocoevalcap(flickr, left_out):
    candidates = {image: texts[left_out] for image, texts in flickr.items()}
    references = {
        image: texts[:left_out] + texts[left_out + 1 :] for image, texts in flickr.items()
    }
    assert_equal_metrics(candidates, references)


def test_captions_of_other_images_equal_pycocoevalcap(flickr):
    wrong = [texts[0] for texts in flickr.values()]
    random.Random(0).shuffle(wrong)
    candidates = dict(zip(flickr, wrong, strict=True))
    assert_equal_metrics(candidates, flickr)
    right = caption({image: texts[0] for image, texts in flickr.items()}, flickr)
    assert caption(candidates, flickr)["CIDEr"] < 0.1 * right["CIDEr"]
