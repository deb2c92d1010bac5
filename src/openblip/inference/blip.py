"""A loaded model with its tokenizer: captions, embeddings, matches."""

import secrets
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import islice, repeat

import torch
from jaxtyping import Float
from torch import Tensor

from openblip.batches.shuffle import keyed_hash
from openblip.batches.tokenizer import TokenBatch
from openblip.inference.answers import Answer, AnswerList, top_answers
from openblip.inference.bundle import ModelBundle, check_batch_size
from openblip.inference.captions import Caption, caption_encoded, caption_ids
from openblip.inference.decoding import Decoding, Method, Scoring
from openblip.inference.explanation import Heatmap, explain_caption, explain_match, explain_question
from openblip.inference.image_input import EncodedImages, Images, as_sources, embed_images
from openblip.inference.matching import (
    Match,
    compare_images,
    embed_texts,
    match_probabilities,
    score_texts,
)
from openblip.inference.texts import FirstTokenName, encode_texts
from openblip.model import Med
from openblip.model.albef import Albef
from openblip.model.dual import DualEncoder
from openblip.runtime.errors import DataError, RecipeError
from openblip.sources.images import ImageSource

PROMPT = "a picture of "
"""What the captioners of the paper were trained to continue."""

# Of a sentence about two images, as the original's NLVR2 data set cuts it.
_COMPARED_WORDS = 40


class Blip(ModelBundle):
    """What a checkpoint can do with images and texts.

    Images are paths, Pillow images, uint8 arrays (height, width, 3) or encoded bytes, one or
    several. They are processed `batch_size` at a time. Each method that needs a head which the
    checkpoint lacks raises `MissingHead`; an unreadable image raises `DataError`.
    """

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
        prompt: str | Sequence[str] = PROMPT,
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
        return list(
            self.caption_stream(
                as_sources(images),
                decoding,
                prompt=prompt,
                num_captions=num_captions,
                seed=seed,
                batch_size=batch_size,
            )
        )

    def caption_stream(
        self,
        images: Iterable[ImageSource],
        decoding: Decoding | None = None,
        *,
        prompt: str | Iterable[str] = PROMPT,
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
        key = secrets.randbits(63) if seed is None else seed
        prompts = repeat(prompt) if isinstance(prompt, str) else iter(prompt)
        count, is_told = 0, False
        for encoded in self._encoded(images, batch_size):
            seeds = [keyed_hash(key, count + place) for place in range(len(encoded))]
            count += len(encoded)
            own = list(islice(prompts, len(encoded)))
            is_told = is_told or self.warn_of_unknown_words(list(dict.fromkeys(own)), "prompts")
            yield from self.generate(encoded, decoding, own, seeds, num_captions)

    def embed_images(self, images: Images, batch_size: int = 16) -> Float[Tensor, "images embed"]:
        """Unit-length float32 embeddings of images, on the CPU."""
        model = self._embedder()
        parts = [torch.empty(0, model.config.embed_dim)]
        for hidden in self._hidden(as_sources(images), batch_size):
            parts.append(embed_images(model, hidden).cpu())
        return torch.cat(parts)

    def embed_texts(
        self, texts: str | Sequence[str], batch_size: int = 256
    ) -> Float[Tensor, "texts embed"]:
        """Unit-length float32 embeddings of texts, on the CPU."""
        model = self._embedder()
        texts = [texts] if isinstance(texts, str) else texts
        check_batch_size(batch_size)
        self.warn_of_unknown_words(texts)
        parts = [torch.empty(0, model.config.embed_dim)]
        for start in range(0, len(texts), batch_size):
            tokens = self._tokens(texts[start : start + batch_size], "[CLS]")
            parts.append(embed_texts(model, tokens).cpu())
        return torch.cat(parts)

    def _embedder(self) -> Med | Albef | DualEncoder:
        if isinstance(self.model, DualEncoder):
            return self.model
        self.require("itc")
        return self.matcher

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
            first_token: first token of a text: `[ENC]` as BLIP was trained, or `[CLS]` as
                `transformers` and the original's demonstration do.
            batch_size: images at a time.

        Raises:
            DataError: if there are not as many texts as images.
        """
        self.require("itm")
        sources = list(as_sources(images))
        texts = [texts] if isinstance(texts, str) else texts
        if len(sources) not in (1, len(texts)):
            raise DataError(
                f"{len(sources)} images and {len(texts)} texts: match compares them in pairs, or "
                "a single image with all texts; use match_all to compare all with all"
            )
        self.warn_of_unknown_words(texts)
        per_image = [texts] if len(sources) == 1 else [[text] for text in texts]
        matches: list[list[Match]] = []
        for encoded in self._encoded(sources, batch_size):
            own = per_image[len(matches) :][: len(encoded)]
            tokens_of = partial(self._tokens, first_token=first_token)
            matches += score_texts(encoded, own, tokens_of, self._tokens_to_embed)
        return [match for of_image in matches for match in of_image]

    def match_all(
        self,
        images: Images,
        texts: str | Sequence[str],
        first_token: FirstTokenName = "[ENC]",
        batch_size: int = 16,
    ) -> Float[Tensor, "images texts"]:
        """Probabilities that they match, of every image with every text, on the CPU.

        Each image is encoded once, with its cross-attention keys and values.
        """
        self.require("itm")
        texts = [texts] if isinstance(texts, str) else texts
        self.warn_of_unknown_words(texts)
        tokens = self._tokens(texts, first_token)
        every = range(len(tokens.ids))
        parts = [torch.empty(0, len(every))]
        for encoded in self._encoded(as_sources(images), batch_size):
            pairs = [every] * len(encoded)
            parts += [
                row[None]
                for row in match_probabilities(self.matcher, encoded.encoder_memory, tokens, pairs)
            ]
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
            first_token: first token of a question: `[ENC]` as BLIP was trained, or `[CLS]` as
                `transformers` does.
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
        sources = list(as_sources(images))
        questions = [questions] if isinstance(questions, str) else list(questions)
        if len(sources) not in (1, len(questions)):
            raise DataError(
                f"{len(sources)} images and {len(questions)} questions: give a question for each "
                "image, or a single image"
            )
        self.warn_of_unknown_words([*questions, *(candidates or ())], "questions and candidates")
        listed = None
        if candidates is not None:
            listed = AnswerList.of(self.tokenizer, candidates, vqa.config.text.max_positions)
        answers: list[list[Answer]] = []
        for hidden in self._hidden(sources, batch_size):
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
                `explain.default_layer`.
            first_token: first token of a matched text or a question.

        Raises:
            RecipeError: if there is no such layer, or both a text and a question are given.
            DataError: if the text has no word.
        """
        if text is not None and question is not None:
            raise RecipeError("explain takes a text or a question, not both")
        self.warn_of_unknown_words([given for given in (text, question, answer) if given])
        hidden = next(self._hidden([image], 1))
        if question is not None:
            return explain_question(
                self.vqa, self.tokenizer, hidden, question, answer, layer, first_token
            )
        matches = text is not None and (self.can_match or not isinstance(self.model, Med))
        self.require("itm" if matches else "lm")
        if text is not None and matches:
            tokens = self._tokens([text], first_token)
            return explain_match(self.med, self.tokenizer, hidden, tokens.row(0), layer)
        if text is None:
            ((caption,),) = self.generate(EncodedImages(self.med, hidden), Decoding(), prompt)
            ids = list(caption.token_ids)
        else:
            ids = caption_ids(self.tokenizer, prompt, text, self.med.config.text.max_positions)
        return explain_caption(self.med, self.tokenizer, hidden, ids, prompt, layer)

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
        sources = [list(as_sources(images)) for images in (images_a, images_b)]
        sentences = [sentences] if isinstance(sentences, str) else sentences
        counts = {len(sources[0]), len(sources[1]), len(sentences)}
        if len(counts) > 1:
            raise DataError(
                f"{len(sources[0])} first images, {len(sources[1])} second images and "
                f"{len(sentences)} sentences: compare takes as many of each"
            )
        clean = self.tokenizer.cleaning.caption
        cleaned = [clean(sentence, _COMPARED_WORDS) for sentence in sentences]
        self.warn_of_unknown_words(cleaned, "sentences")
        parts = [torch.empty(0)]
        for first, second in zip(
            self._hidden(sources[0], batch_size), self._hidden(sources[1], batch_size), strict=True
        ):
            own = cleaned[sum(map(len, parts)) :][: len(first)]
            tokens = self._tokens(own, "[ENC]")
            parts.append(compare_images(nlvr, first, second, tokens))
        return torch.cat(parts)

    def generate(
        self,
        encoded: EncodedImages,
        decoding: Decoding,
        prompt: str | Sequence[str] = PROMPT,
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
        return caption_encoded(encoded, self.tokenizer, decoding, prompt, seeds, num_captions)

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
        if warns:
            noisily = partial(self._tokens, first_token=first_token)
            return score_texts(encoded, texts, noisily, self._tokens_to_embed)

        def tokens_of(own: Sequence[str]) -> TokenBatch:
            return encode_texts(self.tokenizer, own, self.max_tokens, self._first(first_token))

        return score_texts(encoded, texts, tokens_of, self._tokens_to_embed)

    def _tokens_to_embed(self, texts: Sequence[str]) -> TokenBatch:
        return encode_texts(self.tokenizer, texts, self.max_tokens, "[CLS]")
