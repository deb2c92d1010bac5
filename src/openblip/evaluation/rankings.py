"""Ranked lists of a retrieval evaluation: what each image and each text found."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from openblip.evaluation.results_file import save_json

LISTED = 10
"""Candidates of a list: as many as the largest k of a recall."""


@dataclass(frozen=True)
class Rankings:
    """The best texts of every image and the best images of every text, best first."""

    image_ids: list[str]
    """Row ids of the images."""
    texts: list[str]
    """All texts."""
    captions_of_image: list[list[int]]
    """For each image the positions of its captions in `texts`."""
    texts_of_image: Tensor
    """int64 (images, listed), positions in `texts`."""
    text_scores: Tensor
    """(images, listed)."""
    images_of_text: Tensor
    """int64 (texts, listed), positions in `image_ids`."""
    image_scores: Tensor
    """(texts, listed)."""

    def save(self, path: Path) -> None:
        """Write the lists as JSON, in the format of `docs/tasks/retrieval.md`; whole or not at all.

        Raises:
            OSError: if it cannot be written.
        """
        own = {text: image for image, texts in enumerate(self.captions_of_image) for text in texts}
        named = [
            {"text": text, "image_id": self.image_ids[own[number]]}
            for number, text in enumerate(self.texts)
        ]
        found_texts = [
            [named[text] | {"score": score} for text, score in row]
            for row in _pairs(self.texts_of_image, self.text_scores)
        ]
        found_images = [
            [{"image_id": self.image_ids[image], "score": score} for image, score in row]
            for row in _pairs(self.images_of_text, self.image_scores)
        ]
        values = {
            "texts_of_image": dict(zip(self.image_ids, found_texts, strict=True)),
            "images_of_text": [
                text | {"images": images} for text, images in zip(named, found_images, strict=True)
            ],
        }
        save_json(path, values)


def rankings(
    image_ids: Sequence[str],
    texts: Sequence[str],
    captions_of_image: Sequence[Sequence[int]],
    for_images: Tensor,
    for_texts: Tensor,
    listed: int = LISTED,
) -> Rankings:
    """The first candidates of every image and of every text.

    Args:
        image_ids: of the images.
        texts: all of them.
        captions_of_image: which of them are an image's own.
        for_images: (images, texts), the scores that rank texts.
        for_texts: (images, texts), the scores that rank images.
        listed: how many candidates, if there are so many.
    """
    text_scores, of_image = for_images.topk(min(listed, len(texts)), dim=1)
    image_scores, of_text = for_texts.T.topk(min(listed, len(image_ids)), dim=1)
    return Rankings(
        list(image_ids),
        list(texts),
        [list(own) for own in captions_of_image],
        of_image,
        text_scores,
        of_text,
        image_scores,
    )


def _pairs(places: Tensor, scores: Tensor) -> Iterator[list[tuple[int, float]]]:
    """For every row its places with their scores."""
    for row in zip(places.tolist(), scores.tolist(), strict=True):
        yield list(zip(*row, strict=True))
