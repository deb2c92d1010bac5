"""A floor for the experiment on photographs: pooled image tokens against the mean of word vectors.

    python benchmarks/bag_of_words.py FLICKR8K --seeds 0 1 2

FLICKR8K is what `benchmarks/flickr8k.yaml` reads. From the same tokens of the same frozen network
(benchmarks/imagenet.py), on the same texts, with as many steps and pairs in a step as there, a
linear map of the pooled tokens and the mean of word vectors learn by contrast alone. A model with a
text encoder that knows the order of words, and that asks all tokens, should do better.
"""

import argparse
import random
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flickr8k_noise import Record, divided, read, with_noise
from imagenet import lite0
from openblip import metrics
from openblip.batches.transforms import eval_transform
from openblip.sources.images import open_image

LEVELS = {"clean": 0.0, "half": 0.5, "three quarters": 0.75}
HUMAN, STEPS, BATCH, WIDTH, LR, WORDS = 1500, 600, 128, 256, 3e-3, 3000
SHOWN = ("TR@1", "TR@10", "IR@1", "IR@10", "mean")


@torch.inference_mode()
def pooled_tokens(folder: Path, names: Sequence[str]) -> dict[str, Tensor]:
    """The mean of each image's tokens, by name."""
    backbone, found = lite0(), {}
    for number, name in enumerate(names):
        image = open_image((folder / name).read_bytes())
        found[name] = backbone(eval_transform(image, 224)[None])[0].mean(dim=0)
        if number % 500 == 0:
            print(f"{number:,} of {len(names):,} images", flush=True)
    return found


class BagOfWords(nn.Module):
    """Unit vectors of images and of texts, whose words have no order."""

    def __init__(self, texts: Sequence[str], features: Tensor) -> None:
        super().__init__()
        counts = Counter(word for text in texts for word in words_of(text))
        self.numbers = {word: n for n, (word, _) in enumerate(counts.most_common(WORDS), start=1)}
        self.mean, self.std = features.mean(dim=0), features.std(dim=0) + 1e-3
        self.image = nn.Linear(features.shape[1], WIDTH)
        self.words = nn.EmbeddingBag(WORDS + 1, WIDTH, mode="mean", padding_idx=0)
        self.log_scale = nn.Parameter(torch.tensor(2.66))

    def images(self, features: Tensor) -> Tensor:
        return F.normalize(self.image((features - self.mean) / self.std), dim=1)

    def texts(self, texts: Sequence[str]) -> Tensor:
        # A text without a known word is the padding, which stands for nothing.
        ids = [[self.numbers.get(word, 0) for word in words_of(text)] or [0] for text in texts]
        starts = torch.tensor([0, *map(len, ids[:-1])]).cumsum(0)
        return F.normalize(
            self.words(torch.tensor([number for text in ids for number in text]), starts), dim=1
        )


def words_of(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


def trained(records: Sequence[Record], tokens: dict[str, Tensor], seed: int) -> BagOfWords:
    """Learnt by the contrast within batches, one of an image's texts at a time."""
    torch.manual_seed(seed)
    draws = random.Random(seed)
    features = torch.stack([tokens[str(record["image"])] for record in records])
    captions: list[list[str]] = [record["captions"] for record in records]  # type: ignore[misc]
    model = BagOfWords([text for texts in captions for text in texts], features)
    optimiser = torch.optim.AdamW(model.parameters(), LR, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LR, total_steps=STEPS)
    order: list[int] = []
    for _ in range(STEPS):
        while len(order) < BATCH:
            order += draws.sample(range(len(records)), len(records))
        batch, order = order[:BATCH], order[BATCH:]
        texts = [draws.choice(captions[number]) for number in batch]
        scale = model.log_scale.exp().clamp(max=100)
        logits = scale * model.images(features[batch]) @ model.texts(texts).T
        own = torch.arange(BATCH)
        loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return model


@torch.inference_mode()
def recalls(
    model: BagOfWords, test: Sequence[Record], tokens: dict[str, Tensor]
) -> dict[str, float]:
    """Of the test photographs, in per cent."""
    captions: list[list[str]] = [record["captions"] for record in test]  # type: ignore[misc]
    images = model.images(torch.stack([tokens[str(record["image"])] for record in test]))
    texts = model.texts([text for own in captions for text in own])
    numbers = iter(range(len(texts)))
    owned = [[next(numbers) for _ in own] for own in captions]
    return metrics.retrieval((images @ texts.T).numpy(), owned)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("flickr8k", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()

    records = [r for r in read(options.flickr8k) if r["captions"] and r["split"] != "val"]
    tokens = pooled_tokens(options.flickr8k, [str(record["image"]) for record in records])
    test = [record for record in records if record["split"] == "test"]
    print(f"\n| texts | seed | {' | '.join(SHOWN)} |")
    print(f"| --- | --- |{' ---: |' * len(SHOWN)}")
    for name, noise in LEVELS.items():
        for seed in options.seeds:
            human, rest = divided(records, HUMAN, seed)
            model = trained(human + with_noise(rest, noise, seed), tokens, seed)
            found = recalls(model, test, tokens)
            cells = " | ".join(f"{found[metric]:.1f}" for metric in SHOWN)
            print(f"| {name} | {seed} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
