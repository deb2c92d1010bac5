"""Matching and contrasting give the original's scores."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from openblip.model import Med

pytestmark = pytest.mark.golden

TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def itm(golden: Callable[[str], Any]) -> Any:
    return golden("itm")


@pytest.fixture(scope="module")
def med(itm: Any) -> Med:
    return itm.med().eval()


@torch.no_grad()
def match(itm: Any, med: Med, first_token: str) -> torch.Tensor:
    ids = itm["input_ids"].clone()
    ids[:, 0] = itm.meta[first_token]
    memory = med.memories(med.encode_images(itm["image"])).encoder
    return med.match(ids, itm.mask("attention_mask"), memory)


def test_matching_with_cls_as_the_demonstration_does(itm: Any, med: Med) -> None:
    assert itm.error(match(itm, med, "CLS"), "itm_logits") < TOLERANCE


def test_matching_with_enc_as_retrieval_does(itm: Any, med: Med) -> None:
    assert itm.error(match(itm, med, "ENC"), "itm_logits_with_ENC_first_token") < TOLERANCE


def test_the_first_token_matters(itm: Any, med: Med) -> None:
    assert itm.error(match(itm, med, "CLS"), "itm_logits_with_ENC_first_token") > 0.01


@torch.no_grad()
def test_contrasting(itm: Any, med: Med) -> None:
    images = med.embed_images(med.encode_images(itm["image"]))
    texts = med.embed_texts(itm["input_ids"], itm.mask("attention_mask"))
    assert itm.error(images @ texts.T, "itc_sim") < TOLERANCE


@torch.no_grad()
def test_padding_cut_to_the_longest_caption_changes_nothing(itm: Any, med: Med) -> None:
    lengths = itm.mask("attention_mask").sum(1)
    shorter = lengths < lengths.max()
    tokens = int(lengths[shorter].max())
    ids = itm["input_ids"][shorter, :tokens].clone()
    ids[:, 0] = itm.meta["ENC"]
    memory = med.memories(med.encode_images(itm["image"][shorter])).encoder
    logits = med.match(ids, itm.mask("attention_mask")[shorter, :tokens], memory)
    assert itm.error(logits, itm["itm_logits_with_ENC_first_token"][shorter]) < TOLERANCE
