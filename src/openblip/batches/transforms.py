"""Images to the tensors that the model takes, for evaluation and for training.

Equal to torchvision's transforms on Pillow images, without torchvision. RandAugment has the ten
operations of BLIP's training (Cubuk et al. 2020, arXiv:1909.13719): the original's work with
OpenCV, ours give the same bytes with Pillow and numpy.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple, cast

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torch import Tensor

from openblip.batches.augmentation import MAX_MAGNITUDE, Augmentation
from openblip.sources.images import UndecodedImage

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


Draws = np.random.Generator | np.random.RandomState


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


"""Source of random numbers. The legacy `RandomState` replays draws of the original code."""

AffineRow = tuple[float, float, float]

_FILL = 128
_FILL_COLOR = (_FILL, _FILL, _FILL)
_APPLY_PROBABILITY = 0.5

# OpenCV's affine warp: positions in 1/1024 px, rounded to 1/32 px for the bilinear weights.
_POSITION_BITS = 10
_WEIGHT_BITS = 5
_POSITION_ONE = 1 << _POSITION_BITS
_ONE, _ONE_16 = np.uint64(1 << _WEIGHT_BITS), np.uint16(1 << _WEIGHT_BITS)
# Half of 1/32 px is added so that the shift rounds to the nearest.
_ROUNDING = 1 << (_POSITION_BITS - _WEIGHT_BITS - 1)
# A pixel travels as one integer with 20 bits per channel, which hold 255 * 32 * 32 and rounding.
_CHANNEL_SHIFTS = (0, 20, 40)
_PACKED_ONE = np.uint64(sum(1 << shift for shift in _CHANNEL_SHIFTS))
# Fill around the packed image, so that positions outside need no test.
_RING = 2
# Numbers in one array of a band; with 8 bytes each it is still taken from memory that is in use.
_BAND_PIXELS = 16384


class Operation(NamedTuple):
    """One operation of RandAugment and its argument at a magnitude."""

    name: str
    apply: Callable[[Image.Image, float], Image.Image]
    """Takes an RGB image and the argument; gives an image of the same size."""
    gain: float = 0.0
    """Argument at the largest magnitude, less `offset`."""
    offset: float = 0.0
    """Argument at magnitude 0."""
    negative_above: bool | None = None
    """Which draws turn the argument negative: above 0.5, below 0.5, or none (no draw is made)."""

    def argument(self, magnitude: float, draws: Draws) -> float:
        """Returns the argument for `apply`, with a random sign if the operation has a direction."""
        value = magnitude / MAX_MAGNITUDE * self.gain + self.offset
        if self.negative_above is None:
            return value
        draw = draws.random()
        negative = draw > 0.5 if self.negative_above else draw < 0.5
        return -value if negative else value


def rand_augment(
    image: Image.Image, num_operations: int, magnitude: float, draws: Draws
) -> Image.Image:
    """Returns the RGB image after `num_operations` random operations, each skipped half the time.

    The order of draws is the original's: all operations at once (with repetition), then for each
    one whether to apply it and, if it has a direction, its sign.

    Args:
        image: RGB.
        num_operations: N; 2 in BLIP.
        magnitude: M from 0 to 10; 5 in BLIP, where brightness and sharpness change nothing.
        draws: random numbers.
    """
    for index in draws.choice(len(OPERATIONS), num_operations):
        operation = OPERATIONS[int(index)]
        if draws.random() <= _APPLY_PROBABILITY:
            image = operation.apply(image, operation.argument(magnitude, draws))
    return image


def identity(image: Image.Image, _: float = 0.0) -> Image.Image:
    """Returns the image itself."""
    return image


def auto_contrast(image: Image.Image, _: float = 0.0) -> Image.Image:
    """Returns the image with the values of each channel stretched to 0..255.

    As in the original, a channel without a 0 turns nearly white: its minimum is negated as an
    unsigned byte there, which adds 256 to every value before the stretch.
    """
    table: list[int] = []
    for low, high in cast("tuple[tuple[int, int], ...]", image.getextrema()):
        scale = 255 / (high - low) if high > low else 1.0
        shift = (-low % 256) * scale if high > low else 0.0
        table.extend(min(int(value * scale + shift), 255) for value in range(256))
    return image.point(table)


def equalize(image: Image.Image, _: float = 0.0) -> Image.Image:
    """Returns the image with the histogram of each channel made flat."""
    return ImageOps.equalize(image)


def brightness(image: Image.Image, factor: float) -> Image.Image:
    """Returns the image times `factor`, cut off at 255."""
    return ImageEnhance.Brightness(image).enhance(factor)


def sharpness(image: Image.Image, factor: float) -> Image.Image:
    """Returns the image blurred (`factor` 0), unchanged (1) or sharpened (above 1).

    As in the original, values that leave 0..255 wrap around, and the border stays as it is.
    """
    if factor == 1.0:
        return image
    blurred = np.asarray(image.filter(ImageFilter.SMOOTH), dtype=np.float32)
    sharp = blurred + np.float32(factor) * (np.asarray(image, dtype=np.float32) - blurred)
    return Image.fromarray(sharp.astype(np.int32).astype(np.uint8))


def translate_x(image: Image.Image, pixels: float) -> Image.Image:
    """Returns the image moved to the left by `pixels`, rounded to whole ones."""
    return _moved(image, -round(pixels), 0)


def translate_y(image: Image.Image, pixels: float) -> Image.Image:
    """Returns the image moved up by `pixels`, rounded to whole ones."""
    return _moved(image, 0, -round(pixels))


def shear_x(image: Image.Image, slope: float) -> Image.Image:
    """Returns the image with each row moved to the right by `slope` times its y."""
    return _sheared(image, slope)


def shear_y(image: Image.Image, slope: float) -> Image.Image:
    """Returns the image with each column moved down by `slope` times its x."""
    turned = _sheared(image.transpose(Image.Transpose.TRANSPOSE), slope)
    return turned.transpose(Image.Transpose.TRANSPOSE)


def rotate(image: Image.Image, degrees: float) -> Image.Image:
    """Returns the image turned counter-clockwise around (width / 2, height / 2)."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = image.width / 2, image.height / 2
    return _warped(image, (cos, -sin, x - cos * x + sin * y), (sin, cos, y - sin * x - cos * y))


OPERATIONS = (
    Operation("Identity", identity),
    Operation("AutoContrast", auto_contrast),
    Operation("Brightness", brightness, gain=1.8, offset=0.1),
    Operation("Sharpness", sharpness, gain=1.8, offset=0.1),
    Operation("Equalize", equalize),
    Operation("ShearX", shear_x, gain=0.3, negative_above=True),
    Operation("ShearY", shear_y, gain=0.3, negative_above=True),
    Operation("TranslateX", translate_x, gain=10.0, negative_above=True),
    Operation("TranslateY", translate_y, gain=10.0, negative_above=True),
    Operation("Rotate", rotate, gain=30.0, negative_above=False),
)
"""The operations, in the order that the draws of `rand_augment` count them."""


def _moved(image: Image.Image, right: int, down: int) -> Image.Image:
    moved = Image.new("RGB", image.size, _FILL_COLOR)
    moved.paste(image, (right, down))
    return moved


def _sheared(image: Image.Image, slope: float) -> Image.Image:
    """Returns the image with each row moved to the right by `slope` times its y, as `_warped` does.

    All pixels of a row move alike: a row is one piece of memory, blended with its neighbour.
    """
    pixels = np.asarray(image)
    height, width, channels = pixels.shape
    shift = -slope * np.arange(height) * _POSITION_ONE
    position = (np.rint(shift).astype(np.int64) + _ROUNDING) >> (_POSITION_BITS - _WEIGHT_BITS)
    weight = (position & ((1 << _WEIGHT_BITS) - 1)).astype(np.uint16)[:, None]
    # Beyond the image there is fill only.
    whole = np.clip(position >> _WEIGHT_BITS, -width - 1, width)
    before, after = max(0, -int(whole.min())), max(0, int(whole.max()) + 1)
    framed = np.full((height, before + width + after, channels), _FILL, dtype=np.uint8)
    framed[:, before : before + width] = pixels
    begin = (np.arange(height) * framed.shape[1] + before + whole) * channels
    pieces = sliding_window_view(framed.ravel(), (width + 1) * channels)
    sheared = np.empty((height, width * channels), dtype=np.uint8)
    for band in _bands(height, width):
        piece = pieces[begin[band]].astype(np.uint16)
        blended = piece[:, :-channels] * (_ONE_16 - weight[band])
        blended += piece[:, channels:] * weight[band]
        blended += 1 << (_WEIGHT_BITS - 1)
        blended >>= _WEIGHT_BITS
        sheared[band] = blended
    return Image.fromarray(sheared.reshape(pixels.shape))


def _warped(image: Image.Image, x_row: AffineRow, y_row: AffineRow) -> Image.Image:
    """Returns the image whose pixel (x, y) is read bilinearly at (x_row, y_row) . (x, y, 1).

    Bit for bit OpenCV's fixed-point arithmetic; pixels outside count as 128, also in the blend
    along the border.
    """
    packed = _packed(image)
    width, height = image.size
    pixels = np.empty((height, width, 3), dtype=np.uint8)
    for band in _bands(height, width):
        rows = np.arange(band.start, band.stop)
        x, x_weight = _source_positions(x_row, width, rows)
        y, y_weight = _source_positions(y_row, width, rows)
        # What lies beyond the ring looks like the ring.
        first = np.clip(y, -_RING, height) * packed.shape[1] + np.clip(x, -_RING, width)
        first += _RING * packed.shape[1] + _RING
        total = _blend(packed, first, x_weight) * (_ONE - y_weight)
        total += _blend(packed, first + packed.shape[1], x_weight) * y_weight
        _unpack(total, pixels[band])
    return Image.fromarray(pixels)


def _bands(height: int, width: int) -> Iterator[slice]:
    """Yields ranges of rows; what is computed of one of them stays in the processor's cache."""
    band = max(1, _BAND_PIXELS // width)
    for top in range(0, height, band):
        yield slice(top, min(top + band, height))


def _source_positions(
    row: AffineRow, width: int, rows: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """Returns whole pixels and remainders in 1/32 px for those rows, both (rows, width)."""
    per_x, per_y, constant = row
    along_x = np.rint(np.arange(width) * per_x * _POSITION_ONE).astype(np.int64)
    along_y = np.rint((rows * per_y + constant) * _POSITION_ONE).astype(np.int64)
    position = (along_y[:, None] + _ROUNDING + along_x) >> (_POSITION_BITS - _WEIGHT_BITS)
    return position >> _WEIGHT_BITS, (position & ((1 << _WEIGHT_BITS) - 1)).astype(np.uint64)


def _packed(image: Image.Image) -> NDArray[np.uint64]:
    """Returns one integer per pixel, with a ring of fill around: (height + 4, width + 4)."""
    pixels = np.asarray(image)
    height, width, _ = pixels.shape
    packed = np.full((height + 2 * _RING, width + 2 * _RING), _FILL * _PACKED_ONE, dtype=np.uint64)
    inner = packed[_RING:-_RING, _RING:-_RING]
    inner[...] = pixels[..., 2]
    for channel in (1, 0):
        inner <<= np.uint64(_CHANNEL_SHIFTS[1])
        inner |= pixels[..., channel]
    return packed


def _blend(
    packed: NDArray[np.uint64], left: NDArray[np.int64], weight: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    flat = packed.ravel()
    blended: NDArray[np.uint64] = flat.take(left) * (_ONE - weight) + flat.take(left + 1) * weight
    return blended


def _unpack(total: NDArray[np.uint64], out: NDArray[np.uint8]) -> None:
    bits = 2 * _WEIGHT_BITS
    total += (1 << (bits - 1)) * _PACKED_ONE
    for channel, shift in enumerate(_CHANNEL_SHIFTS):
        out[..., channel] = total >> (shift + bits)
