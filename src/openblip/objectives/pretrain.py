"""Contrast, matching and language modelling in one step: pre-training (BLIP, section 3.2).

Fine-tuning a filter is the same step with other settings (section 3.3).
"""

from dataclasses import replace
from typing import NamedTuple, Self

import torch
from torch import Tensor

from openblip.batches.loader import Batch
from openblip.batches.tokenizer import SpecialTokens
from openblip.model import ImageMemory, Med, TextPass
from openblip.objectives.contrastive import Contrast, ContrastiveTask, Negatives
from openblip.objectives.finetune import caption_loss, caption_pass
from openblip.objectives.named import FILTER, PRETRAIN
from openblip.objectives.pool import NegativeSampler, Texts, pair_logits, pair_passes
from openblip.objectives.settings import PretrainObjectives
from openblip.objectives.task import Collectives, QueueUpdate, StepOutput, StepPosition, TaskContext


class Pairs(NamedTuple):
    """What the matching loss of a batch compares."""

    own_images: TextPass
    """(2 batch) texts and negative texts side by side, with the batch's images."""
    negative_images: TextPass
    """(batch) texts with negative images."""
    negatives: Negatives
    """Which these are, and where there is none."""


class PretrainTask(ContrastiveTask):
    """Trains a MED with any subset of the three losses.

    An image is encoded once, and so are its cross-attention keys and values: positives, both
    kinds of negatives and the decoder use the same ones. Matching and language modelling go
    through the text stack as one batch.

    Differs from BLIP, besides what `ContrastiveTask` says: logits of the vocabulary are computed
    only where there is a label.

    Args:
        student: has a head for each loss.
        special: where `[ENC]`, `[DEC]` and `[PAD]` are.
        objectives: losses and settings.
        seed: of the queue's first content and of the negatives.
        collectives: to the other processes of the run; by default there are none.
        negative_sampler: replaces the keyed draw of negatives.
        prompt_tokens: tokens of the prompt that the loader puts before every caption, with the
            first, special one and without `[SEP]`. Language modelling continues the prompt;
            contrast and matching see the captions without it.

    Raises:
        MissingHead: if the student lacks a head.
    """

    needs = PRETRAIN
    kind = "pretrain"
    student: Med
    teacher: Med
    objectives: PretrainObjectives

    def __init__(
        self,
        student: Med,
        special: SpecialTokens,
        objectives: PretrainObjectives,
        seed: int,
        collectives: Collectives | None = None,
        negative_sampler: NegativeSampler | None = None,
        prompt_tokens: int = 0,
    ) -> None:
        super().__init__(student, objectives, seed, collectives, negative_sampler, ("itc",))
        self.special = special
        self.prompt_tokens = prompt_tokens

    @classmethod
    def build(cls, student: Med, settings: PretrainObjectives, context: TaskContext) -> Self:
        """As `Task.build`."""
        return cls(
            student,
            context.tokenizer.special,
            settings,
            context.seed,
            context.collectives,
            prompt_tokens=context.prompt_tokens,
        )

    def forward(self, batch: Batch, position: StepPosition) -> StepOutput:
        """The sum of the losses of a batch."""
        losses = self.objectives.losses
        captions = Texts(*batch.written)
        # All captions begin with the prompt: it tells no image from another.
        texts = Texts(batch.tokens, batch.mask).without_prompt(self.prompt_tokens, self.special.pad)
        batch = replace(batch, tokens=texts.tokens, mask=texts.mask)
        hidden = self.student.encode_images(batch.images)
        terms: dict[str, Tensor] = {}
        contrast = None
        if "itc" in losses:
            contrast = self.contrast(batch, hidden, position)
            terms["itc"] = contrast.loss
        if "itm" in losses or "lm" in losses:
            terms |= self._grounded_losses(batch, captions, hidden, contrast, position)
        return self.summed(terms, contrast)

    def contrast(self, batch: Batch, image_hidden: Tensor, position: StepPosition) -> Contrast:
        """Similarities, targets and loss of a batch against the teacher's features and the queue.

        Args:
            batch: pairs.
            image_hidden: (batch, patches, width) of the student's encoded images.
            position: its epoch decides alpha.
        """
        image_embed = self.student.embed_images(image_hidden)
        text_embed = self.student.embed_texts(batch.tokens, batch.mask)
        teacher = self._teacher_features(batch)
        return self.contrast_features(batch, image_embed, text_embed, teacher, position)

    @torch.no_grad()
    def _teacher_features(self, batch: Batch) -> QueueUpdate:
        # Of the teacher nothing but features is read, hence the class token alone.
        return QueueUpdate(
            self.teacher.embed_images(self.teacher.encode_class_tokens(batch.images)),
            self.teacher.embed_texts(batch.tokens, batch.mask),
            batch.image_ids,
            batch.text_ids,
        )

    def _grounded_losses(
        self,
        batch: Batch,
        captions: Texts,
        hidden: Tensor,
        contrast: Contrast | None,
        position: StepPosition,
    ) -> dict[str, Tensor]:
        """The losses of the texts that are read or written (`captions`) with their images."""
        losses = self.objectives.losses
        memories = self.student.memories(hidden)
        texts = Texts(batch.tokens, batch.mask)
        # Encoder before decoder: neighbours go through the text stack as one batch where they can.
        passes: list[TextPass] = []
        if "itm" in losses:
            # A negative text of another rank may be longer than this batch's, and so may a
            # corrupted one and what is written; one batch has one length.
            widened = self.pool.texts(*texts, self.special.pad)
            others = [] if batch.corrupted is None else [batch.corrupted.ids]
            others += [captions.tokens] if "lm" in losses else []
            width = max(ids.shape[1] for ids in (widened[0].tokens, *others))
            texts, pool_texts = (each.padded(width, self.special.pad) for each in widened)
            captions = captions.padded(width, self.special.pad)
            pairs = self._pairs(
                batch, texts, pool_texts, hidden, memories.encoder, contrast, position
            )
            passes += [pairs.own_images, pairs.negative_images]
        if "lm" in losses:
            written = caption_pass(captions, memories.decoder, self.special)
            passes.append(written)
        states = self.student.text(*passes)
        terms = {}
        if "itm" in losses:
            logits = pair_logits(self.student, states[0], states[1])
            terms["itm"] = self.matching_loss(logits, pairs.negatives)
        if "lm" in losses:
            terms["lm"] = self._lm_loss(written, states[-1])
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
        negatives = self.draw_negatives(batch, contrast, position)
        negative_texts = pool_texts.select(negatives.texts)
        if batch.corrupted is not None:
            corrupted = Texts(batch.corrupted.ids, batch.corrupted.mask)
            corrupted = corrupted.padded(texts.tokens.shape[1], self.special.pad)
            is_corrupted = corrupted.mask.any(dim=1)
            negative_texts = corrupted.where(is_corrupted, negative_texts)
            negatives = negatives._replace(has_text=negatives.has_text | is_corrupted)
        passes = pair_passes(
            texts,
            negative_texts,
            memory,
            self.pool.image_memory(self.student, image_hidden, memory, negatives.images),
            self.special,
        )
        return Pairs(*passes, negatives)

    def _lm_loss(self, captions: TextPass, hidden: Tensor) -> Tensor:
        loss, num_labels = caption_loss(
            self.student,
            captions,
            hidden,
            prompt_tokens=self.prompt_tokens,
            label_smoothing=self.objectives.label_smoothing,
        )
        # A mean over this rank's labels, of which other ranks may have more or fewer.
        return loss * self.pool.share(num_labels)


class FilterTask(PretrainTask):
    """The pre-training step, set for telling true captions of an image from false ones.

    The teacher starts as a copy of the student, the queue with random directions. Arguments are
    those of `PretrainTask`, with `FilterObjectives`.
    """

    needs = FILTER
    kind = "filter"
