"""Language modelling: the next token (BLIP), and words that are hidden (ALBEF)."""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from openblip.batches.step_loader import sent
from openblip.model.packing import Packing

IGNORED = -100
"""The label of a position that has no label."""

Reduction = Literal["mean", "sum_per_row"]


def next_token_labels(
    ids: Int[Tensor, "rows tokens"],
    mask: Bool[Tensor, "rows tokens"],
    prompt_tokens: int | Int[Tensor, " rows"] = 0,
) -> Int[Tensor, "rows tokens"]:
    """For every position the id that follows it; IGNORED on padding and at the end.

    Args:
        ids: token ids; the first one is never a label.
        mask: True where a token is.
        prompt_tokens: tokens at the beginning, the first one included, that are given and hence
            no labels; of all rows, or one number per row.
    """
    # Of the ids themselves, before they are shifted: a prompt's last token still predicts.
    labels = ids.masked_fill(~mask, IGNORED)
    if isinstance(prompt_tokens, int):
        labels[:, :prompt_tokens] = IGNORED
    else:
        places = torch.arange(ids.shape[1], device=ids.device)
        given = sent(prompt_tokens, ids.device)
        labels = labels.masked_fill(places < given[:, None], IGNORED)
    return F.pad(labels[:, 1:], (0, 1), value=IGNORED)


def label_places(
    mask: Bool[Tensor, "rows tokens"],
    tokens: int,
    device: torch.device,
    prompt_tokens: int | Int[Tensor, " rows"] = 0,
) -> Packing:
    """Where `next_token_labels` has a label, row by row.

    Args:
        mask: of the texts, on the host, where nobody waits for it.
        tokens: of each text, with the padding that it has by now; at least those of the mask.
        device: where the places are needed.
        prompt_tokens: as in `next_token_labels`, on the host.
    """
    # A position has a label where the next one has a token that is not given.
    places_of_row = torch.arange(mask.shape[1], device=mask.device)
    given = torch.as_tensor(prompt_tokens, device=mask.device).clamp(min=1).reshape(-1, 1)
    wanted = mask & (places_of_row >= given)
    wanted = F.pad(wanted[:, 1:], (0, tokens - mask.shape[1] + 1))
    places = wanted.flatten().nonzero()[:, 0]
    return Packing(len(mask), tokens, sent(places, device))


def lm_loss(
    logits: Float[Tensor, "labelled vocab"],
    labels: Int[Tensor, "rows tokens"],
    label_smoothing: float = 0.1,
    reduction: Reduction = "mean",
    places: Int[Tensor, " labelled"] | None = None,
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
        places: of the labels, row by row; without them an accelerator is waited for.
    """
    if places is None:
        places = (labels != IGNORED).flatten().nonzero()[:, 0]
    losses = F.cross_entropy(
        logits.float(),
        labels.flatten().index_select(0, places),
        reduction="none",
        label_smoothing=label_smoothing,
    )
    if reduction == "mean":
        return losses.sum() / max(losses.shape[0], 1)
    rows = places // labels.shape[1]
    return torch.zeros(len(labels), device=losses.device).index_add(0, rows, losses)


# Of the masked words so many become [MASK], and half of the others a random word (BERT, 3.1).
_REPLACED, _RANDOM = 0.8, 0.5


class MaskDraws(NamedTuple):
    """The random numbers of masking, each (rows, tokens)."""

    masked: Bool[Tensor, "rows tokens"]
    """True with the probability of masking."""
    replaced: Bool[Tensor, "rows tokens"]
    """True with probability 0.8: a masked word becomes `[MASK]`."""
    random: Bool[Tensor, "rows tokens"]
    """True with probability 0.5: a masked word that does not becomes a random one."""
    words: Int[Tensor, "rows tokens"]
    """Random words, of the whole vocabulary."""

    def on(self, device: torch.device) -> "MaskDraws":
        """The same on a device; the host does not wait for it."""
        return MaskDraws(*(sent(draw, device) for draw in self))


def mask_draws(rows: int, tokens: int, probability: float, vocab_size: int, seed: int) -> MaskDraws:
    """Draws that depend on the arguments alone; on the CPU."""
    generator = torch.Generator().manual_seed(seed)

    def happens(chance: float) -> Tensor:
        return torch.rand(rows, tokens, generator=generator) < chance

    return MaskDraws(
        happens(probability),
        happens(_REPLACED),
        happens(_RANDOM),
        torch.randint(vocab_size, (rows, tokens), generator=generator),
    )


class MaskedWords(NamedTuple):
    """Texts with hidden words."""

    ids: Int[Tensor, "rows tokens"]
    """What the model reads."""
    labels: Int[Tensor, "rows tokens"]
    """The hidden words; IGNORED elsewhere."""


def mask_words(
    ids: Int[Tensor, "rows tokens"],
    mask: Bool[Tensor, "rows tokens"],
    draws: MaskDraws,
    mask_token: int,
) -> MaskedWords:
    """Hides words: 80 % become `[MASK]`, 10 % a random word, 10 % stay (ALBEF, section 3.2).

    Args:
        ids: the first token of every text is special and never masked.
        mask: True where a token is; padding is never masked.
        draws: which words.
        mask_token: id of `[MASK]`.
    """
    chosen = draws.masked & mask
    chosen[:, 0] = False
    labels = ids.masked_fill(~chosen, IGNORED)
    replaced = chosen & draws.replaced
    random = chosen & ~draws.replaced & draws.random
    hidden = torch.where(random, draws.words, ids.masked_fill(replaced, mask_token))
    return MaskedWords(hidden, labels)


def masked_places(
    mask: Bool[Tensor, "rows tokens"], draws: MaskDraws, device: torch.device
) -> Packing:
    """Where `mask_words` hides a word, row by row.

    Args:
        mask: of the texts, on the host, as the draws are.
        draws: which words.
        device: where the places are needed.
    """
    chosen = F.pad((draws.masked & mask)[:, 1:], (1, 0))
    return Packing(len(mask), mask.shape[1], sent(chosen.flatten().nonzero()[:, 0], device))


def mlm_loss(
    logits: Float[Tensor, "masked vocab"],
    labels: Int[Tensor, " masked"],
    teacher_logits: Float[Tensor, "masked vocab"] | None = None,
    alpha: float = 0.0,
) -> Float[Tensor, ""]:
    """Cross-entropy with the hidden words, and with the teacher's guesses (ALBEF, equation 7).

    Args:
        logits: of the masked positions.
        labels: the words that are hidden there.
        teacher_logits: of the teacher for the same positions of the same masked texts.
        alpha: weight of the teacher's distribution, in [0, 1]; the words have the rest.

    Returns:
        Nats, mean over the masked positions; 0 where nothing is masked.
    """
    # Not the mean of `cross_entropy`, which is NaN where nothing is masked.
    count = max(len(labels), 1)
    loss = F.cross_entropy(logits.float(), labels, reduction="sum") / count
    if teacher_logits is None or alpha == 0.0:
        return loss
    targets = teacher_logits.float().softmax(dim=1)
    distilled = -(logits.float().log_softmax(dim=1) * targets).sum() / count
    return (1.0 - alpha) * loss + alpha * distilled
