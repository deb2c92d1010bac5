"""Captioning, matching and embedding beside `transformers`, in one interleaved run.

    python benchmarks/inference.py                          # BLIP-base, float32, CPU, 2 threads
    python benchmarks/inference.py --only caption --rounds 9 --output table.md
    python benchmarks/inference.py --device cuda --dtype bfloat16 --batch-sizes 1 32 256 --jpeg 1024

Both sides have the same random weights, and get the same images and ids. That their outputs agree
is checked before anything is timed. `transformers` is used as someone who knows it would: for many
texts about an image, the image is encoded once. Peak memory is that of a process of its own.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from PIL import Image

from openblip.batches.tokenizer import SpecialTokens, TokenBatch
from openblip.checkpoints.huggingface import to_huggingface
from openblip.checkpoints.huggingface_config import HuggingFaceKind
from openblip.inference.decoding import Decoding
from openblip.inference.encoding import EncodedImages
from openblip.inference.generation import RunningDecoder, generate, nucleus_probabilities
from openblip.inference.image_sources import image_batches
from openblip.inference.matching import embed_texts, match_logits
from openblip.model import Med, MedConfig
from openblip.model.flops import image_encoder_flops
from openblip.training.utilisation import product_rates

SPECIAL = SpecialTokens(pad=0, unk=100, cls=101, sep=102, mask=103, dec=30522, enc=30523)
PROMPT = (SPECIAL.dec, 1037, 3861, 1997)
LENGTH = 20
TEXTS_PER_IMAGE = 32
TOP_P = 0.9
BEAM = {"num_beams": 3, "max_length": LENGTH, "min_length": LENGTH}
SINGLE = {"max_length": LENGTH, "min_length": LENGTH}
GOALS = {
    ("caption beam 3", 8): 3.0,
    ("caption beam 3", 1): 2.0,
    ("match 32 texts per image", 1): 4.0,
    ("embed images", 8): 1.2,
    ("embed texts", 32): 1.2,
}


@dataclass(frozen=True)
class Work:
    """Something that both sides can do, and how their results are compared."""

    name: str
    batch: int
    ours: Callable[[], object]
    theirs: Callable[[], object]
    compare: Callable[[object, object], str]


# --- The two sides -------------------------------------------------------------------------------


def make_med(preset: str, image_size: int) -> Med:
    torch.manual_seed(0)
    return Med(MedConfig.preset(preset, image_size=image_size)).eval()


PEERS: dict[HuggingFaceKind, type] = {
    "caption": transformers.BlipForConditionalGeneration,
    "retrieval": transformers.BlipForImageTextRetrieval,
}


def make_peer(med: Med, kind: HuggingFaceKind):
    """Its model, whose weights are the tensors themselves where they are not fused here."""
    tensors, config = to_huggingface(med, SPECIAL, kind)
    peer = PEERS[kind](transformers.BlipConfig.from_dict(config)).eval()
    peer.load_state_dict(tensors, assign=True)
    peer.tie_weights()
    # Its numbers of positions are no weights, and have stayed on the processor.
    return peer.to(med.image_encoder.class_token.device).requires_grad_(False)


# --- What is done --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Inputs:
    """Images, and texts of 9 to 16 tokens, `[CLS]` first."""

    images: torch.Tensor
    ids: torch.Tensor
    mask: torch.Tensor

    @property
    def tokens(self) -> TokenBatch:
        return TokenBatch(self.ids.cpu(), self.mask.cpu())


def make_inputs(images: int, texts: int, config: MedConfig, like: torch.Tensor) -> Inputs:
    generator = torch.Generator().manual_seed(images + 1000 * texts)
    side = config.vision.image_size
    lengths = torch.randint(9, 17, (texts,), generator=generator)
    ids = torch.randint(1000, 30000, (texts, 16), generator=generator)
    mask = torch.arange(16) < lengths[:, None]
    ids[:, 0] = SPECIAL.cls
    ids[torch.arange(texts), lengths - 1] = SPECIAL.sep
    pixels = torch.randn(images, 3, side, side, generator=generator)
    return Inputs(pixels.to(like), ids.masked_fill(~mask, 0).to(like.device), mask.to(like.device))


def encode(med: Med, images: torch.Tensor) -> EncodedImages:
    with torch.no_grad():
        return EncodedImages(med, med.encode_images(images))


def prompt_of(images: int, device) -> torch.Tensor:
    return torch.tensor(PROMPT, device=device).expand(images, -1)


def caption(med: Med, images: torch.Tensor, decoding: Decoding) -> torch.Tensor:
    memory = encode(med, images).decoder_memory
    seeds = list(range(len(images))) if decoding.method == "nucleus" else None
    prompt = prompt_of(len(images), images.device)
    texts = generate(med.text, memory, prompt, decoding, SPECIAL, seeds)
    return torch.tensor([text.token_ids for (text,) in texts])


@torch.no_grad()
def peer_caption(peer, images: torch.Tensor, settings: dict) -> torch.Tensor:
    # It drops the last id, which its tokenizer makes an end.
    end = torch.full((len(images), 1), SPECIAL.sep, device=images.device)
    ids = torch.cat([prompt_of(len(images), images.device), end], dim=1)
    return peer.generate(
        pixel_values=images, input_ids=ids, attention_mask=torch.ones_like(ids), **settings
    ).cpu()


def match(med: Med, inputs: Inputs, texts_per_image: int) -> torch.Tensor:
    images = len(inputs.images)
    memory = encode(med, inputs.images).encoder_memory
    rows = torch.arange(images * texts_per_image).view(images, -1).tolist()
    return torch.cat(match_logits(med, memory, inputs.tokens, rows))


@torch.no_grad()
def peer_match(peer, inputs: Inputs, texts_per_image: int) -> torch.Tensor:
    hidden = peer.vision_model(pixel_values=inputs.images).last_hidden_state
    hidden = hidden.repeat_interleave(texts_per_image, dim=0)
    states = peer.text_encoder(
        input_ids=inputs.ids,
        attention_mask=inputs.mask.long(),
        encoder_hidden_states=hidden,
        encoder_attention_mask=torch.ones(hidden.shape[:2], device=hidden.device),
    ).last_hidden_state
    return peer.itm_head(states[:, 0]).float().cpu()


@torch.no_grad()
def peer_embed_images(peer, images: torch.Tensor) -> torch.Tensor:
    hidden = peer.vision_model(pixel_values=images).last_hidden_state
    return F.normalize(peer.vision_proj(hidden[:, 0]).float(), dim=-1)


@torch.no_grad()
def peer_embed_texts(peer, inputs: Inputs) -> torch.Tensor:
    states = peer.text_encoder(
        input_ids=inputs.ids, attention_mask=inputs.mask.long()
    ).last_hidden_state
    return F.normalize(peer.text_proj(states[:, 0]).float(), dim=-1)


@torch.no_grad()
def peer_encode(peer, images: torch.Tensor) -> torch.Tensor:
    return peer.vision_model(pixel_values=images).last_hidden_state


# --- Agreement -----------------------------------------------------------------------------------


def same_ids(exact: bool) -> Callable[[object, object], str]:
    def compare(ours: torch.Tensor, theirs: torch.Tensor) -> str:
        equal = int((ours == theirs).all(dim=1).sum())
        assert equal == len(ours) or not exact, f"ids differ:\n{ours}\n{theirs}"
        return f"{equal} of {len(ours)} id sequences equal"

    return compare


def close(limit: float) -> Callable[[object, object], str]:
    def compare(ours: torch.Tensor, theirs: torch.Tensor) -> str:
        difference = float((ours - theirs).abs().max())
        assert difference <= limit, f"results differ by {difference}"
        return f"differ by at most {difference:.1e}"

    return compare


def same_first_step(med: Med, peer, images: torch.Tensor, limit: float):
    """Drawn texts differ; the work, and the distribution that is drawn from, do not."""

    @torch.no_grad()
    def compare(ours: torch.Tensor, theirs: torch.Tensor) -> str:
        assert ours.shape == theirs.shape, "not as many steps"
        decoder = RunningDecoder(med.text, encode(med, images).decoder_memory, LENGTH)
        logits = decoder.start(prompt_of(len(images), images.device), 1)
        logits[:, SPECIAL.sep] = float("-inf")
        own = nucleus_probabilities(logits, top_p=TOP_P)
        end = torch.full((len(images), 1), SPECIAL.sep, device=images.device)
        ids = torch.cat([prompt_of(len(images), images.device), end], dim=1)
        scores = peer.generate(
            pixel_values=images,
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            return_dict_in_generate=True,
            output_scores=True,
            **peer_nucleus(LENGTH),
        ).scores[0]
        difference = float((own - scores.softmax(dim=-1)).abs().max())
        assert difference <= limit, f"first steps differ by {difference}"
        return f"first step's probabilities differ by at most {difference:.1e}"

    return compare


def peer_nucleus(length: int) -> dict:
    lengths = {"max_length": length, "min_length": length}
    return {"do_sample": True, "num_beams": 1, "top_p": TOP_P, "top_k": 0, **lengths}


def all_work(med: Med, peers: dict, batch_sizes: list[int]) -> list[Work]:
    like = med.image_encoder.class_token
    exact = like.dtype == torch.float32
    limit = 1e-4 if exact else 1.0
    work = []
    captioner, matcher = peers["caption"], peers["retrieval"]
    for batch in batch_sizes:
        paired = make_inputs(batch, batch, med.config, like)
        images = paired.images
        methods = (
            ("beam 3", Decoding(scoring="transformers", **BEAM), BEAM, same_ids(exact)),
            (
                "greedy",
                Decoding(method="greedy", **SINGLE),
                {"num_beams": 1, "do_sample": False, **SINGLE},
                same_ids(exact),
            ),
            (
                "nucleus",
                Decoding(method="nucleus", top_p=TOP_P, **SINGLE),
                peer_nucleus(LENGTH),
                same_first_step(med, captioner, images, limit),
            ),
        )
        for name, decoding, settings, compare in methods:
            work.append(
                Work(
                    f"caption {name}",
                    batch,
                    lambda images=images, decoding=decoding: caption(med, images, decoding),
                    lambda i=images, settings=settings: peer_caption(captioner, i, settings),
                    compare,
                )
            )
        work += [
            Work(
                "match 1 text per image",
                batch,
                lambda paired=paired: match(med, paired, 1),
                lambda paired=paired: peer_match(matcher, paired, 1),
                close(limit),
            ),
            Work(
                "embed images",
                batch,
                lambda images=images: encode(med, images).embed,
                lambda images=images: peer_embed_images(matcher, images),
                close(limit),
            ),
            Work(
                "image encoder",
                batch,
                lambda images=images: encode(med, images).hidden,
                lambda images=images: peer_encode(matcher, images),
                close(10 * limit),
            ),
        ]
    many = make_inputs(1, TEXTS_PER_IMAGE, med.config, like)
    work += [
        Work(
            f"match {TEXTS_PER_IMAGE} texts per image",
            1,
            lambda: match(med, many, TEXTS_PER_IMAGE),
            lambda: peer_match(matcher, many, TEXTS_PER_IMAGE),
            close(limit),
        ),
        Work(
            "embed texts",
            TEXTS_PER_IMAGE,
            lambda: embed_texts(med, many.tokens),
            lambda: peer_embed_texts(matcher, many),
            close(limit),
        ),
    ]
    return work


# --- Measuring -----------------------------------------------------------------------------------


def timed(function: Callable[[], object], device: str) -> float:
    started = time.perf_counter()
    function()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def product_peaks(like: torch.Tensor) -> dict[str, float]:
    """FLOP/s of matrix products on this machine now, by library."""
    size = 2048 if like.device.type == "cpu" else 8192
    return product_rates(like.device, like.dtype, size, seconds=0.5)


def measure(work: list[Work], rounds: int, like: torch.Tensor):
    """Seconds of every pair per round, and the peaks per round."""
    seconds = {(w.name, w.batch): ([], []) for w in work}
    peaks: list[dict[str, float]] = []
    for number in range(rounds):
        peaks.append(product_peaks(like))
        for w in work:
            sides = ((0, w.ours), (1, w.theirs))
            # Who goes first alternates.
            for side, function in sides if number % 2 == 0 else sides[::-1]:
                seconds[w.name, w.batch][side].append(timed(function, like.device.type))
        print(f"round {number + 1} of {rounds} done", file=sys.stderr, flush=True)
    return seconds, {name: statistics.median(p[name] for p in peaks) for name in peaks[0]}


MEMORY_WORK = {"caption beam 3, batch 8": "caption", "match 32 texts per image": "retrieval"}


def peak_memory(med: Med, options) -> dict[tuple[str, str], dict[str, float]]:
    """MB of each side for some work, each in a process of its own with its own model alone."""
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, kind in MEMORY_WORK.items():
            heads = ("lm",) if kind == "caption" else ("itc", "itm")
            with torch.device("meta"):
                own = Med(replace(med.config, heads=heads)).state_dict()
            state = {name: tensor for name, tensor in med.state_dict().items() if name in own}
            torch.save(state, Path(folder) / "ours.pt")
            make_peer(med, kind).save_pretrained(Path(folder) / "theirs")
            for side in ("ours", "theirs"):
                done = subprocess.run(
                    [
                        *(sys.executable, __file__, "--child", name, side, "--weights", folder),
                        *("--threads", str(options.threads), "--preset", options.preset),
                        *("--image-size", str(options.image_size)),
                    ],
                    check=True,
                    stdout=subprocess.PIPE,
                    text=True,
                )
                results[name, side] = json.loads(done.stdout.splitlines()[-1])
    return results


def run_child(name: str, side: str, options) -> None:
    """Loads one side's model, does the work, and prints the memory that it took."""
    kind = MEMORY_WORK[name]
    config = MedConfig.preset(options.preset, image_size=options.image_size)
    like = torch.empty(0)
    if side == "ours":
        heads = ("lm",) if kind == "caption" else ("itc", "itm")
        with torch.device("meta"):
            model = Med(replace(config, heads=heads))
        state = torch.load(Path(options.weights) / "ours.pt", mmap=True)
        model.load_state_dict(state, assign=True)
        model.eval()
    else:
        model = PEERS[kind].from_pretrained(Path(options.weights) / "theirs").eval()
    loaded = peak_megabytes()
    if kind == "caption":
        images = make_inputs(8, 1, config, like).images
        if side == "ours":
            caption(model, images, Decoding(scoring="transformers", **BEAM))
        else:
            peer_caption(model, images, BEAM)
    else:
        inputs = make_inputs(1, TEXTS_PER_IMAGE, config, like)
        (match if side == "ours" else peer_match)(model, inputs, TEXTS_PER_IMAGE)
    print(json.dumps({"loaded": loaded, "peak": peak_megabytes()}))


def peak_megabytes() -> float:
    """Most memory that this process had at a time; Linux alone tells it apart from its parent's."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    (line,) = [x for x in status.read_text(encoding="utf-8").splitlines() if "VmHWM" in x]
    return int(line.split()[1]) / 2**10


def from_jpeg(med: Med, count: int, batch: int, decoding: Decoding) -> float:
    """Images per second from JPEG files to ids, reading and decoding included."""
    generator = np.random.default_rng(0)
    like = med.image_encoder.class_token
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{number}.jpg" for number in range(count)]
        for file in files:
            coarse = generator.integers(0, 256, (15, 20, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize((640, 480)).save(file, quality=90)
        for warm_up in (True, False):
            started = time.perf_counter()
            chosen = files[: 2 * batch] if warm_up else files
            for pixels in image_batches(chosen, med.config.vision.image_size, batch):
                caption(med, pixels.to(like), decoding)
    return count / (time.perf_counter() - started)


# --- Report --------------------------------------------------------------------------------------


def machine() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    names = [
        line.split(":")[1].strip()
        for line in (info.read_text(encoding="utf-8").splitlines() if info.exists() else [])
        if line.startswith("model name")
    ]
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{len(names)} cores of {names[0] if names else 'unknown'} ({capability})"


def table(seconds) -> list[str]:
    lines = [
        "| work | batch | openblip s | transformers s | ratio: median (min to max) | goal |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for (name, batch), (ours, theirs) in seconds.items():
        ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
        goal = GOALS.get((name, batch))
        lines.append(
            f"| {name} | {batch} | {statistics.median(ours):.3f} | {statistics.median(theirs):.3f} "
            f"| **{statistics.median(ratios):.2f}** ({min(ratios):.2f} to {max(ratios):.2f}) "
            f"| {f'{goal:.1f}' if goal else ''} |"
        )
    return lines


def against_the_floor(med: Med, seconds, peaks: dict[str, float]) -> list[str]:
    """Our image encoder beside the products that the machine can do, and captions beside it."""
    lines = ["", "Matrix-product peaks measured in the same run (float operations per second):", ""]
    lines += [f"- {name}: {peak / 1e9:.0f} G" for name, peak in peaks.items()]
    for (name, batch), (ours, theirs) in seconds.items():
        if name != "image encoder":
            continue
        done = image_encoder_flops(med.config, batch)
        shares = [
            f"{100 * done / statistics.median(side) / peak:.0f} %"
            for side in (ours, theirs)
            for peak in peaks.values()
        ]
        lines.append(
            f"- image encoder, batch {batch}: openblip at {' / '.join(shares[: len(peaks)])} of "
            f"{' / '.join(peaks)}, transformers at {' / '.join(shares[len(peaks) :])} "
            "(goal for openblip: 70 %)"
        )
        if ("caption beam 3", batch) in seconds:
            whole = seconds["caption beam 3", batch][0]
            ratios = [a / b for a, b in zip(whole, ours, strict=True)]
            lines.append(
                f"- caption beam 3, batch {batch}, takes {statistics.median(ratios):.2f} "
                f"({min(ratios):.2f} to {max(ratios):.2f}) times its image encoder (goal at batch "
                "8: 1.35)"
            )
    return lines


def memory_table(results) -> list[str]:
    lines = ["", "| peak memory, MB (after loading) | openblip | transformers |"]
    lines.append("| --- | ---: | ---: |")
    for name in MEMORY_WORK:
        cells = [
            f"{results[name, side]['peak']:.0f} ({results[name, side]['loaded']:.0f})"
            for side in ("ours", "theirs")
        ]
        lines.append(f"| {name} | {cells[0]} | {cells[1]} |")
    return lines


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="base")
    parser.add_argument("--image-size", type=int, default=384)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="work whose name contains this")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--jpeg", type=int, default=0, help="caption so many files, end to end")
    parser.add_argument("--no-memory", action="store_true", help="leave out peak memory")
    parser.add_argument("--output", type=Path, help="write the table there as Markdown")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--weights", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    # Convolutions of a GPU would round to 10 bits, which the peers alone have.
    torch.backends.cudnn.allow_tf32 = False
    transformers.logging.set_verbosity_error()
    if options.child:
        run_child(*options.child, options)
        return
    med = make_med(options.preset, options.image_size)
    memory = {}
    if options.device == "cpu" and not options.no_memory:
        memory = peak_memory(med, options)
    med = med.to(options.device, getattr(torch, options.dtype))
    peers = {kind: make_peer(med, kind) for kind in PEERS}
    work = [w for w in all_work(med, peers, options.batch_sizes) if options.only in w.name]
    agreements = [f"- {w.name}, batch {w.batch}: {w.compare(w.ours(), w.theirs())}" for w in work]
    print("\n".join(agreements), file=sys.stderr, flush=True)
    seconds, peaks = measure(work, options.rounds, med.image_encoder.class_token)
    lines = [
        f"# Inference: BLIP-{options.preset}, {options.image_size} px, {options.dtype}, "
        f"{options.device}",
        "",
        f"{machine()}, {options.threads} threads, torch {torch.__version__}, transformers "
        f"{transformers.__version__}; {options.rounds} interleaved rounds, medians. Captions have "
        f"exactly {LENGTH} ids, {len(PROMPT)} of them the prompt; texts that are matched 9 to 16.",
        "",
        f"Command: `{' '.join(['python benchmarks/inference.py', *sys.argv[1:]])}`",
        "",
        *table(seconds),
        *against_the_floor(med, seconds, peaks),
        *(memory_table(memory) if memory else []),
        "",
        "Results of both sides, compared in the same run:",
        "",
        *agreements,
    ]
    if options.jpeg:
        for method in (Decoding(method="greedy", **SINGLE), Decoding(**BEAM)):
            rate = from_jpeg(med, options.jpeg, max(options.batch_sizes), method)
            lines += ["", f"From JPEG files, {method.method}: {rate:.0f} images/s"]
    print("\n".join(lines))
    if options.output:
        options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
