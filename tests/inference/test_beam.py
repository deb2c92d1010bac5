"""Bookkeeping of finished beams, and beam search against a plain search."""

import random

import pytest
import torch

from openblip.inference.decoding import Decoding
from openblip.inference.generation import (
    Generated,
    Hypotheses,
    RunningDecoder,
    beam_search,
    divisor,
    generate,
)


def text(score, *ids):
    return Generated(ids, score, score, ())


def test_hypotheses_keep_the_best():
    texts = Hypotheses(capacity=2)
    for score in (-3.0, -1.0, -2.0, -4.0):
        texts.offer(text(score))
    assert [kept.score for kept in texts.best(2)] == [-1.0, -2.0]
    assert [kept.score for kept in texts.best(1)] == [-1.0]


def test_of_equal_hypotheses_a_full_list_keeps_the_first_and_prefers_the_last():
    texts = Hypotheses(capacity=2)
    for number in range(3):
        texts.offer(text(-1.0, number))
    assert [kept.token_ids for kept in texts.best(2)] == [(1,), (0,)]


def test_hypotheses_are_complete_when_full_and_out_of_reach():
    texts = Hypotheses(capacity=2)
    texts.offer(text(-1.0))
    texts.complete(attainable=-9.0)
    assert not texts.is_complete, "there is room"
    texts.offer(text(-2.0))
    texts.complete(attainable=-1.5)
    assert not texts.is_complete, "a better one may come"
    texts.complete(attainable=-2.0)
    assert texts.is_complete
    texts.offer(text(0.0))
    assert [kept.score for kept in texts.best(2)] == [-1.0, -2.0], "nothing is taken any more"


@pytest.mark.parametrize(
    ("scoring", "ended", "counted"),
    [
        ("original", True, 9),
        ("original", False, 10),
        ("transformers", True, 6),
        ("transformers", False, 6),
    ],
)
def test_what_counts_as_length(scoring, ended, counted):
    decoding = Decoding(scoring=scoring, length_penalty=2.0)
    assert divisor(decoding, 10, ended, prompt_tokens=4) == counted**2


def plain_scores(med, memory, texts, decoding, end):
    """Log-probabilities of the next token, after penalty and minimum length, as lists."""
    rows = med.decode(torch.tensor(texts), None, memory)[:, -1].log_softmax(dim=-1).tolist()
    for ids, row in zip(texts, rows, strict=True):
        for seen in set(ids):
            row[seen] *= decoding.repetition_penalty
        if len(ids) < decoding.min_length:
            row[end] = float("-inf")
    return rows


def plain_beam_search(med, memory, prompt, decoding, end):
    """One image, lists, and the whole text through the model at each step."""
    beams, done, complete = [(0.0, prompt)], [], False
    for length in range(len(prompt), decoding.max_length):
        rows = plain_scores(med, memory, [ids for _, ids in beams], decoding, end)
        candidates = sorted(
            (
                (score + logprob, [*ids, token])
                for (score, ids), row in zip(beams, rows, strict=True)
                for token, logprob in enumerate(row)
            ),
            key=lambda candidate: -candidate[0],
        )[: 2 * decoding.num_beams]
        for score, ids in candidates[: decoding.num_beams]:
            if ids[-1] == end:
                done.append((score / length**decoding.length_penalty, ids))
        done = sorted(done, reverse=True)[: decoding.num_beams]
        attainable = candidates[0][0] / length**decoding.length_penalty
        complete = len(done) == decoding.num_beams and done[-1][0] >= attainable
        if complete:
            break
        beams = [c for c in candidates if c[1][-1] != end][: decoding.num_beams]
    if not complete:
        done += [(s / decoding.max_length**decoding.length_penalty, ids) for s, ids in beams]
    return sorted(done, reverse=True)[: decoding.num_beams]


def random_decoding(number):
    """Settings that depend on the number alone, and the ids of a prompt."""
    draw = random.Random(number)
    prompt = [draw.randrange(7, 40) for _ in range(draw.randint(0, 5))]
    max_length = len(prompt) + draw.randint(2, 14)
    return prompt, Decoding(
        num_beams=draw.randint(2, 5),
        max_length=max_length,
        min_length=draw.randint(0, max_length),
        repetition_penalty=draw.choice([1.0, 0.8, draw.uniform(1.0, 2.0)]),
        length_penalty=draw.choice([1.0, 0.0, 2.0, -1.0, draw.uniform(0.0, 2.0)]),
    )


@pytest.mark.parametrize("number", range(30))
@torch.no_grad()
def test_beam_search_equals_a_plain_uncached_search(blip, encoded, number):
    special = blip.tokenizer.special
    prompt, decoding = random_decoding(number)
    prompt = [special.dec, *prompt]
    images = encoded.decoder_memory.select(torch.tensor([0, 3, 5]))
    found = generate(
        blip.med.text,
        images,
        torch.tensor([prompt] * 3),
        decoding,
        special,
        num_captions=decoding.num_beams,
    )
    for image, texts in enumerate(found):
        memory = images.select(torch.tensor([image]))
        plain = plain_beam_search(blip.med, memory, prompt, decoding, special.sep)
        assert [list(text.token_ids) for text in texts] == [ids for _, ids in plain]
        assert [text.score for text in texts] == pytest.approx([s for s, _ in plain], rel=1e-4)


@torch.no_grad()
def test_a_single_beam_is_greedy(blip, encoded):
    special = blip.tokenizer.special
    prompt = torch.tensor([[special.dec]]).expand(len(encoded), -1)
    decoding = Decoding(num_beams=1, max_length=15, min_length=4)
    decoder = RunningDecoder(blip.med.text, encoded.decoder_memory, decoding.max_length)
    searched = beam_search(decoder, prompt, decoding, special.sep)
    greedy = generate(
        blip.med.text,
        encoded.decoder_memory,
        prompt,
        Decoding(method="greedy", max_length=15, min_length=4),
        special,
    )
    for (one,), (other,) in zip(searched, greedy, strict=True):
        assert one.token_ids == other.token_ids
        assert one.score == pytest.approx(other.score, abs=1e-5)
        assert one.logprob == pytest.approx(other.logprob, abs=1e-5)
