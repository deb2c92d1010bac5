"""The image encoder: positions at other sizes, drop path, recomputed activations."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from openblip.model import MedConfig
from openblip.model.vision import DropPath, ImageEncoder, interpolate_positions


@pytest.fixture
def encoder(config: MedConfig, redraw: Callable[[nn.Module], None]) -> ImageEncoder:
    encoder = ImageEncoder(config.vision)
    redraw(encoder)
    return encoder.eval()


class TestPositions:
    def test_the_same_grid_gives_the_same_tensor(self) -> None:
        positions = torch.randn(1, 17, 8)
        assert interpolate_positions(positions, (4, 4)) is positions

    @pytest.mark.parametrize("grid", [(6, 6), (2, 2), (3, 5)])
    def test_the_class_tokens_position_is_kept(self, grid: tuple[int, int]) -> None:
        positions = torch.randn(1, 17, 8)
        resized = interpolate_positions(positions, grid)
        assert resized.shape == (1, grid[0] * grid[1] + 1, 8)
        assert torch.equal(resized[:, 0], positions[:, 0])

    def test_equal_positions_stay_equal(self) -> None:
        positions = torch.full((1, 17, 8), 0.5)
        assert torch.allclose(interpolate_positions(positions, (7, 3)), torch.tensor(0.5))

    def test_rows_and_columns_are_not_exchanged(self) -> None:
        row_numbers = torch.arange(4.0).repeat_interleave(4)
        positions = torch.cat([torch.zeros(1), row_numbers])[None, :, None]
        rows = interpolate_positions(positions, (8, 4))[0, 1:, 0].view(8, 4)
        assert torch.allclose(rows, rows[:, :1].expand(8, 4), atol=1e-6)
        assert all(above < below for above, below in pairwise(rows[:, 0].tolist()))

    def test_a_whole_factor_down_and_up_keeps_a_smooth_map(self) -> None:
        x = torch.linspace(0, 1, 16)
        smooth = (x[:, None] + 2 * x).flatten()
        positions = torch.cat([torch.zeros(1), smooth])[None, :, None]
        there = interpolate_positions(positions, (32, 32))
        back = interpolate_positions(there, (16, 16))
        assert torch.allclose(back, positions, atol=0.05)

    def test_images_of_any_size_in_patches_are_encoded(self, encoder: ImageEncoder) -> None:
        assert encoder(torch.randn(2, 3, 48, 16)).shape == (2, 6 * 2 + 1, 24)

    def test_gradients_reach_the_learned_positions(self, encoder: ImageEncoder) -> None:
        encoder(torch.randn(1, 3, 48, 48)).sum().backward()
        assert encoder.positions.grad is not None
        assert (encoder.positions.grad != 0).any(dim=-1).all()


class TestDropPath:
    def test_it_does_nothing_in_evaluation(self) -> None:
        branch = torch.randn(4, 5, 6)
        assert DropPath(0.9).eval()(branch) is branch

    def test_whole_samples_are_dropped_and_the_rest_scaled(self) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            dropped = DropPath(0.25).train()(torch.ones(1000, 2, 3))
        kept = dropped[:, 0, 0] != 0
        assert torch.equal(dropped[kept], torch.full_like(dropped[kept], 1 / 0.75))
        assert torch.equal(dropped[~kept], torch.zeros_like(dropped[~kept]))
        assert kept.float().mean() == pytest.approx(0.75, abs=0.05)

    def test_the_rate_grows_linearly_with_depth(self, config: MedConfig) -> None:
        encoder = ImageEncoder(replace(config.vision, drop_path=0.2))
        rates = [m.probability for m in encoder.modules() if isinstance(m, DropPath)]
        assert rates == pytest.approx([0.0, 0.1, 0.2])

    def test_a_skipped_block_passes_its_input_on(self, encoder: ImageEncoder) -> None:
        block = encoder.blocks[0].train()
        block.drop_path.probability = 0.999999
        hidden = torch.randn(2, 5, 24)
        assert torch.equal(block(hidden), hidden)


@pytest.mark.parametrize("checkpointed", [1, 3])
def test_recomputed_activations_change_neither_output_nor_gradient(
    encoder: ImageEncoder, images: Tensor, checkpointed: int
) -> None:
    def output_and_gradients(checkpoint_layers: int) -> tuple[Tensor, list[Tensor]]:
        encoder.config = replace(encoder.config, checkpoint_layers=checkpoint_layers)
        encoder.zero_grad()
        output = encoder.train()(images)
        output.square().sum().backward()
        return output, [p.grad.clone() for p in encoder.parameters() if p.grad is not None]

    output, gradients = output_and_gradients(0)
    again, gradients_again = output_and_gradients(checkpointed)
    assert torch.equal(again, output)
    assert len(gradients) == len(list(encoder.parameters()))
    for gradient, other in zip(gradients, gradients_again, strict=True):
        assert torch.equal(gradient, other)


def test_recomputed_activations_draw_the_same_drop_path(
    config: MedConfig, redraw: Callable[[nn.Module], None], images: Tensor
) -> None:
    def gradient(checkpoint_layers: int) -> Tensor:
        vision = replace(config.vision, drop_path=0.5, checkpoint_layers=checkpoint_layers)
        encoder = ImageEncoder(vision).train()
        redraw(encoder)
        with torch.random.fork_rng():
            torch.manual_seed(3)
            encoder(images).square().sum().backward()
        assert encoder.class_token.grad is not None
        return encoder.class_token.grad

    assert torch.equal(gradient(0), gradient(3))


def test_images_of_a_batch_do_not_touch_each_other(encoder: ImageEncoder, images: Tensor) -> None:
    together = encoder(images)
    for number in range(len(images)):
        alone = encoder(images[number : number + 1])
        assert torch.allclose(together[number : number + 1], alone, atol=1e-5)


class TestPatches:
    @pytest.mark.parametrize("extra", [0, 3])
    def test_their_product_is_the_strided_convolution(
        self, encoder: ImageEncoder, extra: int
    ) -> None:
        size = encoder.config.patch_size
        images = torch.randn(2, 3, 3 * size + extra, 2 * size + extra)
        patches, grid = encoder._embed_patches(images)
        convolved = encoder.patch_embed(images)
        assert grid == tuple(convolved.shape[2:])
        expected = convolved.flatten(2).transpose(1, 2)
        torch.testing.assert_close(patches, expected, atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("count", [1, 2, 5])
    def test_a_batch_gives_what_its_images_give_alone(
        self, encoder: ImageEncoder, count: int
    ) -> None:
        side = encoder.config.image_size
        images = torch.randn(count, 3, side, side)
        with_gradient = encoder(images)
        with torch.no_grad():
            together = encoder(images)
            alone = torch.cat([encoder(image[None]) for image in images])
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(together, with_gradient, atol=1e-5, rtol=1e-5)


def test_the_class_token_alone_is_that_among_all_patches(
    encoder: ImageEncoder, images: Tensor
) -> None:
    expected = torch.autograd.grad(encoder(images)[:, :1].sum(), encoder.positions)[0]
    alone = encoder(images, 1)
    assert alone.shape[1] == 1
    torch.testing.assert_close(alone, encoder(images)[:, :1], atol=1e-5, rtol=1e-5)
    found = torch.autograd.grad(alone.sum(), encoder.positions)[0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(encoder(images, 1), alone, atol=1e-5, rtol=1e-5)
