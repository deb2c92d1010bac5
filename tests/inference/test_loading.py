"""Where a model may come from."""

import pytest
import torch

from openblip.data.tokenizer import TextTokenizer
from openblip.errors import CheckpointError, RecipeError
from openblip.inference import Blip, load
from openblip.inference.loading import default_device, find_model, find_model_files
from openblip.interop.original import to_original
from openblip.interop.original_files import write_original
from openblip.model import Med, MedConfig, TextConfig, VisionConfig


@pytest.fixture
def folder(blip, tmp_path):
    blip.save(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def run(blip, tmp_path):
    """A training run with two checkpoints, of which the first was better."""
    checkpoints = tmp_path / "run" / "checkpoints"
    for step in (10, 20):
        blip.save(checkpoints / f"step-{step:08d}")
    (checkpoints / "best").symlink_to("step-00000010")
    (checkpoints / "last").symlink_to("step-00000020")
    return tmp_path / "run"


def test_a_folder_or_its_weights(folder):
    assert find_model(folder) == find_model(folder / "model.safetensors") == folder
    assert load(str(folder), device="cpu").kind == "pretrain"


def test_of_a_run_the_best_checkpoint_or_else_the_last(run):
    assert find_model(run).resolve().name == "step-00000010"
    (run / "checkpoints" / "best").unlink()
    assert find_model(run).resolve().name == "step-00000020"
    assert find_model(run / "checkpoints" / "last").resolve().name == "step-00000020"
    assert load(run, device="cpu").image_size == 32


def test_the_files_of_a_model(folder):
    names = ["config.json", "model.safetensors", "tokenizer.json"]
    assert find_model_files(folder) == [folder / name for name in names]
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        find_model_files(folder)


def test_the_model_is_ready_for_inference(folder):
    blip = load(folder)
    assert not blip.med.training
    assert blip.device.type == default_device().type
    assert blip.dtype == torch.float32
    assert load(folder, device="cpu", dtype=torch.bfloat16).dtype == torch.bfloat16


@pytest.fixture(scope="module")
def vocabulary():
    letters = [*"abcdefghijklmnopqrstuvwxyz", "picture", "of", "dog"]
    return ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters]


def original(kind, vocabulary, path):
    """An original checkpoint file with heads of 64 channels, as the released ones have."""
    torch.manual_seed(0)
    config = MedConfig(
        vision=VisionConfig(image_size=32, width=64, depth=1, heads=1),
        text=TextConfig(
            vocab_size=len(vocabulary) + 2, width=64, depth=1, heads=1, max_positions=40
        ),
        embed_dim=8,
        heads={"caption": ("lm",), "itm": ("itc", "itm")}[kind],
    )
    med = Med(config)
    write_original(path, to_original(med, kind))
    (path.parent / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    return med


@pytest.mark.parametrize("name", ["model.pth", "weights.safetensors"])
def test_an_original_captioner(vocabulary, pictures, tmp_path, name):
    med = original("caption", vocabulary, tmp_path / name)
    blip = load(tmp_path / name, device="cpu")
    assert (blip.kind, blip.image_size, blip.max_tokens) == ("captioner", 32, 40)
    tokenizer = TextTokenizer.from_file(tmp_path / "vocab.txt")
    expected = Blip(med, tokenizer, "captioner", 32, 40)
    assert blip.caption(pictures) == expected.caption(pictures)
    assert find_model_files(tmp_path / name) == [tmp_path / name, tmp_path / "vocab.txt"]


def test_an_original_matcher_serves_as_filter(vocabulary, pictures, tmp_path):
    original("itm", vocabulary, tmp_path / "itm.pth")
    blip = load(tmp_path / "itm.pth", device="cpu")
    assert (blip.kind, blip.max_tokens) == ("filter", 35)
    assert 0 < blip.match(pictures[0], "a dog")[0].itm < 1


def test_an_original_checkpoint_needs_its_vocabulary(vocabulary, tmp_path):
    path = tmp_path / "model.pth"
    original("caption", vocabulary, path)
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary[:-1]) + "\n")
    with pytest.raises(CheckpointError, match=r"35 tokens, but model\.pth has 36"):
        load(path)
    (tmp_path / "vocab.txt").write_text("dog\n")
    with pytest.raises(CheckpointError, match="tokenizer cannot be read"):
        load(path)
    (tmp_path / "vocab.txt").unlink()
    with pytest.raises(CheckpointError, match=r"put its vocab\.txt .* into the same folder"):
        load(path)


@pytest.mark.parametrize("place", ["missing", "empty"])
def test_what_is_no_model_is_named_with_what_would_be_one(tmp_path, place):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=rf"{place}: .* give a model folder .* \.pth"):
        load(tmp_path / place)


def test_a_file_that_is_no_checkpoint(tmp_path):
    (tmp_path / "notes.pth").write_text("no weights")
    with pytest.raises(CheckpointError, match=r"notes\.pth"):
        load(tmp_path / "notes.pth")


@pytest.mark.parametrize("device", ["cuda:99", "toaster"])
def test_a_device_that_is_not_there(folder, device):
    with pytest.raises(RecipeError, match=rf"device '{device}' cannot be used"):
        load(folder, device=device)
