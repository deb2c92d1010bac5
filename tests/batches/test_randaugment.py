"""RandAugment: each operation by hand-computed cases, and the rule of the random draws."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from openblip.batches import transforms as randaugment
from openblip.batches.transforms import OPERATIONS, Operation, rand_augment


def image_of(values):
    """An RGB image whose three channels hold `values`."""
    return Image.fromarray(np.repeat(np.array(values, dtype=np.uint8)[..., None], 3, axis=2))


def values_of(image):
    """The red channel, after a look at whether all channels are equal."""
    pixels = np.asarray(image)
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0].tolist()


@pytest.fixture
def photo():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8))


class TestOperations:
    @pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
    def test_size_and_mode_stay_and_the_input_is_not_changed(self, operation, photo):
        before = photo.tobytes()
        changed = operation.apply(photo, operation.argument(5, np.random.default_rng(0)))
        assert (changed.size, changed.mode) == (photo.size, "RGB")
        assert photo.tobytes() == before

    @pytest.mark.parametrize("name", ["brightness", "sharpness"])
    def test_factor_1_changes_nothing(self, name, photo):
        assert getattr(randaugment, name)(photo, 1.0).tobytes() == photo.tobytes()

    @pytest.mark.parametrize("name", ["shear_x", "shear_y", "translate_x", "translate_y", "rotate"])
    def test_no_movement_changes_nothing(self, name, photo):
        assert getattr(randaugment, name)(photo, 0.0).tobytes() == photo.tobytes()

    def test_auto_contrast_stretches_from_0(self):
        assert values_of(randaugment.auto_contrast(image_of([[0, 20, 51]]))) == [[0, 100, 255]]

    def test_auto_contrast_whitens_what_holds_no_0_as_the_original_does(self):
        assert values_of(randaugment.auto_contrast(image_of([[10, 20, 61]]))) == [[255, 255, 255]]

    def test_auto_contrast_leaves_one_colour_alone(self):
        assert values_of(randaugment.auto_contrast(image_of([[7, 7]]))) == [[7, 7]]

    def test_equalize_spreads_the_values_evenly(self):
        image = image_of([[100, 101, 102, 103]] * 300)
        assert values_of(randaugment.equalize(image))[0] == [0, 100, 200, 255]

    def test_brightness_multiplies_and_cuts_off(self):
        assert values_of(randaugment.brightness(image_of([[0, 10, 200]]), 1.5)) == [[0, 15, 255]]

    def test_sharpness_goes_away_from_the_blurred_image(self):
        edge = image_of([[50, 50, 115, 115]] * 4)
        # Three of the 13 parts of the blur at (1, 1) are 115: it is 65, and 50 lies 15 below.
        assert values_of(randaugment.sharpness(edge, 0.0))[1][1] == 65
        assert values_of(randaugment.sharpness(edge, 2.0))[1][1] == 35
        assert values_of(randaugment.sharpness(edge, 2.0))[0] == [50, 50, 115, 115]

    def test_sharpness_wraps_around_as_the_original_does(self):
        edge = image_of([[0, 0, 65, 65]] * 4)
        assert values_of(randaugment.sharpness(edge, 2.0))[1][1] == 256 - 15

    def test_translation_moves_left_and_up_and_fills_with_grey(self):
        image = image_of([[1, 2, 3], [4, 5, 6]])
        assert values_of(randaugment.translate_x(image, 1.0)) == [[2, 3, 128], [5, 6, 128]]
        assert values_of(randaugment.translate_x(image, -2.0)) == [[128, 128, 1], [128, 128, 4]]
        assert values_of(randaugment.translate_y(image, 1.0)) == [[4, 5, 6], [128, 128, 128]]

    def test_shear_blends_neighbours_and_the_grey_outside(self):
        image = image_of([[0, 0, 0], [0, 64, 0], [0, 0, 0]])
        # Row 1 moves by half a pixel, row 2 by one.
        assert values_of(randaugment.shear_x(image, 0.5)) == [[0, 0, 0], [64, 32, 32], [128, 0, 0]]
        assert values_of(randaugment.shear_y(image, 0.5)) == [[0, 64, 128], [0, 32, 0], [0, 32, 0]]

    @settings(deadline=None, max_examples=40)
    @given(
        width=st.integers(1, 60),
        height=st.integers(1, 60),
        slope=st.sampled_from([0.0, 0.15, -0.15, 1.0, -1.0]) | st.floats(-3, 3),
        seed=st.integers(0, 1000),
    )
    def test_a_shear_equals_the_general_warp(self, width, height, slope, seed):
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        image = Image.fromarray(pixels)
        along_x = randaugment._warped(image, (1.0, -slope, 0.0), (0.0, 1.0, 0.0))
        along_y = randaugment._warped(image, (1.0, 0.0, 0.0), (-slope, 1.0, 0.0))
        assert randaugment.shear_x(image, slope).tobytes() == along_x.tobytes()
        assert randaugment.shear_y(image, slope).tobytes() == along_y.tobytes()

    def test_a_large_image_is_warped_in_one_piece(self):
        """Where the bands meet, nothing shows."""
        ramp = np.arange(300, dtype=np.uint8)[:, None] // 2 + np.zeros((300, 200), np.uint8)
        turned = np.asarray(randaugment.rotate(image_of(ramp), 10.0))[60:240, 60:140, 0]
        steps = np.diff(turned.astype(int), axis=0)
        assert set(np.unique(steps)) <= {0, 1}

    def test_rotation_turns_counter_clockwise_about_half_the_size(self):
        image = image_of([[1, 2], [3, 4]])
        assert values_of(randaugment.rotate(image, 90.0)) == [[128, 128], [2, 4]]
        assert values_of(randaugment.rotate(image, -90.0)) == [[128, 3], [128, 4]]


class TestArguments:
    @pytest.mark.parametrize(
        ("name", "at_5", "at_10"),
        [
            ("Brightness", 1.0, 1.9),
            ("Sharpness", 1.0, 1.9),
            ("ShearX", 0.15, 0.3),
            ("ShearY", 0.15, 0.3),
            ("TranslateX", 5.0, 10.0),
            ("TranslateY", 5.0, 10.0),
            ("Rotate", 15.0, 30.0),
        ],
    )
    def test_they_grow_with_the_magnitude(self, name, at_5, at_10):
        operation = next(entry for entry in OPERATIONS if entry.name == name)
        draws = np.random.default_rng(0)
        assert abs(operation.argument(5, draws)) == pytest.approx(at_5)
        assert abs(operation.argument(10, draws)) == pytest.approx(at_10)

    def test_directions_take_both_signs(self):
        draws = np.random.default_rng(0)
        directed = [entry for entry in OPERATIONS if entry.negative_above is not None]
        assert [entry.name for entry in directed] == [
            "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate",
        ]  # fmt: skip
        for operation in directed:
            signs = [operation.argument(5, draws) > 0 for _ in range(200)]
            assert 60 < sum(signs) < 140


class TestRandAugment:
    def test_the_same_seed_gives_the_same_image(self, photo):
        first, second = (
            [rand_augment(photo, 2, 5, generator).tobytes() for _ in range(10)]
            for generator in (np.random.default_rng(3), np.random.default_rng(3))
        )
        assert first == second
        assert len(set(first)) > 3

    def test_no_operation_no_change(self, photo):
        assert rand_augment(photo, 0, 5, np.random.default_rng(0)) is photo

    def test_all_operations_occur_and_half_of_them_are_skipped(self, photo, monkeypatch):
        applied = []

        def recorded(operation: Operation) -> Operation:
            return operation._replace(
                apply=lambda image, _: applied.append(operation.name) or image
            )

        monkeypatch.setattr(randaugment, "OPERATIONS", tuple(map(recorded, OPERATIONS)))
        draws = np.random.default_rng(0)
        for _ in range(500):
            rand_augment(photo, 2, 5, draws)
        assert 430 < len(applied) < 570
        assert {name: applied.count(name) > 25 for name in set(applied)} == {
            operation.name: True for operation in OPERATIONS
        }
