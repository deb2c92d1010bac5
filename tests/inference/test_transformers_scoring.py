"""`scoring="transformers"` finds what today's `transformers` finds with the same weights."""

import pytest
import torch

from openblip.inference import Decoding
from openblip.inference.generation import generate
from openblip.interop.original import to_original

from .conftest import make_med

transformers = pytest.importorskip("transformers")


def text_decoder(med, special):
    """The decoder of a captioner in `transformers`, with the weights of `med`."""
    config = med.config.text
    decoder = transformers.BlipTextLMHeadModel(
        transformers.BlipTextConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.width,
            encoder_hidden_size=med.config.vision.width,
            intermediate_size=config.ffn_width,
            num_hidden_layers=config.depth,
            num_attention_heads=config.heads,
            max_position_embeddings=config.max_positions,
            layer_norm_eps=config.norm_eps,
            bos_token_id=special.dec,
            eos_token_id=special.sep,
            sep_token_id=special.sep,
            pad_token_id=special.pad,
            is_decoder=True,
        )
    )
    weights = {
        name.removeprefix("text_decoder."): tensor
        for name, tensor in to_original(med, "caption").items()
        if name.startswith("text_decoder.") and not name.endswith("position_ids")
    }
    decoder.load_state_dict(weights)
    return decoder.eval()


SETTINGS = [
    {"num_beams": 3, "max_length": 20, "min_length": 5},
    {"num_beams": 4, "max_length": 12, "min_length": 8, "length_penalty": 2.0},
    {"num_beams": 3, "max_length": 9, "min_length": 0, "length_penalty": -1.0},
    {"num_beams": 2, "max_length": 16, "min_length": 5, "repetition_penalty": 1.4},
]


@pytest.mark.parametrize("seed", [0, 1, 2])
@torch.no_grad()
def test_beams_are_those_of_transformers(tokenizer, images, seed):
    med = make_med(tokenizer, seed)
    special = tokenizer.special
    decoder = text_decoder(med, special)
    hidden = med.encode_images(images)
    memory = med.memories(hidden).decoder
    prompt = torch.tensor([special.dec, 20, 30]).expand(len(images), -1)
    scorings_differ = False
    for settings in SETTINGS:
        theirs = decoder.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            encoder_hidden_states=hidden,
            encoder_attention_mask=torch.ones(hidden.shape[:2], dtype=torch.int64),
            eos_token_id=special.sep,
            pad_token_id=special.pad,
            return_dict_in_generate=True,
            output_scores=True,
            **settings,
        )
        ours = generate(
            med.text, memory, prompt, Decoding(scoring="transformers", **settings), special
        )
        for (text,), row in zip(ours, theirs.sequences.tolist(), strict=True):
            ids = list(text.token_ids)
            assert row[: len(ids)] == ids
            # With padding id 0 the library fills up with the end token.
            assert set(row[len(ids) :]) <= {special.sep}
        scores = [text.score for (text,) in ours]
        assert scores == pytest.approx(theirs.sequences_scores.tolist(), abs=1e-5)
        original = generate(med.text, memory, prompt, Decoding(**settings), special)
        scorings_differ |= [text.token_ids for (text,) in original] != [
            text.token_ids for (text,) in ours
        ]
    assert scorings_differ
