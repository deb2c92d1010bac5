"""Folders of `transformers`: read as it wrote them, written as it reads them, refused by name."""

import json
import logging
import resource
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from openblip.data.tokenizer import TextTokenizer
from openblip.data.transforms import IMAGE_MEAN, eval_transform
from openblip.errors import CheckpointError
from openblip.interop.huggingface_folder import (
    is_huggingface,
    read_huggingface,
    save_huggingface,
)
from openblip.interop.huggingface_layout import CLASSES, HuggingFaceKind
from openblip.interop.huggingface_weights import find_weights, weight_files
from openblip.model import Med, MedConfig
from openblip.model.vqa import Vqa, VqaConfig

transformers = pytest.importorskip("transformers")

from .huggingface_peers import KINDS, folder_of, images_for, peer  # noqa: E402

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "##s", "run", "two", "cat"]


@pytest.fixture
def folder(tokenizer: TextTokenizer, tmp_path: Path) -> Path:
    """A captioner as `transformers` writes it."""
    return folder_of(peer("caption", tokenizer), tokenizer, tmp_path / "theirs")


@pytest.fixture
def sharded(tokenizer: TextTokenizer, tmp_path: Path) -> Path:
    model = peer("caption", tokenizer)
    return folder_of(model, tokenizer, tmp_path / "sharded", max_shard_size="20KB")


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


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def write_vocabulary(folder: Path, words: list[str]) -> None:
    (folder / "tokenizer.json").unlink(missing_ok=True)
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in words))


def bert_folder(path: Path, tmp_path: Path) -> tuple[Path, TextTokenizer]:
    """A captioner of `transformers` with a BERT `vocab.txt`, which lacks BLIP's tokens."""
    write_vocabulary(tmp_path, WORDS)
    bert = TextTokenizer.from_file(tmp_path / "vocab.txt")
    folder_of(peer("caption", bert), bert, path)
    write_vocabulary(path, WORDS)
    return path, bert


class TestReading:
    @pytest.mark.parametrize("kind", KINDS)
    def test_what_a_folder_says(
        self, tokenizer: TextTokenizer, tmp_path: Path, kind: HuggingFaceKind
    ) -> None:
        theirs = peer(kind, tokenizer)
        loaded = read_huggingface(folder_of(theirs, tokenizer, tmp_path))
        assert loaded.kind == kind
        assert loaded.image_size == theirs.config.vision_config.image_size
        assert loaded.max_tokens == 32
        assert loaded.tokenizer.special == tokenizer.special

    def test_shards(self, folder: Path, sharded: Path) -> None:
        files = weight_files(find_weights(sharded))
        assert len(files) > 3
        assert all(file.is_file() for file in files)
        expected = read_huggingface(folder).model.state_dict()
        state = read_huggingface(sharded).model.state_dict()
        for name, tensor in expected.items():
            assert torch.equal(state[name], tensor), name

    def test_a_pickle(self, folder: Path, tokenizer: TextTokenizer) -> None:
        expected = read_huggingface(folder).model.state_dict()
        (folder / "model.safetensors").unlink()
        torch.save(peer("caption", tokenizer).state_dict(), folder / "pytorch_model.bin")
        state = read_huggingface(folder).model.state_dict()
        for name, tensor in expected.items():
            assert torch.equal(state[name], tensor), name

    def test_the_file_is_mapped_and_stays(self, folder: Path) -> None:
        before = (folder / "model.safetensors").read_bytes()
        model = read_huggingface(folder).model
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        assert (folder / "model.safetensors").read_bytes() == before

    def test_half_precision_stays(self, tokenizer: TextTokenizer, tmp_path: Path) -> None:
        theirs = peer("caption", tokenizer).half()
        model = read_huggingface(folder_of(theirs, tokenizer, tmp_path)).model
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float16}

    def test_a_vocabulary_without_the_tokens_of_blip(self, tmp_path: Path) -> None:
        folder, bert = bert_folder(tmp_path / "bert", tmp_path)
        loaded = read_huggingface(folder).tokenizer
        assert (loaded.special.dec, loaded.special.enc) == (len(WORDS), len(WORDS) + 1)
        assert torch.equal(loaded.encode(["Two dogs"], 8).ids, bert.encode(["two dogs"], 8).ids)

    def test_a_tokenizer_saved_by_transformers(self, tmp_path: Path) -> None:
        folder, bert = bert_folder(tmp_path / "bert", tmp_path)
        (folder / "vocab.txt").unlink()
        theirs = transformers.BertTokenizer(str(tmp_path / "vocab.txt"))
        theirs.save_pretrained(folder)
        loaded = read_huggingface(folder)
        assert loaded.tokenizer.special == bert.special
        # It writes a limit of 1e30 where there is none.
        assert loaded.max_tokens == 32

    def test_the_limit_of_the_tokenizer(self, folder: Path) -> None:
        (folder / "tokenizer_config.json").write_text('{"model_max_length": 20}')
        assert read_huggingface(folder).max_tokens == 20


class TestImageProcessor:
    def write(self, folder: Path, **values: Any) -> Path:
        path = folder / "preprocessor_config.json"
        path.write_text(json.dumps(values))
        return path

    def test_the_published_fields(self, folder: Path) -> None:
        size = read_huggingface(folder).image_size
        processor = transformers.BlipImageProcessorPil(size={"height": size, "width": size})
        # Two fields that older versions wrote and never used.
        self.write(folder, **processor.to_dict(), do_pad=True, size_divisor=32)
        assert read_huggingface(folder).image_size == size

    def test_the_file_of_a_whole_processor(self, folder: Path) -> None:
        path = folder / "processor_config.json"
        path.write_text(json.dumps({"image_processor": {"resample": 2}}))
        with pytest.raises(CheckpointError, match=r"processor_config\.json: resample is 2"):
            read_huggingface(folder)

    def test_another_size_than_that_of_the_positions(self, folder: Path) -> None:
        patch = json.loads((folder / "config.json").read_text())["vision_config"]["patch_size"]
        side = 5 * patch
        self.write(folder, size={"height": side, "width": side})
        loaded = read_huggingface(folder)
        assert loaded.image_size == side
        assert loaded.model.encode_images(torch.zeros(1, 3, side, side)).shape[1] == 26

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("image_mean", [0.5, 0.5, 0.5]),
            ("image_mean", [*IMAGE_MEAN, 0.5]),
            ("image_std", 0.5),
            ("resample", 2),
            ("resample", "bicubic"),
            ("do_normalize", False),
            ("do_resize", False),
            ("do_center_crop", True),
            ("rescale_factor", 1.0),
            ("size", {"shortest_edge": 32}),
            ("size", {"height": 32, "width": 48}),
            ("size", {"height": 33, "width": 33}),
            ("size", "large"),
            ("auto_map", {"AutoImageProcessor": "x.Y"}),
        ],
    )
    def test_other_pixels_are_refused(self, folder: Path, field: str, value: Any) -> None:
        path = self.write(folder, **{field: value})
        with pytest.raises(CheckpointError, match=f"{path}: {field} "):
            read_huggingface(folder)


class TestRecognising:
    def test_layouts(self, folder: Path, tmp_path: Path) -> None:
        assert is_huggingface(folder)
        assert not is_huggingface(tmp_path / "absent")
        (tmp_path / "config.json").write_text('{"format": "openblip"}')
        assert not is_huggingface(tmp_path)
        (tmp_path / "config.json").write_text("{")
        assert not is_huggingface(tmp_path)

    @pytest.mark.parametrize("model_type", ["blip-2", "clip"])
    def test_other_models_are_refused_by_name(self, folder: Path, model_type: str) -> None:
        edit(folder / "config.json", lambda config: config.update(model_type=model_type))
        assert is_huggingface(folder)
        with pytest.raises(
            CheckpointError, match=rf"config\.json: model_type is '{model_type}'; .*BlipModel"
        ):
            read_huggingface(folder)


class Payload:
    """Something that is no tensor."""


class TestDamage:
    def test_code(self, folder: Path) -> None:
        edit(folder / "config.json", lambda config: config.update(auto_map={"AutoModel": "x.Y"}))
        with pytest.raises(CheckpointError, match="auto_map asks to run code"):
            read_huggingface(folder)

    def test_a_truncated_file(self, folder: Path) -> None:
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(CheckpointError, match=f"{path}: truncated"):
            read_huggingface(folder)

    def test_a_pickle_of_more_than_tensors(self, folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        path = folder / "pytorch_model.bin"
        torch.save({"a": Payload()}, path)
        with pytest.raises(CheckpointError, match=f"{path}: .*not run for safety"):
            read_huggingface(folder)
        torch.save({"a": 3}, path)
        with pytest.raises(CheckpointError, match=f"{path}: a in the file is a int"):
            read_huggingface(folder)

    def test_no_weights(self, folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        with pytest.raises(CheckpointError, match=f"{folder}: holds no weights"):
            read_huggingface(folder)

    def test_a_missing_and_an_unexpected_key(self, folder: Path) -> None:
        path = folder / "model.safetensors"
        tensors = load_file(path)
        tensors["vision_model.extra"] = torch.zeros(1)
        save_file(tensors, path)
        with pytest.raises(CheckpointError, match=f"{path}: unknown vision_model.extra"):
            read_huggingface(folder)
        del tensors["vision_model.extra"], tensors["vision_model.post_layernorm.bias"]
        save_file(tensors, path)
        with pytest.raises(
            CheckpointError, match=f"{path}: missing vision_model.post_layernorm.bias"
        ):
            read_huggingface(folder)

    def test_a_missing_shard(self, sharded: Path) -> None:
        shard = next(sharded.glob("model-00002-*"))
        shard.unlink()
        with pytest.raises(CheckpointError, match=rf"{shard}: no such file, .*index\.json names"):
            read_huggingface(sharded)

    def test_a_shard_without_its_keys(self, sharded: Path) -> None:
        shard = next(sharded.glob("model-00002-*"))
        key = next(iter(load_file(shard)))
        tensors = load_file(shard)
        del tensors[key]
        save_file(tensors, shard)
        with pytest.raises(CheckpointError, match=f"{shard}: missing {key}"):
            read_huggingface(sharded)

    @pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "a\\b", 3])
    def test_an_index_that_leaves_the_folder(self, sharded: Path, name: Any) -> None:
        index = sharded / "model.safetensors.index.json"
        edit(index, lambda values: values["weight_map"].update({"itm_head.bias": name}))
        with pytest.raises(CheckpointError, match=f"{index}: itm_head.bias is said to be in"):
            read_huggingface(sharded)

    @pytest.mark.parametrize("content", ['{"weight_map": {}}', "{}", "[]", "{"])
    def test_a_damaged_index(self, sharded: Path, content: str) -> None:
        index = sharded / "model.safetensors.index.json"
        index.write_text(content)
        with pytest.raises(CheckpointError, match=f"{index}: "):
            read_huggingface(sharded)

    def test_a_tokenizer_of_another_size(self, folder: Path, tokenizer: TextTokenizer) -> None:
        write_vocabulary(folder, WORDS)
        rows = tokenizer.vocab_size
        with pytest.raises(CheckpointError, match=f"has {len(WORDS) + 2} tokens .* is {rows}, as"):
            read_huggingface(folder)

    def test_no_tokenizer(self, folder: Path) -> None:
        (folder / "tokenizer.json").unlink()
        with pytest.raises(CheckpointError, match=f"{folder}: the tokenizer cannot be read"):
            read_huggingface(folder)

    @pytest.mark.parametrize("field", ["bos_token_id", "sep_token_id", "pad_token_id"])
    def test_ids_of_another_tokenizer(self, folder: Path, field: str) -> None:
        edit(folder / "config.json", lambda config: config["text_config"].update({field: 7}))
        with pytest.raises(CheckpointError, match=rf"text_config\.{field} is 7; in its tokenizer"):
            read_huggingface(folder)

    def test_a_vocabulary_that_distinguishes_case(self, tmp_path: Path) -> None:
        folder, _ = bert_folder(tmp_path / "bert", tmp_path)
        (folder / "tokenizer_config.json").write_text('{"do_lower_case": false}')
        with pytest.raises(CheckpointError, match="do_lower_case is false"):
            read_huggingface(folder)

    def test_added_tokens_in_another_order(self, tmp_path: Path) -> None:
        folder, bert = bert_folder(tmp_path / "bert", tmp_path)
        path = folder / "added_tokens.json"
        path.write_text(json.dumps({"[DEC]": bert.special.dec, "[ENC]": bert.special.enc}))
        read_huggingface(folder)
        path.write_text(json.dumps({"[ENC]": bert.special.dec}))
        with pytest.raises(CheckpointError, match=rf"{path}: \[ENC\] is {bert.special.dec}"):
            read_huggingface(folder)


class TestWriting:
    @torch.no_grad()
    @pytest.mark.parametrize("kind", KINDS)
    def test_transformers_reads_the_same_model(
        self,
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
        self, tokenizer: TextTokenizer, tmp_path: Path, complaints: list[str]
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
        self,
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
        batch = processor(
            images=image, text=texts, padding=True, truncation=True, return_tensors="pt"
        )
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

    def test_both_parts_of_a_pretrained_model(
        self, med: Med, tokenizer: TextTokenizer, tmp_path: Path
    ) -> None:
        seen: set[str] = set()
        kinds: tuple[HuggingFaceKind, ...] = ("caption", "retrieval")
        for kind in kinds:
            save_huggingface(tmp_path / kind, med, tokenizer, kind)
            loaded = read_huggingface(tmp_path / kind)
            assert loaded.kind == kind
            for name, tensor in loaded.model.state_dict().items():
                assert torch.equal(tensor, med.state_dict()[name]), name
            seen |= set(loaded.model.state_dict())
        assert seen == set(med.state_dict())

    def test_a_folder_with_something_else_is_kept(
        self, med: Med, tokenizer: TextTokenizer, tmp_path: Path
    ) -> None:
        (tmp_path / "holiday.jpg").touch()
        with pytest.raises(CheckpointError, match=r"holds holiday\.jpg"):
            save_huggingface(tmp_path, med, tokenizer, "caption")
        assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]

    def test_a_model_is_replaced_whole_or_not_at_all(
        self, med: Med, tokenizer: TextTokenizer, tmp_path: Path
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
        self, med: Med, tokenizer: TextTokenizer, tmp_path: Path
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
        self, config: MedConfig, tokenizer: TextTokenizer, tmp_path: Path
    ) -> None:
        model = Vqa(VqaConfig(vision=config.vision, text=config.text))
        with pytest.raises(CheckpointError, match=r"vision\.width 64 and text\.width 128"):
            save_huggingface(tmp_path / "vqa", model, tokenizer)
        assert not (tmp_path / "vqa").exists()
