"""Two-stage retrieval against scores computed pair by pair."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from openblip.batches.transforms import eval_transform
from openblip.evaluation.retrieval import (
    Gallery,
    PairScores,
    evaluate_retrieval,
    fit_match_weight,
    read_gallery,
)
from openblip.inference.blip import Blip
from openblip.inference.image_sources import Images
from openblip.metrics import retrieval
from openblip.model import Med
from openblip.runtime.errors import DataError, MissingHead, RecipeError
from openblip.sources.row_images import row_image
from openblip.table.table import PairRow, PairTable
from openblip.table.views import split_rows

Scores = tuple[np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def pair_by_pair(blip: Blip, world: PairTable) -> Scores:
    """Cosines and matching logits (images, texts), one pair at a time."""
    gallery = read_gallery(world, "test", 50)
    rows = world.take(gallery.rows, ["id", "image", "image_uri"]).to_pylist()
    cosines = np.zeros((len(rows), len(gallery.texts)))
    logits = np.zeros_like(cosines)
    encoded = [
        [blip.tokenizer.encode([words], blip.max_tokens, first=first) for words in gallery.texts]
        for first in ("cls", "enc")
    ]
    with torch.no_grad():
        embeds = [blip.med.embed_texts(plain.ids, plain.mask) for plain in encoded[0]]
        for image, row in enumerate(rows):
            hidden = blip.med.encode_images(eval_transform(row_image(row), blip.image_size)[None])
            memory = blip.med.text.remember(hidden)
            cosines[image] = (blip.med.embed_images(hidden) @ torch.cat(embeds).T).numpy()
            for text, first in enumerate(encoded[1]):
                logits[image, text] = float(blip.med.match(first.ids, first.mask, memory)[0, 1])
    return cosines, logits


def test_reranking_everything_equals_scoring_pair_by_pair(
    blip: Blip, world: PairTable, pair_by_pair: Scores
) -> None:
    captions = read_gallery(world, "test", 50).captions_of_image
    cosines, logits = pair_by_pair

    result = evaluate_retrieval(blip, world, k=1000, batch_size=4)

    assert result.metrics == pytest.approx(retrieval(logits + cosines, captions))
    assert result.contrastive == pytest.approx(retrieval(cosines, captions))
    assert (result.num_images, result.num_texts) == (9, 45)


def test_only_the_k_best_by_contrast_are_ranked_again(
    blip: Blip, world: PairTable, pair_by_pair: Scores
) -> None:
    captions = read_gallery(world, "test", 50).captions_of_image
    cosines, logits = pair_by_pair
    k = 3
    of_image = np.argsort(np.argsort(-cosines, axis=1), axis=1) < k
    of_text = np.argsort(np.argsort(-cosines, axis=0), axis=0) < k

    result = evaluate_retrieval(blip, world, k=k)

    expected = retrieval(
        np.where(of_image, logits + cosines, -100.0),
        captions,
        scores_t2i=np.where(of_text, logits + cosines, -100.0).T,
    )
    assert result.metrics == pytest.approx(expected)


def test_both_heads_may_rank_together(blip: Blip, world: PairTable, pair_by_pair: Scores) -> None:
    gallery = read_gallery(world, "test", 50)
    cosines, _ = pair_by_pair
    rows = world.take(gallery.rows, ["id", "image", "image_uri"]).to_pylist()
    odds = np.zeros_like(cosines)
    first = [blip.tokenizer.encode([t], blip.max_tokens, first="enc") for t in gallery.texts]
    with torch.no_grad():
        for image, row in enumerate(rows):
            hidden = blip.med.encode_images(eval_transform(row_image(row), blip.image_size)[None])
            memory = blip.med.text.remember(hidden)
            for text, tokens in enumerate(first):
                logits = blip.med.match(tokens.ids, tokens.mask, memory)[0]
                odds[image, text] = logits[1] - logits[0]

    result = evaluate_retrieval(blip, world, k=1000, ranking="combined")

    expected = odds + cosines / float(blip.med.temperature.detach())
    np.testing.assert_allclose(result.pairs.of_texts, expected, rtol=1e-4, atol=1e-3)


def test_what_is_no_candidate_stands_below_the_candidates(world: PairTable, blip: Blip) -> None:
    """Also where a low temperature makes logits smaller than any fixed number."""
    temperature = blip.med.temperature.data.clone()
    blip.med.temperature.data.fill_(1e-3)
    try:
        pairs = evaluate_retrieval(blip, world, k=3, ranking="combined").pairs
    finally:
        blip.med.temperature.data.copy_(temperature)
    best = np.argsort(-pairs.of_texts, axis=1)[:, :3]
    by_contrast = np.argsort(-pairs.cosines, axis=1)[:, :3]
    assert [set(row) for row in best] == [set(row) for row in by_contrast]


TEMPERATURE = 0.05


def drawn_pairs(sureness: float, sight: float = 1.5) -> PairScores:
    """Two heads that see what is right dimly; contrast is as sure as it should be.

    Args:
        sureness: of matching; it should be 1.
        sight: of matching; 0 sees nothing.
    """
    dice = np.random.default_rng(0)
    images, each = 300, 3
    captions = [list(range(each * n, each * n + each)) for n in range(images)]
    own = np.repeat(np.eye(images, dtype=bool), each, axis=1)

    def log_odds(distance: float) -> np.ndarray:
        # Of a normal variable whose mean is so much larger where the pair is right.
        return distance * (dice.normal(size=own.shape) + distance * own) - distance**2 / 2

    contrast = log_odds(2.5)
    odds = sureness * (log_odds(sight) if sight else dice.normal(size=own.shape))
    chosen = dice.random(own.shape) < 0.3
    scores = np.where(chosen, contrast + odds, -900).astype(np.float32)
    itm = np.where(chosen, 1 / (1 + np.exp(-odds)), np.nan)
    ids = [str(n) for n in range(images)]
    gallery = Gallery(np.arange(images), ids, [""] * own.shape[1], captions)
    return PairScores(gallery, (TEMPERATURE * contrast).astype(np.float32), scores, scores, itm)


@pytest.mark.parametrize("sureness", [0.5, 1.0, 4.0])
def test_a_head_that_is_too_sure_counts_as_much_less(sureness: float) -> None:
    weight = fit_match_weight(drawn_pairs(sureness), TEMPERATURE)
    assert weight * sureness == pytest.approx(1.0, rel=0.1)


def test_a_head_that_sees_nothing_counts_nothing() -> None:
    assert fit_match_weight(drawn_pairs(1.0, sight=0.0), TEMPERATURE) < 0.1


def test_without_a_right_pair_there_is_nothing_to_weigh_by() -> None:
    pairs = drawn_pairs(1.0)
    swapped = [*pairs.gallery.captions_of_image[1:], pairs.gallery.captions_of_image[0]]
    itm = np.where(np.repeat(np.eye(300, dtype=bool), 3, axis=1), pairs.itm, np.nan)
    wrong = replace(pairs, itm=itm, gallery=replace(pairs.gallery, captions_of_image=swapped))
    with pytest.raises(DataError, match="nothing to weigh by"):
        fit_match_weight(wrong, TEMPERATURE)


def test_the_weight_is_found_on_another_split(blip: Blip, world: PairTable) -> None:
    on_val = evaluate_retrieval(blip, world, split="val", k=6, ranking="combined")
    result = evaluate_retrieval(blip, world, k=6, ranking="combined", weigh_on="val")
    temperature = float(blip.med.temperature.detach())
    assert result.match_weight == pytest.approx(fit_match_weight(on_val.pairs, temperature))
    plain = evaluate_retrieval(blip, world, k=6, ranking="combined")
    assert plain.match_weight is None
    ranked = ~np.isnan(plain.pairs.itm) & (plain.pairs.of_texts > plain.pairs.of_texts.min() + 0.5)
    of_contrast = plain.pairs.cosines / temperature
    np.testing.assert_allclose(
        (result.pairs.of_texts - of_contrast)[ranked],
        result.match_weight * (plain.pairs.of_texts - of_contrast)[ranked],
        rtol=1e-3,
        atol=1e-3,
    )
    with pytest.raises(RecipeError, match="the split that is evaluated"):
        evaluate_retrieval(blip, world, ranking="combined", weigh_on="test")
    with pytest.raises(RecipeError, match="only both heads together"):
        evaluate_retrieval(blip, world, weigh_on="val")


def test_contrast_alone_matches_nothing(blip: Blip, world: PairTable) -> None:
    result = evaluate_retrieval(blip, world, ranking="contrast")
    assert result.pairs.itm is None
    assert result.metrics == result.contrastive


@pytest.mark.parametrize("k", [3, 1000])
def test_keys_and_values_are_computed_once_per_image_and_layer(
    blip: Blip, world: PairTable, k: int
) -> None:
    projected = 0

    def count(_module: object, inputs: tuple[torch.Tensor], _output: object) -> None:
        nonlocal projected
        projected += len(inputs[0])

    layers = blip.med.text.layers
    hooks = [layer.cross_attention.key_value.register_forward_hook(count) for layer in layers]
    evaluate_retrieval(blip, world, k=k, batch_size=4)
    for hook in hooks:
        hook.remove()

    assert projected == 9 * len(layers)


@pytest.mark.parametrize("k", [3, 1000])
def test_ranked_lists_are_those_that_the_recalls_are_of(
    blip: Blip, world: PairTable, pair_by_pair: Scores, k: int, tmp_path: Path
) -> None:
    gallery = read_gallery(world, "test", 50)
    cosines, logits = pair_by_pair
    result = evaluate_retrieval(blip, world, k=k)

    result.rankings.save(tmp_path / "lists" / "ranked.json")

    lists = json.loads((tmp_path / "lists" / "ranked.json").read_text())
    assert list(lists["texts_of_image"]) == gallery.ids
    assert [own["text"] for own in lists["images_of_text"]] == gallery.texts
    scores = logits + cosines
    for image, found in enumerate(lists["texts_of_image"].values()):
        assert len(found) == min(k, 10)
        among = np.argsort(-cosines[image])[:k]
        best = among[np.argsort(-scores[image, among])][:10]
        assert [each["text"] for each in found] == [gallery.texts[text] for text in best]
        assert [each["score"] for each in found] == pytest.approx(scores[image, best], abs=1e-5)
    for text, found in enumerate(lists["images_of_text"]):
        assert found["text"] in gallery.texts
        among = np.argsort(-cosines[:, text])[:k]
        best = among[np.argsort(-scores[among, text])][:10]
        assert [each["image_id"] for each in found["images"]] == [gallery.ids[i] for i in best]
    hits = [
        any(t["image_id"] == key for t in own[:1]) for key, own in lists["texts_of_image"].items()
    ]
    assert 100 * np.mean(hits) == pytest.approx(result.metrics["TR@1"])


def test_a_batch_of_any_size_gives_the_same_recalls(blip: Blip, world: PairTable) -> None:
    one = evaluate_retrieval(blip, world, k=4, batch_size=1)
    nine = evaluate_retrieval(blip, world, k=4, batch_size=9)
    assert one.metrics == pytest.approx(nine.metrics)


def test_without_matching_contrast_decides(blip: Blip, world: PairTable) -> None:
    result = evaluate_retrieval(blip, world, use_itm=False)
    assert result.metrics == result.contrastive


def test_a_model_that_does_not_match_is_ranked_by_contrast(blip: Blip, world: PairTable) -> None:
    contrastive = Med(replace(blip.med.config, heads=("itc",)))
    model = Blip(contrastive, blip.tokenizer, "pretrain", 32, 32)
    result = evaluate_retrieval(model, world)
    assert result.metrics == result.contrastive
    assert result.pairs.itm is None


def test_whatever_embeds_images_and_texts_is_evaluated(blip: Blip, world: PairTable) -> None:
    class Other:
        def embed_images(self, images: Images, batch_size: int = 16) -> torch.Tensor:
            return blip.embed_images(images, batch_size)

        def embed_texts(self, texts: str | Sequence[str], batch_size: int = 256) -> torch.Tensor:
            return blip.embed_texts(texts, batch_size)

    result = evaluate_retrieval(Other(), world, batch_size=4)
    assert result.metrics == evaluate_retrieval(blip, world, use_itm=False).metrics


def test_an_image_that_cannot_be_read_is_named(
    blip: Blip, world: PairTable, tmp_path: Path
) -> None:
    image = world.take([0], ["image"])["image"][0].as_py()
    rows = [
        PairRow(id=key, image=data, captions=["a dog"], split="test")
        for key, data in (("good", image), ("bad", b"no image"))
    ]
    table = PairTable.create(tmp_path / "t.lance", rows)
    with pytest.raises(DataError, match="row 'bad'"):
        evaluate_retrieval(blip, table)


def test_what_cannot_be_evaluated_is_named(
    blip: Blip, world: PairTable, empty_split: PairTable
) -> None:
    with pytest.raises(DataError, match="caption"):
        evaluate_retrieval(blip, empty_split)
    with pytest.raises(DataError, match="'val'"):
        evaluate_retrieval(blip, empty_split, split="val")
    with pytest.raises(RecipeError, match="k is 0"):
        evaluate_retrieval(blip, world, k=0)
    captioner = Med(replace(blip.med.config, heads=("lm",)))
    with pytest.raises(MissingHead, match="itc"):
        evaluate_retrieval(
            Blip(captioner, blip.tokenizer, "captioner", 32, 32), world, batch_size=9
        )
    assert len(split_rows(world, "test")) == 9
