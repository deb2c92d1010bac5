"""Every model that a checkpoint may hold, and what of it is written."""

import warnings
from dataclasses import replace
from typing import Any, cast

from torch import Tensor, nn

from openblip.batches.tokenizer import TextTokenizer
from openblip.checkpoints.assembly import build_empty, check_names, check_shape
from openblip.model import Med, MedConfig
from openblip.model.albef import Albef
from openblip.model.backbones import shown
from openblip.model.config import AlbefConfig
from openblip.model.dual import DualConfig, DualEncoder
from openblip.model.lowrank import low_rank_layers, merge
from openblip.model.text import LmHead, TextEmbeddings
from openblip.model.vqa import Nlvr, NlvrConfig, Vqa, VqaConfig
from openblip.runtime.errors import CheckpointError, OpenBlipWarning

AnyModel = Med | Vqa | Nlvr | Albef | DualEncoder
FEWEST_TOKENS = 2
"""The first and the last token of an empty text."""
# Rows of padding are fewer than the largest multiple that is usual.
_ROWS_ARE_PADDED_TO = 8
_MOST_PADDING = 128
AnyConfig = MedConfig | VqaConfig | NlvrConfig | AlbefConfig | DualConfig


def empty_model(config: AnyConfig) -> AnyModel:
    """The model of a configuration on the meta device."""
    match config:
        case MedConfig():
            return build_empty(lambda: Med(config))
        case VqaConfig():
            return build_empty(lambda: Vqa(config))
        case NlvrConfig():
            return build_empty(lambda: Nlvr(config))
        case AlbefConfig():
            return build_empty(lambda: Albef(config))
        case DualConfig():
            return build_empty(lambda: DualEncoder(config))


def state_to_write(model: AnyModel) -> dict[str, Tensor]:
    """The state of a model as whoever reads its configuration expects it.

    Tensors are shared with the model, but for weights with low-rank changes: these are copies with
    the changes added.

    Raises:
        CheckpointError: if the model was changed so that its configuration does not describe it,
            or is quantised: nobody could read it again.
    """
    source = "the model in memory"
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    changed = [f"{name}.weight" for name, _ in low_rank_layers(model)]
    state |= {name: state[name].clone() for name in changed}
    merge(state, model)
    expected = empty_model(model.config).state_dict()
    check_names(set(expected), set(state), source)
    for name, tensor in state.items():
        if type(tensor) is not Tensor:
            raise CheckpointError(
                f"{source}: {name} is quantised, which cannot be saved; load the model again, as "
                "float32, and save that"
            )
        if not (tensor.is_floating_point() or tensor.dtype == expected[name].dtype):
            raise CheckpointError(
                f"{source}: {name} holds {tensor.dtype}, which cannot be read again; convert the "
                "model to float32, and save that"
            )
        check_shape(name, tuple(tensor.shape), tuple(expected[name].shape), source)
    return state


def check_own_encoder(model: AnyModel, layout: str) -> None:
    """Nothing, if a model's image encoder is ours, which alone has a place in other layouts.

    Raises:
        CheckpointError: if it is a backbone.
    """
    if model.config.vision.backbone is not None:
        raise CheckpointError(
            f"{shown(model.config.vision.backbone)} has no place in {layout}, which knows BLIP's "
            "image encoder alone; write the model in our own layout"
        )


def check_image_size(model: AnyModel, image_size: int) -> None:
    """Nothing, if positions belong to the size of images: every layout stores that one, no other.

    Raises:
        CheckpointError: if the size is another one.
    """
    size = model.config.vision.image_size
    if image_size != size:
        raise CheckpointError(
            f"images are resized to {image_size} px, but the model's positions belong to "
            f"{size} px: load it with image_size={image_size}, and save that"
        )


def check_vocabulary(model: AnyModel, tokenizer: TextTokenizer, max_tokens: int | None) -> None:
    """Nothing, if a tokenizer can be written as that of a model.

    Raises:
        CheckpointError: if it has another number of tokens than the model's word embedding, or
            there is no room for a text.
    """
    rows = model.config.text.vocab_size
    if tokenizer.vocab_size != rows:
        raise CheckpointError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, but the model's word embedding has "
            f"{rows} rows; give the model's own"
        )
    if max_tokens is not None and max_tokens < FEWEST_TOKENS:
        raise CheckpointError(
            f"max_tokens is {max_tokens}; a text takes {FEWEST_TOKENS} or more, its first and last "
            "token included"
        )


def fit_vocabulary(model: AnyModel, tokenizer: TextTokenizer, source: str) -> bool:
    """Whether a model has a row for every token of its tokenizer; rows of padding are cut off.

    Embeddings are often padded to a multiple of 8 or 64 rows, which are fast to multiply with.

    Warns:
        OpenBlipWarning: rows were cut off.
    """
    rows, tokens = model.config.text.vocab_size, tokenizer.vocab_size
    if rows == tokens:
        return True
    if rows % _ROWS_ARE_PADDED_TO or not 0 < rows - tokens < _MOST_PADDING:
        return False
    warnings.warn(
        f"{source}: {rows} rows of the word embedding for {tokens} tokens; the last "
        f"{rows - tokens} are taken as padding and left out",
        OpenBlipWarning,
        stacklevel=2,
    )
    for part in model.modules():
        if isinstance(part, TextEmbeddings):
            part.word.weight = nn.Parameter(part.word.weight.detach()[:tokens].clone())
            part.word.num_embeddings = tokens
        elif isinstance(part, LmHead):
            part.bias = nn.Parameter(part.bias.detach()[:tokens].clone())
    text = replace(model.config.text, vocab_size=tokens)
    model.config = replace(cast("Any", model.config), text=text)
    return True
