"""Pre-training: contrast, matching and language modelling in one step (BLIP, section 3.2)."""

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Protocol, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from openblip.data.loader import Batch
from openblip.data.tokenizer import SpecialTokens
from openblip.errors import RecipeError
from openblip.model import ImageMemory, Med, Memories
from openblip.model.config import Head
from openblip.objectives.itc import (
    itc_loss,
    own_pairs,
    ramped,
    same_id,
    similarities,
    soft_targets,
)
from openblip.objectives.itm import hard_negatives, itm_loss, keyed_uniforms, negative_weights
from openblip.objectives.queue import FeatureQueue
from openblip.objectives.teacher import update_teacher
from openblip.tasks.captioner import caption_loss
from openblip.tasks.protocol import (
    Collectives,
    QueueUpdate,
    SingleProcess,
    StepOutput,
    StepPosition,
    Task,
)

NegativesFrom = Literal["rank", "all_ranks"]
NegativeFeatures = Literal["teacher", "online"]

# Bounds of the temperature (released BLIP code).
_COLDEST, _WARMEST = 0.001, 0.5


@dataclass(frozen=True, kw_only=True)
class PretrainObjectives:
    """Which losses a step has, and their settings; the defaults are those of the paper."""

    losses: tuple[Head, ...] = ("itc", "itm", "lm")
    """What is added up; without "itc" the negatives of "itm" are drawn uniformly."""
    queue_size: int = 57600
    """Pairs of earlier batches that serve as keys of the contrast; 0 uses the batch alone."""
    momentum: float = 0.995
    """Part of the teacher that a step keeps."""
    alpha: float = 0.4
    """Weight of the teacher's similarities in the targets of the contrast."""
    alpha_ramp_epochs: float = 2.0
    """Epochs over which alpha rises from 0."""
    label_smoothing: float = 0.1
    """Probability that language modelling spreads over the vocabulary."""
    negatives: NegativesFrom = "rank"
    """Whether the keys and negatives that a batch gives come from its rank or from all ranks."""
    id_targets: bool = False
    """Whether every text of the same image counts as a positive of the contrast; in the original
    only in retrieval fine-tuning."""
    negative_features: NegativeFeatures = "teacher"
    """Whose features are compared with the student's to find hard negatives."""
    negative_floor: float = 1e-4
    """Added to the weight of every negative, so that easy ones come up too."""

    def __post_init__(self) -> None:
        if not self.losses or set(self.losses) - set(get_args(Head)):
            raise RecipeError(
                f"objectives.losses {self.losses!r}: name at least one of "
                f"{', '.join(get_args(Head))}"
            )
        for name in ("momentum", "alpha"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise RecipeError(f"objectives.{name} {getattr(self, name)} is not in [0, 1]")
        if not 0.0 <= self.label_smoothing < 1.0:
            raise RecipeError(
                f"objectives.label_smoothing {self.label_smoothing} is not in [0, 1)"
            )
        for name in ("queue_size", "alpha_ramp_epochs", "negative_floor"):
            if getattr(self, name) < 0:
                raise RecipeError(f"objectives.{name} {getattr(self, name)} is negative")


class NegativeSampler(Protocol):
    """Draws one negative per row."""

    def __call__(
        self, weights: Tensor, position: StepPosition, wanted: Literal["image", "text"]
    ) -> Tensor:
        """Indices int64 (rows,) of columns of `weights` (rows, candidates).

        Images are asked for before texts.
        """
        ...


class Contrast(NamedTuple):
    """The contrast of a batch with its keys: first the batch's (or all ranks'), then the queue."""

    loss: Tensor
    """Scalar."""
    image_sims: Tensor
    """(batch, keys) of images to the teacher's texts, divided by the temperature."""
    text_sims: Tensor
    """(batch, keys) of texts to the teacher's images, likewise."""
    image_targets: Tensor
    """(batch, keys), rows sum to 1."""
    text_targets: Tensor
    """(batch, keys), rows sum to 1."""
    image_embed: Tensor
    """(batch, embed) of the student."""
    text_embed: Tensor
    """(batch, embed) of the student."""
    teacher: QueueUpdate
    """Features of the teacher."""


class PretrainTask(Task):
    """Trains a MED with any subset of the three losses.

    An image is encoded once, and so are its cross-attention keys and values: positives, both
    kinds of negatives and the decoder use the same ones.

    The order of the original's step is clamp, online features, teacher update, teacher features,
    similarities against batch and old queue, enqueue, matching. Here clamp and update both stand
    in `begin_step` and the enqueue in `finish_step`, which computes the same: the online features
    do not depend on the teacher, nor matching on the queue. With accumulation, the batches of one
    step do not see each other's features. As in the original the teacher is in training mode when
    the task is: dropout acts on its features.

    Args:
        student: has a head for each loss.
        special: where `[ENC]`, `[DEC]` and `[PAD]` are.
        objectives: losses and settings.
        seed: of the queue's first content and of the negatives.
        collectives: to the other processes of the run; by default there are none.
        negative_sampler: replaces the keyed draw of negatives.

    Raises:
        MissingHead: if the student lacks a head.
    """

    kind = "pretrain"

    def __init__(
        self,
        student: Med,
        special: SpecialTokens,
        objectives: PretrainObjectives,
        seed: int,
        collectives: Collectives | None = None,
        negative_sampler: NegativeSampler | None = None,
    ) -> None:
        super().__init__()
        for head in objectives.losses:
            student.require(head)
        self.student = student
        self.special = special
        self.objectives = objectives
        self.seed = seed
        self.collectives = collectives or SingleProcess()
        self._sample = negative_sampler or self._draw
        self._across_ranks = (
            objectives.negatives == "all_ranks" and self.collectives.world_size > 1
        )
        if "itc" in objectives.losses:
            self.teacher = _teacher_of(student)
            self.queue = FeatureQueue(objectives.queue_size, student.config.embed_dim, seed)

    @torch.no_grad()
    def begin_step(self, position: StepPosition) -> None:
        """Clamp the temperature in place, then move the teacher towards the student."""
        if "itc" in self.objectives.losses:
            self.student.temperature.clamp_(_COLDEST, _WARMEST)
            update_teacher(self.teacher, self.student, self.objectives.momentum)

    def forward(self, batch: Batch, position: StepPosition) -> StepOutput:
        """The sum of the losses of a batch."""
        losses = self.objectives.losses
        hidden = self.student.encode_images(batch.images)
        terms: dict[str, Tensor] = {}
        contrast = None
        if "itc" in losses:
            contrast = self.contrast(batch, hidden, position)
            terms["itc"] = contrast.loss
        if "itm" in losses or "lm" in losses:
            memories = self._memories(hidden)
        if "itm" in losses:
            terms["itm"] = self._matching_loss(
                batch, hidden, memories.encoder, contrast, position
            )
        if "lm" in losses:
            terms["lm"] = self._lm_loss(batch, memories.decoder)
        loss = torch.stack(list(terms.values())).sum()
        logged = {name: term.detach() for name, term in terms.items()}
        if contrast is None:
            return StepOutput(loss, logged)
        logged["temperature"] = self.student.temperature.detach().clone()
        return StepOutput(loss, logged, contrast.teacher)

    def finish_step(self, update: QueueUpdate | None) -> None:
        """Enqueue the teacher features of all ranks."""
        if update is None:
            return
        gather = self.collectives.gather
        self.queue.push(
            gather(update.image_embed),
            gather(update.text_embed),
            gather(update.image_ids),
            gather(update.text_ids),
        )

    def contrast(self, batch: Batch, image_hidden: Tensor, position: StepPosition) -> Contrast:
        """Similarities, targets and loss of a batch against the teacher's features and the queue.

        Args:
            batch: pairs.
            image_hidden: (batch, patches, width) of the student's encoded images.
            position: its epoch decides alpha.
        """
        temperature = self.student.temperature
        image_embed = self.student.embed_images(image_hidden)
        text_embed = self.student.embed_texts(batch.tokens, batch.mask)
        teacher = self._teacher_features(batch)
        image_keys = torch.cat([self._collect(teacher.image_embed), self.queue.image_embed])
        text_keys = torch.cat([self._collect(teacher.text_embed), self.queue.text_embed])
        image_sims = similarities(image_embed, text_keys, temperature)
        text_sims = similarities(text_embed, image_keys, temperature)
        rows, keys = image_sims.shape
        positives = own_pairs(rows, keys, self._first_row(rows), image_sims.device)
        if self.objectives.id_targets:
            key_ids = torch.cat([self._collect(batch.image_ids), self.queue.image_ids])
            positives = positives | same_id(batch.image_ids, key_ids)
        alpha = ramped(
            self.objectives.alpha, position.epoch, self.objectives.alpha_ramp_epochs
        )
        with torch.no_grad():
            teacher_image_sims = similarities(teacher.image_embed, text_keys, temperature)
            teacher_text_sims = similarities(teacher.text_embed, image_keys, temperature)
            image_targets = soft_targets(teacher_image_sims, positives, alpha)
            text_targets = soft_targets(teacher_text_sims, positives, alpha)
        return Contrast(
            itc_loss(image_sims, text_sims, image_targets, text_targets),
            image_sims,
            text_sims,
            image_targets,
            text_targets,
            image_embed,
            text_embed,
            teacher,
        )

    @torch.no_grad()
    def _teacher_features(self, batch: Batch) -> QueueUpdate:
        return QueueUpdate(
            self.teacher.embed_images(self.teacher.encode_images(batch.images)),
            self.teacher.embed_texts(batch.tokens, batch.mask),
            batch.image_ids,
            batch.text_ids,
        )

    def _memories(self, image_hidden: Tensor) -> Memories:
        if {"itm", "lm"} <= set(self.objectives.losses):
            return self.student.memories(image_hidden)
        # With one role there is one memory, also where the roles do not share.
        memory = self.student.text.remember(image_hidden, causal="lm" in self.objectives.losses)
        return Memories(memory, memory)

    def _matching_loss(
        self,
        batch: Batch,
        image_hidden: Tensor,
        memory: ImageMemory,
        contrast: Contrast | None,
        position: StepPosition,
    ) -> Tensor:
        """The matching loss over positives and two hard negatives per pair."""
        for_texts, for_images = self._negative_weights(batch, contrast)
        negative_images = self._sample(for_texts, position, "image")
        negative_texts = self._sample(for_images, position, "text")
        texts, candidates = self._texts(batch)
        logits = _pair_logits(
            self.student,
            texts,
            texts if not self._across_ranks else candidates,
            negative_texts,
            memory,
            self._negative_memory(image_hidden, memory, negative_images),
        )
        matched = torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
        raise NotImplementedError
