"""Arithmetic of a CapFilt job, counted from the models' sizes and the texts that it wrote."""

from pathlib import Path

from openblip.capfilt.job import CapFiltSettings
from openblip.data.table import PairTable
from openblip.inference import Blip, Decoding, load
from openblip.model.flops import (
    image_encoder_flops,
    lm_head_flops,
    memory_flops,
    text_flops,
)

# Texts whose length is looked at.
_MEASURED = 10_000


def capfilt_flops(table: Path, settings: CapFiltSettings) -> float:
    """Operations of captioning the web rows of a finished table, and of scoring their texts.

    A text is taken to have the mean length, and counts as one pass over all of it, for each beam;
    both contrast and matching are computed of each given and synthetic text.
    """
    captioner = load(settings.captioners[0], device="cpu")
    judge = load(settings.filter, device="cpu")
    images, written, given = _texts(table)
    prompt = [settings.prompt + text for text in written]
    total = _writing(captioner, images, prompt, settings.decoding)
    return total + _judging(judge, images, [*given, *written])


def _texts(table: Path) -> tuple[int, list[str], list[str]]:
    """Web images, and their synthetic and given texts."""
    images = 0
    written: list[str] = []
    given: list[str] = []
    for batch in PairTable.open(table).scan(["origin", "captions", "synthetic"]):
        for row in batch.to_pylist():
            if row["origin"] == "web":
                images += 1
                written += row["synthetic"] or []
                given += row["captions"] or []
    return images, written, given


def _writing(model: Blip, images: int, texts: list[str], decoding: Decoding) -> float:
    config, beams = model.med.config, decoding.num_beams if decoding.method == "beam" else 1
    tokens = _mean_tokens(model, texts)
    patches = config.vision.num_patches
    total = image_encoder_flops(config, images) + memory_flops(config, images)
    total += beams * text_flops(config, len(texts), tokens, patches)
    return float(total + beams * lm_head_flops(config, len(texts), tokens))


def _judging(model: Blip, images: int, texts: list[str]) -> float:
    config, tokens = model.med.config, _mean_tokens(model, texts)
    patches = config.vision.num_patches
    total = image_encoder_flops(config, images) + memory_flops(config, images)
    total += text_flops(config, len(texts), tokens, reads_first=True)
    return float(total + text_flops(config, len(texts), tokens, patches, reads_first=True))


def _mean_tokens(model: Blip, texts: list[str]) -> int:
    sample = texts[:: max(1, len(texts) // _MEASURED)]
    if not sample:
        return 0
    return round(model.tokenizer.encode(sample, model.max_tokens).mask.sum().item() / len(sample))
