"""Where a model looks: Grad-CAM over the cross-attention of one text layer.

A token's map is the mean over heads of relu(gradient) * attention, the gradient being that of a
score with respect to the layer's attention probabilities; the image's class token is left out
(Selvaraju et al. 2017; on cross-attention: ALBEF, weakly-supervised visual grounding).
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from openblip.data.tokenizer import TextTokenizer
from openblip.errors import DataError
from openblip.inference.answers import question_tokens, read_questions, write_answers
from openblip.inference.captions import prompt_ids
from openblip.inference.finite import finite
from openblip.inference.heatmap import Heatmap
from openblip.inference.texts import FirstTokenName
from openblip.inference.words import Word, find_words
from openblip.model import AttentionRecord, ImageMemory, Med, TextPass
from openblip.model.text import TextStack
from openblip.model.vqa import Vqa

Hidden = Float[Tensor, "1 patches width"]
"""One encoded image, as `encode_images` of the model gives it: class token, then a square grid."""


def default_layer(depth: int) -> int:
    """The layer that is explained, counted from 0: 7 of 12 as in BLIP's demonstrations.

    That is the layer of the text localisation example in LAVIS, where BLIP's authors published it,
    and of `forward_itm` there (`compute_gradcam` itself defaults to 6; ALBEF's notebook uses 8).
    Of another depth it is the layer at 7/11 of the way to the last, rounded down: never the last,
    unless there is only one.
    """
    return (depth - 1) * 7 // 11


@torch.inference_mode(False)
@torch.enable_grad()
def explain_match(
    med: Med,
    tokenizer: TextTokenizer,
    hidden: Hidden,
    token_ids: Sequence[int],
    layer: int | None = None,
) -> Heatmap:
    """Where each word of a text is found; the score is the logit of a match.

    It is read from the first token, so that in the last layer no word has a gradient: all maps of
    that layer are zero.

    Args:
        med: the model, in eval mode.
        tokenizer: of the text.
        hidden: the image.
        token_ids: the text without padding: `[ENC]` (or `[CLS]`), pieces, `[SEP]`.
        layer: whose attention, counted from 0; by default `default_layer`.

    Raises:
        MissingHead: if the model cannot match.
        RecipeError: if it has no such layer.
        DataError: if the text has no word.
    """
    med.require("itm")
    words = _words(tokenizer, token_ids, "text")
    memory, record = _recorded(med.text, hidden, layer)
    ids = _row(token_ids, hidden)
    score = med.match(ids, torch.ones_like(ids, dtype=torch.bool), memory)[0, 1].float()
    return _heatmap(words, _token_maps(score, record), float(score.detach()))


@torch.inference_mode(False)
@torch.enable_grad()
def explain_caption(
    med: Med,
    tokenizer: TextTokenizer,
    hidden: Hidden,
    token_ids: Sequence[int],
    prompt: str,
    layer: int | None = None,
) -> Heatmap:
    """Where the decoder looks as it writes each word; the score is the caption's log-probability.

    A token's map comes from its log-probability and the attention at the place before, which
    predicts it. The prompt has no maps.

    Args:
        med: the model, in eval mode.
        tokenizer: of the text.
        hidden: the image.
        token_ids: of a `Caption`: `[DEC]`, prompt, text and, if it ended, `[SEP]`.
        prompt: what the caption continues; may be empty.
        layer: whose attention, counted from 0; by default `default_layer`.

    Raises:
        MissingHead: if the model cannot generate.
        RecipeError: if it has no such layer.
        DataError: if nothing was written behind the prompt.
    """
    med.require("lm")
    start = prompt_ids(tokenizer, prompt, med.config.text.max_positions).shape[1]
    words = _words(tokenizer, token_ids[start:], "caption")
    memory, record = _recorded(med.text, hidden, layer, causal=True)
    texts = TextPass(_row(token_ids[:-1], hidden), memory=memory, causal=True)
    (states,) = med.text(texts)
    maps, total = [], 0.0
    for place in range(start, len(token_ids)):
        # The vocabulary is the widest layer: each gradient runs through one token of it.
        logits = med.text.logits(states[:, place - 1 : place])[0, 0].float()
        logprob = logits.log_softmax(dim=-1)[token_ids[place]]
        maps.append(_token_maps(logprob, record)[place - 1])
        total += float(logprob.detach())
    return _heatmap(words, torch.stack(maps), total)


@torch.inference_mode(False)
@torch.enable_grad()
def explain_answer(
    vqa: Vqa,
    tokenizer: TextTokenizer,
    hidden: Hidden,
    question_ids: Sequence[int],
    answer_ids: Sequence[int],
    layer: int | None = None,
) -> Heatmap:
    """Where each word of a question looks for the answer; the score is its log-probability.

    The gradient runs from the answer through the question's states to the question's attention.

    Args:
        vqa: the model, in eval mode.
        tokenizer: of question and answer.
        hidden: the image.
        question_ids: without padding: `[ENC]`, pieces, `[SEP]`.
        answer_ids: `[DEC]`, pieces and, if it ended, `[SEP]`.
        layer: whose attention, counted from 0; by default `default_layer`.

    Raises:
        RecipeError: if the model has no such layer.
        DataError: if the question has no word.
    """
    words = _words(tokenizer, question_ids, "question")
    memory, record = _recorded(vqa.question, hidden, layer)
    ids = _row(question_ids, hidden)
    states = vqa.read_questions(ids, torch.ones_like(ids, dtype=torch.bool), memory)
    answer = _row(answer_ids, hidden)
    logits = vqa.decode(answer[:, :-1], None, vqa.question_memory(states, None))[0].float()
    score = logits.log_softmax(dim=-1).gather(1, answer[0, 1:, None]).sum()
    return _heatmap(words, _token_maps(score, record), float(score.detach()))


def explain_question(
    vqa: Vqa,
    tokenizer: TextTokenizer,
    hidden: Hidden,
    question: str,
    answer: str | None = None,
    layer: int | None = None,
    first_token: FirstTokenName = "[ENC]",
) -> Heatmap:
    """As `explain_answer`, of a question and an answer as people write them.

    Without an answer that which the model writes is explained.
    """
    most = vqa.config.text.max_positions
    tokens = question_tokens(tokenizer, [question], most, first_token)
    if answer is None:
        memory = read_questions(vqa, hidden, tokens)
        (written,) = write_answers(vqa, memory, tokenizer.special)
        answer_ids = list(written.token_ids)
    else:
        answer_ids = tokenizer.encode([answer], most, first="dec").row(0)
    return explain_answer(vqa, tokenizer, hidden, tokens.row(0), answer_ids, layer)


def _words(tokenizer: TextTokenizer, ids: Sequence[int], what: str) -> list[Word]:
    words = find_words(tokenizer, ids)
    if not words:
        raise DataError(f"the {what} has no word to explain; give one that has")
    return words


@torch.no_grad()
def _recorded(
    text: TextStack, hidden: Hidden, layer: int | None, *, causal: bool = False
) -> tuple[ImageMemory, AttentionRecord]:
    number = default_layer(text.config.depth) if layer is None else layer
    return text.remember(hidden, causal=causal).recording(number)


def _row(token_ids: Sequence[int], hidden: Hidden) -> Int[Tensor, "1 tokens"]:
    return torch.tensor([list(token_ids)], device=hidden.device)


def _token_maps(
    score: Float[Tensor, ""], record: AttentionRecord
) -> Float[Tensor, "tokens rows columns"]:
    """Every token's map, on the CPU; the graph stays for another score."""
    probabilities = record.probabilities
    assert probabilities is not None, "no pass has read the memory"
    (gradient,) = torch.autograd.grad(score, probabilities, retain_graph=True)
    maps = (gradient.clamp(min=0) * probabilities.detach()).mean(dim=1)[0, :, 1:]
    side = math.isqrt(maps.shape[1])
    return finite(maps.view(-1, side, side).cpu(), "relevances")


def _heatmap(
    words: list[Word], token_maps: Float[Tensor, "tokens rows columns"], score: float
) -> Heatmap:
    pieces = [place for word in words for place in word.places]
    return Heatmap(
        tokens=tuple(word.text for word in words),
        maps=torch.stack([token_maps[list(word.places)].mean(dim=0) for word in words]),
        score=score,
        overall=token_maps[pieces].mean(dim=0),
    )
