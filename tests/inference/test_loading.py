"""Where a model may come from."""

import pytest
import torch

from openblip.batches.tokenizer import TextTokenizer
from openblip.checkpoints.original import OriginalNote, to_original, write_original
from openblip.checkpoints.reading import find_model, find_model_files
from openblip.inference.blip import Blip
from openblip.inference.loading import default_device, load
from openblip.model import Med, MedConfig, TextConfig, VisionConfig
from openblip.model.dual import DualConfig, DualEncoder
from openblip.model.vision import interpolate_positions
from openblip.model.vqa import Nlvr, NlvrConfig, Vqa, VqaConfig
from openblip.runtime.errors import CheckpointError, MissingHead, RecipeError


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


def ids(captions):
    return [[caption.token_ids for caption in of_image] for of_image in captions]


def original(kind, vocabulary, path):
    """An original checkpoint file with heads of 64 channels, as the released ones have."""
    torch.manual_seed(0)
    parts = {
        "vision": VisionConfig(image_size=32, width=64, depth=1, heads=1),
        "text": TextConfig(
            vocab_size=len(vocabulary) + 2, width=64, depth=1, heads=1, max_positions=40
        ),
    }
    heads = {"caption": ("lm",), "itm": ("itc", "itm"), "feature_extractor": ("multimodal",)}
    if kind == "vqa":
        model = Vqa(VqaConfig(**parts))
    elif kind == "nlvr":
        model = Nlvr(NlvrConfig(**parts))
    else:
        model = Med(MedConfig(**parts, embed_dim=8, heads=heads[kind]))
    write_original(path, to_original(model, kind), OriginalNote.of(model))
    (path.parent / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    return model


@pytest.mark.parametrize("name", ["model.pth", "weights.safetensors"])
def test_an_original_captioner(vocabulary, pictures, tmp_path, name):
    med = original("caption", vocabulary, tmp_path / name)
    blip = load(tmp_path / name, device="cpu")
    assert (blip.kind, blip.image_size, blip.max_tokens) == ("captioner", 32, 40)
    tokenizer = TextTokenizer.from_file(tmp_path / "vocab.txt")
    expected = Blip(med, tokenizer, "captioner", 32, 40)
    assert blip.caption(pictures) == expected.caption(pictures)
    assert find_model_files(tmp_path / name) == [tmp_path / name, tmp_path / "vocab.txt"]
    # Whether a vocabulary keeps case decides what the model reads.
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    assert find_model_files(tmp_path / name)[2:] == [tmp_path / "tokenizer_config.json"]


def test_an_original_matcher_serves_as_filter(vocabulary, pictures, tmp_path):
    original("itm", vocabulary, tmp_path / "itm.pth")
    blip = load(tmp_path / "itm.pth", device="cpu")
    assert (blip.kind, blip.max_tokens) == ("filter", 35)
    assert 0 < blip.match(pictures[0], "a dog")[0].itm < 1


def test_an_original_question_answerer(vocabulary, pictures, tmp_path):
    original("vqa", vocabulary, tmp_path / "vqa.pth")
    blip = load(tmp_path / "vqa.pth", device="cpu")
    assert (blip.kind, blip.max_tokens) == ("vqa", 35)
    assert blip.ask(pictures[0], "what is it?", ["dog", "a picture"])[0].text in "a picture dog"


def test_an_original_comparer_reads_whole_sentences(vocabulary, pictures, tmp_path):
    original("nlvr", vocabulary, tmp_path / "nlvr.pth")
    blip = load(tmp_path / "nlvr.pth", device="cpu")
    assert (blip.kind, blip.max_tokens) == ("nlvr", 40)
    assert 0 < blip.compare(pictures[0], pictures[1], "a dog") < 1


def test_an_original_that_has_no_use_here_is_named(vocabulary, tmp_path):
    original("feature_extractor", vocabulary, tmp_path / "features.pth")
    with pytest.raises(CheckpointError, match="an original feature_extractor checkpoint"):
        load(tmp_path / "features.pth")


def test_another_image_size_interpolates_the_positions(folder, pictures):
    usual, larger = load(folder, device="cpu"), load(folder, device="cpu", image_size=48)
    assert larger.image_size == larger.med.config.vision.image_size == 48
    positions = larger.med.image_encoder.positions
    assert torch.equal(positions, interpolate_positions(usual.med.image_encoder.positions, (3, 3)))
    assert larger.caption(pictures[0])[0][0].logprob != usual.caption(pictures[0])[0][0].logprob
    with pytest.raises(RecipeError, match=r"image_size 40 is not a multiple"):
        load(folder, device="cpu", image_size=40)


def test_a_model_of_another_size_is_saved_with_that_size(folder, tmp_path, pictures):
    larger = load(folder, device="cpu", image_size=48)
    larger.save(tmp_path / "larger")
    again = load(tmp_path / "larger", device="cpu")
    assert ids(again.caption(pictures)) == ids(larger.caption(pictures))


class TestLayouts:
    """A model computes the same whichever layout it went through."""

    @pytest.fixture
    def pretrained(self, vocabulary, tmp_path):
        original("itm", vocabulary, tmp_path / "itm.pth")
        return load(tmp_path / "itm.pth", device="cpu")

    @pytest.mark.parametrize("kind", ["caption", "itm", "vqa"])
    def test_transformers_folders(self, vocabulary, pictures, tmp_path, kind):
        original(kind, vocabulary, tmp_path / "model.pth")
        blip = load(tmp_path / "model.pth", device="cpu")
        blip.save_huggingface(tmp_path / "theirs")
        read = load(tmp_path / "theirs", device="cpu")
        assert (read.kind, read.image_size, read.max_tokens) == (
            blip.kind,
            blip.image_size,
            blip.max_tokens,
        )
        if kind == "caption":
            assert ids(read.caption(pictures)) == ids(blip.caption(pictures))
        elif kind == "itm":
            expected = blip.match(pictures[0], "a dog")[0].itm
            assert read.match(pictures[0], "a dog")[0].itm == pytest.approx(expected, abs=1e-6)
        else:
            expected = blip.ask(pictures[0], "what?")[0]
            assert read.ask(pictures[0], "what?")[0].text == expected.text

    def test_the_files_of_a_transformers_folder(self, pretrained, tmp_path):
        pretrained.save_huggingface(tmp_path / "theirs")
        names = {file.name for file in find_model_files(tmp_path / "theirs")}
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= names

    @pytest.mark.parametrize("kind", [None, "itm"])
    def test_the_originals_file(self, pretrained, pictures, tmp_path, kind):
        pretrained.save_original(tmp_path / "again.pth", kind)
        read = load(tmp_path / "again.pth", device="cpu")
        assert read.kind == "filter"
        expected = pretrained.match(pictures[0], "a dog")[0].itm
        assert read.match(pictures[0], "a dog")[0].itm == pytest.approx(expected, abs=1e-6)

    def test_a_kind_that_does_not_exist(self, pretrained, tmp_path):
        with pytest.raises(RecipeError, match="no kind 'captions'; there are pretrain, caption"):
            pretrained.save_original(tmp_path / "again.pth", "captions")

    def test_a_pretrained_model_is_two_classes_of_transformers(self, blip, tmp_path):
        with pytest.raises(CheckpointError, match="caption and as retrieval"):
            blip.save_huggingface(tmp_path / "theirs")
        blip.save_huggingface(tmp_path / "theirs", "retrieval")
        assert load(tmp_path / "theirs", device="cpu").kind == "filter"

    def test_a_dual_encoder_of_transformers(self, tokenizer, pictures, tmp_path):
        config = DualConfig(
            vision=VisionConfig(image_size=32, patch_size=16, width=24, depth=1, heads=2),
            text=TextConfig(
                vocab_size=tokenizer.vocab_size, width=32, depth=1, heads=4, max_positions=40
            ),
            embed_dim=8,
        )
        dual = Blip(DualEncoder(config), tokenizer, "dual_encoder", 32, 40)
        dual.save_huggingface(tmp_path / "theirs")
        dual.save(tmp_path / "ours")
        for name in ("theirs", "ours"):
            read = load(tmp_path / name, device="cpu")
            assert read.kind == "dual_encoder"
            # Mapped weights are aligned differently, which can change a product's last bit.
            images, texts = read.embed_images(pictures), read.embed_texts(["a dog"])
            assert torch.allclose(images, dual.embed_images(pictures), atol=1e-6)
            assert torch.allclose(texts, dual.embed_texts(["a dog"]), atol=1e-6)
            with pytest.raises(MissingHead, match="of the kind dual_encoder"):
                read.match(pictures[0], "a dog")


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
    with pytest.raises(CheckpointError, match=r"put its vocab\.txt into the same folder"):
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
