"""Live models of `transformers`, saved by it and read by us, compute what ours do (float32)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from openblip.batches.tokenizer import TextTokenizer, TokenBatch
from openblip.checkpoints.huggingface import from_huggingface, read_huggingface, to_huggingface
from openblip.checkpoints.huggingface_config import HuggingFaceKind
from openblip.inference.decoding import Decoding
from openblip.inference.generation import generate
from openblip.model import Med
from openblip.model.dual import DualEncoder
from openblip.model.vqa import Vqa
from openblip.objectives.lm import IGNORED, lm_loss, next_token_labels

transformers = pytest.importorskip("transformers")

from .huggingface_peers import folder_of, images_for, peer, redrawn  # noqa: E402

SEEDS = [0, 1, 2, 3]
EPSILONS = [1e-5, 1e-6]
TEXTS = ["a dog runs", "two cats sleep near the window on grass", "the dog"]
CLOSE = 1e-5

Pair = tuple[Any, Any]
Open = Callable[..., Pair]


@pytest.fixture
def opened(tokenizer: TextTokenizer, tmp_path: Path) -> Open:
    """A live model of `transformers`, and ours read from what it saved."""

    def open_pair(kind: HuggingFaceKind, seed: int, **vision: Any) -> Pair:
        theirs = peer(kind, tokenizer, seed, **vision)
        return theirs, read_huggingface(folder_of(theirs, tokenizer, tmp_path)).model.eval()

    return open_pair


def error(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference, in units of the largest number; of numbers that do differ."""
    assert ours.shape == theirs.shape
    assert theirs.std() > 1e-3
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


@pytest.fixture
def texts(tokenizer: TextTokenizer) -> TokenBatch:
    return tokenizer.encode(TEXTS, 20)


@torch.no_grad()
@pytest.mark.parametrize("epsilon", EPSILONS)
@pytest.mark.parametrize("seed", SEEDS)
def test_image_features(opened: Open, seed: int, epsilon: float) -> None:
    theirs, ours = opened("caption", seed, layer_norm_eps=epsilon)
    images = images_for(theirs, 3)
    expected = theirs.vision_model(images).last_hidden_state
    assert error(ours.encode_images(images), expected) < CLOSE


@torch.no_grad()
@pytest.mark.parametrize("epsilon", EPSILONS)
def test_the_epsilon_is_that_of_the_configuration(opened: Open, epsilon: float) -> None:
    theirs, ours = opened("caption", 0, layer_norm_eps=epsilon)
    for model in (theirs.vision_model, ours.image_encoder):
        # Tokens so small that the epsilon decides how much of them is left.
        for parameter in model.parameters():
            parameter.mul_(1e-2)
    images = images_for(theirs, 3)
    expected = theirs.vision_model(images).last_hidden_state
    assert error(ours.encode_images(images), expected) < CLOSE
    assert ours.config.vision.norm_eps == epsilon
    other = 1.1e-5 - epsilon
    for module in ours.image_encoder.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = other
    assert error(ours.encode_images(images), expected) > 100 * CLOSE


class TestCaption:
    @torch.no_grad()
    @pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
    @pytest.mark.parametrize("seed", SEEDS)
    def test_logits_and_loss(
        self, opened: Open, texts: TokenBatch, seed: int, label_smoothing: float
    ) -> None:
        theirs, ours = opened("caption", seed)
        theirs.text_decoder.label_smoothing = label_smoothing
        images = images_for(theirs, len(TEXTS))
        expected = theirs(
            pixel_values=images,
            input_ids=texts.ids,
            attention_mask=texts.mask.long(),
            labels=texts.ids.masked_fill(~texts.mask, IGNORED),
        )
        memory = ours.memories(ours.encode_images(images)).decoder
        logits = ours.decode(texts.ids, texts.mask, memory)
        assert error(logits[texts.mask], expected.logits[texts.mask]) < CLOSE
        labels = next_token_labels(texts.ids, texts.mask)
        loss = lm_loss(logits[labels != IGNORED], labels, label_smoothing)
        assert loss.item() == pytest.approx(expected.loss.item(), rel=1e-5)

    @torch.no_grad()
    @pytest.mark.parametrize("seed", range(1, 9))
    def test_greedy_ids(self, opened: Open, tokenizer: TextTokenizer, seed: int) -> None:
        theirs, ours = opened("caption", seed)
        images, special = images_for(theirs, 6), tokenizer.special
        # They replace the first id by [DEC] and leave out the last one.
        prompt = torch.tensor([[special.cls, 10, 12, special.sep]]).expand(6, -1).contiguous()
        expected = theirs.generate(images, prompt.clone(), max_length=16, do_sample=False)
        begin = torch.tensor([[special.dec, 10, 12]]).expand(6, -1)
        settings = Decoding(method="greedy", max_length=16, min_length=0)
        memory = ours.memories(ours.encode_images(images)).decoder
        texts = generate(ours.text, memory, begin, settings, special)
        assert len({text.token_ids for (text,) in texts}) > 1
        for (text,), row in zip(texts, expected.tolist(), strict=True):
            assert row[: len(text.token_ids)] == list(text.token_ids)
            assert set(row[len(text.token_ids) :]) <= {special.pad, special.sep}


class TestRetrieval:
    @torch.no_grad()
    @pytest.mark.parametrize("seed", SEEDS)
    def test_similarities(self, opened: Open, texts: TokenBatch, seed: int) -> None:
        theirs, ours = opened("retrieval", seed)
        images = images_for(theirs, 4)
        expected = theirs(
            input_ids=texts.ids,
            pixel_values=images,
            attention_mask=texts.mask.long(),
            use_itm_head=False,
        ).itm_score
        embeds = ours.embed_images(ours.encode_images(images))
        assert error(embeds @ ours.embed_texts(texts.ids, texts.mask).T, expected) < CLOSE

    @torch.no_grad()
    @pytest.mark.parametrize("seed", SEEDS)
    @pytest.mark.parametrize("first", ["cls", "enc"])
    def test_matching_logits(
        self, opened: Open, tokenizer: TextTokenizer, seed: int, first: Any
    ) -> None:
        theirs, ours = opened("retrieval", seed)
        texts = tokenizer.encode(TEXTS, 20, first)
        images = images_for(theirs, len(TEXTS))
        expected = theirs(
            input_ids=texts.ids, pixel_values=images, attention_mask=texts.mask.long()
        ).itm_score
        memory = ours.memories(ours.encode_images(images)).encoder
        assert error(ours.match(texts.ids, texts.mask, memory), expected) < CLOSE

    def test_the_temperature_of_a_checkpoint_without_one(self, opened: Open) -> None:
        _, ours = opened("retrieval", 0)
        assert ours.temperature.item() == pytest.approx(0.07)

    @pytest.mark.parametrize("temperature", [0.07, 0.031, 0.5])
    def test_a_learned_temperature_survives_in_the_configuration(
        self, med: Med, tokenizer: TextTokenizer, temperature: float
    ) -> None:
        with torch.no_grad():
            med.temperature.fill_(temperature)
        tensors, config = to_huggingface(med, tokenizer.special, "retrieval")
        assert torch.equal(from_huggingface(tensors, config).state["temperature"], med.temperature)
        default = transformers.BlipConfig().logit_scale_init_value
        assert (config["logit_scale_init_value"] == default) == (temperature == 0.07)


@torch.no_grad()
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("padded", [False, True])
def test_answers(opened: Open, tokenizer: TextTokenizer, padded: bool, seed: int) -> None:
    theirs, ours = opened("vqa", seed)
    assert isinstance(ours, Vqa)
    # With the same first token: `transformers` leaves [CLS] where the original has [ENC].
    questions = tokenizer.encode(TEXTS, 20)
    if not padded:
        shortest = int(questions.mask.sum(dim=1).min())
        questions = TokenBatch(questions.ids[:, :shortest], questions.mask[:, :shortest])
    answers = tokenizer.encode(["dog", "two cats sleep", "grass"], 10, "dec")
    images = images_for(theirs, len(TEXTS))
    memory = ours.image_memory(ours.encode_images(images))
    states = ours.read_questions(questions.ids, questions.mask, memory)
    # Their answers attend to the padding of questions, whatever mask they are given.
    heard = ours.question_memory(states, None if padded else questions.mask)
    logits = ours.decode(answers.ids, answers.mask, heard)

    mask = questions.mask.long()
    expected_states = theirs.text_encoder(
        input_ids=questions.ids,
        attention_mask=mask,
        encoder_hidden_states=theirs.vision_model(images).last_hidden_state,
    ).last_hidden_state
    assert error(states[questions.mask], expected_states[questions.mask]) < CLOSE
    expected = theirs.text_decoder(
        input_ids=answers.ids,
        attention_mask=answers.mask.long(),
        encoder_hidden_states=expected_states,
        encoder_attention_mask=mask,
    ).logits
    assert error(logits[answers.mask], expected[answers.mask]) < CLOSE
    loss = theirs(
        input_ids=questions.ids,
        pixel_values=images,
        attention_mask=mask,
        decoder_input_ids=answers.ids,
        decoder_attention_mask=answers.mask.long(),
        labels=answers.ids.masked_fill(~answers.mask, IGNORED),
    ).loss
    labels = next_token_labels(answers.ids, answers.mask)
    ours_loss = lm_loss(logits[labels != IGNORED], labels, label_smoothing=0.0)
    assert ours_loss.item() == pytest.approx(loss.item(), rel=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("seed", SEEDS)
def test_dual_encoder(opened: Open, texts: TokenBatch, seed: int) -> None:
    theirs, ours = opened("dual", seed, layer_norm_eps=1e-6)
    assert isinstance(ours, DualEncoder)
    images = images_for(theirs, 4)
    expected = theirs(input_ids=texts.ids, pixel_values=images, attention_mask=texts.mask.long())
    image_embeds = ours.embed_images(ours.encode_images(images))
    text_embeds = ours.embed_texts(texts.ids, texts.mask)
    assert error(image_embeds, expected.image_embeds) < CLOSE
    assert error(text_embeds, expected.text_embeds) < CLOSE
    logits = text_embeds @ image_embeds.T / ours.temperature
    assert error(logits, expected.logits_per_text) < CLOSE


@pytest.mark.slow
@torch.no_grad()
def test_at_the_size_of_the_published_base_model(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    special = tokenizer.special
    config = transformers.BlipConfig(
        vision_config={"image_size": 384},
        text_config={
            "num_attention_heads": 12,
            "vocab_size": tokenizer.vocab_size,
            "bos_token_id": special.dec,
            "sep_token_id": special.sep,
        },
    )
    texts = tokenizer.encode(TEXTS, 20)
    for kind in ("BlipForConditionalGeneration", "BlipForImageTextRetrieval"):
        theirs = redrawn(getattr(transformers, kind)(config), special.sep, 0, std=0.04)
        ours = read_huggingface(folder_of(theirs, tokenizer, tmp_path / kind)).model.eval()
        assert isinstance(ours, Med)
        images = images_for(theirs, len(TEXTS))
        hidden = ours.encode_images(images)
        assert error(hidden, theirs.vision_model(images).last_hidden_state) < CLOSE
        expected = theirs(
            pixel_values=images, input_ids=texts.ids, attention_mask=texts.mask.long()
        )
        memories = ours.memories(hidden)
        if "lm" in ours.config.heads:
            logits = ours.decode(texts.ids, texts.mask, memories.decoder)[texts.mask]
            assert error(logits, expected.logits[texts.mask]) < CLOSE
        else:
            logits = ours.match(texts.ids, texts.mask, memories.encoder)
            assert error(logits, expected.itm_score) < CLOSE
