"""`openblip caption` and `openblip match`."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import tyro

from openblip.cli.output import print_json, print_table
from openblip.errors import DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def caption(
    paths: tyro.conf.Positional[tuple[Path, ...]],
    /,
    *,
    model: str,
    method: Literal["beam", "nucleus", "greedy"] = "beam",
    num_beams: int = 3,
    top_p: float = 0.9,
    max_length: int = 20,
    min_length: int = 5,
    prompt: str = "a picture of ",
    num_captions: int = 1,
    seed: int = 0,
    batch_size: int = 16,
) -> int:
    """Caption images; one line of JSON an image on standard output.

    A broken image is reported on standard error, the others are captioned, and the exit code is 1.
    Example: openblip caption photos/ --model demo/captioner > captions.jsonl

    Args:
        paths: image files, or folders that are searched.
        model: model folder or run directory with an LM head.
        method: how to decode.
        num_beams: beam: width.
        top_p: nucleus: smallest set of words with this probability.
        max_length: tokens, prompt included.
        min_length: tokens, prompt included.
        prompt: what the model continues.
        num_captions: captions an image.
        seed: nucleus: same seed, same captions.
        batch_size: images at once.
    """
    from openblip.data.transforms import open_image
    from openblip.inference import load
    from openblip.progress import Progress

    files = list(_image_files(paths))
    blip = load(model)
    failures = 0
    with Progress("captioning", total=len(files), unit="images") as progress:
        for first in range(0, len(files), batch_size):
            images, names = [], []
            for file in files[first : first + batch_size]:
                try:
                    images.append(open_image(file))
                    names.append(file)
                except DataError as error:
                    failures += 1
                    print(f"openblip caption: {error}", file=sys.stderr)
            written = blip.caption(
                images,
                method=method,
                num_beams=num_beams,
                top_p=top_p,
                max_length=max_length,
                min_length=min_length,
                prompt=prompt,
                num_captions=num_captions,
                seed=seed,
            )
            for name, choices in zip(names, written, strict=True):
                texts = [{"text": c.text, "logprob": c.logprob} for c in choices]
                print_json({"image": str(name), "captions": texts})
            progress.update(len(files[first : first + batch_size]))
    return 1 if failures else 0


def match(
    image: tyro.conf.Positional[Path],
    texts: tyro.conf.Positional[tuple[str, ...]],
    /,
    *,
    model: str,
    json: bool = False,
) -> int:
    """How well texts match an image: ITM probability and ITC cosine.

    Example: openblip match photo.jpg "a dog on a beach" "a red car" --model demo/filter

    Args:
        image: an image file.
        texts: one or more texts.
        model: model folder or run directory with ITC and ITM heads.
        json: print JSON.
    """
    from openblip.inference import load

    if not texts:
        raise DataError("no text was given; put one or more behind the image")
    matches = load(model).match([image] * len(texts), list(texts))
    if json:
        print_json(
            [{"text": t, "itm": m.itm, "itc": m.itc} for t, m in zip(texts, matches, strict=True)]
        )
        return 0
    rows = [[t, f"{m.itm:.4f}", f"{m.itc:.3f}"] for t, m in zip(texts, matches, strict=True)]
    print_table(["text", "ITM probability", "ITC cosine"], rows)
    return 0


def _image_files(paths: tuple[Path, ...]) -> Iterator[Path]:
    if not paths:
        raise DataError("no image was given; name files or folders")
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
            if not inside:
                raise DataError(f"{path}: no image in this folder")
            yield from inside
        else:
            yield path
