"""Carries out a stage in its folder; called again after an interruption, it goes on."""

import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from openblip.capfilt.fit import FitSettings, fit_table
from openblip.capfilt.job import CapFiltSettings
from openblip.capfilt.run import run_capfilt
from openblip.capfilt.scores import ScoreSettings, score_table
from openblip.checkpoints.reading import find_model
from openblip.comparison.findings import stored_units
from openblip.comparison.protocols import PROTOCOLS
from openblip.comparison.spec import SourceSpec
from openblip.comparison.stages import RESULT_FILE, Order, reading_from
from openblip.inference.blip import Blip
from openblip.inference.decoding import Decoding
from openblip.inference.embedder import load_embedder
from openblip.inference.loading import load
from openblip.model.flops import image_encoder_flops, lm_head_flops, memory_flops, text_flops
from openblip.runtime.atomic import replace_file, replace_folder
from openblip.runtime.errors import DataError, MissingHead
from openblip.runtime.references import find_object
from openblip.sources.importing import import_pairs
from openblip.table.table import PairTable
from openblip.training.recipe_file import from_plain, recipe_from_dict
from openblip.training.run import train
from openblip.world import WorldConfig, open_or_create_world

_SECONDS_FILE = "seconds.json"


def carry_out(folder: Path) -> None:
    """Do what a stage's folder orders, and write the result there.

    Raises:
        OpenBlipError: it cannot be done.
        KeyboardInterrupt: it was interrupted; what is finished is kept.
    """
    order = Order.read(folder)
    if (folder / RESULT_FILE).exists():
        # It was finished, and what it made is gone: from here on it is not finished.
        (folder / RESULT_FILE).unlink()
        (folder / _SECONDS_FILE).unlink(missing_ok=True)
    earlier, started = _seconds_spent(folder), time.perf_counter()
    try:
        result = _WORK[order.kind](order)
    finally:
        # Also of an attempt that failed: what a figure cost is all that was spent on it.
        seconds = earlier + time.perf_counter() - started
        _write(folder / _SECONDS_FILE, seconds)
    _write(folder / RESULT_FILE, {"seconds": seconds, **result})


def _seconds_spent(folder: Path) -> float:
    """Of earlier attempts that could say so before they ended."""
    try:
        return float(json.loads((folder / _SECONDS_FILE).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return 0.0


def _write(place: Path, value: object) -> None:
    with replace_file(place) as unfinished:
        unfinished.write_text(json.dumps(value), encoding="utf-8")


def _data(order: Order) -> dict[str, Any]:
    place = order.folder / "pairs.lance"
    if "world" in order.settings:
        open_or_create_world(place, from_plain(WorldConfig, order.settings["world"], "world"))
    elif "made" in order.settings:
        made = order.settings["made"]
        # Made aside: what an interrupted function has left is no table.
        aside = place.with_name("unfinished.lance")
        if not place.exists():
            shutil.rmtree(aside, ignore_errors=True)
            find_object(made["by"])(aside, **made["settings"])
            aside.rename(place)
    else:
        left_out: dict[str, Counter[str]] = {}
        for values in order.settings["sources"]:
            spec = from_plain(SourceSpec, values, "sources")
            found = import_pairs(
                spec.source, place, spec.format, spec.origin, spec.split, ids=spec.ids
            )
            if found.skipped:
                left_out.setdefault(spec.source, Counter()).update(found.skipped)
        return {"rows": len(PairTable.open(place)), "left_out": left_out}
    return {"rows": len(PairTable.open(place))}


def _train(order: Order) -> dict[str, Any]:
    places = {
        role: place if role in ("init", "tokenizer") else order.latest_table(role)
        for role, place in order.inputs.items()
    }
    if "init" in places:
        places["init"] = str(find_model(places["init"]))
    recipe = reading_from(recipe_from_dict(order.settings["recipe"]), places)
    trained = train(recipe, order.folder / "run")
    if trained.interrupted:
        raise KeyboardInterrupt
    return {"seconds": trained.seconds, "flops": trained.flops, "steps": trained.steps}


def _capfilt(order: Order) -> dict[str, Any]:
    place = order.folder / "pairs.lance"
    # A job adds columns: to a copy, for the table may be read by other stages, or be the user's.
    if not place.exists():
        _copy_table(order.latest_table(), place)
    settings = CapFiltSettings(
        captioner=order.inputs["captioner"],
        filter=order.inputs["filter"],
        decoding=from_plain(Decoding, order.settings["decoding"], "decoding"),
        prompt=order.settings["prompt"],
        num_captions=order.settings["num_captions"],
        seed=order.settings["seed"],
    )
    # Stages run side by side already.
    found = run_capfilt(place, settings, processes=1)
    if found.failed:
        raise DataError(f"{place}: {'; '.join(found.failed)}")
    if order.settings.get("fit"):
        table = PairTable.open(place)
        score_table(table, ScoreSettings(seed=settings.seed))
        fit_table(PairTable.open(place), FitSettings(seed=settings.seed))
    return {"flops": _capfilt_flops(place, settings), "errors": found.errors}


def _evaluate(order: Order) -> dict[str, Any]:
    settings = dict(order.settings)
    protocol, split = PROTOCOLS[settings.pop("task")], settings.pop("split")
    read = load_embedder if protocol.needs_contrast_alone else load
    model, table = read(order.inputs["model"]), order.table()
    try:
        chosen = from_plain(protocol.settings, settings, "settings")
        units = protocol.evaluate(model, table, split=split, **vars(chosen)).units
    except MissingHead as error:
        # Said once, so that the same command does not try it again.
        return {"units": {}, "missing": str(error)}
    return {"units": stored_units(units)}


def _copy_table(source: str, target: Path) -> None:
    """A table of the same rows, without a second copy of its data files, which never change."""
    if not Path(source).is_dir():
        raise DataError(f"{source}: CapFilt in a comparison needs a table on this machine")
    with replace_folder(target) as unfinished:
        shutil.copytree(source, unfinished, copy_function=_link, dirs_exist_ok=True)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


_WORK: dict[str, Callable[[Order], dict[str, Any]]] = {
    "data": _data,
    "train": _train,
    "capfilt": _capfilt,
    "evaluate": _evaluate,
}


# Texts whose length is looked at.
_MEASURED = 10_000


def _capfilt_flops(table: Path, settings: CapFiltSettings) -> float:
    """Operations of captioning the web rows of a finished table, and of scoring their texts.

    A text is taken to have the mean length, and counts as one pass over all of it, for each beam;
    both contrast and matching are computed of each given and synthetic text.
    """
    captioner = load(settings.captioners[0], device="cpu")
    judge = load(settings.filters[0], device="cpu")
    images, written, given = _texts(table)
    prompt = [settings.prompt + text for text in written]
    total = _writing(captioner, images, prompt, settings.decoding)
    return total + _judging(judge, images, [*given, *written])


def _texts(table: Path) -> tuple[int, list[str], list[str]]:
    """Web images, and their synthetic and given texts."""
    images = 0
    written: list[str] = []
    given: list[str] = []
    for batch in PairTable.open(table).scan(["origin", "captions", "synthetic"]):
        for row in batch.to_pylist():
            if row["origin"] == "web":
                images += 1
                written += row["synthetic"] or []
                given += row["captions"] or []
    return images, written, given


def _writing(model: Blip, images: int, texts: list[str], decoding: Decoding) -> float:
    config, beams = model.med.config, decoding.num_beams if decoding.method == "beam" else 1
    tokens = _mean_tokens(model, texts)
    patches = config.vision.num_patches
    total = image_encoder_flops(config, images) + memory_flops(config, images)
    total += beams * text_flops(config, len(texts), tokens, patches)
    return float(total + beams * lm_head_flops(config, len(texts), tokens))


def _judging(model: Blip, images: int, texts: list[str]) -> float:
    config, tokens = model.med.config, _mean_tokens(model, texts)
    patches = config.vision.num_patches
    total = image_encoder_flops(config, images) + memory_flops(config, images)
    total += text_flops(config, len(texts), tokens, reads_first=True)
    return float(total + text_flops(config, len(texts), tokens, patches, reads_first=True))


def _mean_tokens(model: Blip, texts: list[str]) -> int:
    sample = texts[:: max(1, len(texts) // _MEASURED)]
    if not sample:
        return 0
    return round(model.tokenizer.encode(sample, model.max_tokens).mask.sum().item() / len(sample))
