"""Answers to questions about images: ranked candidates, and written ones."""

import copy
import math
import warnings

import pytest
import torch

from openblip.batches.tokenizer import TextTokenizer
from openblip.inference.answers import (
    AnswerList,
    answer_each,
    answer_questions,
    rank_answers,
    read_questions,
    top_answers,
    write_answers,
)
from openblip.model.vqa import Vqa
from openblip.runtime.errors import DataError, OpenBlipWarning, RecipeError

# The small vocabulary makes many tokens of a word: longer texts are cut.
pytestmark = pytest.mark.filterwarnings("ignore::openblip.runtime.errors.TextTruncated")

QUESTIONS = [
    "What is above the blue circle?",
    "where?",
    "who walks along the street at night with a large dog and a small cat in the grass",
    "what color is the table",
    "how many triangles",
    "is it a cat?",
]
CANDIDATES = [
    "a red square",
    "two green triangles",
    "a large dog",
    "a",
    "people with umbrellas walk along the street at night under a tree",
    "a white table",
    "the street",
    "cat",
]


@pytest.fixture(scope="module")
def hidden(vqa: Vqa, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return vqa.encode_images(images[:3])


def question_ids(tokenizer: TextTokenizer, text: str) -> torch.Tensor:
    """A question alone, without padding."""
    tokens = tokenizer.encode([text], 35, first="enc")
    return tokens.ids[:, : int(tokens.mask.sum())]


@torch.no_grad()
def plain_ranking(vqa, tokenizer, hidden, question, candidates, k):
    """One question, one candidate at a time, no padding: (candidate, log-probability), best first.

    Label smoothing 0.1: a label has 0.9 and every token of the vocabulary 0.1 / vocab besides.
    """
    ids = question_ids(tokenizer, question)
    states = vqa.read_questions(ids, torch.ones_like(ids).bool(), vqa.image_memory(hidden))
    memory = vqa.question_memory(states, None)
    scored = []
    for text in candidates:
        tokens = tokenizer.encode([text], 40, first="dec")
        answer = tokens.ids[:, : int(tokens.mask.sum())]
        logprobs = vqa.decode(answer, None, memory)[0, :-1].log_softmax(dim=-1)
        of_labels = logprobs.gather(1, answer[0, 1:, None])[:, 0]
        total = (0.9 * of_labels + 0.1 * logprobs.mean(dim=1)).sum().item()
        scored.append((logprobs[0, answer[0, 1]].item(), total, text))
    likely = sorted(scored, key=lambda item: -item[0])[:k]
    return [(text, total) for _, total, text in sorted(likely, key=lambda item: -item[1])]


# Of candidates that begin alike it is open which are among the k: here none do, or all are ranked.
@pytest.mark.parametrize(
    ("candidates", "k"), [(CANDIDATES[3:5] + CANDIDATES[6:], 2), (CANDIDATES, 8), (CANDIDATES, 100)]
)
def test_ranking_equals_a_plain_one(vqa, tokenizer, hidden, candidates, k):
    # Two questions per image.
    answers = answer_questions(vqa, tokenizer, hidden, QUESTIONS, candidates, k)
    for place, (question, answer) in enumerate(zip(QUESTIONS, answers, strict=True)):
        image = hidden[place // 2 : place // 2 + 1]
        plain = plain_ranking(vqa, tokenizer, image, question, candidates, k)
        total = sum(math.exp(logprob) for _, logprob in plain)
        assert answer.text == plain[0][0]
        assert answer.logprob == pytest.approx(plain[0][1], abs=1e-4)
        assert answer.probability == pytest.approx(math.exp(plain[0][1]) / total, abs=1e-4)


def test_a_model_that_knows_nothing_prefers_the_answer_of_fewest_tokens(vqa, tokenizer, hidden):
    """A score is a sum over tokens, as in the original; a share near 1 is then no knowledge."""
    head = copy.deepcopy(vqa)
    with torch.no_grad():
        for parameter in head.answer.parameters():
            parameter.zero_()
    vocab = tokenizer.vocab_size
    lengths = [len(pieces) for pieces in tokenizer.pieces(CANDIDATES)]
    assert sorted(lengths)[:2] == [1, 3], "one candidate has fewer tokens than all others"
    total = sum(vocab ** -(length + 1.0) for length in lengths)
    for (answer,) in top_answers(head, tokenizer, hidden, QUESTIONS, 1, CANDIDATES):
        assert answer.text == "a"
        assert answer.logprob == pytest.approx(-2 * math.log(vocab), abs=1e-4)
        assert answer.probability == pytest.approx(vocab**-2.0 / total, abs=1e-5)
        assert answer.probability > 0.99


def test_the_best_answers_are_ranked(vqa, tokenizer, hidden):
    every = top_answers(vqa, tokenizer, hidden, QUESTIONS, 100, CANDIDATES)
    for question, own in zip(QUESTIONS, every, strict=True):
        assert sorted(answer.text for answer in own) == sorted(CANDIDATES), question
        assert sum(answer.probability for answer in own) == pytest.approx(1.0)
        assert [a.logprob for a in own] == sorted((a.logprob for a in own), reverse=True)
    first = [own[:3] for own in every]
    assert top_answers(vqa, tokenizer, hidden, QUESTIONS, 3, CANDIDATES) == first
    assert answer_questions(vqa, tokenizer, hidden, QUESTIONS, CANDIDATES) == [o[0] for o in first]


def test_the_best_written_answers_are_ranked(vqa, tokenizer, hidden):
    every = top_answers(vqa, tokenizer, hidden, QUESTIONS, 3)
    assert [len(own) for own in every] == [3] * len(QUESTIONS)
    assert [own[0] for own in every] == answer_questions(vqa, tokenizer, hidden, QUESTIONS)
    assert all(answer.probability == math.exp(answer.logprob) for own in every for answer in own)
    assert [len(own) for own in top_answers(vqa, tokenizer, hidden, QUESTIONS, 5)] == [5] * 6
    with pytest.raises(RecipeError, match="top is 0"):
        top_answers(vqa, tokenizer, hidden, QUESTIONS, 0)


def test_candidates_that_are_read_alike_count_once(vqa, tokenizer, hidden):
    plain = answer_questions(vqa, tokenizer, hidden, QUESTIONS, ["a", "cat"])
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", OpenBlipWarning)
        found = answer_questions(vqa, tokenizer, hidden, QUESTIONS, ["a", "cat", " a", "", "CAT"])
    notes = [str(each.message) for each in told if each.category is OpenBlipWarning]
    assert notes == [
        "candidates: 1 empty, dropped; 1 repeated, counted once (such as 'a')",
        "candidates: 1 repeated, counted once (such as 'CAT')",
    ]
    assert found == plain
    unknown = AnswerList.of(tokenizer, ["кот", "пёс", "a"], 40)
    assert unknown.texts == ("кот", "пёс", "a"), "they are different, if not to the model"
    with pytest.raises(DataError, match="no candidate"):
        AnswerList.of(tokenizer, ["", " "], 40)


def test_candidates_are_ordered_by_their_beginning(vqa, tokenizer, hidden):
    tokens = tokenizer.encode(QUESTIONS[:3], 35, first="enc")
    candidates = tokenizer.encode(CANDIDATES, 40, first="dec")
    ranking = rank_answers(vqa, read_questions(vqa, hidden, tokens), candidates, k=5)
    assert ranking.candidates.shape == ranking.logprobs.shape == (3, 5)
    assert (ranking.first_probabilities.diff(dim=1) <= 0).all()
    assert ranking.logprobs.dtype == torch.float32


@torch.no_grad()
def test_a_written_answer_is_that_of_the_question_alone(vqa, tokenizer, hidden):
    together = answer_questions(vqa, tokenizer, hidden, QUESTIONS)
    assert len({len(answer.text) for answer in together}) > 1
    for place, (question, answer) in enumerate(zip(QUESTIONS, together, strict=True)):
        image = hidden[place // 2 : place // 2 + 1]
        ids = question_ids(tokenizer, question)
        states = vqa.read_questions(ids, torch.ones_like(ids).bool(), vqa.image_memory(image))
        (plain,) = write_answers(vqa, vqa.question_memory(states, None), tokenizer.special)
        assert answer.text == tokenizer.decode(plain.token_ids)
        assert answer.logprob == pytest.approx(plain.logprob, abs=1e-4)
        assert answer.probability == pytest.approx(math.exp(plain.logprob), abs=1e-4)


def test_questions_are_cleaned_as_the_original_does(vqa, tokenizer, hidden):
    written = answer_questions(vqa, tokenizer, hidden[:1], ['Where "is" (the) DOG!'])
    assert written == answer_questions(vqa, tokenizer, hidden[:1], ["where is the dog"])
    # Fifty words, of which no more than 35 tokens are read.
    long = answer_questions(vqa, tokenizer, hidden[:1], ["dog " * 33])
    assert long == answer_questions(vqa, tokenizer, hidden[:1], ["dog " * 60])


def test_the_first_token_of_a_question_can_be_that_of_transformers(vqa, tokenizer, hidden):
    enc = answer_questions(vqa, tokenizer, hidden, QUESTIONS)
    cls = answer_questions(vqa, tokenizer, hidden, QUESTIONS, first_token="[CLS]")
    assert [answer.logprob for answer in enc] != [answer.logprob for answer in cls]


@pytest.mark.parametrize("candidates", [None, CANDIDATES])
def test_keys_and_values_are_computed_once(vqa, tokenizer, hidden, candidates):
    projections = {
        "image": vqa.question.layers[0].part("cross_attention", causal=False).key_value,
        "question": vqa.answer.layers[0].part("cross_attention", causal=True).key_value,
    }
    seen: dict[str, list[int]] = {name: [] for name in projections}
    hooks = [
        layer.register_forward_hook(
            lambda _, given, __, name=name: seen[name].append(len(given[0]))
        )
        for name, layer in projections.items()
    ]
    answer_questions(vqa, tokenizer, hidden, QUESTIONS, candidates)
    for hook in hooks:
        hook.remove()
    assert seen == {"image": [3], "question": [6]}


@pytest.mark.parametrize("candidates", [None, CANDIDATES])
def test_images_may_have_other_numbers_of_questions(vqa, tokenizer, hidden, candidates):
    asked = [QUESTIONS[:3], [], QUESTIONS[3:4]]
    found = answer_each(vqa, tokenizer, hidden, asked, candidates)
    assert [len(own) for own in found] == [3, 0, 1]
    for place in (0, 2):
        image = hidden[place : place + 1]
        alone = answer_questions(vqa, tokenizer, image, asked[place], candidates)
        assert [answer.text for answer in found[place]] == [answer.text for answer in alone]


def test_no_question_gives_no_answer(vqa, tokenizer, hidden):
    assert answer_questions(vqa, tokenizer, hidden, []) == []


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"candidates": []}, DataError, "no candidate"),
        ({"candidates": ["a"], "k": 0}, RecipeError, "k is 0"),
        ({"first_token": "[DEC]"}, RecipeError, r"\[ENC\], \[CLS\]"),
        ({"questions": QUESTIONS[:4]}, DataError, "4 questions for 3 images"),
    ],
)
def test_errors_name_the_remedy(vqa, tokenizer, hidden, change, error, message):
    arguments = {"questions": QUESTIONS, **change}
    with pytest.raises(error, match=message):
        answer_questions(vqa, tokenizer, hidden, **arguments)
