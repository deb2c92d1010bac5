"""Sizes and choices that define a MED."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_type_hints

from openblip.runtime.errors import RecipeError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

ConfigT = TypeVar("ConfigT")
Head = Literal["itc", "itm", "lm", "multimodal"]
AlbefHead = Literal["itc", "itm", "mlm"]
Sharing = Literal["all_but_self_attention", "all", "all_but_cross_attention", "none"]
PresetName = Literal["tiny", "small", "base", "large"]

# Far above any model: what a damaged file asks for is refused before something is built for it.
_MOST_LAYERS = 1_000
_LARGEST = 1 << 24
# Along a side of an image.
_MOST_PATCHES = 512


def initial_std(width: int) -> float:
    """Standard deviation of fresh weights: 0.02 from width 768 on, as the original.

    Narrower layers get larger weights, so that a product changes a token about as much as it does
    at width 768; with 0.02 a width of 96 takes several times as many steps to begin to learn.
    """
    return float(0.02 * max(768 / width, 1.0) ** 0.5)


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """A pre-norm vision transformer (BLIP, section 3.1)."""

    image_size: int = 224
    """Side of the square that the learned positions belong to, in pixels."""
    patch_size: int = 16
    """Side of a patch, in pixels."""
    width: int = 768
    """Channels of a patch token."""
    depth: int = 12
    """Number of blocks."""
    heads: int = 12
    """Attention heads; divides the width."""
    mlp_ratio: float = 4.0
    """Hidden width of a block's MLP, in widths."""
    drop_path: float = 0.0
    """Probability of skipping the last block's branches; grows linearly from 0 with depth."""
    norm_eps: float = 1e-6
    """Epsilon of the layer norms; 1e-5 in `transformers`' default configuration."""
    checkpoint_layers: int = 0
    """The last so many blocks recompute their activations in the backward pass."""
    backbone: str | None = None
    """Whose image encoder it is (`docs/backbones.md`): None, ours; or `timm:NAME`,
    `transformers:NAME` of a folder or of the hub, or `module:name` of anybody's module. Of the
    fields above `image_size` and `checkpoint_layers` are then settings; the others are what the
    backbone turns out to have, or mean nothing."""
    tokens: int | None = None
    """Tokens of an image that a backbone turns out to give."""

    def __post_init__(self) -> None:
        for name in ("image_size", "patch_size", "width", "depth", "heads"):
            check_size(f"vision.{name}", getattr(self, name))
        if self.backbone is None:
            self._check_ours()
        else:
            _check_name("vision.backbone", self.backbone)
            if self.tokens is not None:
                check_size("vision.tokens", self.tokens)
        check_rate("vision.drop_path", self.drop_path)
        check_size("vision.checkpoint_layers", self.checkpoint_layers, least=0)

    def _check_ours(self) -> None:
        if self.tokens is not None:
            raise RecipeError("vision.tokens is what a backbone gives: leave it out without one")
        _check_heads("vision", self.width, self.heads)
        _check_number("vision.mlp_ratio", self.mlp_ratio)
        check_size("vision.mlp_ratio times vision.width", int(self.width * self.mlp_ratio))
        _check_number("vision.norm_eps", self.norm_eps)
        if self.image_size % self.patch_size:
            raise RecipeError(
                f"vision.image_size {self.image_size} is not a multiple of vision.patch_size "
                f"{self.patch_size}; choose one that is"
            )
        if self.image_size // self.patch_size > _MOST_PATCHES:
            raise RecipeError(
                f"vision.image_size {self.image_size} is more than {_MOST_PATCHES} times "
                f"vision.patch_size {self.patch_size}; choose smaller images"
            )

    @property
    def num_patches(self) -> int:
        """Tokens of an image at `image_size`, the class token included."""
        if self.tokens is not None:
            return self.tokens
        return (self.image_size // self.patch_size) ** 2 + 1


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """A post-norm BERT stack in three roles (BLIP, section 3.1 and figure 2)."""

    vocab_size: int = 30524
    """Tokens, with `[DEC]` and `[ENC]`."""
    width: int = 768
    """Channels of a text token."""
    depth: int = 12
    """Number of layers."""
    heads: int = 12
    """Attention heads; divides the width."""
    ffn_width: int = 3072
    """Hidden width of the feed-forward network."""
    max_positions: int = 512
    """Longest text, in tokens."""
    dropout: float = 0.1
    """Dropout of embeddings, attention probabilities and block outputs."""
    norm_eps: float = 1e-12
    """Epsilon of the layer norms."""
    sharing: Sharing = "all_but_self_attention"
    """What encoder and decoder share (BLIP, table 3)."""
    checkpoint_layers: int = 0
    """The last so many layers recompute their activations in the backward pass."""

    def __post_init__(self) -> None:
        for name in ("vocab_size", "width", "depth", "heads", "ffn_width", "max_positions"):
            check_size(f"text.{name}", getattr(self, name))
        _check_heads("text", self.width, self.heads)
        _check_number("text.norm_eps", self.norm_eps)
        check_rate("text.dropout", self.dropout)
        check_size("text.checkpoint_layers", self.checkpoint_layers, least=0)
        if self.sharing not in get_args(Sharing):
            raise RecipeError(
                f"text.sharing {self.sharing!r} is not one of {', '.join(get_args(Sharing))}"
            )


@dataclass(frozen=True, kw_only=True)
class MedConfig:
    """A complete MED; parts that no head needs are not built."""

    vision: VisionConfig = field(default_factory=VisionConfig)
    """The image encoder."""
    text: TextConfig = field(default_factory=TextConfig)
    """The text stack."""
    embed_dim: int = 256
    """Dimensions of the space in which images and texts are contrasted."""
    heads: tuple[Head, ...] = ("itc", "itm", "lm")
    """What the model can do: contrast (itc), match (itm), generate (lm), or only give the hidden
    states of a text that attends to an image (multimodal)."""

    def __post_init__(self) -> None:
        check_size("embed_dim", self.embed_dim)
        check_choices("model.heads", self.heads, get_args(Head))

    @staticmethod
    def preset(name: PresetName, *, vocab_size: int = 30524, image_size: int = 224) -> "MedConfig":
        """The configuration of a named size; base and large are those of the paper.

        Raises:
            RecipeError: if no preset has that name.
        """
        if name not in _PRESETS:
            raise RecipeError(f"no preset {name!r}; there are {', '.join(_PRESETS)}")
        vision, text, embed_dim = _PRESETS[name]
        return MedConfig(
            vision=VisionConfig(image_size=image_size, **vision),
            text=TextConfig(vocab_size=vocab_size, **text),
            embed_dim=embed_dim,
        )


# Large has the text stack of base and drop path 0.1 (released BLIP configurations).
_PRESETS: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {
    "tiny": (
        {"width": 128, "depth": 4, "heads": 4},
        {"width": 128, "depth": 3, "heads": 4, "ffn_width": 512, "max_positions": 64},
        64,
    ),
    "small": (
        {"width": 384, "depth": 12, "heads": 6},
        {"width": 384, "depth": 6, "heads": 6, "ffn_width": 1536},
        256,
    ),
    "base": ({}, {}, 256),
    "large": ({"width": 1024, "depth": 24, "heads": 16, "drop_path": 0.1}, {}, 256),
}


@dataclass(frozen=True, kw_only=True)
class AlbefConfig:
    """Sizes of an ALBEF; by default those of its released pre-training."""

    vision: VisionConfig = field(default_factory=lambda: VisionConfig(image_size=256))
    """The image encoder."""
    text: TextConfig = field(default_factory=lambda: TextConfig(vocab_size=30522))
    """The text encoder with all its layers; it has no decoder, so `sharing` means nothing here."""
    embed_dim: int = 256
    """Dimensions of the space in which images and texts are contrasted."""
    fusion_layer: int = 6
    """Layers below fusion: so many encode the text alone, the others attend to the image too."""
    heads: tuple[AlbefHead, ...] = ("itc", "itm", "mlm")
    """What the model can do: contrast (itc), match (itm), fill in masked words (mlm). A momentum
    model has no itm, and fine-tuning for retrieval no mlm."""

    def __post_init__(self) -> None:
        check_size("embed_dim", self.embed_dim)
        check_size("fusion_layer", self.fusion_layer, least=0)
        if not 0 < self.fusion_layer < self.text.depth:
            raise RecipeError(
                f"fusion_layer {self.fusion_layer} leaves no layer below fusion or none for it; "
                f"choose one from 1 to {self.text.depth - 1}, below text.depth"
            )
        check_choices("heads", self.heads, get_args(AlbefHead))


def check_rate(name: str, rate: float) -> None:
    """Check that a setting is a share that leaves something.

    Raises:
        RecipeError: it is not at least 0 and less than 1; names it.
    """
    _check_number(name, rate)
    if not 0 <= rate < 1:
        raise RecipeError(f"{name} is {rate}; give at least 0 and less than 1")


def check_size(name: str, size: object, least: int = 1) -> None:
    """Check that a setting is a number of things that a model could have.

    Raises:
        RecipeError: it is no whole number, or out of all proportion; names it.
    """
    most = _MOST_LAYERS if name.endswith("depth") else _LARGEST
    if isinstance(size, bool) or not isinstance(size, int) or not least <= size <= most:
        raise RecipeError(f"{name} is {size!r:.40}; give a whole number from {least} to {most}")


def check_choices(name: str, chosen: object, known: tuple[str, ...]) -> None:
    """Check that a setting names some of the known words.

    Raises:
        RecipeError: it names none, or another one.
    """
    if not isinstance(chosen, tuple) or not chosen or any(word not in known for word in chosen):
        raise RecipeError(f"{name} {chosen!r:.80}: name at least one of {', '.join(known)}")


def _check_number(name: str, value: object) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    # NaN compares as False.
    if not is_number or not 0 <= value <= _LARGEST:  # type: ignore[operator]
        raise RecipeError(f"{name} is {value!r:.40}; give a number of 0 or more")


def _check_name(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise RecipeError(f"{name} is {value!r:.40}; give a name")


def _check_heads(part: str, width: int, heads: int) -> None:
    if width % heads:
        raise RecipeError(
            f"{part}.width {width} is not a multiple of {part}.heads {heads}; change one of them"
        )


def config_to_dict(config: "DataclassInstance") -> dict[str, Any]:
    """The configuration of a model as plain JSON values."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in asdict(config).items()
    }


def config_from_dict(
    kind: type[ConfigT], values: Mapping[str, Any], part: str = "model"
) -> ConfigT:
    """The configuration that `config_to_dict` wrote.

    Args:
        kind: its class.
        values: by field; those that are missing keep their defaults.
        part: what errors name.

    Raises:
        RecipeError: if a name is unknown, or a value is none that the field can have.
    """
    if not isinstance(values, Mapping):
        raise RecipeError(f"{part} is {values!r:.40}; expected an object with its sizes")
    types = get_type_hints(kind)
    if unknown := sorted(set(values) - set(types)):
        raise RecipeError(
            f"{part}: unknown {', '.join(unknown)}; known are {', '.join(sorted(types))}"
        )
    built = {
        name: config_from_dict(types[name], value, name)
        if is_dataclass(types[name])
        else tuple(value)
        if isinstance(value, list)
        else value
        for name, value in values.items()
    }
    return kind(**built)
