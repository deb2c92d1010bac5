"""Folders that `transformers` reads as its own, written whole or not at all."""

import logging
import resource
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from openblip.batches.tokenizer import TextTokenizer
from openblip.batches.transforms import eval_transform
from openblip.checkpoints.folder import FROM_HUGGINGFACE
from openblip.checkpoints.huggingface import read_huggingface, save_huggingface
from openblip.checkpoints.huggingface_config import CLASSES, HuggingFaceKind
from openblip.model import Med, MedConfig
from openblip.model.vqa import Vqa, VqaConfig
from openblip.runtime.errors import CheckpointError

transformers = pytest.importorskip("transformers")

from ..batches.foreign_tokenizers import (  # noqa: E402
    ALL,
    bert_folder,
    letters_of,
    unigram_folder,
)
from .huggingface_peers import (  # noqa: E402
    KINDS,
    WORDS,
    folder_of,
    images_for,
    peer,
    write_vocabulary,
)


@pytest.fixture
def complaints() -> Iterator[list[str]]:
    """What `transformers` warns of."""
    heard: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(record.getMessage())

    ear = Ear(logging.WARNING)
    logger = logging.getLogger("transformers")
    logger.addHandler(ear)
    yield heard
    logger.removeHandler(ear)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_transformers_reads_the_same_model(
    tokenizer: TextTokenizer,
    tmp_path: Path,
    kind: HuggingFaceKind,
    complaints: list[str],
) -> None:
    theirs = peer(kind, tokenizer)
    loaded = read_huggingface(folder_of(theirs, tokenizer, tmp_path / "theirs"))
    complaints.clear()
    save_huggingface(tmp_path / "ours", loaded.model, loaded.tokenizer)
    again, report = getattr(transformers, CLASSES[kind]).from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not any(report.values()), report
    assert [text for text in complaints if "deprecated" not in text] == []
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    images = images_for(theirs, 2)
    texts = tokenizer.encode(["a dog", "two cats sleep"], 12)
    answers = {"decoder_input_ids": texts.ids, "labels": texts.ids} if kind == "vqa" else {}
    given = {"pixel_values": images, "input_ids": texts.ids, **answers}
    for name, value in theirs(**given).items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(again.eval()(**given)[name], value), name


def test_transformers_generates_the_same(
    tokenizer: TextTokenizer, tmp_path: Path, complaints: list[str]
) -> None:
    theirs = peer("caption", tokenizer)
    loaded = read_huggingface(folder_of(theirs, tokenizer, tmp_path / "theirs"))
    save_huggingface(tmp_path / "ours", loaded.model, loaded.tokenizer)
    again = transformers.BlipForConditionalGeneration.from_pretrained(tmp_path / "ours")
    complaints.clear()
    images = images_for(theirs, 3)
    assert torch.equal(
        again.generate(images, num_beams=3, max_length=12),
        theirs.generate(images, num_beams=3, max_length=12),
    )
    assert complaints == []


@pytest.mark.parametrize("vocabulary", ["trained", "bert"])
def test_the_processor(
    config: MedConfig,
    tokenizer: TextTokenizer,
    tmp_path: Path,
    vocabulary: str,
    complaints: list[str],
) -> None:
    if vocabulary == "bert":
        write_vocabulary(tmp_path, WORDS)
        tokenizer = TextTokenizer.from_file(tmp_path / "vocab.txt")
    sizes = replace(config.text, vocab_size=tokenizer.vocab_size)
    med = Med(replace(config, text=sizes, heads=("lm",)))
    save_huggingface(tmp_path / "ours", med, tokenizer, max_tokens=20)
    assert (tmp_path / "ours" / "vocab.txt").exists() == (vocabulary == "bert")
    processor = transformers.BlipProcessor.from_pretrained(tmp_path / "ours")
    assert [text for text in complaints if "torchvision" not in text] == []

    pixels = np.random.default_rng(0).integers(0, 256, (40, 25, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    texts = ["A dog runs, two cats sleep.", "grass"]
    batch = processor(images=image, text=texts, padding=True, truncation=True, return_tensors="pt")
    expected = eval_transform(image, config.vision.image_size)
    assert (batch["pixel_values"][0] - expected).abs().max() < 1e-5
    ours = tokenizer.encode(texts, 20)
    length = batch["input_ids"].shape[1]
    assert torch.equal(batch["input_ids"], ours.ids[:, :length])
    assert torch.equal(batch["attention_mask"].bool(), ours.mask[:, :length])
    assert processor.tokenizer.model_max_length == 20
    assert len(processor.tokenizer) == tokenizer.vocab_size
    for row in ours.ids:
        decoded = processor.decode(row, skip_special_tokens=True)
        assert decoded.strip() == tokenizer.decode(row)
    assert read_huggingface(tmp_path / "ours").max_tokens == 20


@pytest.mark.parametrize("kind", ["cased", "accents", "unigram"])
def test_transformers_reads_other_languages_tokenizers_alike(
    config: MedConfig, tmp_path: Path, kind: str
) -> None:
    if kind == "unigram":
        folder = unigram_folder(tmp_path / "theirs", ALL)
    else:
        settings = {"do_lower_case": kind != "cased", "strip_accents": False}
        letters = letters_of([*ALL, *(text.lower() for text in ALL)])
        folder = bert_folder(tmp_path / "theirs", letters, **settings)
    tokenizer = TextTokenizer.from_file(folder)
    med = Med(replace(config, text=replace(config.text, vocab_size=tokenizer.vocab_size)))
    save_huggingface(tmp_path / "ours", med, tokenizer, "caption", max_tokens=24)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    again = read_huggingface(tmp_path / "ours").tokenizer
    for text in ALL:
        assert theirs(text)["input_ids"] == tokenizer.encode([text], 512).row(0)
        assert again.pieces([text]) == tokenizer.pieces([text])
    assert (theirs.pad_token_id, theirs.mask_token_id) == (
        tokenizer.special.pad,
        tokenizer.special.mask,
    )


def test_both_parts_of_a_pretrained_model(
    med: Med, tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    seen: set[str] = set()
    kinds: tuple[HuggingFaceKind, ...] = ("caption", "retrieval")
    for kind in kinds:
        save_huggingface(tmp_path / kind, med, tokenizer, kind)
        loaded = read_huggingface(tmp_path / kind)
        assert loaded.kind == FROM_HUGGINGFACE[kind]
        for name, tensor in loaded.model.state_dict().items():
            assert torch.equal(tensor, med.state_dict()[name]), name
        seen |= set(loaded.model.state_dict())
    assert seen == set(med.state_dict())


def test_a_folder_with_something_else_is_kept(
    med: Med, tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(CheckpointError, match=r"holds holiday\.jpg"):
        save_huggingface(tmp_path, med, tokenizer, "caption")
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]


def test_a_model_is_replaced_whole_or_not_at_all(
    med: Med, tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    save_huggingface(folder, med, tokenizer, "caption")
    save_huggingface(folder, med, tokenizer, "retrieval")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    write_vocabulary(tmp_path, WORDS)
    other = TextTokenizer.from_file(tmp_path / "vocab.txt")
    with pytest.raises(CheckpointError, match=f"tokenizer has {len(WORDS) + 2} tokens, but"):
        save_huggingface(folder, med, other, "caption")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="is a file; give a folder"):
        save_huggingface(tmp_path / "file", med, tokenizer, "caption")


def test_a_disk_without_room_leaves_the_old_model(
    med: Med, tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    save_huggingface(folder, med, tokenizer, "caption")
    before = (folder / "model.safetensors").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
    try:
        with pytest.raises(CheckpointError, match=f"{folder}: cannot be written"):
            save_huggingface(folder, med, tokenizer, "retrieval")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (folder / "model.safetensors").read_bytes() == before


def test_widths_that_their_class_cannot_have(
    config: MedConfig, tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    model = Vqa(VqaConfig(vision=config.vision, text=config.text))
    with pytest.raises(CheckpointError, match=r"vision\.width 64 and text\.width 128"):
        save_huggingface(tmp_path / "vqa", model, tokenizer)
    assert not (tmp_path / "vqa").exists()


def test_images_that_nobody_would_read_are_not_written(
    config: MedConfig, tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    vision = replace(config.vision, image_size=4224, patch_size=128)
    med = Med(replace(config, vision=vision, heads=("lm",)))
    with pytest.raises(CheckpointError, match=r"size is .*4224.*, expected a square"):
        save_huggingface(tmp_path / "large", med, tokenizer)
    assert not list(tmp_path.iterdir())


# `transformers` has no auto class for ITM, and no pipeline for questions about images any more.
@pytest.mark.parametrize(
    ("kind", "auto"),
    [
        ("caption", "AutoModelForImageTextToText"),
        ("vqa", "AutoModelForVisualQuestionAnswering"),
        ("dual", "AutoModel"),
    ],
)
def test_the_auto_classes_open_the_folder(
    tokenizer: TextTokenizer, tmp_path: Path, kind: HuggingFaceKind, auto: str
) -> None:
    written = read_huggingface(folder_of(peer(kind, tokenizer), tokenizer, tmp_path / "theirs"))
    save_huggingface(tmp_path / "ours", written.model, tokenizer, kind)
    model = getattr(transformers, auto).from_pretrained(tmp_path / "ours")
    assert type(model).__name__ == CLASSES[kind]
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "ours")
    assert type(processor).__name__ == "BlipProcessor"


def test_the_pipeline_for_captions_writes_what_the_model_writes(
    tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    written = read_huggingface(
        folder_of(peer("caption", tokenizer), tokenizer, tmp_path / "theirs")
    )
    save_huggingface(tmp_path / "ours", written.model, tokenizer, "caption")
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 30, 3), np.uint8))
    caption = transformers.pipeline("image-text-to-text", model=str(tmp_path / "ours"))
    ((told,),) = [caption(images=[image], text=["a dog"], max_new_tokens=8)]
    model = transformers.BlipForConditionalGeneration.from_pretrained(tmp_path / "ours")
    processor = transformers.BlipProcessor.from_pretrained(tmp_path / "ours")
    inputs = processor(images=image, text="a dog", return_tensors="pt")
    expected = processor.decode(model.generate(**inputs, max_new_tokens=8)[0], True)
    assert told["generated_text"].split() == expected.split()
