"""`openblip convert`."""

from pathlib import Path
from typing import Literal

import tyro

from openblip.runtime.atomic import check_output
from openblip.runtime.errors import RecipeError
from openblip.runtime.ranges import Count


def convert(
    source: tyro.conf.Positional[str],
    destination: tyro.conf.Positional[Path],
    /,
    *,
    to: Literal["openblip", "original", "huggingface"] | None = None,
    kind: str | None = None,
    image_size: Count | None = None,
    overwrite: bool = False,
) -> int:
    """Write a model in another layout: ours, the original's, or that of transformers.

    Example: openblip convert model_base_caption.pth captioner --to huggingface

    Args:
        source: model folder, run directory, original file, https address or hub repository.
        destination: a folder, or for the original layout a .pth or .safetensors file.
        to: which layout is written; by default the original's where the name ends in .pth or
            .safetensors, else ours.
        kind: what to write where the layout has several: pretrain, caption, retrieval, itm, vqa,
            nlvr (original), caption or retrieval (huggingface).
        image_size: side of the images of the new model, in pixels; positions are interpolated.
        overwrite: replace the model that is there.
    """
    from openblip.inference.loading import load

    if to is None:
        to = "original" if destination.suffix in (".pth", ".safetensors") else "openblip"
    check_output(destination, "DESTINATION", is_folder=to != "original")
    is_there = destination.is_file() or (destination.is_dir() and any(destination.iterdir()))
    if is_there and not overwrite:
        raise RecipeError(f"{destination} is there: give another name, or --overwrite")
    blip = load(source, device="cpu", image_size=image_size)
    if to == "openblip":
        blip.save(destination)
    elif to == "original":
        blip.save_original(destination, kind)
    else:
        blip.save_huggingface(destination, kind)
    print(f"{destination}: {blip.kind}, {blip.image_size} px, {blip.tokenizer.vocab_size} tokens")
    return 0
