"""What tasks with a contrast share: teacher, queue, keys, soft targets, hard negatives."""

from collections.abc import Collection
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from openblip.batches.loader import Batch
from openblip.checkpoints.assembly import copy_of
from openblip.model import Med
from openblip.model.albef import Albef
from openblip.model.lowrank import add_changes
from openblip.objectives.itc import (
    FeatureQueue,
    itc_loss,
    own_pairs,
    ramped,
    same_id,
    similarities,
    soft_targets,
    update_teacher,
)
from openblip.objectives.itm import itm_loss, negative_weights
from openblip.objectives.pool import KeyedSampler, NegativeSampler, PairPool
from openblip.objectives.settings import AlbefObjectives, PretrainObjectives
from openblip.objectives.task import (
    Collectives,
    QueueUpdate,
    SingleProcess,
    StepOutput,
    StepPosition,
    Task,
)


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
    """(batch, embed) of the student, detached."""
    text_embed: Tensor
    """(batch, embed) of the student, detached."""
    teacher: QueueUpdate
    """Features of the teacher."""


class Negatives(NamedTuple):
    """The hard negatives of a batch; a row without any candidate has 0, which does not count."""

    images: Tensor
    """int64 (batch,), rows of the pool: image r is a negative of text r."""
    texts: Tensor
    """int64 (batch,), likewise of image r."""
    has_image: Tensor
    """bool (batch,)."""
    has_text: Tensor
    """bool (batch,)."""


class ContrastiveTask(Task[Batch]):
    """A student and its teacher, whose features are contrasted with the batch and a queue.

    The order of the original's step is clamp, online features, teacher update, teacher features,
    similarities against batch and old queue, enqueue, matching. Here clamp and update both stand
    in `begin_step` and the enqueue in `finish_step`, which computes the same: the online features
    do not depend on the teacher, nor matching on the queue. With accumulation, the batches of one
    step do not see each other's features. As in the original the teacher is in training mode when
    the task is: dropout acts on its features.

    Differs from the originals: pairs with the same image or the same text are not negatives of
    each other, in pre-training too; a row without any negative is left out of the matching loss.

    Args:
        student: has a head for each loss.
        objectives: losses and settings.
        seed: of the queue's first content and of the negatives.
        collectives: to the other processes of the run; by default there are none.
        negative_sampler: replaces the keyed draw of negatives.
        taught: losses that a teacher has a part in; without any there is none, and no queue.

    Raises:
        MissingHead: if the student lacks a head.
    """

    student: Med | Albef
    teacher: Med | Albef
    objectives: PretrainObjectives | AlbefObjectives

    def __init__(
        self,
        student: Any,
        objectives: PretrainObjectives | AlbefObjectives,
        seed: int,
        collectives: Collectives | None,
        negative_sampler: NegativeSampler | None,
        taught: Collection[str],
    ) -> None:
        super().__init__()
        for loss in objectives.losses:
            student.require(loss)
        self.objectives = objectives
        self.seed = seed
        self.collectives = collectives or SingleProcess()
        self.pool = PairPool(self.collectives, all_ranks=objectives.negatives == "all_ranks")
        self.negative_sampler = negative_sampler or KeyedSampler(seed, self.collectives)
        heads = tuple(loss for loss in objectives.losses if loss in taught)
        self.contrasts = bool(heads)
        if heads:
            self.teacher = _teacher_of(student, heads)
            self.queue = FeatureQueue(objectives.queue_size, student.config.embed_dim, seed)
        self.student = student

    @property
    def trained_heads(self) -> tuple[str, ...]:
        """Those of its losses."""
        return self.objectives.losses

    @torch.no_grad()
    def begin_step(self, position: StepPosition) -> None:
        """Clamp the temperature in place, then move the teacher towards the student."""
        if self.contrasts:
            # In place, as in the original: a clamp within the forward has no gradient beyond its
            # bounds, and the temperature could not come back.
            self.student.temperature.clamp_(
                self.objectives.min_temperature, self.objectives.max_temperature
            )
            update_teacher(self.teacher, self.student, self.objectives.momentum)
            # The student's weights are those with its low-rank changes, if it has any.
            add_changes(self.teacher, self.student, 1.0 - self.objectives.momentum)

    def finish_step(self, update: QueueUpdate | None) -> None:
        """Enqueue the teacher features of all ranks."""
        if update is None:
            return
        # Of all ranks, in one order: every rank's queue holds the same.
        gather = self.collectives.gather
        self.queue.push(
            gather(update.image_embed),
            gather(update.text_embed),
            gather(update.image_ids),
            gather(update.text_ids),
        )

    def summed(self, terms: dict[str, Tensor], contrast: Contrast | None) -> StepOutput:
        """The output of a step whose loss is the sum of the terms."""
        loss = torch.stack(list(terms.values())).sum()
        logged = {name: term.detach() for name, term in terms.items()}
        if contrast is None:
            return StepOutput(loss, logged)
        logged["temperature"] = self.student.temperature.detach().clone()
        return StepOutput(loss, logged, contrast.teacher)

    def alpha(self, position: StepPosition) -> float:
        """The teacher's weight in the targets at a position."""
        return ramped(self.objectives.alpha, position.epoch, self.objectives.alpha_ramp_epochs)

    def contrast_features(
        self,
        batch: Batch,
        image_embed: Tensor,
        text_embed: Tensor,
        teacher: QueueUpdate,
        position: StepPosition,
    ) -> Contrast:
        """Similarities, targets and loss of a batch against the teacher's features and the queue.

        Args:
            batch: pairs.
            image_embed: (batch, embed) of the student, unit length.
            text_embed: (batch, embed) likewise.
            teacher: features of the same batch, without gradient.
            position: its epoch decides alpha.
        """
        temperature = self.student.temperature

        image_keys = (self.pool.collect(teacher.image_embed), self.queue.image_embed)
        text_keys = (self.pool.collect(teacher.text_embed), self.queue.text_embed)

        def to_all(embed: Tensor, keys: tuple[Tensor, Tensor]) -> Tensor:
            # One after the other: to join batch and queue would copy the queue.
            return torch.cat([similarities(embed, own, temperature) for own in keys], dim=1)

        image_sims, text_sims = to_all(image_embed, text_keys), to_all(text_embed, image_keys)
        positives = self._positives(batch, num_keys=image_sims.shape[1])
        alpha = self.alpha(position)
        # The same keys as the student's: what the teacher finds similar to them is the target.
        with torch.no_grad():
            teacher_image_sims = to_all(teacher.image_embed, text_keys)
            teacher_text_sims = to_all(teacher.text_embed, image_keys)
            image_targets = soft_targets(teacher_image_sims, positives, alpha)
            text_targets = soft_targets(teacher_text_sims, positives, alpha)
        return Contrast(
            itc_loss(image_sims, text_sims, image_targets, text_targets),
            image_sims,
            text_sims,
            image_targets,
            text_targets,
            image_embed.detach(),
            text_embed.detach(),
            teacher,
        )

    def _positives(self, batch: Batch, num_keys: int) -> Tensor:
        rows = len(batch.image_ids)
        first = self.pool.first_row(rows)
        positives = own_pairs(rows, num_keys, first, batch.image_ids.device)
        if not self.objectives.id_targets:
            return positives
        # In the order of the keys: batch, then queue.
        key_ids = torch.cat([self.pool.collect(batch.image_ids), self.queue.image_ids])
        return positives | same_id(batch.image_ids, key_ids)

    @torch.no_grad()
    def teacher_states(self, images: Tensor, hidden: Tensor) -> Tensor:
        """The teacher's states of images (batch, patches, width).

        Args:
            images: of the batch.
            hidden: what the student's encoder makes of them; where it is frozen, the teacher's too.
        """
        if self.student.freezes_images:
            return hidden.detach()
        return self.teacher.encode_images(images)

    @torch.no_grad()
    def teacher_class_tokens(self, images: Tensor, hidden: Tensor) -> Tensor:
        """Of `teacher_states` the class token alone (batch, 1, width), for less."""
        if self.student.freezes_images:
            return hidden.detach()[:, :1]
        return self.teacher.encode_class_tokens(images)

    def draw_negatives(
        self, batch: Batch, contrast: Contrast | None, position: StepPosition
    ) -> Negatives:
        """One negative image for every text and one negative text for every image."""
        for_texts, for_images = self.negative_weights(batch, contrast)
        return Negatives(
            images=self.negative_sampler(for_texts, position, "image"),
            texts=self.negative_sampler(for_images, position, "text"),
            has_image=(for_texts > 0).any(dim=1),
            has_text=(for_images > 0).any(dim=1),
        )

    def matching_loss(self, logits: Tensor, negatives: Negatives) -> Tensor:
        """The loss of (3 batch, 2): positives; text, negative image; negative text, image."""
        all_true = torch.ones_like(negatives.has_image)
        counted = torch.cat([all_true, negatives.has_image, negatives.has_text])
        matched = torch.zeros_like(counted)
        matched[: len(all_true)] = True
        return itm_loss(logits, matched, counted) * self.pool.share(counted.sum())

    @torch.no_grad()
    def negative_weights(self, batch: Batch, contrast: Contrast | None) -> tuple[Tensor, Tensor]:
        """Weights (batch, candidates) of images as negatives of texts, and the reverse.

        A pair is no negative of itself, nor is one with the same image or the same text: its
        match would be true.
        """
        image_ids, text_ids = self.pool.collect(batch.image_ids), self.pool.collect(batch.text_ids)
        rows, candidates = len(batch.image_ids), len(image_ids)
        excluded = (
            own_pairs(rows, candidates, self.pool.first_row(rows), image_ids.device)
            | same_id(batch.image_ids, image_ids)
            | same_id(batch.text_ids, text_ids)
        )
        if contrast is None:
            return (~excluded).float(), (~excluded).float()
        text_sims, image_sims = contrast.text_sims, contrast.image_sims
        if self.objectives.negative_features == "online":
            image_keys = self.pool.collect(contrast.image_embed)
            text_keys = self.pool.collect(contrast.text_embed)
            text_sims = similarities(contrast.text_embed, image_keys, self.student.temperature)
            image_sims = similarities(contrast.image_embed, text_keys, self.student.temperature)
        floor = self.objectives.negative_floor
        return (
            negative_weights(text_sims[:, :candidates], excluded, floor),
            negative_weights(image_sims[:, :candidates], excluded, floor),
        )


def _teacher_of(student: Any, heads: tuple[str, ...]) -> Any:
    """A copy of what these heads need of a student; it gets no gradient.

    Of a student that leaves its image encoder as it is, without one: their states are the same.
    """
    config = student.config
    teacher_config = replace(
        config,
        heads=heads,
        # Without a gradient there is nothing to compute again.
        vision=replace(config.vision, checkpoint_layers=0),
        text=replace(config.text, checkpoint_layers=0),
    )
    teacher = copy_of(student, lambda: type(student)(teacher_config))
    if student.freezes_images:
        teacher.image_encoder = nn.Identity()
    return teacher
