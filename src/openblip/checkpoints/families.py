"""The families of models: what each is built from and may begin as, and what is written of it.

A family of somebody else's is no entry of the table: it is told from its model class, which a
folder names as `module:Class`.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, is_dataclass, replace
from typing import Any, cast, get_type_hints

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
from openblip.model.vision import ImageModel
from openblip.model.vqa import Nlvr, NlvrConfig, Vqa, VqaConfig, nlvr_from, vqa_from
from openblip.runtime.errors import CheckpointError, OpenBlipWarning
from openblip.runtime.references import find_object, reference_to

AnyModel = Med | Vqa | Nlvr | Albef | DualEncoder
AnyConfig = MedConfig | VqaConfig | NlvrConfig | AlbefConfig | DualConfig

FEWEST_TOKENS = 2
"""The first and the last token of an empty text."""
# Rows of padding are fewer than the largest multiple that is usual.
_ROWS_ARE_PADDED_TO = 8
_MOST_PADDING = 128
# What encoder and decoder share in the layouts of others.
_SHARING = "all_but_self_attention"


@dataclass(frozen=True, kw_only=True)
class Family:
    """One kind of model."""

    config: type[Any]
    """Class of its configuration, with the fields `vision` and `text`."""
    model: type[Any]
    """An `ImageModel` that is called with its configuration alone."""
    kinds: tuple[str, ...]
    """What a folder may say that such a model was trained as; the first where its task does not
    say."""
    reference: str | None = None
    """Its model class as `module:Class`; None of ours."""
    from_med: Callable[[Med], AnyModel] | None = None
    """How one is made out of a pre-trained MED; None where that cannot be."""
    text_parts: tuple[str, ...] = ("text",)
    """Its text stacks, by their attributes."""
    fuses: bool = False
    """Whether texts are encoded once and then fused with images, as ALBEF does: they begin with
    `[CLS]` in every role and have no `[SEP]`, and a match is ranked by its logit alone."""

    def empty(self, config: Any) -> Any:
        """The model of a configuration on the meta device."""
        return build_empty(lambda: self.model(config))

    def begun_from(self, model: nn.Module) -> Any:
        """The model of this family that a trained one gives to start from; None if it gives none.

        Raises:
            MissingHead: it has not all that is needed.
        """
        if self.from_med is not None and isinstance(model, Med):
            return self.from_med(model)
        return model if isinstance(model, self.model) else None


FAMILIES: tuple[Family, ...] = (
    Family(config=MedConfig, model=Med, kinds=("pretrain", "captioner", "filter")),
    Family(
        config=VqaConfig,
        model=Vqa,
        kinds=("vqa",),
        from_med=vqa_from,
        text_parts=("question", "answer"),
    ),
    Family(config=NlvrConfig, model=Nlvr, kinds=("nlvr",), from_med=nlvr_from),
    Family(config=DualConfig, model=DualEncoder, kinds=("dual_encoder",)),
    Family(config=AlbefConfig, model=Albef, kinds=("albef",), fuses=True),
)
"""Our own."""


def family_of(known: Any) -> Family:
    """The family of a model or a configuration, or of the class of either.

    Raises:
        CheckpointError: for a configuration that is none of ours, which does not tell its model,
            or somebody else's model class that lacks what a family needs.
        RecipeError: for a model class that nobody could find again.
    """
    kind = known if isinstance(known, type) else getattr(known, "stands_for", type(known))
    ours = (family for family in FAMILIES if kind in (family.config, family.model))
    return next(ours, None) or _own_family(kind)


def family_named(kind: str, reference: str | None = None) -> Family:
    """The family of the models that a folder describes.

    Args:
        kind: what they were trained as.
        reference: of their class, if it is none of ours.

    Raises:
        ValueError: there is no such kind, or the family has it not.
        CheckpointError: the class cannot be imported, or lacks what a family needs.
    """
    known = FAMILIES
    if reference is not None:
        known = (family_of(find_object(reference, CheckpointError)),)
    for family in known:
        if kind in family.kinds:
            return family
    kinds = ", ".join(kind for family in known for kind in family.kinds)
    raise ValueError(f"kind {kind!r:.40} is not one of {kinds}")


def _own_family(model: Any) -> Family:
    """A family of one class, which does what the one that it derives from does."""
    if not (isinstance(model, type) and issubclass(model, ImageModel)):
        raise CheckpointError(
            f"{model!r:.80} is no model that can be saved or read: give a class that derives from "
            "openblip.model.vision.ImageModel"
        )
    name = reference_to(model)
    config: Any = get_type_hints(model.__init__).get("config")
    fields = set(get_type_hints(config)) if is_dataclass(config) else set()
    if not {"vision", "text"} <= fields:
        raise CheckpointError(
            f"{name}: its __init__ has no argument `config`, annotated with a dataclass that has "
            "the fields vision and text"
        )
    bases = (family for family in FAMILIES if issubclass(model, family.model))
    base = next(bases, Family(config=config, model=model, kinds=(name,)))
    # What is made out of a MED is the base's class, not this one.
    return replace(base, config=config, model=model, reference=name, from_med=None)


def empty_model(config: AnyConfig) -> AnyModel:
    """The model of one of our configurations on the meta device."""
    model: AnyModel = family_of(config).empty(config)
    return model


def state_to_write(model: AnyModel, family: Family | None = None) -> dict[str, Tensor]:
    """The state of a model as whoever reads its configuration expects it.

    Tensors are shared with the model, but for weights with low-rank changes: these are copies with
    the changes added.

    Args:
        model: what is written.
        family: as which it is read again; by default that of its configuration.

    Raises:
        CheckpointError: if the model was changed so that its configuration does not describe it,
            or is quantised: nobody could read it again.
    """
    source = "the model in memory"
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    # Copies, because the model goes on with its weights apart from their changes.
    changed = [f"{name}.weight" for name, _ in low_rank_layers(model)]
    state |= {name: state[name].clone() for name in changed}
    merge(state, model)
    expected = (family or family_of(model.config)).empty(model.config).state_dict()
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


def check_layout(model: AnyModel, layout: str) -> None:
    """Nothing, if a layout of BLIP's authors or of `transformers` has a place for a model's parts.

    Raises:
        CheckpointError: if its image encoder is a backbone, or its decoder shares other parts.
    """
    if model.config.vision.backbone is not None:
        raise CheckpointError(
            f"{shown(model.config.vision.backbone)} has no place in {layout}, which knows BLIP's "
            "image encoder alone; write the model in our own layout"
        )
    # ALBEF has no decoder, so that its setting means nothing.
    if not (family_of(model.config).fuses or model.config.text.sharing == _SHARING):
        raise CheckpointError(
            f"text.sharing {model.config.text.sharing!r} has no place in {layout}, which knows "
            f"{_SHARING!r} alone"
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
            # Cloned: a slice would keep all rows in memory, and in a file.
            part.word.weight = nn.Parameter(part.word.weight.detach()[:tokens].clone())
            part.word.num_embeddings = tokens
        elif isinstance(part, LmHead):
            part.bias = nn.Parameter(part.bias.detach()[:tokens].clone())
    text = replace(model.config.text, vocab_size=tokens)
    model.config = replace(cast("Any", model.config), text=text)
    return True
