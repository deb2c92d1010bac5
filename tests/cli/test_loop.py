"""The ordinary commands, one after the other, as a user would run them."""

import json
from pathlib import Path

import pytest

from openblip.cli import main
from openblip.table.table import PairTable
from openblip.training.recipe_file import read_recipe
from openblip.world import WorldConfig, build_world

SMALL = [
    "--train.steps=2",
    "--train.batch-size=4",
    "--train.threads=1",
    "--objectives.queue-size=8",
    "--model.vision.depth=1",
    "--model.text.depth=1",
]
TUNE = ["--train.steps=2", "--train.epochs=None", "--train.batch-size=4", "--train.threads=1"]
WORLD = WorldConfig(seed=1, web_rows=24, human_rows=12, val_rows=2, test_rows=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos with captions.jsonl, as two sources: the web and people."""
    root = tmp_path_factory.mktemp("loop")
    for origin in ("web", "human"):
        source = root / origin
        (source / "images").mkdir(parents=True)
        lines = []
        for row in build_world(WORLD):
            if (row.origin == "human") == (origin == "human") and row.image is not None:
                name = f"images/{row.id.replace('/', '_')}.png"
                (source / name).write_bytes(row.image)
                noise = row.meta.get("noise", "")
                lines.append(
                    {"image": name, "captions": list(row.captions), "split": row.split}
                    | ({"noise": noise} if noise else {})
                )
        (source / "captions.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    return root


def run(*words: str | Path) -> None:
    assert main([str(word) for word in words]) == 0


# Of models that have learnt for seconds little stays, which is told.
@pytest.mark.filterwarnings("default::openblip.runtime.errors.OpenBlipWarning")
def test_the_whole_loop_through_the_commands(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, runs = folder / "pairs.lance", folder / "runs"
    run("data", "import", folder / "web", table, "--origin", "web")
    run("data", "import", folder / "human", table, "--origin", "human")
    run("pretrain", "tiny", table, runs / "noisy", *SMALL)
    for task in ("captioner", "filter"):
        queue = ["--objectives.queue-size=4"] if task == "filter" else []
        run(
            *("finetune", task, table, runs / task, "--init-from", runs / "noisy"),
            *(*TUNE, *queue),
        )
    run(
        *("capfilt", "run", table, "--captioner", runs / "captioner"),
        *("--filter", runs / "filter", "--processes", "1"),
    )
    run("capfilt", "select", table, "--thresholds", "0.0", "0.5")
    assert "other_image" in capsys.readouterr().out
    run("capfilt", "report", table, "-o", folder / "page.html")
    assert (folder / "page.html").stat().st_size > 10_000
    view = ["--data.view.sources", "human", "web", "synthetic", "--data.view.itm", "0.0"]
    # The table again with another view: half of it in each epoch.
    mix = ["--data.mix", table, "--data.mix.0.weight=0.5", "--data.mix.0.view.sources", "web"]
    run("pretrain", "tiny", table, runs / "new", *SMALL, *view, *mix)
    first, second = read_recipe(runs / "new" / "recipe.yaml").data.mixture
    assert (first.weight, second.weight) == (1.0, 0.5)
    assert (first.view.itm, second.view.itm) == (0.0, None)
    assert second.view.sources == ("web",)

    capsys.readouterr()
    report = ("--report", folder / "report.html")
    run("evaluate", "retrieval", runs / "new", table, "--k", "2", "--json", *report)
    assert "ITC against ITM" in (folder / "report.html").read_text()
    found = json.loads(capsys.readouterr().out)
    assert set(found["metrics"]) >= {"TR@1", "IR@10", "mean"}
    results = folder / "results.json"
    run("evaluate", "caption", runs / "captioner", table, "--results", results, "--json", *report)
    assert "too seldom" in (folder / "report.html").read_text()
    assert json.loads(capsys.readouterr().out)["num_images"] == 4
    assert len(json.loads(results.read_text())) == 4

    image = next((folder / "web" / "images").iterdir())
    run("caption", image, "--model", runs / "captioner")
    line = json.loads(capsys.readouterr().out)
    assert line["image"] == str(image)
    assert len(line["captions"]) == 1
    run("match", image, "a red circle", "a blue star", "--model", runs / "filter", "--json")
    matches = json.loads(capsys.readouterr().out)
    assert [m["text"] for m in matches] == ["a red circle", "a blue star"]
    assert len(PairTable.open(table)) == 24 + 12 + 2 + 4


def test_a_broken_image_is_reported_the_others_are_captioned_and_the_exit_code_says_so(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = folder / "runs" / "captioner"
    if not model.exists():
        pytest.skip("needs the captioner of the test before")
    (tmp_path / "bad.png").write_bytes(b"not an image")
    good = next((folder / "web" / "images").iterdir())
    (tmp_path / "good.png").write_bytes(good.read_bytes())

    assert main(["caption", str(tmp_path), "--model", str(model)]) == 1

    output = capsys.readouterr()
    assert "bad.png: not an image" in output.err
    assert "1 captioned, 1 failed, 0 skipped, " in output.err
    assert json.loads(output.out)["image"].endswith("good.png")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pretrain", "tiny", "nowhere.lance", "run"], "nowhere.lance"),
        (["finetune", "captioner", "t.lance", "run", "--init-from", "nowhere"], "nowhere"),
        (["caption", "x.jpg", "--model", "nowhere"], "x.jpg"),
        (["capfilt", "run", "t.lance", "--captioner", "a", "--filter", "b"], "t.lance"),
    ],
)
def test_mistakes_are_named(
    words: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pretrain", "tiny"], "usage:"),
        (["finetune", "captioner", "t.lance", "run"], "--init-from"),
        (["pretrain", "tinny", "t.lance", "run"], "did you mean 'tiny'"),
    ],
)
def test_missing_or_unknown_words_are_wrong_usage(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
