"""Masked language modelling: which words are hidden, and the loss."""

import pytest
import torch
from torch import Tensor

from openblip.objectives.lm import IGNORED, MaskDraws, mask_draws, mask_words, mlm_loss

MASK, VOCABULARY = 4, 50


def texts(rows: int = 400, tokens: int = 12) -> tuple[Tensor, Tensor]:
    ids = torch.randint(7, VOCABULARY, (rows, tokens), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(tokens) < torch.randint(3, tokens + 1, (rows, 1))
    return ids, mask


def every_word(rows: int, tokens: int, replaced: bool, random: bool) -> MaskDraws:
    def all_are(value: bool) -> Tensor:
        return torch.full((rows, tokens), value)

    words = torch.full((rows, tokens), 9)
    return MaskDraws(all_are(True), all_are(replaced), all_are(random), words)


class TestMasking:
    def test_labels_are_the_hidden_words_and_stand_nowhere_else(self) -> None:
        ids, mask = texts()
        hidden, labels = mask_words(ids, mask, mask_draws(*ids.shape, 0.3, VOCABULARY, 1), MASK)
        labelled = labels != IGNORED
        assert torch.equal(labels[labelled], ids[labelled])
        assert torch.equal(hidden[~labelled], ids[~labelled])

    def test_neither_the_first_token_nor_padding_is_masked(self) -> None:
        ids, mask = texts()
        _, labels = mask_words(ids, mask, every_word(*ids.shape, True, False), MASK)
        assert (labels[:, 0] == IGNORED).all()
        assert (labels[~mask] == IGNORED).all()
        assert (labels[:, 1:][mask[:, 1:]] != IGNORED).all()

    @pytest.mark.parametrize(
        ("replaced", "random", "expected"), [(True, True, MASK), (False, True, 9)]
    )
    def test_a_word_becomes_the_mask_or_a_random_word(
        self, replaced: bool, random: bool, expected: int
    ) -> None:
        ids, mask = texts()
        hidden, labels = mask_words(ids, mask, every_word(*ids.shape, replaced, random), MASK)
        assert (hidden[labels != IGNORED] == expected).all()

    def test_or_it_stays(self) -> None:
        ids, mask = texts()
        hidden, labels = mask_words(ids, mask, every_word(*ids.shape, False, False), MASK)
        assert torch.equal(hidden, ids)
        assert (labels != IGNORED).any()

    def test_the_shares_are_those_of_bert(self) -> None:
        draws = mask_draws(2000, 50, 0.15, VOCABULARY, seed=3)
        shares = [flags.float().mean().item() for flags in draws[:3]]
        assert shares == pytest.approx([0.15, 0.8, 0.5], abs=0.01)
        assert set(draws.words.unique().tolist()) == set(range(VOCABULARY))

    def test_draws_depend_on_the_seed_alone(self) -> None:
        first, again, other = (mask_draws(4, 6, 0.5, VOCABULARY, seed) for seed in (1, 1, 2))
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        assert not torch.equal(first.words, other.words)


class TestLoss:
    logits = torch.randn(5, VOCABULARY, generator=torch.Generator().manual_seed(0))
    teacher = torch.randn(5, VOCABULARY, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([3, 1, 4, 1, 5])

    def test_alone_it_is_the_cross_entropy(self) -> None:
        expected = -self.logits.log_softmax(1)[torch.arange(5), self.labels].mean()
        torch.testing.assert_close(mlm_loss(self.logits, self.labels), expected)
        torch.testing.assert_close(mlm_loss(self.logits, self.labels, self.teacher, 0.0), expected)

    def test_with_a_teacher_it_is_the_mixture_of_equation_7(self) -> None:
        hard = mlm_loss(self.logits, self.labels)
        soft = -(self.logits.log_softmax(1) * self.teacher.softmax(1)).sum(1).mean()
        mixed = mlm_loss(self.logits, self.labels, self.teacher, 0.4)
        torch.testing.assert_close(mixed, 0.6 * hard + 0.4 * soft)

    def test_without_a_masked_word_it_is_zero_and_has_a_gradient(self) -> None:
        logits = torch.zeros(0, VOCABULARY, requires_grad=True)
        loss = mlm_loss(logits, torch.zeros(0, dtype=torch.int64), torch.zeros(0, VOCABULARY), 0.4)
        loss.backward()
        assert loss.item() == 0.0
