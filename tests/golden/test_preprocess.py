"""Text, tokens, images, augmentation and learning rates equal those of the original code."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from openblip.batches.text import clean_caption, clean_question
from openblip.batches.tokenizer import TextTokenizer
from openblip.batches.transforms import OPERATIONS, eval_transform, rand_augment
from openblip.training.optimiser import cosine_lr, step_decay_lr, warmup_lr

pytestmark = pytest.mark.golden


@pytest.fixture(scope="module")
def cases(golden_dir):
    return json.loads((golden_dir / "preprocess.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tensors(golden_dir):
    return load_file(golden_dir / "preprocess.safetensors")


@pytest.fixture(scope="module")
def image(tensors):
    return Image.fromarray(tensors["image_u8"].numpy())


def of_prefix(mapping, prefix):
    """The entries whose key is `prefix` and something more, which is the new key."""
    found = {k.removeprefix(prefix): v for k, v in mapping.items() if k.startswith(prefix)}
    assert found
    return found


def differences(image, expected):
    return np.abs(np.asarray(image).astype(int) - expected.numpy())


@pytest.mark.parametrize(
    ("prefix", "clean"), [("pre_caption_", clean_caption), ("pre_question_", clean_question)]
)
def test_cleaned_texts_are_equal(cases, prefix, clean):
    for max_words, pairs in of_prefix(cases, prefix).items():
        for text, cleaned in pairs:
            assert clean(text, int(max_words)) == cleaned


def test_ids_and_decoded_texts_are_equal(golden_dir, cases):
    tokenizer = TextTokenizer.from_file(golden_dir / "vocab.txt")
    special = cases["special"]
    assert (tokenizer.special.dec, tokenizer.special.enc) == (special["DEC"], special["ENC"])
    assert tokenizer.vocab_size == special["len"]
    for text, ids, decoded in cases["tokenize"]:
        batch = tokenizer.encode([text], max(2, len(ids)), pad_to=len(ids))
        assert batch.ids.tolist() == [ids]
        assert tokenizer.decode(ids) == decoded


def test_resized_and_normalised_images_are_equal(tensors, image):
    for size, expected in of_prefix(tensors, "resized_u8_").items():
        side = (int(size), int(size))
        assert differences(image.resize(side, Image.Resampling.BICUBIC), expected).max() == 0
    for size, expected in of_prefix(tensors, "transform_test_").items():
        torch.testing.assert_close(eval_transform(image, int(size)), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_each_operation_is_equal(cases, tensors, image, operation):
    for key, expected in of_prefix(tensors, f"aug.{operation.name}.").items():
        arguments = cases["aug_args"][f"aug.{operation.name}.{key}"]
        changed = operation.apply(image, *(arguments or [0.0]))
        assert differences(changed, expected).max() == 0, key


def test_randaugment_is_equal_draw_by_draw(tensors, image):
    for seed, expected in of_prefix(tensors, "randaugment.np_seed").items():
        augmented = rand_augment(image, 2, 5, np.random.RandomState(int(seed)))
        assert differences(augmented, expected).max() == 0


def test_learning_rates_are_equal(cases):
    tables = cases["lr"]
    steps = {epoch: step_decay_lr(epoch, 3e-4, 1e-6, 0.9) for epoch, _ in tables["step"]}
    warmup = {step: warmup_lr(step, 3000, 1e-6, 3e-4) for step, _ in tables["warmup"]}
    cosine = {epoch: cosine_lr(epoch, 5, 1e-5, 0.0) for epoch, _ in tables["cosine"]}
    assert steps == dict(tables["step"])
    assert warmup == dict(tables["warmup"])
    assert cosine == dict(tables["cosine"])
