"""Answers to questions about images: candidates ranked, or written freely (BLIP, section 5.3)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from openblip.batches.tokenizer import SpecialTokens, TextTokenizer, TokenBatch
from openblip.inference.decoding import Decoding
from openblip.inference.encoding import FirstTokenName, finite, tokens_for
from openblip.inference.generation import Generated, generate
from openblip.model import ImageMemory, TextPass
from openblip.model.vqa import Vqa
from openblip.objectives.lm import IGNORED, lm_loss, next_token_labels
from openblip.runtime.errors import DataError, RecipeError
from openblip.sources.text_files import distinct, note_dropped

ANSWER_DECODING = Decoding(num_beams=3, max_length=10, min_length=1)
"""The original's: ids of `[DEC]`, answer and `[SEP]`."""

# The original's, in its code: of questions, words before and tokens after tokenising, and the
# smoothing of the loss by which candidates are ranked.
_MAX_QUESTION_WORDS = 50
_MAX_QUESTION_TOKENS = 35
_LABEL_SMOOTHING = 0.1

# Rows of one pass over candidates: enough to keep the matrix products busy.
_MAX_ROWS = 128


@dataclass(frozen=True)
class Answer:
    """An answer to a question about an image."""

    text: str
    logprob: float
    """Of a written answer its log-probability, the end included. Of a ranked candidate what
    ranks it: the same with labels smoothed by 0.1, as in training (`Ranking.logprobs`)."""
    probability: float
    """Of a written answer exp(`logprob`). Of a ranked candidate its share among the k ranked
    ones, the softmax of their `logprob`."""


@dataclass(frozen=True)
class AnswerList:
    """What may be answered: texts that a model reads as different ones, and how it reads them."""

    texts: tuple[str, ...]
    tokens: TokenBatch
    """`[DEC]` first, `[SEP]` last."""

    @classmethod
    def of(cls, tokenizer: TextTokenizer, candidates: Sequence[str], most: int) -> "AnswerList":
        """The candidates, of those that have the same tokens the first alone.

        Repeated ones would share one answer's probability. Those of unknown words stay: they are
        different texts, though the model cannot tell them apart.

        Args:
            tokenizer: of answers.
            candidates: empty ones are dropped.
            most: longer ones are cut to so many tokens.

        Raises:
            DataError: there is none.

        Warns:
            OpenBlipWarning: some are empty or repeated.
        """
        texts = distinct(candidates, "candidate")
        unknown = tokenizer.special.unk
        kept: dict[object, str] = {}
        repeated = []
        for text, pieces in zip(texts, tokenizer.pieces(texts), strict=True):
            read: object = text if unknown in pieces else tuple(pieces[: tokenizer.room(most)])
            if kept.setdefault(read, text) != text:
                repeated.append(text)
        note_dropped("candidate", "", 0, repeated)
        return cls(tuple(kept.values()), tokenizer.encode([*kept.values()], most, first="dec"))


class Ranking(NamedTuple):
    """The candidates of each question whose first token is likeliest, that one first."""

    candidates: Int[Tensor, "questions k"]
    """Rows of the candidates."""
    first_probabilities: Float[Tensor, "questions k"]
    """Of their first tokens. Equal where candidates begin alike; which of them are the last to be
    ranked is then up to `torch.topk`, as in the original."""
    logprobs: Float[Tensor, "questions k"]
    """Sums over a candidate's tokens and its end, by label-smoothed cross-entropy; not divided by
    the length."""

    def answers(self, texts: Sequence[str], top: int) -> list[list[Answer]]:
        """Per question the `top` candidates, best first; of equals the likelier beginning."""
        ordered, places = self.logprobs.sort(dim=1, descending=True, stable=True)
        shares = ordered.softmax(dim=1)[:, :top].tolist()
        rows = self.candidates.gather(1, places)[:, :top].tolist()
        return [
            [Answer(texts[row], logprob, share) for row, logprob, share in zip(*own, strict=True)]
            for own in zip(rows, ordered[:, :top].tolist(), shares, strict=True)
        ]

    @property
    def best(self) -> Int[Tensor, " questions"]:
        """The candidate with the highest log-probability; of equals the likelier beginning."""
        return self.candidates.gather(1, self.logprobs.argmax(dim=1, keepdim=True))[:, 0]


@torch.no_grad()
def read_questions(
    vqa: Vqa, hidden: Float[Tensor, "images patches width"], questions: TokenBatch
) -> ImageMemory:
    """What answers to questions attend to: keys and values, computed once per question.

    An image's keys and values are computed once for all its questions. Padding of a question is
    attended by nothing, so that its answer is that of the question alone.

    Args:
        vqa: the model, in eval mode.
        hidden: of `encode_images`.
        questions: `[ENC]` first; those of an image follow each other, equally many per image.
    """
    device = hidden.device
    tokens = questions.ids.to(device), questions.mask.to(device)
    return vqa.remember_questions(*tokens, vqa.image_memory(hidden))


@torch.no_grad()
def rank_answers(vqa: Vqa, questions: ImageMemory, candidates: TokenBatch, k: int = 128) -> Ranking:
    """The k candidates per question that begin most likely, scored as whole answers.

    Args:
        vqa: the model, in eval mode.
        questions: of `read_questions`.
        candidates: `[DEC]` first, `[SEP]` last.
        k: more than there are candidates ranks them all.

    Returns:
        The ranking, float32 on the CPU.

    Raises:
        RecipeError: if k is below 1.
        DataError: if there is no candidate.
    """
    if k < 1:
        raise RecipeError(f"k is {k}; rank at least 1 candidate")
    if not len(candidates.ids):
        raise DataError("there is no candidate to rank; give at least 1, or let the model write")
    device = questions.keys[0].device
    # Every candidate begins with `[DEC]`: one pass over it tells all first tokens' probabilities.
    start = candidates.ids[:1, :1].expand(questions.images, 1).to(device)
    logits = finite(vqa.decode(start, None, questions)[:, 0].float(), "next-token logits")
    first = logits.softmax(dim=-1)
    begin = first.index_select(1, candidates.ids[:, 1].to(device))
    probabilities, chosen = (part.cpu() for part in begin.topk(min(k, len(candidates.ids)), dim=1))
    # Passes over candidates of similar length waste little on padding.
    order = candidates.mask.sum(dim=1)[chosen].argsort(dim=1, stable=True)
    logprobs = torch.empty_like(probabilities)
    width = max(_MAX_ROWS // max(questions.images, 1), 1)
    for places in torch.split(order, width, dim=1):
        rows = chosen.gather(1, places)
        logprobs.scatter_(1, places, _score(vqa, questions, candidates, rows))
    return Ranking(chosen, probabilities, logprobs)


def write_answers(
    vqa: Vqa,
    questions: ImageMemory,
    special: SpecialTokens,
    decoding: Decoding = ANSWER_DECODING,
) -> list[Generated]:
    """The best answer per question, as ids behind `[DEC]`; errors as in `generate`."""
    start = torch.full((questions.images, 1), special.dec)
    texts = generate(vqa.answer, questions, start, decoding, special)
    return [of_question[0] for of_question in texts]


def answer_questions(
    vqa: Vqa,
    tokenizer: TextTokenizer,
    hidden: Float[Tensor, "images patches width"],
    questions: Sequence[str],
    candidates: Sequence[str] | AnswerList | None = None,
    k: int = 128,
    first_token: FirstTokenName = "[ENC]",
) -> list[Answer]:
    """The best answer per question: the first of `top_answers`, which has the arguments."""
    found = top_answers(vqa, tokenizer, hidden, questions, 1, candidates, k, first_token)
    return [best for best, *_ in found]


def top_answers(
    vqa: Vqa,
    tokenizer: TextTokenizer,
    hidden: Float[Tensor, "images patches width"],
    questions: Sequence[str],
    top: int,
    candidates: Sequence[str] | AnswerList | None = None,
    k: int = 128,
    first_token: FirstTokenName = "[ENC]",
) -> list[list[Answer]]:
    """Per question the best of the candidates, or the best that the model writes; best first.

    Args:
        vqa: the model, in eval mode.
        tokenizer: of questions and answers.
        hidden: of `encode_images`.
        questions: cleaned here as the original does, and cut to its 50 words and 35 tokens;
            those of an image follow each other, equally many per image.
        top: answers per question, or as many as there are. More than 3 that are written are
            searched for with as many beams, which may find another best one.
        candidates: what may be answered; None lets the model write.
        k: candidates that are scored whole, those whose first token is likeliest.
        first_token: first token of a question: `[ENC]` as BLIP was trained, or `[CLS]` as
            `transformers` does.

    Raises:
        RecipeError: if k or top is below 1 or `first_token` is another one.
        DataError: if `candidates` has none, or the questions are not equally many per image.
    """
    if len(questions) % max(len(hidden), 1) or (len(questions) and not len(hidden)):
        raise DataError(
            f"{len(questions)} questions for {len(hidden)} images; give equally many per image"
        )
    if top < 1:
        raise RecipeError(f"top is {top}; give 1 or more")
    if not questions:
        return []
    most = vqa.config.text.max_positions
    tokens = question_tokens(tokenizer, questions, most, first_token)
    memory = read_questions(vqa, hidden, tokens)
    if candidates is None:
        beams = max(ANSWER_DECODING.num_beams, top)
        start = torch.full((memory.images, 1), tokenizer.special.dec)
        decoding = replace(ANSWER_DECODING, num_beams=beams)
        texts = generate(vqa.answer, memory, start, decoding, tokenizer.special, num_captions=top)
        return [[_written(tokenizer, text) for text in own] for own in texts]
    # A list that many batches share is read by the tokenizer once.
    if not isinstance(candidates, AnswerList):
        candidates = AnswerList.of(tokenizer, candidates, most)
    ranking = rank_answers(vqa, memory, candidates.tokens, k)
    return ranking.answers(candidates.texts, top)


def _written(tokenizer: TextTokenizer, text: Generated) -> Answer:
    return Answer(tokenizer.decode(text.token_ids), text.logprob, math.exp(text.logprob))


def answer_each(
    vqa: Vqa,
    tokenizer: TextTokenizer,
    hidden: Float[Tensor, "images patches width"],
    questions: Sequence[Sequence[str]],
    candidates: Sequence[str] | AnswerList | None = None,
    k: int = 128,
) -> list[list[Answer]]:
    """Answers to any number of questions about each image.

    Images that have equally many go together; errors as in `answer_questions`.

    Args:
        vqa: the model, in eval mode.
        tokenizer: of questions and answers.
        hidden: of `encode_images`.
        questions: per image.
        candidates: what may be answered; None lets the model write.
        k: candidates that are scored whole.
    """
    answers: list[list[Answer]] = [[] for _ in questions]
    counts = [len(own) for own in questions]
    # The questions of an image share its keys and values only where there are equally many.
    for count in sorted(set(counts) - {0}):
        places = [place for place, own in enumerate(counts) if own == count]
        asked = [text for place in places for text in questions[place]]
        given = answer_questions(vqa, tokenizer, hidden[places], asked, candidates, k)
        for number, place in enumerate(places):
            answers[place] = given[number * count : (number + 1) * count]
    return answers


def question_tokens(
    tokenizer: TextTokenizer,
    questions: Sequence[str],
    most: int,
    first_token: FirstTokenName = "[ENC]",
) -> TokenBatch:
    """Questions as the original reads them: cleaned, cut to 50 words and 35 tokens.

    Raises:
        RecipeError: if `first_token` is another one.
    """
    clean = tokenizer.cleaning.question
    cleaned = [clean(question, _MAX_QUESTION_WORDS) for question in questions]
    longest = min(_MAX_QUESTION_TOKENS, most)
    return tokens_for(tokenizer, cleaned, longest, first_token)


def _score(
    vqa: Vqa,
    questions: ImageMemory,
    candidates: TokenBatch,
    rows: Int[Tensor, "questions chosen"],
) -> Float[Tensor, "questions chosen"]:
    """Negative smoothed losses of each question's chosen candidates, on the CPU."""
    device = questions.keys[0].device
    mask = candidates.mask[rows.flatten()]
    longest = int(mask.sum(dim=1).max())
    mask = mask[:, :longest].to(device)
    ids = candidates.ids[rows.flatten(), :longest].to(device)
    labels = next_token_labels(ids, mask)
    (states,) = vqa.answer(TextPass(ids, mask, questions, causal=True))
    # The vocabulary is the widest layer: positions without a label do not need it.
    logits = vqa.answer.logits(states[labels != IGNORED][None])[0]
    losses = lm_loss(logits, labels, _LABEL_SMOOTHING, reduction="sum_per_row")
    return finite(-losses.view(rows.shape).float().cpu(), "scores of candidates")
