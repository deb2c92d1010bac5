"""A model together with what it takes to use it: its tokenizer and its sizes."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar, cast

import torch
from jaxtyping import Float
from torch import Tensor

from openblip.batches.tokenizer import TextTokenizer, TokenBatch
from openblip.batches.unknown_words import warn_of_unknown_words
from openblip.checkpoints.families import AnyModel, check_vocabulary
from openblip.checkpoints.folder import FROM_ORIGINAL, TO_HUGGINGFACE, TO_ORIGINAL
from openblip.inference.image_input import EncodedImages, image_batches
from openblip.inference.texts import FirstTokenName, tokens_for
from openblip.model import Med
from openblip.model.albef import Albef
from openblip.model.med import KINDS_WITH
from openblip.model.vqa import Nlvr, Vqa
from openblip.runtime.errors import CheckpointError, MissingHead, RecipeError, UntrainedHead
from openblip.sources.images import ImageSource

if TYPE_CHECKING:
    from openblip.checkpoints.huggingface_config import HuggingFaceKind
    from openblip.checkpoints.original_layout import Kind

ModelT = TypeVar("ModelT")

UsedHead = Literal["itc", "itm", "lm"]
_USES: dict[UsedHead, str] = {
    "itc": "embed images and texts",
    "itm": "match images and texts",
    "lm": "caption",
}
# Of models that do not say it themselves.
_TRAINED_AS = {"captioner": ("lm",), "filter": ("itc", "itm")}


class ModelBundle:
    """A model with its tokenizer: encodes images and texts for it, and is saved in any layout.

    Attributes:
        model: a `Med`, a `Vqa`, an `Nlvr`, an `Albef` or a `DualEncoder`, in eval mode.
        tokenizer: of the texts.
        kind: what the model was trained as: "pretrain", "captioner", "filter", "vqa", "nlvr",
            "albef" or "dual_encoder".
        image_size: height and width to which images are resized, in pixels.
        max_tokens: longer texts are cut to this when they are embedded or matched.
        trained: heads that its last training was for; None where only the kind tells it.
    """

    def __init__(
        self,
        model: AnyModel,
        tokenizer: TextTokenizer,
        kind: str,
        image_size: int,
        max_tokens: int,
        trained: tuple[str, ...] | None = None,
    ) -> None:
        self.model = model.eval()
        self.trained = trained
        self._told: set[str] = set()
        # Texts of ALBEF have no `[SEP]`.
        self.tokenizer = tokenizer.without_end() if isinstance(model, Albef) else tokenizer
        self.kind = kind
        self.image_size = image_size
        self.max_tokens = max_tokens

    @property
    def med(self) -> Med:
        """The model that captions, matches and embeds.

        Raises:
            MissingHead: if the checkpoint does something else.
        """
        return self._model_as(Med, "a pre-trained, captioner, retrieval or filter checkpoint")

    @property
    def matcher(self) -> Med | Albef:
        """The model that matches and embeds.

        Raises:
            MissingHead: if the checkpoint does something else.
        """
        return self.model if isinstance(self.model, Albef) else self.med

    def require(self, head: UsedHead) -> None:
        """Check that the model has a head, and that it was trained for it.

        Raises:
            MissingHead: if it has not; names a checkpoint that has.

        Warns:
            UntrainedHead: once for each head, if the last training was for another one.
        """
        if not isinstance(self.model, Med | Albef):
            raise MissingHead(
                f"this is a checkpoint of the kind {self.kind}, which cannot {_USES[head]}; load "
                f"{KINDS_WITH[head]}"
            )
        if head == "lm":
            self.med.require(head)
        else:
            self.model.require(head)
        trained = self.trained or _TRAINED_AS.get(self.kind)
        if trained is not None and head not in trained and head not in self._told:
            self._told.add(head)
            warnings.warn(
                f"this {self.kind} was trained for {', '.join(trained)}, not to {_USES[head]}: its "
                f"{head} head is what it began with, and what it gives means little; load "
                f"{KINDS_WITH[head]}",
                UntrainedHead,
                stacklevel=3,
            )

    @property
    def can_match(self) -> bool:
        """Whether it has an ITM head."""
        return isinstance(self.model, Med | Albef) and "itm" in self.model.config.heads

    @property
    def vqa(self) -> Vqa:
        """The model that answers questions.

        Raises:
            MissingHead: if the checkpoint does something else.
        """
        return self._model_as(Vqa, "a question-answering (vqa) checkpoint")

    @property
    def nlvr(self) -> Nlvr:
        """The model that compares two images.

        Raises:
            MissingHead: if the checkpoint does something else.
        """
        return self._model_as(Nlvr, "a two-image (nlvr) checkpoint")

    def _model_as(self, kind: type[ModelT], remedy: str) -> ModelT:
        if not isinstance(self.model, kind):
            raise MissingHead(f"this is a checkpoint of the kind {self.kind}; load {remedy}")
        return self.model

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the model's weights."""
        return next(self.model.parameters()).dtype

    def encode(self, images: Float[Tensor, "images 3 height width"]) -> EncodedImages:
        """Encoded images, on the model's device; all in one pass.

        Args:
            images: normalised, as `eval_transform` gives them.
        """
        return EncodedImages(self.matcher, self._encode(images))

    def save(self, folder: str | Path) -> None:
        """Write a model folder, which `load` reads."""
        from openblip.checkpoints.folder import save_folder

        self._check_image_size()
        about = self.kind, self.max_tokens, self.trained
        save_folder(Path(folder), self.model, self.tokenizer, *about)

    def save_original(self, path: str | Path, kind: str | None = None) -> None:
        """Write a file in the original's layout, `.pth` or `.safetensors` by its ending.

        What the layout has no place for (heads, the tokenizer) travels in a note beside the
        weights, which the original's code does not look at and `load` reads.

        A pre-trained or retrieval checkpoint gets a momentum model equal to the model and random
        queues, as where the original begins.

        Args:
            path: the file; replaced if it exists.
            kind: as which of the original's models: "pretrain", "retrieval", "itm", "caption",
                "vqa" or "nlvr"; by default what the model was trained as.

        Raises:
            RecipeError: if there is no such kind.
            CheckpointError: if the layout has no place for the model, or it cannot be written.
            MissingHead: if the model lacks a head that the kind has.
        """
        from openblip.checkpoints.original import OriginalNote, to_original, write_original

        if isinstance(self.model, Albef):
            of_albef = "albef_pretrain" if "mlm" in self.model.config.heads else "albef_retrieval"
            chosen = cast("Kind | None", kind or of_albef)
        else:
            chosen = cast("Kind | None", kind or TO_ORIGINAL.get(self.kind))
        if chosen not in FROM_ORIGINAL:
            raise RecipeError(
                f"the original has no kind {kind or self.kind!r}; there are "
                f"{', '.join(FROM_ORIGINAL)}"
            )
        self._check_image_size()
        check_vocabulary(self.model, self.tokenizer, self.max_tokens)
        note = OriginalNote.of(self.model, self.tokenizer, self.max_tokens)
        write_original(Path(path), to_original(self.model, chosen), note)

    def save_huggingface(self, folder: str | Path, kind: str | None = None) -> None:
        """Write a folder that `transformers` reads, with its tokenizer and image processor.

        Args:
            folder: replaced if it holds such a model.
            kind: "caption" or "retrieval", for a model that can be both; by default what the
                model was trained as.

        Raises:
            CheckpointError: if `transformers` has no class for the model, the kind must be given,
                or the folder cannot be written.
            MissingHead: if the model lacks a head that the kind has.
        """
        from openblip.checkpoints.huggingface import save_huggingface

        self._check_image_size()
        chosen = cast("HuggingFaceKind | None", kind or TO_HUGGINGFACE.get(self.kind))
        save_huggingface(Path(folder), self.model, self.tokenizer, chosen, self.max_tokens)

    def _check_image_size(self) -> None:
        """Every layout stores the size that the positions belong to, and no other."""
        size = self.model.config.vision.image_size
        if self.image_size != size:
            raise CheckpointError(
                f"images are resized to {self.image_size} px, but the model's positions belong to "
                f"{size} px: load it with image_size={self.image_size}, and save that"
            )

    def _encoded(self, images: Iterable[ImageSource], batch_size: int) -> Iterator[EncodedImages]:
        for hidden in self._hidden(images, batch_size):
            yield EncodedImages(self.matcher, hidden)

    def _hidden(
        self, images: Iterable[ImageSource], batch_size: int
    ) -> Iterator[Float[Tensor, "batch patches width"]]:
        """Patch tokens of the images, a batch at a time, on the model's device."""
        check_batch_size(batch_size)
        for batch in image_batches(images, self.image_size, batch_size):
            yield self._encode(batch)

    @torch.no_grad()
    def _encode(
        self, images: Float[Tensor, "batch 3 height width_px"]
    ) -> Float[Tensor, "batch patches width"]:
        return self.model.encode_images(images.to(self.device, self.dtype))

    def _tokens(self, texts: Sequence[str], first_token: FirstTokenName) -> TokenBatch:
        return tokens_for(self.tokenizer, texts, self.max_tokens, self._first(first_token))

    def warn_of_unknown_words(self, texts: Sequence[str], what: str = "texts") -> bool:
        """Whether the vocabulary lacks words of a job's texts; warns once (`UnknownWords`) if so.

        Args:
            texts: of the whole job, so that one warning tells all.
            what: the texts are, in the plural.
        """
        return warn_of_unknown_words(self.tokenizer, texts, self.max_tokens, what)

    def _first(self, wanted: FirstTokenName) -> FirstTokenName:
        """The first token of a text that is matched: ALBEF has `[CLS]` alone."""
        return "[CLS]" if isinstance(self.model, Albef) else wanted


def check_batch_size(batch_size: int) -> None:
    """Nothing, if a batch holds something.

    Raises:
        RecipeError: if not.
    """
    if batch_size < 1:
        raise RecipeError(f"batch_size is {batch_size}; give 1 or more")
