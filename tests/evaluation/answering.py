"""A small model that answers questions, and what it is asked."""

from openblip.batches.tokenizer import TextTokenizer
from openblip.inference.blip import Blip
from openblip.model import TextConfig, VisionConfig
from openblip.model.vqa import Vqa, VqaConfig

from ..inference.conftest import draw_weights

COLOURS = ("red", "green", "blue", "white")
CHOICES = ["red", "green", "blue", "a white one", "no"]
ASKED = ("what colour is it?", "is it red?", "which colour do you see here?")


def answering_model() -> Blip:
    """A question-answering model with random weights."""
    tokenizer = TextTokenizer.train([*ASKED, *CHOICES, *COLOURS] * 2, 200)
    vision = VisionConfig(image_size=32, patch_size=16, width=32, depth=2, heads=2)
    text = TextConfig(
        vocab_size=tokenizer.vocab_size, width=32, depth=2, heads=4, ffn_width=48, max_positions=40
    )
    vqa = Vqa(VqaConfig(vision=vision, text=text))
    draw_weights(vqa, seed=3)
    return Blip(vqa, tokenizer, "vqa", 32, 35)
