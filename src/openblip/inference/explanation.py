"""Where a model looks: Grad-CAM over the cross-attention of one text layer, and pictures of it.

A token's map is the mean over heads of relu(gradient) * attention, the gradient being that of a
score with respect to the layer's attention probabilities; the image's class token is left out
(Selvaraju et al. 2017; on cross-attention: ALBEF, weakly-supervised visual grounding).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from openblip.batches.tokenizer import TextTokenizer
from openblip.deploy.models import require_weights
from openblip.inference.answers import question_tokens, read_questions, write_answers
from openblip.inference.captions import Word, caption_ids, find_words, prompt_ids
from openblip.inference.decoding import Decoding
from openblip.inference.encoding import EncodedImages, FirstTokenName, finite, tokens_for
from openblip.inference.image_sources import image_batches
from openblip.model import AttentionRecord, ImageMemory, Med, TextPass
from openblip.model.text import TextStack
from openblip.model.vqa import Vqa
from openblip.runtime.atomic import replace_file
from openblip.runtime.errors import DataError, RecipeError
from openblip.sources.images import ImageSource, open_image

if TYPE_CHECKING:
    from openblip.inference.blip import Blip

Hidden = Float[Tensor, "1 patches width"]
"""One encoded image, as `encode_images` of the model gives it: class token, then a square grid."""


def default_layer(depth: int) -> int:
    """The layer that is explained, counted from 0: 7 of 12 as in BLIP's demonstrations.

    That is the layer of the text localisation example in LAVIS, where BLIP's authors published it,
    and of `forward_itm` there (`compute_gradcam` itself defaults to 6; ALBEF's notebook uses 8).
    Of another depth it is the layer at 7/11 of the way to the last, rounded down: never the last,
    unless there is only one.
    """
    return (depth - 1) * 7 // 11


@dataclass(frozen=True, eq=False)
class Heatmap:
    """Where a model looks at an image for each word of a text (Grad-CAM over cross-attention).

    The image is seen squashed to a square, so that a map covers the whole of an image of any shape.
    """

    tokens: tuple[str, ...]
    """The words, without special tokens; a word of several pieces is written whole."""
    maps: Float[Tensor, "tokens rows columns"]
    """Float32, at least 0: a map per word, the mean of those of its pieces, on the patch grid."""
    score: float
    """What the maps are gradients of: the logit of a match, or a log-probability."""
    overall: Float[Tensor, "rows columns"]
    """The mean over all pieces of all words."""

    def overlay(self, image: ImageSource, token: int | str | None = None) -> Image.Image:
        """The upright image with a map over it, from dark violet (none) to yellow (its largest).

        Args:
            image: the one that was explained.
            token: number of a word, or the word (its first occurrence); by default all together.

        Raises:
            RecipeError: if there is no such word.
            DataError: if the image cannot be read.
        """
        return _blend(open_image(image), self._map_of(token))

    def contact_sheet(self, image: ImageSource) -> Image.Image:
        """One picture with an overlay of all words together and one of each word, labelled.

        A word in letters that Pillow's own font lacks is labelled by its number, from 0.
        Each overlay is scaled to the largest value of its own map; a scale at the right says so.

        Raises:
            DataError: if the image cannot be read.
        """
        picture = _fitted(open_image(image))
        maps = [self.overall, *self.maps]
        columns = _columns(len(maps))
        rows = -(-len(maps) // columns)
        cell_width, cell_height = _cell(picture)
        width, height = columns * (cell_width + _GAP) + _GAP, rows * (cell_height + _GAP) + _GAP
        sheet = Image.new("RGB", (width + _SCALE, height), _PAPER)
        draw = ImageDraw.Draw(sheet)
        _draw_scale(sheet, draw, width)
        for number, (values, label) in enumerate(
            zip(maps, (_OVERALL_LABEL, *map(_label, count(), self.tokens)), strict=True)
        ):
            left = _GAP + number % columns * (cell_width + _GAP)
            top = _GAP + number // columns * (cell_height + _GAP)
            sheet.paste(_blend(picture, values), (left + (cell_width - picture.width) // 2, top))
            middle = (left + cell_width / 2, top + picture.height + _LABEL / 2)
            text, font = _fitting(label, cell_width)
            draw.text(middle, text, _SOFT if number == 0 else _INK, font, anchor="mm")
        return sheet

    def save(self, path: str | Path, image: ImageSource) -> Path:
        """Write the contact sheet as a PNG file, whole or not at all, and return where it is.

        Raises:
            DataError: if the name does not end in `.png`, the file cannot be written, or the image
                cannot be read.
        """
        file = Path(path)
        if file.suffix.lower() != ".png":
            raise DataError(f"{file}: heat maps are written as PNG; give a name that ends in .png")
        sheet = self.contact_sheet(image)
        try:
            with replace_file(file) as unfinished:
                sheet.save(unfinished, "PNG")
        except OSError as error:
            raise DataError(f"{error}; give another path") from error
        return file

    def _map_of(self, token: int | str | None) -> Float[Tensor, "rows columns"]:
        if token is None:
            return self.overall
        if isinstance(token, str):
            if token not in self.tokens:
                raise RecipeError(f"no word {token!r}; there are {', '.join(self.tokens)}")
            return self.maps[self.tokens.index(token)]
        if not 0 <= token < len(self.tokens):
            raise RecipeError(f"no word {token}; words are numbered 0 to {len(self.tokens) - 1}")
        return self.maps[token]


def explain(
    blip: "Blip",
    image: ImageSource,
    text: str | None,
    question: str | None,
    answer: str | None,
    prompt: str,
    layer: int | None,
    first_token: FirstTokenName,
) -> Heatmap:
    """What `Blip.explain` gives: of a match, an answer or a caption, by what is given."""
    if text is not None and question is not None:
        raise RecipeError("explain takes a text or a question, not both")
    # Graphs of another runtime have no gradients.
    require_weights(blip.model, "explain by")
    blip.warn_of_unknown_words([given for given in (text, question, answer) if given])
    (images,) = image_batches(image, blip.image_size, 1)
    hidden = blip.encode_patches(images)
    tokenizer = blip.tokenizer
    if question is not None:
        return explain_question(blip.vqa, tokenizer, hidden, question, answer, layer, first_token)
    matches = text is not None and (blip.can_match or not isinstance(blip.model, Med))
    blip.require("itm" if matches else "lm")
    if text is not None and matches:
        tokens = tokens_for(tokenizer, [text], blip.max_tokens, first_token)
        return explain_match(blip.med, tokenizer, hidden, tokens.row(0), layer)
    if text is None:
        ((caption,),) = blip.generate(EncodedImages(blip.med, hidden), Decoding(), prompt)
        ids = list(caption.token_ids)
    else:
        ids = caption_ids(tokenizer, prompt, text, blip.med.config.text.max_positions)
    return explain_caption(blip.med, tokenizer, hidden, ids, prompt, layer)


@torch.inference_mode(False)
@torch.enable_grad()
def explain_match(
    med: Med,
    tokenizer: TextTokenizer,
    hidden: Hidden,
    token_ids: Sequence[int],
    layer: int | None = None,
) -> Heatmap:
    """Where each word of a text is found; the score is the logit of a match.

    It is read from the first token, so that in the last layer no word has a gradient: all maps of
    that layer are zero.

    Args:
        med: the model, in eval mode.
        tokenizer: of the text.
        hidden: the image.
        token_ids: the text without padding: `[ENC]` (or `[CLS]`), pieces, `[SEP]`.
        layer: whose attention, counted from 0; by default `default_layer`.

    Raises:
        MissingHead: if the model cannot match.
        RecipeError: if it has no such layer.
        DataError: if the text has no word.
    """
    med.require("itm")
    words = _words(tokenizer, token_ids, "text")
    memory, record = _recorded(med.text, hidden, layer)
    ids = _row(token_ids, hidden)
    # The logit, not the probability, whose gradient vanishes where the model is sure.
    score = med.match(ids, torch.ones_like(ids, dtype=torch.bool), memory)[0, 1].float()
    return _heatmap(words, _token_maps(med, score, record), float(score.detach()))


@torch.inference_mode(False)
@torch.enable_grad()
def explain_caption(
    med: Med,
    tokenizer: TextTokenizer,
    hidden: Hidden,
    token_ids: Sequence[int],
    prompt: str,
    layer: int | None = None,
) -> Heatmap:
    """Where the decoder looks as it writes each word; the score is the caption's log-probability.

    A token's map comes from its log-probability and the attention at the place before, which
    predicts it. The prompt has no maps.

    Args:
        med: the model, in eval mode.
        tokenizer: of the text.
        hidden: the image.
        token_ids: of a `Caption`: `[DEC]`, prompt, text and, if it ended, `[SEP]`.
        prompt: what the caption continues; may be empty.
        layer: whose attention, counted from 0; by default `default_layer`.

    Raises:
        MissingHead: if the model cannot generate.
        RecipeError: if it has no such layer.
        DataError: if nothing was written behind the prompt.
    """
    med.require("lm")
    start = prompt_ids(tokenizer, prompt, med.config.text.max_positions).shape[1]
    words = _words(tokenizer, token_ids[start:], "caption")
    memory, record = _recorded(med.text, hidden, layer, causal=True)
    # Without the last token, from which nothing is predicted.
    texts = TextPass(_row(token_ids[:-1], hidden), memory=memory, causal=True)
    (states,) = med.text(texts)
    maps, total = [], 0.0
    for place in range(start, len(token_ids)):
        # The vocabulary is the widest layer: each gradient runs through one token of it.
        logits = med.text.logits(states[:, place - 1 : place])[0, 0].float()
        logprob = logits.log_softmax(dim=-1)[token_ids[place]]
        maps.append(_token_maps(med, logprob, record)[place - 1])
        total += float(logprob.detach())
    return _heatmap(words, torch.stack(maps), total)


@torch.inference_mode(False)
@torch.enable_grad()
def explain_answer(
    vqa: Vqa,
    tokenizer: TextTokenizer,
    hidden: Hidden,
    question_ids: Sequence[int],
    answer_ids: Sequence[int],
    layer: int | None = None,
) -> Heatmap:
    """Where each word of a question looks for the answer; the score is its log-probability.

    The gradient runs from the answer through the question's states to the question's attention.

    Args:
        vqa: the model, in eval mode.
        tokenizer: of question and answer.
        hidden: the image.
        question_ids: without padding: `[ENC]`, pieces, `[SEP]`.
        answer_ids: `[DEC]`, pieces and, if it ended, `[SEP]`.
        layer: whose attention, counted from 0; by default `default_layer`.

    Raises:
        RecipeError: if the model has no such layer.
        DataError: if the question has no word.
    """
    words = _words(tokenizer, question_ids, "question")
    memory, record = _recorded(vqa.question, hidden, layer)
    ids = _row(question_ids, hidden)
    states = vqa.read_questions(ids, torch.ones_like(ids, dtype=torch.bool), memory)
    answer = _row(answer_ids, hidden)
    # A single question has no padding that a mask would hide.
    logits = vqa.decode(answer[:, :-1], None, vqa.question_memory(states, None))[0].float()
    score = logits.log_softmax(dim=-1).gather(1, answer[0, 1:, None]).sum()
    return _heatmap(words, _token_maps(vqa, score, record), float(score.detach()))


def explain_question(
    vqa: Vqa,
    tokenizer: TextTokenizer,
    hidden: Hidden,
    question: str,
    answer: str | None = None,
    layer: int | None = None,
    first_token: FirstTokenName = "[ENC]",
) -> Heatmap:
    """As `explain_answer`, of a question and an answer as people write them.

    Without an answer that which the model writes is explained.
    """
    most = vqa.config.text.max_positions
    tokens = question_tokens(tokenizer, [question], most, first_token)
    if answer is None:
        memory = read_questions(vqa, hidden, tokens)
        (written,) = write_answers(vqa, memory, tokenizer.special)
        answer_ids = list(written.token_ids)
    else:
        answer_ids = tokenizer.encode([answer], most, first="dec").row(0)
    return explain_answer(vqa, tokenizer, hidden, tokens.row(0), answer_ids, layer)


def _words(tokenizer: TextTokenizer, ids: Sequence[int], what: str) -> list[Word]:
    words = find_words(tokenizer, ids)
    if not words:
        raise DataError(f"the {what} has no word to explain; give one that has")
    return words


@torch.no_grad()
def _recorded(
    text: TextStack, hidden: Hidden, layer: int | None, *, causal: bool = False
) -> tuple[ImageMemory, AttentionRecord]:
    number = default_layer(text.config.depth) if layer is None else layer
    return text.remember(hidden, causal=causal).recording(number)


def _row(token_ids: Sequence[int], hidden: Hidden) -> Int[Tensor, "1 tokens"]:
    return torch.tensor([list(token_ids)], device=hidden.device)


def _token_maps(
    model: Med | Vqa, score: Float[Tensor, ""], record: AttentionRecord
) -> Float[Tensor, "tokens rows columns"]:
    """Every token's map, on the CPU; the graph stays for another score."""
    probabilities = record.probabilities
    assert probabilities is not None, "no pass has read the memory"
    # Of the attention alone: no weight gets a gradient.
    (gradient,) = torch.autograd.grad(score, probabilities, retain_graph=True)
    first = model.image_encoder.num_prefix_tokens
    maps = (gradient.clamp(min=0) * probabilities.detach()).mean(dim=1)[0, :, first:]
    side = math.isqrt(maps.shape[1])
    if side * side != maps.shape[1]:
        raise RecipeError(
            f"this model's backbone gives {maps.shape[1]} tokens of an image, which are no square "
            "of patches: there is no map of them"
        )
    return finite(maps.view(-1, side, side).cpu(), "relevances")


def _heatmap(
    words: list[Word], token_maps: Float[Tensor, "tokens rows columns"], score: float
) -> Heatmap:
    pieces = [place for word in words for place in word.places]
    return Heatmap(
        tokens=tuple(word.text for word in words),
        maps=torch.stack([token_maps[list(word.places)].mean(dim=0) for word in words]),
        score=score,
        overall=token_maps[pieces].mean(dim=0),
    )


_OVERALL_LABEL = "all words"
# Of a contact sheet, in pixels.
_PICTURE = 224
_GAP = 12
_LABEL = 28
_FONT = 18
_SMALLEST_FONT = 11
# Never a letter: a font draws what it draws for all that it lacks.
_NO_LETTER = "\U0010ffff"
# Of the scale beside it: all of it, and its colours.
_SCALE, _BAR = 52, 10
_PAPER, _INK, _SOFT = "#ffffff", "#1c2126", "#5d6872"
# How much of the colour covers the picture where there is no heat, and where it is greatest.
_COVER = (0.35, 0.75)


def _blend(picture: Image.Image, values: Float[Tensor, "rows columns"]) -> Image.Image:
    """The picture with the map over it, in bytes all through: a photograph may be large."""
    # A map without heat stays without: nothing is divided by zero.
    scaled = values / values.max().clamp(min=torch.finfo(torch.float32).tiny)
    levels = (scaled * 255).round().to(torch.uint8).numpy()
    heat = Image.fromarray(levels).resize(picture.size, Image.Resampling.BICUBIC)
    cover = heat.point([round(255 * np.interp(level, (0, 255), _COVER)) for level in range(256)])
    heat.putpalette(heat_colours())
    return Image.composite(heat.convert("RGB"), picture, cover)


@cache
def heat_colours() -> bytes:
    """Red, green and blue of 256 levels, in equal steps of lightness from dark violet to yellow.

    A curve in OKLCH, whose lightness is that which people see, so that equal differences of heat
    look equal, in grey and to the colour-blind too. It stays within what a screen can show.
    """
    level = np.linspace(0.0, 1.0, 256)
    lightness = 0.20 + 0.72 * level
    chroma = 0.08 + 0.10 * np.sin(np.pi * level) + 0.05 * level
    hue = np.radians(290 + 172 * level)
    a, b = chroma * np.cos(hue), chroma * np.sin(hue)
    # From OKLab to linear red, green and blue (Ottosson 2020).
    cones = np.stack(
        [
            lightness + 0.3963377774 * a + 0.2158037573 * b,
            lightness - 0.1055613458 * a - 0.0638541728 * b,
            lightness - 0.0894841775 * a - 1.2914855480 * b,
        ]
    )
    to_linear = [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
    linear = (np.array(to_linear) @ cones**3).clip(0.0, 1.0)
    standard = np.where(linear < 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return bytes(np.rint(standard.T * 255).astype(np.uint8).flatten())


def _draw_scale(sheet: Image.Image, draw: ImageDraw.ImageDraw, left: int) -> None:
    """What the colours say, from nothing below to the largest value of a map above."""
    colours = np.frombuffer(heat_colours(), np.uint8).reshape(1, 256, 3)[:, ::-1]
    height = min(sheet.height - 2 * _GAP, _PICTURE)
    bar = Image.fromarray(colours).transpose(Image.Transpose.ROTATE_270)
    sheet.paste(bar.resize((_BAR, height)), (left, _GAP))
    font = ImageFont.load_default(_SMALLEST_FONT)
    for text, top, anchor in (("most", _GAP, "lt"), ("0", _GAP + height, "lb")):
        draw.text((left + _BAR + 4, top), text, _SOFT, font, anchor=anchor)


def _fitted(picture: Image.Image) -> Image.Image:
    """The picture as large as a cell takes it, in its own shape."""
    scale = _PICTURE / max(picture.size)
    width, height = (max(round(side * scale), 1) for side in picture.size)
    # Enlarged pixels of a tiny picture stay pixels.
    kind = Image.Resampling.NEAREST if scale > 2 else Image.Resampling.LANCZOS
    return picture.resize((width, height), kind)


def _cell(picture: Image.Image) -> tuple[int, int]:
    """Width and height of a picture with its label; a narrow picture leaves room for a word."""
    return max(picture.width, _PICTURE // 2), picture.height + _LABEL


def _columns(number: int) -> int:
    """A sheet somewhat wider than high, of at most six columns."""
    return min(number, 6, math.ceil(math.sqrt(1.5 * number)))


def _label(number: int, word: str) -> str:
    """The word, or its number where the font would draw little but empty boxes."""
    font = ImageFont.load_default(_FONT)
    box = bytes(font.getmask(_NO_LETTER))
    lacking = sum(bytes(font.getmask(letter)) == box for letter in word)
    return f"#{number}" if 2 * lacking > len(word) else word


def _fitting(label: str, width: int) -> tuple[str, ImageFont.FreeTypeFont | ImageFont.ImageFont]:
    """The label in the largest size that fits; shortened if the smallest does not."""
    for size in range(_FONT, _SMALLEST_FONT - 1, -1):
        font = ImageFont.load_default(size)
        if font.getlength(label) <= width:
            return label, font
    while label and font.getlength(f"{label}...") > width:
        label = label[:-1]
    return f"{label}...", font
