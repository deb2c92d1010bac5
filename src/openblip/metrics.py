"""The metrics, under the name by which programs outside call them; numpy only."""

from openblip.evaluation.metrics import (
    CaptionScores,
    Comparison,
    Interval,
    Ranks,
    VqaScores,
    bootstrap_interval,
    caption,
    caption_scores,
    caption_tokens,
    image_ranks,
    paired_bootstrap,
    retrieval,
    text_ranks,
    vqa,
    vqa_scores,
)

__all__ = [
    "CaptionScores",
    "Comparison",
    "Interval",
    "Ranks",
    "VqaScores",
    "bootstrap_interval",
    "caption",
    "caption_scores",
    "caption_tokens",
    "image_ranks",
    "paired_bootstrap",
    "retrieval",
    "text_ranks",
    "vqa",
    "vqa_scores",
]
