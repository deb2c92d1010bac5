"""Captions beside what a person would take instead on a processor, in one interleaved run.

    python benchmarks/anchors.py --output benchmarks/results/anchors.md
    python benchmarks/anchors.py --preset tiny --image-size 64 --batch 2 --rounds 1

Ours, `transformers`, ONNX Runtime and OpenVINO have the same random weights, and get the same
images: the image encoder, one step of decoding, and whole captions, of one image and of a batch,
with weights of each type. The exported graphs are searched by our own beam search, so that what is
compared is how products are computed. Whether all write the same ids, and how far outputs are from
ours in float32, stands beside the times. What this processor or a runtime lacks is said.
"""
# ruff: noqa: E402 - what comes before the libraries must.

import argparse
import copy
import gc
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

# Before PyTorch is loaded, as the command does.
from openblip.runtime.threads import spin_briefly

spin_briefly()

import numpy as np
import torch
import transformers

from inference import BEAM, PROMPT, SPECIAL, caption, encode, machine, make_peer, peer_caption
from openblip.deploy.graphs import Part, parts_of
from openblip.deploy.runtimes import OnnxFolder, make_graph, open_graph, quantised, write_openvino
from openblip.inference.decoding import Decoding
from openblip.inference.generation import RunningDecoder, beam_search
from openblip.model import Med, MedConfig

OURS = "openblip"
BEAMS = BEAM["num_beams"]
# Of a step: tokens that are there already.
CACHED = 12
# In a step's time a clock and a busy machine weigh more: so many are timed as one.
STEPS = 8
RUNTIMES = (("ONNX Runtime", "onnx", ".onnx"), ("OpenVINO", "openvino", ".xml"))
# Of /proc/cpuinfo: what decides which products a processor is good at.
KNOWN_FLAGS = (
    *("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16"),
    *("amx_tile", "amx_int8", "amx_bf16"),
)


@dataclass(frozen=True)
class Side:
    """One of those that are compared, with weights of one type."""

    name: str
    encode: Callable[[torch.Tensor], torch.Tensor]
    """Images to the states of their patches."""
    stepper: Callable[[torch.Tensor], Callable[[], torch.Tensor]]
    """Images to a function that decodes one token behind `CACHED` ones, again and again."""
    caption: Callable[[torch.Tensor], torch.Tensor]
    """Images to ids."""


# --- Ours and theirs -----------------------------------------------------------------------------


def ours(med: Med) -> Side:
    dtype = med.image_encoder.class_token.dtype

    def stepper(images: torch.Tensor) -> Callable[[], torch.Tensor]:
        decoder = RunningDecoder(med.text, encode(med, images.to(dtype)).decoder_memory, 20)
        with torch.inference_mode():
            decoder.start(torch.full((len(images), CACHED), PROMPT[0]), BEAMS)
        ids, cache = torch.full((len(images) * BEAMS,), PROMPT[1]), decoder._cache

        @torch.inference_mode()
        def step() -> torch.Tensor:
            cache.length = CACHED
            return decoder.step(ids)

        return step

    return Side(
        OURS,
        lambda images: encode(med, images.to(dtype)).hidden,
        stepper,
        lambda images: caption(med, images.to(dtype), Decoding(**BEAM)),
    )


def rounded(model: torch.nn.Module) -> torch.nn.Module:
    """A model whose linear layers multiply 8-bit integers, by torchao, as users have it."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    quantize_(model, Int8DynamicActivationInt8WeightConfig())
    return model


def theirs(peer, dtype: torch.dtype) -> Side:
    @torch.inference_mode()
    def encoded(images: torch.Tensor) -> torch.Tensor:
        return peer.vision_model(pixel_values=images.to(dtype)).last_hidden_state

    def stepper(images: torch.Tensor) -> Callable[[], torch.Tensor]:
        states = encoded(images).repeat_interleave(BEAMS, 0)
        given = {"encoder_hidden_states": states, "use_cache": True}
        last = torch.full((len(states), 1), PROMPT[1])
        with torch.inference_mode():
            prompt = torch.full((len(states), CACHED), PROMPT[0])
            cache = peer.text_decoder(input_ids=prompt, **given).past_key_values

        @torch.inference_mode()
        def step() -> torch.Tensor:
            found = peer.text_decoder(input_ids=last, past_key_values=cache, **given)
            cache.crop(-1)
            return found.logits[:, -1]

        return step

    return Side(
        "transformers", encoded, stepper, lambda images: peer_caption(peer, images.to(dtype), BEAM)
    )


# --- Exported graphs -----------------------------------------------------------------------------


class Graphs:
    """An exported captioner: its graphs, opened by a runtime."""

    def __init__(self, folder: Path, ending: str, parts: dict[str, Part], precision: str) -> None:
        threads = torch.get_num_threads()
        self.runs = {
            name: open_graph(folder / f"{name}{ending}", threads, precision) for name in parts
        }
        self.parts = parts

    def run(self, name: str, *tensors: np.ndarray) -> list[np.ndarray]:
        ports = self.parts[name].inputs
        return self.runs[name]({p.name: t for p, t in zip(ports, tensors, strict=True)})

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self.run("image_encoder", images.numpy())[0])

    def decoder(self, images: torch.Tensor) -> "GraphDecoder":
        return GraphDecoder(self, self.run("image_memory", self.encode(images).numpy()))

    def caption(self, images: torch.Tensor) -> torch.Tensor:
        prompt = torch.tensor(PROMPT).expand(len(images), -1)
        texts = beam_search(self.decoder(images), prompt, Decoding(**BEAM), SPECIAL.sep)
        return torch.tensor([text.token_ids for (text,) in texts])


class GraphDecoder:
    """What our beam search asks of a decoder, of a graph."""

    def __init__(self, graphs: Graphs, memory: list[np.ndarray]) -> None:
        self.graphs, self.memory = graphs, memory
        self.past: list[np.ndarray] = []

    def start(self, prompt_ids: torch.Tensor, texts_per_image: int) -> torch.Tensor:
        port = self.graphs.parts["decoder"].inputs[-1]
        shape = (len(prompt_ids), 1, port.shape[2], 0, port.shape[4])
        self.past = [np.zeros(shape, np.float32)] * len(self.memory)
        logits = self._logits(prompt_ids[:, None])
        self.past = [each.repeat(texts_per_image, 1) for each in self.past]
        return logits.repeat_interleave(texts_per_image, 0)

    def step(self, ids: torch.Tensor) -> torch.Tensor:
        return self._logits(ids.view(*self.past[0].shape[:2], 1))

    def select(self, rows: torch.Tensor, images: torch.Tensor) -> None:
        beams = self.past[0].shape[1]
        if not torch.equal(rows, torch.arange(len(self.past[0]) * beams)):
            shape = self.past[0].shape[2:]
            flat = [each.reshape(-1, *shape)[rows.numpy()] for each in self.past]
            self.past = [each.reshape(len(images), -1, *shape) for each in flat]
        if len(images) < len(self.memory[0]):
            self.memory = [each[images.numpy()] for each in self.memory]

    def _logits(self, ids: torch.Tensor) -> torch.Tensor:
        logits, *self.past = self.graphs.run("decoder", ids.numpy(), *self.memory, *self.past)
        return torch.from_numpy(logits[:, :, -1]).flatten(0, 1)


def of_graphs(name: str, graphs: Graphs) -> Side:
    def stepper(images: torch.Tensor) -> Callable[[], torch.Tensor]:
        decoder = graphs.decoder(images)
        decoder.start(torch.full((len(images), CACHED), PROMPT[0]), BEAMS)
        past, ids = decoder.past, torch.full((len(images) * BEAMS,), PROMPT[1])

        def step() -> torch.Tensor:
            decoder.past = past
            return decoder.step(ids)

        return step

    return Side(name, graphs.encode, stepper, graphs.caption)


def written(med: Med, folder: Path) -> dict[str, Part]:
    """The parts of a captioner, whose graphs are in four folders, one for each kind."""
    parts = {part.name: part for part in parts_of(med)}
    done = folder / "done"
    if done.exists():
        return parts
    places = {(k, to): folder / k / to for k in ("float32", "int8") for to in ("onnx", "openvino")}
    for place in places.values():
        place.mkdir(parents=True, exist_ok=True)
    onnx_folders = {kind: OnnxFolder(places[kind, "onnx"]) for kind in ("float32", "int8")}
    for name, part in parts.items():
        graph = make_graph(part)
        write_openvino(graph, places["float32", "openvino"] / f"{name}.xml")
        if find_spec("nncf"):
            write_openvino(graph, places["int8", "openvino"] / f"{name}.xml", int8=True)
        onnx_folders["int8"].write(name, quantised(graph))
        # Last: it takes the weights out of the graph.
        onnx_folders["float32"].write(name, graph)
        print(f"{name} written", file=sys.stderr, flush=True)
    done.touch()
    return parts


def sides_of(weights: str, med: Med, folder: Path, parts: dict[str, Part]) -> list[Side]:
    """Who has these weights."""
    dtype = torch.bfloat16 if weights == "bfloat16" else torch.float32
    own = med if dtype == torch.float32 else copy.deepcopy(med).to(dtype)
    peer = make_peer(own, "caption")
    # Ours has no 8-bit integers but through a runtime: they stand beside float32.
    sides = [ours(own)]
    if weights != "int8":
        sides.append(theirs(peer, dtype))
    elif find_spec("torchao"):
        # Its weights are ours where they are not fused here: what is rounded is a copy.
        sides.append(theirs(rounded(copy.deepcopy(peer)), dtype))
    kind = "int8" if weights == "int8" else "float32"
    for name, to, ending in RUNTIMES:
        # ONNX Runtime has no products in bfloat16 on a processor.
        lacks = weights == "bfloat16" and to == "onnx"
        if lacks or not (folder / kind / to / f"decoder{ending}").exists():
            continue
        precision = "bf16" if weights == "bfloat16" else "f32"
        sides.append(of_graphs(name, Graphs(folder / kind / to, ending, parts, precision)))
    return sides


# --- Measuring -----------------------------------------------------------------------------------


def timed(function: Callable[[], object], repeats: int) -> float:
    started = time.perf_counter()
    for _ in range(repeats):
        function()
    return (time.perf_counter() - started) / repeats


Works = dict[str, dict[str, Callable[[], object]]]


def works_of(sides: Sequence[Side], images: torch.Tensor, batch: int) -> Works:
    """For each work what each side does."""
    works: Works = {}
    for count in dict.fromkeys((1, batch)):
        some = images[:count]
        told = f"{count} image{'s' * (count > 1)}"
        works[f"image encoder, {told}"] = {s.name: _bound(s.encode, some) for s in sides}
        works[f"a step, {told} x {BEAMS} beams"] = {s.name: s.stepper(some) for s in sides}
        works[f"captions, {told}"] = {s.name: _bound(s.caption, some) for s in sides}
    return works


def _bound(function: Callable[[torch.Tensor], object], images: torch.Tensor):
    return lambda: function(images)


def measured(works: Works, rounds: int, weights: str) -> dict[tuple[str, str], list[float]]:
    """Seconds of each work and side in each round."""
    seconds: dict[tuple[str, str], list[float]] = {}
    for number in range(rounds):
        for work, functions in works.items():
            repeats = STEPS if work.startswith("a step") else 1
            # Who goes first alternates.
            names = list(functions)[:: -1 if number % 2 else 1]
            for name in names:
                taken = timed(functions[name], repeats)
                seconds.setdefault((work, name), []).append(taken)
        print(f"{weights}: round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    return seconds


@dataclass(frozen=True)
class Outputs:
    """What a side gives for some images."""

    states: torch.Tensor
    logits: torch.Tensor
    ids: torch.Tensor

    @classmethod
    def of(cls, side: Side, images: torch.Tensor) -> "Outputs":
        """They warm the side up as well."""
        # Steps last: a caption warms up what they need.
        ids = side.caption(images)[:, : BEAM["max_length"]]
        return cls(side.encode(images).float(), side.stepper(images)().float(), ids)

    def against(self, reference: "Outputs") -> str:
        states = float((self.states - reference.states).abs().max())
        logits = float((self.logits - reference.logits).abs().max())
        equal = int((self.ids == reference.ids).all(dim=1).sum())
        return f"| {states:.1e} | {logits:.1e} | {equal} of {len(self.ids)} |"


# --- Report --------------------------------------------------------------------------------------


def table(works: Works, seconds: dict[tuple[str, str], list[float]]) -> list[str]:
    names = list(next(iter(works.values())))
    lines = [
        f"| work | {' | '.join(f'{name} s' for name in names)} |",
        f"| --- |{' ---: |' * len(names)}",
    ]
    for work in works:
        cells = []
        for name in names:
            pairs = zip(seconds[work, name], seconds[work, OURS], strict=True)
            ratios = [own / their for their, own in pairs]
            told = "" if name == OURS else f" (**{statistics.median(ratios):.2f}** x ours)"
            cells.append(f"{statistics.median(seconds[work, name]):.3f}{told}")
        lines.append(f"| {work} | {' | '.join(cells)} |")
    return [*lines, ""]


def flags() -> list[str]:
    """What of the processor's instructions matters here."""
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8") if info.exists() else ""
    found = next((line for line in text.splitlines() if line.startswith("flags")), "").split()
    return [flag for flag in KNOWN_FLAGS if flag in found]


def head(options: argparse.Namespace) -> list[str]:
    names = ("torch", "transformers", "onnxruntime", "openvino")
    return [
        f"# Anchors: BLIP-{options.preset}, {options.image_size} px, beam {BEAMS}, "
        f"{BEAM['max_length']} ids",
        "",
        f"{machine()}; instructions: {', '.join(flags()) or 'unknown'}. {options.threads} threads; "
        f"{', '.join(f'{name} {version(name)}' for name in names)}. Medians of {options.rounds} "
        "interleaved rounds; a ratio above 1 is faster than ours. Load of the machine at the "
        f"end: {os.getloadavg()[0]:.1f}.",
        "",
        f"Command: `{' '.join(['python benchmarks/anchors.py', *sys.argv[1:]])}`",
        "",
    ]


def compared(
    weights: str,
    outputs: dict[str, Outputs],
    reference: Outputs,
    works: Works,
    seconds: dict[tuple[str, str], list[float]],
) -> list[str]:
    """One type of weights: the times, and how far outputs are from ours in float32."""
    return [
        f"## {weights}",
        "",
        *table(works, seconds),
        "| largest difference to ours in float32 | states of patches | logits | equal captions |",
        "| --- | ---: | ---: | ---: |",
        *(f"| {name} {found.against(reference)}" for name, found in outputs.items()),
        "",
    ]


def lacking(weights: str, has_nncf: bool) -> list[str]:
    """What is not timed, and why."""
    if weights == "bfloat16":
        return ["ONNX Runtime has no products in bfloat16 on a processor.", ""]
    if weights != "int8":
        return []
    told = ["openblip computes in float32 here: its 8-bit integers are those of ONNX Runtime."]
    told += ["transformers has them by torchao."] if find_spec("torchao") else []
    told += ["OpenVINO rounds weights alone (nncf)."] if has_nncf else ["OpenVINO's need nncf."]
    return [" ".join(told), ""]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="base")
    parser.add_argument("--image-size", type=int, default=384)
    parser.add_argument("--weights", nargs="+", default=["float32", "bfloat16", "int8"])
    parser.add_argument("--batch", type=int, default=8, help="images at once")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--graphs", type=Path, help="keep the exported graphs in this folder")
    parser.add_argument("--output", type=Path, help="write the tables there as Markdown")
    return parser.parse_args()


def measure_all(options: argparse.Namespace, folder: Path) -> None:
    torch.manual_seed(0)
    config = MedConfig.preset(options.preset, image_size=options.image_size)
    med = Med(MedConfig(vision=config.vision, text=config.text, heads=("lm",))).eval()
    parts = written(med, folder)
    size, count = options.image_size, max(options.batch, 2)
    images = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))
    lines: list[str] = []
    reference = Outputs.of(ours(med), images[:2])
    for weights in options.weights:
        if weights == "bfloat16" and not any("bf16" in flag for flag in flags()):
            lines += ["## bfloat16", "", "This processor has no instructions for bfloat16.", ""]
            continue
        sides = sides_of(weights, med, folder, parts)
        outputs = {side.name: Outputs.of(side, images[:2]) for side in sides}
        works = works_of(sides, images, options.batch)
        seconds = measured(works, options.rounds, weights)
        lines += compared(weights, outputs, reference, works, seconds)
        lines += lacking(weights, find_spec("nncf") is not None)
        # After every type: the next one may not fit into memory.
        if options.output:
            options.output.write_text("\n".join([*head(options), *lines]), encoding="utf-8")
        del sides, works
        gc.collect()
    print("\n".join([*head(options), *lines]))


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    if options.graphs is not None:
        measure_all(options, options.graphs)
        return
    with tempfile.TemporaryDirectory() as folder:
        measure_all(options, Path(folder))


if __name__ == "__main__":
    main()
