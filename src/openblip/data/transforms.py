"""Images to the tensors that the model takes, for evaluation and for training.

Equal to torchvision's transforms on Pillow images, without torchvision.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from openblip.data.images import open_image
from openblip.data.randaugment import Draws, rand_augment

__all__ = [
    "IMAGE_MEAN",
    "IMAGE_STD",
    "Augmentation",
    "eval_transform",
    "open_image",
    "random_crop_box",
    "to_tensor",
    "train_transform",
]

IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Mean of red, green and blue in 0..1, from CLIP (Radford et al. 2021)."""
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)
"""Standard deviation of red, green and blue in 0..1, from CLIP (Radford et al. 2021)."""

_BYTES = np.arange(256, dtype=np.float32) / np.float32(255)
# Float32 (3, 256): what each byte of each channel becomes. A lookup stays in the calling thread.
_NORMALISED = np.stack(
    [
        (_BYTES - np.float32(mean)) / np.float32(std)
        for mean, std in zip(IMAGE_MEAN, IMAGE_STD, strict=True)
    ]
)
_ASPECT_RANGE = (3 / 4, 4 / 3)
_CROP_ATTEMPTS = 10


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What happens to a training image at random."""

    min_scale: float = 0.5
    """Smallest share of the image's area that a crop takes; 0.2 in BLIP's pre-training."""
    flip: bool = True
    """Whether half of the images are mirrored."""
    randaugment: bool = True
    """Whether RandAugment is applied."""
    num_operations: int = 2
    """N of RandAugment: operations drawn per image, each applied with probability 0.5."""
    magnitude: int = 5
    """M of RandAugment, 0 to 10; 5 in BLIP, 7 in ALBEF."""


def eval_transform(image: Image.Image, size: int) -> Tensor:
    """Returns the RGB image resized to a square and normalised: float32 (3, size, size).

    The aspect is ignored, as in the original: nothing is cropped away.
    """
    return to_tensor(_resized(image, size))


def train_transform(
    image: Image.Image, size: int, augmentation: Augmentation, generator: Draws
) -> Tensor:
    """Returns the RGB image cropped, mirrored, augmented and normalised: float32 (3, size, size).

    The steps and their order are the original's (BLIP, section 4.1).

    Args:
        image: RGB, of any size.
        size: height and width of the result.
        augmentation: what to do.
        generator: the only source of randomness.
    """
    box = random_crop_box(image.width, image.height, augmentation.min_scale, generator)
    image = _resized(_cropped(image, box), size)
    if augmentation.flip and generator.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if augmentation.randaugment:
        image = rand_augment(image, augmentation.num_operations, augmentation.magnitude, generator)
    return to_tensor(image)


def random_crop_box(
    width: int, height: int, min_scale: float, draws: Draws
) -> tuple[int, int, int, int]:
    """Returns (left, top, right, bottom) of a random crop in pixels.

    Its share of the area is uniform in `min_scale`..1, its aspect log-uniform in 3/4..4/3. If ten
    draws do not fit into the image, the largest centred crop of an allowed aspect is taken.
    """
    narrowest, widest = _ASPECT_RANGE
    for _ in range(_CROP_ATTEMPTS):
        area = width * height * draws.uniform(min_scale, 1.0)
        aspect = math.exp(draws.uniform(math.log(narrowest), math.log(widest)))
        crop_width, crop_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(draws.choice(height - crop_height + 1))
            left = int(draws.choice(width - crop_width + 1))
            return left, top, left + crop_width, top + crop_height
    crop_width = min(width, round(height * widest))
    crop_height = min(height, round(width / narrowest))
    left, top = (width - crop_width) // 2, (height - crop_height) // 2
    return left, top, left + crop_width, top + crop_height


def to_tensor(image: Image.Image) -> Tensor:
    """Returns the RGB image as float32 (3, height, width), normalised as CLIP does."""
    pixels = np.asarray(image)
    values = np.empty((3, *pixels.shape[:2]), dtype=np.float32)
    for channel, table in enumerate(_NORMALISED):
        np.take(table, pixels[..., channel], out=values[channel], mode="clip")
    return torch.from_numpy(values)


def _resized(image: Image.Image, size: int) -> Image.Image:
    return image.resize((size, size), Image.Resampling.BICUBIC)


def _cropped(image: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    # Not `Image.crop`, which warns of large crops; and cut before resizing, so that the filter
    # sees nothing from outside the crop.
    left, top, right, bottom = box
    crop = Image.new("RGB", (right - left, bottom - top))
    crop.paste(image, (-left, -top))
    return crop
