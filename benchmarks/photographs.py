"""Noise, CapFilt and clean texts on photographs that a GPU's memory holds: a part of gpu.py.

    python benchmarks/photographs.py FLICKR8K photographs.zip      # all of them, in 40 MiB
    python benchmarks/gpu.py --photographs photographs.zip --only photographs

The experiment of `flickr8k.yaml`, at three quarters of noise, without its tables, so that it runs
where nothing but torch and tokenizers is: the same noise, model, steps and rates. It differs in
this: photographs are stored at 224 px, texts are kept or left out by the matching probability
alone, and retrieval is by contrast.
"""

import argparse
import copy
import io
import random
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from flickr8k_noise import Record, divided, read_lines, with_noise
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

HUMAN, NOISE, THRESHOLD, VOCABULARY = 1500, 0.75, 0.33, 3000
PROMPT = "a picture of "
WRITTEN = Decoding(method="nucleus", top_p=0.9, min_length=8, max_length=24)
SHOWN = Decoding(num_beams=3, min_length=6, max_length=24)
AT_ONCE = 256
CONTRAST: dict[str, Any] = {"queue_size": 0, "momentum": 0.99, "min_temperature": 0.02}


@dataclass(frozen=True)
class Stage:
    """How long and how fast a model learns."""

    steps: int
    batch_size: int
    lr: float
    warmup: int


@dataclass(frozen=True)
class Experiment:
    """What is trained, and for how long; the defaults are those of `flickr8k.yaml`."""

    model: MedConfig
    pretrain: Stage = Stage(600, 128, 1.5e-3, 50)
    captioner: Stage = Stage(200, 64, 3e-4, 20)
    filter: Stage = Stage(200, 64, 5e-4, 20)
    human: int = HUMAN


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
    return Experiment(MedConfig.preset("tiny", image_size=32), stage, stage, stage, human=8)


# --- Photographs in a file --------------------------------------------------------------------


def pack(flickr8k: Path, output: Path, size: int, limit: int) -> int:
    """All photographs as WebP of `size` px in one file of at most `limit` bytes, and their texts.

    Returns:
        The quality, which falls until they fit.
    """
    text = (flickr8k / "captions.jsonl").read_text(encoding="utf-8")
    names = [str(record["image"]) for record in read_lines(text)]
    for quality in range(80, 10, -10):
        with zipfile.ZipFile(output, "w") as file:
            file.writestr("captions.jsonl", text, zipfile.ZIP_DEFLATED)
            for name in names:
                with Image.open(flickr8k / name) as image:
                    small = image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
                stored = io.BytesIO()
                small.save(stored, "WEBP", quality=quality)
                file.writestr(name, stored.getvalue())
        if output.stat().st_size <= limit:
            return quality
    output.unlink()
    raise SystemExit(f"{len(names):,} photographs of {size} px do not fit into {limit:,} bytes")


@dataclass(frozen=True)
class Photographs:
    """What the image encoder makes of photographs, and their texts."""

    records: list[Record]
    states: dict[str, Tensor]
    """By name: float16 (tokens, width), on the device."""

    def of(self, split: str) -> list[Record]:
        """The records of a split that have captions."""
        return [r for r in self.records if r["split"] == split and r["captions"]]

    def stacked(self, records: Sequence[Record]) -> Tensor:
        """float16 (records, tokens, width)."""
        return torch.stack([self.states[str(record["image"])] for record in records])


@torch.inference_mode()
def unpack(file: Path, model: Med, device: torch.device) -> Photographs:
    """The photographs of `pack`, encoded."""
    states: dict[str, Tensor] = {}
    size = model.config.vision.image_size
    with zipfile.ZipFile(file) as packed:
        records = read_lines(packed.read("captions.jsonl").decode())
        names = [str(record["image"]) for record in records]
        for start in range(0, len(names), AT_ONCE):
            some = names[start : start + AT_ONCE]
            opened = [Image.open(io.BytesIO(packed.read(name))).convert("RGB") for name in some]
            images = torch.stack([eval_transform(image, size) for image in opened])
            hidden = model.encode_images(images.to(device)).half()
            states.update(zip(some, hidden.unbind(), strict=True))
    return Photographs(records, states)


# --- Training ---------------------------------------------------------------------------------


Texts = list[tuple[Record, list[str]]]
"""Photographs with the texts that are learnt from, one of which is drawn in each epoch."""
TokensOf = Callable[[list[str]], TokenBatch]


def batches(
    photographs: Photographs, texts: Texts, stage: Stage, tokens_of: TokensOf, seed: int
) -> Iterator[tuple[float, Batch]]:
    """The batches of a training, each with the epoch where it begins."""
    draws, order = random.Random(f"order {seed}"), list[int]()
    for step in range(stage.steps):
        while len(order) < stage.batch_size:
            order += draws.sample(range(len(texts)), len(texts))
        numbers, order = order[: stage.batch_size], order[stage.batch_size :]
        chosen = [clean_caption(draws.choice(texts[number][1]), 30) for number in numbers]
        tokens = tokens_of(chosen)
        batch = Batch(
            ids=tuple(str(texts[number][0]["image"]) for number in numbers),
            images=photographs.stacked([texts[number][0] for number in numbers]),
            tokens=tokens.ids,
            mask=tokens.mask,
            image_ids=torch.tensor(numbers),
            text_ids=torch.tensor([named_seed(0, text) for text in chosen]),
            step=step,
        )
        yield step * stage.batch_size / len(texts), batch


def train(task: AnyTask, stage: Stage, data: Iterable[tuple[float, Batch]], seed: int) -> Med:
    """The student after all batches, with the rates of the recipe `tiny`."""
    task.train()
    device = next(task.parameters()).device
    optimiser = build_optimiser(trained_parameters(task), OptimiserConfig(weight_decay=0.05))
    trainer = Trainer(task, optimiser, Processes(device=device), seed=seed, clip_norm=1.0)
    for step, (epoch, batch) in enumerate(data):
        batch = batch.to(device)
        lr = warmup_cosine_lr(
            step,
            stage.steps,
            peak_lr=stage.lr,
            min_lr=1e-6,
            warmup_steps=stage.warmup,
            start_lr=0.0,
        )
        trainer.step(StepPosition(step, epoch), [batch], lr)
    student = task.student.eval()
    assert isinstance(student, Med)
    return student


@dataclass(frozen=True)
class Workshop:
    """Everything that a seed's models are made with."""

    experiment: Experiment
    photographs: Photographs
    tokenizer: TextTokenizer
    fresh: Med
    """With the image encoder that made the states; its text stack is drawn anew."""
    seed: int

    @property
    def device(self) -> torch.device:
        """Where all of it is."""
        return next(self.fresh.parameters()).device

    def pretrained(self, texts: Texts) -> Med:
        """A new model of these texts."""
        torch.manual_seed(self.seed)
        text = replace(self.experiment.model.text, vocab_size=self.tokenizer.vocab_size)
        student = Med(replace(self.experiment.model, text=text))
        student.image_encoder.load_state_dict(self.fresh.image_encoder.state_dict())
        student.freeze_images()
        objectives = PretrainObjectives(**CONTRAST, alpha=0.2, negative_floor=0.01)
        return self._trained(
            PretrainTask(student, self.tokenizer.special, objectives, self.seed),
            self.experiment.pretrain,
            texts,
            lambda chosen: self.tokenizer.encode(chosen, 24),
        )

    def captioner(self, model: Med, texts: Texts) -> Med:
        """Fine-tuned to write captions."""
        prompt = len(self.tokenizer.encode([PROMPT], 24).row(0)) - 1
        return self._trained(
            CaptionerTask(copy.deepcopy(model), self.tokenizer.special, prompt),
            self.experiment.captioner,
            texts,
            lambda chosen: self.tokenizer.encode([PROMPT + text for text in chosen], 28),
        )

    def filter(self, model: Med, texts: Texts) -> Med:
        """Fine-tuned to tell which text matches."""
        objectives = FilterObjectives(**CONTRAST, negative_floor=1.0)
        return self._trained(
            PretrainTask(copy.deepcopy(model), self.tokenizer.special, objectives, self.seed),
            self.experiment.filter,
            texts,
            lambda chosen: self.tokenizer.encode(chosen, 24),
        )

    def _trained(self, task: AnyTask, stage: Stage, texts: Texts, tokens_of: TokensOf) -> Med:
        data = batches(self.photographs, texts, stage, tokens_of, self.seed)
        return train(task.to(self.device), stage, data, self.seed)

    @torch.inference_mode()
    def written(
        self, model: Med, records: Sequence[Record], decoding: Decoding, prompt: str
    ) -> list[str]:
        """A caption of each photograph."""
        start = self.tokenizer.without_end().encode([prompt], 24, first="dec").ids
        start, texts = start.to(self.device), []
        for first in range(0, len(records), AT_ONCE):
            part = records[first : first + AT_ONCE]
            memory = EncodedImages(model, self._hidden(model, part)).decoder_memory
            begun = start.expand(len(part), -1)
            seeds = [named_seed(self.seed, str(record["image"])) for record in part]
            drawn = generate(
                model.text, memory, begun, decoding, self.tokenizer.special, seeds=seeds
            )
            texts += [self.tokenizer.decode(best.token_ids) for (best, *_) in drawn]
        return texts

    @torch.inference_mode()
    def probabilities(
        self, model: Med, records: Sequence[Record], texts: Sequence[list[str]]
    ) -> list[list[float]]:
        """Of every text that it matches its photograph."""
        found = []
        for first in range(0, len(records), AT_ONCE):
            flat, of_image = numbered(texts[first : first + AT_ONCE])
            tokens = self._tokens(flat, first="enc")
            encoded = EncodedImages(model, self._hidden(model, records[first : first + AT_ONCE]))
            found += match_probabilities(model, encoded.encoder_memory, tokens, of_image)
        return [each.tolist() for each in found]

    def _tokens(self, texts: Sequence[str], first: FirstToken = "cls") -> TokenBatch:
        tokens = self.tokenizer.encode(texts, 24, first)
        return TokenBatch(tokens.ids.to(self.device), tokens.mask.to(self.device))

    def _hidden(self, model: Med, records: Sequence[Record]) -> Tensor:
        return model.encode_images(self.photographs.stacked(records))

    @torch.inference_mode()
    def figures(self, model: Med) -> dict[str, float]:
        """Retrieval by contrast, and captions, of the test photographs."""
        test = self.photographs.of("test")
        captions: list[list[str]] = [record["captions"] for record in test]  # type: ignore[misc]
        flat, owned = numbered(captions)
        images = EncodedImages(model, self._hidden(model, test)).embed
        assert images is not None
        similarities = (images @ embed_texts(model, self._tokens(flat)).T).cpu().numpy()
        recalls = metrics.retrieval(similarities, owned)
        own = self.written(model, test, SHOWN, "")
        scores = metrics.caption(dict(enumerate(own)), dict(enumerate(captions)))
        kept = {"mean recall": recalls["mean"], "TR@1": recalls["TR@1"], "IR@1": recalls["IR@1"]}
        return {**kept, "CIDEr": scores["CIDEr"]}


def numbered(texts: Sequence[list[str]]) -> tuple[list[str], list[list[int]]]:
    """All texts as they are read, and the numbers of each photograph's own."""
    flat = [clean_caption(text, 30) for own in texts for text in own]
    numbers = iter(range(len(flat)))
    return flat, [[next(numbers) for _ in own] for own in texts]


def as_texts(records: Sequence[Record]) -> Texts:
    return [(record, list(record["captions"])) for record in records]  # type: ignore[call-overload]


def one_seed(experiment: Experiment, photographs: Photographs, fresh: Med, seed: int) -> Any:
    """What models of noise, of CapFilt and of clean texts reach, and what the filter finds."""
    people, rest = divided(photographs.records, experiment.human, seed)
    web, clean = with_noise(rest, NOISE, seed), with_noise(rest, 0.0, seed)
    human = as_texts(people)
    words = [clean_caption(text, 30) for _, own in human + as_texts(web) for text in own]
    tokenizer = TextTokenizer.train(words, VOCABULARY)
    shop = Workshop(experiment, photographs, tokenizer, fresh, seed)
    noise = shop.pretrained(human + as_texts(web))
    writer, judge = shop.captioner(noise, human), shop.filter(noise, human)
    written = shop.written(writer, web, WRITTEN, PROMPT)
    both = [
        [*record["captions"], text.removeprefix(PROMPT)]  # type: ignore[misc]
        for record, text in zip(web, written, strict=True)
    ]
    judged = shop.probabilities(judge, web, both)
    kept = [
        [text for text, probability in zip(texts, scores, strict=True) if probability >= THRESHOLD]
        for texts, scores in zip(both, judged, strict=True)
    ]
    bootstrapped = [(record, texts) for record, texts in zip(web, kept, strict=True) if texts]
    found = [scores[0] < THRESHOLD for scores in judged]
    wrong = [record["noise"] != "true" for record in web]
    both_true = sum(f and w for f, w in zip(found, wrong, strict=True))
    return {
        "seed": seed,
        "noise": shop.figures(noise),
        "CapFilt": shop.figures(shop.pretrained(human + bootstrapped)),
        "clean": shop.figures(shop.pretrained(human + as_texts(clean))),
        "filter": {
            "precision": both_true / max(1, sum(found)),
            "recall": both_true / max(1, sum(wrong)),
        },
    }


def run(
    file: Path,
    experiment: Experiment,
    device: torch.device,
    seeds: Sequence[int],
    until: float,
) -> dict[str, Any]:
    """All seeds that end before `until` (of `time.perf_counter`) as far as one can tell.

    Args:
        file: of `pack`.
        experiment: what is trained.
        device: where.
        seeds: in this order.
        until: no seed begins that would end later if it takes as long as the longest before.
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
    for seed in seeds:
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
    parser.add_argument("--mebibytes", type=float, default=40.0, help="size of the file at most")
    options = parser.parse_args()
    limit = int(options.mebibytes * 2**20)
    quality = pack(options.flickr8k, options.output, options.size, limit)
    print(f"{options.output}: {options.output.stat().st_size:,} bytes, WebP of quality {quality}")


if __name__ == "__main__":
    main()
