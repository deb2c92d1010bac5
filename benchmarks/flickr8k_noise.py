"""Makes a noisy web-like training set out of Flickr8k, and the sets it is compared with.

    python benchmarks/flickr8k_noise.py FLICKR8K OUTPUT --human 1500 --seed 0

FLICKR8K is a folder with images/ and captions.jsonl (image, captions, split). Written are three
folders that `openblip data import` reads, with links to the images:

- human: HUMAN random training images with their captions, and the whole val and test splits;
- web: the other training images with one text each, of a known kind (meta `noise`):
  true 50 %: one of the image's captions;
  other_image 30 %: a caption of another image;
  truncated 10 %: the first two or three words of one of its captions;
  boilerplate 10 %: a file name or a phrase of a shop;
- clean: the same images as web, all with one of their own captions: the upper bound.
"""

import argparse
import json
import random
from collections import Counter
from pathlib import Path

KINDS = {"true": 0.5, "other_image": 0.3, "truncated": 0.1, "boilerplate": 0.1}
PHRASES = (
    "best price free shipping",
    "click to enlarge",
    "photo gallery home about contact",
    "all rights reserved",
    "image may be subject to copyright",
    "download wallpaper hd",
    "posted by admin on monday",
    "share this on facebook twitter pinterest",
)


def noisy_text(kind: str, own: list[str], others: list[str], rng: random.Random) -> str:
    """A text of the kind for an image with the captions `own`."""
    if kind == "true":
        return rng.choice(own)
    if kind == "other_image":
        return rng.choice(others)
    if kind == "truncated":
        return " ".join(rng.choice(own).split()[: rng.choice((2, 3))])
    if rng.random() < 0.5:
        return f"IMG_{rng.randrange(1000, 9999)}.jpg"
    return rng.choice(PHRASES)


def write(folder: Path, source: Path, records: list[dict[str, object]]) -> None:
    """captions.jsonl and links to the images."""
    (folder / "images").mkdir(parents=True)
    with (folder / "captions.jsonl").open("w", encoding="utf-8") as file:
        for record in records:
            name = str(record["image"])
            (folder / name).symlink_to((source / name).resolve())
            file.write(json.dumps(record) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("flickr8k", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--human", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    rng = random.Random(options.seed)
    lines = (options.flickr8k / "captions.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    train = [r for r in records if r["split"] == "train" and r["captions"]]
    rng.shuffle(train)
    human, rest = train[: options.human], train[options.human :]
    web, clean = [], []
    for record in rest:
        kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
        other = record
        while other is record:
            other = rng.choice(rest)
        text = noisy_text(kind, record["captions"], other["captions"], rng)
        web.append({**record, "captions": [text], "noise": kind})
        clean.append({**record, "captions": [rng.choice(record["captions"])]})
    held_out = [r for r in records if r["split"] != "train"]
    write(options.output / "human", options.flickr8k, human + held_out)
    write(options.output / "web", options.flickr8k, web)
    write(options.output / "clean", options.flickr8k, clean)
    print(f"human: {len(human)} train, {len(held_out)} val and test")
    print(f"web: {dict(Counter(record['noise'] for record in web))}")


if __name__ == "__main__":
    main()
