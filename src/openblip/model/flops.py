"""Floating-point operations of a model's parts, from its sizes alone.

Counted are the forward's matrix products, attention included, at two operations per multiply-add;
a backward pass takes twice as many. Norms, activations, softmax and residuals are left out, as
`torch.utils.flop_counter` leaves them out.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from openblip.model.backbones import measure, output_shape, undrawn
from openblip.model.config import AlbefConfig, MedConfig
from openblip.model.kernels import has_onednn
from openblip.model.vqa import NlvrConfig, VqaConfig

Sizes = MedConfig | AlbefConfig | VqaConfig | NlvrConfig


def image_encoder_flops(config: Sizes, images: int, image_size: int | None = None) -> int:
    """Operations of encoding images.

    Args:
        config: sizes.
        images: how many.
        image_size: in pixels, the configured one by default.
    """
    vision = config.vision
    if vision.backbone is not None:
        return images * _backbone_flops(vision.backbone, image_size or vision.image_size)
    patches = image_tokens(config, image_size)
    patch_embed = _product(patches - 1, 3 * vision.patch_size**2, vision.width)
    block = (
        _product(patches, vision.width, 4 * vision.width)  # qkv and output
        + _attention(patches, patches, vision.width)
        + 2 * _product(patches, vision.width, int(vision.width * vision.mlp_ratio))
    )
    return images * (patch_embed + vision.depth * block)


def class_token_flops(config: Sizes, images: int, image_size: int | None = None) -> int:
    """Operations of encoding images of which the class token alone is read."""
    vision = config.vision
    if vision.backbone is not None:
        return image_encoder_flops(config, images, image_size)
    patches = image_tokens(config, image_size)
    left_out = _product(1, vision.width, vision.width)
    left_out += 2 * _product(1, vision.width, int(vision.width * vision.mlp_ratio))
    left_out += _attention(1, patches, vision.width)
    return image_encoder_flops(config, images, image_size) - images * (patches - 1) * left_out


def memory_flops(
    config: Sizes, images: int, image_size: int | None = None, layers: int | None = None
) -> int:
    """Operations of the cross-attention keys and values of images, for one of the two roles.

    Encoder and decoder use the same ones unless `TextConfig.sharing` separates them. `layers`
    is the number of layers that attend to images, by default all.
    """
    patches = image_tokens(config, image_size)
    layer = _product(patches, config.vision.width, 2 * config.text.width)
    return images * (config.text.depth if layers is None else layers) * layer


def text_flops(
    config: Sizes,
    rows: int,
    tokens: int,
    patches: int | None = None,
    layers: int | None = None,
    *,
    packed: int | None = None,
    reads_first: bool = False,
) -> int:
    """Operations of the text layers, without heads.

    Args:
        config: sizes.
        rows: texts.
        tokens: of each text, padding included.
        patches: of the image that a text attends to, class token included; None for a text alone.
        layers: which so many are run; by default all.
        packed: tokens of all texts that stand one behind the other, and for which everything but
            attention is computed; by default padding is among them.
        reads_first: whether of the last layer only the first tokens' states are computed.
    """
    packed = rows * tokens if packed is None else packed
    depth = config.text.depth if layers is None else layers
    whole = _text_layer(config, rows, tokens, tokens, packed, packed, patches)
    if not reads_first or depth == 0:
        return depth * whole
    return (depth - 1) * whole + _text_layer(config, rows, tokens, 1, packed, rows, patches)


def _text_layer(
    config: Sizes,
    rows: int,
    tokens: int,
    queries: int,
    packed: int,
    given: int,
    patches: int | None,
) -> int:
    """Of one layer that reads `packed` states and gives `given`, up to `queries` a text."""
    text = config.text
    operations = (
        _product(packed, text.width, 3 * text.width)  # qkv
        + rows * _attention(queries, tokens, text.width)
        + _product(given, text.width, text.width)  # output
        + 2 * _product(given, text.width, text.ffn_width)
    )
    if patches is not None:
        operations += _product(given, text.width, 2 * text.width)  # query and output
        operations += rows * _attention(queries, patches, text.width)
    return operations


def state_memory_flops(config: VqaConfig, rows: int, tokens: int) -> int:
    """Operations of the keys and values that answers have of the states of questions."""
    width = config.text.width
    return rows * config.text.depth * _product(tokens, width, 2 * width)


def twin_flops(config: NlvrConfig, rows: int, tokens: int, patches: int) -> int:
    """Operations that a second image adds to the text layers: its attention, and merging."""
    text = config.text
    second = _product(tokens, text.width, 2 * text.width) + _attention(tokens, patches, text.width)
    merging = max(text.depth - config.merge_from_layer, 0)
    merged = _product(tokens, 2 * text.width, text.width)
    return rows * (text.depth * second + merging * merged)


def lm_head_flops(config: Sizes, rows: int, tokens: int) -> int:
    """Operations of next-token logits over the vocabulary."""
    text = config.text
    return rows * _product(tokens, text.width, text.width + text.vocab_size)


def similarity_flops(config: MedConfig | AlbefConfig, rows: int, keys: int) -> int:
    """Operations of comparing images with the texts among the keys, and texts with the images."""
    return 2 * _product(rows, config.embed_dim, keys)


def flop_counter() -> FlopCounterMode:
    """PyTorch's counter of the operations that run.

    Here it knows oneDNN's products and a processor's fused attention too; of the backward pass of
    any fused attention four products, not the scores, which it computes a second time.
    """
    aten = torch.ops.aten
    known: dict[Any, Callable[..., int]] = {
        aten._scaled_dot_product_flash_attention_for_cpu: _fused_attention_flops,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _fused_backward_flops,
        aten._scaled_dot_product_flash_attention_backward: _fused_backward_flops,
        aten._scaled_dot_product_efficient_attention_backward: _fused_backward_flops,
    }
    if has_onednn():
        known[torch.ops.mkldnn._linear_pointwise] = _onednn_flops
    return FlopCounterMode(display=False, custom_mapping=known)


def _fused_attention_flops(
    query: torch.Size, key: torch.Size, *others: object, **options: object
) -> int:
    batch, heads, queries, head_dim = query
    return batch * _attention(queries, key[2], heads * head_dim)


def _fused_backward_flops(
    grad: torch.Size, query: torch.Size, key: torch.Size, *others: object, **options: object
) -> int:
    return 2 * _fused_attention_flops(query, key)


def _onednn_flops(
    hidden: torch.Size, weight: torch.Size, *others: object, **options: object
) -> int:
    return _product(hidden.numel() // hidden[-1], hidden[-1], weight[0])


def image_tokens(config: Sizes, image_size: int | None = None) -> int:
    """Tokens of an image, the class token included; of the configured size by default."""
    vision = config.vision
    if image_size is None or image_size == vision.image_size:
        return vision.num_patches
    if vision.backbone is not None:
        return measure(vision.backbone, image_size).tokens
    return (image_size // vision.patch_size) ** 2 + 1


@cache
def _backbone_flops(backbone: str, image_size: int) -> int:
    """Operations of a backbone on one image, counted as it runs."""
    counter = flop_counter()
    output_shape(undrawn(backbone).eval(), image_size, lambda: counter)
    return int(counter.get_total_flops())


def _product(rows: int, inner: int, columns: int) -> int:
    return 2 * rows * inner * columns


def _attention(queries: int, keys: int, width: int) -> int:
    """Scores and weighted sum over all heads together; a mask saves nothing."""
    return 2 * _product(queries, width, keys)
