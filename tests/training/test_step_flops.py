"""The counted arithmetic of a step is that of the operations which run."""

from dataclasses import replace
from itertools import combinations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from openblip.data.loader import Batch
from openblip.data.tokenizer import SpecialTokens
from openblip.model import Med, MedConfig
from openblip.model.albef import Albef, AlbefConfig
from openblip.model.flops import flop_counter
from openblip.model.lowrank import adapt
from openblip.tasks.albef import AlbefObjectives, AlbefTask
from openblip.tasks.captioner import CaptionerTask
from openblip.tasks.pretrain import PretrainObjectives, PretrainTask
from openblip.tasks.protocol import StepPosition
from openblip.training.step_flops import step_flops, task_flops

SPECIAL = SpecialTokens(pad=0, unk=1, cls=2, sep=3, mask=4, dec=5, enc=6)
SUBSETS = [s for size in (1, 2, 3) for s in combinations(("itc", "itm", "lm"), size)]


def batch(rows: int, tokens: int) -> Batch:
    mask = torch.ones(rows, tokens, dtype=torch.bool)
    mask[:, -3:] = False
    return Batch(
        ids=("",) * rows,
        images=torch.randn(rows, 3, 64, 64, generator=torch.Generator().manual_seed(0)),
        tokens=torch.full((rows, tokens), 9).masked_fill(~mask, SPECIAL.pad),
        mask=mask,
        image_ids=torch.arange(rows),
        text_ids=torch.arange(rows),
        step=0,
    )


@pytest.mark.parametrize(
    ("losses", "sharing"),
    [*((subset, "all_but_self_attention") for subset in SUBSETS), (SUBSETS[-1], "none")],
)
def test_forward_and_backward(losses: tuple[str, ...], sharing: str) -> None:
    config = MedConfig.preset("tiny", vocab_size=300, image_size=64)
    config = replace(
        config,
        heads=losses,
        text=replace(config.text, sharing=sharing, depth=1),
    )
    objectives = PretrainObjectives(losses=losses, queue_size=0)
    task = PretrainTask(Med(config), SPECIAL, objectives, seed=0)
    pairs = batch(rows=4, tokens=16)
    # Only the unfused attention consists of operations that the counter knows on a CPU.
    with flop_counter() as counter, sdpa_kernel(SDPBackend.MATH):
        task(pairs, StepPosition(0, 0.0)).loss.backward()
    counted = counter.get_total_flops()
    # The first layer's images need no gradient, so that backward is a little cheaper.
    assert step_flops(config, losses, pairs) == pytest.approx(counted, rel=0.03)


@pytest.mark.parametrize("targets", [("qkv", "query", "key_value"), ("text",)])
def test_low_rank_changes_of_a_captioner(targets: tuple[str, ...]) -> None:
    config = replace(MedConfig.preset("tiny", vocab_size=300, image_size=64), heads=("lm",))
    student = Med(config)
    adapt(student, 1, 1.0, targets)
    task, pairs = CaptionerTask(student, SPECIAL), batch(rows=4, tokens=16)
    with flop_counter() as counter, sdpa_kernel(SDPBackend.MATH):
        task(pairs, StepPosition(0, 0.0)).loss.backward()
    # Below the first change no state needs a gradient, and the factors are products too.
    assert task_flops(task, pairs) == pytest.approx(counter.get_total_flops(), rel=0.1)


@pytest.mark.parametrize("losses", [("itc",), ("itc", "itm"), ("itc", "itm", "mlm")])
def test_forward_and_backward_of_albef(losses: tuple[str, ...]) -> None:
    med = MedConfig.preset("tiny", vocab_size=300, image_size=64)
    config = AlbefConfig(vision=med.vision, text=med.text, fusion_layer=1, heads=losses)
    objectives = AlbefObjectives(losses=losses, queue_size=0, mask_probability=0.5)
    task = AlbefTask(Albef(config), SPECIAL, objectives, seed=0)
    pairs = batch(rows=8, tokens=16)
    with flop_counter() as counter, sdpa_kernel(SDPBackend.MATH):
        task(pairs, StepPosition(0, 2.0)).loss.backward()
    counted = counter.get_total_flops()
    # The words that are masked are drawn, and the first layer's images need no gradient.
    assert task_flops(task, pairs) == pytest.approx(counted, rel=0.03)
