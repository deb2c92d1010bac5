"""The demonstration: at a size for tests that it runs and resumes, in full that it holds."""

import json
from dataclasses import replace
from pathlib import Path
from statistics import mean

import pytest

from openblip.world import WorldConfig, build_world
from openblip.world.demo import DemoConfig, run_demo, write_demo_report

SMALL = DemoConfig(
    world=WorldConfig(web_rows=200, human_rows=140, val_rows=2, test_rows=12),
    pretrain_steps=3,
    captioner_steps=2,
    filter_steps=2,
    batch_size=8,
    threshold=0.0,
)


def test_the_whole_loop_runs_writes_its_pages_and_goes_on_where_it_was(tmp_path: Path) -> None:
    lines: list[str] = []
    result = run_demo(tmp_path, SMALL, lines.append)
    page = write_demo_report(result)

    assert len(lines) == 8
    html = page.read_text(encoding="utf-8")
    assert "bootstrapped" in html
    assert (tmp_path / "capfilt.html").exists()
    figures = json.loads((tmp_path / "results.json").read_text())
    assert set(figures["models"]["noisy"]["headline"]) == {"TR@1", "IR@1", "CIDEr"}
    assert {q["kind"] for q in figures["filter"]} >= {"other_image", "boilerplate", "all noise"}

    again = run_demo(tmp_path, SMALL)
    assert again.noisy.headline == result.noisy.headline
    assert again.bootstrapped.headline == result.bootstrapped.headline
    # What the first call took counts: the second has only looked that it is done.
    more = again.seconds["noisy"] - result.seconds["noisy"]
    assert 0 < more < max(1.0, result.seconds["noisy"])


@pytest.mark.parametrize("seed", range(12))
def test_every_seed_has_enough_different_scenes(seed: int) -> None:
    world = replace(DemoConfig().world, seed=seed, web_rows=0, human_rows=0)
    rows = list(build_world(world))
    assert len(rows) == world.val_rows + world.test_rows


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_bootstrapping_beats_the_noise_on_every_figure_over_three_seeds(tmp_path: Path) -> None:
    results = [
        run_demo(tmp_path / str(seed), replace(DemoConfig(), seed=seed)) for seed in range(3)
    ]
    for figure in results[0].noisy.headline:
        noisy = mean(result.noisy.headline[figure] for result in results)
        bootstrapped = mean(result.bootstrapped.headline[figure] for result in results)
        assert bootstrapped > noisy, figure
    for result in results:
        assert result.other_image_precision >= 0.95
