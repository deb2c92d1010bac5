"""`openblip plan` tells what a run needs."""

import json
from collections.abc import Iterator

import pytest

from openblip.cli import main
from openblip.plan.sizing import Sizing

SMALL = ["--model.vision.depth", "1", "--model.text.depth", "1"]


def test_a_table_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "tiny", "--gpu", "l4", *SMALL, "--price-per-hour", "1"]) == 0
    out = capsys.readouterr().out
    assert "1 x l4, float32: 32 pairs a step, 32 per GPU and part" in out
    for part in ("weights", "optimiser moments", "teacher", "image encoder", "allowance", "fits"):
        assert part in out
    assert "40% of 30.3 TFLOP/s (assumed; --utilisation changes it)" in out


def test_what_a_recipe_takes_is_told_before_settings_are_looked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To look for settings that fit takes minutes."""
    from openblip.plan.sizing import Planner

    told: list[str] = []

    def remedies(planner: Planner) -> Iterator[Sizing]:
        told.append(capsys.readouterr().out)
        yield from ()

    monkeypatch.setattr(Planner, "remedies", remedies)
    large = ["--model.text.max-positions", "512", "--train.batch-size", "65536"]
    assert main(["plan", "tiny", "--gpu", "l4", *SMALL, *large]) == 0
    assert len(told) == 1
    assert "does not fit: " in told[0]
    assert "does not fit: " not in capsys.readouterr().out


def test_an_albef_counts_its_epochs(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--model.vision.depth", "1", "--model.text.depth", "2", "--model.fusion-layer", "1"]
    words = ["plan", "albef", "--gpus", "8", "--gpu", "a100-40g", "--images", "102400", "--json"]
    assert main([*words, *sizes]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["run"]["steps"] == 30 * 200


def test_every_field_of_a_recipe_can_be_changed(capsys: pytest.CaptureFixture[str]) -> None:
    """Also those that are in no section: their flags have no dot."""
    words = ["plan", "tiny", "--gpu", "l4", "--init-image", "/nowhere/vit", "--json"]
    assert main(words) == 1
    assert "/nowhere/vit" in capsys.readouterr().err


def test_json_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "tiny", "--gpu", "cpu", "--utilisation", "0.5", "--json", *SMALL]
    assert main(words) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["fits"] is True
    assert found["memory"] == sum(found["parts"].values())
    assert found["run"]["steps"] == 2000


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tiny", "--gpu", "a100"], "choose one of a100-40g, a100-80g"),
        (["nothing", "--gpu", "l4"], "nothing: no recipe"),
        (["tiny", "--gpu", "l4", "--lora.alpha", "4"], "lora.alpha is 4.0, which changes nothing"),
        (["tiny", "--gpu", "l4", "--gpus", "5"], "32 is not a multiple of 5 processes"),
    ],
)
def test_what_cannot_be_planned_is_an_error(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *words]) == 1
    assert message in capsys.readouterr().err


def test_an_unknown_field_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["plan", "tiny", "--gpu", "l4", "--train.batchsize", "3"])
    assert exit_.value.code == 2
    assert "--train.batch-size" in capsys.readouterr().err
