"""From a comparison file to stages: which table, training, job and evaluation each figure needs."""

import hashlib
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from functools import cache
from os.path import expandvars
from pathlib import Path
from typing import Any

from openblip.batches.tokenizer import tokenizer_file
from openblip.batches.wordpiece import settings_beside
from openblip.checkpoints.fingerprints import RememberedHashes, default_hashes, sha256_of
from openblip.checkpoints.reading import find_model, read_outline
from openblip.comparison.protocols import PROTOCOLS
from openblip.comparison.spec import ComparisonSpec, DataSpec, MadeSpec, ModelSpec, SourceSpec
from openblip.comparison.stages import Given, Stage, mix_role, reading_from
from openblip.evaluation.settings import RetrievalSettings
from openblip.inference.embedder import embedder_fingerprint, is_published_clip
from openblip.recipes import named_recipe
from openblip.recipes.baselines import as_albef, as_clip, as_unimodal
from openblip.recipes.finetune import FINETUNE_RECIPES
from openblip.recipes.pretrain import PRETRAIN_RECIPES
from openblip.runtime.errors import DataError, OpenBlipError, RecipeError
from openblip.runtime.references import find_object, is_reference
from openblip.sources.paths import matching_paths
from openblip.table.reviews import verdicts_digest
from openblip.table.table import PairTable
from openblip.table.views import CaptionView
from openblip.training.ignored import refuse_ignored
from openblip.training.recipe import DataConfig, Recipe
from openblip.training.recipe_file import (
    FieldError,
    from_plain,
    nearest,
    read_recipe,
    recipe_from_dict,
    recipe_to_dict,
    to_plain,
)
from openblip.world import WorldConfig
from openblip.world.demo import WORLD_FINETUNE_RECIPES, WORLD_PRETRAIN_RECIPES
from openblip.world.scene import config_to_dict

# Where an input lies does not count for a fingerprint: a stage's recipe names its inputs by these.
_TABLE, _INIT = "@table", "@init"
# Bytes from which a hash of a file is remembered from one command to the next.
_LARGE = 64 << 20
_NAMES = {"init": _INIT, "tokenizer": "@tokenizer"}
# Fields of a recipe that `settings` leave alone, and what decides them.
_ELSEWHERE = {
    "data.table": "`data`, a name of the comparison's data",
    "init_from": "`init`, the name of a model",
    "train.seed": "the comparison's `seeds`",
}
_LATER_FIELDS = {
    *("max_unknown", "score", "weights", "weight_temperature", "weight_floor"),
    *("contrast_text", "decoder_text"),
}
_PRETRAIN = PRETRAIN_RECIPES | WORLD_PRETRAIN_RECIPES
_FINETUNE = FINETUNE_RECIPES | WORLD_FINETUNE_RECIPES
_TRAINED_AS = {"clip": as_clip, "albef": as_albef, "unimodal": as_unimodal}


class StageGraph:
    """The stages of a comparison, each made once, whatever asks for it.

    Every method raises `FieldError` where the file asks for what cannot be.
    """

    def __init__(self, spec: ComparisonSpec) -> None:
        self._spec = spec
        self._made: dict[tuple[str, str, int], Stage | Given] = {}
        self._recipes: dict[str, Recipe] = {}
        self._begun: list[str] = []

    def evaluation(self, model: str, task: str, seed: int) -> Stage:
        """How a model does on a task."""
        spec = self._spec.tasks[task]
        settings = from_plain(
            PROTOCOLS[spec.task].settings, spec.settings, f"tasks.{task}.settings"
        )
        values = _plain(settings)
        if values.get("weigh_on") == spec.split:
            raise FieldError(
                f"tasks.{task}.settings.weigh_on",
                f"tasks.{task}: weigh_on is {spec.split!r}, the split that is evaluated; give "
                "another one",
            )
        for name in ("ranking", "weigh_on"):
            if name in values and values[name] == getattr(RetrievalSettings, name):
                # Stages of before this setting count as finished.
                del values[name]
        return Stage(
            "evaluate",
            f"{model} on {task}, seed {seed}",
            {"task": spec.task, "split": spec.split, **values},
            {"model": self.model(model, seed), "table": self.data(spec.data, seed)},
        )

    def data(self, name: str | None, seed: int) -> Stage | Given:
        """A table by its name; the first one without."""
        name = name or next(iter(self._spec.data))
        return self._once("data", name, seed)

    def model(self, name: str, seed: int) -> Stage | Given:
        """A model by its name."""
        return self._once("models", name, seed)

    def _once(self, part: str, name: str, seed: int) -> Stage | Given:
        key = (part, name, seed)
        if key not in self._made:
            field = f"{part}.{name}"
            self._enter(field)
            try:
                self._made[key] = (
                    self._make_data(name, self._spec.data[name], seed)
                    if part == "data"
                    else self._make_model(name, self._spec.models[name], seed)
                )
            except FieldError:
                raise
            except OpenBlipError as error:
                raise FieldError(field, str(error)) from error
            finally:
                self._begun.pop()
        return self._made[key]

    def _enter(self, field: str) -> None:
        if field in self._begun:
            way = " needs ".join([*self._begun, field])
            raise FieldError(field, f"{field} needs itself: {way}")
        self._begun.append(field)

    def _make_data(self, name: str, spec: DataSpec, seed: int) -> Stage | Given:
        title = f"{name}, seed {seed}"
        if spec.table is not None:
            return _given_table(spec.table)
        if spec.capfilt is not None:
            job = spec.capfilt
            settings = {
                "prompt": job.prompt,
                "num_captions": job.num_captions,
                "decoding": job.decoding.stored(),
                "seed": seed,
            }
            # Said only where it is so: stages of before this setting keep their fingerprints.
            if job.fit:
                settings["fit"] = True
            inputs = {
                "table": self.data(job.of, seed),
                "captioner": self.model(job.captioner, seed),
                "filter": self.model(job.filter, seed),
            }
            return Stage("capfilt", title, settings, inputs)
        if spec.world is not None:
            values = {"seed": seed, **spec.world}
            config = from_plain(WorldConfig, values, f"data.{name}.world")
            return Stage("data", title, {"world": config_to_dict(config)})
        if spec.made is not None:
            made, placed = _made(spec.made, seed)
            return Stage("data", title, {"made": made}, placed={"made": placed})
        places = [replace(one, source=expandvars(one.source)) for one in spec.sources]
        seen = [_source_digest(source.source) for source in places]
        settings = {"sources": [*map(_plain_source, spec.sources)], "files": seen}
        return Stage(
            "data", title, settings, placed={**settings, "sources": [*map(_plain_source, places)]}
        )

    def _make_model(self, name: str, spec: ModelSpec, seed: int) -> Stage | Given:
        if spec.is_given:
            return _given(spec, seed)
        recipe = self.recipe(name)
        inputs: dict[str, Stage | Given] = {**_named_inputs(recipe)}
        init, data = self._inherited(name, "init"), self._inherited(name, "data")
        inputs["table"] = self.data(data, seed)
        if init is not None:
            inputs["init"] = self.model(init, seed)
        names = {role: _NAMES.get(role, _TABLE) for role in inputs}
        recipe = reading_from(recipe, names)
        seeded = replace(recipe, train=replace(recipe.train, seed=seed))
        settings = {"recipe": _without_later_fields(recipe_to_dict(seeded))}
        # Where states of images lie decides nothing.
        del settings["recipe"]["data"]["states"]
        # Likewise of stages of before this field.
        if not recipe.train.freeze:
            del settings["recipe"]["train"]["freeze"]
        if verdicts := _verdicts(seeded, inputs):
            settings["verdicts"] = verdicts
        return Stage("train", f"{name}, seed {seed}", settings, inputs)

    def recipe(self, name: str) -> Recipe:
        """What a model is trained by; the table and the model that it begins with are but named."""
        if name not in self._recipes:
            field = f"models.{name}"
            self._enter(f"{field} (recipe)")
            try:
                self._recipes[name] = self._make_recipe(field, self._spec.models[name])
            finally:
                self._begun.pop()
        return self._recipes[name]

    def _make_recipe(self, field: str, spec: ModelSpec) -> Recipe:
        if spec.like is not None:
            recipe = self.recipe(spec.like)
        elif spec.recipe is not None:
            recipe = self._named_recipe(spec.recipe, spec.init, field)
        else:
            raise FieldError(field, f"{field} is there already: it has no recipe to begin with")
        if spec.init is not None and recipe.model is not None:
            # The same training, from weights that are there.
            recipe = replace(recipe, model=None, tokenizer=None, init_from=_INIT)
        if spec.view is not None:
            view = from_plain(CaptionView, spec.view, f"{field}.view")
            recipe = replace(recipe, data=replace(recipe.data, view=view))
        if spec.trained_as is not None:
            if recipe.task != "pretrain" or recipe.model is None:
                raise FieldError(
                    f"{field}.trained_as",
                    f"{field}.trained_as is for the pre-training of a BLIP from fresh weights",
                )
            recipe = _TRAINED_AS[spec.trained_as](recipe)
        recipe = _with_settings(recipe, spec.settings, f"{field}.settings")
        given = {
            "view": _names("data.view", spec.view or {}),
            "settings": _names("", spec.settings),
        }
        for place, names in given.items():
            try:
                refuse_ignored(recipe, set(names))
            except RecipeError as error:
                raise FieldError(f"{field}.{place}", str(error)) from error
        return recipe

    def _named_recipe(self, name: str, init: str | None, field: str) -> Recipe:
        if Path(name).suffix in (".yaml", ".yml"):
            recipe = read_recipe(Path(name))
            recipe = replace(recipe, data=replace(recipe.data, table=_TABLE))
            if recipe.init_from is None:
                return recipe
            _needed(init, name, field)
            return replace(recipe, init_from=_INIT)
        ours = _PRETRAIN | _FINETUNE
        if name not in ours and not is_reference(name):
            raise FieldError(
                f"{field}.recipe", f"{field}.recipe: no {name!r}{nearest(name, list(ours))}"
            )
        if name in _FINETUNE:
            init = _needed(init, name, field)
        # What a function of somebody else begins with is for it to say, and for its caller.
        start = () if name in _PRETRAIN or init is None else (_INIT, self._image_size(init))
        try:
            return named_recipe(name, ours, _TABLE, *start)
        except RecipeError as error:
            raise FieldError(f"{field}.recipe", f"{field}.recipe: {error}") from error

    def _image_size(self, model: str) -> int:
        spec = self._spec.models[model]
        if not spec.is_given:
            return self.recipe(model).data.image_size
        # Of the first seed: one recipe, and so one size of images, is that of all seeds.
        return read_outline(find_model(_place(spec, self._spec.seeds[0]))).image_size

    def _inherited(self, name: str, field: str) -> str | None:
        """A field of a model, or of the nearest one that it is like."""
        spec = self._spec.models[name]
        value: str | None = getattr(spec, field)
        return self._inherited(spec.like, field) if value is None and spec.like else value


def _made(spec: MadeSpec, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a function is called with, and digests of its file and of what its settings name.

    Twice: as the comparison's file says it, and with the places that variables stand for.
    """
    function = find_object(spec.by)
    if not inspect.isfunction(function):
        raise RecipeError(f"{spec.by} is no function")
    settings = {
        name: expandvars(value) if isinstance(value, str) else value
        for name, value in spec.settings.items()
    }
    # What a variable of the environment has filled in is a place, and what lies there an input.
    named = [value for name, value in settings.items() if value != spec.settings[name]]
    # A changed function makes another table; what its file imports is not looked at.
    code = Path(inspect.getfile(function)).read_bytes()
    told = {
        "by": spec.by,
        "files": [_source_digest(place) for place in named],
        "code": hashlib.sha256(code).hexdigest()[:12],
    }
    written = {**told, "settings": {**spec.settings, "seed": seed}}
    return written, {**told, "settings": {**settings, "seed": seed}}


def _given(spec: ModelSpec, seed: int) -> Given:
    """A model that is there.

    Raises:
        CheckpointError: it is not.
        RecipeError: it stands in the wrong field.
    """
    place = _place(spec, seed)
    is_clip = is_published_clip(place)
    if is_clip != (spec.published_clip is not None):
        found, right = ("a", "published_clip") if is_clip else ("no", "checkpoint")
        raise RecipeError(f"{place} is {found} CLIP of others: give it as {right}")
    return Given(place, embedder_fingerprint(place))


def _place(spec: ModelSpec, seed: int) -> str:
    """Of a model that is there; a published one is the same for all seeds."""
    if spec.checkpoint is None:
        return expandvars(spec.published_clip or "")
    return expandvars(spec.checkpoint).replace("{seed}", str(seed))


def _names(part: str, settings: Mapping[str, Any]) -> Iterator[str]:
    """Names of all fields that are set, also of those in a mapping: `objectives.losses`."""
    for name, value in settings.items():
        whole = f"{part}.{name}" if part else name
        yield whole
        if isinstance(value, list):
            value = {str(place): each for place, each in enumerate(value)}
        if isinstance(value, Mapping):
            yield from _names(whole, value)


def _with_settings(recipe: Recipe, settings: Mapping[str, Any], field: str) -> Recipe:
    """The recipe with fields changed that are named with dots."""
    values = recipe_to_dict(recipe)
    _check_settings(settings, field)
    for name, value in settings.items():
        *parents, last = name.split(".")
        part: Any = values
        for parent in parents:
            part = part.get(parent) if isinstance(part, dict) else None
        if not isinstance(part, dict) or last not in part:
            known = list(part) if isinstance(part, dict) else [f.name for f in fields(Recipe)]
            prefix = f"{'.'.join(parents)}." if isinstance(part, dict) and parents else ""
            raise FieldError(
                f"{field}.{name}", f"{field}: {name} is unknown{nearest(last, known, prefix)}"
            )
        part[last] = value
    try:
        return recipe_from_dict(values)
    except RecipeError as error:
        place = error.field if isinstance(error, FieldError) else ""
        raise FieldError(f"{field}.{place}", f"{field}: {error}") from error


def _without_later_fields(values: dict[str, Any]) -> dict[str, Any]:
    """Stages of before these fields count as finished: what leaves them as they are tells none."""
    data = values["data"]
    parts: list[tuple[dict[str, Any], object]] = [(data, DataConfig(table=""))]
    parts += [(part["view"], CaptionView()) for part in (data, *data["mix"])]
    for part, default in parts:
        for name in _LATER_FIELDS & part.keys():
            if part[name] == getattr(default, name):
                del part[name]
    return values


def _named_inputs(recipe: Recipe) -> dict[str, Given]:
    """What a recipe names itself, by role: further tables, and a tokenizer's files."""
    inputs = {mix_role(at): _given_table(part.table) for at, part in enumerate(recipe.data.mix)}
    if recipe.tokenizer is not None and recipe.trained_vocabulary is None:
        file = tokenizer_file(Path(expandvars(recipe.tokenizer)))
        content = b"".join(part.read_bytes() for part in (file, *settings_beside(file)))
        digest = hashlib.sha256(content).hexdigest()
        inputs["tokenizer"] = Given(str(file), f"{digest}{file.suffix}")
    return inputs


def _needed(init: str | None, recipe: str, field: str) -> str:
    if init is None:
        raise FieldError(field, f"{field}: the recipe {recipe} starts from a model: give init")
    return init


def _given_table(place: str) -> Given:
    table = PairTable.open(expandvars(place))
    return Given(table.uri, table.fingerprint, table.version)


def _verdicts(recipe: Recipe, inputs: Mapping[str, Stage | Given]) -> dict[str, str]:
    """What people say by now of tables that were there, if a training asks for it, as digests.

    The log of verdicts lies beside a table and makes no version of it.
    """
    views = {"table": recipe.data.view}
    views |= {mix_role(at): part.view for at, part in enumerate(recipe.data.mix)}
    asked = [inputs[role] for role, view in views.items() if "reviewed" in view.sources]
    return {
        role: verdicts_digest(PairTable.open(given.place).verdicts())
        for role, given in inputs.items()
        if isinstance(given, Given) and given in asked
    }


def _check_settings(settings: Mapping[str, Any], field: str) -> None:
    """Refuse what is decided elsewhere, whether given by its name or within a part."""
    parts = {name: value for name, value in settings.items() if isinstance(value, Mapping)}
    within = (f"{name}.{key}" for name, part in parts.items() for key in part)
    for name in (*settings, *within):
        if name in _ELSEWHERE:
            raise FieldError(
                f"{field}.{name}", f"{field}: {name} is not set here, but by {_ELSEWHERE[name]}"
            )


def _source_digest(source: str) -> str:
    """Of the names and contents of a source's files, wherever they lie."""
    places = matching_paths(source)
    if not places:
        unset = "; a variable of the environment is not set" if "$" in source else ""
        raise DataError(f"{source} does not exist{unset}")
    seen = []
    for place in places:
        files = sorted(place.rglob("*")) if place.is_dir() else [place]
        for file in files:
            if file.is_file():
                status = file.stat()
                times = status.st_size, status.st_mtime_ns, status.st_ctime_ns
                # A folder's own name is left out: a copy may have another one.
                name = str(file.relative_to(place)) if place.is_dir() else file.name
                seen.append((str(file), name, *times))
    return _content_digest(tuple(seen))


@cache
def _content_digest(files: tuple[tuple[str, str, int, int, int], ...]) -> str:
    """Of files by place, told name, size and times, so that none is read again for each seed."""
    digest, remembered = hashlib.sha256(), RememberedHashes(default_hashes())
    for place, name, size, *_ in files:
        # Many are small and quickly read; few places are left to remember hashes at.
        hash_file = remembered.hash_file if size >= _LARGE else sha256_of
        try:
            digest.update(f"{name}\0{hash_file(Path(place))}\n".encode())
        except OSError as error:
            raise DataError(f"{place}: cannot be read ({error.strerror})") from error
    return digest.hexdigest()[:12]


def _plain_source(source: SourceSpec) -> dict[str, Any]:
    values: dict[str, Any] = to_plain(source)
    if source.ids == SourceSpec.ids:
        # Tables of before this field count as finished.
        del values["ids"]
    return values


def _plain(settings: object) -> dict[str, Any]:
    """The settings of an evaluation as plain values; of a decoding as jobs note it."""
    values: dict[str, Any] = to_plain(settings)
    decoding = getattr(settings, "decoding", None)
    return values if decoding is None else {**values, "decoding": decoding.stored()}
