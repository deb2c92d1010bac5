"""The image encoder and the text encoder alone give what the original gives."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from openblip.model import Med, TextPass
from openblip.model.vision import interpolate_positions

pytestmark = pytest.mark.golden

TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def towers(golden: Callable[[str], Any]) -> Any:
    return golden("towers")


@pytest.fixture(scope="module")
def med(towers: Any) -> Med:
    return towers.med().eval()


def outputs_of(module: torch.nn.Module, into: list[Tensor]) -> None:
    module.register_forward_hook(lambda _module, _args, output: into.append(output.detach()))


def test_the_sizes_told_by_the_shapes_are_those_of_the_original(towers: Any) -> None:
    told = towers.converted.config
    assert told.vision == towers.vision_config
    # Dropout leaves no trace in a checkpoint.
    assert replace(told.text, dropout=towers.text_config.dropout) == towers.text_config


def test_patch_embedding(towers: Any, med: Med) -> None:
    patches = med.image_encoder.patch_embed(towers["image"]).flatten(2).transpose(1, 2)
    assert towers.error(patches, "patch_embed") < TOLERANCE


def test_image_encoder(towers: Any, med: Med) -> None:
    assert towers.error(med.encode_images(towers["image"]), "vit_output") < TOLERANCE


@pytest.mark.parametrize("size", [96, 48])
def test_positions_at_another_image_size(towers: Any, med: Med, size: int) -> None:
    side = size // med.config.vision.patch_size
    positions = interpolate_positions(med.image_encoder.positions, (side, side))
    assert towers.error(positions, f"pos_embed_{size}") < TOLERANCE


def test_image_encoder_at_96_px(towers: Any, med: Med) -> None:
    assert towers.error(med.encode_images(towers["image96"]), "vit_output_96") < TOLERANCE


def test_every_layer_of_the_unimodal_text_encoder(towers: Any) -> None:
    med = towers.med().eval()
    hidden: list[Tensor] = []
    outputs_of(med.text.embeddings, hidden)
    for layer in med.text.layers:
        outputs_of(layer, hidden)
    (output,) = med.text(TextPass(towers["input_ids"], towers.mask("attention_mask")))
    assert towers.error(output, "text_output") < TOLERANCE
    assert len(hidden) == med.config.text.depth + 1
    for number, states in enumerate(hidden):
        # Layers take the tokens of all texts one behind the other.
        assert towers.error(states.view_as(output), f"text_hidden.{number}") < TOLERANCE


def test_image_grounded_text_encoder(towers: Any, med: Med) -> None:
    ids = towers["multimodal_input_ids"]
    memory = med.memories(towers["vit_output"]).encoder
    mask = towers.mask("attention_mask")[: len(ids)]
    (output,) = med.text(TextPass(ids, mask, memory))
    assert towers.error(output, "multimodal_output") < TOLERANCE
