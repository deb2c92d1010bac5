"""The queue of teacher features."""

import pytest
import torch
from torch import Tensor

from openblip.objectives.itc import UNKNOWN_ID, FeatureQueue


def push(queue: FeatureQueue, *ids: int) -> None:
    """Pairs whose every number is their id."""
    values = torch.tensor(ids, dtype=torch.float32)[:, None].expand(-1, 2)
    queue.push(values, -values, torch.tensor(ids), 10 * torch.tensor(ids))


def held(queue: FeatureQueue) -> list[int]:
    ids = queue.image_ids
    features = ids[:, None].expand(-1, 2).float()
    known = ids != UNKNOWN_ID
    assert torch.equal(queue.image_embed[known], features[known])
    assert torch.equal(queue.text_embed[known], -features[known])
    assert torch.equal(queue.text_ids[known], 10 * ids[known])
    return ids.tolist()


def test_it_begins_full_of_unit_vectors_of_unknown_pairs() -> None:
    queue = FeatureQueue(50, 8, seed=3)
    for features in (queue.image_embed, queue.text_embed):
        torch.testing.assert_close(features.norm(dim=1), torch.ones(50))
    assert not torch.equal(queue.image_embed, queue.text_embed)
    assert queue.image_ids.eq(UNKNOWN_ID).all()
    assert queue.text_ids.eq(UNKNOWN_ID).all()


def test_its_first_content_depends_on_the_seed_alone() -> None:
    contents = [FeatureQueue(5, 8, seed).image_embed for seed in (3, 3, 4)]
    assert torch.equal(contents[0], contents[1])
    assert not torch.equal(contents[0], contents[2])


def test_it_wraps_around_without_dividing_by_the_batch_size() -> None:
    queue = FeatureQueue(5, 2, seed=0)
    push(queue, 1, 2, 3)
    assert held(queue) == [1, 2, 3, -1, -1]
    push(queue, 4, 5, 6)
    assert held(queue) == [6, 2, 3, 4, 5]
    push(queue, 7)
    assert held(queue) == [6, 7, 3, 4, 5]


def test_of_a_batch_larger_than_itself_the_last_pairs_stay() -> None:
    queue = FeatureQueue(3, 2, seed=0)
    push(queue, 1)
    push(queue, 2, 3, 4, 5, 6)
    assert sorted(held(queue)) == [4, 5, 6]
    push(queue, 7)
    assert sorted(held(queue)) == [5, 6, 7]


def test_size_zero_holds_nothing() -> None:
    queue = FeatureQueue(0, 2, seed=0)
    push(queue, 1, 2)
    assert held(queue) == []


def test_its_content_is_saved() -> None:
    queue, other = FeatureQueue(4, 2, seed=0), FeatureQueue(4, 2, seed=1)
    push(queue, 1, 2, 3)
    other.load_state_dict(queue.state_dict())
    push(queue, 4, 5)
    push(other, 4, 5)
    for name, tensor in queue.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_features_of_any_precision_are_taken(dtype: torch.dtype) -> None:
    queue = FeatureQueue(4, 2, seed=0)
    ones: Tensor = torch.ones(2, 2, dtype=dtype)
    queue.push(ones, ones, torch.tensor([1, 2]), torch.tensor([1, 2]))
    assert queue.image_embed[:2].eq(1).all()
    assert queue.image_embed.dtype == torch.float32
