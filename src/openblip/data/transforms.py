"""Images to the tensors that the model takes, for evaluation and for training.

Equal to torchvision's transforms on Pillow images, without torchvision.
"""

import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from openblip.data.augmentation import Augmentation
from openblip.data.images import UndecodedImage, open_image
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

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels."""

_DIVISORS = (8, 4, 2, 1)
_ASPECT_RANGE = (3 / 4, 4 / 3)
_CROP_ATTEMPTS = 10


def eval_transform(image: Image.Image, size: int) -> Tensor:
    """Returns the RGB image resized to a square and normalised: float32 (3, size, size).

    The aspect is ignored, as in the original: nothing is cropped away.
    """
    return to_tensor(_resized(image, size))


def train_transform(
    image: Image.Image | UndecodedImage, size: int, augmentation: Augmentation, generator: Draws
) -> Tensor:
    """Returns the RGB image cropped, mirrored, augmented and normalised: float32 (3, size, size).

    The steps and their order are the original's (BLIP, section 4.1).

    Args:
        image: RGB, of any size. One that is not yet decoded is decoded at a half, a quarter or an
            eighth of its size where the crop still has `size` pixels then; the crop is the same.
        size: height and width of the result.
        augmentation: what to do.
        generator: the only source of randomness.
    """
    box = random_crop_box(image.width, image.height, augmentation.min_scale, generator)
    divisor = 1
    if isinstance(image, UndecodedImage):
        wanted, width = _divisor(box, size), image.width
        image = image.decoded(wanted)
        divisor = 1 if image.width == width else wanted
    image = _resized_crop(image, box, divisor, size)
    if augmentation.flip and generator.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if augmentation.randaugment:
        image = rand_augment(image, augmentation.num_operations, augmentation.magnitude, generator)
    return to_tensor(image)


def random_crop_box(width: int, height: int, min_scale: float, draws: Draws) -> Box:
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
    values = np.empty((3, image.height, image.width), dtype=np.float32)
    # By numpy, which stays in the calling thread.
    statistics = zip(values, image.split(), IMAGE_MEAN, IMAGE_STD, strict=True)
    for channel, pixels, mean, std in statistics:
        np.divide(np.asarray(pixels), np.float32(255), out=channel)
        channel -= np.float32(mean)
        channel /= np.float32(std)
    return torch.from_numpy(values)


def _resized(image: Image.Image, size: int) -> Image.Image:
    return image.resize((size, size), Image.Resampling.BICUBIC)


def _divisor(box: Box, size: int) -> int:
    """By how much an image may be decoded smaller so that nothing of its crop is enlarged."""
    left, top, right, bottom = box
    side = min(right - left, bottom - top)
    return next(divisor for divisor in _DIVISORS if divisor == 1 or side >= divisor * size)


def _resized_crop(image: Image.Image, box: Box, divisor: int, size: int) -> Image.Image:
    """Returns the crop of an image that was decoded at 1 / `divisor` of its size, resized.

    The box counts pixels of the whole image, and may begin and end within one of the decoded.
    """
    left, top, right, bottom = (side / divisor for side in box)
    # Not `Image.crop`, which warns of large crops; and cut before resizing, so that the filter
    # sees nothing from outside the crop.
    first_x, first_y = int(left), int(top)
    crop = Image.new("RGB", (math.ceil(right) - first_x, math.ceil(bottom) - first_y))
    crop.paste(image, (-first_x, -first_y))
    inner = (left - first_x, top - first_y, right - first_x, bottom - first_y)
    return crop.resize((size, size), Image.Resampling.BICUBIC, inner)
