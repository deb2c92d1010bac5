"""`openblip caption`: of a folder beside the bare model, and of one photograph from the shell.

    python benchmarks/caption_folder.py
    python benchmarks/caption_folder.py --preset tiny --image-size 64 --images 64

A model with fresh weights, whose captions all have one length, and photographs of 500 px as JPEG.
The command reads, decodes, resizes and captions a folder, and another one with twice as many
photographs; the time of the second half is that of the steady state, beside which the same model
captions tensors that are there already. One photograph: the command in a process of its own
("cold"), beside loading and captioning in one that has its libraries ("warm"). All take turns.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from capfilt_throughput import photograph, save_models
from openblip import Blip, Decoding, MedConfig, load
from openblip.inference.encoding import EncodedImages
from openblip.inference.generation import generate

BATCH, LENGTH = 16, 12
FLAGS = [f"--max-length={LENGTH}", f"--min-length={LENGTH}", "--device=cpu", "--prompt="]
DECODING = Decoding(min_length=LENGTH, max_length=LENGTH)


def command(model: Path, *words: str, threads: int) -> float:
    """Seconds of one call of the command."""
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "openblip", "caption", *words, "--model", str(model), *FLAGS],
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    return time.perf_counter() - started


@torch.inference_mode()
def bare(blip: Blip, images: torch.Tensor) -> float:
    """Images a second of the model alone."""
    started, special = time.perf_counter(), blip.tokenizer.special
    for part in images.split(BATCH):
        memory = EncodedImages(blip.med, blip.med.encode_images(part)).decoder_memory
        prompt = torch.full((len(part), 1), special.dec)
        generate(blip.med.text, memory, prompt, DECODING, special)
    return len(images) / (time.perf_counter() - started)


def warm(model: Path, photo: Path) -> float:
    """Seconds of loading, and of one caption, where the libraries are loaded."""
    started = time.perf_counter()
    load(model, device="cpu").caption(photo, max_length=LENGTH, min_length=LENGTH, prompt="")
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="base")
    parser.add_argument("--image-size", type=int, default=384)
    parser.add_argument("--images", type=int, default=32, help="of the smaller folder")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    with TemporaryDirectory() as place:
        folder = Path(place)
        save_models(folder, MedConfig.preset(options.preset), options.image_size)
        model = folder / "captioner"
        for name, count in (("one", options.images), ("two", 2 * options.images)):
            (folder / name).mkdir()
            for number in range(count):
                (folder / name / f"{number:04}.jpg").write_bytes(photograph(number, 500))
        photo = folder / "one" / "0000.jpg"
        blip = load(model, device="cpu")
        side = options.image_size
        images = torch.randn(options.images, 3, side, side)
        bare(blip, images[:BATCH])
        folders, models, cold, warms = [], [], [], []
        for number in range(options.rounds):
            output = [f"--output={folder / f'{number}-{name}.jsonl'}" for name in ("one", "two")]
            first = command(model, str(folder / "one"), output[0], threads=options.threads)
            models.append(bare(blip, images))
            second = command(model, str(folder / "two"), output[1], threads=options.threads)
            folders.append(options.images / (second - first))
            cold.append(command(model, str(photo), threads=options.threads))
            warms.append(warm(model, photo))
    shares = [one / other for one, other in zip(folders, models, strict=True)]
    print(f"{options.preset}, {side} px, beam 3, {LENGTH} tokens, {options.threads} threads")
    print(
        f"a folder: {statistics.median(folders):.2f} images/s, the bare model "
        f"{statistics.median(models):.2f}: {statistics.median(shares):.0%} "
        f"({min(shares):.0%} to {max(shares):.0%})"
    )
    ratio = statistics.median(one / other for one, other in zip(cold, warms, strict=True))
    print(
        f"one photograph: cold {statistics.median(cold):.2f} s, warm "
        f"{statistics.median(warms):.2f} s: {ratio:.2f} times"
    )


if __name__ == "__main__":
    main()
