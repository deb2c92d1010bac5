"""Our model folder: written whole or not at all, read without copies, refused by name."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from openblip.batches.tokenizer import TextTokenizer, pack_tokens
from openblip.checkpoints.folder import read_config, read_folder, save_folder
from openblip.model import Med, MedConfig
from openblip.runtime.errors import CheckpointError


@pytest.fixture
def folder(tmp_path: Path, med: Med, tokenizer: TextTokenizer) -> Path:
    save_folder(tmp_path / "model", med, tokenizer, "pretrain", 30)
    return tmp_path / "model"


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


class TestThereAndBack:
    def test_the_weights(self, folder: Path, med: Med) -> None:
        read = read_folder(folder).med
        assert read.config == med.config
        assert list(read.state_dict()) == list(med.state_dict())
        for name, tensor in med.state_dict().items():
            assert torch.equal(read.state_dict()[name], tensor), name

    def test_the_rest(self, folder: Path, tokenizer: TextTokenizer) -> None:
        loaded = read_folder(folder)
        assert (loaded.kind, loaded.max_tokens, loaded.image_size) == ("pretrain", 30, 32)
        assert loaded.tokenizer.special == tokenizer.special
        text = ["two dogs run near the window"]
        assert torch.equal(loaded.tokenizer.encode(text, 20).ids, tokenizer.encode(text, 20).ids)

    def test_what_a_captioner_reads_before_it_writes(
        self, tmp_path: Path, med: Med, tokenizer: TextTokenizer, folder: Path
    ) -> None:
        save_folder(tmp_path / "reader", med, tokenizer, "pretrain", 30, given_tokens=12)
        assert read_folder(tmp_path / "reader").given_tokens == 12
        packed = pack_tokens([3, 7], tokenizer.vocab_size)
        about = {"given_tokens": 12, "name_tokens": packed}
        save_folder(tmp_path / "reader", med, tokenizer, "pretrain", 30, **about)
        assert read_folder(tmp_path / "reader").name_tokens == packed
        for wrong in (5, "no base64", packed[:4]):
            edit(tmp_path / "reader", text={"max_tokens": 30, **about, "name_tokens": wrong})
            with pytest.raises(CheckpointError, match="config"):
                read_config(tmp_path / "reader")
        # Folders of models that read nothing are as they were before there were others.
        assert read_folder(folder).given_tokens == 0
        assert json.loads((folder / "config.json").read_text())["text"] == {"max_tokens": 30}
        edit(folder, text={"max_tokens": 30, "given_tokens": -1})
        with pytest.raises(CheckpointError, match=r"text\.given_tokens is -1; expected 0 or more"):
            read_config(folder)

    def test_the_configuration_alone(self, folder: Path, med: Med) -> None:
        (folder / "model.safetensors").unlink()
        config = read_config(folder)
        assert (config.model, config.kind, config.max_tokens) == (med.config, "pretrain", 30)
        assert config.image_size == 32

    @pytest.mark.parametrize("heads", [("itc", "itm"), ("lm",)])
    @pytest.mark.parametrize("sharing", ["all", "all_but_cross_attention", "none"])
    def test_models_with_fewer_heads_and_other_sharing(
        self, tmp_path: Path, config: MedConfig, tokenizer: TextTokenizer, heads: Any, sharing: Any
    ) -> None:
        med = Med(replace(config, heads=heads, text=replace(config.text, sharing=sharing)))
        save_folder(tmp_path / "part", med, tokenizer, "captioner", 30)
        read = read_folder(tmp_path / "part")
        assert read.med.config == med.config

    def test_a_half_precision_model_stays_one(
        self, tmp_path: Path, med: Med, tokenizer: TextTokenizer
    ) -> None:
        save_folder(tmp_path / "half", med.bfloat16(), tokenizer, "filter", 30)
        assert {p.dtype for p in read_folder(tmp_path / "half").med.parameters()} == {
            torch.bfloat16
        }

    def test_parameters_can_be_trained_and_the_file_stays(self, folder: Path) -> None:
        before = (folder / "model.safetensors").read_bytes()
        med = read_folder(folder).med
        assert all(p.requires_grad and not p.is_meta for p in med.parameters())
        with torch.no_grad():
            for parameter in med.parameters():
                parameter.zero_()
        assert (folder / "model.safetensors").read_bytes() == before


class TestWriting:
    def test_the_files(self, folder: Path) -> None:
        assert {path.name for path in folder.iterdir()} == {
            "config.json",
            "model.safetensors",
            "tokenizer.json",
        }
        assert [path.name for path in folder.parent.iterdir()] == ["model"]

    def test_every_file_is_as_readable_as_any_other(self, folder: Path) -> None:
        plain = folder.parent / "plain"
        plain.touch()
        assert {p.stat().st_mode for p in folder.iterdir()} == {plain.stat().st_mode}

    def test_tied_weights_are_stored_once(self, folder: Path, med: Med) -> None:
        weights = sum(p.nbytes for p in med.parameters())
        assert (folder / "model.safetensors").stat().st_size < weights + 20_000

    def test_a_model_that_was_there_is_replaced(
        self, folder: Path, med: Med, tokenizer: TextTokenizer
    ) -> None:
        mapped = read_folder(folder).med
        with torch.no_grad():
            med.temperature.fill_(0.5)
        old = mapped.temperature.item()
        save_folder(folder, med, tokenizer, "filter", 35)
        assert read_folder(folder).med.temperature.item() == 0.5
        assert read_folder(folder).kind == "filter"
        assert mapped.temperature.item() == old, "a loaded model does not follow its file"
        assert [path.name for path in folder.parent.iterdir()] == ["model"]

    def test_an_empty_folder_is_used(
        self, tmp_path: Path, med: Med, tokenizer: TextTokenizer
    ) -> None:
        (tmp_path / "empty").mkdir()
        save_folder(tmp_path / "empty", med, tokenizer, "pretrain", 30)
        assert read_folder(tmp_path / "empty").kind == "pretrain"

    def test_a_folder_of_something_else_is_not_replaced(
        self, tmp_path: Path, med: Med, tokenizer: TextTokenizer
    ) -> None:
        (tmp_path / "photo.jpg").touch()
        with pytest.raises(CheckpointError, match=r"holds photo\.jpg, .* give an empty folder"):
            save_folder(tmp_path, med, tokenizer, "pretrain", 30)
        assert (tmp_path / "photo.jpg").exists()

    def test_a_failed_save_leaves_the_old_model(
        self, folder: Path, med: Med, tokenizer: TextTokenizer
    ) -> None:
        class FullDisk(TextTokenizer):
            def save(self, folder: str | Path) -> None:
                raise OSError("no space left on device")

        full = FullDisk.from_file(folder)
        with pytest.raises(CheckpointError, match=r"cannot be written .*no space left"):
            save_folder(folder, med, full, "filter", 30)
        assert read_folder(folder).kind == "pretrain"
        assert [path.name for path in folder.parent.iterdir()] == ["model"]

    def test_an_unknown_kind(self, tmp_path: Path, med: Med, tokenizer: TextTokenizer) -> None:
        with pytest.raises(ValueError, match="kind 'pretrained' is not one of pretrain, cap"):
            save_folder(tmp_path / "model", med, tokenizer, "pretrained", 30)
        assert not (tmp_path / "model").exists()


class TestRefusing:
    def test_no_folder(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"nothing/config\.json: no such file"):
            read_folder(tmp_path / "nothing")

    @pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
    def test_a_missing_file(self, folder: Path, name: str) -> None:
        (folder / name).unlink()
        with pytest.raises(CheckpointError, match=name):
            read_folder(folder)

    @pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
    @pytest.mark.parametrize("part", [0.0, 0.3, 0.99])
    def test_a_truncated_file(self, folder: Path, name: str, part: float) -> None:
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: int(part * len(whole))])
        with pytest.raises(CheckpointError, match=name):
            read_folder(folder)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"format": "other"}, "format is 'other', expected 'openblip'"),
            ({"format_version": 2}, "format_version is 2, .*reads 1; update OpenBLIP"),
            ({"kind": "caption"}, "kind 'caption' is not one of pretrain, captioner, filter"),
            ({"text": {}}, "missing 'max_tokens'"),
            ({"text": [1]}, r"text is \[1\]; expected an object"),
            ({"preprocess": 5}, "preprocess is 5; expected an object"),
            ({"model": {"depth": 3}}, "model: unknown depth"),
            ({"model": {"vision": {"width": 63}}}, "vision.width 63"),
            ({"preprocess": {"image_size": 32, "mean": [0.5] * 3, "std": [1.0] * 3}}, "prepared"),
        ],
    )
    def test_a_configuration_that_does_not_fit(
        self, folder: Path, changes: dict[str, Any], message: str
    ) -> None:
        edit(folder, **changes)
        with pytest.raises(CheckpointError, match=rf"config\.json: .*{message}"):
            read_folder(folder)

    def test_a_configuration_that_is_no_object(self, folder: Path) -> None:
        (folder / "config.json").write_text("[]")
        with pytest.raises(CheckpointError, match=r"config\.json: holds no JSON object"):
            read_folder(folder)

    def test_weights_of_another_size(self, folder: Path) -> None:
        model = json.loads((folder / "config.json").read_text())["model"]
        model["embed_dim"] = 8
        edit(folder, model=model)
        with pytest.raises(CheckpointError, match=r"safetensors: image_projection\.weight has sh"):
            read_folder(folder)

    def test_weights_of_another_depth(self, folder: Path) -> None:
        model = json.loads((folder / "config.json").read_text())["model"]
        model["text"]["depth"] = 3
        edit(folder, model=model)
        with pytest.raises(CheckpointError, match=r"missing text\.layers\.2\..* and \d+ more"):
            read_folder(folder)

    def test_weights_that_the_heads_do_not_need(self, folder: Path) -> None:
        model = json.loads((folder / "config.json").read_text())["model"]
        edit(folder, model={**model, "heads": ["itc", "lm"]})
        with pytest.raises(CheckpointError, match=r"unknown itm_head\.bias, itm_head\.weight"):
            read_folder(folder)

    def test_the_tokenizer_of_another_model(self, folder: Path) -> None:
        TextTokenizer.train(["b c d e f g"], 20).save(folder)
        with pytest.raises(CheckpointError, match=r"tokenizer\.json has \d+ tokens, but text\.vo"):
            read_folder(folder)


def test_weights_that_are_a_pipe_are_refused_unread(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: is no regular file"):
        read_folder(folder)
