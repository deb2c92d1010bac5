"""What each protocol can be told, field by field.

A field is a keyword of its `evaluate_*`, a flag of `openblip evaluate`, and one of a task's
`settings` in a comparison file. Nothing heavy is imported here: a help text has to come at once.
"""

from dataclasses import dataclass, field
from typing import Literal

from openblip.inference.decoding import Decoding
from openblip.runtime.errors import RecipeError
from openblip.runtime.ranges import Count, CountOrNone, Finite, Seed, check_ranges

Ranking = Literal["original", "combined", "contrast"]


@dataclass(frozen=True, kw_only=True)
class RetrievalSettings:
    """Of `evaluate_retrieval`."""

    k: Count = 128
    """Candidates that matching ranks again, where the model matches; the paper takes 256 on COCO,
    128 on Flickr30k."""
    ranking: Ranking = "original"
    """What ranks those candidates. `original`: the ITM logit and the cosine, as in the original;
    `combined`: the log-odds of the match and the contrast's logit, cosine over temperature, which
    is better where matching has learnt from hard negatives for a short time (docs/evaluation.md);
    `contrast`: contrast alone, and nothing is matched."""
    weigh_on: str | None = None
    """Another split, on which it is found how much the log-odds of the match count (`combined`): a
    head that has learnt from few pairs is surer than it should be. By default they count as they
    are."""
    max_words: Count = 30
    """Captions are cut to so many, as in the original's evaluation."""
    batch_size: Count = 32
    """Images that are encoded together."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.weigh_on is not None and self.ranking != "combined":
            raise RecipeError(
                f"weigh_on is {self.weigh_on!r} and ranking {self.ranking!r}; only both heads "
                "together (combined) have a weight"
            )


@dataclass(frozen=True, kw_only=True)
class CaptionSettings:
    """Of `evaluate_caption`."""

    decoding: Decoding = field(default_factory=Decoding)
    """How captions are written; by default with beam 3, as the original."""
    prompt: str = "a picture of "
    """What the model continues; a pre-trained model has seen none."""
    seed: Seed = 0
    """Of nucleus sampling: with a row's id it decides the row's caption."""
    batch_size: Count = 32
    """Images that are encoded together."""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True, kw_only=True)
class FilterSettings:
    """Of `evaluate_filter`."""

    score: str = "itm"
    """Which score of the texts: `itm`, `itc` or the name of another one."""
    threshold: Finite = 0.5
    """Texts with no higher score are rejected."""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True, kw_only=True)
class ClassificationSettings:
    """Of `evaluate_classification`."""

    label_field: str = "label"
    """Field of the metadata with a label, or a list of them: then any is a hit."""
    templates: tuple[str, ...] = ("a photo of {}.",)
    """Prompts with {} for the name of a class; embeddings of several are averaged."""
    exclude: tuple[str, ...] = ()
    """Labels that do not count; images without another one are left out."""
    k: CountOrNone = 0
    """Classes of each image that matching ranks again; 0 for contrast alone, all that a CLIP
    has."""
    batch_size: Count = 32
    """Images that are encoded together."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if not self.templates:
            raise RecipeError("no template; give at least one, such as 'a photo of {}.'")
        for template in self.templates:
            if "{}" not in template:
                raise RecipeError(
                    f"template {template!r}: write {{}} where the name of a class stands"
                )


@dataclass(frozen=True, kw_only=True)
class VqaSettings:
    """Of `evaluate_vqa`."""

    candidates: tuple[str, ...] | None = None
    """Answers that are ranked; without them the model writes its answers."""
    k: Count = 128
    """Candidates that are scored whole."""
    wups: bool = False
    """Also WUPS at 0.9 and 0.0, the metric of DAQUAR; needs WordNet."""
    batch_size: Count = 32
    """Images that are encoded together."""

    def __post_init__(self) -> None:
        check_ranges(self)
        _check_candidates(self.candidates)


@dataclass(frozen=True, kw_only=True)
class NlvrSettings:
    """Of `evaluate_nlvr`."""

    max_words: Count = 40
    """Sentences are cut to so many."""
    batch_size: Count = 32
    """Pairs at a time."""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True, kw_only=True)
class VideoSettings:
    """Of `evaluate_video`."""

    num_frames: Count = 8
    """Taken from each clip at even distances."""
    k: CountOrNone = 64
    """Candidates that matching ranks again; 0 for contrast alone."""
    max_words: Count = 40
    """Captions are cut to so many."""
    batch_size: Count = 4
    """Clips whose frames are encoded together."""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True, kw_only=True)
class VideoQaSettings:
    """Of `evaluate_videoqa`."""

    num_frames: Count = 16
    """Taken from each clip at even distances."""
    candidates: tuple[str, ...] | None = None
    """Answers that are ranked; without them the model writes its answers."""
    k: Count = 128
    """Candidates that are scored whole."""
    batch_size: Count = 2
    """Clips whose frames are encoded together."""

    def __post_init__(self) -> None:
        check_ranges(self)
        _check_candidates(self.candidates)


def _check_candidates(candidates: tuple[str, ...] | None) -> None:
    if candidates == ():
        raise RecipeError("candidates is empty; name answers, or leave it out")
