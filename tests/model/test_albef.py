"""ALBEF: a text is encoded alone first, and joined with the image in the layers above."""

from collections.abc import Callable
from dataclasses import replace
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from openblip.model import MedConfig
from openblip.model import config as config_module
from openblip.model.albef import Albef, AlbefConfig
from openblip.runtime.errors import MissingHead, RecipeError


@pytest.fixture
def albef_config(config: MedConfig) -> AlbefConfig:
    return AlbefConfig(vision=config.vision, text=config.text, embed_dim=8, fusion_layer=1)


@pytest.fixture
def albef(albef_config: AlbefConfig, redraw: Callable[[nn.Module], None]) -> Albef:
    model = Albef(albef_config)
    redraw(model)
    return model.eval()


@pytest.fixture
def hidden(albef: Albef, images: Tensor) -> Tensor:
    return albef.encode_images(images)


def close(actual: Tensor, expected: Tensor) -> bool:
    return torch.allclose(actual, expected, atol=1e-5)


class TestParts:
    def test_only_fusion_layers_have_cross_attention(self, albef: Albef) -> None:
        has = [hasattr(layer, "cross_attention") for layer in albef.text.layers]
        assert has == [False, True, True]

    def test_no_layer_has_parts_of_a_decoder(self, albef: Albef) -> None:
        assert not [name for name in albef.state_dict() if "causal" in name]

    def test_only_the_heads_that_are_listed_are_built(self, albef_config: AlbefConfig) -> None:
        momentum = Albef(replace(albef_config, heads=("itc", "mlm")))
        retrieval = Albef(replace(albef_config, heads=("itc", "itm")))
        everything = set(Albef(albef_config).state_dict())
        assert {n.split(".")[0] for n in everything - set(momentum.state_dict())} == {"itm_head"}
        lacking = everything - set(retrieval.state_dict())
        assert {name.rsplit(".", 2)[0] for name in lacking} <= {"text", "text.lm_head"}
        assert lacking

    def test_the_head_of_masked_words_has_no_second_word_matrix(self, albef: Albef) -> None:
        vocab = albef.config.text.vocab_size
        matrices = [n for n, p in albef.named_parameters() if p.ndim == 2 and len(p) == vocab]
        assert matrices == ["text.embeddings.word.weight"]

    @pytest.mark.parametrize("heads", [(), ("itc", "lm")])
    def test_heads_that_do_not_exist_are_refused(
        self,
        without_type_checks: Callable[[ModuleType], ModuleType],
        heads: tuple[str, ...],
    ) -> None:
        unchecked = without_type_checks(config_module)
        with pytest.raises(RecipeError, match="name at least one of itc, itm, mlm"):
            unchecked.AlbefConfig(heads=heads)

    @pytest.mark.parametrize("fusion_layer", [0, 3, -1])
    def test_there_are_layers_below_fusion_and_for_it(
        self, albef_config: AlbefConfig, fusion_layer: int
    ) -> None:
        with pytest.raises(RecipeError, match=r"choose one from 1 to 2|give a whole number"):
            replace(albef_config, fusion_layer=fusion_layer)

    def test_a_missing_head_is_named(self, albef_config: AlbefConfig) -> None:
        states = torch.zeros(1, 2, 32)
        with pytest.raises(MissingHead, match=r"no mlm head .*load a pre-training checkpoint"):
            Albef(replace(albef_config, heads=("itc", "itm"))).mlm_logits(states)
        with pytest.raises(MissingHead, match=r"no itm head .*pre-training or retrieval"):
            Albef(replace(albef_config, heads=("itc", "mlm"))).match_logits(states)
        with pytest.raises(MissingHead, match="no itc head"):
            Albef(replace(albef_config, heads=("mlm",))).embed_states(states)


class TestTexts:
    def test_the_first_token_type_counts_and_the_second_does_not(
        self, albef: Albef, ids: Tensor, mask: Tensor
    ) -> None:
        before = albef.encode_texts(ids, mask)
        types = albef.text.embeddings.token_type.weight
        with torch.no_grad():
            types[1] += 1.0
        assert torch.equal(albef.encode_texts(ids, mask), before)
        with torch.no_grad():
            types[0, 0] += 1.0
        assert not close(albef.encode_texts(ids, mask), before)

    def test_the_token_type_is_added_before_the_norm(self, albef: Albef, ids: Tensor) -> None:
        embeddings = albef.text.embeddings
        summed = embeddings.word(ids) + embeddings.position.weight[: ids.shape[1]]
        expected = embeddings.norm(summed + embeddings.token_type.weight[0])
        assert close(embeddings(ids), expected)

    def test_padding_as_a_word_teaches_its_embedding_nothing(
        self, albef: Albef, ids: Tensor, mask: Tensor
    ) -> None:
        ids = ids.clone()
        ids[:, 1] = 0
        albef.encode_texts(ids, mask).square().sum().backward()
        gradient = albef.text.embeddings.word.weight.grad
        assert gradient is not None
        assert gradient[0].abs().max() == 0
        assert gradient[ids[0, 0]].abs().max() > 0

    def test_layers_above_do_not_change_the_states_of_a_text_alone(
        self, albef: Albef, ids: Tensor, mask: Tensor
    ) -> None:
        before = albef.encode_texts(ids, mask)
        with torch.no_grad():
            for parameter in albef.text.layers[1:].parameters():
                parameter.add_(1.0)
        assert torch.equal(albef.encode_texts(ids, mask), before)

    def test_embeddings_have_unit_length(
        self, albef: Albef, hidden: Tensor, ids: Tensor, mask: Tensor
    ) -> None:
        texts = albef.embed_texts(ids, mask)
        for embed, rows in ((texts, 6), (albef.embed_images(hidden), 3)):
            assert embed.shape == (rows, 8)
            assert close(embed.norm(dim=1), torch.ones(rows))

    def test_padding_does_not_change_results(
        self, albef: Albef, hidden: Tensor, ids: Tensor, mask: Tensor
    ) -> None:
        memory = albef.memory(hidden)
        states = albef.encode_texts(ids, mask)
        fused = albef.fuse(states, mask, memory)
        others = torch.where(mask, ids, ids.flip(0).roll(1, 1))
        other_states = albef.encode_texts(others, mask)
        assert not torch.equal(others, ids)
        assert close(other_states[mask], states[mask])
        # What the states behind a text's end are does not matter to fusion either.
        other_fused = albef.fuse(other_states.masked_fill(~mask[..., None], 3.0), mask, memory)
        assert close(other_fused[mask], fused[mask])
        assert close(albef.match_logits(other_fused), albef.match_logits(fused))
        assert close(albef.mlm_logits(other_fused)[mask], albef.mlm_logits(fused)[mask])


class TestFusion:
    def test_an_images_keys_and_values_are_computed_once(
        self, albef: Albef, hidden: Tensor, ids: Tensor, mask: Tensor
    ) -> None:
        calls: list[int] = []
        for layer in albef.text.layers[1:]:
            layer.cross_attention.key_value.register_forward_hook(lambda *_: calls.append(1))
        memory = albef.memory(hidden)
        states = albef.encode_texts(ids, mask)
        albef.fuse(states, mask, memory)
        albef.fuse(states[:3], mask[:3], memory.select(torch.tensor([2, 0, 1])))
        assert len(calls) == 2
        assert len(memory.keys) == 2

    def test_texts_are_grouped_by_image(
        self, albef: Albef, hidden: Tensor, ids: Tensor, mask: Tensor
    ) -> None:
        states = albef.encode_texts(ids, mask)
        grouped = albef.fuse(states, mask, albef.memory(hidden))
        for row in range(6):
            one = slice(row, row + 1)
            image = albef.memory(hidden[row // 2 : row // 2 + 1])
            alone = albef.fuse(states[one], mask[one], image)
            assert close(alone, grouped[one])

    def test_another_image_gives_another_match(
        self, albef: Albef, hidden: Tensor, ids: Tensor, mask: Tensor
    ) -> None:
        states, memory = albef.encode_texts(ids[:3], mask[:3]), albef.memory(hidden)
        logits = albef.match_logits(albef.fuse(states, mask[:3], memory))
        other = memory.select(torch.tensor([1, 2, 0]))
        assert logits.shape == (3, 2)
        assert not close(albef.match_logits(albef.fuse(states, mask[:3], other)), logits)

    def test_a_word_is_filled_in_from_both_sides(
        self, albef: Albef, hidden: Tensor, ids: Tensor
    ) -> None:
        """Unlike in a decoder, what follows a masked word tells what it was."""
        mask, memory = torch.ones(3, 7, dtype=torch.bool), albef.memory(hidden)
        changed = ids[:3].clone()
        changed[:, 6] = (changed[:, 6] + 1) % 50
        logits, others = (
            albef.mlm_logits(albef.fuse(albef.encode_texts(each, mask), mask, memory))
            for each in (ids[:3], changed)
        )
        assert logits.shape == (3, 7, 50)
        assert not close(logits[:, 3], others[:, 3])


@pytest.mark.parametrize("checkpoint_layers", [1, 3])
def test_recomputed_activations_give_the_same_gradients(
    albef_config: AlbefConfig, images: Tensor, ids: Tensor, mask: Tensor, checkpoint_layers: int
) -> None:
    def gradients(layers: int) -> tuple[int, dict[str, Tensor]]:
        text = replace(albef_config.text, dropout=0.0, checkpoint_layers=layers)
        torch.manual_seed(0)
        model = Albef(replace(albef_config, text=text)).train()
        runs: list[int] = []
        for layer in model.text.layers:
            layer.ffn.register_forward_pre_hook(lambda *_: runs.append(1))
        states = model.encode_texts(ids, mask)
        fused = model.fuse(states, mask, model.memory(model.encode_images(images)))
        (model.match_logits(fused).sum() + model.embed_states(states).sum()).backward()
        found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        return len(runs), found

    runs, expected = gradients(0)
    recomputed_runs, recomputed = gradients(checkpoint_layers)
    assert (runs, recomputed_runs) == (3, 3 + checkpoint_layers)
    assert set(recomputed) == set(expected)
    for name, gradient in expected.items():
        assert close(recomputed[name], gradient), name
