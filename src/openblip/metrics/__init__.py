"""Metric math: arrays and texts in, numbers out; numpy only."""

from openblip.metrics.accuracy import nlvr
from openblip.metrics.bootstrap import Difference, Interval, bootstrap_interval, paired_bootstrap
from openblip.metrics.caption import CaptionScores, caption, caption_scores
from openblip.metrics.caption_tokens import caption_tokens
from openblip.metrics.retrieval import Ranks, image_ranks, retrieval, text_ranks
from openblip.metrics.vqa import VqaScores, vqa, vqa_scores
from openblip.metrics.wups import wups, wups_scores

__all__ = [
    "CaptionScores",
    "Difference",
    "Interval",
    "Ranks",
    "VqaScores",
    "bootstrap_interval",
    "caption",
    "caption_scores",
    "caption_tokens",
    "image_ranks",
    "nlvr",
    "paired_bootstrap",
    "retrieval",
    "text_ranks",
    "vqa",
    "vqa_scores",
    "wups",
    "wups_scores",
]
