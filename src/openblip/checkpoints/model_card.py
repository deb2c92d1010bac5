"""The card of a model folder for others: what it is, what it was trained on, and how it is used.

A training run that the model comes from tells its data, steps and losses; what nobody noted is
left out. Licence and intended use are the publisher's to say.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from openblip.checkpoints.families import AnyModel
from openblip.runtime.documents import markdown_table, read_yaml
from openblip.runtime.errors import CheckpointError

CARD_FILE = "README.md"
Layout = Literal["transformers", "onnx", "openvino"]

# What the hub sorts models by; it has no word for matching.
_PIPELINES = {
    "captioner": "image-to-text",
    "pretrain": "image-to-text",
    "vqa": "visual-question-answering",
    "dual_encoder": "zero-shot-image-classification",
}
_LIBRARIES: dict[Layout, str] = {
    "transformers": "transformers",
    "onnx": "onnxruntime",
    "openvino": "openvino",
}
_USES: dict[str, str] = {
    "lm": "write captions",
    "itc": "embed images and texts in one space",
    "itm": "tell how well a text describes an image",
    "multimodal": "read a text together with an image",
}
# A run keeps its checkpoints in runs/NAME/checkpoints/STEP, and its recipe in runs/NAME.
_LEVELS_BELOW_RUN = 2
_RECIPE_FILE, _LOG_FILE = "recipe.yaml", "metrics.jsonl"


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What a card says of a model that its weights do not tell."""

    kind: str
    """What the model was trained as."""
    source: str
    """What it was loaded from: a folder, a file, or a name of the hub."""
    vocab_size: int
    """Tokens that its tokenizer knows."""
    layout: Layout
    """For what the folder is written."""
    usage: str
    """Code, or a command, that uses the folder."""
    tables: Mapping[str, Sequence[Sequence[str]]] | None = None
    """Further tables by their titles, each with its header."""


def write_model_card(folder: Path, model: AnyModel, facts: CardFacts) -> None:
    """Write `README.md` into a folder.

    Raises:
        OSError: it cannot be written.
    """
    import yaml

    header = yaml.safe_dump(_header(facts), sort_keys=False)
    training = list(_training(facts.source))
    parts = [
        f"---\n{header}---",
        f"# {_name(facts.source)}",
        f"A BLIP model ([Li et al., 2022](https://arxiv.org/abs/2201.12086)) of the kind "
        f"{facts.kind}, written by OpenBLIP for {_LIBRARIES[facts.layout]}. To be filled in by "
        "whoever publishes it: the licence (`license` above), and what it may be used for.",
        "## What it is",
        markdown_table(["what", "value"], list(_sizes(model, facts))),
        "## How it was trained",
        markdown_table(["what", "value"], training)
        if training
        else "Nothing was noted with the weights; the publisher knows.",
        "## How to use it",
        f"```\n{facts.usage.strip()}\n```",
    ]
    for title, (first, *rows) in (facts.tables or {}).items():
        parts += [f"## {title}", markdown_table(first, rows)]
    (folder / CARD_FILE).write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _header(facts: CardFacts) -> dict[str, Any]:
    header: dict[str, Any] = {"license": "unknown", "library_name": _LIBRARIES[facts.layout]}
    if facts.kind in _PIPELINES:
        header["pipeline_tag"] = _PIPELINES[facts.kind]
    return header | {"tags": ["blip", "openblip"]}


def _name(source: str) -> str:
    """The run's or the file's name: a path of somebody's machine is nobody else's business."""
    run = _run_of(source)
    if run is not None:
        return run.resolve().name
    return Path(source).name or "A BLIP model"


def _without_place(name: str) -> str:
    """A run or a name of the hub, without the folders of a machine above it."""
    run = name.split("/checkpoints/")[0]
    return Path(run).name if Path(run).is_absolute() else run


def _sizes(model: AnyModel, facts: CardFacts) -> Iterator[Sequence[str]]:
    vision, text = model.config.vision, model.config.text
    heads = getattr(model.config, "heads", ())
    uses = "; ".join(_USES[head] for head in heads if head in _USES)
    yield "kind", facts.kind
    if uses:
        yield "can", uses
    yield "parameters", f"{sum(weight.numel() for weight in model.parameters()):,}"
    yield "images", f"{vision.image_size} x {vision.image_size} pixels, RGB"
    encoder = vision.backbone or f"vision transformer, patches of {vision.patch_size} pixels"
    yield "image encoder", f"{encoder}, {vision.depth} layers, {vision.width} channels"
    yield "text", f"{text.depth} layers, {text.width} channels"
    yield "vocabulary", f"{facts.vocab_size:,} tokens"


def _training(source: str) -> Iterator[Sequence[str]]:
    """What a run's recipe and its last lines say."""
    run = _run_of(source)
    if run is None:
        return
    recipe, _ = read_yaml(run / _RECIPE_FILE, CheckpointError)
    if not isinstance(recipe, dict):
        return
    data, train = recipe.get("data") or {}, recipe.get("train") or {}
    view = data.get("view") or {}
    yield "task", str(recipe.get("task"))
    yield "data", Path(str(data.get("table"))).name
    yield "texts", ", ".join(view.get("sources") or ()) or "all"
    if view.get("itm") is not None:
        yield "least match probability", f"{view['itm']:g}"
    if recipe.get("init_from"):
        yield "began as", _without_place(str(recipe["init_from"]))
    yield "batch size", str(train.get("batch_size"))
    optimiser = recipe.get("optimiser") or {}
    yield "learning rate", f"{optimiser.get('lr')}"
    yield "seed", str(train.get("seed"))
    yield from _logged(run / _LOG_FILE)


def _logged(log: Path) -> Iterator[Sequence[str]]:
    """Steps, and the last figures of training and of validation."""
    if not log.is_file():
        return
    last: dict[str, dict[str, Any]] = {}
    for line in log.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:  # the line that was being written when a run was killed
            continue
        last[str(entry.get("kind"))] = entry
    for kind, entry in last.items():
        yield f"steps ({kind})", str(entry.get("step"))
        for name, value in entry.items():
            if isinstance(value, float) and name in ("loss", "itc", "itm", "lm", "accuracy"):
                yield f"{name} ({kind}, last)", f"{value:.4f}"


def _run_of(source: str) -> Path | None:
    """The training run that a model's folder belongs to; None if it is none's."""
    path = Path(source)
    if not source or not path.exists():
        return None
    above = [path, *path.resolve().parents[:_LEVELS_BELOW_RUN]]
    return next((folder for folder in above if (folder / _RECIPE_FILE).is_file()), None)
