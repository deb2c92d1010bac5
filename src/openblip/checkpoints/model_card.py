"""The card of a model folder for others: what it is, how it was trained, what it reached, its use.

A training run that the model comes from tells its data, steps and losses, and what evaluations of
it found; what nobody noted is left out. Licence and intended use are the publisher's to say.
"""

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from openblip.checkpoints.families import AnyModel
from openblip.checkpoints.folder import model_below
from openblip.runtime.documents import json_text, markdown_table, read_yaml, with_nulls
from openblip.runtime.errors import CheckpointError, OpenBlipWarning, one_line

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
EVALUATIONS_FILE = "evaluations.jsonl"
"""In a run's folder: what evaluations of its checkpoints found, a line for each."""


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


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What an evaluation of a model found."""

    task: str
    """As in `openblip evaluate TASK`."""
    data: str
    """The table, or the file, of what was evaluated."""
    split: str
    metrics: Mapping[str, float]
    """Figures by name; per cent where they are shares."""
    settings: Mapping[str, Any]
    """What the protocol was told."""
    backend: str | None = None
    """What computed the model in the place of PyTorch."""


def note_evaluation(source: str, found: Evaluation) -> None:
    """Note what an evaluation found beside the training run of its model, for the model's card.

    A model that belongs to no run has no such place, and nothing is noted. Where the folder cannot
    be written to, a warning says so: the evaluation is none the worse.
    """
    run = _run_of(source)
    if run is None or not found.metrics:
        return
    # Whole, as two tables may have one name; and the same from wherever it is told.
    data = found.data if "://" in found.data else str(Path(found.data).absolute())
    about = {"step": _step_of(source), "data": data}
    line = json_text(with_nulls(vars(found) | about)) + "\n"
    try:
        # One write at the end of the file: lines of evaluations side by side do not mix.
        with (run / EVALUATIONS_FILE).open("a", encoding="utf-8") as stream:
            stream.write(line)
    except OSError as error:
        warnings.warn(
            f"{run / EVALUATIONS_FILE}: cannot be written, so that the model's card will not say "
            f"this result ({one_line(error)})",
            OpenBlipWarning,
            stacklevel=2,
        )


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
    ]
    reached = list(_evaluations(facts.source))
    if reached:
        header_row = ["task", "data", "split", "told", "result"]
        parts += ["## What it reached", markdown_table(header_row, reached)]
    parts += ["## How to use it", f"```\n{facts.usage.strip()}\n```"]
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
    yield from _logged(run / _LOG_FILE, _step_of(source))


def _logged(log: Path, until: int | None) -> Iterator[Sequence[str]]:
    """Steps, and the last figures of training and of validation up to a checkpoint's step."""
    last: dict[str, dict[str, Any]] = {}
    for entry in _entries(log):
        step = entry.get("step")
        if until is None or not isinstance(step, int) or step <= until:
            last[str(entry.get("kind"))] = entry
    for kind, entry in last.items():
        yield f"steps ({kind})", str(entry.get("step"))
        for name, value in entry.items():
            if isinstance(value, float) and name in ("loss", "itc", "itm", "lm", "accuracy"):
                yield f"{name} ({kind}, last)", f"{value:.4f}"


def _evaluations(source: str) -> Iterator[Sequence[str]]:
    """What was found of this very checkpoint; of evaluations that were told the same, the last."""
    run, step = _run_of(source), _step_of(source)
    # By the whole address of the data: two tables may have one name.
    latest: dict[tuple[str, ...], dict[str, Any]] = {}
    for entry in _entries(run / EVALUATIONS_FILE) if run is not None else ():
        metrics, settings = entry.get("metrics"), entry.get("settings")
        if entry.get("step") == step and isinstance(metrics, dict) and isinstance(settings, dict):
            told = [f"{name} {value}" for name, value in settings.items()]
            told += [f"computed by {entry['backend']}"] if entry.get("backend") else []
            names = (str(entry.get(name)) for name in ("task", "data", "split"))
            latest[(*names, ", ".join(told))] = metrics
    for (task, data, split, told_of), metrics in latest.items():
        figures = ", ".join(f"{name} {_figure(value)}" for name, value in metrics.items())
        # Where it lies is nobody else's business.
        yield task, Path(data.rstrip("/")).name, split, told_of, figures


def _figure(value: object) -> str:
    return f"{value:.1f}" if isinstance(value, int | float) else "none"


def _entries(file: Path) -> Iterator[dict[str, Any]]:
    """Objects of a file of JSON lines."""
    if not file.is_file():
        return
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:  # the line that was being written when a process was killed
            continue
        if isinstance(entry, dict):
            yield entry


def _step_of(source: str) -> int | None:
    """Steps after which a run's checkpoint was made; None for a folder of another name."""
    folder = model_below(Path(source))
    # `best` and `last` are links to it.
    name = "" if folder is None else folder.resolve().name
    digits = name.removeprefix("step-")
    return int(digits) if digits != name and digits.isdecimal() else None


def _run_of(source: str) -> Path | None:
    """The training run that a model's folder belongs to; None if it is none's."""
    path = Path(source)
    if not source or not path.exists():
        return None
    above = [path, *path.resolve().parents[:_LEVELS_BELOW_RUN]]
    return next((folder for folder in above if (folder / _RECIPE_FILE).is_file()), None)
