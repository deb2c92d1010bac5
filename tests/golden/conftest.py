"""Reference outputs of the original code: sizes, weights, inputs and results, all from its files.

Tests take these from the fixture `golden`:

    def test_x(golden):
        reference = golden("pretrain")
        med = reference.med()
        states = med.encode_images(reference["step0.image"])
        assert reference.error(states, "alpha0.0.step0.image_embeds") < 2e-5
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from openblip.checkpoints.families import AnyModel
from openblip.checkpoints.original import OriginalCheckpoint, from_original
from openblip.model import Med, TextConfig, VisionConfig
from openblip.model.albef import Albef

from ..original_gradients import export_gradients

STATE = "state_dict."


@dataclass(frozen=True)
class Golden:
    """One reference: `NAME.json` and `NAME.safetensors`."""

    name: str
    json: dict[str, Any]
    tensors: dict[str, Tensor]

    def __getitem__(self, key: str) -> Tensor:
        return self.tensors[key]

    def mask(self, key: str) -> Tensor:
        """A stored attention mask as ours: True = attend."""
        return self.tensors[key].bool()

    @property
    def meta(self) -> dict[str, Any]:
        return self.json["meta"]

    @cached_property
    def state_dict(self) -> dict[str, Tensor]:
        """The original's weights before the first step, by its own names."""
        weights = {k: v for k, v in self.tensors.items() if k.startswith(STATE)}
        return {key.removeprefix(STATE): tensor for key, tensor in weights.items()}

    @cached_property
    def vision_config(self) -> VisionConfig:
        vit = self.meta["vit"]
        return VisionConfig(
            image_size=vit["img_size"],
            patch_size=vit["patch_size"],
            width=vit["width"],
            depth=vit["depth"],
            heads=vit["heads"],
            mlp_ratio=float(vit["mlp_ratio"]),
            norm_eps=vit["layernorm_eps"],
        )

    @cached_property
    def text_config(self) -> TextConfig:
        bert = self.json["config"]
        assert bert["hidden_dropout_prob"] == bert["attention_probs_dropout_prob"]
        return TextConfig(
            vocab_size=self.meta["vocab_size"],
            width=bert["hidden_size"],
            depth=bert["num_hidden_layers"],
            heads=bert["num_attention_heads"],
            ffn_width=bert["intermediate_size"],
            max_positions=bert["max_position_embeddings"],
            dropout=float(bert["hidden_dropout_prob"]),
            norm_eps=bert["layer_norm_eps"],
        )

    @cached_property
    def converted(self) -> OriginalCheckpoint:
        """The weights in our names; sizes are told by the shapes, heads by the json."""
        return from_original(
            self.state_dict,
            self.name,
            vision_heads=self.vision_config.heads,
            text_heads=self.text_config.heads,
        )

    @cached_property
    def checkpoint(self) -> OriginalCheckpoint:
        """The same with the sizes, dropouts and epsilons that the json tells."""
        config = replace(self.converted.config, vision=self.vision_config, text=self.text_config)
        return replace(self.converted, config=config)

    @property
    def kind(self) -> str:
        """Which of the original's models the weights are of."""
        return self.checkpoint.kind

    def med(self) -> Med:
        """A model with the weights before the first step; a new one at each call."""
        return self._copy(self.checkpoint).med()

    def teacher(self) -> Med | Albef:
        """The momentum model before the first step; new at each call."""
        return self._copy(self.checkpoint).teacher_model()

    def model(self) -> AnyModel:
        """The `Med`, `Vqa`, `Nlvr` or `Albef`; a new one at each call."""
        return self._copy(self.checkpoint).model()

    def error(self, actual: Tensor, expected: str | Tensor) -> float:
        """Largest absolute difference, in units of the largest expected magnitude."""
        reference = self.tensors[expected] if isinstance(expected, str) else expected
        assert actual.shape == reference.shape
        difference = (actual.detach().float() - reference.float()).abs().max()
        return (difference / reference.float().abs().max()).item()

    def worst_gradient_norm_error(
        self, gradients: dict[str, Tensor | None], norms: dict[str, float | None]
    ) -> float:
        """Largest relative error of the gradients' norms.

        Gradients of key biases are left out: they are zero up to rounding.

        Args:
            gradients: of all parameters, by our names.
            norms: the expected norms by the original's names; None where there is no gradient.
        """
        exported = export_gradients(gradients, self.checkpoint.kind)
        assert set(exported) == set(norms)
        worst = 0.0
        for name, gradient in exported.items():
            assert (gradient is None) == (norms[name] is None), name
            if gradient is not None and not name.endswith(".key.bias"):
                worst = max(worst, abs(gradient.norm().item() / norms[name] - 1))
        return worst

    def worst_gradient_error(self, gradients: dict[str, Tensor | None]) -> float:
        """Largest `error` of the gradients that are stored whole, key biases left out."""
        exported = export_gradients(gradients, self.checkpoint.kind)
        stored = [key for key in self.tensors if key.startswith("grad.")]
        errors = []
        for key in stored:
            gradient = exported[key.removeprefix("grad.")]
            assert gradient is not None, key
            if not key.endswith(".key.bias"):
                errors.append(self.error(gradient, key))
        return max(errors)

    @staticmethod
    def _copy(checkpoint: OriginalCheckpoint) -> OriginalCheckpoint:
        copies = {
            name: state and {key: tensor.clone() for key, tensor in state.items()}
            for name, state in (("student", checkpoint.student), ("teacher", checkpoint.teacher))
        }
        return replace(checkpoint, **copies)


@pytest.fixture(scope="session")
def golden(golden_dir: Path) -> Callable[[str], Golden]:
    """Reads a reference by name, once per session; skips where its file is absent."""
    known: dict[str, Golden] = {}

    def read(name: str) -> Golden:
        if name not in known:
            numbers, tensors = golden_dir / f"{name}.json", golden_dir / f"{name}.safetensors"
            if not (numbers.is_file() and tensors.is_file()):
                pytest.skip(f"reference {name} not found in {golden_dir}")
            known[name] = Golden(name, json.loads(numbers.read_text()), load_file(tensors))
        return known[name]

    return read
