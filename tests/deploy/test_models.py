"""A model that a runtime computes gives what the model itself gives, to every caller."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from openblip.batches.tokenizer import TextTokenizer
from openblip.checkpoints.families import family_of
from openblip.deploy.models import GraphCache, open_model, require_weights
from openblip.inference.blip import Blip
from openblip.inference.export import Exported, export
from openblip.inference.loading import load
from openblip.runtime.errors import CheckpointError, MissingHead, RecipeError
from openblip.runtime.threads import one_thread

from ..inference.conftest import make_med, make_relative, make_vqa

for name in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(name, reason="the extra `export` is not installed")

TEXTS = ["a red square", "two green triangles on a white table", "people walk along the street"]
QUESTIONS = ["a red square", "a dog under a large tree"]
CANDIDATES = ["a dog", "two cats", "a red square on a table", "people"]


@pytest.fixture(scope="module")
def computed(exported: Exported) -> Blip:
    return load(exported.folder)


@pytest.fixture(scope="module")
def answering(
    tokenizer: TextTokenizer, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Blip, Blip]:
    """A model that answers, and the same computed by the runtime.

    It has a layer of each kind: to make its graphs takes longer with each.
    """
    own = Blip(make_vqa(tokenizer, depth=1), tokenizer, "vqa", 32, 30)
    return own, load(export(own, tmp_path_factory.mktemp("vqa") / "model").folder)


def ids_of(captions: list) -> list[list[tuple[int, ...]]]:
    return [[caption.token_ids for caption in of_image] for of_image in captions]


@pytest.mark.parametrize("num_captions", [1, 3])
@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_beams_are_equal(
    blip: Blip, computed: Blip, pictures: list[Image.Image], num_captions: int, batch_size: int
) -> None:
    settings = {"num_captions": num_captions, "batch_size": batch_size}
    found, expected = (each.caption(pictures, **settings) for each in (computed, blip))
    assert ids_of(found) == ids_of(expected)
    assert len({ids for own in ids_of(expected) for ids in own}) > 3, "captions differ"
    for own, theirs in zip(found, expected, strict=True):
        for caption, other in zip(own, theirs, strict=True):
            assert caption.logprob == pytest.approx(other.logprob, abs=1e-3)
            assert [word.text for word in caption.words] == [word.text for word in other.words]


def test_beams_of_a_hundred_images_are_equal(blip: Blip, computed: Blip) -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (100, 20, 28, 3), dtype=np.uint8)
    images = [Image.fromarray(one) for one in pixels]
    found, expected = (ids_of(each.caption(images, num_captions=3)) for each in (computed, blip))
    assert found == expected
    assert len({ids for own in expected for ids in own}) > 20, "captions differ"


@pytest.mark.parametrize("method", ["greedy", "nucleus"])
def test_the_same_seeds_draw_the_same_captions(
    blip: Blip, computed: Blip, pictures: list[Image.Image], method: str
) -> None:
    settings = {"method": method, "seed": 5, "num_captions": 1 + (method == "nucleus")}
    found, expected = (each.caption(pictures, **settings) for each in (computed, blip))
    assert ids_of(found) == ids_of(expected)


def test_images_that_have_prompts_of_different_lengths(
    blip: Blip, computed: Blip, pictures: list[Image.Image]
) -> None:
    prompts = ["", "a picture of ", "a red"] * 2 + ["a"]
    found, expected = (each.caption(pictures, prompt=prompts) for each in (computed, blip))
    assert ids_of(found) == ids_of(expected)


def test_scores_and_embeddings_are_near(
    blip: Blip, computed: Blip, pictures: list[Image.Image]
) -> None:
    expected = blip.match_all(pictures, TEXTS)
    assert expected.std() > 0.01, "the model tells pairs apart"
    assert (computed.match_all(pictures, TEXTS) - expected).abs().max() < 1e-4
    for own, other in zip(
        computed.match(pictures[0], TEXTS), blip.match(pictures[0], TEXTS), strict=True
    ):
        assert (own.itm, own.itc) == pytest.approx((other.itm, other.itc), abs=1e-4)
    for name, given in (("embed_images", pictures), ("embed_texts", TEXTS)):
        difference = getattr(computed, name)(given) - getattr(blip, name)(given)
        assert difference.abs().max() < 1e-4
    temperatures = [each.matcher.temperature.detach().item() for each in (computed, blip)]
    assert temperatures[0] == pytest.approx(temperatures[1])


def test_answers_are_equal_written_and_ranked(
    answering: tuple[Blip, Blip], pictures: list[Image.Image]
) -> None:
    own, computed = answering
    for settings in ({}, {"candidates": CANDIDATES}, {"candidates": CANDIDATES, "k": 2}):
        for asked in ((pictures[:2], QUESTIONS), (pictures[0], QUESTIONS)):
            expected = own.ask_top(*asked, 3, **settings)
            found = computed.ask_top(*asked, 3, **settings)
            for ours, theirs in zip(found, expected, strict=True):
                assert [answer.text for answer in ours] == [answer.text for answer in theirs]
                assert [answer.logprob for answer in ours] == pytest.approx(
                    [answer.logprob for answer in theirs], abs=1e-3
                )


def test_the_outline_is_that_of_the_model(blip: Blip, computed: Blip, exported: Exported) -> None:
    assert computed.model.config == blip.model.config
    assert family_of(computed.model) is family_of(blip.model)
    assert (computed.kind, computed.image_size, computed.max_tokens) == ("pretrain", 32, 30)
    assert computed.device == torch.device("cpu")
    assert computed.dtype == torch.float32
    assert not any(p.numel() > 1 for p in computed.model.parameters()), "no weights are held"
    with pytest.raises(MissingHead, match="load a question-answering"):
        computed.ask(Image.new("RGB", (8, 8)), "what is this?")


def test_what_needs_weights_says_what_to_load(
    computed: Blip, pictures: list[Image.Image], tmp_path: Path
) -> None:
    for attempt in (
        lambda: computed.explain(pictures[0], "a red square"),
        lambda: computed.save(tmp_path / "model"),
        lambda: computed.save_original(tmp_path / "model.pth"),
        lambda: computed.save_huggingface(tmp_path / "model", "caption"),
        lambda: export(computed, tmp_path / "model"),
    ):
        with pytest.raises(RecipeError, match=r"no weights to .*; load the model itself"):
            attempt()
    assert list(tmp_path.iterdir()) == []


def test_frames_of_a_video_in_one_memory_are_refused(computed: Blip, images: torch.Tensor) -> None:
    hidden = computed.encode_patches(images[:4]).unflatten(0, (2, 2)).flatten(1, 2)
    with pytest.raises(RecipeError, match="several frames of a video"):
        computed.matcher.text.remember(hidden)


def test_a_runtime_gets_as_many_threads_as_pytorch_has(
    computed: Blip, pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[int | None] = []
    from openblip.deploy import models

    own = models.open_graph
    monkeypatch.setattr(
        models, "open_graph", lambda file, threads: opened.append(threads) or own(file, threads)
    )
    fresh = load(Path(computed.source))
    before = torch.get_num_threads()
    with one_thread():
        expected = fresh.embed_images(pictures)
    assert set(opened) == {1}
    torch.set_num_threads(2)
    try:
        assert torch.allclose(fresh.embed_images(pictures), expected, atol=1e-5)
    finally:
        torch.set_num_threads(before)
    assert set(opened) == {1, 2}


def test_a_cache_of_texts_keeps_the_rows_that_are_asked_for() -> None:
    cache = GraphCache([torch.arange(6.0).view(3, 1, 2, 1)] * 2)
    chosen = cache.select(torch.tensor([2, 0, 0]))
    assert (chosen.rows, chosen.length) == (3, 2)
    assert chosen.past[0][:, 0, :, 0].tolist() == [[4.0, 5.0], [0.0, 1.0], [0.0, 1.0]]


def test_a_folder_of_an_earlier_version_is_told(exported: Exported, tmp_path: Path) -> None:
    import json
    import shutil

    folder = Path(shutil.copytree(exported.folder, tmp_path / "old"))
    file = folder / "openblip.json"
    manifest = json.loads(file.read_text(encoding="utf-8"))
    del manifest["graphs"]["image_embedding"]
    file.write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"no graph image_embedding.*export the model again"):
        load(folder).embed_images(Image.new("RGB", (8, 8)))
    file.write_text(json.dumps(manifest | {"format_version": 0}), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"version 0.*export the model again"):
        open_model(folder)
    with pytest.raises(CheckpointError, match="version 0"):
        load(folder)


def test_a_model_with_weights_passes(blip: Blip) -> None:
    require_weights(blip.model, "save")


@pytest.mark.slow
@pytest.mark.parametrize("sharing", ["none", "all_but_cross_attention", "all"])
def test_whatever_decoder_and_encoder_share(
    tokenizer: TextTokenizer, pictures: list[Image.Image], tmp_path: Path, sharing: str
) -> None:
    own = Blip(make_med(tokenizer, sharing=sharing), tokenizer, "pretrain", 32, 30)
    computed = load(export(own, tmp_path / "model").folder)
    assert ids_of(computed.caption(pictures)) == ids_of(own.caption(pictures))
    difference = computed.match_all(pictures, TEXTS) - own.match_all(pictures, TEXTS)
    assert difference.abs().max() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["albef", "dual_encoder"])
def test_relatives(
    kind: str, tokenizer: TextTokenizer, pictures: list[Image.Image], tmp_path: Path
) -> None:
    own = Blip(make_relative(kind, tokenizer), tokenizer, kind, 32, 30)
    computed = load(export(own, tmp_path / kind).folder)
    for name, given in (("embed_images", pictures), ("embed_texts", TEXTS)):
        difference = getattr(computed, name)(given) - getattr(own, name)(given)
        assert difference.abs().max() < 1e-4
    if kind == "albef":
        difference = computed.match_all(pictures, TEXTS) - own.match_all(pictures, TEXTS)
        assert difference.abs().max() < 1e-4


@pytest.mark.slow
def test_openvino_gives_the_same(blip: Blip, pictures: list[Image.Image], tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="the extra `openvino` is not installed")
    computed = load(export(blip, tmp_path / "model", "openvino").folder)
    assert ids_of(computed.caption(pictures)) == ids_of(blip.caption(pictures))
    difference = computed.match_all(pictures, TEXTS) - blip.match_all(pictures, TEXTS)
    assert difference.abs().max() < 1e-4
