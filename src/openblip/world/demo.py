"""The whole loop on an embedded world: noise in, a better model out, in minutes on two cores.

And the page that shows what was measured.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from openblip.batches.augmentation import Augmentation
from openblip.capfilt.job import CapFiltSettings
from openblip.capfilt.report import write_report
from openblip.capfilt.run import run_capfilt
from openblip.capfilt.select import (
    KeepRate,
    NoiseQuality,
    keep_rates,
    noise_quality,
    precision_at_recall,
    read_scores,
)
from openblip.evaluation.captioning import CaptionResult, evaluate_caption
from openblip.evaluation.retrieval import RetrievalResult, evaluate_retrieval
from openblip.inference.decoding import Decoding
from openblip.inference.loading import load
from openblip.model import MedConfig, TextConfig, VisionConfig
from openblip.objectives.settings import CaptionerObjectives, FilterObjectives, PretrainObjectives
from openblip.recipes.finetune import PROMPT
from openblip.runtime.atomic import replace_file
from openblip.runtime.charts import bars
from openblip.runtime.errors import DataError, OtherRunError
from openblip.runtime.locks import only_here
from openblip.runtime.page import CardText, Page
from openblip.sources.row_images import row_image
from openblip.table.table import PairTable
from openblip.table.views import CaptionView, split_rows
from openblip.training.recipe import (
    DataConfig,
    OptimiserConfig,
    Recipe,
    ScheduleConfig,
    TrainConfig,
)
from openblip.training.run import train
from openblip.world import WorldConfig, is_true_caption, open_or_create_world, truth_of

# Few enough kinds and colours that a model of 0.8 million parameters learns them in minutes, and
# enough scenes that 120 test images are all different, whatever the seed.
WORLD = WorldConfig(
    web_rows=6000,
    human_rows=1500,
    val_rows=10,
    test_rows=120,
    num_kinds=5,
    num_colours=6,
    group_weights=(0.3, 0.7),
    count_weights=(1.0,),
    mention_size=0.0,
    mention_background=0.3,
    web_partial=0.0,
)


def world_pretrain(table: str) -> Recipe:
    """A MED of 0.8 million parameters at 64 px, 1000 steps of 32 pairs."""
    return Recipe(
        task="pretrain",
        data=_data(table, CaptionView(sources=("human", "web"))),
        objectives=PretrainObjectives(
            queue_size=256, momentum=0.99, alpha=0.2, min_temperature=0.05
        ),
        model=MedConfig(
            vision=VisionConfig(image_size=64, patch_size=16, width=96, depth=3, heads=4),
            text=TextConfig(
                vocab_size=1000,
                width=96,
                depth=2,
                heads=4,
                ffn_width=384,
                max_positions=64,
                dropout=0.0,
            ),
            embed_dim=64,
        ),
        tokenizer="train:600",
        optimiser=OptimiserConfig(lr=1e-3, clip_norm=1.0),
        schedule=ScheduleConfig(warmup_steps=50),
        train=TrainConfig(batch_size=32, steps=1000, checkpoint_every=400),
    )


def world_captioner(table: str, init_from: str, image_size: int) -> Recipe:
    """A captioner on the world's human captions, 400 steps."""
    return Recipe(
        task="captioner",
        data=_data(table, CaptionView(sources=("human",)), PROMPT, image_size),
        objectives=CaptionerObjectives(),
        init_from=init_from,
        optimiser=OptimiserConfig(lr=5e-4, clip_norm=1.0),
        schedule=ScheduleConfig(warmup_steps=20),
        train=TrainConfig(batch_size=32, steps=400, checkpoint_every=400),
    )


def world_filter(table: str, init_from: str, image_size: int) -> Recipe:
    """A filter on the world's human captions, 600 steps."""
    captioner = world_captioner(table, init_from, image_size)
    return replace(
        captioner,
        task="filter",
        data=replace(captioner.data, prefix=""),
        objectives=FilterObjectives(queue_size=128, momentum=0.99, min_temperature=0.05),
        train=replace(captioner.train, steps=600),
    )


def world_given_captioner(table: str, init_from: str, image_size: int) -> Recipe:
    """A captioner that reads the web text first, 3000 steps: to copy takes longer to learn."""
    captioner = world_captioner(table, init_from, image_size)
    return replace(
        captioner,
        # With 31 tokens and a [SEP] before them, 64 in all.
        data=replace(captioner.data, given="web", given_tokens=31),
        train=replace(captioner.train, steps=3000, checkpoint_every=1000),
    )


def _data(table: str, view: CaptionView, prefix: str = "", image_size: int = 64) -> DataConfig:
    # Words such as "left" and "red" leave no room for flips, colour changes and crops.
    augmentation = Augmentation(min_scale=1.0, flip=False, randaugment=False)
    return DataConfig(
        table=table,
        view=view,
        image_size=image_size,
        augmentation=augmentation,
        max_tokens=32,
        prefix=prefix,
        num_threads=1,
    )


WORLD_PRETRAIN_RECIPES: dict[str, Callable[[str], Recipe]] = {"world": world_pretrain}
WORLD_FINETUNE_RECIPES: dict[str, Callable[[str, str, int], Recipe]] = {
    "world_captioner": world_captioner,
    "world_filter": world_filter,
    "world_given_captioner": world_given_captioner,
}


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Sizes of the demonstration."""

    seed: int = 0
    """Of the world, the weights and every draw."""
    world: WorldConfig = WORLD
    """The data; its seed is replaced by `seed`."""
    pretrain_steps: int = 1000
    """Steps of the model on the noise, and of the model on the bootstrapped table."""
    captioner_steps: int = 400
    """Steps of the captioner."""
    filter_steps: int = 600
    """Steps of the filter."""
    batch_size: int = 32
    """Pairs per step."""
    threshold: float = 0.1
    """ITM probability above which a web or synthetic text is kept. Two of three pairs that the
    filter learns from are no match, and web style is new to it, so it is cautious."""
    k: int = 16
    """Retrieval candidates that matching ranks again."""


@dataclass(frozen=True)
class ModelScores:
    """How one of the two models does on the test split, without any fine-tuning."""

    retrieval: RetrievalResult
    caption: CaptionResult

    @property
    def headline(self) -> dict[str, float]:
        """The figures by which the models are compared."""
        return {
            "TR@1": self.retrieval.metrics["TR@1"],
            "IR@1": self.retrieval.metrics["IR@1"],
            "CIDEr": 100 * self.caption.metrics["CIDEr"],
        }


@dataclass(frozen=True)
class DemoResult:
    """Everything that the demonstration measured."""

    folder: Path
    config: DemoConfig
    noisy: ModelScores
    bootstrapped: ModelScores
    kept: list[KeepRate]
    quality: list[NoiseQuality]
    other_image_precision: float
    """Best precision of rejecting captions of another image at a recall of at least 0.8."""
    other_image_threshold: float
    """The threshold that gives it."""
    synthetic_truth: dict[str, float]
    """Share of synthetic captions that are true of their image: of all, kept, and rejected."""
    seconds: dict[str, float]
    """Time of each stage."""

    def to_json(self) -> str:
        """The figures as JSON."""
        models = {"noisy": self.noisy, "bootstrapped": self.bootstrapped}
        return json.dumps(
            {
                "config": asdict(self.config),
                "models": {
                    name: {
                        "headline": scores.headline,
                        "retrieval": scores.retrieval.metrics,
                        "retrieval_itc": scores.retrieval.contrastive,
                        "caption": scores.caption.metrics,
                    }
                    for name, scores in models.items()
                },
                "kept": [{**asdict(rate), "rate": rate.rate} for rate in self.kept],
                "filter": [asdict(quality) for quality in self.quality],
                "other_image_at_recall_0.8": {
                    "precision": self.other_image_precision,
                    "threshold": self.other_image_threshold,
                },
                "synthetic_truth": self.synthetic_truth,
                "seconds": self.seconds,
            },
            indent=2,
        )


def run_demo(
    folder: Path, config: DemoConfig, say: Callable[[str], None] = lambda _: None
) -> DemoResult:
    """Pre-train on noise, fine-tune captioner and filter, bootstrap, train anew, compare.

    Every stage is resumed where an earlier call in the same folder stopped.

    Args:
        folder: gets `pairs.lance`, a run directory for each training, and the reports.
        config: sizes and seed.
        say: told what begins, one line a stage.

    Raises:
        OpenBlipError: another process runs it in the same folder.
    """
    with only_here(folder, "demonstration"):
        return _run_demo(folder, config, say)


def _run_demo(folder: Path, config: DemoConfig, say: Callable[[str], None]) -> DemoResult:
    stages = _Stages(folder, config, say)
    table = stages.world()
    pretraining = world_pretrain(table)
    noisy = stages.train("noisy", pretraining, config.pretrain_steps)
    size = pretraining.data.image_size
    captioner = stages.train(
        "captioner", world_captioner(table, noisy, size), config.captioner_steps
    )
    filter_ = stages.train("filter", world_filter(table, noisy, size), config.filter_steps)
    stages.capfilt(captioner, filter_)
    view = CaptionView(sources=("human", "web", "synthetic"), itm=config.threshold)
    cleaned = replace(pretraining, data=replace(pretraining.data, view=view))
    bootstrapped = stages.train("bootstrapped", cleaned, config.pretrain_steps)
    opened = PairTable.open(table)
    scores = read_scores(opened)
    precision, threshold = precision_at_recall(scores["web"], "other_image", 0.8)
    result = DemoResult(
        folder,
        config,
        stages.evaluate("noisy", noisy),
        stages.evaluate("bootstrapped", bootstrapped),
        keep_rates(scores, [config.threshold]),
        noise_quality(scores["web"], config.threshold),
        precision,
        threshold,
        synthetic_truth(opened, config.threshold),
        stages.seconds,
    )
    with replace_file(folder / "results.json") as unfinished:
        unfinished.write_text(result.to_json(), encoding="utf-8")
    write_report(opened, folder / "capfilt.html", threshold=config.threshold)
    return result


def synthetic_truth(table: PairTable, threshold: float) -> dict[str, float]:
    """Share of an embedded world's synthetic captions that are true, by the filter's verdict.

    A caption that the world's grammar cannot read counts as not true.
    """
    verdicts: list[tuple[bool, bool]] = []
    for batch in table.scan(["meta", "synthetic", "synthetic_itm"]):
        for row in batch.to_pylist():
            for text, itm in zip(row["synthetic"] or [], row["synthetic_itm"] or [], strict=True):
                true = is_true_caption(text, truth_of(row["meta"]).scene) is True
                verdicts.append((true, itm > threshold))
    groups = {
        "all": [true for true, _ in verdicts],
        "kept": [true for true, kept in verdicts if kept],
        "rejected": [true for true, kept in verdicts if not kept],
    }
    return {name: sum(v) / len(v) if v else float("nan") for name, v in groups.items()}


_SECONDS_FILE = "seconds.json"


class _Stages:
    def __init__(self, folder: Path, config: DemoConfig, say: Callable[[str], None]) -> None:
        self.folder, self.config, self.say = folder, config, say
        self.table = folder / "pairs.lance"
        self.seconds: dict[str, float] = {}
        # A damaged file says nothing of times; the stages know themselves what is done.
        with suppress(OSError, ValueError, TypeError, AttributeError):
            told = json.loads((folder / _SECONDS_FILE).read_text(encoding="utf-8"))
            self.seconds = {str(name): float(spent) for name, spent in told.items()}

    def world(self) -> str:
        with self._stage("world", "drawing the world and writing its captions"):
            open_or_create_world(self.table, replace(self.config.world, seed=self.config.seed))
        return str(self.table)

    def train(self, name: str, recipe: Recipe, steps: int) -> str:
        loop = replace(
            recipe.train, steps=steps, batch_size=self.config.batch_size, seed=self.config.seed
        )
        with self._stage(name, f"training: {name}"):
            try:
                result = train(replace(recipe, train=loop), self.folder / name)
            except OtherRunError as error:
                raise DataError(
                    f"{self.folder} has a demonstration with other settings ({error}); give "
                    "another folder with -o"
                ) from error
        # A training ends in order when it is told to; what comes after needs the trained model.
        if result.interrupted:
            raise KeyboardInterrupt
        return str(result.model_folder)

    def capfilt(self, captioner: str, filter_: str) -> None:
        settings = CapFiltSettings(
            captioner=captioner,
            filter=filter_,
            # The prompt is not in the world's vocabulary and takes a third of the length.
            decoding=Decoding(method="nucleus", top_p=0.9, max_length=36),
            seed=self.config.seed,
        )
        with self._stage("capfilt", "CapFilt: captioning and filtering the web images"):
            run_capfilt(self.table, settings)

    def evaluate(self, name: str, model: str) -> ModelScores:
        decoding = Decoding(max_length=30, min_length=3)
        # Done anew in every call, unlike the other stages: what it took before does not count.
        self.seconds.pop(f"evaluate {name}", None)
        with self._stage(f"evaluate {name}", f"evaluating the {name} model on the test split"):
            blip, table = load(model, device="cpu"), PairTable.open(self.table)
            return ModelScores(
                evaluate_retrieval(blip, table, k=self.config.k),
                # Pre-trained models have seen no prompt.
                evaluate_caption(blip, table, prompt="", decoding=decoding),
            )

    @contextmanager
    def _stage(self, name: str, line: str) -> Iterator[None]:
        self.say(line)
        started, before = time.perf_counter(), self.seconds.get(name, 0.0)
        try:
            yield
        finally:
            # With what earlier calls took, on whose work this one goes on.
            self.seconds[name] = before + time.perf_counter() - started
            with replace_file(self.folder / _SECONDS_FILE, durable=False) as unfinished:
                unfinished.write_text(json.dumps(self.seconds), encoding="utf-8")


_EXAMPLES = 12
_WEB_EXAMPLES = 8


def write_demo_report(result: DemoResult) -> Path:
    """The demonstration's report as one self-contained HTML file in its folder."""
    total = sum(result.seconds.values())
    page = Page(
        "OpenBLIP: the whole loop on an embedded world",
        "A model pre-trained on noisy captions becomes a captioner and a filter; they clean the "
        "captions; a new model learns from the result. Everything here was measured in this folder "
        f"({total / 60:.1f} minutes, those of interrupted calls included).",
    )
    _compared(page, result)
    _filter(page, result)
    table = PairTable.open(result.folder / "pairs.lance")
    _web_examples(page, table, result.config.threshold)
    _captions(page, table, result)
    _stages(page, result)
    return page.save(result.folder / "report.html")


def _compared(page: Page, result: DemoResult) -> None:
    page.section(
        "Trained on the noise, and on the bootstrapped table",
        f"The same model, the same number of steps ({result.config.pretrain_steps}), no "
        f"fine-tuning; {result.noisy.retrieval.num_images} test images with "
        f"{result.noisy.retrieval.num_texts} captions. TR: text of an image; IR: image of a text.",
    )
    models = {"the noise": result.noisy, "the bootstrapped table": result.bootstrapped}
    columns = ["TR@1", "TR@5", "IR@1", "IR@5"]
    page.table(
        ["trained on", *columns, "CIDEr", "BLEU-4"],
        [
            [
                name,
                *(f"{scores.retrieval.metrics[column]:.1f}" for column in columns),
                f"{100 * scores.caption.metrics['CIDEr']:.1f}",
                f"{100 * scores.caption.metrics['BLEU-4']:.1f}",
            ]
            for name, scores in models.items()
        ],
        strong=[1],
    )
    page.charts(
        bars(figure, {name: scores.headline[figure] for name, scores in models.items()})
        for figure in result.noisy.headline
    )


def _filter(page: Page, result: DemoResult) -> None:
    truth = result.synthetic_truth
    page.section(
        "What CapFilt did",
        f"Synthetic captions that are true of their image: {100 * truth['all']:.1f} % of all, "
        f"{100 * truth['kept']:.1f} % of those that the filter kept, "
        f"{100 * truth['rejected']:.1f} % of those that it rejected.",
    )
    page.table(
        ["source", "kept", "of", "rate"],
        [[r.source, str(r.kept), str(r.total), f"{100 * r.rate:.1f} %"] for r in result.kept],
    )
    page.table(
        ["kind of noise", "texts", "precision", "recall"],
        [[q.kind, str(q.total), f"{q.precision:.3f}", f"{q.recall:.3f}"] for q in result.quality],
        strong=[len(result.quality) - 1],
    )
    page.note(
        f"At the threshold {result.other_image_threshold:.3f} the filter rejects captions of "
        f"another image with a precision of {result.other_image_precision:.3f} at a recall of 0.8 "
        "or more, the best there is at that recall."
    )


def _web_examples(page: Page, table: PairTable, threshold: float) -> None:
    page.section("Web and synthetic captions", "All scores are in capfilt.html, beside this page.")
    columns = ["id", "image", "image_uri", "captions", "captions_itm", "synthetic", "synthetic_itm"]
    rows = table.take(np.arange(_WEB_EXAMPLES), columns).to_pylist()
    cards = []
    for row in rows:
        texts = [
            CardText(text, f"{source} · ITM {itm:.3f}", "kept" if itm > threshold else "rejected")
            for source, names in (
                ("web", ("captions", "captions_itm")),
                ("synthetic", ("synthetic", "synthetic_itm")),
            )
            for text, itm in zip(row[names[0]] or [], row[names[1]] or [], strict=True)
        ]
        cards.append((row_image(row), texts))
    page.cards(cards)


def _captions(page: Page, table: PairTable, result: DemoResult) -> None:
    page.section("Captions of test images by both models")
    rows = split_rows(table, "test")[:_EXAMPLES]
    cards: list[tuple[Image.Image, list[CardText]]] = []
    for row in table.take(rows, ["id", "image", "image_uri", "captions"]).to_pylist():
        texts = [
            CardText(row["captions"][0], "human"),
            CardText(result.noisy.caption.captions[row["id"]], "trained on the noise"),
            CardText(
                result.bootstrapped.caption.captions[row["id"]], "trained on the bootstrapped table"
            ),
        ]
        cards.append((row_image(row), texts))
    page.cards(cards)


def _stages(page: Page, result: DemoResult) -> None:
    page.section("Time")
    page.table(
        ["stage", "seconds"], [[name, f"{spent:.1f}"] for name, spent in result.seconds.items()]
    )
