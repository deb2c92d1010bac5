"""Video retrieval against the original's formulas, computed video by video and pair by pair."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from openblip.batches.text import clean_caption
from openblip.batches.transforms import eval_transform
from openblip.batches.video import Clip, read_clips, sample_frames
from openblip.cli import main
from openblip.evaluation.video import evaluate_video
from openblip.inference.blip import Blip
from openblip.metrics import image_ranks, retrieval
from openblip.model import Med
from openblip.runtime.errors import DataError, MissingHead, RecipeError

from ..batches.clips import write_noise

CAPTIONS = [
    ["a red ball and a tree", "the ball is red"], ["two blue cubes"], ["a dog by a house"],
    ["a small green tree", "one tree"], ["a yellow house"], ["three cats"],
]  # fmt: skip
FRAMES = 3


@pytest.fixture(scope="module")
def annotations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six clips of coloured noise, as long as their number says, and their captions."""
    folder = tmp_path_factory.mktemp("videos")
    lines = []
    for number, captions in enumerate(CAPTIONS):
        write_noise(folder / f"video{number}.mkv", number)
        lines += [{"clip_name": f"video{number}", "caption": text} for text in captions]
    (folder / "test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "test.jsonl"


@pytest.fixture(scope="module")
def clips(annotations: Path) -> list[Clip]:
    return read_clips(annotations, annotations.parent)


@torch.no_grad()
def pair_by_pair(blip: Blip, clips: list[Clip]) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and matching logits (videos, texts)."""
    med, texts = blip.med, [text for clip in clips for text in clip.captions]
    cosines = np.zeros((len(clips), len(texts)))
    logits = np.zeros_like(cosines)
    for video, clip in enumerate(clips):
        frames = torch.stack([eval_transform(f, 32) for f in sample_frames(clip.path, FRAMES)])
        hidden = med.encode_images(frames)
        embed = F.normalize(med.image_projection(hidden[:, 0]).mean(dim=0), dim=0)
        memory = med.text.remember(hidden.reshape(1, -1, hidden.shape[-1]))
        for text, words in enumerate(texts):
            plain = blip.tokenizer.encode([clean_caption(words)], 32)
            cosines[video, text] = med.embed_texts(plain.ids, plain.mask)[0] @ embed
            first = blip.tokenizer.encode([clean_caption(words)], 32, first="enc")
            logits[video, text] = med.match(first.ids, first.mask, memory)[0, 1]
    return cosines, logits


def columns() -> list[list[int]]:
    ends = np.cumsum([len(own) for own in CAPTIONS]).tolist()
    return [list(range(end - len(own), end)) for own, end in zip(CAPTIONS, ends, strict=True)]


def expected_metrics(for_videos: np.ndarray, for_texts: np.ndarray) -> dict[str, float]:
    recalls = retrieval(for_videos, columns(), for_texts.T)
    ranks = image_ranks(for_texts.T, columns()).expected
    named = {name.replace("IR", "VR"): value for name, value in recalls.items()}
    return named | {"MdR": float(np.median(ranks))}


@pytest.mark.parametrize("batch_size", [1, 4])
def test_reranking_everything_equals_scoring_pair_by_pair(
    blip: Blip, clips: list[Clip], batch_size: int
) -> None:
    cosines, logits = pair_by_pair(blip, clips)

    found = evaluate_video(blip, clips, num_frames=FRAMES, k=100, batch_size=batch_size)

    both = logits + cosines
    assert found.metrics == pytest.approx(expected_metrics(both, both))
    assert found.contrastive == pytest.approx(expected_metrics(cosines, cosines))
    assert found.metrics != found.contrastive
    order = np.argsort(-both.T, axis=1)
    assert [row["found"] for row in found.searches] == [
        [clips[video].name for video in row] for row in order
    ]
    assert (found.num_videos, found.num_texts) == (6, 8)


def test_only_the_k_best_are_ranked_again_and_the_others_stay_behind(
    blip: Blip, clips: list[Clip]
) -> None:
    cosines, logits = pair_by_pair(blip, clips)
    k = 2
    of_video = np.argsort(np.argsort(-cosines, axis=1), axis=1) < k
    of_text = np.argsort(np.argsort(-cosines, axis=0), axis=0) < k

    found = evaluate_video(blip, clips, num_frames=FRAMES, k=k)

    expected = expected_metrics(
        np.where(of_video, logits + cosines, cosines - 100),
        np.where(of_text, logits + cosines, cosines - 100),
    )
    assert found.metrics == pytest.approx(expected)


def test_contrast_alone_needs_no_head_for_matching(blip: Blip, clips: list[Clip]) -> None:
    clip = Blip(Med(replace(blip.med.config, heads=("itc",))), blip.tokenizer, "pretrain", 32, 32)
    found = evaluate_video(clip, clips, num_frames=FRAMES, k=0)
    assert found.metrics == found.contrastive
    with pytest.raises(MissingHead, match="itm"):
        evaluate_video(clip, clips, num_frames=FRAMES)


def test_units_are_videos_and_add_up(blip: Blip, clips: list[Clip]) -> None:
    found = evaluate_video(blip, clips, num_frames=FRAMES, k=3)
    assert set(found.units) == {f"{side}@{k}" for side in ("TR", "VR") for k in (1, 5, 10)}
    for name, units in found.units.items():
        assert units.estimate == pytest.approx(found.metrics[name])
        assert len(units.scores) == 6
    assert found.metrics["MdR"] == np.median([row["rank"] for row in found.searches])


def test_what_cannot_be_evaluated_is_named(blip: Blip, clips: list[Clip], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no clips"):
        evaluate_video(blip, [])
    with pytest.raises(RecipeError, match="num_frames is 0; give at least 1"):
        evaluate_video(blip, clips, num_frames=0)
    with pytest.raises(RecipeError, match="k is -1"):
        evaluate_video(blip, clips, k=-1)
    (tmp_path / "bad.mp4").write_text("no video")
    with pytest.raises(DataError, match=r"bad\.mp4: cannot be decoded"):
        evaluate_video(blip, [Clip("bad", tmp_path / "bad.mp4", ["a text"])])


def test_the_command_prints_and_writes(
    blip: Blip, annotations: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blip.save(tmp_path / "model")
    results = tmp_path / "found.csv"
    words = ["evaluate", "video", str(tmp_path / "model"), str(annotations)]
    words += [str(annotations.parent), "--num-frames", str(FRAMES)]

    assert main([*words, "--json", "--results", str(results)]) == 0

    shown = json.loads(capsys.readouterr().out)
    clips = read_clips(annotations, annotations.parent)
    assert shown["metrics"] == pytest.approx(evaluate_video(blip, clips, num_frames=FRAMES).metrics)
    with results.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["caption"] for row in rows] == [text for own in CAPTIONS for text in own]
    assert main([*words, "--k", "0"]) == 0
    assert "MdR" in capsys.readouterr().out
