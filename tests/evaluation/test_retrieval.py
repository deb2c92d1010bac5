"""Two-stage retrieval against scores computed pair by pair."""

import numpy as np
import pytest
import torch

from openblip.data.reading import row_image
from openblip.data.table import PairTable
from openblip.data.transforms import eval_transform
from openblip.data.views import split_rows
from openblip.errors import DataError, MissingHead, RecipeError
from openblip.evaluation.metrics import retrieval
from openblip.evaluation.retrieval import candidate_pairs, evaluate_retrieval, read_gallery
from openblip.inference import Blip
from openblip.model import Med


@pytest.fixture(scope="module")
def pair_by_pair(blip: Blip, world: PairTable) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and matching logits (images, texts), one pair at a time."""
    gallery = read_gallery(world, "test", 50)
    rows = world.take(gallery.rows, ["id", "image", "image_uri"]).to_pylist()
    plain = [blip.tokenizer.encode([words], blip.max_tokens) for words in gallery.texts]
    first = [blip.tokenizer.encode([t], blip.max_tokens, first="enc") for t in gallery.texts]
    cosines = np.zeros((len(rows), len(gallery.texts)))
    logits = np.zeros_like(cosines)
    with torch.no_grad():
        texts = torch.cat([blip.med.embed_texts(each.ids, each.mask) for each in plain])
        for image, row in enumerate(rows):
            hidden = blip.med.encode_images(eval_transform(row_image(row), blip.image_size)[None])
            cosines[image] = blip.med.embed_images(hidden) @ texts.T
            for text, tokens in enumerate(first):
                memory = blip.med.text.remember(hidden)
                logits[image, text] = blip.med.match(tokens.ids, tokens.mask, memory)[0, 1]
    return cosines, logits


def test_reranking_everything_equals_scoring_pair_by_pair(
    blip: Blip, world: PairTable, pair_by_pair: tuple[np.ndarray, np.ndarray]
) -> None:
    captions = read_gallery(world, "test", 50).captions_of_image
    cosines, logits = pair_by_pair

    result = evaluate_retrieval(blip, world, k=1000, batch_size=4)

    assert result.metrics == pytest.approx(retrieval(logits + cosines, captions))
    assert result.contrastive == pytest.approx(retrieval(cosines, captions))
    assert (result.num_images, result.num_texts) == (9, 45)


def test_only_the_k_best_by_contrast_are_ranked_again(
    blip: Blip, world: PairTable, pair_by_pair: tuple[np.ndarray, np.ndarray]
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


def test_keys_and_values_are_computed_once_per_image(blip: Blip, world: PairTable) -> None:
    images = 0

    def count(_module: object, inputs: tuple[torch.Tensor], _output: object) -> None:
        nonlocal images
        images += len(inputs[0])

    hook = blip.med.text.layers[0].cross_attention.key_value.register_forward_hook(count)
    evaluate_retrieval(blip, world, k=1000, batch_size=4)
    hook.remove()

    assert images == 9


def test_candidates_are_the_best_of_each_image_and_of_each_text() -> None:
    cosines = torch.tensor([[0.9, 0.1, 0.2], [0.8, 0.3, 0.7]])

    of_image, of_text = candidate_pairs(cosines, 1)

    assert of_image.tolist() == [[True, False, False], [True, False, False]]
    assert of_text.tolist() == [[True, False, False], [False, True, True]]


def test_a_batch_of_any_size_gives_the_same_recalls(blip: Blip, world: PairTable) -> None:
    one = evaluate_retrieval(blip, world, k=4, batch_size=1)
    nine = evaluate_retrieval(blip, world, k=4, batch_size=9)
    assert one.metrics == pytest.approx(nine.metrics)


def test_without_matching_contrast_decides(blip: Blip, world: PairTable) -> None:
    result = evaluate_retrieval(blip, world, use_itm=False)
    assert result.metrics == result.contrastive


def test_what_cannot_be_evaluated_is_named(
    blip: Blip, world: PairTable, empty_split: PairTable
) -> None:
    from dataclasses import replace

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
