"""Makes a noisy web-like training set out of Flickr8k, and the sets it is compared with.

    python benchmarks/flickr8k_noise.py FLICKR8K OUTPUT --human 1500 --seed 0

FLICKR8K is a folder with images/ and captions.jsonl (image, captions, split). Written are three
folders that `openblip data import` reads, with links to the images:

- human: HUMAN random training images with their captions, and the whole val and test splits;
- web: the other training images with one text each, of a known kind (meta `noise`): one of the
  image's captions (`true`), or with the probability NOISE
  other_image (3 of 5): a caption of another image;
  truncated (1 of 5): the first two or three words of one of its captions;
  boilerplate (1 of 5): a file name or a phrase of a shop;
- clean: the same images as web, all with one of their own captions: the upper bound.

`benchmarks/flickr8k.yaml` makes its tables with the function `noisy`.
"""

import argparse
import json
import random
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

from openblip import import_pairs

KINDS = {"other_image": 3, "truncated": 1, "boilerplate": 1}
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
Record = dict[str, object]


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


def read(flickr8k: Path) -> list[Record]:
    """The lines of captions.jsonl."""
    lines = (flickr8k / "captions.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def divided(records: list[Record], human: int, seed: int) -> tuple[list[Record], list[Record]]:
    """So many random training images, and the others."""
    train = [r for r in records if r["split"] == "train" and r["captions"]]
    random.Random(seed).shuffle(train)
    return train[:human], train[human:]


def with_noise(records: list[Record], noise: float, seed: int) -> list[Record]:
    """The images with one text each; what is noise at one level is noise at every higher one."""
    made = []
    for record in records:
        # Of its own: a text depends on no other image and no level.
        rng = random.Random(f"{seed} {record['image']}")
        is_noise = rng.random() < noise
        kind = rng.choices(list(KINDS), list(KINDS.values()))[0] if is_noise else "true"
        other = record
        while other is record:
            other = rng.choice(records)
        text = noisy_text(kind, record["captions"], other["captions"], rng)  # type: ignore[arg-type]
        made.append({**record, "captions": [text], "noise": kind})
    return made


def noisy(place: Path, seed: int, source: str, human: int = 1500, noise: float = 0.5) -> None:
    """A table of the training images: some with their captions, the others with web texts.

    Args:
        place: of the table.
        seed: of all draws.
        source: the folder of Flickr8k.
        human: images that keep all their captions.
        noise: share of the other images whose text is noise.
    """
    flickr8k = Path(source)
    people, rest = divided(read(flickr8k), human, seed)
    with TemporaryDirectory() as folder:
        for origin, records in (("human", people), ("web", with_noise(rest, noise, seed))):
            write(Path(folder) / origin, flickr8k, records)
            import_pairs(Path(folder) / origin, place, origin=origin)


def write(folder: Path, source: Path, records: list[Record]) -> None:
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
    parser.add_argument("--noise", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    records = read(options.flickr8k)
    human, rest = divided(records, options.human, options.seed)
    web = with_noise(rest, options.noise, options.seed)
    held_out = [r for r in records if r["split"] != "train"]
    write(options.output / "human", options.flickr8k, human + held_out)
    write(options.output / "web", options.flickr8k, web)
    write(options.output / "clean", options.flickr8k, with_noise(rest, 0.0, options.seed))
    print(f"human: {len(human)} train, {len(held_out)} val and test")
    print(f"web: {dict(Counter(record['noise'] for record in web))}")


if __name__ == "__main__":
    main()
