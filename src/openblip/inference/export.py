"""A model in a folder that needs no PyTorch: graphs, tokenizer, and what a program must know.

Every graph is read again by its runtime and held to the model before the folder takes its place.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from openblip.batches.tokenizer import TOKENIZER_FILE
from openblip.batches.transforms import IMAGE_MEAN, IMAGE_STD
from openblip.checkpoints.families import check_image_size
from openblip.checkpoints.folder import (
    CONFIG_FILE,
    MANIFEST_FILE,
    check_replaceable,
    warn_of_given_text,
    write_config,
    write_json,
)
from openblip.checkpoints.model_card import CARD_FILE, CardFacts, write_model_card
from openblip.deploy.graphs import Part, Port, memories_of, parts_of
from openblip.deploy.models import FORMAT, VERSION, require_weights
from openblip.deploy.runtimes import (
    EXAMPLE_SIZES,
    SUFFIXES,
    WEIGHTS_FILE,
    Format,
    OnnxFolder,
    check_installed,
    make_graph,
    open_graph,
    quantised,
    write_openvino,
)
from openblip.inference.blip import Blip
from openblip.inference.captions import PROMPT, prompt_ids
from openblip.inference.decoding import Decoding
from openblip.runtime.atomic import replace_folder
from openblip.runtime.errors import CheckpointError, RecipeError

TOLERANCE = 1e-4
"""Most that an output of a float32 graph may differ by, relative to the largest where that is
above 1."""
# What the graphs are held to: other sizes than they were made with, and one of everything.
_CHECKED_SIZES: tuple[dict[str, int], ...] = (
    # Nothing is cached where a text begins.
    {axis: size + 1 for axis, size in EXAMPLE_SIZES.items()} | {"past": 0},
    dict.fromkeys(EXAMPLE_SIZES, 1),
)
_USAGE = """
pip install {packages}
python onnx_caption.py {name} photo.jpg        # examples/onnx_caption.py of OpenBLIP
"""
_ASKED = """
openblip ask photo.jpg "what is this?" --model {name}
"""
"""The example does not ask questions."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What has been written."""

    folder: Path
    """Where it is."""
    differences: dict[str, float]
    """For each graph the largest difference to the model, relative to the largest number of an
    output where that is above 1."""
    num_bytes: int
    """Of all files."""


def export(blip: Blip, folder: Path, to: Format = "onnx", *, int8: bool = False) -> Exported:
    """Write a model's graphs with its tokenizer, preprocessing and card; whole or not at all.

    Args:
        blip: in float32 on the CPU.
        folder: replaced if it holds an exported model.
        to: for which runtime.
        int8: whether weights are 8-bit integers; what that changes is told, not judged.

    Raises:
        RecipeError: the model is of another type or elsewhere, has no graphs, or packages are
            missing.
        CheckpointError: a graph cannot be made, or does not give what the model gives; or the
            folder holds something else.
        UnwritableError: it cannot be written.
    """
    check_image_size(blip.model, blip.image_size)
    warn_of_given_text(blip.given_tokens, "an exported model")
    return write_graphs(blip, folder, to, int8=int8)


def write_graphs(
    blip: Blip,
    folder: Path,
    to: Format,
    *,
    int8: bool = False,
    made: Callable[[], None] = lambda: None,
) -> Exported:
    """As `export`, for a backend, which reads all that the folder says; `made` counts graphs."""
    require_weights(blip.model, "export")
    if blip.device.type != "cpu" or blip.dtype != torch.float32:
        raise RecipeError(
            f"the model is {blip.dtype} on {blip.device}; load it in float32 on the CPU to export"
        )
    parts = parts_of(blip.model)
    check_installed(to, int8)
    # Before minutes of work whose result could not be put there.
    check_replaceable(folder, _known_files(parts))
    with replace_folder(folder) as unfinished:
        about = blip.kind, blip.max_tokens, blip.trained, blip.given_tokens, blip.name_tokens
        write_config(unfinished, blip.model, *about)
        _write_graphs(parts, unfinished, to, int8, made)
        differences = {
            part.name: _difference(part, unfinished / f"{part.name}{SUFFIXES[to]}")
            for part in parts
        }
        if not int8:
            _check(differences)
        blip.tokenizer.save(unfinished)
        write_json(unfinished / MANIFEST_FILE, _manifest(blip, parts, to, int8, differences))
        _write_card(unfinished, folder.name, blip, to, int8, differences)
        size = sum(file.stat().st_size for file in unfinished.iterdir())
    return Exported(folder=folder, differences=differences, num_bytes=size)


def _known_files(parts: list[Part]) -> set[str]:
    """What a folder may hold that is replaced; of another model's graphs too."""
    names = {part.name for part in parts}
    names |= {
        "image_embedding",
        "text_encoder",
        "matcher",
        "matcher_memory",
        "decoder",
        "question_encoder",
    }
    graphs = {f"{name}{ending}" for name in names for ending in (*SUFFIXES.values(), ".bin")}
    return {*graphs, WEIGHTS_FILE, TOKENIZER_FILE, MANIFEST_FILE, CONFIG_FILE, CARD_FILE}


def _write_graphs(
    parts: list[Part], folder: Path, to: Format, int8: bool, made: Callable[[], None]
) -> None:
    onnx_folder = OnnxFolder(folder) if to == "onnx" else None
    for part in parts:
        graph = make_graph(part)
        if onnx_folder is not None:
            onnx_folder.write(part.name, quantised(graph) if int8 else graph)
        else:
            write_openvino(graph, folder / f"{part.name}{SUFFIXES[to]}", int8)
        made()


def _difference(part: Part, file: Path) -> float:
    """The largest difference of a graph to the model, over all outputs and sizes."""
    run = open_graph(file)
    largest = 0.0
    for sizes in _CHECKED_SIZES:
        example = part.example(sizes)
        with torch.inference_mode():
            expected = part.module(*example)
        arrays = {
            port.name: tensor.numpy() for port, tensor in zip(part.inputs, example, strict=True)
        }
        for ours, found in zip(expected, run(arrays), strict=True):
            if ours.shape != found.shape:
                raise CheckpointError(
                    f"{file.name} gives {found.shape} where the model gives {tuple(ours.shape)}"
                )
            # Relative above 1 alone: of numbers near 0 a relative difference is large and means
            # nothing.
            scale = max(1.0, float(ours.abs().max()))
            largest = max(largest, float(np.abs(ours.numpy() - found).max()) / scale)
    return largest


def _check(differences: Mapping[str, float]) -> None:
    for name, difference in differences.items():
        # NaN is not below anything.
        if not difference <= TOLERANCE:
            raise CheckpointError(
                f"the graph of the {name} differs from the model by {difference:.1e}, more than "
                f"{TOLERANCE:.0e}; nothing was written"
            )


def _manifest(
    blip: Blip, parts: list[Part], to: Format, int8: bool, differences: Mapping[str, float]
) -> dict[str, Any]:
    """What a program must know besides: names and shapes, pixels, tokens, how texts are written."""
    return {
        "format": FORMAT,
        "format_version": VERSION,
        "runtime": to,
        "weights": "int8" if int8 else "float32",
        "kind": blip.kind,
        "preprocess": {
            "image_size": blip.image_size,
            "resize": "bicubic",
            "mean": list(IMAGE_MEAN),
            "std": list(IMAGE_STD),
        },
        "text": dict(_text(blip)),
        "memory": memories_of(blip.model),
        "temperature": _temperature(blip),
        "graphs": {
            part.name: {
                "file": f"{part.name}{SUFFIXES[to]}",
                "inputs": [_port(port) for port in part.inputs],
                "outputs": [_port(port) for port in part.outputs],
                "difference": differences[part.name],
            }
            for part in parts
        },
    }


def _temperature(blip: Blip) -> float | None:
    """What contrast divides cosines by; None where nothing is contrasted."""
    found = getattr(blip.model, "temperature", None)
    return None if found is None else float(found.detach())


def _text(blip: Blip) -> Iterator[tuple[str, Any]]:
    special = blip.tokenizer.special
    room = blip.tokenizer.room(blip.max_tokens)
    yield "special", {name: getattr(special, name) for name in special.__dataclass_fields__}
    # What a text begins with, by what is made of it; how many pieces of it are read; and what it
    # ends with, which of ALBEF is nothing.
    yield "first", {"embed": special.cls, "match": _first_of_match(blip), "ask": special.enc}
    yield "room", room
    yield "last", [special.sep] * (blip.max_tokens - 1 - room)
    decoding = Decoding()
    if "lm" in getattr(blip.model.config, "heads", ()):
        ids = prompt_ids(blip.tokenizer, PROMPT, blip.model.config.text.max_positions)
        yield "prompt", PROMPT
        yield "prompt_ids", ids[0].tolist()
        yield "num_beams", decoding.num_beams
        yield "max_length", decoding.max_length
        yield "min_length", decoding.min_length


def _first_of_match(blip: Blip) -> int:
    from openblip.model.albef import Albef

    special = blip.tokenizer.special
    return special.cls if isinstance(blip.model, Albef) else special.enc


def _port(port: Port) -> dict[str, Any]:
    return {"name": port.name, "shape": list(port.shape), "type": port.kind}


def _write_card(
    folder: Path, name: str, blip: Blip, to: Format, int8: bool, differences: Mapping[str, float]
) -> None:
    packages = "onnxruntime" if to == "onnx" else "openvino"
    rows = [[graph, f"{difference:.1e}"] for graph, difference in differences.items()]
    facts = CardFacts(
        kind=blip.kind,
        source=blip.source,
        vocab_size=blip.tokenizer.vocab_size,
        layout=to,
        usage=(_ASKED if blip.kind == "vqa" else _USAGE).format(
            packages=f"{packages} tokenizers pillow", name=name
        ),
        tables={
            "How far each graph is from the model" + (" (weights in int8)" if int8 else ""): [
                ["graph", "largest difference of an output"],
                *rows,
            ]
        },
    )
    write_model_card(folder, blip.model, facts)
