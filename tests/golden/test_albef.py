"""ALBEF gives what the original gives: features, fusion, matching, masked words, evaluation.

Both references record a first step, whose outputs do not depend on alpha: the momentum model is
moved once and run after that.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from openblip.checkpoints.original import to_original
from openblip.model.albef import Albef
from openblip.objectives.itc import update_teacher

pytestmark = pytest.mark.golden

TOLERANCE = 2e-5
ALPHAS = ["0.0", "0.4"]
KINDS = ["albef_pretrain", "albef_retrieval"]


@dataclass
class FirstStep:
    """Models, inputs and encodings of the first step, and where its reference stands."""

    reference: Any
    alpha: str
    student: Albef
    teacher: Albef
    """After the step's momentum update."""
    mask: Tensor
    image_hidden: Tensor
    states: Tensor

    @property
    def numbers(self) -> dict[str, Any]:
        return self.reference.json["alphas"][self.alpha]["steps"][0]

    def expected(self, name: str) -> Tensor:
        return self.reference[f"alpha{self.alpha}.step0.{name}"]

    def error(self, actual: Tensor, name: str) -> float:
        return self.reference.error(actual, self.expected(name))

    def fused_pairs(self) -> Tensor:
        """Fused states of pairs: matching ones; text, negative image; negative text, image."""
        memory = self.student.memory(self.image_hidden)
        images, texts = (
            torch.tensor(self.numbers[name])
            for name in ("neg_image_for_text", "neg_text_for_image")
        )
        own = torch.arange(len(images))
        rows = torch.cat([own, own, texts])
        seen = memory.select(torch.cat([own, images, own]))
        return self.student.fuse(self.states[rows], self.mask[rows], seen)


def read_masked(model: Albef, step: FirstStep, image_hidden: Tensor) -> Tensor:
    """Logits of the words at the positions of the texts with masked words."""
    states = model.encode_texts(step.expected("mlm_input_ids"), step.mask)
    return model.mlm_logits(model.fuse(states, step.mask, model.memory(image_hidden)))


def first_step(reference: Any, alpha: str) -> FirstStep:
    student, teacher = reference.model(), reference.teacher()
    update_teacher(teacher, student, reference.json["momentum"])
    # As the original does; its dropout probabilities are 0.
    student.train()
    teacher.train()
    mask = reference.mask("step0.attention_mask")
    image_hidden = student.encode_images(reference["step0.image"])
    states = student.encode_texts(reference["step0.input_ids"], mask)
    return FirstStep(reference, alpha, student, teacher, mask, image_hidden, states)


@pytest.fixture(params=[(kind, alpha) for kind in KINDS for alpha in ALPHAS], ids="-".join)
def step(golden: Callable[[str], Any], request: pytest.FixtureRequest) -> FirstStep:
    kind, alpha = request.param
    return first_step(golden(kind), alpha)


@pytest.fixture(params=ALPHAS)
def pretraining(golden: Callable[[str], Any], request: pytest.FixtureRequest) -> FirstStep:
    return first_step(golden("albef_pretrain"), request.param)


@pytest.mark.parametrize("kind", KINDS)
def test_the_sizes_told_by_the_shapes_are_those_of_the_original(
    golden: Callable[[str], Any], kind: str
) -> None:
    reference = golden(kind)
    told, recorded = reference.converted.config, reference.checkpoint.config
    assert told.vision == recorded.vision
    assert told.text.depth == recorded.text.depth
    assert told.text.ffn_width == recorded.text.ffn_width
    assert told.fusion_layer == reference.json["config"]["fusion_layer"]
    assert told.embed_dim == reference.json["embed_dim"]


def test_the_encodings_of_images_and_texts(step: FirstStep) -> None:
    assert step.error(step.image_hidden, "image_embeds") < TOLERANCE
    assert step.error(step.states, "text_last_hidden_state") < TOLERANCE


def test_the_embeddings(step: FirstStep) -> None:
    assert step.error(step.student.embed_images(step.image_hidden), "image_feat") < TOLERANCE
    assert step.error(step.student.embed_states(step.states), "text_feat") < TOLERANCE


def test_the_embeddings_of_the_momentum_model(step: FirstStep) -> None:
    teacher, reference = step.teacher, step.reference
    image_embed = teacher.embed_images(teacher.encode_images(reference["step0.image"]))
    states = teacher.encode_texts(reference["step0.input_ids"], step.mask)
    assert step.error(image_embed, "image_feat_m") < TOLERANCE
    assert step.error(teacher.embed_states(states), "text_feat_m") < TOLERANCE


def test_every_weight_of_the_momentum_model_moves_as_the_originals(step: FirstStep) -> None:
    written = to_original(step.student, step.reference.kind, teacher=step.teacher)
    norms = step.numbers["momentum_norm_after"]
    assert norms
    for name, norm in norms.items():
        assert written[name].double().norm().item() == pytest.approx(norm, rel=1e-5), name


def test_the_fused_states_of_matching_pairs(step: FirstStep) -> None:
    fused = step.student.fuse(step.states, step.mask, step.student.memory(step.image_hidden))
    assert step.error(fused, "fusion_pos_last_hidden_state") < TOLERANCE


def test_the_match_logits_of_pairs_and_negatives(step: FirstStep) -> None:
    fused = step.fused_pairs()
    assert step.error(fused[:, 0], "vl_embeddings") < TOLERANCE
    assert step.error(step.student.match_logits(fused), "vl_output") < TOLERANCE


def test_the_logits_of_masked_words(pretraining: FirstStep) -> None:
    logits = read_masked(pretraining.student, pretraining, pretraining.image_hidden)
    assert pretraining.error(logits, "mlm_logits") < TOLERANCE


def test_the_logits_of_masked_words_of_the_momentum_model(pretraining: FirstStep) -> None:
    teacher = pretraining.teacher
    image_hidden = teacher.encode_images(pretraining.reference["step0.image"])
    logits = read_masked(teacher, pretraining, image_hidden)
    assert pretraining.error(logits, "mlm_logits_m") < TOLERANCE


class TestRetrievalEvaluation:
    @pytest.fixture
    def evaluation(self, golden: Callable[[str], Any]) -> Any:
        return golden("albef_retrieval_eval")

    @pytest.fixture
    def model(self, golden: Callable[[str], Any]) -> Albef:
        return golden("albef_retrieval").model().eval()

    @torch.no_grad()
    def test_the_similarities(self, evaluation: Any, model: Albef) -> None:
        images = model.embed_images(model.encode_images(evaluation["image"]))
        states = model.encode_texts(evaluation["input_ids"], evaluation.mask("text_atts"))
        texts = model.embed_states(states)
        assert evaluation.error(images, "image_embeds") < TOLERANCE
        assert evaluation.error(texts, "text_embeds") < TOLERANCE
        assert evaluation.error(images @ texts.T, "sims_i2t") < TOLERANCE

    @pytest.mark.parametrize("texts_of_images", [True, False], ids=["i2t", "t2i"])
    @torch.no_grad()
    def test_the_match_scores_of_the_nearest_pairs(
        self, evaluation: Any, model: Albef, texts_of_images: bool
    ) -> None:
        expected = evaluation["score_i2t" if texts_of_images else "score_t2i"]
        similar = evaluation["sims_i2t"] if texts_of_images else evaluation["sims_i2t"].T
        nearest = similar.topk(evaluation.json["k_test"], dim=1).indices
        scored = torch.zeros_like(expected, dtype=torch.bool).scatter(1, nearest, True)
        assert torch.equal(expected != -100, scored)
        pairs = scored if texts_of_images else scored.T
        image_rows, text_rows = pairs.nonzero().unbind(1)
        mask = evaluation.mask("text_atts")
        states = model.encode_texts(evaluation["input_ids"], mask)
        memory = model.memory(model.encode_images(evaluation["image"])).select(image_rows)
        logits = model.match_logits(model.fuse(states[text_rows], mask[text_rows], memory))
        scores = (expected if texts_of_images else expected.T)[image_rows, text_rows]
        assert evaluation.error(logits[:, 1], scores) < TOLERANCE
