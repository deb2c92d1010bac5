"""Runs with another image encoder than ours, and runs that begin from what others trained."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from openblip.batches.tokenizer import TextTokenizer
from openblip.inference.loading import load
from openblip.model.config import VisionConfig
from openblip.plan.sizing import DEVICES, Cluster, Planner
from openblip.recipes.finetune import FINETUNE_RECIPES
from openblip.runtime.errors import CheckpointError, RecipeError
from openblip.training.recipe import LoraConfig, ModelOverrides, Recipe
from openblip.training.recipe_file import read_recipe
from openblip.training.run import BEGINNINGS_FILE, train

from .. import foreign_encoders

MakeRecipe = Callable[..., Recipe]
CONVOLUTIONS = f"{foreign_encoders.__name__}:Convolutions"
TOWER = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 16,
    "patch_size": 8,
}
DEVICE = next(iter(DEVICES.values()))
RED = torch.zeros(20, 20, 3, dtype=torch.uint8).numpy()


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("siglip")
    torch.manual_seed(2)
    config = transformers.SiglipVisionConfig(**TOWER)
    transformers.SiglipVisionModel(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def with_backbone(make_recipe: MakeRecipe) -> MakeRecipe:
    def make(backbone: str, **train: Any) -> Recipe:
        recipe = make_recipe(**train)
        vision = VisionConfig(backbone=backbone, checkpoint_layers=1)
        return replace(recipe, model=replace(recipe.model, vision=vision))  # type: ignore[type-var]

    return make


@pytest.fixture(scope="module")
def trained(make_recipe: MakeRecipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the convolutions, of four steps."""
    recipe = make_recipe()
    assert recipe.model is not None
    vision = VisionConfig(backbone=CONVOLUTIONS)
    recipe = replace(recipe, model=replace(recipe.model, vision=vision))  # type: ignore[type-var]
    return train(recipe, tmp_path_factory.mktemp("run") / "run", quiet=True).run_dir


def weights(run_dir: Path) -> bytes:
    return (run_dir / "checkpoints" / "last" / "model.safetensors").read_bytes()


class TestRuns:
    @pytest.mark.parametrize("kind", ["module", "transformers"])
    def test_a_run_that_stops_goes_on_bit_for_bit(
        self, with_backbone: MakeRecipe, siglip: str, tmp_path: Path, kind: str
    ) -> None:
        backbone = CONVOLUTIONS if kind == "module" else f"transformers:{siglip}"
        recipe = with_backbone(backbone, steps=4, checkpoint_every=2)
        recipe = replace(recipe, schedule=replace(recipe.schedule, kind="step_decay"))
        train(recipe, tmp_path / "whole", quiet=True)
        short = replace(recipe, train=replace(recipe.train, steps=2))
        train(short, tmp_path / "parts", quiet=True)
        train(recipe, tmp_path / "parts", quiet=True)
        assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
        recorded = read_recipe(tmp_path / "whole" / "recipe.yaml").model
        assert recorded is not None
        assert siglip not in str(recorded.vision.backbone)
        assert recorded.vision.tokens == 5

    def test_what_was_trained_is_used_like_any_model(self, trained: Path, tmp_path: Path) -> None:
        blip = load(trained, device="cpu")
        assert blip.device == torch.device("cpu")
        assert blip.dtype == torch.float32
        (captions,) = blip.caption([RED], max_length=16)
        assert captions
        (match,) = blip.match([RED], ["a dark red wall"])
        assert 0.0 <= match.itm <= 1.0
        assert blip.explain(RED, "a red wall").maps.shape[1:] == (2, 2)
        blip.save(tmp_path / "saved")
        again = load(tmp_path / "saved", device="cpu")
        assert torch.equal(again.embed_images([RED]), blip.embed_images([RED]))
        larger = load(trained, device="cpu", image_size=32)
        assert larger.explain(RED, "a red wall").maps.shape[1:] == (4, 4)
        assert load(trained, device="cpu", dtype="bfloat16").dtype == torch.bfloat16

    def test_other_layouts_have_no_place_for_it(self, trained: Path, tmp_path: Path) -> None:
        blip = load(trained, device="cpu")
        with pytest.raises(CheckpointError, match="no place in the original layout"):
            blip.save_original(tmp_path / "model.pth")
        with pytest.raises(CheckpointError, match="no place in the Hugging Face layout"):
            blip.save_huggingface(tmp_path / "folder", "caption")

    @pytest.mark.parametrize("task", ["captioner", "filter", "vqa", "nlvr"])
    def test_it_is_fine_tuned_for_every_task(
        self, trained: Path, questions_uri: str, tmp_path: Path, task: str
    ) -> None:
        recipe = FINETUNE_RECIPES[task](questions_uri, str(trained), 32)
        objectives = recipe.objectives
        if hasattr(objectives, "queue_size"):
            objectives = replace(objectives, queue_size=4)
        recipe = replace(
            recipe,
            objectives=objectives,
            overrides=ModelOverrides(),
            data=replace(recipe.data, image_size=32, max_tokens=16, num_threads=1),
            train=replace(
                recipe.train, batch_size=4, epochs=None, steps=1, device="cpu", threads=1
            ),
        )
        result = train(recipe, tmp_path / task, quiet=True)
        assert load(result.model_folder, device="cpu").image_size == 32

    def test_drop_path_of_a_recipe_is_refused_with_the_remedy(
        self, trained: Path, make_finetuning: MakeRecipe, tmp_path: Path
    ) -> None:
        recipe = make_finetuning("captioner", str(trained))
        recipe = replace(recipe, overrides=ModelOverrides(drop_path=0.1))
        with pytest.raises(RecipeError, match=r"set it to 0 \(--overrides\.drop-path"):
            train(recipe, tmp_path / "run", quiet=True)

    def test_changes_of_low_rank_reach_the_backbone(
        self, trained: Path, make_finetuning: MakeRecipe, tmp_path: Path
    ) -> None:
        recipe = make_finetuning("captioner", str(trained))
        lora = LoraConfig(rank=2, targets=("backbone",))
        result = train(replace(recipe, lora=lora), tmp_path / "run", quiet=True)
        before, after = (load(f, device="cpu").med for f in (trained, result.model_folder))
        name = "image_encoder.backbone.output.weight"
        changed = {
            n
            for n, value in after.state_dict().items()
            if not torch.equal(value, before.state_dict()[n]) and "running" not in n
        }
        assert changed - {n for n in changed if n.endswith("num_batches_tracked")} == {name}

    @pytest.mark.parametrize("kind", ["module", "transformers"])
    def test_it_is_planned_for(self, with_backbone: MakeRecipe, siglip: str, kind: str) -> None:
        backbone = CONVOLUTIONS if kind == "module" else f"transformers:{siglip}"
        planner = Planner(with_backbone(backbone), Cluster(device=DEVICE))
        assert planner.as_given.compute_seconds > 0
        assert planner.as_given.parts["image encoder"] > 0


class TestBeginnings:
    @pytest.fixture
    def sources(self, tmp_path: Path) -> dict[str, str]:
        torch.manual_seed(4)
        vit, bert = tmp_path / "vit", tmp_path / "bert"
        transformers.ViTModel(
            transformers.ViTConfig(**{**TOWER, "image_size": 32})
        ).save_pretrained(vit)
        words = TextTokenizer.train(["this wall is dark red pale green warm blue plain"], 60)
        words.save(bert)
        text = {k: v for k, v in TOWER.items() if k not in ("image_size", "patch_size")}
        transformers.BertModel(
            transformers.BertConfig(
                **text, vocab_size=words.vocab_size - 2, max_position_embeddings=40
            )
        ).save_pretrained(bert)
        return {"init_image": str(vit), "init_text": str(bert)}

    def test_a_run_begins_with_them_lists_every_key_and_resumes(
        self, make_recipe: MakeRecipe, sources: dict[str, str], tmp_path: Path
    ) -> None:
        recipe = make_recipe(steps=2, checkpoint_every=1)
        recipe = replace(
            recipe,
            tokenizer=None,
            overrides=ModelOverrides(drop_path=0.0),
            optimiser=replace(recipe.optimiser, lr=0.0),
            schedule=replace(recipe.schedule, min_lr=0.0, warmup_lr=0.0, kind="step_decay"),
            **sources,
        )
        train(replace(recipe, train=replace(recipe.train, steps=1)), tmp_path / "run", quiet=True)
        train(recipe, tmp_path / "run", quiet=True)
        recorded = read_recipe(tmp_path / "run" / "recipe.yaml")
        assert (recorded.init_image, recorded.init_text) == tuple(sources.values())
        assert recorded.model is not None
        assert recorded.model.text.max_positions == 40
        reports = json.loads((tmp_path / "run" / BEGINNINGS_FILE).read_text())
        assert [report["part"] for report in reports] == ["image_encoder", "text"]
        assert "pooler.dense.weight" in reports[0]["dropped"]
        assert "embeddings.word.weight[" in " ".join(reports[1]["fresh"])
        logs = "".join(path.read_text() for path in (tmp_path / "run" / "logs").iterdir())
        assert "keys used" in logs
        # Nothing was learnt, so that what was trained has the states of the source.
        med = load(tmp_path / "run", device="cpu").med
        images = torch.randn(2, 3, 16, 16)
        vit = transformers.ViTModel.from_pretrained(sources["init_image"]).eval()
        with torch.no_grad():
            expected = vit(pixel_values=images, interpolate_pos_encoding=True).last_hidden_state
            torch.testing.assert_close(med.encode_images(images), expected, atol=1e-5, rtol=1e-5)

    def test_they_are_planned_for(self, make_recipe: MakeRecipe, sources: dict[str, str]) -> None:
        recipe = replace(make_recipe(), tokenizer=None, **sources)
        planner = Planner(recipe, Cluster(device=DEVICE))
        assert planner.recipe.model is not None
        assert planner.recipe.model.text.max_positions == 40
        assert planner.as_given.memory > 0

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"init_text": "x"}, "tokenizer: give"),
            (
                {"model": None, "tokenizer": None, "init_from": "m", "init_image": "x"},
                "no init_from",
            ),
        ],
    )
    def test_contradictions_are_refused(
        self, make_recipe: MakeRecipe, changes: dict[str, Any], reason: str
    ) -> None:
        with pytest.raises(RecipeError, match=reason):
            replace(make_recipe(), **changes)
