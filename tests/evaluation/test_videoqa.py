"""Questions about videos against answers computed video by video from the frames themselves."""

import json
import re
from pathlib import Path

import pytest
import torch

from openblip.batches.transforms import eval_transform
from openblip.batches.video import Clip, read_clip_questions, sample_frames
from openblip.cli import main
from openblip.evaluation.video import evaluate_videoqa
from openblip.inference.answers import answer_questions
from openblip.inference.blip import Blip
from openblip.runtime.errors import DataError, MissingHead, RecipeError

from ..batches.clips import write_noise
from .answering import CHOICES, answering_model

FRAMES = 3
ASKED = [
    [("what colour is it?", "red"), ("is it red?", "no")],
    [],
    [("which colour do you see here?", "green")],
    [("is it red?", "no"), ("what colour is it?", "blue")],
]


@pytest.fixture(scope="module")
def model() -> Blip:
    return answering_model()


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips of coloured noise, and questions as MSRVTT-QA has them: clips are numbers."""
    folder = tmp_path_factory.mktemp("videos")
    records = []
    for number, own in enumerate(ASKED):
        write_noise(folder / f"video{number}.mkv", number)
        for text, answer in own:
            place = len(records)
            records.append(
                {"id": 100 + place, "video_id": number, "question": text, "answer": answer}
            )
    (folder / "test_qa.json").write_text(json.dumps(records))
    return folder / "test_qa.json"


@pytest.fixture(scope="module")
def clips(questions: Path) -> list[Clip]:
    return read_clip_questions(questions, questions.parent)


@torch.no_grad()
def one_by_one(blip: Blip, clips: list[Clip], candidates: list[str] | None) -> dict[str, str]:
    """Answer by question id, from all patches of a clip's frames."""
    found = {}
    for clip in clips:
        frames = torch.stack([eval_transform(f, 32) for f in sample_frames(clip.path, FRAMES)])
        hidden = blip.vqa.encode_images(frames).flatten(0, 1)[None]
        for asked in clip.questions:
            (answer,) = answer_questions(
                blip.vqa, blip.tokenizer, hidden, [asked.text], candidates, k=3
            )
            found[asked.key] = answer.text
    return found


@pytest.mark.parametrize(("candidates", "batch_size"), [(None, 4), (CHOICES, 1), (CHOICES, 4)])
def test_answers_come_from_the_patches_of_all_frames(
    model: Blip,
    clips: list[Clip],
    candidates: list[str] | None,
    batch_size: int,
) -> None:
    found = evaluate_videoqa(
        model, clips, num_frames=FRAMES, candidates=candidates, k=3, batch_size=batch_size
    )

    expected = one_by_one(model, clips, candidates)
    assert {row["question_id"]: row["answer"] for row in found.answers} == expected
    # The second clip has no question and is not in the file.
    assert (found.num_videos, found.num_questions) == (3, 5)
    assert [row["clip"] for row in found.answers] == ["video0"] * 2 + ["video2"] + ["video3"] * 2


def test_accuracy_is_the_share_of_right_answers_and_videos_are_its_units(
    model: Blip,
    clips: list[Clip],
) -> None:
    found = evaluate_videoqa(model, clips, num_frames=FRAMES, candidates=["no"])

    assert found.metrics == {"accuracy": pytest.approx(100 * 2 / 5)}
    units = found.units["accuracy"]
    assert len(units.scores) == 3
    assert units.estimate == pytest.approx(40.0)


def test_what_cannot_be_evaluated_is_named(
    model: Blip,
    blip: Blip,
    clips: list[Clip],
) -> None:
    with pytest.raises(DataError, match="no question"):
        evaluate_videoqa(model, [Clip("a", Path("a.mp4"), ["a caption"])])
    with pytest.raises(DataError, match="question_id 100 occurs twice"):
        evaluate_videoqa(model, [*clips, clips[0]])
    with pytest.raises(RecipeError, match="num_frames is 0; give at least 1"):
        evaluate_videoqa(model, clips, num_frames=0)
    (question,) = clips[1].questions
    with pytest.raises(MissingHead):  # before a clip is read
        evaluate_videoqa(blip, [Clip("a", Path("none.mp4"), questions=[question])])


def test_the_command_prints_and_writes(
    model: Blip,
    questions: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model.save(tmp_path / "model")
    (tmp_path / "answers.txt").write_text("\n".join(CHOICES))
    results = tmp_path / "answers.json"
    words = ["evaluate", "videoqa", str(tmp_path / "model"), str(questions), str(questions.parent)]
    words += ["--num-frames", str(FRAMES), "--candidates", str(tmp_path / "answers.txt")]

    assert main([*words, "--json", "--results", str(results)]) == 0

    shown = json.loads(capsys.readouterr().out)
    clips = read_clip_questions(questions, questions.parent)
    expected = evaluate_videoqa(model, clips, num_frames=FRAMES, candidates=CHOICES)
    assert shown["metrics"] == pytest.approx(expected.metrics)
    assert json.loads(results.read_text()) == expected.answers
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "5 questions about 3 videos, 3 frames, answers ranked among 5" in out
    low, high = shown["intervals"]["accuracy"]
    value = f"{expected.metrics['accuracy']:.2f}"
    assert re.search(rf"accuracy +{value} +{low:.2f} .*{high:.2f}", out)
