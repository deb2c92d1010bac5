"""The table of families, and families that others have written."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

import openblip
from openblip.batches.tokenizer import TextTokenizer
from openblip.checkpoints.families import FAMILIES, family_named, family_of
from openblip.checkpoints.folder import read_folder, save_folder
from openblip.model import Med, MedConfig, TextConfig, VisionConfig
from openblip.model.vision import ImageModel
from openblip.objectives.task import Task
from openblip.runtime.errors import CheckpointError, MissingHead

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
    model = TallMed(MedConfig(vision=VISION, text=text(tokenizer), heads=("itc",)))
    save_folder(tmp_path / "med", model, tokenizer, f"{__name__}:TallMed", 12)
    blip = openblip.load(tmp_path / "med", device="cpu")
    assert isinstance(blip.model, TallMed)
    assert blip.embed_texts(["a b"]).shape == (1, 256)
    with pytest.raises(CheckpointError, match="unknown height"):
        save_folder(tmp_path / "plain", model, tokenizer, "pretrain", 12)


def test_a_run_says_that_it_trained_a_model_of_somebody_else(tokenizer: TextTokenizer) -> None:
    class Own(Task[Any]):
        needs: ClassVar[Any] = None
        forward: Any = None

    task = Own()
    task.student = TallMed(MedConfig(vision=VISION, text=text(tokenizer)))
    assert task.kind == f"{__name__}:TallMed"


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("no_such_module_here:Bag", "no module 'no_such_module_here'"),
        (f"{__name__}:Sack", "has no Sack"),
        (f"{__name__}:VISION", "is no model that can be saved or read"),
        (f"{__name__}:Unannotated", "no argument `config`, annotated with a dataclass"),
    ],
)
def test_a_class_that_is_no_family_is_told(
    tmp_path: Path, tokenizer: TextTokenizer, kind: str, message: str
) -> None:
    med = Med(MedConfig(vision=VISION, text=text(tokenizer)))
    with pytest.raises(CheckpointError, match=message):
        save_folder(tmp_path / "model", med, tokenizer, kind, 12)
    save_folder(tmp_path / "model", med, tokenizer, "pretrain", 12)
    config = tmp_path / "model" / "config.json"
    config.write_text(config.read_text().replace('"pretrain"', f'"{kind}"'))
    with pytest.raises(CheckpointError, match=rf"config\.json: .*{message[:30]}"):
        read_folder(tmp_path / "model")


def test_a_configuration_of_somebody_else_does_not_tell_its_model() -> None:
    with pytest.raises(CheckpointError, match=r"BagConfig.* is no model that can be saved"):
        family_of(BagConfig())
