"""What is drawn: probabilities that are known, in an order that may end anywhere."""

import numpy as np
import pytest

from openblip.review.strata import KEPT_SHARE, Kind, draw, stratify

from .conftest import Population, separating


def test_every_text_is_in_one_stratum_and_can_be_drawn(
    populations: dict[str, Population],
) -> None:
    for name, population in populations.items():
        design, of_text = population.design()
        assert np.bincount(of_text).tolist() == design.sizes.tolist(), name
        assert design.shares.sum() == pytest.approx(1.0), name
        assert (design.shares > 0).all(), name
        order = draw(design, of_text, 10**6, seed=1)
        assert sorted(order.tolist()) == list(range(len(population.itm))), name


def test_most_verdicts_go_to_what_is_kept() -> None:
    population = separating()
    design, of_text = population.design()
    kept = design.kept(np.array([0.5]))[0]
    assert set(kept[kept > 0] - design.sizes[kept > 0]) == {0}
    assert design.shares[kept > 0].sum() == pytest.approx(KEPT_SHARE)
    order = draw(design, of_text, 1000, seed=0)
    assert (population.itm[order] > 0.5).mean() == pytest.approx(KEPT_SHARE, abs=0.03)


def test_a_shorter_draw_is_the_beginning_of_a_longer_one() -> None:
    design, of_text = separating().design()
    long = draw(design, of_text, 3000, seed=5)
    for count in (1, 37, 1024, 1025):
        assert draw(design, of_text, count, seed=5).tolist() == long[:count].tolist()
    assert draw(design, of_text, 37, seed=6).tolist() != long[:37].tolist()


def test_wherever_it_ends_texts_of_a_stratum_have_had_the_same_chance() -> None:
    """Drawn 3000 times, the first 6 of 12 texts: of each stratum all equally often."""
    population = Population(np.linspace(0.05, 0.95, 12), np.ones(12, dtype=bool))
    design, of_text = population.design()
    hits = np.zeros(12)
    for seed in range(3000):
        hits[draw(design, of_text, 6, seed)] += 1
    for stratum in range(len(design.sizes)):
        own = hits[of_text == stratum]
        # Three standard deviations of a difference of two such counts.
        assert np.ptp(own) < 3 * np.sqrt(2 * 3000 * 0.25)


def test_kinds_get_the_attention_that_they_ask_for() -> None:
    population = separating()
    rare = np.arange(len(population.itm)) < 40
    kinds = [Kind("rare", rare, 0.5), Kind("other", ~rare, 0.5)]
    sources = np.zeros(len(rare), dtype=np.int8)
    design, of_text = stratify(population.itm, sources, ("web",), 0.5, kinds, (1, 1))
    assert [name.split()[0] for name in design.names] == ["rare", "rare", "other", "other"]
    assert design.shares[:2].sum() == pytest.approx(0.5)
    assert set(of_text[rare]) == {0, 1}


def test_scores_that_are_no_probabilities_are_no_guess_and_all_texts_can_be_drawn() -> None:
    """Cosines less others, or logarithms: their mean is not how often a text is right."""
    for itm in (np.linspace(-0.6, 0.6, 400), np.linspace(-30, -2, 400), np.arange(400) / 10):
        threshold = float(np.median(itm))
        design, of_text = Population(itm, itm > threshold).design(threshold)
        assert (design.shares > 0).all()
        assert design.guesses.tolist() == [0.5] * len(design.sizes)
        kept = design.kept(np.array([threshold]))[0]
        assert design.shares[kept > 0].sum() == pytest.approx(KEPT_SHARE)
        order = draw(design, of_text, 100, seed=0)
        assert set(of_text[order]) == set(range(len(design.sizes)))
