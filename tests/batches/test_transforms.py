"""Images to tensors: for evaluation by closed form, for training by invariants."""

import io

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from openblip.batches.augmentation import Augmentation
from openblip.batches.transforms import (
    IMAGE_MEAN,
    IMAGE_STD,
    eval_transform,
    random_crop_box,
    to_tensor,
    train_transform,
)
from openblip.sources.images import UndecodedImage, open_image

NOTHING = Augmentation(min_scale=1.0, flip=False, randaugment=False)


@pytest.fixture
def photo():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8))


class TestEvaluation:
    def test_a_colour_is_normalised_by_mean_and_deviation(self):
        image = Image.new("RGB", (2, 1), (255, 51, 0))
        expected = [
            (1.0, 0.2, 0.0)[c] / IMAGE_STD[c] - IMAGE_MEAN[c] / IMAGE_STD[c] for c in range(3)
        ]
        tensor = to_tensor(image)
        assert (tensor.shape, tensor.dtype) == ((3, 1, 2), torch.float32)
        torch.testing.assert_close(tensor[:, 0, 0], torch.tensor(expected))

    def test_the_whole_image_becomes_a_square(self, photo):
        tensor = eval_transform(photo, 32)
        resized = photo.resize((32, 32), Image.Resampling.BICUBIC)
        assert tensor.shape == (3, 32, 32)
        assert torch.equal(tensor, to_tensor(resized))

    def test_rows_are_height_and_columns_width(self):
        image = Image.new("RGB", (4, 4), "black")
        image.paste("white", (0, 0, 4, 1))
        tensor = eval_transform(image, 4)
        assert (tensor[:, 0] > 0).all()
        assert (tensor[:, 1:] < 0).all()


class TestTraining:
    def test_the_generator_decides_everything(self, photo):
        first, second, other = (
            train_transform(photo, 32, Augmentation(), np.random.default_rng(seed))
            for seed in (1, 1, 2)
        )
        assert (first.shape, first.dtype) == ((3, 32, 32), torch.float32)
        assert torch.equal(first, second)
        assert not torch.equal(first, other)

    def test_the_image_is_not_changed(self, photo):
        before = photo.tobytes()
        for seed in range(20):
            train_transform(photo, 32, Augmentation(), np.random.default_rng(seed))
        assert photo.tobytes() == before

    def test_a_square_without_augmentation_is_as_in_evaluation(self):
        square = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
        # Of a square, the full area fits only with an aspect of 1, or as the fallback.
        tensor = train_transform(square, 8, NOTHING, np.random.default_rng(0))
        assert torch.equal(tensor, eval_transform(square, 8))

    def test_half_of_the_images_are_mirrored(self):
        left_dark = Image.new("RGB", (8, 8), "white")
        left_dark.paste("black", (0, 0, 4, 8))
        flips = Augmentation(min_scale=1.0, flip=True, randaugment=False)
        generator = np.random.default_rng(0)
        dark = [
            bool(train_transform(left_dark, 8, flips, generator)[0, 0, 0] < 0) for _ in range(100)
        ]
        assert 30 < sum(dark) < 70

    def test_nothing_from_outside_the_crop_shines_in(self):
        image = Image.new("RGB", (40, 40), "white")
        generator = np.random.default_rng(5)
        small = Augmentation(min_scale=0.05, flip=False, randaugment=False)
        left, top, right, bottom = random_crop_box(40, 40, 0.05, np.random.default_rng(5))
        image.paste("black", (left, top, right, bottom))
        tensor = train_transform(image, 8, small, generator)
        black = eval_transform(Image.new("RGB", (8, 8), "black"), 8)
        assert torch.equal(tensor, black)

    def test_randaugment_is_applied_after_cropping(self, photo):
        plain = Augmentation(flip=False, randaugment=False)
        augmented = Augmentation(flip=False, randaugment=True, num_operations=4, magnitude=10)
        pairs = [
            [train_transform(photo, 32, a, np.random.default_rng(s)) for a in (plain, augmented)]
            for s in range(10)
        ]
        assert any(not torch.equal(without, with_) for without, with_ in pairs)


class TestScaledDecoding:
    @pytest.fixture
    def encoded(self):
        x, y = np.meshgrid(np.linspace(0, 255, 400), np.linspace(0, 255, 300))
        stream = io.BytesIO()
        pixels = np.stack([x, y, 255 - x], axis=-1).astype(np.uint8)
        Image.fromarray(pixels).save(stream, "JPEG", quality=95)
        return stream.getvalue()

    @pytest.mark.parametrize(("size", "most"), [(30, 0.06), (100, 0.06), (224, 0.0)])
    def test_the_same_crop_is_taken_from_the_smaller_image(self, encoded, size, most):
        """Without a difference where no crop has twice the pixels that are wanted."""
        augmentation = Augmentation(min_scale=0.3, randaugment=False)
        for seed in range(20):
            whole, scaled = (
                train_transform(image, size, augmentation, np.random.default_rng(seed))
                for image in (open_image(encoded), UndecodedImage(encoded))
            )
            # In units of the standard deviation, of which the picture has about four.
            assert (whole - scaled).abs().mean() <= most

    def test_nothing_is_enlarged_that_would_not_be_otherwise(self, encoded):
        divisors, small_crops = [], Augmentation(min_scale=0.2)

        class Recorded(UndecodedImage):
            def decoded(self, divisor=1):
                divisors.append(divisor)
                return super().decoded(divisor)

        for seed in range(30):
            draws = np.random.default_rng(seed)
            left, top, right, bottom = random_crop_box(400, 300, 0.2, draws)
            train_transform(Recorded(encoded), 64, small_crops, np.random.default_rng(seed))
            side = min(right - left, bottom - top)
            assert divisors[-1] == 1 or side / divisors[-1] >= 64 > side / divisors[-1] / 2
        assert {2, 4} <= set(divisors)


class TestCropBox:
    @settings(deadline=None, max_examples=60)
    @example(width=1, height=1, min_scale=0.2, seed=0)
    @example(width=1, height=5000, min_scale=0.2, seed=0)
    @example(width=5000, height=1, min_scale=1.0, seed=0)
    @given(
        width=st.integers(1, 2000),
        height=st.integers(1, 2000),
        min_scale=st.floats(0.05, 1.0),
        seed=st.integers(0, 2**32 - 1),
    )
    def test_it_lies_in_the_image_and_is_not_empty(self, width, height, min_scale, seed):
        left, top, right, bottom = random_crop_box(
            width, height, min_scale, np.random.default_rng(seed)
        )
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height

    def test_area_and_aspect_keep_their_ranges(self):
        generator = np.random.default_rng(0)
        boxes = np.array([random_crop_box(500, 400, 0.2, generator) for _ in range(500)])
        sides = boxes[:, 2:] - boxes[:, :2]
        shares = sides.prod(axis=1) / (500 * 400)
        aspects = sides[:, 0] / sides[:, 1]
        assert 0.195 < shares.min() < 0.25
        assert 0.9 < shares.max() <= 1.0
        assert 0.74 < aspects.min() < 0.78
        assert 1.28 < aspects.max() < 1.34

    @pytest.mark.parametrize(
        ("size", "box"),
        [
            ((100, 1000), (0, 433, 100, 566)),
            ((900, 30), (430, 0, 470, 30)),
        ],
    )
    def test_an_extreme_image_is_cropped_in_its_middle(self, size, box):
        assert random_crop_box(*size, 0.2, np.random.default_rng(0)) == box
