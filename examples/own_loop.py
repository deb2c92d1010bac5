"""Our parts in a loop of your own: python own_loop.py PAIRS.lance MODEL_FOLDER [STEPS].

The model learns by contrast alone; it is saved with its tokenizer, and loaded again.
"""

import sys
from dataclasses import replace
from itertools import islice

import torch
from torch.nn.functional import cross_entropy

import openblip

table_uri, folder = sys.argv[1:3]
steps = int(sys.argv[3]) if len(sys.argv) > 3 else 200
torch.manual_seed(0)

index = openblip.CaptionView().resolve(openblip.PairTable.open(table_uri))
texts = [text for row in index.captions_of_rows(index.rows[:10_000]) for text in row]
tokenizer = openblip.TextTokenizer.train(texts, 2000)

preset = openblip.MedConfig.preset("tiny", vocab_size=tokenizer.vocab_size, image_size=64)
model = openblip.Med(replace(preset, heads=("itc",)))
optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
settings = {"batch_size": 16, "image_size": 64, "augmentation": None, "max_tokens": 30, "seed": 0}
with openblip.PairLoader([openblip.WeightedIndex(index)], tokenizer, **settings) as loader:
    for step, batch in enumerate(islice(loader.iterate(), steps)):
        images = model.embed_images(model.encode_images(batch.images))
        logits = images @ model.embed_texts(batch.tokens, batch.mask).T / model.temperature
        own = torch.arange(len(logits))
        loss = (cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % 20 == 0 or step == steps - 1:
            print(f"step {step}: loss {loss.item():.3f}")
openblip.Blip(model, tokenizer, "pretrain", image_size=64, max_tokens=30).save(folder)
print("embeds as", tuple(openblip.load(folder, device="cpu").embed_texts(texts[:2]).shape))
