"""Accuracy and consistency of NLVR2, as its official script counts them."""

import re
from collections import defaultdict
from collections.abc import Mapping

from openblip.errors import DataError

# "split-set_id-pair_id-sentence_id": a sentence was written for one set of images.
_IDENTIFIER = re.compile(r"(?P<set>\w+-\d+)-\d+-(?P<sentence>\d+)")


def nlvr(predictions: Mapping[str, bool], labels: Mapping[str, bool]) -> dict[str, float]:
    """Per cent of right predictions, and of sentences that are judged rightly wherever they occur.

    Args:
        predictions: by identifier; those without a label are not counted.
        labels: whether the sentences are true, by identifier.

    Returns:
        "accuracy", and "consistency" where all identifiers have the official form, which tells
        what belongs to one sentence.

    Raises:
        DataError: there is no label, or a prediction is missing.
    """
    if not labels:
        raise DataError("there are no labels to judge predictions by")
    missing = [key for key in labels if key not in predictions]
    if missing:
        raise DataError(
            f"no prediction for {missing[0]} ({len(missing)} of {len(labels)} are missing)"
        )
    right = {key: predictions[key] == label for key, label in labels.items()}
    metrics = {"accuracy": 100 * sum(right.values()) / len(right)}
    consistent = consistent_sentences(right)
    if consistent is not None:
        metrics["consistency"] = 100 * sum(consistent.values()) / len(consistent)
    return metrics


def consistent_sentences(right: Mapping[str, bool]) -> dict[tuple[str, str], bool] | None:
    """For each (set of images, sentence) whether all of its examples are right.

    None if an identifier has another form than the official one.
    """
    consistent: dict[tuple[str, str], bool] = defaultdict(lambda: True)
    for identifier, is_right in right.items():
        found = _IDENTIFIER.fullmatch(identifier)
        if found is None:
            return None
        consistent[found["set"], found["sentence"]] &= is_right
    return dict(consistent)


def image_set(identifier: str) -> str:
    """What examples that share images have in common; the identifier where it does not say."""
    found = _IDENTIFIER.fullmatch(identifier)
    return found["set"] if found else identifier
