"""ALBEF's training: contrast, matching and masked words, with momentum distillation.

Li et al. 2021, "Align before Fuse", sections 3.2 and 3.3.
"""

from typing import Protocol, Self

import torch
from torch import Tensor

from openblip.batches.loader import Batch
from openblip.batches.shuffle import keyed_hash
from openblip.batches.tokenizer import SpecialTokens
from openblip.model import ImageMemory
from openblip.model.albef import Albef
from openblip.model.packing import Packing
from openblip.objectives.contrastive import Contrast, ContrastiveTask
from openblip.objectives.lm import MaskDraws, mask_draws, mask_words, masked_places, mlm_loss
from openblip.objectives.named import ALBEF
from openblip.objectives.pool import NegativeSampler
from openblip.objectives.settings import AlbefObjectives
from openblip.objectives.task import Collectives, QueueUpdate, StepOutput, StepPosition, TaskContext

# Tells the draws of masks from those of negatives.
_MASKS = 3


class MaskSampler(Protocol):
    """Draws which words are masked."""

    def __call__(self, shape: torch.Size, position: StepPosition) -> MaskDraws:
        """Draws for texts of a shape (rows, tokens)."""
        ...


class KeyedMasks:
    """Masks that depend on seed, position and rank alone."""

    def __init__(
        self, seed: int, probability: float, vocab_size: int, collectives: Collectives
    ) -> None:
        self.seed = seed
        self.probability = probability
        self.vocab_size = vocab_size
        self.collectives = collectives

    def __call__(self, shape: torch.Size, position: StepPosition) -> MaskDraws:
        """Draws for texts of a shape (rows, tokens)."""
        rank = self.collectives.rank
        # Of the rank too: its texts are others, and shall not be masked at the same places.
        seed = keyed_hash(self.seed, _MASKS, position.step, position.micro_step, rank)
        return mask_draws(shape[0], shape[1], self.probability, self.vocab_size, seed)


class AlbefTask(ContrastiveTask):
    """Trains an ALBEF with any subset of its losses.

    A text is encoded once for contrast and matching: its states, with their gradients, go on
    through the fusion layers, and a negative text is another row of states. Masked texts are
    encoded anew. The images' cross-attention keys and values are computed once for all passes.

    Differs from ALBEF, besides what `ContrastiveTask` says: logits of the vocabulary are computed
    only where a word is masked, and a batch without a masked word has the loss 0 there.

    Args:
        student: has a head for each loss.
        special: where `[MASK]` is.
        objectives: losses and settings.
        seed: of the queue's first content, of negatives and of masks.
        collectives: to the other processes of the run; by default there are none.
        negative_sampler: replaces the keyed draw of negatives.
        mask_sampler: replaces the keyed draw of masked words.

    Raises:
        MissingHead: if the student lacks a head.
    """

    needs = ALBEF
    kind = "albef"
    student: Albef
    teacher: Albef
    objectives: AlbefObjectives

    def __init__(
        self,
        student: Albef,
        special: SpecialTokens,
        objectives: AlbefObjectives,
        seed: int,
        collectives: Collectives | None = None,
        negative_sampler: NegativeSampler | None = None,
        mask_sampler: MaskSampler | None = None,
    ) -> None:
        taught = ("itc", "mlm")
        super().__init__(student, objectives, seed, collectives, negative_sampler, taught)
        self.special = special
        self.mask_sampler = mask_sampler or KeyedMasks(
            seed,
            objectives.mask_probability,
            student.config.text.vocab_size,
            self.collectives,
        )

    @classmethod
    def build(cls, student: Albef, settings: AlbefObjectives, context: TaskContext) -> Self:
        """As `Task.build`."""
        return cls(student, context.tokenizer.special, settings, context.seed, context.collectives)

    def forward(self, batch: Batch, position: StepPosition) -> StepOutput:
        """The sum of the losses of a batch."""
        hidden = self.student.encode_images(batch.images)
        states = self.student.encode_texts(batch.tokens, batch.mask)
        # Encoded once for contrast and masked words, as the student's.
        teacher_hidden = self.teacher_states(batch.images, hidden)
        contrast = self.contrast(batch, hidden, states, teacher_hidden, position)
        terms = {"itc": contrast.loss}
        if self.objectives.losses != ("itc",):
            memory = self.student.memory(hidden)
            if "itm" in self.objectives.losses:
                terms["itm"] = self._itm(batch, hidden, states, memory, contrast, position)
            if "mlm" in self.objectives.losses:
                terms["mlm"] = self._mlm(batch, memory, teacher_hidden, position)
        return self.summed(terms, contrast)

    def contrast(
        self,
        batch: Batch,
        hidden: Tensor,
        states: Tensor,
        teacher_hidden: Tensor,
        position: StepPosition,
    ) -> Contrast:
        """Similarities, targets and loss of a batch against the teacher's features and the queue.

        Args:
            batch: pairs.
            hidden: (batch, patches, width) of the student's encoded images.
            states: (batch, tokens, width) of the student's encoded texts.
            teacher_hidden: (batch, patches, width) of the teacher's encoded images.
            position: its epoch decides alpha.
        """
        with torch.no_grad():
            teacher_states = self.teacher.encode_texts(batch.tokens, batch.mask)
            teacher = QueueUpdate(
                self.teacher.embed_images(teacher_hidden),
                self.teacher.embed_states(teacher_states),
                batch.image_ids,
                batch.text_ids,
            )
        image_embed = self.student.embed_images(hidden)
        text_embed = self.student.embed_states(states)
        return self.contrast_features(batch, image_embed, text_embed, teacher, position)

    def _itm(
        self,
        batch: Batch,
        hidden: Tensor,
        states: Tensor,
        memory: ImageMemory,
        contrast: Contrast,
        position: StepPosition,
    ) -> Tensor:
        negatives = self.draw_negatives(batch, contrast, position)
        own_states, own_mask, pool_states, pool_mask = self.pool.states(states, batch.mask)
        negative_memory = self.pool.image_memory(self.student, hidden, memory, negatives.images)
        negative_states = pool_states.index_select(0, negatives.texts)
        negative_mask = pool_mask.index_select(0, negatives.texts)
        # Both texts of an image stand side by side: its keys and values are not copied for them.
        both = torch.stack([own_states, negative_states], dim=1).flatten(0, 1)
        both_mask = torch.stack([own_mask, negative_mask], dim=1).flatten(0, 1)
        fused = self.student.fuse(both, both_mask, memory)
        positive, negative_text = self.student.match_logits(fused).view(-1, 2, 2).unbind(1)
        negative_image = self.student.match_logits(
            self.student.fuse(own_states, own_mask, negative_memory)
        )
        return self.matching_loss(torch.cat([positive, negative_image, negative_text]), negatives)

    def _mlm(
        self,
        batch: Batch,
        memory: ImageMemory,
        teacher_hidden: Tensor,
        position: StepPosition,
    ) -> Tensor:
        draws = self.mask_sampler(batch.tokens.shape, position)
        # Drawn on the host, so that every device masks the same words.
        device = batch.tokens.device
        words = mask_words(batch.tokens, batch.mask, draws.on(device), self.special.mask)
        hidden = masked_places(batch.on_host.mask, draws, device)
        assert hidden.places is not None
        labels = words.labels.flatten().index_select(0, hidden.places)
        alpha = self.alpha(position)
        guesses = None
        # With alpha 0, as in the first step, they would count for nothing.
        if alpha > 0.0:
            with torch.no_grad():
                teacher_memory = self.teacher.memory(teacher_hidden)
                guesses = _word_logits(self.teacher, words.ids, hidden, batch, teacher_memory)
        logits = _word_logits(self.student, words.ids, hidden, batch, memory)
        loss = mlm_loss(logits, labels, guesses, alpha)
        return loss * self.pool.share(torch.full((), len(labels), device=loss.device))


def _word_logits(
    model: Albef, ids: Tensor, hidden: Packing, batch: Batch, memory: ImageMemory
) -> Tensor:
    """Logits (masked, vocab) of the hidden words, whose places are given."""
    states = model.encode_texts(ids, batch.mask)
    fused = model.fuse(states, batch.mask, memory)
    # The vocabulary is the largest product, and few words are hidden.
    return model.mlm_logits(hidden.pack(fused)[None])[0]
