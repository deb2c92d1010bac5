"""Good inputs of every kind, small, which the cases damage."""

import io
import json
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from pyarrow import csv, parquet

from openblip.batches.tokenizer import TextTokenizer
from openblip.inference.blip import Blip
from openblip.model import Med, MedConfig, TextConfig, VisionConfig
from openblip.model.vqa import Vqa, VqaConfig
from openblip.table.table import PairRow, PairTable

WORDS = ("a red dog on the grass", "two blue cars", "a green cat by a tree", "three small boats")
TINY = """\
task: pretrain
data: {{table: {table}, image_size: 32, max_tokens: 16}}
objectives: {{queue_size: 8}}
model:
  vision: {{image_size: 32, patch_size: 16, width: 32, depth: 1, heads: 2}}
  text: {{vocab_size: 60, width: 32, depth: 1, heads: 2, ffn_width: 32, max_positions: 32}}
  embed_dim: 16
tokenizer: train:60
train: {{steps: 1, batch_size: 4, device: cpu, precision: float32, log_every: 1}}
"""
COMPARE = """\
title: two models
data:
  noisy: {{table: {table}}}
models:
  a: {{recipe: {recipe}, data: noisy, settings: {{train.steps: 1}}}}
  b: {{like: a, settings: {{train.steps: 2}}}}
tasks:
  retrieval: {{task: retrieval, data: noisy, settings: {{k: 2}}}}
seeds: [0]
tables:
  - {{title: recall, models: [a, b], figures: [retrieval.R@1]}}
claims:
  - {{claim: more is more, better: b, than: a, figures: [retrieval.R@1]}}
"""


def picture(seed: int, kind: str = "JPEG") -> bytes:
    """An image of 40 x 32 pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 40, 3), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, kind)
    return sink.getvalue()


def make_base(folder: Path) -> None:
    """Writes everything; takes some seconds."""
    folder.mkdir(parents=True)
    _sources(folder / "sources")
    PairTable.create(folder / "pairs.lance", _rows())
    PairTable.create(folder / "scored.lance", _rows()).add_columns(pa.table(scores()))
    _models(folder)
    (folder / "recipe.yaml").write_text(TINY.format(table=folder / "pairs.lance"))
    (folder / "compare.yaml").write_text(
        COMPARE.format(table=folder / "pairs.lance", recipe=folder / "recipe.yaml")
    )
    (folder / "answers.txt").write_text("yes\nno\nred\n")
    (folder / "answers.json").write_text('["yes", "no", "red"]')
    _run(folder)
    _indexes(folder)
    _review(folder)


def columns() -> dict[str, pa.Array]:
    """The table's own columns, for tables that somebody else writes."""
    rows = list(_rows())
    names = ("id", "image", "image_uri", "width", "height", "captions", "origin", "split")
    values: dict[str, Any] = {n: [getattr(row, n) for row in rows] for n in names}
    values["meta"] = [json.dumps(dict(row.meta)) for row in rows]
    kinds = {
        "image": pa.large_binary(),
        "width": pa.int32(),
        "height": pa.int32(),
        "captions": pa.list_(pa.string()),
    }
    return {name: pa.array(of, kinds.get(name, pa.string())) for name, of in values.items()}


def scores() -> dict[str, pa.Array]:
    """The columns that CapFilt adds."""
    rows = list(_rows())
    web = [row.origin == "web" for row in rows]
    random = np.random.default_rng(0)

    def lists(kind: pa.DataType, value: Any) -> pa.Array:
        return pa.array([[value()] if is_web else None for is_web in web], pa.list_(kind))

    numbers = ("captions_itm", "captions_itc", "synthetic_itm", "synthetic_itc")
    return {
        "synthetic": lists(pa.string(), lambda: "a dog"),
        "synthetic_logprob": lists(pa.float32(), lambda: -1.0),
        "synthetic_captioner": lists(pa.string(), lambda: "abc"),
        **{name: lists(pa.float32(), lambda: float(random.random())) for name in numbers},
        "capfilt_error": pa.array([None] * len(rows), pa.string()),
    }


def _rows() -> Iterator[PairRow]:
    for number in range(16):
        split = ("train", "train", "train", "test", "val")[number % 5]
        yield PairRow(
            id=f"row{number:02d}",
            image=picture(number),
            width=40,
            height=32,
            captions=[f"{WORDS[number % 4]} {number}"],
            origin="web" if split == "train" and number % 2 else "human",
            split=split,
            meta={
                "label": ("dog", "car")[number % 2],
                "noise": ("true", "swap")[number % 2],
                "source": "cc",
                "questions": [{"question": "is it red?", "answers": ["yes", "no", "yes"]}],
                "pairs": [{"sentence": "both are red", "second": "row00", "label": "True"}],
            },
        )


def _sources(folder: Path) -> None:
    images = folder / "images"
    images.mkdir(parents=True)
    for number in range(4):
        (images / f"{number}.jpg").write_bytes(picture(number))
        (images / f"{number}.txt").write_text(WORDS[number])
    (folder / "photo.png").write_bytes(picture(9, "PNG"))
    names = [f"images/{number}.jpg" for number in range(4)]
    lines = [{"image": name, "text": text} for name, text in zip(names, WORDS, strict=True)]
    (folder / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "list.json").write_text(
        json.dumps([{"image": n, "caption": t} for n, t in zip(names, WORDS, strict=True)])
    )
    coco = {
        "images": [{"id": n, "file_name": f"{n}.jpg"} for n in range(4)],
        "annotations": [{"id": n, "image_id": n, "caption": WORDS[n]} for n in range(4)],
    }
    (images / "coco.json").write_text(json.dumps(coco))
    encoded = [picture(number) for number in range(4)]
    parquet.write_table(
        pa.table({"image": pa.array(encoded, pa.binary()), "caption": list(WORDS)}),
        folder / "pairs.parquet",
    )
    csv.write_csv(pa.table({"image": names, "caption": list(WORDS)}), folder / "pairs.csv")
    with tarfile.open(folder / "pairs.tar", "w") as tar:
        for number in range(4):
            for suffix, content in (("jpg", encoded[number]), ("txt", WORDS[number].encode())):
                member = tarfile.TarInfo(f"{number}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def _models(folder: Path) -> None:
    tokenizer = TextTokenizer.train([*WORDS, "yes", "no", "is it red?"], vocab_size=80)
    torch.manual_seed(0)
    vision = VisionConfig(image_size=32, patch_size=16, width=32, depth=1, heads=2)
    text = TextConfig(
        vocab_size=tokenizer.vocab_size, width=32, depth=1, heads=2, ffn_width=32, max_positions=40
    )
    med = MedConfig(vision=vision, text=text, embed_dim=16, heads=("itc", "itm", "lm"))
    Blip(Med(med).eval(), tokenizer, "pretrain", 32, 40).save(folder / "model")
    lm = Med(replace(med, heads=("lm",))).eval()
    Blip(lm, tokenizer, "captioner", 32, 40).save(folder / "captioner")
    vqa = Vqa(VqaConfig(vision=vision, text=text)).eval()
    Blip(vqa, tokenizer, "vqa", 32, 35).save(folder / "vqa")


def _run(folder: Path) -> None:
    from openblip.training.recipe_file import read_recipe
    from openblip.training.run import train

    train(read_recipe(folder / "recipe.yaml"), folder / "runs" / "a", quiet=True)


def _indexes(folder: Path) -> None:
    """A folder and a table that can be searched."""
    from openblip.index.build import build_index

    shutil.copytree(folder / "sources" / "images", folder / "photos")
    shutil.copytree(folder / "scored.lance", folder / "indexed.lance")
    for place in ("photos", "indexed.lance"):
        build_index(
            str(folder / place), str(folder / "model"), device="cpu", processes=1, least_rows=8
        )


def _review(folder: Path) -> None:
    """A sheet with verdicts, and texts that were made elsewhere."""
    from openblip.review.sampling import ReviewSettings
    from openblip.review.session import ReviewSession
    from openblip.review.spreadsheet import write_sheet

    session = ReviewSession.open(PairTable.open(str(folder / "scored.lance")), ReviewSettings())
    write_sheet(session, folder / "sheet.csv", "ann")
    lines = (folder / "sheet.csv").read_text("utf-8-sig").splitlines()
    # The column before `edited` and two more.
    judged = [line.rsplit(",", 4) for line in lines[1:]]
    judged = [[first, "right", *last] for first, _, *last in judged]
    (folder / "sheet.csv").write_text("\n".join([lines[0], *map(",".join, judged)]) + "\n")
    texts = [{"id": row.id, "text": "a dog"} for row in _rows()]
    (folder / "texts.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
