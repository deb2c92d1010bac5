"""Noise, CapFilt and clean texts on photographs that a GPU's memory holds: a part of gpu.py.

    python benchmarks/photographs.py FLICKR8K photographs.zip      # all of them, in 34 MiB
    python benchmarks/gpu.py --photographs photographs.zip --only photographs

The experiment of `flickr8k.yaml`, at three quarters of noise, without its tables, so that it needs
nothing but torch, tokenizers and the two packages of `imagenet.py`: the same texts, models, steps
and rates, each model with the tokenizer of its own texts. It differs in this: photographs come as
WebP of 224 px; texts count by the matching probability alone; retrieval is by contrast; batches,
nucleus draws and fresh weights are other ones of the same kind.
"""

import argparse
import copy
import io
import json
import random
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from PIL import Image
from torch import Tensor

from openblip import metrics
from openblip.batches.loader import Batch
from openblip.batches.shuffle import named_seed
from openblip.batches.text import clean_caption
from openblip.batches.tokenizer import FirstToken, TextTokenizer, TokenBatch
from openblip.batches.transforms import eval_transform
from openblip.inference.decoding import Decoding
from openblip.inference.encoding import EncodedImages
from openblip.inference.generation import generate
from openblip.inference.matching import embed_texts, match_probabilities
from openblip.model import Med, MedConfig
from openblip.objectives.finetune import CaptionerTask
from openblip.objectives.pretrain import PretrainTask
from openblip.objectives.settings import FilterObjectives, PretrainObjectives
from openblip.objectives.task import AnyTask, StepPosition
from openblip.training.loop import Trainer
from openblip.training.optimiser import build_optimiser, trained_parameters, warmup_cosine_lr
from openblip.training.parallelism import Processes
from openblip.training.recipe import OptimiserConfig

NOISE, THRESHOLD, VOCABULARY = 0.75, 0.33, 3000
SEEDS = (0, 1, 2)
PROMPT = "a picture of "
WRITTEN = Decoding(method="nucleus", top_p=0.9, min_length=8, max_length=24)
SHOWN = Decoding(num_beams=3, min_length=6, max_length=24)
AT_ONCE = 256
T = TypeVar("T")
CONTRAST: dict[str, Any] = {"queue_size": 0, "momentum": 0.99, "min_temperature": 0.02}


@dataclass(frozen=True)
class Stage:
    """How long and how fast a model learns."""

    steps: int
    batch_size: int
    lr: float
    warmup: int
    min_lr: float = 0.0


@dataclass(frozen=True)
class Experiment:
    """What is trained, and for how long; the defaults are those of `flickr8k.yaml`."""

    model: MedConfig
    pretrain: Stage = Stage(600, 128, 1.5e-3, 50, 1e-6)
    captioner: Stage = Stage(200, 64, 3e-4, 20)
    filter: Stage = Stage(200, 64, 5e-4, 20)


def lite0_experiment() -> Experiment:
    """With EfficientNet-Lite0 of ImageNet as image encoder (benchmarks/imagenet.py)."""
    from openblip.model.backbones import settled

    config = MedConfig.preset("tiny", image_size=224)
    vision = settled(replace(config.vision, backbone="imagenet:lite0"))
    text = replace(config.text, width=128, depth=2)
    return Experiment(replace(config, vision=vision, text=text, embed_dim=256))


def tiny_experiment() -> Experiment:
    """The same program in seconds, with an image encoder that has learnt nothing."""
    stage = Stage(4, 8, 1e-3, 1)
    return Experiment(MedConfig.preset("tiny", image_size=32), stage, stage, stage)


# --- Photographs in a file --------------------------------------------------------------------


Texts = list[tuple[str, list[str]]]
"""Names of photographs, each with its texts."""


def pack(flickr8k: Path, output: Path, size: int, limit: int, human: int) -> int:
    """All photographs as WebP of `size` px in one file of at most `limit` bytes, and their texts.

    The texts are those of the first seeds of `flickr8k_noise.py`: of so many photographs the human
    ones, of the others one with noise, and one without.

    Returns:
        The quality, which falls until they fit.
    """
    # Its tables need libraries that are not where the file is read.
    from flickr8k_noise import read

    records = [record for record in read(flickr8k) if record["captions"]]
    texts = {"test": [pair(record) for record in records if record["split"] == "test"]}
    told = json.dumps({**texts, "seeds": {seed: noisy(records, human, seed) for seed in SEEDS}})
    names = [str(record["image"]) for record in records]
    some = names[:: len(names) // 100 + 1]
    for quality in range(80, 5, -5):
        # A sample tells whether it is worth a pass over all.
        sampled = sum(len(small_webp(flickr8k / name, size, quality)) for name in some)
        if sampled * len(names) / len(some) > limit:
            continue
        with zipfile.ZipFile(output, "w") as file:
            file.writestr("texts.json", told, zipfile.ZIP_DEFLATED)
            for name in names:
                file.writestr(name, small_webp(flickr8k / name, size, quality))
        if output.stat().st_size <= limit:
            return quality
    output.unlink(missing_ok=True)
    raise SystemExit(f"{len(names):,} photographs of {size} px do not fit into {limit:,} bytes")


def small_webp(photograph: Path, size: int, quality: int) -> bytes:
    with Image.open(photograph) as image:
        small = image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
    stored = io.BytesIO()
    small.save(stored, "WEBP", quality=quality)
    return stored.getvalue()


def noisy(records: Sequence[Mapping[str, Any]], human: int, seed: int) -> dict[str, Any]:
    """The texts of a seed."""
    from flickr8k_noise import divided, with_noise

    people, rest = divided([dict(record) for record in records], human, seed)
    web = with_noise(rest, NOISE, seed)
    return {
        "human": [pair(record) for record in people],
        "web": [pair(record) for record in web],
        "kinds": [record["noise"] for record in web],
        "clean": [pair(record) for record in with_noise(rest, 0.0, seed)],
    }


def pair(record: Mapping[str, Any]) -> tuple[str, list[str]]:
    return str(record["image"]), list(record["captions"])


@dataclass(frozen=True)
class Photographs:
    """What the image encoder makes of photographs, and their texts."""

    texts: dict[str, Any]
    """As `pack` writes them."""
    states: dict[str, Tensor]
    """By name: float16 (tokens, width), on the device."""

    def stacked(self, names: Sequence[str]) -> Tensor:
        """float16 (names, tokens, width)."""
        return torch.stack([self.states[name] for name in names])


@torch.inference_mode()
def unpack(file: Path, model: Med, device: torch.device) -> Photographs:
    """The photographs of `pack`, encoded."""
    states: dict[str, Tensor] = {}
    size = model.config.vision.image_size
    with zipfile.ZipFile(file) as packed:
        texts = json.loads(packed.read("texts.json"))
        names = [name for name in packed.namelist() if name != "texts.json"]
        for start in range(0, len(names), AT_ONCE):
            some = names[start : start + AT_ONCE]
            opened = [Image.open(io.BytesIO(packed.read(name))).convert("RGB") for name in some]
            images = torch.stack([eval_transform(image, size) for image in opened])
            hidden = model.encode_images(images.to(device)).half()
            states.update(zip(some, hidden.unbind(), strict=True))
    return Photographs(texts, states)


# --- Training ---------------------------------------------------------------------------------


TokensOf = Callable[[list[str]], TokenBatch]


def batches(
    photographs: Photographs, texts: Texts, stage: Stage, tokens_of: TokensOf, seed: int
) -> Iterator[tuple[float, Batch]]:
    """The batches of a training, each with the epoch where it begins.

    An epoch has every photograph once, with one of its texts.
    """
    draws, order = random.Random(f"order {seed}"), list[int]()
    for step in range(stage.steps):
        while len(order) < stage.batch_size:
            order += draws.sample(range(len(texts)), len(texts))
        numbers, order = order[: stage.batch_size], order[stage.batch_size :]
        chosen = [draws.choice(texts[number][1]) for number in numbers]
        names = tuple(texts[number][0] for number in numbers)
        tokens = tokens_of(chosen)
        batch = Batch(
            ids=names,
            images=photographs.stacked(names),
            tokens=tokens.ids,
            mask=tokens.mask,
            image_ids=torch.tensor(numbers),
            text_ids=torch.tensor([named_seed(0, clean_caption(text)) for text in chosen]),
            step=step,
        )
        yield step * stage.batch_size / len(texts), batch


def train(task: AnyTask, stage: Stage, data: Iterable[tuple[float, Batch]], seed: int) -> Med:
    """The student after all batches."""
    task.train()
    device = next(task.parameters()).device
    optimiser = build_optimiser(trained_parameters(task), OptimiserConfig(weight_decay=0.05))
    trainer = Trainer(task, optimiser, Processes(device=device), seed=seed, clip_norm=1.0)
    for step, (epoch, batch) in enumerate(data):
        lr = warmup_cosine_lr(
            step,
            stage.steps,
            peak_lr=stage.lr,
            min_lr=stage.min_lr,
            warmup_steps=stage.warmup,
            start_lr=1e-6,
        )
        trainer.step(StepPosition(step, epoch), [batch.to(device)], lr)
    student = task.student.eval()
    assert isinstance(student, Med)
    return student


class Model(NamedTuple):
    """A model, and the tokenizer of the texts that it began with."""

    med: Med
    tokenizer: TextTokenizer


@dataclass(frozen=True)
class Workshop:
    """Everything that a seed's models are made and asked with."""

    experiment: Experiment
    photographs: Photographs
    fresh: Med
    """With the image encoder that made the states; every text stack is drawn anew."""
    seed: int

    @property
    def device(self) -> torch.device:
        """Where all of it is."""
        return next(self.fresh.parameters()).device

    def pretrained(self, texts: Texts) -> Model:
        """A new model of these texts."""
        tokenizer = TextTokenizer.train(
            [clean_caption(text, 30) for _, own in texts for text in own], VOCABULARY
        )
        torch.manual_seed(self.seed)
        config = self.experiment.model
        text = replace(config.text, vocab_size=tokenizer.vocab_size)
        student = Med(replace(config, text=text))
        student.image_encoder.load_state_dict(self.fresh.image_encoder.state_dict())
        student.freeze_images()
        objectives = PretrainObjectives(**CONTRAST, alpha=0.2, negative_floor=0.01)
        task = PretrainTask(student, tokenizer.special, objectives, self.seed)
        return self._trained(task, tokenizer, self.experiment.pretrain, texts)

    def captioner(self, model: Model, texts: Texts) -> Model:
        """Fine-tuned to write captions behind the prompt."""
        prompt = len(model.tokenizer.encode([PROMPT], 24).row(0)) - 1
        task = CaptionerTask(copy.deepcopy(model.med), model.tokenizer.special, prompt)
        stage = self.experiment.captioner
        return self._trained(task, model.tokenizer, stage, texts, PROMPT, 28, max_words=50)

    def filter(self, model: Model, texts: Texts) -> Model:
        """Fine-tuned to tell which text matches."""
        objectives = FilterObjectives(**CONTRAST, negative_floor=1.0)
        student = copy.deepcopy(model.med)
        task = PretrainTask(student, model.tokenizer.special, objectives, self.seed)
        return self._trained(task, model.tokenizer, self.experiment.filter, texts)

    def _trained(
        self,
        task: AnyTask,
        tokenizer: TextTokenizer,
        stage: Stage,
        texts: Texts,
        prompt: str = "",
        max_tokens: int = 24,
        max_words: int = 30,
    ) -> Model:
        def tokens_of(chosen: list[str]) -> TokenBatch:
            cleaned = [prompt + clean_caption(text, max_words) for text in chosen]
            return tokenizer.encode(cleaned, max_tokens)

        data = batches(self.photographs, texts, stage, tokens_of, self.seed)
        return Model(train(task.to(self.device), stage, data, self.seed), tokenizer)

    @torch.inference_mode()
    def written(
        self, model: Model, names: Sequence[str], decoding: Decoding, prompt: str
    ) -> list[str]:
        """A caption of each photograph, without the prompt."""
        med, tokenizer = model
        start = tokenizer.without_end().encode([prompt], 24, first="dec").ids.to(self.device)
        texts = []
        for part in parts(names):
            memory = EncodedImages(med, self._hidden(med, part)).decoder_memory
            begun = start.expand(len(part), -1)
            seeds = [named_seed(self.seed, name) for name in part]
            drawn = generate(med.text, memory, begun, decoding, tokenizer.special, seeds=seeds)
            texts += [tokenizer.decode(best.token_ids) for (best, *_) in drawn]
        return [text.removeprefix(PROMPT) if prompt else text for text in texts]

    @torch.inference_mode()
    def probabilities(self, model: Model, texts: Texts) -> list[list[float]]:
        """Of every text that it matches its photograph."""
        found = []
        for part in parts(texts):
            flat, of_image = numbered([own for _, own in part])
            tokens = self._tokens(model, flat, first="enc")
            encoded = EncodedImages(model.med, self._hidden(model.med, [name for name, _ in part]))
            found += match_probabilities(model.med, encoded.encoder_memory, tokens, of_image)
        return [each.tolist() for each in found]

    def _tokens(self, model: Model, texts: Sequence[str], first: FirstToken = "cls") -> TokenBatch:
        tokens = model.tokenizer.encode(texts, 24, first)
        return TokenBatch(tokens.ids.to(self.device), tokens.mask.to(self.device))

    def _hidden(self, med: Med, names: Sequence[str]) -> Tensor:
        return med.encode_images(self.photographs.stacked(names))

    @torch.inference_mode()
    def figures(self, model: Model) -> dict[str, float]:
        """Retrieval by contrast, and captions, of the test photographs: per cent, CIDEr x 100."""
        names, captions = zip(*self.photographs.texts["test"], strict=True)
        flat, owned = numbered(captions)
        images = EncodedImages(model.med, self._hidden(model.med, names)).embed
        assert images is not None
        texts = embed_texts(model.med, self._tokens(model, flat))
        recalls = metrics.retrieval((images @ texts.T).cpu().numpy(), owned)
        own = self.written(model, names, SHOWN, "")
        scores = metrics.caption(dict(enumerate(own)), dict(enumerate(captions)))
        kept = {"mean recall": recalls["mean"], "TR@1": recalls["TR@1"], "IR@1": recalls["IR@1"]}
        return {**kept, "CIDEr": 100 * scores["CIDEr"]}


def parts(items: Sequence[T]) -> Iterator[Sequence[T]]:
    return (items[first : first + AT_ONCE] for first in range(0, len(items), AT_ONCE))


def numbered(texts: Sequence[list[str]]) -> tuple[list[str], list[list[int]]]:
    """All texts as they are read, and the numbers of each photograph's own."""
    flat = [clean_caption(text) for own in texts for text in own]
    numbers = iter(range(len(flat)))
    return flat, [[next(numbers) for _ in own] for own in texts]


def one_seed(experiment: Experiment, photographs: Photographs, fresh: Med, seed: int) -> Any:
    """What models of noise, of CapFilt and of clean texts reach, and what the filter finds."""
    told = photographs.texts["seeds"][str(seed)]
    human, web, clean = told["human"], told["web"], told["clean"]
    shop = Workshop(experiment, photographs, fresh, seed)
    noise = shop.pretrained(human + web)
    writer, judge = shop.captioner(noise, human), shop.filter(noise, human)
    written = shop.written(writer, [name for name, _ in web], WRITTEN, PROMPT)
    both = [(name, [*own, text]) for (name, own), text in zip(web, written, strict=True)]
    judged = shop.probabilities(judge, both)
    kept = [
        (name, [text for text, own in zip(texts, scores, strict=True) if own > THRESHOLD])
        for (name, texts), scores in zip(both, judged, strict=True)
    ]
    bootstrapped = [(name, texts) for name, texts in kept if texts]
    rejected = [scores[0] <= THRESHOLD for scores in judged]
    wrong = [kind != "true" for kind in told["kinds"]]
    right = sum(r and w for r, w in zip(rejected, wrong, strict=True))
    return {
        "seed": seed,
        "noise": shop.figures(noise),
        "CapFilt": shop.figures(shop.pretrained(human + bootstrapped)),
        "clean": shop.figures(shop.pretrained(human + clean)),
        "filter": {
            "precision": 100 * right / max(1, sum(rejected)),
            "recall": 100 * right / max(1, sum(wrong)),
        },
    }


def run(file: Path, experiment: Experiment, device: torch.device, until: float) -> dict[str, Any]:
    """All seeds that end before `until` (of `time.perf_counter`) as far as one can tell.

    No seed begins that would end later if it takes as long as the longest before.
    """
    torch.manual_seed(0)
    fresh = Med(experiment.model).eval().to(device)
    began = time.perf_counter()
    photographs = unpack(file, fresh, device)
    found: dict[str, Any] = {
        "photographs": len(photographs.states),
        "encoding_seconds": time.perf_counter() - began,
        "noise": NOISE,
        "seeds": [],
    }
    longest = 0.0
    for seed in SEEDS:
        began = time.perf_counter()
        if found["seeds"] and began + longest > until:
            break
        found["seeds"].append(one_seed(experiment, photographs, fresh, seed))
        longest = max(longest, time.perf_counter() - began)
        found["longest_seed_seconds"] = longest
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("flickr8k", type=Path, help="folder with images/ and captions.jsonl")
    parser.add_argument("output", type=Path)
    parser.add_argument("--size", type=int, default=224, help="pixels of a side")
    parser.add_argument("--mebibytes", type=float, default=34.0, help="size of the file at most")
    parser.add_argument("--human", type=int, default=1500, help="photographs with human captions")
    options = parser.parse_args()
    limit = int(options.mebibytes * 2**20)
    quality = pack(options.flickr8k, options.output, options.size, limit, options.human)
    print(f"{options.output}: {options.output.stat().st_size:,} bytes, WebP of quality {quality}")


if __name__ == "__main__":
    main()
