"""Language modelling: labels of a text, and the label-smoothed loss."""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

IGNORED = -100
"""The label of a position that has no label."""

Reduction = Literal["mean", "sum_per_row"]


def next_token_labels(
    ids: Int[Tensor, "rows tokens"], mask: Bool[Tensor, "rows tokens"], prompt_tokens: int = 0
) -> Int[Tensor, "rows tokens"]:
    """For every position the id that follows it; IGNORED on padding and at the end.

    Args:
        ids: token ids; the first one is never a label.
        mask: True where a token is.
        prompt_tokens: tokens at the beginning, the first one included, that are given and hence
            no labels.
    """
    labels = ids.masked_fill(~mask, IGNORED)
    labels[:, :prompt_tokens] = IGNORED
    return F.pad(labels[:, 1:], (0, 1), value=IGNORED)


def lm_loss(
    logits: Float[Tensor, "labelled vocab"],
    labels: Int[Tensor, "rows tokens"],
    label_smoothing: float = 0.1,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """Cross-entropy of the next tokens with smoothed labels (BLIP, section 3.2).

    A label has probability 1 - smoothing, plus the smoothing spread over the vocabulary.

    Args:
        logits: of the labelled positions only, row by row: the projection on the vocabulary is
            not worth its cost where nothing is compared with it.
        labels: IGNORED where there is none.
        label_smoothing: in [0, 1).
        reduction: "mean" over all labels, a scalar (0 without labels); "sum_per_row" over a
            row's labels, one number per row.
    """
    labelled = labels != IGNORED
    losses = F.cross_entropy(
        logits.float(), labels[labelled], reduction="none", label_smoothing=label_smoothing
    )
    if reduction == "mean":
        return losses.sum() / max(losses.shape[0], 1)
    rows = labelled.nonzero()[:, 0]
    return torch.zeros(len(labels), device=losses.device).index_add(0, rows, losses)
