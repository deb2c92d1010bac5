"""A loaded model with its tokenizer: captions, matches, answers, embeddings, explanations."""

import secrets
import warnings
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import islice, repeat
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from openblip.batches.shuffle import keyed_hash
from openblip.batches.tokenizer import TextTokenizer, TokenBatch
from openblip.batches.unknown_words import warn_of_unknown_words
from openblip.checkpoints.families import AnyModel, check_image_size
from openblip.checkpoints.folder import (
    TO_HUGGINGFACE,
    TRAINED_AS,
    original_kind,
    save_folder,
    warn_of_given_text,
)
from openblip.checkpoints.huggingface import save_huggingface
from openblip.checkpoints.original import save_original
from openblip.deploy.models import require_weights
from openblip.inference.answers import Answer, AnswerList, top_answers
from openblip.inference.captions import PROMPT, Caption, GivenPrompt, Prompt, caption_encoded
from openblip.inference.decoding import Decoding, Method, Scoring
from openblip.inference.encoding import (
    EncodedImages,
    FirstTokenName,
    as_texts,
    embed_images,
    text_batches,
    tokens_for,
)
from openblip.inference.explanation import Heatmap, explain
from openblip.inference.image_sources import Images, as_sources, image_batches, one_or_each
from openblip.inference.matching import (
    COMPARED_WORDS,
    Match,
    compare_images,
    embed_texts,
    match_probabilities,
    memory_for,
    score_texts,
)
from openblip.model import Med
from openblip.model.albef import Albef
from openblip.model.dual import DualEncoder
from openblip.model.med import KINDS_WITH
from openblip.model.vqa import Nlvr, Vqa
from openblip.runtime.errors import DataError, MissingHead, UntrainedHead
from openblip.sources.images import ImageSource

ModelT = TypeVar("ModelT")

UsedHead = Literal["itc", "itm", "lm"]
_USES: dict[UsedHead, str] = {
    "itc": "embed images and texts",
    "itm": "match images and texts",
    "lm": "caption",
}


class Blip:
    """A model with its tokenizer, and what it can do with images and texts.

    Images are paths, Pillow images, uint8 arrays (height, width, 3) or encoded bytes, one or
    several. They are processed `batch_size` at a time. What needs a head which the checkpoint
    lacks, or another model, raises `MissingHead`; an unreadable image raises `DataError`.

    Attributes:
        model: a `Med`, a `Vqa`, an `Nlvr`, an `Albef` or a `DualEncoder`, in eval mode.
        tokenizer: of the texts.
        kind: what the model was trained as: "pretrain", "captioner", "filter", "vqa", "nlvr",
            "albef" or "dual_encoder".
        image_size: height and width to which images are resized, in pixels.
        max_tokens: longer texts are cut to this when they are embedded or matched.
        trained: heads that its last training was for; None where only the kind tells it.
        given_tokens: longest text that it reads before it captions; 0 where it reads none.
        name_tokens: what it writes from that text alone, packed; empty for nothing.
        source: what it was loaded from; empty for one that was made here.
    """

    def __init__(
        self,
        model: AnyModel,
        tokenizer: TextTokenizer,
        kind: str,
        image_size: int,
        max_tokens: int,
        trained: tuple[str, ...] | None = None,
        given_tokens: int = 0,
        name_tokens: str = "",
        source: str = "",
    ) -> None:
        self.model, self.name_tokens = model.eval(), name_tokens
        self.trained, self.source, self.given_tokens = trained, source, given_tokens
        self._told: set[str] = set()
        # Texts of ALBEF have no `[SEP]`.
        self.tokenizer = tokenizer.without_end() if isinstance(model, Albef) else tokenizer
        self.kind, self.image_size, self.max_tokens = kind, image_size, max_tokens

    @property
    def med(self) -> Med:
        """The model that captions, matches and embeds."""
        return self._model_as(Med, "a pre-trained, captioner, retrieval or filter checkpoint")

    @property
    def matcher(self) -> Med | Albef:
        """The model that matches and embeds."""
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
        trained = self.trained or TRAINED_AS.get(self.kind)
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
        """The model that answers questions."""
        return self._model_as(Vqa, "a question-answering (vqa) checkpoint")

    @property
    def nlvr(self) -> Nlvr:
        """The model that compares two images."""
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

    def caption(
        self,
        images: Images,
        method: Method = "beam",
        num_beams: int = 3,
        max_length: int = 20,
        min_length: int = 5,
        top_p: float = 0.9,
        repetition_penalty: float = 1.0,
        length_penalty: float = 1.0,
        prompt: Prompt | Sequence[Prompt] = PROMPT,
        num_captions: int = 1,
        seed: int | None = None,
        scoring: Scoring = "original",
        *,
        top_k: int = 0,
        no_repeat_ngram_size: int = 0,
        batch_size: int = 16,
    ) -> list[list[Caption]]:
        """Captions: a list per image, of `num_captions`.

        Beam search gives its best, best first; nucleus sampling gives independent draws. See
        `Decoding` for the settings of both.

        Args:
            images: one or several.
            method: "beam", "nucleus" or "greedy".
            num_beams: of beam search; at least `num_captions`.
            max_length: most token ids, those of the prompt, `[DEC]` and `[SEP]` included.
            min_length: fewest token ids before `[SEP]`, those of the prompt and `[DEC]` included.
            top_p: of nucleus sampling.
            repetition_penalty: 1 is off; the original's nucleus sampling has 1.1.
            length_penalty: exponent of the length that beams are divided by.
            prompt: what a caption continues, of all images or one per image; may be empty.
            num_captions: per image.
            seed: of nucleus sampling: the same seed draws the same captions; None draws others
                each time.
            scoring: how beams are normalised: "original" or as "transformers" does.
            top_k: of nucleus sampling; 0 is off, the original has 50.
            no_repeat_ngram_size: no so many ids in a row come twice in a caption; 0 is off.
            batch_size: images at a time.

        Raises:
            RecipeError: if the settings contradict each other.
        """
        decoding = Decoding(
            method=method,
            num_beams=num_beams,
            max_length=max_length,
            min_length=min_length,
            top_p=top_p,
            top_k=top_k,
            repetition_penalty=repetition_penalty,
            no_repeat_ngram_size=no_repeat_ngram_size,
            length_penalty=length_penalty,
            scoring=scoring,
        )
        stream = partial(self.caption_stream, prompt=prompt, num_captions=num_captions, seed=seed)
        return list(stream(as_sources(images), decoding, batch_size=batch_size))

    def caption_stream(
        self,
        images: Iterable[ImageSource],
        decoding: Decoding | None = None,
        *,
        prompt: Prompt | Iterable[Prompt] = PROMPT,
        num_captions: int = 1,
        seed: int | None = None,
        batch_size: int = 16,
    ) -> Iterator[list[Caption]]:
        """Captions of each image in turn; holds only a few batches of any number of images.

        Args:
            images: may be a generator; read ahead by two batches.
            decoding: how tokens are chosen; by default as `caption` does.
            prompt: what a caption continues, of all images or one per image; may be empty.
            num_captions: per image.
            seed: as in `caption`; an image's draws depend on the seed and its place alone.
            batch_size: images at a time.
        """
        self.require("lm")
        decoding = decoding or Decoding()
        # Not from torch's generator, whose state is the caller's.
        key = secrets.randbits(63) if seed is None else seed
        prompts = repeat(prompt) if isinstance(prompt, str | GivenPrompt) else iter(prompt)
        count, is_told = 0, False
        for encoded in map(self.encode, image_batches(images, self.image_size, batch_size)):
            # By an image's place, so that the size of batches changes no draw.
            seeds = [keyed_hash(key, count + place) for place in range(len(encoded))]
            count += len(encoded)
            own = list(islice(prompts, len(encoded)))
            is_told = is_told or self.warn_of_unknown_words([*map(str, own)], "prompts")
            yield from self.generate(encoded, decoding, own, seeds, num_captions)

    def match(
        self,
        images: Images,
        texts: str | Sequence[str],
        first_token: FirstTokenName = "[ENC]",
        batch_size: int = 16,
    ) -> list[Match]:
        """How well each text describes the image at the same place.

        Args:
            images: one or several.
            texts: as many; of a single image any number.
            first_token: of a text: `[ENC]` as BLIP was trained, `[CLS]` as in `transformers`.
            batch_size: images at a time.

        Raises:
            DataError: if there are not as many texts as images.
        """
        self.require("itm")
        texts = as_texts(texts)
        remedy = "match compares them in pairs, or a single image with all texts; use match_all "
        sources = one_or_each(images, texts, "texts", f"{remedy}to compare all with all")
        self.warn_of_unknown_words(texts)
        per_image = [texts] if len(sources) == 1 else [[text] for text in texts]
        matches: list[list[Match]] = []
        for encoded in map(self.encode, image_batches(sources, self.image_size, batch_size)):
            # Batches come in order, so that what is matched already tells which texts are next.
            own = per_image[len(matches) :][: len(encoded)]
            matches += self.score(encoded, own, first_token, warns=True)
        return [match for of_image in matches for match in of_image]

    def match_all(
        self,
        images: Images,
        texts: str | Sequence[str],
        first_token: FirstTokenName = "[ENC]",
        batch_size: int = 16,
    ) -> Float[Tensor, "images texts"]:
        """Probabilities that they match, of every image with every text, on the CPU."""
        self.require("itm")
        texts = as_texts(texts)
        self.warn_of_unknown_words(texts)
        tokens = self._tokens(texts, first_token)
        parts = [torch.empty(0, len(texts))]
        for encoded in map(self.encode, image_batches(images, self.image_size, batch_size)):
            pairs = [range(len(texts))] * len(encoded)
            memory = memory_for(encoded, tokens, pairs)
            parts.append(torch.stack(match_probabilities(self.matcher, memory, tokens, pairs)))
        return torch.cat(parts)

    def ask(
        self,
        images: Images,
        questions: str | Sequence[str],
        candidates: Sequence[str] | None = None,
        *,
        k: int = 128,
        first_token: FirstTokenName = "[ENC]",
        batch_size: int = 16,
    ) -> list[Answer]:
        """The answer to each question about the image at the same place.

        Args:
            images: one or several; of a single image any number of questions may be asked.
            questions: one or several.
            candidates: what may be answered, ranked as the paper does; None lets the model write.
                Those that the model reads alike count once.
            k: candidates that are scored whole, those whose first token is likeliest.
            first_token: of a question: `[ENC]` as BLIP was trained, `[CLS]` as in `transformers`.
            batch_size: images at a time.

        Raises:
            DataError: if there are not as many questions as images.
        """
        found = self.ask_top(
            images, questions, 1, candidates, k=k, first_token=first_token, batch_size=batch_size
        )
        return [best for best, *_ in found]

    def ask_top(
        self,
        images: Images,
        questions: str | Sequence[str],
        top: int = 5,
        candidates: Sequence[str] | None = None,
        *,
        k: int = 128,
        first_token: FirstTokenName = "[ENC]",
        batch_size: int = 16,
    ) -> list[list[Answer]]:
        """The `top` answers to each question, or as many as there are, best first.

        Of written ones more than 3 are searched for with as many beams. Else as `ask`.
        """
        vqa = self.vqa
        questions = as_texts(questions)
        remedy = "give a question for each image, or a single image"
        sources = one_or_each(images, questions, "questions", remedy)
        self.warn_of_unknown_words([*questions, *(candidates or ())], "questions and candidates")
        most = vqa.config.text.max_positions
        listed = None if candidates is None else AnswerList.of(self.tokenizer, candidates, most)
        answers: list[list[Answer]] = []
        for hidden in map(self.encode_patches, image_batches(sources, self.image_size, batch_size)):
            own = questions if len(sources) == 1 else questions[len(answers) :][: len(hidden)]
            answers += top_answers(vqa, self.tokenizer, hidden, own, top, listed, k, first_token)
        return answers

    def explain(
        self,
        image: ImageSource,
        text: str | None = None,
        *,
        question: str | None = None,
        answer: str | None = None,
        prompt: str = PROMPT,
        layer: int | None = None,
        first_token: FirstTokenName = "[ENC]",
    ) -> Heatmap:
        """Where the model looks: Grad-CAM over cross-attention, a map per word.

        With a text: for the match of the text, or of a captioner for each word as if it wrote it.
        With a question: for its answer. With neither: for each word of the caption that the model
        writes.

        Args:
            image: one image.
            text: a text about it.
            question: a question about it.
            answer: of the question; by default the one that the model writes.
            prompt: what a caption continues.
            layer: text layer whose attention is shown, counted from 0; by default
                `explanation.default_layer`.
            first_token: first token of a matched text or a question.

        Raises:
            RecipeError: if there is no such layer, or both a text and a question are given.
            DataError: if the text has no word.
        """
        return explain(self, image, text, question, answer, prompt, layer, first_token)

    def compare(
        self,
        images_a: Images,
        images_b: Images,
        sentences: str | Sequence[str],
        batch_size: int = 16,
    ) -> Float[Tensor, " pairs"]:
        """Probabilities that sentences are true of pairs of images (NLVR2), on the CPU.

        Args:
            images_a: the first images of the pairs ("left" in NLVR2), one or several.
            images_b: the second ones, as many.
            sentences: as many.
            batch_size: pairs at a time.

        Raises:
            DataError: if there are not as many of each.
        """
        nlvr = self.nlvr
        first, second = (list(as_sources(images)) for images in (images_a, images_b))
        sentences = as_texts(sentences)
        if not len(first) == len(second) == len(sentences):
            raise DataError(
                f"{len(first)} first images, {len(second)} second images and {len(sentences)} "
                "sentences: compare takes as many of each"
            )
        clean = self.tokenizer.cleaning.caption
        cleaned = [clean(sentence, COMPARED_WORDS) for sentence in sentences]
        self.warn_of_unknown_words(cleaned, "sentences")
        parts = [torch.empty(0)]
        batches = (image_batches(images, self.image_size, batch_size) for images in (first, second))
        for pair in zip(*batches, strict=True):
            hidden_a, hidden_b = (self.encode_patches(images) for images in pair)
            own = cleaned[sum(map(len, parts)) :][: len(hidden_a)]
            parts.append(compare_images(nlvr, hidden_a, hidden_b, self._tokens(own, "[ENC]")))
        return torch.cat(parts)

    def embed_images(self, images: Images, batch_size: int = 16) -> Float[Tensor, "images embed"]:
        """Unit-length float32 embeddings of images, on the CPU."""
        batches = image_batches(images, self.image_size, batch_size)
        empty = torch.empty(0, self._embedder().config.embed_dim)
        return torch.cat([empty, *map(self.embed_prepared, batches)])

    def embed_texts(
        self, texts: str | Sequence[str], batch_size: int = 256
    ) -> Float[Tensor, "texts embed"]:
        """Unit-length float32 embeddings of texts, on the CPU."""
        model, batches = self._embedder(), text_batches(texts, batch_size)
        self.warn_of_unknown_words(as_texts(texts))
        parts = [embed_texts(model, self._tokens(own, "[CLS]")).cpu() for own in batches]
        return torch.cat([torch.empty(0, model.config.embed_dim), *parts])

    def embed_prepared(self, images: Tensor) -> Float[Tensor, "images embed"]:
        """As `embed_images`, of a batch of prepared images."""
        return embed_images(self._embedder(), self.encode_patches(images)).cpu()

    def encode(self, images: Float[Tensor, "images 3 height width"]) -> EncodedImages:
        """Encoded images, on the model's device; all in one pass.

        Args:
            images: normalised, as `eval_transform` gives them.
        """
        return EncodedImages(self.matcher, self.encode_patches(images))

    @torch.no_grad()
    def encode_patches(
        self, images: Float[Tensor, "images 3 height width"]
    ) -> Float[Tensor, "images patches width"]:
        """As `encode`, the patch tokens alone, of whatever model it is."""
        # Not inference mode: what comes out of it could not be explained by gradients.
        return self.model.encode_images(images.to(self.device, self.dtype))

    def generate(
        self,
        encoded: EncodedImages,
        decoding: Decoding,
        prompt: Prompt | Sequence[Prompt] = PROMPT,
        seeds: Sequence[int] | None = None,
        num_captions: int = 1,
    ) -> list[list[Caption]]:
        """Captions of encoded images: a list per image, of `num_captions`.

        Args:
            encoded: from `encode` of this object.
            decoding: how tokens are chosen.
            prompt: what a caption continues, of all images or one per image; may be empty.
            seeds: one per image, for nucleus sampling: they alone decide the image's draws,
                whatever other images are there.
            num_captions: per image.
        """
        self.require("lm")
        own = self.tokenizer, decoding, prompt, seeds, num_captions
        return caption_encoded(encoded, *own, self.given_tokens, self.name_tokens)

    def score(
        self,
        encoded: EncodedImages,
        texts: Sequence[Sequence[str]],
        first_token: FirstTokenName = "[ENC]",
        warns: bool = False,
    ) -> list[list[Match]]:
        """How well each image's texts describe it.

        Args:
            encoded: from `encode` of this object.
            texts: per image any number, also none.
            first_token: first token of a text that is matched.
            warns: whether something is said of a text that is cut.
        """
        self.require("itm")
        return score_texts(
            encoded,
            texts,
            lambda own: self._tokens(own, first_token, warns),
            lambda own: self._tokens(own, "[CLS]", warns=False),
        )

    def save(self, folder: str | Path) -> None:
        """Write a model folder, which `load` reads."""
        self._check_writable()
        about = self.kind, self.max_tokens, self.trained, self.given_tokens, self.name_tokens
        save_folder(Path(folder), self.model, self.tokenizer, *about)

    def save_original(self, path: str | Path, kind: str | None = None) -> None:
        """Write a file in the original's layout, `.pth` or `.safetensors` by its ending.

        What the layout has no place for (heads, the tokenizer) travels in a note beside the
        weights, which the original's code does not look at and `load` reads. A pre-trained or
        retrieval checkpoint gets a momentum model equal to the model and random queues, as where
        the original begins.

        Args:
            path: the file; replaced if it exists.
            kind: as which of the original's models: "pretrain", "retrieval", "itm", "caption",
                "vqa" or "nlvr"; by default what the model was trained as.

        Raises:
            RecipeError: if there is no such kind.
            CheckpointError: if the layout has no place for the model, or it cannot be written.
            MissingHead: if the model lacks a head that the kind has.
        """
        warn_of_given_text(self.given_tokens, "the original's layout")
        chosen = original_kind(self.kind, kind)
        self._check_writable()
        save_original(Path(path), self.model, self.tokenizer, chosen, self.max_tokens)

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
        self._check_writable()
        warn_of_given_text(self.given_tokens, "the layout of transformers")
        chosen: Any = kind or TO_HUGGINGFACE.get(self.kind)
        about = self.max_tokens, self.source
        save_huggingface(Path(folder), self.model, self.tokenizer, chosen, *about)

    def _check_writable(self) -> None:
        require_weights(self.model, "save")
        check_image_size(self.model, self.image_size)

    def warn_of_unknown_words(self, texts: Sequence[str], what: str = "texts") -> bool:
        """Whether the vocabulary lacks words of a job's texts; warns once (`UnknownWords`) if so.

        Args:
            texts: of the whole job, so that one warning tells all.
            what: the texts are, in the plural.
        """
        return warn_of_unknown_words(self.tokenizer, texts, self.max_tokens, what)

    def _tokens(
        self, texts: Sequence[str], first_token: FirstTokenName, warns: bool = True
    ) -> TokenBatch:
        # ALBEF was trained with `[CLS]` alone.
        first: FirstTokenName = "[CLS]" if isinstance(self.model, Albef) else first_token
        return tokens_for(self.tokenizer, texts, self.max_tokens, first, warns)

    def _embedder(self) -> Med | Albef | DualEncoder:
        if isinstance(self.model, DualEncoder):
            return self.model
        self.require("itc")
        return self.matcher
