"""The captioner's loss, and every way of generating, give the original's numbers and tokens."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from openblip.batches.tokenizer import TextTokenizer
from openblip.inference.captions import caption_encoded
from openblip.inference.decoding import Decoding
from openblip.inference.encoding import EncodedImages
from openblip.inference.generation import (
    Generated,
    RunningDecoder,
    generate,
    nucleus_probabilities,
    sample,
)
from openblip.model import Med
from openblip.objectives.lm import lm_loss, next_token_labels

from ..original_gradients import export_gradients

pytestmark = pytest.mark.golden

TOLERANCE = 2e-5
# Written into the original's code, not its configuration.
NUCLEUS_REPETITION_PENALTY = 1.1


@pytest.fixture(scope="module")
def caption(golden: Callable[[str], Any]) -> Any:
    return golden("caption")


@pytest.fixture(scope="module")
def med(caption: Any) -> Med:
    return caption.med().eval()


@pytest.fixture(scope="module")
def tokenizer(golden_dir: Path) -> TextTokenizer:
    return TextTokenizer.from_file(golden_dir / "vocab.txt")


@pytest.fixture
def encoded(caption: Any, med: Med) -> EncodedImages:
    with torch.no_grad():
        return EncodedImages(med, med.encode_images(caption["image"]))


def searches(caption: Any) -> dict[str, dict[str, Any]]:
    """Everything that was generated without drawing."""
    return {
        tag: run for tag, run in caption.json["generate"].items() if not run["args"].get("sample")
    }


def decoding_of(arguments: dict[str, Any]) -> Decoding:
    return Decoding(**{name: value for name, value in arguments.items() if name != "sample"})


def padded(texts: list[list[Generated]], like: Tensor) -> Tensor:
    rows = torch.zeros_like(like)
    for row, (text,) in zip(rows, texts, strict=True):
        row[: len(text.token_ids)] = torch.tensor(text.token_ids)
    return rows


def training_loss(caption: Any, med: Med) -> tuple[Tensor, Tensor]:
    ids, mask = caption["decoder_input_ids"], caption.mask("tokenized.attention_mask")
    memory = med.memories(med.encode_images(caption["image"])).decoder
    logits = med.decode(ids, mask, memory)
    labels = next_token_labels(ids, mask, caption.json["prompt_length"])
    return lm_loss(logits[labels != -100], labels), logits


def test_training_loss_and_logits(caption: Any, med: Med) -> None:
    with torch.no_grad():
        loss, logits = training_loss(caption, med)
    assert caption.error(logits, "lm_logits") < TOLERANCE
    assert loss.item() == pytest.approx(caption.json["loss"], rel=TOLERANCE)


def test_training_gradients(caption: Any) -> None:
    med = caption.med()
    training_loss(caption, med)[0].backward()
    gradients = export_gradients({n: p.grad for n, p in med.named_parameters()}, "caption")
    # Largest gradient anywhere: those of key biases are rounding noise around zero.
    scale = max(g.abs().max().item() for k, g in caption.tensors.items() if k.startswith("grad."))
    compared = 0
    for name, gradient in gradients.items():
        expected = caption[f"grad.{name}"]
        assert (gradient - expected).abs().max() < TOLERANCE * scale, name
        compared += 1
    assert compared == sum(key.startswith("grad.") for key in caption.tensors)


@torch.no_grad()
def test_logits_of_the_prompt_in_one_pass(caption: Any, encoded: EncodedImages) -> None:
    prompt = caption["prompt_ids"]
    decoder = RunningDecoder(encoded.med.text, encoded.decoder_memory, max_length=20)
    logits = decoder.start(prompt, texts_per_image=1)
    assert caption.error(logits, caption["prompt_logits"][:, -1]) < TOLERANCE


def test_greedy_and_beam_search_find_the_same_tokens_with_the_same_scores(
    caption: Any, encoded: EncodedImages, tokenizer: TextTokenizer
) -> None:
    assert searches(caption)
    for tag, run in searches(caption).items():
        decoding = decoding_of(run["args"])
        texts = generate(
            encoded.med.text,
            encoded.decoder_memory,
            caption["prompt_ids"],
            decoding,
            tokenizer.special,
        )
        expected = caption[f"{tag}.sequences"]
        assert torch.equal(padded(texts, expected), expected), tag
        assert [len(text.token_ids) for (text,) in texts] == run["lengths"], tag
        if "sequences_scores" in run:
            scores = [text.score for (text,) in texts]
            assert scores == pytest.approx(run["sequences_scores"], abs=1e-5), tag


def test_captions_as_text(caption: Any, encoded: EncodedImages, tokenizer: TextTokenizer) -> None:
    prompt = caption.json["prompt"]
    equal = 0
    for run in searches(caption).values():
        captions = caption_encoded(encoded, tokenizer, decoding_of(run["args"]), prompt)
        for (ours,), original in zip(captions, run["captions"], strict=True):
            whole = tokenizer.decode(ours.token_ids)
            assert whole[len(prompt) :] == original
            # The original cuts characters: where a mark is joined to the prompt, it loses one.
            if whole.startswith(prompt):
                assert ours.text == original
                equal += 1
    assert equal > 0


def test_nucleus_has_the_same_distribution_at_every_step(
    caption: Any, encoded: EncodedImages, tokenizer: TextTokenizer
) -> None:
    run = caption.json["generate"]["nucleus"]
    arguments = run["args"]
    decoding = Decoding(
        method="nucleus",
        max_length=arguments["max_length"],
        min_length=arguments["min_length"],
        top_p=arguments["top_p"],
        top_k=run["config_top_k_default"],
        repetition_penalty=NUCLEUS_REPETITION_PENALTY,
    )
    steps = 0

    def replay(scores: Tensor, numbers: list[int], step: int) -> Tensor:
        nonlocal steps
        ours = nucleus_probabilities(scores, top_p=decoding.top_p, top_k=decoding.top_k)
        original = caption["nucleus.step_probs"][step, numbers]
        assert torch.equal(ours > 0, original > 0)
        assert (ours - original).abs().max() < 1e-5
        steps += 1
        return caption["nucleus.step_samples"][step, numbers, 0]

    prompt = caption["prompt_ids"]
    with torch.no_grad():
        decoder = RunningDecoder(encoded.med.text, encoded.decoder_memory, decoding.max_length)
        texts = sample(decoder, prompt, decoding, tokenizer.special.sep, replay)
    expected = caption["nucleus.sequences"]
    assert torch.equal(padded(texts, expected), expected)
    assert steps == max(run["lengths"]) - prompt.shape[1]
