"""Floating-point operations of a model's parts, from its sizes alone.

Counted are the forward's matrix products, attention included, at two operations per multiply-add;
a backward pass takes twice as many. Norms, activations, softmax and residuals are left out, as
`torch.utils.flop_counter` leaves them out.
"""

import torch
from torch.utils.flop_counter import FlopCounterMode

from openblip.model.albef import AlbefConfig
from openblip.model.config import MedConfig
from openblip.model.linear import has_onednn

Sizes = MedConfig | AlbefConfig


def image_encoder_flops(config: Sizes, images: int, image_size: int | None = None) -> int:
    """Operations of encoding images; `image_size` in pixels, the configured one by default."""
    vision = config.vision
    patches = _patches(config, image_size)
    patch_embed = _product(patches - 1, 3 * vision.patch_size**2, vision.width)
    block = (
        _product(patches, vision.width, 4 * vision.width)  # qkv and output
        + _attention(patches, patches, vision.width)
        + 2 * _product(patches, vision.width, int(vision.width * vision.mlp_ratio))
    )
    return images * (patch_embed + vision.depth * block)


def memory_flops(
    config: Sizes, images: int, image_size: int | None = None, layers: int | None = None
) -> int:
    """Operations of the cross-attention keys and values of images, for one of the two roles.

    Encoder and decoder use the same ones unless `TextConfig.sharing` separates them. `layers`
    is the number of layers that attend to images, by default all.
    """
    patches = _patches(config, image_size)
    layer = _product(patches, config.vision.width, 2 * config.text.width)
    return images * (config.text.depth if layers is None else layers) * layer


def text_flops(
    config: Sizes,
    rows: int,
    tokens: int,
    patches: int | None = None,
    layers: int | None = None,
) -> int:
    """Operations of the text layers, without heads.

    Args:
        config: sizes.
        rows: texts.
        tokens: of each text, padding included.
        patches: of the image that a text attends to, class token included; None for a text alone.
        layers: which so many are run; by default all.
    """
    text = config.text
    layer = (
        _product(tokens, text.width, 4 * text.width)  # qkv and output
        + _attention(tokens, tokens, text.width)
        + 2 * _product(tokens, text.width, text.ffn_width)
    )
    if patches is not None:
        layer += _product(tokens, text.width, 2 * text.width)  # query and output
        layer += _attention(tokens, patches, text.width)
    return rows * (text.depth if layers is None else layers) * layer


def lm_head_flops(config: Sizes, rows: int, tokens: int) -> int:
    """Operations of next-token logits over the vocabulary."""
    text = config.text
    return rows * _product(tokens, text.width, text.width + text.vocab_size)


def flop_counter() -> FlopCounterMode:
    """PyTorch's counter of the operations that run, which here knows oneDNN's products too."""
    known = {torch.ops.mkldnn._linear_pointwise: _onednn_flops} if has_onednn() else {}
    return FlopCounterMode(display=False, custom_mapping=known)


def _onednn_flops(
    hidden: torch.Size, weight: torch.Size, *others: object, **options: object
) -> int:
    return _product(hidden.numel() // hidden[-1], hidden[-1], weight[0])


def _patches(config: Sizes, image_size: int | None) -> int:
    if image_size is None:
        return config.vision.num_patches
    return (image_size // config.vision.patch_size) ** 2 + 1


def _product(rows: int, inner: int, columns: int) -> int:
    return 2 * rows * inner * columns


def _attention(queries: int, keys: int, width: int) -> int:
    """Scores and weighted sum over all heads together; a mask saves nothing."""
    return 2 * _product(queries, width, keys)
