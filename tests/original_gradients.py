"""Gradients by the names of the original's parameters, to be compared with its own."""

from collections.abc import Mapping

from torch import Tensor

from openblip.checkpoints.assembly import NameMap, split_parts
from openblip.checkpoints.original_layout import MODELS, Kind
from openblip.runtime.errors import CheckpointError


def export_gradients(
    gradients: Mapping[str, Tensor | None], kind: Kind
) -> dict[str, Tensor | None]:
    """Gradients by the original's parameter names; a tied parameter appears once, as there.

    Args:
        gradients: of a model's parameters by our names; None where there is none.
        kind: which of the original's models they are compared with.

    Raises:
        CheckpointError: if a name is not part of that model.
    """
    names = NameMap(MODELS[kind].sections)
    exported: dict[str, Tensor | None] = {}
    for name, gradient in gradients.items():
        places = names.places(name)
        if not places:
            raise CheckpointError(f"{name} is not a parameter of the original's {kind} model")
        whole = dict.fromkeys(places[0]) if gradient is None else split_parts(gradient, places[0])
        exported.update(whole)
    return exported
