"""The memory of a step, by part, beside what a step that runs really takes."""

import re
import runpy
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from openblip.batches.tokenizer import TextTokenizer
from openblip.model import Med, MedConfig, TextConfig, VisionConfig, kernels, packing
from openblip.model.albef import Albef, AlbefConfig
from openblip.model.flops import flop_counter
from openblip.objectives.settings import CaptionerObjectives
from openblip.objectives.task import StepPosition
from openblip.plan.footprint import (
    BACKWARD,
    GRADIENTS,
    IMAGES,
    LOSSES,
    MEMORY,
    MOMENTS,
    QUEUES,
    TEACHER,
    TEXT_ALONE,
    TEXT_WITH_IMAGE,
    VOCABULARY,
    WEIGHTS,
    Footprint,
    TextLengths,
    example_batch,
    step_footprint,
)
from openblip.recipes.baselines import as_albef
from openblip.recipes.pretrain import tiny
from openblip.training.build import assemble_task, overridden
from openblip.training.parallelism import Processes
from openblip.training.recipe import ModelOverrides, Recipe

LENGTHS = TextLengths(longest=16, mean=12)
CONFIG = MedConfig(
    vision=VisionConfig(image_size=64, width=128, depth=2, heads=4),
    text=TextConfig(vocab_size=300, width=128, depth=1, heads=4, ffn_width=512, max_positions=64),
    embed_dim=64,
)
CHECK = Path(__file__).resolve().parents[2] / "benchmarks" / "plan_check.py"


def footprint(
    recipe: Recipe, pairs: int = 16, lengths: TextLengths = LENGTHS, **options: Any
) -> Footprint:
    """What a step takes; the same step is counted once for all tests."""
    return _counted(recipe, pairs, lengths, tuple(sorted(options.items())))


@cache
def _counted(
    recipe: Recipe, pairs: int, lengths: TextLengths, options: tuple[tuple[str, Any], ...]
) -> Footprint:
    tokenizer = TextTokenizer.train(["a b"], 60)
    return step_footprint(recipe, tokenizer, lengths, pairs=pairs, **dict(options))


@pytest.fixture
def recipe() -> Recipe:
    return replace(tiny("none"), model=CONFIG)


def test_the_state_is_that_of_the_parameters(recipe: Recipe) -> None:
    parts = footprint(recipe).parts
    med = Med(CONFIG)
    size = sum(4 * p.numel() for p in med.parameters())
    teacher = sum(4 * p.numel() for p in Med(replace(CONFIG, heads=("itc",))).parameters())
    assert parts[WEIGHTS] == size
    # Besides the two means, a step number of each parameter.
    assert parts[MOMENTS] == 2 * size + 4 * len(list(med.parameters()))
    assert parts[TEACHER] == teacher
    assert parts[QUEUES] == 512 * (2 * 64 * 4 + 2 * 8) + 8


def test_a_frozen_image_encoder_needs_its_weights_alone(recipe: Recipe) -> None:
    whole = footprint(recipe)
    frozen = footprint(replace(recipe, train=replace(recipe.train, freeze=("image_encoder",))))
    med = Med(CONFIG)
    encoder = sum(4 * p.numel() for p in med.image_encoder.parameters())
    assert frozen.parts[WEIGHTS] == whole.parts[WEIGHTS]
    assert frozen.parts[TEACHER] == whole.parts[TEACHER] - encoder
    assert frozen.parts[MOMENTS] < whole.parts[MOMENTS] - 2 * encoder + 1
    assert IMAGES not in frozen.parts
    assert frozen.operations is not None
    assert whole.operations is not None
    assert frozen.operations < whole.operations


def test_more_pairs_need_more_activations(recipe: Recipe) -> None:
    one, two = footprint(recipe, 16).parts, footprint(recipe, 32).parts
    assert two[IMAGES] == pytest.approx(2 * one[IMAGES], rel=0.01)
    assert two[WEIGHTS] == one[WEIGHTS]


def test_checkpointed_layers_keep_less(recipe: Recipe) -> None:
    overrides = ModelOverrides(vision_checkpoint_layers=2, text_checkpoint_layers=1)
    light = footprint(replace(recipe, overrides=overrides), 32)
    whole = footprint(recipe, 32)
    assert light.parts[IMAGES] < 0.5 * whole.parts[IMAGES]
    assert light.parts[TEXT_WITH_IMAGE] < 0.5 * whole.parts[TEXT_WITH_IMAGE]
    assert light.total < whole.total


def test_gradients_of_an_earlier_part_are_there_while_the_next_computes(recipe: Recipe) -> None:
    halves = replace(recipe, train=replace(recipe.train, accumulate=2))
    assert GRADIENTS not in footprint(recipe, 32).parts
    parts = footprint(halves, 32).parts
    assert parts[GRADIENTS] == parts[WEIGHTS]


def test_negatives_of_all_ranks_are_kept_on_each(recipe: Recipe) -> None:
    everywhere = replace(recipe, objectives=replace(recipe.objectives, negatives="all_ranks"))
    alone, together = footprint(recipe, world_size=8), footprint(everywhere, world_size=8)
    assert together.total > alone.total


def test_an_accelerator_keeps_no_attention_probabilities(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A processor's products keep less and it packs texts, which are other differences; what is
    # counted with them exchanged, no other test shall find.
    monkeypatch.setattr(kernels, "is_processor_product", lambda hidden, weight: False)
    monkeypatch.setattr(packing, "removes_padding", lambda device: False)
    anew, options = _counted.__wrapped__, (("accelerator", True),)
    attention = F.scaled_dot_product_attention
    fused = anew(recipe, 16, LENGTHS, options)
    assert F.scaled_dot_product_attention is attention
    assert fused.parts[TEXT_WITH_IMAGE] < anew(recipe, 16, LENGTHS, ()).parts[TEXT_WITH_IMAGE]


def test_an_accelerator_keeps_the_padding_of_texts(recipe: Recipe) -> None:
    def text_bytes(mean: int, *, accelerator: bool) -> int:
        lengths = replace(LENGTHS, mean=mean)
        return footprint(recipe, 32, lengths, accelerator=accelerator).parts[TEXT_ALONE]

    assert text_bytes(12, accelerator=True) == text_bytes(16, accelerator=True)
    assert text_bytes(12, accelerator=False) < text_bytes(16, accelerator=False)


def test_bfloat16_halves_what_products_keep(recipe: Recipe) -> None:
    half = replace(recipe, train=replace(recipe.train, precision="bfloat16"))
    light, whole = (footprint(each, 32, accelerator=True).parts for each in (half, recipe))
    assert 0.5 * whole[IMAGES] < light[IMAGES] < 0.8 * whole[IMAGES]


def test_a_captioner_has_neither_teacher_nor_queue(recipe: Recipe) -> None:
    captioner = replace(recipe, task="captioner", objectives=CaptionerObjectives())
    parts = footprint(captioner).parts
    assert not {TEACHER, QUEUES} & set(parts)
    assert parts.keys() & {LOSSES, BACKWARD}


@pytest.fixture
def albef(recipe: Recipe) -> Recipe:
    deeper = replace(CONFIG, text=replace(CONFIG.text, depth=2))
    return as_albef(replace(recipe, model=deeper))


def test_an_albef_has_a_teacher_without_matching(albef: Recipe) -> None:
    parts = footprint(albef, 64).parts
    assert isinstance(albef.model, AlbefConfig)
    assert parts[WEIGHTS] == sum(4 * p.numel() for p in Albef(albef.model).parameters())
    assert parts[WEIGHTS] - parts[TEACHER] == 4 * (2 * 128 + 2)
    assert parts.keys() >= {IMAGES, TEXT_ALONE, MEMORY, TEXT_WITH_IMAGE}
    assert parts.keys() & {LOSSES, BACKWARD}


def test_logits_are_those_of_the_masked_words(albef: Recipe) -> None:
    def logits(probability: float) -> int:
        objectives = replace(albef.objectives, mask_probability=probability)
        return footprint(replace(albef, objectives=objectives), 64).parts[VOCABULARY]

    assert logits(0.9) == pytest.approx(1.5 * logits(0.6), rel=0.1)


def test_checkpointed_fusion_keeps_less_and_computes_more(albef: Recipe) -> None:
    overrides = ModelOverrides(vision_checkpoint_layers=2, text_checkpoint_layers=2)
    light, whole = footprint(replace(albef, overrides=overrides), 64), footprint(albef, 64)
    assert light.total < whole.total
    for part in (IMAGES, TEXT_ALONE, TEXT_WITH_IMAGE):
        assert light.parts[part] < 0.5 * whole.parts[part]
    assert light.operations == whole.operations
    assert light.recomputed > whole.recomputed == 0


@pytest.mark.parametrize("layers", [pytest.param(0, marks=pytest.mark.slow), 1])
@pytest.mark.parametrize("family", ["med", "albef"])
def test_operations_are_those_of_a_step_that_runs(
    recipe: Recipe, albef: Recipe, family: str, layers: int
) -> None:
    overrides = ModelOverrides(vision_checkpoint_layers=layers, text_checkpoint_layers=layers)
    whole = replace(recipe if family == "med" else albef, overrides=overrides)
    # Of one length, so that it makes no difference which texts are drawn as negatives.
    lengths = TextLengths(longest=16, mean=16)
    tokenizer = TextTokenizer.train(["a b"], 60)
    found = step_footprint(whole, tokenizer, lengths, pairs=16)
    assert (found.recomputed > 0) == (layers > 0)

    build = Med if family == "med" else Albef
    student = build(overridden(whole.model, overrides))
    task = assemble_task(whole, student, tokenizer, Processes()).train()
    batch = example_batch(16, lengths, whole.data.image_size)
    batch = replace(batch, images=torch.zeros_like(batch.images))
    with flop_counter() as counter:
        task(batch, StepPosition(1, 10.0)).loss.backward()
    assert found.operations + found.recomputed == counter.get_total_flops()


def differences() -> dict[str, float]:
    """Prediction over measurement in per cent, by setting, from the benchmark."""
    command = [sys.executable, str(CHECK), "memory", "--threads", "1"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    found = {line: float(re.findall(r"([-+][\d.]+) %", line)[0]) for line in lines}
    assert found
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="reads resident memory from /proc")
def test_a_real_step_takes_what_was_predicted() -> None:
    """As the benchmark tells, of which only what is measured needs a process of its own."""
    benchmark = runpy.run_path(str(CHECK), run_name="plan_check")
    row = {**benchmark["settings"]("tiny", 32, 64), "threads": 1}
    measured = benchmark["measured_apart"](row, default_malloc=False)
    assert benchmark["predict_memory"](row) == pytest.approx(measured, rel=0.1)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads resident memory from /proc")
def test_real_steps_of_many_settings_take_what_was_predicted() -> None:
    for line, per_cent in differences().items():
        assert abs(per_cent) < 10, line
