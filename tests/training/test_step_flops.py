"""The counted arithmetic of a step is that of the operations which run."""

from dataclasses import replace
from itertools import combinations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from openblip.batches.loader import Batch
from openblip.batches.tokenizer import SpecialTokens
from openblip.model import Med, MedConfig
from openblip.model.albef import Albef, AlbefConfig
from openblip.model.flops import flop_counter
from openblip.model.lowrank import adapt
from openblip.objectives.albef import AlbefObjectives, AlbefTask
from openblip.objectives.clip import ClipObjectives, ClipTask
from openblip.objectives.finetune import CaptionerTask
from openblip.objectives.pretrain import PretrainObjectives, PretrainTask
from openblip.objectives.task import AnyTask, StepPosition
from openblip.training.utilisation import task_flops

SPECIAL = SpecialTokens(pad=0, unk=1, cls=2, sep=3, mask=4, dec=5, enc=6)
TINY = MedConfig.preset("tiny", vocab_size=300, image_size=64)
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


def counted(task: AnyTask, pairs: Batch) -> int:
    """What PyTorch's counter finds in a step that runs."""
    # Only the unfused attention consists of operations that the counter knows on a CPU.
    with flop_counter() as counter, sdpa_kernel(SDPBackend.MATH):
        task(pairs, StepPosition(0, 2.0)).loss.backward()
    return int(counter.get_total_flops())


def blip(losses: tuple[str, ...], config: MedConfig = TINY) -> PretrainTask:
    objectives = PretrainObjectives(losses=losses, queue_size=500)
    return PretrainTask(Med(replace(config, heads=losses)), SPECIAL, objectives, seed=0)


def captioner(config: MedConfig = TINY) -> CaptionerTask:
    return CaptionerTask(Med(replace(config, heads=("lm",))), SPECIAL)


def clip(config: MedConfig = TINY) -> ClipTask:
    return ClipTask(Med(replace(config, heads=("itc",))), ClipObjectives())


def albef(losses: tuple[str, ...], config: MedConfig = TINY) -> AlbefTask:
    model = AlbefConfig(vision=config.vision, text=config.text, fusion_layer=1, heads=losses)
    objectives = AlbefObjectives(losses=losses, queue_size=500, mask_probability=0.5)
    return AlbefTask(Albef(model), SPECIAL, objectives, seed=0)


@pytest.mark.parametrize(
    ("losses", "sharing"),
    [*((subset, "all_but_self_attention") for subset in SUBSETS), (SUBSETS[-1], "none")],
)
def test_forward_and_backward(losses: tuple[str, ...], sharing: str) -> None:
    text = replace(TINY.text, sharing=sharing, depth=1)
    task, pairs = blip(losses, replace(TINY, text=text)), batch(rows=4, tokens=16)
    # The first layer's images need no gradient, so that backward is a little cheaper.
    assert task_flops(task, pairs) == pytest.approx(counted(task, pairs), rel=0.03)


@pytest.mark.parametrize("targets", [("qkv", "query", "key_value"), ("text",)])
def test_low_rank_changes_of_a_captioner(targets: tuple[str, ...]) -> None:
    task, pairs = captioner(), batch(rows=4, tokens=16)
    adapt(task.student, 1, 1.0, targets)
    # Below the first change no state needs a gradient, and the factors are products too.
    assert task_flops(task, pairs) == pytest.approx(counted(task, pairs), rel=0.1)


def test_forward_and_backward_of_clip() -> None:
    task, pairs = clip(), batch(rows=8, tokens=16)
    assert task_flops(task, pairs) == pytest.approx(counted(task, pairs), rel=0.03)


@pytest.mark.parametrize("losses", [("itc",), ("itc", "itm"), ("itc", "itm", "mlm")])
def test_forward_and_backward_of_albef(losses: tuple[str, ...]) -> None:
    task, pairs = albef(losses), batch(rows=8, tokens=16)
    # The words that are masked are drawn, and the first layer's images need no gradient.
    assert task_flops(task, pairs) == pytest.approx(counted(task, pairs), rel=0.03)


def test_checkpointing_changes_nothing() -> None:
    light = replace(
        TINY,
        vision=replace(TINY.vision, checkpoint_layers=2),
        text=replace(TINY.text, checkpoint_layers=1),
    )
    pairs = batch(rows=8, tokens=16)
    assert task_flops(captioner(light), pairs) == task_flops(captioner(), pairs)


def test_a_text_for_the_decoder_counts_as_what_it_is() -> None:
    task, seen, long = blip(SUBSETS[-1]), batch(rows=4, tokens=8), batch(rows=4, tokens=16)
    both = replace(seen, decoder_tokens=long.tokens, decoder_mask=long.mask)
    alone = blip(("lm",))
    less = task_flops(alone, long) - task_flops(alone, seen)
    assert less > 0
    assert task_flops(task, both) - task_flops(task, seen) == pytest.approx(less)
