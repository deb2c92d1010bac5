"""The image encoder: a pre-norm vision transformer with a class token."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Generic, TypeVar, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from openblip.model.attention import ImageSelfAttention
from openblip.model.backbones import BackboneEncoder, name_of, settled
from openblip.model.config import ConfigT, VisionConfig, initial_std
from openblip.model.kernels import Linear, linear, mlp
from openblip.runtime.errors import RecipeError

# Of so many patches a processor encodes the images at a time, two at 384 px and six at 224: in the
# base size the states of more outgrow its caches, and are given back to the system and cleared
# anew at every layer; the weights are copied for every part.
PATCHES_AT_ONCE = 1200

# Not `typing.Self`, which the checks of shapes do not know.
ModelT = TypeVar("ModelT", bound="ImageModel[Any]")


class Mlp(nn.Module):
    """A norm, and two linear layers with an exact GELU between them."""

    def __init__(self, width: int, hidden_width: int) -> None:
        super().__init__()
        self.up = Linear(width, hidden_width)
        self.down = Linear(hidden_width, width)

    def forward(
        self, hidden: Float[Tensor, "batch patches width"], norm: nn.LayerNorm
    ) -> Float[Tensor, "batch patches width"]:
        return mlp(hidden, self.up, self.down, norm)


class DropPath(nn.Module):
    """Skips a residual branch for whole samples while training (stochastic depth)."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(
        self, branch: Float[Tensor, "batch patches width"]
    ) -> Float[Tensor, "batch patches width"]:
        if not self.training or self.probability == 0.0:
            return branch
        keep = 1.0 - self.probability
        kept = torch.rand(branch.shape[0], 1, 1, device=branch.device) < keep
        return branch * kept.to(branch.dtype) / keep


class VisionBlock(nn.Module):
    """Self-attention and MLP, each behind a layer norm and with a residual."""

    def __init__(self, config: VisionConfig, drop_path: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.attention = ImageSelfAttention(config.width, config.heads)
        self.mlp_norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.mlp = Mlp(config.width, int(config.width * config.mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(
        self, hidden: Float[Tensor, "batch patches width"], num_given: int | None = None
    ) -> Float[Tensor, "batch given width"]:
        """The next states of the first `num_given` patches, by default of all."""
        attended = self.attention(hidden, self.attention_norm, num_given)
        hidden = hidden[:, :num_given] + self.drop_path(attended)
        out: Tensor = hidden + self.drop_path(self.mlp(hidden, self.mlp_norm))
        return out


class ImageEncoder(nn.Module):
    """Patch tokens of images, the class token first (BLIP, section 3.1)."""

    num_prefix_tokens = 1

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.patch_embed = nn.Conv2d(3, width, config.patch_size, stride=config.patch_size)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.zeros(1, config.num_patches, width))
        rates = torch.linspace(0.0, config.drop_path, config.depth, device="cpu").tolist()
        self.blocks = nn.ModuleList(VisionBlock(config, rate) for rate in rates)
        self.norm = nn.LayerNorm(width, eps=config.norm_eps)
        self._initialise()

    def _initialise(self) -> None:
        std = initial_std(self.config.width)
        nn.init.trunc_normal_(self.class_token, std=std)
        nn.init.trunc_normal_(self.positions, std=std)
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=std)
                nn.init.zeros_(module.bias)

    def forward(
        self, images: Float[Tensor, "batch 3 height width_px"], num_given: int | None = None
    ) -> Float[Tensor, "batch given width"]:
        """The states of the first `num_given` patches, by default of all."""
        # A graph takes any number of images as one part.
        is_plain = not torch.is_grad_enabled() and not torch.compiler.is_compiling()
        if is_plain and images.device.type == "cpu":
            parts = torch.split(images, max(1, PATCHES_AT_ONCE // self.config.num_patches))
            return torch.cat([self._encode(part, num_given) for part in parts])
        return self._encode(images, num_given)

    def _encode(
        self, images: Float[Tensor, "batch 3 height width_px"], num_given: int | None
    ) -> Float[Tensor, "batch given width"]:
        patches, grid = self._embed_patches(images)
        class_token = self.class_token.expand(patches.shape[0], -1, -1)
        hidden = torch.cat([class_token, patches], dim=1)
        hidden = hidden + interpolate_positions(self.positions, grid)
        # The last blocks, as the original counts them (its `ckpt_layer`); see `text.run_layers`.
        first_checkpointed = len(self.blocks) - self.config.checkpoint_layers
        for number, block in enumerate(self.blocks):
            # Only the last block may leave states out: the others are attended to.
            given = num_given if number == len(self.blocks) - 1 else None
            if self.training and number >= first_checkpointed:
                hidden = checkpoint(block, hidden, given, use_reentrant=False)
            else:
                hidden = block(hidden, given)
        out: Tensor = self.norm(hidden)
        return out

    def _embed_patches(
        self, images: Float[Tensor, "batch 3 height width_px"]
    ) -> tuple[Float[Tensor, "batch patches width"], tuple[int, int]]:
        """The patches' projections, and their grid (rows, columns).

        A convolution whose stride is its size is a product with the patches side by side.
        """
        size = self.config.patch_size
        rows, columns = images.shape[2] // size, images.shape[3] // size
        whole = images[:, :, : rows * size, : columns * size]
        pixels = whole.reshape(images.shape[0], 3, rows, size, columns, size)
        patches = pixels.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        weight = self.patch_embed.weight.flatten(1)
        return linear(patches, weight, self.patch_embed.bias), (rows, columns)


class ImageModel(nn.Module, Generic[ConfigT]):
    """A model that looks at images; its configuration has a field `vision`.

    Args:
        config: of a model with a backbone, the attribute has the sizes that this turned out to
            have.
        backbone: a module that takes the place of our image encoder; see `model.backbones`. By
            default `config.vision` names it.

    Raises:
        RecipeError: if there is no such backbone, or it cannot do what `config` asks of it.
    """

    image_encoder: ImageEncoder | BackboneEncoder
    config: ConfigT
    freezes_images = False
    """Whether `freeze_images` was called."""
    known_states: Callable[[Tensor], Tensor] | None = None
    """Gives the states of images in the place of the encoder, where some are kept."""

    def __init__(self, config: ConfigT, backbone: nn.Module | None = None) -> None:
        super().__init__()
        vision: VisionConfig = cast("Any", config).vision
        if backbone is not None:
            vision = replace(vision, backbone=name_of(backbone))
        if vision.backbone is None:
            self.image_encoder = ImageEncoder(vision)
        else:
            self.image_encoder = BackboneEncoder(vision, backbone)
        self.config = replace(cast("Any", config), vision=self.image_encoder.config)

    def freeze_images(self) -> None:
        """Leave the image encoder as it is: no gradient, and never in training mode."""
        self.freezes_images = True
        self.image_encoder.requires_grad_(False).eval()

    def train(self: ModelT, mode: bool = True) -> ModelT:
        """As every module; a frozen image encoder stays in evaluation mode."""
        super().train(mode)
        if self.freezes_images:
            self.image_encoder.eval()
        return self

    def encode_images(
        self, images: Float[Tensor, "batch 3 height width"] | Float[Tensor, "batch patches width"]
    ) -> Float[Tensor, "batch patches vision_width"]:
        """Patch tokens of normalised images, the class token first.

        States that were computed before (three dimensions) are given back, in float32.

        Raises:
            ValueError: states of another width, or a single image without a batch.
        """
        return self._encoded(images, None)

    def encode_class_tokens(
        self, images: Float[Tensor, "batch 3 height width"] | Float[Tensor, "batch patches width"]
    ) -> Float[Tensor, "batch 1 vision_width"]:
        """Of what `encode_images` gives the class token alone, for less."""
        return self._encoded(images, 1)

    def _encoded(self, images: Tensor, num_given: int | None) -> Tensor:
        if images.ndim == 3:
            width = self.image_encoder.config.width
            if images.shape[2] != width:
                raise ValueError(
                    f"states of width {images.shape[2]} are none of this encoder, which gives "
                    f"{width}; images are (batch, 3, height, width)"
                )
            return images[:, :num_given].float()
        if self.known_states is not None:
            return self.known_states(images)[:, :num_given]
        hidden: Tensor = self.image_encoder(images, num_given)
        return hidden

    def resize_images(self, image_size: int) -> None:
        """Take images of another size from here on: positions are interpolated, in place.

        Args:
            image_size: side of the square, in pixels.

        Raises:
            RecipeError: if it is no multiple of the patch size, or a backbone does not take it.
        """
        encoder = self.image_encoder
        if isinstance(encoder, BackboneEncoder):
            encoder.config = settled(replace(encoder.config, image_size=image_size))
            self.config = replace(cast("Any", self.config), vision=encoder.config)
            return
        if image_size < encoder.config.patch_size:
            raise RecipeError(
                f"image_size is {image_size}; give a multiple of the model's patch size, "
                f"{encoder.config.patch_size}"
            )
        vision = replace(encoder.config, image_size=image_size)
        grid = image_size // vision.patch_size
        with torch.no_grad():
            encoder.positions = nn.Parameter(interpolate_positions(encoder.positions, (grid, grid)))
        encoder.config = vision
        self.config = replace(cast("Any", self.config), vision=vision)


def interpolate_positions(
    positions: Float[Tensor, "1 patches width"], grid: tuple[int, int]
) -> Float[Tensor, "1 new_patches width"]:
    """Learned positions at another grid (rows, columns), bicubic; the class token's is kept.

    The same grid gives back the same tensor.
    """
    side = round((positions.shape[1] - 1) ** 0.5)
    if grid == (side, side):
        return positions
    class_position, patch_positions = positions[:, :1], positions[:, 1:]
    square = patch_positions.transpose(1, 2).reshape(1, -1, side, side)
    resized = F.interpolate(square, size=grid, mode="bicubic", align_corners=False)
    return torch.cat([class_position, resized.flatten(2).transpose(1, 2)], dim=1)
