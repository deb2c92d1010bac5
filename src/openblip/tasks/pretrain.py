"""Pre-training: contrast, matching and language modelling in one step (BLIP, section 3.2)."""

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from openblip.data.loader import Batch
from openblip.data.tokenizer import SpecialTokens
from openblip.errors import RecipeError
from openblip.interop.assembly import build_empty
from openblip.model import ImageMemory, Med, TextPass
from openblip.objectives.itc import (
    itc_loss,
    own_pairs,
    ramped,
    same_id,
    similarities,
    soft_targets,
)
from openblip.objectives.itm import itm_loss, negative_weights
from openblip.objectives.queue import FeatureQueue
from openblip.objectives.teacher import update_teacher
from openblip.tasks.captioner import caption_loss, caption_pass
from openblip.tasks.matching import KeyedSampler, NegativeSampler, pair_logits, pair_passes
from openblip.tasks.pool import PairPool, Texts
from openblip.tasks.protocol import (
    Collectives,
    QueueUpdate,
    SingleProcess,
    StepOutput,
    StepPosition,
    Task,
)

Loss = Literal["itc", "itm", "lm"]
NegativesFrom = Literal["rank", "all_ranks"]
NegativeFeatures = Literal["teacher", "online"]


@dataclass(frozen=True, kw_only=True)
class PretrainObjectives:
    """Which losses a step has, and their settings; the defaults are those of the paper."""

    losses: tuple[Loss, ...] = ("itc", "itm", "lm")
    """What is added up; without "itc" the negatives of "itm" are drawn uniformly."""
    queue_size: int = 57600
    """Pairs of earlier batches that serve as keys of the contrast; 0 uses the batch alone."""
    momentum: float = 0.995
    """Part of the teacher that a step keeps."""
    alpha: float = 0.4
    """Weight of the teacher's similarities in the targets of the contrast."""
    alpha_ramp_epochs: float = 2.0
    """Epochs over which alpha rises from 0."""
    min_temperature: float = 0.001
    """The temperature is not learnt below this. The original's bound; with few pairs or a high
    learning rate it falls so low that the hardest negatives are wrong ones: give about 0.05."""
    max_temperature: float = 0.5
    """Nor above this."""
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
        if not self.losses or set(self.losses) - set(get_args(Loss)):
            raise RecipeError(
                f"objectives.losses {self.losses!r}: name at least one of "
                f"{', '.join(get_args(Loss))}"
            )
        for name, known in (
            ("negatives", get_args(NegativesFrom)),
            ("negative_features", get_args(NegativeFeatures)),
        ):
            if getattr(self, name) not in known:
                raise RecipeError(
                    f"objectives.{name} {getattr(self, name)!r} is not one of {', '.join(known)}"
                )
        for name in ("momentum", "alpha"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise RecipeError(f"objectives.{name} {getattr(self, name)} is not in [0, 1]")
        if not 0.0 < self.min_temperature <= self.max_temperature:
            raise RecipeError(
                f"objectives.min_temperature {self.min_temperature} and max_temperature "
                f"{self.max_temperature}: need 0 < min_temperature <= max_temperature"
            )
        if not 0.0 <= self.label_smoothing < 1.0:
            raise RecipeError(f"objectives.label_smoothing {self.label_smoothing} is not in [0, 1)")
        for name in ("queue_size", "alpha_ramp_epochs", "negative_floor"):
            if getattr(self, name) < 0:
                raise RecipeError(f"objectives.{name} {getattr(self, name)} is negative")


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


class Pairs(NamedTuple):
    """What the matching loss of a batch compares."""

    own_images: TextPass
    """(2 batch) texts and negative texts side by side, with the batch's images."""
    negative_images: TextPass
    """(batch) texts with negative images."""
    counted: Tensor
    """bool (3 batch,) in the order of `pair_logits`: False where there is no negative."""


class PretrainTask(Task):
    """Trains a MED with any subset of the three losses.

    An image is encoded once, and so are its cross-attention keys and values: positives, both
    kinds of negatives and the decoder use the same ones. Matching and language modelling go
    through the text stack as one batch.

    The order of the original's step is clamp, online features, teacher update, teacher features,
    similarities against batch and old queue, enqueue, matching. Here clamp and update both stand
    in `begin_step` and the enqueue in `finish_step`, which computes the same: the online features
    do not depend on the teacher, nor matching on the queue. With accumulation, the batches of one
    step do not see each other's features. As in the original the teacher is in training mode when
    the task is: dropout acts on its features.

    Differs from BLIP: pairs with the same image or the same text are not negatives of each other,
    in pre-training too; a row without any negative is left out of the matching loss; logits of
    the vocabulary are computed only where there is a label.

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
        for loss in objectives.losses:
            student.require(loss)
        self.student = student
        self.special = special
        self.objectives = objectives
        self.seed = seed
        self.collectives = collectives or SingleProcess()
        self.pool = PairPool(self.collectives, all_ranks=objectives.negatives == "all_ranks")
        self.negative_sampler = negative_sampler or KeyedSampler(seed, self.collectives)
        if "itc" in objectives.losses:
            self.teacher = _teacher_of(student)
            self.queue = FeatureQueue(objectives.queue_size, student.config.embed_dim, seed)

    @torch.no_grad()
    def begin_step(self, position: StepPosition) -> None:
        """Clamp the temperature in place, then move the teacher towards the student."""
        if "itc" in self.objectives.losses:
            self.student.temperature.clamp_(
                self.objectives.min_temperature, self.objectives.max_temperature
            )
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
            terms |= self._grounded_losses(batch, hidden, contrast, position)
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
        image_keys = torch.cat([self.pool.collect(teacher.image_embed), self.queue.image_embed])
        text_keys = torch.cat([self.pool.collect(teacher.text_embed), self.queue.text_embed])
        image_sims = similarities(image_embed, text_keys, temperature)
        text_sims = similarities(text_embed, image_keys, temperature)
        positives = self._positives(batch, num_keys=len(text_keys))
        alpha = ramped(self.objectives.alpha, position.epoch, self.objectives.alpha_ramp_epochs)
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
        key_ids = torch.cat([self.pool.collect(batch.image_ids), self.queue.image_ids])
        return positives | same_id(batch.image_ids, key_ids)

    @torch.no_grad()
    def _teacher_features(self, batch: Batch) -> QueueUpdate:
        return QueueUpdate(
            self.teacher.embed_images(self.teacher.encode_images(batch.images)),
            self.teacher.embed_texts(batch.tokens, batch.mask),
            batch.image_ids,
            batch.text_ids,
        )

    def _grounded_losses(
        self, batch: Batch, hidden: Tensor, contrast: Contrast | None, position: StepPosition
    ) -> dict[str, Tensor]:
        """The losses of the texts that are read or written with their images."""
        losses = self.objectives.losses
        memories = self.student.memories(hidden)
        texts = Texts(batch.tokens, batch.mask)
        passes: list[TextPass] = []
        if "itm" in losses:
            texts, pool_texts = self.pool.texts(*texts, self.special.pad)
            pairs = self._pairs(
                batch, texts, pool_texts, hidden, memories.encoder, contrast, position
            )
            passes += [pairs.own_images, pairs.negative_images]
        if "lm" in losses:
            captions = caption_pass(texts, memories.decoder, self.special)
            passes.append(captions)
        states = self.student.text(*passes)
        terms = {}
        if "itm" in losses:
            terms["itm"] = self._matching_loss(pairs, states[0], states[1])
        if "lm" in losses:
            terms["lm"] = self._lm_loss(captions, states[-1])
        return terms

    def _pairs(
        self,
        batch: Batch,
        texts: Texts,
        pool_texts: Texts,
        image_hidden: Tensor,
        memory: ImageMemory,
        contrast: Contrast | None,
        position: StepPosition,
    ) -> Pairs:
        """The positives of a batch and two hard negatives per pair."""
        for_texts, for_images = self._negative_weights(batch, contrast)
        image_index = self.negative_sampler(for_texts, position, "image")
        text_index = self.negative_sampler(for_images, position, "text")
        passes = pair_passes(
            texts,
            pool_texts.select(text_index),
            memory,
            self.pool.image_memory(self.student, image_hidden, memory, image_index),
            self.special,
        )
        drawn = [(weights > 0).any(dim=1) for weights in (for_texts, for_images)]
        return Pairs(*passes, torch.cat([torch.ones_like(drawn[0]), *drawn]))

    def _matching_loss(self, pairs: Pairs, own_images: Tensor, negative_images: Tensor) -> Tensor:
        logits = pair_logits(self.student, own_images, negative_images)
        matched = torch.zeros_like(pairs.counted)
        matched[: len(negative_images)] = True
        return itm_loss(logits, matched, pairs.counted) * self.pool.share(pairs.counted.sum())

    @torch.no_grad()
    def _negative_weights(self, batch: Batch, contrast: Contrast | None) -> tuple[Tensor, Tensor]:
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

    def _lm_loss(self, captions: TextPass, hidden: Tensor) -> Tensor:
        loss, num_labels = caption_loss(
            self.student,
            captions,
            hidden,
            label_smoothing=self.objectives.label_smoothing,
        )
        return loss * self.pool.share(num_labels)


def _teacher_of(student: Med) -> Med:
    """A copy of what the contrast needs of a student; it gets no gradient."""
    config = student.config
    teacher_config = replace(
        config,
        heads=("itc",),
        vision=replace(config.vision, checkpoint_layers=0),
        text=replace(config.text, checkpoint_layers=0),
    )
    teacher = build_empty(lambda: Med(teacher_config))
    weights = student.state_dict()
    copies = {name: weights[name].clone() for name in teacher.state_dict()}
    teacher.load_state_dict(copies, assign=True)
    return teacher.requires_grad_(False)
