"""Language modelling: labels and loss."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from openblip.objectives.lm import IGNORED, label_places, lm_loss, next_token_labels

IDS = torch.tensor([[9, 5, 6, 3], [9, 7, 3, 0]])
MASK = IDS != 0


def test_labels_are_the_ids_that_follow() -> None:
    assert next_token_labels(IDS, MASK).tolist() == [
        [5, 6, 3, IGNORED],
        [7, 3, IGNORED, IGNORED],
    ]


def test_a_prompt_has_no_labels() -> None:
    labels = next_token_labels(IDS, MASK, prompt_tokens=2)
    assert labels.tolist() == [[IGNORED, 6, 3, IGNORED], [IGNORED, 3, IGNORED, IGNORED]]


def test_labels_leave_the_ids_as_they_are() -> None:
    before = IDS.clone()
    next_token_labels(IDS, MASK, prompt_tokens=3)
    assert torch.equal(IDS, before)


def by_hand(logits: Tensor, label: int, smoothing: float) -> float:
    log_p = logits - logits.exp().sum().log()
    return float(-(1 - smoothing) * log_p[label] - smoothing * log_p.mean())


def test_smoothing_spreads_over_the_vocabulary() -> None:
    labels = torch.tensor([[2, 0, IGNORED], [1, IGNORED, IGNORED]])
    logits = torch.tensor([[0.0, 1.0, 3.0, -1.0], [2.0, 0.5, 0.0, 0.0], [-1.0, 0.0, 0.0, 4.0]])
    losses = [by_hand(row, label, 0.1) for row, label in zip(logits, [2, 0, 1], strict=True)]
    assert lm_loss(logits, labels, 0.1).item() == pytest.approx(sum(losses) / 3)
    per_row = lm_loss(logits, labels, 0.1, reduction="sum_per_row")
    assert per_row.tolist() == pytest.approx([losses[0] + losses[1], losses[2]])


def test_a_batch_without_labels_has_loss_zero() -> None:
    logits = torch.zeros(0, 4, requires_grad=True)
    labels = torch.full((2, 3), IGNORED)
    loss = lm_loss(logits, labels)
    loss.backward()
    assert loss.item() == 0
    assert lm_loss(logits, labels, reduction="sum_per_row").tolist() == [0, 0]


def test_loss_is_float32_for_lower_precision_logits() -> None:
    labels = torch.tensor([[1, IGNORED]])
    assert lm_loss(torch.zeros(1, 4, dtype=torch.bfloat16), labels).dtype == torch.float32


@pytest.mark.parametrize("prompt_tokens", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("padding", [0, 3])
def test_places_of_the_labels_follow_from_the_mask_alone(prompt_tokens: int, padding: int) -> None:
    ids, mask = F.pad(IDS, (0, padding)), F.pad(MASK, (0, padding))
    labels = next_token_labels(ids, mask, prompt_tokens)
    expected = (labels != IGNORED).flatten().nonzero()[:, 0]
    tokens = ids.shape[1]
    # The mask as the loader gave it: padding that came later is no part of it.
    found = label_places(MASK, tokens, torch.device("cpu"), prompt_tokens)
    assert (found.rows, found.tokens) == ids.shape
    assert torch.equal(found.places, expected)
