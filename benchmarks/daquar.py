"""Question answering on DAQUAR through the ordinary commands, from nothing.

    python benchmarks/daquar.py DAQUAR_FOLDER FLICKR8K_FOLDER WORK_FOLDER

About 20 minutes on one CPU core: a small MED is pre-trained on Flickr8k, fine-tuned on the training
questions and asked the test questions. Stopped at any moment, the same command goes on. Needs
WordNet. Prints the tables of benchmarks/results/daquar.md.

Both folders have images/ and captions.jsonl, an object a line: image (images/NAME.jpg), captions (a
list, empty in DAQUAR), split (train, val or test), and in DAQUAR questions, a list of objects with
question and answer.
"""

import argparse
import json
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from openblip.batches.questions import Question, QuestionIndex, frequent_answers
from openblip.batches.tokenizer import TextTokenizer
from openblip.cli import main as openblip
from openblip.evaluation.results import UnitScores
from openblip.evaluation.vqa import evaluate_vqa, judge_answers
from openblip.inference.loading import load
from openblip.metrics.wups import items_of
from openblip.table.table import PairRow, PairTable
from openblip.table.views import split_rows

VOCABULARY = 3000
PRETRAIN = """--data.image-size 96 --model.vision.image-size 96 --model.vision.patch-size 16
  --model.vision.width 128 --model.vision.depth 4 --model.vision.heads 4 --model.text.width 128
  --model.text.depth 2 --model.text.heads 4 --model.text.ffn-width 512
  --model.text.max-positions 64 --model.embed-dim 128 --data.max-tokens 24
  --data.augmentation.min-scale 0.5 --data.augmentation.flip --data.augmentation.no-randaugment
  --objectives.queue-size 0 --objectives.momentum 0.99 --objectives.min-temperature 0.02
  --data.view.sources human --optimiser.lr 1e-3 --optimiser.clip-norm 1.0
  --schedule.warmup-steps 40 --train.batch-size 96 --train.steps 500 --train.checkpoint-every 100"""
# Left and right matter to the questions: no flip.
FINETUNE = """--data.image-size 96 --data.validation-split val --data.augmentation.min-scale 0.5
  --data.augmentation.no-flip --data.augmentation.no-randaugment --optimiser.lr 5e-4
  --optimiser.clip-norm 1.0 --schedule.kind warmup_cosine --schedule.warmup-steps 50
  --train.batch-size 64 --train.steps 1000 --train.checkpoint-every 100"""
NAMES = ("accuracy", "WUPS@0.9", "WUPS@0.0")
Units = dict[str, UnitScores]


def command(*words: str | Path) -> None:
    """An `openblip` command; what it did before it does not do again."""
    code = openblip([str(word) for word in words])
    if code:
        sys.exit(code)


def questions_of(table: PairTable, split: str) -> tuple[QuestionIndex, list[Question]]:
    index = QuestionIndex.resolve(table, split)
    return index, index.read(np.arange(len(index)))


def texts_to_learn(daquar: PairTable, flickr8k: PairTable) -> Iterator[str]:
    for row in flickr8k.take(split_rows(flickr8k, "train"), ["captions"]).to_pylist():
        yield from row["captions"]
    for question in questions_of(daquar, "train")[1]:
        yield from (question.text, *question.answers)


def exchanged(daquar: PairTable, uri: Path) -> PairTable:
    """The test questions, each about the image that follows its own."""
    if not uri.exists():
        rows = daquar.take(split_rows(daquar, "test")).to_pylist()
        images = [row["image"] for row in rows[1:] + rows[:1]]
        PairTable.create(
            uri,
            (
                PairRow(row["id"], image, split="test", meta=json.loads(row["meta"]))
                for row, image in zip(rows, images, strict=True)
            ),
        )
    return PairTable.open(uri)


def by_first_words(training: list[Question]) -> Callable[[Question], str]:
    """The most frequent training answer to questions that begin with the same words."""
    counts: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    for question in training:
        words = question.text.split()
        for length in range(5):
            counts[tuple(words[:length])][question.answers[0]] += 1

    def answer(question: Question) -> str:
        words = question.text.split()
        # The longest beginning that occurs often enough to say something.
        known = (tuple(words[:length]) for length in range(4, -1, -1))
        begin = next(words for words in known if counts[words].total() >= 5)
        return counts[begin].most_common(1)[0][0]

    return answer


def baselines(daquar: PairTable) -> dict[str, Units]:
    training = questions_of(daquar, "train")[1]
    index, asked = questions_of(daquar, "test")
    most_frequent = frequent_answers(daquar)[0]
    guesses: dict[str, Callable[[Question], str]] = {
        f"always {most_frequent!r}, the most frequent training answer": lambda _: most_frequent,
        "the most frequent one by the question's first four words": by_first_words(training),
    }
    return {
        name: judge_answers(asked, index.rows, {q.key: guess(q) for q in asked}, wups=True)[1]
        for name, guess in guesses.items()
    }


def by_length(daquar: PairTable, answers: dict[str, str]) -> list[str]:
    """Accuracy by how many things the right answer names."""
    asked = questions_of(daquar, "test")[1]
    right: dict[str, list[bool]] = defaultdict(list)
    for question in asked:
        items = items_of(question.answers[0])
        kind = "several things" if len(items) > 1 else "one thing"
        if next(iter(items)).isdecimal():
            kind = "a number"
        right[kind].append(items_of(answers[question.key]) == items)
    return [
        f"| {kind} | {len(values):,} | {100 * np.mean(values):.1f} |"
        for kind, values in sorted(right.items())
    ]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("daquar", type=Path)
    parser.add_argument("flickr8k", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    work: Path = options.work
    uris = {"daquar": work / "daquar.lance", "flickr8k": work / "flickr8k.lance"}
    for name, uri in uris.items():
        command("data", "import", getattr(options, name), uri, "--origin", "human")
    daquar, flickr8k = (PairTable.open(uri) for uri in uris.values())
    tokenizer = work / "tokenizer"
    if not tokenizer.exists():
        TextTokenizer.train(texts_to_learn(daquar, flickr8k), VOCABULARY).save(tokenizer)
    run = ["--train.threads", os.environ.get("THREADS", "1"), "--train.seed", str(options.seed)]
    start = ["pretrain", "tiny", uris["flickr8k"], work / "pretrained", "--tokenizer", tokenizer]
    command(*start, *PRETRAIN.split(), *run)
    tune = ["finetune", "vqa", uris["daquar"], work / "vqa", "--init-from"]
    command(*tune, work / "pretrained" / "checkpoints" / "last", *FINETUNE.split(), *run)

    blip = load(str(work / "vqa" / "checkpoints" / "last"))
    candidates = frequent_answers(daquar)
    ranked = evaluate_vqa(blip, daquar, candidates=candidates, wups=True)
    ranked.save_results(work / "results.json")
    other = exchanged(daquar, work / "exchanged.lance")
    systems = baselines(daquar) | {
        f"model, {len(candidates)} training answers ranked": ranked.units,
        "model, answers written": evaluate_vqa(blip, daquar, wups=True).units,
        "model, ranked, each question about another image": evaluate_vqa(
            blip, other, candidates=candidates, wups=True
        ).units,
    }
    print(f"\n{ranked.num_questions} questions about {ranked.num_images} images\n")
    print(f"| answers | {' | '.join(NAMES)} |\n| --- |{' ---: |' * len(NAMES)}")
    for name, units in systems.items():
        found = (units[metric].interval() for metric in NAMES)
        cells = (f"{value.estimate:.1f} ({value.low:.1f} to {value.high:.1f})" for value in found)
        print(f"| {name} | {' | '.join(cells)} |")
    print(f"\n| model, ranked, minus | {' | '.join(NAMES)} |\n| --- |{' ---: |' * len(NAMES)}")
    for name, units in systems.items():
        if units is not ranked.units:
            cells = []
            for metric in NAMES:
                gain = ranked.units[metric].minus(units[metric])
                cells.append(f"{gain.difference:+.1f} ({gain.low:+.1f} to {gain.high:+.1f})")
            print(f"| {name} | {' | '.join(cells)} |")
    print("\n| right answer | questions | accuracy, ranked |\n| --- | ---: | ---: |")
    print("\n".join(by_length(daquar, ranked.answers)))


if __name__ == "__main__":
    main()
