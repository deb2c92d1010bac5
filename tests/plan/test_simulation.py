"""A simulated program has shapes and sizes, but no numbers and no memory."""

import torch

from openblip.plan.simulation import Simulation

MB = 2**20


def test_storages_count_from_their_first_to_their_last_use() -> None:
    with Simulation() as simulation:
        simulation.stage("first")
        kept = torch.zeros(MB)
        simulation.stage("second")
        view = torch.zeros(2 * MB)[:10]
        assert simulation.alive == {"first": 4 * MB, "second": 8 * MB}
        del view
        assert simulation.alive["second"] == 0
        assert simulation.peak == {"first": 4 * MB, "second": 8 * MB}
        simulation.forget_peak()
        assert +simulation.peak == {"first": 4 * MB}
        simulation.relabel(kept, "third")
        assert +simulation.alive == {"third": 4 * MB}


def test_what_autograd_keeps_is_alive_until_the_backward_pass() -> None:
    with Simulation() as simulation:
        weight = torch.zeros(256, 256, requires_grad=True)
        simulation.stage("activations")
        hidden = torch.zeros(64, 256) @ weight
        # The exponential keeps its result; the sine keeps its argument, which is that result.
        loss = hidden.exp().sin().sum()
        del hidden
        assert simulation.alive["activations"] == 2 * 64 * 256 * 4 + 4
        loss.backward()
        del loss
        assert simulation.alive["activations"] == 256 * 256 * 4
        assert weight.grad is not None


def test_nothing_is_allocated() -> None:
    with Simulation() as simulation:
        states = torch.zeros(2**30, 2**10) * 2
        assert simulation.alive[""] == 2**42
        assert states.sum().shape == ()


def test_what_follows_from_known_numbers_is_known() -> None:
    with Simulation():
        lengths = torch.tensor([2, 3])
        mask = torch.arange(4) < lengths[:, None]
        assert int(mask.sum()) == 5
        assert torch.randn(2, 4, 8)[mask].shape == (5, 8)
        assert mask.nonzero().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [1, 2]]


def test_what_follows_from_features_is_assumed() -> None:
    with Simulation():
        scores = torch.randn(3, 3)
        assert scores.argmax(dim=1).tolist() == [1, 2, 0]
        assert scores[scores > 0].shape == (9,)
        assert float(scores.sum()) == 1.0


def test_a_changed_tensor_is_not_taken_for_what_it_was() -> None:
    with Simulation():
        known = torch.zeros(3)
        known.copy_(torch.randn(3))
        assert known.tolist() == [1.0, 1.0, 1.0]
