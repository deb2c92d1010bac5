"""`openblip export`."""

from pathlib import Path
from typing import Literal

import tyro

from openblip.runtime.atomic import check_output
from openblip.runtime.errors import RecipeError
from openblip.runtime.ranges import Count


def export(
    model: tyro.conf.Positional[str],
    folder: tyro.conf.Positional[Path],
    /,
    *,
    to: Literal["onnx", "openvino"] = "onnx",
    int8: bool = False,
    image_size: Count | None = None,
    overwrite: bool = False,
    json: bool = False,
) -> int:
    """Write a model as graphs that run without PyTorch, with its tokenizer and a card.

    Example: openblip export demo/captioner captioner_onnx --to onnx

    Args:
        model: model folder, run directory, original file, https address or hub repository.
        folder: where the graphs are written.
        to: the runtime: ONNX Runtime (also in browsers and on phones), or OpenVINO (processors).
        int8: weights as 8-bit integers: smaller, a little less exact; the card says by how much.
        image_size: side of the images that the graphs take, in pixels; positions are interpolated.
        overwrite: replace the exported model that is there.
        json: print the report as JSON.
    """
    from openblip.cli.output import print_json
    from openblip.inference.export import export as write
    from openblip.inference.loading import load

    check_output(folder, "FOLDER", is_folder=True)
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise RecipeError(f"{folder} is there: give another name, or --overwrite")
    found = write(load(model, device="cpu", image_size=image_size), folder, to, int8=int8)
    if json:
        print_json(
            {"folder": str(found.folder), "bytes": found.num_bytes}
            | {"differences": found.differences}
        )
        return 0
    for name, difference in found.differences.items():
        print(f"{name}: differs from the model by at most {difference:.1e}")
    print(f"{found.folder}: {found.num_bytes / 1e6:,.1f} MB for {to}")
    return 0
