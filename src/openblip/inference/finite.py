"""Numbers that are none: a model whose weights or outputs are NaN or infinite says so."""

import torch
from torch import Tensor, nn

from openblip.errors import CheckpointError


def finite(values: Tensor, what: str) -> Tensor:
    """The values themselves, if all of them are numbers.

    Args:
        values: outputs of a model, of any shape.
        what: they are, in the plural.

    Raises:
        CheckpointError: some are NaN or infinite.
    """
    if not _all_finite(values):
        bad = int((~torch.isfinite(values)).sum())
        raise CheckpointError(
            f"{bad:,} of {values.numel():,} {what} of the model are NaN or infinite: its weights "
            "are damaged or have exploded in training (or float16 is too narrow for them: give "
            "float32); load another checkpoint"
        )
    return values


def check_weights(model: nn.Module, source: str) -> None:
    """Nothing, if all weights of a model are numbers.

    Raises:
        CheckpointError: some are NaN or infinite; names the first tensor that has such.
    """
    for name, weights in model.state_dict().items():
        if weights.is_floating_point() and not _all_finite(weights):
            bad = int((~torch.isfinite(weights)).sum())
            raise CheckpointError(
                f"{source}: {bad:,} of {weights.numel():,} weights of {name} are NaN or infinite; "
                "the checkpoint is damaged, or its training has diverged: load another one"
            )


def _all_finite(values: Tensor) -> bool:
    # A sum reads the values once and makes none; only one that overflows needs the second look.
    with torch.no_grad():
        return bool(torch.isfinite(values.sum())) or bool(torch.isfinite(values).all())
