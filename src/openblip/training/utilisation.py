"""How much of the machine a run uses: the arithmetic of its steps over what the machine can do.

The arithmetic of a step is counted from the model's sizes and the batch's shape, not on the step:
PyTorch's counter would have to run within it, or on a step of tensors without numbers, which takes
several seconds for each length of texts.
"""

import time
from collections.abc import Callable
from functools import cache

import torch

from openblip.batches.image_pairs import ImagePairBatch
from openblip.batches.loader import Batch
from openblip.batches.questions import QuestionBatch
from openblip.batches.step_loader import Examples
from openblip.model import MedConfig
from openblip.model.config import AlbefConfig, AlbefHead, Head
from openblip.model.flops import (
    class_token_flops,
    image_encoder_flops,
    image_tokens,
    lm_head_flops,
    memory_flops,
    similarity_flops,
    state_memory_flops,
    text_flops,
    twin_flops,
)
from openblip.model.kernels import has_onednn, onednn_linear
from openblip.model.lowrank import low_rank_layers
from openblip.model.vqa import NlvrConfig, VqaConfig
from openblip.objectives.albef import AlbefTask
from openblip.objectives.clip import ClipTask
from openblip.objectives.contrastive import ContrastiveTask
from openblip.objectives.finetune import CaptionerTask, NlvrTask, VqaTask
from openblip.objectives.pretrain import PretrainTask
from openblip.objectives.task import AnyTask
from openblip.runtime.errors import TrainingError


def measure_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of large matrix products, on this machine now.

    Of the library that is fastest. Measured once per process, device, dtype and number of threads,
    for 0.15 s per library.
    """
    threads = torch.get_num_threads() if device.type == "cpu" else 0
    return _measured_peak(str(device), dtype, threads)


@cache
def _measured_peak(device: str, dtype: torch.dtype, threads: int) -> float:
    size = 1024 if torch.device(device).type == "cpu" else 8192
    return max(product_rates(torch.device(device), dtype, size, seconds=0.15).values())


def product_rates(
    device: torch.device, dtype: torch.dtype, size: int, seconds: float
) -> dict[str, float]:
    """Floating-point operations per second of square matrix products, on this machine now.

    Args:
        device: on which.
        dtype: of the matrices.
        size: rows, and columns, of each.
        seconds: for which each library is measured; its best product counts.

    Returns:
        Of each library that `model.linear` chooses from: "torch", and "oneDNN" where it is.
    """
    # Of drawn numbers: of equal ones an accelerator needs less power, and is faster than it can be.
    generator = torch.Generator(device).manual_seed(0)
    left, right = (
        torch.randn(size, size, device=device, dtype=dtype, generator=generator) for _ in range(2)
    )
    products: dict[str, Callable[[], torch.Tensor]] = {"torch": lambda: left @ right}
    if device.type == "cpu" and dtype == torch.float32 and has_onednn():
        products["oneDNN"] = lambda: onednn_linear(left, right)
    return {name: 2.0 * size**3 / _least(product, seconds) for name, product in products.items()}


def _least(product: Callable[[], torch.Tensor], seconds: float) -> float:
    """Seconds of the fastest of the products that fit into so many seconds."""
    # The first product pays for allocation and the choice of a kernel.
    _timed(product)
    end = time.perf_counter() + seconds
    least = _timed(product)
    while time.perf_counter() < end:
        least = min(least, _timed(product))
    return least


def _timed(product: Callable[[], torch.Tensor]) -> float:
    start = time.perf_counter()
    # Reading one element waits for the device.
    product()[0, 0].item()
    return time.perf_counter() - start


# A backward pass costs twice its forward.
_TRAINED = 3
# Of a forward and backward, where weights get no gradient.
_FROZEN = 2 / 3


def task_flops(task: AnyTask, batch: Examples) -> float:
    """Operations of a task's forward and backward on a batch, and of its teacher's forward.

    Of a student of which only low-rank changes are trained, about: frozen weights get no gradient,
    nor do the states of an image encoder without a change.
    """
    total, contrast = _all_trained(task, batch), _contrast_flops(task, batch)
    student = task.student
    if student.freezes_images:
        # Neither student nor teacher encodes an image.
        total -= _image_flops(task, batch)
    if not any(True for _ in low_rank_layers(student)):
        return total + contrast
    total *= _FROZEN
    if student.freezes_images:
        return total + contrast
    if not any(parameter.requires_grad for parameter in student.image_encoder.parameters()):
        total -= image_encoder_flops(student.config, *_images_of(batch))
    return total + contrast


def _contrast_flops(task: AnyTask, batch: Examples) -> int:
    """Operations of comparing a batch's features with its keys', forward and backward."""
    match task:
        case ClipTask():
            rows, _ = _images_of(batch)
            keys = rows * task.collectives.world_size
        case ContrastiveTask() if task.contrasts:
            rows, _ = _images_of(batch)
            keys = task.pool.size(rows) + task.objectives.queue_size
        case _:
            return 0
    # The keys of a teacher get no gradient, but its own features are compared too.
    return _TRAINED * similarity_flops(task.student.config, rows, keys)


def _losses(task: ClipTask | PretrainTask | CaptionerTask) -> tuple[Head, ...]:
    match task:
        case PretrainTask():
            return task.objectives.losses
        case CaptionerTask():
            return ("lm",)
        case ClipTask():
            return ("itc",)


def _image_flops(task: AnyTask, batch: Examples) -> float:
    """What `_all_trained` counts for encoding images."""
    config = task.student.config
    total = float(_TRAINED * image_encoder_flops(config, *_images_of(batch)))
    if isinstance(task, AlbefTask):
        return total + image_encoder_flops(config, *_images_of(batch))
    if isinstance(task, PretrainTask) and task.contrasts:
        return total + class_token_flops(config, *_images_of(batch))
    return total


def _images_of(batch: Examples) -> tuple[int, int | None]:
    """How many images a batch has, and the pixels of a side; None where it has their states."""
    match batch:
        case ImagePairBatch():
            return 2 * len(batch.first_images), _side(batch.first_images)
        case Batch() | QuestionBatch():
            return len(batch.images), _side(batch.images)
        case _:
            raise TrainingError(f"the images of {type(batch).__name__} are not known")


def _side(images: torch.Tensor) -> int | None:
    return images.shape[-1] if images.ndim == 4 else None


def _all_trained(task: AnyTask, batch: Examples) -> float:
    match task, batch:
        case AlbefTask(), Batch():
            objectives = task.objectives
            return _albef_step_flops(
                task.student.config, objectives.losses, batch, objectives.mask_probability
            )
        case ClipTask(), Batch():
            clip = task.student.config
            images = image_encoder_flops(clip, *_images_of(batch))
            texts = _text_passes(clip, ("itc",), batch)
            return float(_TRAINED * (images + sum(texts)))
        case ((PretrainTask() | CaptionerTask()), Batch()):
            return _step_flops(task.student.config, _losses(task), batch)
        case VqaTask(), QuestionBatch():
            return _TRAINED * _vqa_flops(task.student.config, batch)
        case NlvrTask(), ImagePairBatch():
            return _TRAINED * _nlvr_flops(task.student.config, batch)
        case _:
            raise TrainingError(f"the arithmetic of {type(task).__name__} is not known")


def _step_flops(config: MedConfig, losses: tuple[Head, ...], batch: Batch) -> float:
    """Operations of both models on a batch: forward and backward, and the teacher's forward.

    What activation checkpointing computes twice counts once, and padding not at all but in the
    attention, although on an accelerator it goes through all layers: the share of the machine that
    this gives is that of useful work.

    Args:
        config: sizes of the student.
        losses: the step's losses; the teacher takes part where "itc" is among them.
        batch: pairs; the images may have another size than the configured one.
    """
    rows, side = len(batch.tokens), _side(batch.images)
    total = float(_TRAINED * image_encoder_flops(config, rows, side))
    alone, grounded = _text_passes(config, losses, batch)
    total += _TRAINED * (alone + grounded)
    if "itc" in losses:
        total += alone + class_token_flops(config, rows, side)
    roles = len({"itm", "lm"} & set(losses))
    if roles:
        shared = config.text.sharing in ("all_but_self_attention", "all")
        memories = memory_flops(config, rows, side)
        total += _TRAINED * memories * (1 if shared else roles)
    if "lm" in losses:
        total += _TRAINED * lm_head_flops(config, int(batch.written[1].sum()) - rows, 1)
    return total


def _text_passes(config: MedConfig, losses: tuple[Head, ...], batch: Batch) -> tuple[int, int]:
    """Operations of the student's text layers, for texts alone and for those with images."""
    rows, tokens = batch.tokens.shape
    packed = int(batch.mask.sum())
    patches = image_tokens(config, _side(batch.images))
    alone = grounded = 0
    if "itc" in losses:
        alone = text_flops(config, rows, tokens, packed=packed, reads_first=True)
    if "itm" in losses:
        # Positives, negative images and negative texts, which are taken to be as long.
        grounded += text_flops(
            config, 3 * rows, tokens, patches, packed=3 * packed, reads_first=True
        )
    if "lm" in losses:
        written, mask = batch.written
        grounded += text_flops(config, rows, written.shape[1], patches, packed=int(mask.sum()))
    return alone, grounded


def _albef_step_flops(
    config: AlbefConfig, losses: tuple[AlbefHead, ...], batch: Batch, mask_probability: float
) -> float:
    """The same of a step of ALBEF; of masked words there are as many as are expected."""
    rows, side = len(batch.tokens), _side(batch.images)
    fusing = config.text.depth - config.fusion_layer
    masked = round(mask_probability * (int(batch.mask.sum()) - rows))

    def forward(losses: tuple[AlbefHead, ...]) -> int:
        total = image_encoder_flops(config, rows, side)
        total += _albef_text_passes(config, losses, batch)
        if losses != ("itc",):
            total += memory_flops(config, rows, side, fusing)
        if "mlm" in losses:
            total += lm_head_flops(config, masked, 1)
        return total

    # The teacher does what the student does, but for matching.
    return float(
        _TRAINED * forward(losses) + forward(tuple(loss for loss in losses if loss != "itm"))
    )


def _albef_text_passes(config: AlbefConfig, losses: tuple[AlbefHead, ...], batch: Batch) -> int:
    """Operations of the text layers in all passes of a model."""
    rows, tokens = batch.tokens.shape
    patches = image_tokens(config, _side(batch.images))
    above = config.text.depth - config.fusion_layer
    masked = "mlm" in losses
    # Texts for contrast and matching, and masked ones.
    encoded = text_flops(config, rows * (1 + masked), tokens, layers=config.fusion_layer)
    # Positives, negative images and negative texts, and masked ones.
    fused_rows = rows * (3 * ("itm" in losses) + masked)
    return encoded + text_flops(config, fused_rows, tokens, patches, above)


def _vqa_flops(config: VqaConfig, batch: QuestionBatch) -> float:
    """Operations of a question-answering model's forward on a batch."""
    questions, tokens = batch.tokens.shape
    answers, answer_tokens = batch.answers.shape
    side = _side(batch.images)
    patches = image_tokens(config, side)
    labelled = int(batch.answers_mask.sum()) - answers
    return float(
        image_encoder_flops(config, questions, side)
        + memory_flops(config, questions, side)
        + text_flops(config, questions, tokens, patches)
        + state_memory_flops(config, questions, tokens)
        + text_flops(config, answers, answer_tokens, tokens)
        + lm_head_flops(config, labelled, 1)
    )


def _nlvr_flops(config: NlvrConfig, batch: ImagePairBatch) -> float:
    """Operations of a two-image model's forward on a batch."""
    rows, tokens = batch.tokens.shape
    side = _side(batch.first_images)
    patches = image_tokens(config, side)
    return float(
        image_encoder_flops(config, 2 * rows, side)
        + memory_flops(config, 2 * rows, side)
        + text_flops(config, rows, tokens, patches)
        + twin_flops(config, rows, tokens, patches)
    )


def added(total: float | None, more: float | None) -> float | None:
    """The sum of operations; None once a part of them is not known."""
    return None if total is None or more is None else total + more


class Meter:
    """Adds up what some steps did, and tells rates since it was last asked."""

    def __init__(self, peak_flops: float | None) -> None:
        self._peak = peak_flops
        self._waited = 0.0
        self.restart()

    def restart(self, waited_seconds: float = 0.0) -> None:
        """Begin to measure now; `waited_seconds` is the loader's count so far."""
        self._pairs = 0
        self._flops: float | None = 0.0
        self._waited = waited_seconds
        self._began = time.perf_counter()

    def add(self, num_pairs: int, flops: float | None) -> None:
        """Count pairs of the run, and operations of this process; None where nobody knows them."""
        self._pairs += num_pairs
        self._flops = added(self._flops, flops)

    def read(self, waited_seconds: float) -> dict[str, float]:
        """Rates since the last reading, which starts the next.

        Args:
            waited_seconds: how long the loader has let its consumer wait so far.

        Returns:
            `pairs_per_second` of the run; `utilisation`, arithmetic of this process over that of
            the peak, if both are known; and `loader_share`, the part of the time that it waited for
            data.
        """
        seconds = max(time.perf_counter() - self._began, 1e-9)
        values = {"pairs_per_second": self._pairs / seconds}
        if self._flops is not None and self._peak is not None:
            values["utilisation"] = self._flops / seconds / self._peak
        values["loader_share"] = (waited_seconds - self._waited) / seconds
        self.restart(waited_seconds)
        return values
