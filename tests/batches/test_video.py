"""Clips, and which of their frames are seen."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from openblip.batches.transforms import eval_transform
from openblip.batches.video import (
    Clip,
    frame_numbers,
    iterate_clips,
    read_clip_questions,
    read_clips,
    sample_frames,
)
from openblip.runtime.errors import DataError

from .clips import numbered_frames, write_clip


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        # The original: numpy.arange(0, count, count / 8, dtype=int), whose step is a whole number.
        (100, [0, 12, 24, 36, 48, 60, 72, 84]),
        (103, [0, 12, 24, 36, 48, 60, 72, 84]),
        (8, [0, 1, 2, 3, 4, 5, 6, 7]),
        (3, [0, 1, 2, 2, 2, 2, 2, 2]),
        (1, [0] * 8),
    ],
)
def test_frames_are_taken_at_even_distances(count: int, expected: list[int]) -> None:
    assert frame_numbers(count, 8).tolist() == expected
    if count >= 8:
        assert np.arange(0, count, count / 8, dtype=int).tolist() == expected


@pytest.mark.parametrize("count", [1, 3, 8, 50])
def test_the_frames_of_these_numbers_are_decoded(tmp_path: Path, count: int) -> None:
    write_clip(tmp_path / "clip.mkv", numbered_frames(count))

    frames = sample_frames(tmp_path / "clip.mkv", 8)

    greys = [int(np.asarray(frame).max()) for frame in frames]
    assert greys == frame_numbers(count, 8).tolist()
    assert {frame.size for frame in frames} == {(32, 24)}
    assert {frame.mode for frame in frames} == {"RGB"}


def test_a_lossy_clip_has_its_frames_in_order(tmp_path: Path) -> None:
    frames = [np.full((48, 64, 3), 60 * number, np.uint8) for number in range(4)]
    write_clip(tmp_path / "clip.mp4", [frame for frame in frames for _ in range(10)])
    greys = [float(np.asarray(frame).mean()) for frame in sample_frames(tmp_path / "clip.mp4", 4)]
    assert greys == pytest.approx([0, 60, 120, 180], abs=4)


def test_batches_have_the_frames_of_each_clip_as_a_model_sees_them(tmp_path: Path) -> None:
    clips = []
    for number in range(3):
        path = tmp_path / f"{number}.mkv"
        write_clip(path, numbered_frames(10 + 5 * number))
        clips.append(Clip(str(number), path))

    batches = list(iterate_clips(clips, 4, 2, 16, num_threads=2))

    assert [batch.shape for batch in batches] == [(2, 4, 3, 16, 16), (1, 4, 3, 16, 16)]
    expected = torch.stack([eval_transform(f, 16) for f in sample_frames(clips[2].path, 4)])
    torch.testing.assert_close(batches[1][0], expected)


def test_what_is_no_video_is_named(tmp_path: Path) -> None:
    pytest.importorskip("av", reason="PyAV is not installed (extra video)")
    (tmp_path / "text.mp4").write_text("no video at all")
    with pytest.raises(DataError, match=r"text\.mp4: cannot be decoded"):
        sample_frames(tmp_path / "text.mp4", 8)
    with pytest.raises(DataError, match=r"gone\.mp4: cannot be decoded"):
        sample_frames(tmp_path / "gone.mp4", 8)


def test_a_clip_that_breaks_off_repeats_its_last_frame(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (30, 48, 64, 3), np.uint8)
    write_clip(tmp_path / "whole.mkv", list(noise))
    content = (tmp_path / "whole.mkv").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(content[: len(content) // 2])
    assert len(sample_frames(tmp_path / "cut.mkv", 8)) == 8


def write_lines(path: Path, records: list[object]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_lines_of_msr_vtt_become_clips(tmp_path: Path) -> None:
    for name in ("video9770.mp4", "video9771.webm"):
        (tmp_path / name).touch()
    records = [
        {"caption": "a person connects a cable", "clip_name": "video9770", "retrieval_key": "ret0"},
        {"caption": "a little girl plays", "clip_name": "video9771", "retrieval_key": "ret1"},
        {"caption": "a cable is connected", "clip_name": "video9770", "retrieval_key": "ret2"},
    ]
    clips = read_clips(write_lines(tmp_path / "test.jsonl", records), tmp_path)
    assert clips == [
        Clip(
            "video9770",
            tmp_path / "video9770.mp4",
            ["a person connects a cable", "a cable is connected"],
        ),
        Clip("video9771", tmp_path / "video9771.webm", ["a little girl plays"]),
    ]


def test_a_list_with_whole_names_and_several_captions_is_read_too(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    (tmp_path / "test.json").write_text(json.dumps([{"video": "a.mp4", "caption": ["x", "y"]}]))
    assert read_clips(tmp_path / "test.json", tmp_path) == [
        Clip("a.mp4", tmp_path / "a.mp4", ["x", "y"])
    ]


def test_what_is_malformed_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    good = {"clip_name": "a", "caption": "x"}
    cases: list[tuple[list[object], str]] = [
        ([good, {"clip_name": "a"}], "line 2: needs a caption"),
        ([good, {"caption": "x"}], "line 2: needs the name of a clip: clip_name or video"),
        ([good, {"clip_name": "a", "caption": 5}], "line 2: captions must be"),
        ([good, 7], "line 2: expected an object"),
        ([good, good | {"clip_name": "b"}], "1 of 2 clips .* such as b"),
        ([good | {"clip_name": "../a"}], "leaves"),
        ([], "has no clips"),
    ]
    for records, message in cases:
        with pytest.raises(DataError, match=message):
            read_clips(write_lines(tmp_path / "t.jsonl", records), tmp_path)
    (tmp_path / "t.jsonl").write_text("{")
    with pytest.raises(DataError, match="cannot be read as JSON"):
        read_clips(tmp_path / "t.jsonl", tmp_path)


def test_questions_are_those_of_the_clip_that_a_record_names(tmp_path: Path) -> None:
    for name in ("video7010.mp4", "vid1301.avi", "b.webm"):
        (tmp_path / name).touch()
    records = [
        {"id": 5, "video_id": 7010, "question": "who sings?", "answer": "man"},
        {"video": "b.webm", "question": "where?", "answers": ["park", "garden"]},
        {"id": 6, "video_id": 1301, "question": "what is cut?"},
        {"id": 7, "video_id": 7010, "question": "what is red?", "answer": "car"},
    ]
    clips = read_clip_questions(write_lines(tmp_path / "qa.jsonl", records), tmp_path)
    assert [clip.path.name for clip in clips] == ["video7010.mp4", "b.webm", "vid1301.avi"]
    assert [[(q.key, q.text, q.answers) for q in clip.questions] for clip in clips] == [
        [("5", "who sings?", ("man",)), ("7", "what is red?", ("car",))],
        [("b.webm/0", "where?", ("park", "garden"))],
        [("6", "what is cut?", ())],
    ]


def test_a_malformed_question_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    file = write_lines(tmp_path / "qa.jsonl", [{"video": "a", "answer": "x"}])
    with pytest.raises(DataError, match=r"qa\.jsonl line 1: question a/0: expected an object"):
        read_clip_questions(file, tmp_path)
