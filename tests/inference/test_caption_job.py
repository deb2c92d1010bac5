"""The job: what is captioned, skipped and reported, and that every stop can be gone on from."""

import io
import tarfile
from pathlib import Path

import pytest

from openblip.batches.shuffle import named_seed
from openblip.batches.transforms import eval_transform
from openblip.inference.blip import Blip
from openblip.inference.decoding import Decoding
from openblip.inference.many_images import CaptionJobResult, CaptionTarget
from openblip.runtime.errors import DataError, MissingHead, RecipeError
from openblip.table.table import PairRow, PairTable

from .conftest import make_med

NUCLEUS = Decoding(method="nucleus")


def counts(result: CaptionJobResult) -> tuple[int, int, int]:
    return result.captioned, result.failed, result.skipped


def test_captions_are_those_of_the_model(blip, pictures, photos, caption_run):
    assert counts(caption_run(photos)) == (7, 0, 0)
    expected = [caption.text for (caption,) in blip.caption(pictures)]
    assert list(caption_run.texts.values()) == [[text] for text in expected]


def test_a_seed_and_a_name_decide_what_is_drawn(photos, pictures, caption_run, tmp_path):
    caption_run(photos, decoding=NUCLEUS, seed=4, num_captions=2)
    drawn = {Path(name).name: texts for name, texts in caption_run.texts.items()}
    assert len({tuple(texts) for texts in drawn.values()}) > 3

    for options in ({"batch_size": 2}, {"batch_size": 7}):
        caption_run(photos, decoding=NUCLEUS, seed=4, num_captions=2, **options)
        assert {Path(name).name: texts for name, texts in caption_run.texts.items()} == drawn
    # Another order, other images beside it, another place of the folder.
    (tmp_path / "elsewhere").mkdir()
    photos.rename("elsewhere/photos")
    caption_run(
        "elsewhere/photos/4.png", "elsewhere/photos/1.png", decoding=NUCLEUS, seed=4, num_captions=2
    )
    assert list(caption_run.texts.values()) == [drawn["4.png"], drawn["1.png"]]
    caption_run("elsewhere/photos", decoding=NUCLEUS, seed=5, num_captions=2)
    assert list(caption_run.texts.values()) != list(drawn.values())


def test_a_row_is_drawn_as_capfilt_draws_it(blip, pictures, caption_run, tmp_path):
    rows = []
    for number, picture in enumerate(pictures):
        stream = io.BytesIO()
        picture.save(stream, "PNG")
        split = "test" if number < 3 else "train"
        rows.append(PairRow(id=f"r{number}", image=stream.getvalue(), captions=["a"], split=split))
    PairTable.create(tmp_path / "t.lance", rows)
    caption_run(tmp_path / "t.lance", split="test", decoding=NUCLEUS, seed=2)
    assert list(caption_run.texts) == ["r0", "r1", "r2"]
    for number in range(3):
        encoded = blip.encode(eval_transform(pictures[number], 32)[None])
        ((caption,),) = blip.generate(encoded, NUCLEUS, seeds=[named_seed(2, f"r{number}")])
        assert caption_run.texts[f"r{number}"] == [caption.text]


def test_an_archive(photos, caption_run, tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(photos, "x")
    caption_run(photos)
    expected = caption_run.texts
    caption_run(tmp_path / "a.tar")
    here = f"{tmp_path}/a.tar/x"
    assert caption_run.texts == {
        name.replace("photos", here): text for name, text in expected.items()
    }


def test_what_is_broken_is_reported_and_tried_again(photos, caption_run, tmp_path):
    for name, data in {"empty.jpg": b"", "html.png": b"<html>"}.items():
        (photos / name).write_bytes(data)
    file = tmp_path / "o.jsonl"
    assert counts(caption_run(photos, file=file)) == (7, 2, 0)
    failed = [report.split(":")[0] for report in caption_run.reports if "is empty: " not in report]
    assert failed == ["photos/empty.jpg", "photos/html.png"]
    (photos / "empty.jpg").write_bytes((photos / "0.png").read_bytes())
    assert counts(caption_run(photos, file=file)) == (1, 1, 7)


@pytest.mark.parametrize("name", ["o.jsonl", "o.csv", "o.json", "o.txt"])
def test_more_images_are_added_to_a_file(photos, caption_run, tmp_path, name):
    caption_run("photos/sub", file=tmp_path / name)
    assert counts(caption_run("photos", file=tmp_path / name)) == (5, 0, 2)
    assert counts(caption_run("photos", file=tmp_path / name)) == (0, 0, 7)
    assert counts(caption_run("photos/sub", "photos", "photos/0.png", file=tmp_path / name)) == (
        0,
        0,
        10,
    )
    text = (tmp_path / name).read_text()
    assert sum(line.count("photos/") or line.count("image_id") for line in text.splitlines()) == 7


def test_another_model_or_setting_is_refused(photos, caption_run, tokenizer, tmp_path):
    file = tmp_path / "o.jsonl"
    caption_run(photos, file=file)
    with pytest.raises(RecipeError, match="num_beams 3, not 2"):
        caption_run(photos, file=file, decoding=Decoding(num_beams=2))
    with pytest.raises(RecipeError, match="prompt 'a picture of ', not ''"):
        caption_run(photos, file=file, prompt="")
    other = Blip(make_med(tokenizer, seed=1), tokenizer, "captioner", 32, 30)
    other.save(tmp_path / "other")
    caption_run.model = str(tmp_path / "other")
    with pytest.raises(RecipeError, match=r"model '[0-9a-f]{16}', not '[0-9a-f]{16}'"):
        caption_run(photos, file=file)
    assert counts(caption_run(photos, file=file, overwrite=True)) == (7, 0, 0)


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "json"])
def test_a_job_that_failed_before_its_first_caption_binds_nobody(
    photos, caption_run, tmp_path, suffix
):
    file = tmp_path / f"o.{suffix}"
    with pytest.raises(RecipeError, match="max_length"):
        caption_run(photos, file=file, decoding=Decoding(max_length=4, min_length=0))
    assert counts(caption_run(photos, file=file)) == (7, 0, 0)


def test_sidecars(photos, caption_run):
    (photos / "0.txt").write_text("by hand")
    assert counts(caption_run(photos, sidecar=True)) == (6, 0, 1)
    assert (photos / "0.txt").read_text() == "by hand"
    caption_run(photos)
    assert (photos / "sub" / "6.txt").read_text() == f"{caption_run.texts['photos/sub/6.png'][0]}\n"
    assert counts(caption_run(photos, sidecar=True, overwrite=True)) == (7, 0, 0)


def test_two_images_of_one_sidecar_or_id_are_reported(photos, caption_run, tmp_path):
    (photos / "sub" / "0.png").write_bytes((photos / "1.png").read_bytes())
    (photos / "0.gif").write_bytes((photos / "1.png").read_bytes())
    assert counts(caption_run(photos, file=tmp_path / "o.json")) == (7, 2, 0)
    assert caption_run.reports[0] == (
        "photos/0.png: another image has the same place in the output, 0; rename it"
    )
    assert counts(caption_run(photos, sidecar=True)) == (8, 1, 0)
    assert caption_run.reports[0].endswith("photos/0.txt; rename it")


def test_what_contradicts_itself_is_named_by_its_flag(photos, caption_run, tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(photos)
    for message, call in {
        "--sidecar: the images of .*a.tar": lambda: caption_run(tmp_path / "a.tar", sidecar=True),
        "leave out -o and --format": lambda: CaptionTarget(sidecar=True, file=tmp_path),
        "give -o FILE or --sidecar": lambda: CaptionTarget(overwrite=True),
        "--batch-size": lambda: caption_run(photos, batch_size=0),
        "num_captions": lambda: caption_run(photos, decoding=Decoding(num_beams=1), num_captions=2),
    }.items():
        with pytest.raises(RecipeError, match=message):
            call()


def test_no_image_is_an_error_and_what_is_done_needs_no_model(photos, caption_run, tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w"):
        pass
    with pytest.raises(DataError, match="no image in what was given"):
        caption_run(tmp_path / "a.tar")
    words = Decoding(min_length=10)  # no caption is empty
    caption_run(photos, sidecar=True, decoding=words)
    caption_run.model = "nowhere"
    assert counts(caption_run(photos, sidecar=True, decoding=words)) == (0, 0, 7)


def test_a_model_that_cannot_write_is_refused(photos, caption_run, tokenizer, tmp_path):
    filter_ = Blip(make_med(tokenizer, heads=("itc", "itm")), tokenizer, "filter", 32, 30)
    filter_.save(tmp_path / "filter")
    caption_run.model = str(tmp_path / "filter")
    with pytest.raises(MissingHead, match="lm"):
        caption_run(photos)
