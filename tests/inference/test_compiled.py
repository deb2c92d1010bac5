"""A compiled model gives the same, and is not compiled again for another batch."""

import json
import subprocess
import sys

import pytest

# In a process of its own: the suite checks shapes at run time, in code that cannot be compiled.
PROGRAM = """
import json
import torch
from torch._dynamo.utils import counters
from openblip.batches.tokenizer import SpecialTokens
from openblip.inference.loading import compile_blocks
from openblip.inference.decoding import Decoding
from openblip.inference.generation import generate
from openblip.model import Med, MedConfig

special = SpecialTokens(pad=0, unk=1, cls=2, sep=3, mask=4, dec=98, enc=99)

def run(med, images):
    with torch.no_grad():
        hidden = med.encode_images(images)
        memory = med.text.remember(hidden, causal=True)
    prompt = torch.tensor([98, 20, 30]).expand(len(images), -1)
    texts = generate(med.text, memory, prompt, Decoding(max_length=12), special)
    return hidden, [text.token_ids for (text,) in texts]

config = MedConfig.preset("tiny", vocab_size=100, image_size=32)
plain, compiled = Med(config).eval(), Med(config).eval()
compiled.load_state_dict(plain.state_dict())
compile_blocks(compiled)
compiled.load_state_dict(plain.state_dict())
images = torch.randn(7, 3, 32, 32)
result = {"graphs": [], "difference": 0.0, "same_ids": True}
for count in (1, 2, 5, 3, 7):
    hidden, texts = run(compiled, images[:count])
    expected, expected_texts = run(plain, images[:count])
    result["difference"] = max(result["difference"], float((hidden - expected).abs().max()))
    result["same_ids"] &= texts == expected_texts
    result["graphs"].append(counters["stats"]["unique_graphs"])
print(json.dumps(result))
"""


@pytest.mark.slow
def test_another_batch_or_text_length_compiles_nothing():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], check=True, stdout=subprocess.PIPE, text=True
    )
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["difference"] < 1e-5
    assert result["same_ids"]
    first, second, *later = result["graphs"]
    assert 0 < first <= second <= 6
    assert later == [second] * 3
