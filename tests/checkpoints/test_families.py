"""The table of families, and families that others have written."""

import io
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

import openblip
from openblip.batches.tokenizer import TextTokenizer
from openblip.checkpoints.families import FAMILIES, family_named, family_of
from openblip.checkpoints.folder import read_folder, save_folder
from openblip.model import Med, MedConfig, TextConfig, VisionConfig
from openblip.model.vision import ImageModel
from openblip.recipes.finetune import captioner
from openblip.runtime.errors import CheckpointError, MissingHead
from openblip.table.table import PairRow, PairTable
from openblip.training.recipe import TrainConfig
from openblip.training.run import train

VISION = VisionConfig(image_size=16, patch_size=8, width=8, depth=1, heads=2)


def text(tokenizer: TextTokenizer) -> TextConfig:
    return TextConfig(
        vocab_size=tokenizer.vocab_size, width=8, depth=1, heads=2, ffn_width=16, max_positions=16
    )


@dataclass(frozen=True, kw_only=True)
class BagConfig:
    """Sizes of a model of somebody else."""

    vision: VisionConfig = field(default_factory=VisionConfig)
    text: TextConfig = field(default_factory=TextConfig)
    sizes: tuple[int, ...] = (3, 4)


class Bag(ImageModel[BagConfig]):
    """Words without an order, beside an image."""

    def __init__(self, config: BagConfig) -> None:
        super().__init__(config)
        self.words = nn.Embedding(config.text.vocab_size, config.text.width)
        self.layers = nn.ModuleList(nn.Linear(8, size) for size in config.sizes)


class TallMed(Med):
    """A MED with one weight more."""

    def __init__(self, config: MedConfig) -> None:
        super().__init__(config)
        self.height = nn.Parameter(torch.zeros(3))


class Unannotated(ImageModel[Any]):
    def __init__(self, config) -> None:  # type: ignore[no-untyped-def]
        super().__init__(config)


def test_every_kind_and_class_has_one_family() -> None:
    kinds = [kind for family in FAMILIES for kind in family.kinds]
    assert len(set(kinds)) == len(kinds)
    for family in FAMILIES:
        assert all(family_named(kind) is family for kind in family.kinds)
        assert family_of(family.config()) is family_of(family.model) is family
        assert type(family.empty(family.config())) is family.model


def test_a_model_of_somebody_else_is_saved_and_read_back(
    tmp_path: Path, tokenizer: TextTokenizer
) -> None:
    model = Bag(BagConfig(vision=VISION, text=text(tokenizer), sizes=(5,)))
    kind = family_of(model).kinds[0]
    assert kind == f"{__name__}:Bag"
    with pytest.raises(ValueError, match="kind 'pretrain' is not a Bag"):
        save_folder(tmp_path / "bag", model, tokenizer, "pretrain", 12)  # type: ignore[arg-type]
    save_folder(tmp_path / "bag", model, tokenizer, kind, 12)  # type: ignore[arg-type]
    read: Any = read_folder(tmp_path / "bag")
    assert type(read.model) is Bag
    assert (read.kind, read.max_tokens, read.model.config) == (kind, 12, model.config)
    assert all(torch.equal(read.model.state_dict()[k], v) for k, v in model.state_dict().items())
    blip = openblip.load(tmp_path / "bag", device="cpu")
    assert blip.model.encode_images(torch.zeros(1, 3, 16, 16)).shape == (1, 5, 8)
    with pytest.raises(MissingHead, match=r"of the kind .*:Bag, which cannot match"):
        blip.match("image.png", ["a text"])
    blip.save(tmp_path / "again")
    assert (tmp_path / "again" / "config.json").read_text() == (
        tmp_path / "bag" / "config.json"
    ).read_text()


def test_a_configuration_that_json_changes_is_not_written(
    tmp_path: Path, tokenizer: TextTokenizer
) -> None:
    model = Bag(BagConfig(vision=VISION, text=text(tokenizer), sizes=[3]))  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="another one when it is read from JSON"):
        save_folder(tmp_path / "bag", model, tokenizer, f"{__name__}:Bag", 12)  # type: ignore[arg-type]
    assert not (tmp_path / "bag").exists()


def test_what_derives_from_ours_does_what_ours_does(
    tmp_path: Path, tokenizer: TextTokenizer
) -> None:
    model = TallMed(MedConfig(vision=VISION, text=text(tokenizer), heads=("itc", "itm")))
    save_folder(tmp_path / "med", model, tokenizer, "filter", 12)
    blip = openblip.load(tmp_path / "med", device="cpu")
    assert isinstance(blip.model, TallMed)
    assert blip.kind == "filter"
    assert blip.embed_texts(["a b"]).shape == (1, 256)
    with pytest.raises(CheckpointError, match="unknown height"):
        blip.save_original(tmp_path / "tall.pth", "itm")


def test_a_run_trains_a_model_of_somebody_else(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    model = TallMed(MedConfig(vision=VISION, text=text(tokenizer), heads=("itm", "lm")))
    save_folder(tmp_path / "tall", model, tokenizer, "pretrain", 12)
    file = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(file, "PNG")
    rows = [
        PairRow(f"{n}", file.getvalue(), origin="human", split=split, captions=["a dog runs"])
        for n, split in enumerate(("train", "train", "val"))
    ]
    table = str(tmp_path / "pairs.lance")
    PairTable.create(table, rows)
    recipe = captioner(table, str(tmp_path / "tall"), 16)
    recipe = replace(
        recipe,
        data=replace(recipe.data, max_tokens=12, prefix="", num_threads=1),
        train=TrainConfig(steps=1, batch_size=2, checkpoint_every=1),
    )
    result = train(recipe, tmp_path / "run")
    trained = openblip.load(result.model_folder, device="cpu")
    assert isinstance(trained.model, TallMed)
    assert trained.kind == "captioner"


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("no_such_module_here:Bag", "no module 'no_such_module_here'"),
        (f"{__name__}:Sack", "has no Sack"),
        (f"{__name__}:VISION", "is no model that can be saved or read"),
        (f"{__name__}:Unannotated", "no argument `config`, annotated with a dataclass"),
    ],
)
def test_a_class_that_is_no_family_is_told(
    tmp_path: Path, tokenizer: TextTokenizer, reference: str, message: str
) -> None:
    med = Med(MedConfig(vision=VISION, text=text(tokenizer)))
    save_folder(tmp_path / "model", med, tokenizer, "pretrain", 12)
    config = tmp_path / "model" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "class": reference}))
    with pytest.raises(CheckpointError, match=rf"config\.json: .*{message[:30]}"):
        read_folder(tmp_path / "model")


def test_a_configuration_of_somebody_else_does_not_tell_its_model() -> None:
    with pytest.raises(CheckpointError, match=r"BagConfig.* is no model that can be saved"):
        family_of(BagConfig())
