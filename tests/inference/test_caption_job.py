"""The job: what is captioned, skipped and reported, and that every stop can be gone on from."""

import io
import json
import os
import resource
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from openblip.data.shuffle import named_seed
from openblip.data.table import PairRow, PairTable
from openblip.errors import DataError, MissingHead, RecipeError
from openblip.inference import Blip, Decoding
from openblip.inference.caption_job import (
    CaptionJobResult,
    CaptionSettings,
    CaptionTarget,
    caption_images,
)
from openblip.inference.image_sources import ImageSources

from .conftest import make_med

NUCLEUS = Decoding(method="nucleus")


@pytest.fixture(scope="session")
def model(blip, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("models") / "captioner"
    blip.save(folder)
    return str(folder)


@pytest.fixture
def photos(pictures, tmp_path, monkeypatch) -> Path:
    """Seven photos, two of them in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    for number, picture in enumerate(pictures):
        file = Path("photos", "sub" if number > 4 else "", f"{number}.png")
        file.parent.mkdir(parents=True, exist_ok=True)
        picture.save(file)
    return Path("photos")


class Run:
    """A call of the job with everything that is seen of it."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.reports: list[str] = []
        self.stdout = io.BytesIO()

    def __call__(
        self, *places: object, split: str | None = None, batch_size: int = 3, **options
    ) -> CaptionJobResult:
        names = ("file", "form", "sidecar", "overwrite")
        target = CaptionTarget(**{name: options.pop(name) for name in names if name in options})
        self.reports.clear()
        self.stdout = io.BytesIO()
        return caption_images(
            ImageSources([str(place) for place in places], split),
            CaptionSettings(**{"model": self.model} | options),
            target,
            batch_size=batch_size,
            report=self.reports.append,
            stdout=self.stdout,
        )

    @property
    def texts(self) -> dict[str, list[str]]:
        """Captions by name, from standard output."""
        lines = [json.loads(line) for line in self.stdout.getvalue().splitlines()]
        return {line["image"]: [c["text"] for c in line["captions"]] for line in lines}


@pytest.fixture
def run(model) -> Run:
    return Run(model)


def counts(result: CaptionJobResult) -> tuple[int, int, int]:
    return result.captioned, result.failed, result.skipped


def test_captions_are_those_of_the_model(blip, pictures, photos, run):
    assert counts(run(photos)) == (7, 0, 0)
    expected = [caption.text for (caption,) in blip.caption(pictures)]
    assert list(run.texts.values()) == [[text] for text in expected]


def test_a_seed_and_a_name_decide_what_is_drawn(photos, pictures, run, tmp_path):
    run(photos, decoding=NUCLEUS, seed=4, num_captions=2)
    drawn = {Path(name).name: texts for name, texts in run.texts.items()}
    assert len({tuple(texts) for texts in drawn.values()}) > 3

    for options in ({"batch_size": 2}, {"batch_size": 7}):
        run(photos, decoding=NUCLEUS, seed=4, num_captions=2, **options)
        assert {Path(name).name: texts for name, texts in run.texts.items()} == drawn
    # Another order, other images beside it, another place of the folder.
    (tmp_path / "elsewhere").mkdir()
    photos.rename("elsewhere/photos")
    run(
        "elsewhere/photos/4.png", "elsewhere/photos/1.png", decoding=NUCLEUS, seed=4, num_captions=2
    )
    assert list(run.texts.values()) == [drawn["4.png"], drawn["1.png"]]
    run("elsewhere/photos", decoding=NUCLEUS, seed=5, num_captions=2)
    assert list(run.texts.values()) != list(drawn.values())


def test_a_row_is_drawn_as_capfilt_draws_it(blip, pictures, run, tmp_path):
    rows = []
    for number, picture in enumerate(pictures):
        stream = io.BytesIO()
        picture.save(stream, "PNG")
        split = "test" if number < 3 else "train"
        rows.append(PairRow(id=f"r{number}", image=stream.getvalue(), captions=["a"], split=split))
    PairTable.create(tmp_path / "t.lance", rows)
    run(tmp_path / "t.lance", split="test", decoding=NUCLEUS, seed=2)
    assert list(run.texts) == ["r0", "r1", "r2"]
    from openblip.data.transforms import eval_transform

    for number in range(3):
        encoded = blip.encode(eval_transform(pictures[number], 32)[None])
        ((caption,),) = blip.generate(encoded, NUCLEUS, seeds=[named_seed(2, f"r{number}")])
        assert run.texts[f"r{number}"] == [caption.text]


def test_an_archive(photos, run, tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(photos, "x")
    run(photos)
    expected = run.texts
    run(tmp_path / "a.tar")
    assert run.texts == {
        name.replace("photos", f"{tmp_path}/a.tar/x"): text for name, text in expected.items()
    } or sorted(run.texts.values()) == sorted(expected.values())
    assert all(name.startswith(f"{tmp_path}/a.tar/x/") for name in run.texts)


def test_what_is_broken_is_reported_and_tried_again(photos, run, tmp_path):
    for name, data in {"empty.jpg": b"", "html.png": b"<html>"}.items():
        (photos / name).write_bytes(data)
    file = tmp_path / "o.jsonl"
    assert counts(run(photos, file=file)) == (7, 2, 0)
    assert [report.split(":")[0] for report in run.reports] == [
        "photos/empty.jpg",
        "photos/html.png",
    ]
    (photos / "empty.jpg").write_bytes((photos / "0.png").read_bytes())
    assert counts(run(photos, file=file)) == (1, 1, 7)


@pytest.mark.parametrize("name", ["o.jsonl", "o.csv", "o.json", "o.txt"])
def test_more_images_are_added_to_a_file(photos, run, tmp_path, name):
    run("photos/sub", file=tmp_path / name)
    assert counts(run("photos", file=tmp_path / name)) == (5, 0, 2)
    assert counts(run("photos", file=tmp_path / name)) == (0, 0, 7)
    assert counts(run("photos/sub", "photos", "photos/0.png", file=tmp_path / name)) == (0, 0, 10)
    text = (tmp_path / name).read_text()
    assert sum(line.count("photos/") or line.count("image_id") for line in text.splitlines()) == 7


def test_another_model_or_setting_is_refused(photos, run, tokenizer, tmp_path):
    file = tmp_path / "o.jsonl"
    run(photos, file=file)
    with pytest.raises(RecipeError, match="num_beams 3, not 2"):
        run(photos, file=file, decoding=Decoding(num_beams=2))
    with pytest.raises(RecipeError, match="prompt 'a picture of ', not ''"):
        run(photos, file=file, prompt="")
    other = Blip(make_med(tokenizer, seed=1), tokenizer, "captioner", 32, 30)
    other.save(tmp_path / "other")
    run.model = str(tmp_path / "other")
    with pytest.raises(RecipeError, match="model '[0-9a-f]{16}', not '[0-9a-f]{16}'"):
        run(photos, file=file)
    assert counts(run(photos, file=file, overwrite=True)) == (7, 0, 0)


def test_sidecars(photos, run):
    (photos / "0.txt").write_text("by hand")
    assert counts(run(photos, sidecar=True)) == (6, 0, 1)
    assert (photos / "0.txt").read_text() == "by hand"
    run(photos)
    assert (photos / "sub" / "6.txt").read_text() == f"{run.texts['photos/sub/6.png'][0]}\n"
    assert counts(run(photos, sidecar=True, overwrite=True)) == (7, 0, 0)


def test_two_images_of_one_sidecar_or_id_are_reported(photos, run, tmp_path):
    (photos / "sub" / "0.png").write_bytes((photos / "1.png").read_bytes())
    (photos / "0.gif").write_bytes((photos / "1.png").read_bytes())
    assert counts(run(photos, file=tmp_path / "o.json")) == (7, 2, 0)
    assert run.reports[0] == (
        "photos/0.png: another image has the same place in the output, 0; rename it"
    )
    assert counts(run(photos, sidecar=True)) == (8, 1, 0)
    assert run.reports[0].endswith("photos/0.txt; rename it")


def test_what_contradicts_itself_is_named_by_its_flag(photos, run, tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(photos)
    for message, call in {
        "--sidecar: the images of .*a.tar": lambda: run(tmp_path / "a.tar", sidecar=True),
        "leave out -o and --format": lambda: CaptionTarget(sidecar=True, file=tmp_path),
        "give -o FILE or --sidecar": lambda: CaptionTarget(overwrite=True),
        "--batch-size": lambda: run(photos, batch_size=0),
        "num_captions": lambda: run(photos, decoding=Decoding(num_beams=1), num_captions=2),
    }.items():
        with pytest.raises(RecipeError, match=message):
            call()


def test_nothing_to_do_is_an_error_and_everything_done_needs_no_model(photos, run, tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w"):
        pass
    with pytest.raises(DataError, match="no image in what was given"):
        run(tmp_path / "a.tar")
    run(photos, sidecar=True)
    run.model = "nowhere"
    assert counts(run(photos, sidecar=True)) == (0, 0, 7)


def test_a_model_that_cannot_write_is_refused(photos, run, tokenizer, tmp_path):
    filter_ = Blip(make_med(tokenizer, heads=("itc", "itm")), tokenizer, "filter", 32, 30)
    filter_.save(tmp_path / "filter")
    run.model = str(tmp_path / "filter")
    with pytest.raises(MissingHead, match="lm"):
        run(photos)


class TestARealProcess:
    """Signals and limits that only another process can be given."""

    @pytest.fixture
    def many(self, photos: Path, pictures) -> Path:
        for number in range(150):
            pictures[number % 7].rotate(number).save(photos / f"m{number}.png")
        (photos / "bad.png").write_bytes(b"")
        return photos

    @pytest.fixture
    def start(self, model) -> Callable[..., subprocess.Popen[str]]:
        def begin(*words: object, **options) -> subprocess.Popen[str]:
            command = [sys.executable, "-m", "openblip", "caption", *map(str, words)]
            return subprocess.Popen(
                [*command, "--model", model, "--batch-size", "2"],
                stderr=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                **options,
            )

        return begin

    def stop(self, process: subprocess.Popen[str], journal: Path, number: signal.Signals) -> str:
        """Sends a signal once a few lines are there; returns what the process said."""
        deadline = time.monotonic() + 120
        while not journal.exists() or journal.read_bytes().count(b"\n") < 10:
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(number)
        return process.communicate(timeout=60)[1]

    @pytest.mark.parametrize("name", ["o.jsonl", "o.json"])
    def test_that_is_killed_leaves_what_it_did(self, many, start, run, tmp_path, name):
        file = tmp_path / name
        journal = file if name == "o.jsonl" else tmp_path / "o.json.partial"
        process = start(many, "-o", file)
        self.stop(process, journal, signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        done = journal.read_bytes().count(b"\n")
        assert done < 157
        # As if the kill had come in the middle of a line.
        journal.write_bytes(journal.read_bytes()[:-3])

        result = run(many, file=file, batch_size=2)
        assert counts(result) == (157 - done + 1, 1, done - 1)
        run(many, file=tmp_path / f"whole{file.suffix}", batch_size=2)
        assert self.said(file) == self.said(tmp_path / f"whole{file.suffix}")

    @staticmethod
    def said(file: Path) -> list[tuple[str, str]]:
        text = file.read_text()
        if file.suffix == ".json":
            return [(str(v["image_id"]), v["caption"]) for v in json.loads(text)]
        lines = [json.loads(line) for line in text.splitlines()]
        return [(line["image"], line["captions"][0]["text"]) for line in lines]

    def test_that_gets_ctrl_c_finishes_its_batch(self, many, start, run, tmp_path):
        file = tmp_path / "o.jsonl"
        process = start(many, "-o", file)
        error = self.stop(process, file, signal.SIGINT)
        assert process.returncode == 130, error
        assert "interrupted; the same command goes on" in error
        done = len(self.said(file))
        assert done % 2 == 0 or done < 157
        assert counts(run(many, file=file)) == (157 - done, 1, done)

    def test_that_runs_out_of_space_keeps_whole_lines(self, many, start, run, tmp_path):
        file = tmp_path / "o.jsonl"
        process = start(
            many,
            *("-o", file),
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000)),
        )
        error = process.communicate(timeout=120)[1]
        assert process.returncode == 1
        assert f"{file}: cannot be written (File too large)" in error
        assert "Traceback" not in error
        done = len(self.said(file))
        assert done > 10
        assert counts(run(many, file=file)) == (157 - done, 1, done)

    def test_that_writes_into_a_full_device_says_so_once(self, photos, start):
        if not Path("/dev/full").exists():
            pytest.skip("this system has no /dev/full")
        for words in (["-o", "/dev/full", "--format", "csv"], []):
            with Path("/dev/full").open("wb") as full:
                process = start(photos, *words)
                if not words:
                    process.kill()
                    process.communicate()
                    process = self.into(full, process.args)
                error = process.communicate(timeout=120)[1]
            assert process.returncode == 1
            assert error.count("No space left on device") == 1, error

    @staticmethod
    def into(full, command) -> subprocess.Popen[str]:
        return subprocess.Popen(command, stdout=full, stderr=subprocess.PIPE, text=True)

    def test_draws_its_bar_on_the_terminal_and_its_lines_elsewhere(self, photos, start):
        import pty

        master, terminal = pty.openpty()
        process = start(photos)
        process.kill()
        process.communicate()
        with subprocess.Popen(
            process.args, stdout=subprocess.PIPE, stderr=terminal, text=True
        ) as again:
            os.close(terminal)
            lines = again.stdout.read().splitlines() if again.stdout else []
        os.close(master)
        assert [json.loads(line)["image"] for line in lines][0] == "photos/0.png"
        assert len(lines) == 7
