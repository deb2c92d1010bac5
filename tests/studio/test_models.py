"""Models are loaded when they are first used, once, and used by one at a time."""

import shutil
import threading
from pathlib import Path

import pytest

from openblip.checkpoints.reading import BACKENDS
from openblip.cli.studio import _check_name
from openblip.runtime.errors import CheckpointError, MissingHead, RecipeError
from openblip.studio.models import Models, declared_heads, without_backend

from ..inference.published_clip import save_clip


def state(models: Models, source: str) -> dict[str, object]:
    (found,) = [one for one in models.states() if one["model"] == source]
    return found


def test_nothing_is_loaded_before_it_is_used(checkpoints: dict[str, str]) -> None:
    models = Models(checkpoints, "cpu")
    assert {one["state"] for one in models.states()} == {"not loaded"}
    with models.using("captioner") as blip:
        assert blip.kind == "captioner"
    assert state(models, checkpoints["captioner"])["state"] == "ready"
    assert state(models, checkpoints["filter"])["state"] == "not loaded"


def test_a_folder_of_ours_says_what_it_was_trained_for(
    checkpoints: dict[str, str], tmp_path: Path
) -> None:
    heads = {kind: declared_heads(folder) for kind, folder in checkpoints.items()}
    assert heads == {"captioner": {"lm"}, "filter": {"itc", "itm"}, "vqa": frozenset()}
    assert declared_heads(f"onnx:{checkpoints['filter']}") == {"itc", "itm"}
    # A training run is where its last checkpoint is.
    shutil.copytree(checkpoints["filter"], tmp_path / "run" / "checkpoints" / "last")
    assert declared_heads(str(tmp_path / "run")) == {"itc", "itm"}
    # What is elsewhere, or of another layout, says nothing without being loaded.
    (tmp_path / "config.json").write_text('{"architectures": ["BlipForConditionalGeneration"]}')
    assert declared_heads(str(tmp_path)) is declared_heads("organisation/name") is None


def test_only_a_backend_is_no_part_of_a_place(checkpoints: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "run 11:50"
    shutil.copytree(checkpoints["filter"], folder)
    assert declared_heads(str(folder)) == {"itc", "itm"}
    for source in (str(folder), f"onnx:{folder}", "open_clip:ViT-B-32/laion2b_s34b_b79k"):
        _check_name("--filter", source)
    with pytest.raises(RecipeError, match="no such file or folder"):
        _check_name("--filter", f"{tmp_path}/run 12:30")
    for backend in BACKENDS:
        assert without_backend(f"{backend}:models/filter") == "models/filter"


def test_one_that_is_given_for_two_things_is_loaded_once(checkpoints: dict[str, str]) -> None:
    source = checkpoints["filter"]
    models = Models({"captioner": source, "filter": source}, "cpu")
    with models.using("captioner") as first:
        pass
    with models.using("filter") as second:
        assert second is first
    assert state(models, source)["roles"] == ["captioner", "filter"]


def test_one_request_at_a_time_uses_a_model(checkpoints: dict[str, str]) -> None:
    models, inside, most = Models(checkpoints, "cpu"), [], []

    def use() -> None:
        for _ in range(20):
            with models.using("filter") as blip:
                inside.append(blip)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(most) == {1}
    assert state(models, checkpoints["filter"])["waiting"] == 0


def test_others_do_not_wait_for_it(checkpoints: dict[str, str]) -> None:
    models = Models(checkpoints, "cpu")
    with models.using("filter"), models.using("captioner") as blip:
        assert blip.kind == "captioner"


def test_what_was_not_given_names_the_flag() -> None:
    with pytest.raises(MissingHead, match="--vqa VQA"), Models({}).using("vqa"):
        pass


def test_a_published_one_stands_where_none_is_given_or_suggested() -> None:
    published = {"captioner": "them/writes", "filter": "them/matches", "vqa": "them/answers"}
    models = Models({"captioner": "mine"}, "cpu", published)
    assert [models.source_of(role) for role in published] == [
        "mine",
        "them/matches",
        "them/answers",
    ]
    assert {one["model"]: one["published"] for one in models.states()} == {
        "mine": False,
        "them/matches": True,
        "them/answers": True,
    }
    models.suggest("filter", "that of the index")
    assert models.source_of("filter") == "that of the index"


def test_a_model_that_cannot_be_read_is_tried_again(
    checkpoints: dict[str, str], tmp_path: Path
) -> None:
    source = str(tmp_path / "later")
    models = Models({"captioner": source, "vqa": None}, "cpu")
    with pytest.raises(CheckpointError), models.using("captioner"):
        pass
    assert state(models, source)["state"] == "failed"
    assert state(models, source)["error"]
    Path(source).symlink_to(checkpoints["captioner"])
    with models.using("captioner"):
        assert state(models, source)["state"] == "ready"


def test_one_that_only_embeds_does_nothing_else(tmp_path: Path) -> None:
    source = str(save_clip(tmp_path / "clip"))
    models = Models({"filter": source}, "cpu")
    with models.using_source(source) as clip:
        assert clip.embed_texts("a dog").shape[0] == 1
    with pytest.raises(MissingHead, match="embeds"), models.using("filter"):
        pass
