"""Folders of `transformers`: read as it wrote them, or refused by the file and key at fault."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from openblip.batches.tokenizer import TextTokenizer
from openblip.batches.transforms import IMAGE_MEAN
from openblip.checkpoints import huggingface_processor
from openblip.checkpoints.folder import FROM_HUGGINGFACE
from openblip.checkpoints.huggingface import is_huggingface, read_huggingface
from openblip.checkpoints.huggingface_config import HuggingFaceKind
from openblip.runtime.errors import CheckpointError

transformers = pytest.importorskip("transformers")

from .huggingface_peers import KINDS, WORDS, folder_of, peer, write_vocabulary  # noqa: E402


@pytest.fixture
def folder(tokenizer: TextTokenizer, tmp_path: Path) -> Path:
    """A captioner as `transformers` writes it."""
    return folder_of(peer("caption", tokenizer), tokenizer, tmp_path / "theirs")


@pytest.fixture
def sharded(tokenizer: TextTokenizer, tmp_path: Path) -> Path:
    model = peer("caption", tokenizer)
    return folder_of(model, tokenizer, tmp_path / "sharded", max_shard_size="20KB")


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


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
        assert loaded.kind == FROM_HUGGINGFACE[kind]
        assert loaded.image_size == theirs.config.vision_config.image_size
        assert loaded.max_tokens == 32
        assert loaded.tokenizer.special == tokenizer.special

    def test_shards(self, folder: Path, sharded: Path) -> None:
        assert len(list(sharded.glob("*.safetensors"))) > 2
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

    def test_shards_of_pickles(self, sharded: Path) -> None:
        expected = read_huggingface(sharded).model.state_dict()
        index = sharded / "model.safetensors.index.json"
        for shard in list(sharded.glob("*.safetensors")):
            torch.save(load_file(shard), shard.with_suffix(".bin"))
            shard.unlink()
        edit(
            index,
            lambda values: values["weight_map"].update(
                {k: v.replace("safetensors", "bin") for k, v in values["weight_map"].items()}
            ),
        )
        index.rename(sharded / "pytorch_model.bin.index.json")
        state = read_huggingface(sharded).model.state_dict()
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


def test_a_question_answerer_that_transformers_cannot_run_is_refused(
    tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    theirs = folder_of(peer("vqa", tokenizer, hidden_size=96), tokenizer, tmp_path / "theirs")
    with pytest.raises(CheckpointError, match=r"decoder expects states of 96 channels .* load one"):
        read_huggingface(theirs)


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

    def test_no_tokenizer_where_the_vocabulary_is_that_of_bert(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "hub").mkdir()
        write_vocabulary(
            tmp_path / "hub", [*WORDS, *(f"word{n}" for n in range(30522 - len(WORDS)))]
        )
        bert = TextTokenizer.from_file(tmp_path / "hub" / "vocab.txt")
        folder = folder_of(peer("caption", bert), bert, tmp_path / "theirs")
        expected = read_huggingface(folder)
        (folder / "tokenizer.json").unlink()
        # What it fetches is tested with the hub's client, in `test_hub.py`.
        monkeypatch.setattr(
            huggingface_processor, "fetch_bert_vocabulary", lambda: tmp_path / "hub" / "vocab.txt"
        )
        loaded = read_huggingface(folder)
        assert loaded.tokenizer.pieces(["a dog runs"]) == expected.tokenizer.pieces(["a dog runs"])
        assert loaded.tokenizer.special == expected.tokenizer.special
        assert loaded.tokenizer.vocab_size == 30524

    @pytest.mark.parametrize("field", ["bos_token_id", "sep_token_id", "pad_token_id"])
    def test_ids_of_another_tokenizer(self, folder: Path, field: str) -> None:
        edit(folder / "config.json", lambda config: config["text_config"].update({field: 7}))
        with pytest.raises(CheckpointError, match=rf"text_config\.{field} is 7; in its tokenizer"):
            read_huggingface(folder)

    def test_a_vocabulary_that_distinguishes_case(self, tmp_path: Path) -> None:
        folder, _ = bert_folder(tmp_path / "bert", tmp_path)
        (folder / "tokenizer_config.json").write_text('{"do_lower_case": false}')
        assert not read_huggingface(folder).tokenizer.cleaning.lowercases
        (folder / "tokenizer_config.json").write_text('{"do_lower_case": true}')
        assert read_huggingface(folder).tokenizer.cleaning.lowercases
        (folder / "tokenizer_config.json").write_text('{"do_lower_case": 3}')
        with pytest.raises(CheckpointError, match="do_lower_case is 3"):
            read_huggingface(folder)

    def test_added_tokens_in_another_order(self, tmp_path: Path) -> None:
        folder, bert = bert_folder(tmp_path / "bert", tmp_path)
        path = folder / "added_tokens.json"
        path.write_text(json.dumps({"[DEC]": bert.special.dec, "[ENC]": bert.special.enc}))
        read_huggingface(folder)
        path.write_text(json.dumps({"[ENC]": bert.special.dec}))
        with pytest.raises(CheckpointError, match=rf"{path}: \[ENC\] is {bert.special.dec}"):
            read_huggingface(folder)
