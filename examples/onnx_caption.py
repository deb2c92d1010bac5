"""Captions, matches and embeddings of what `openblip export` wrote, without PyTorch.

pip install onnxruntime tokenizers pillow
python examples/onnx_caption.py FOLDER PHOTO ["a text" ...]
"""

import json
import sys
from functools import cache
from pathlib import Path

import numpy as np
from onnxruntime import InferenceSession
from PIL import Image, ImageOps
from tokenizers import Tokenizer

folder = Path(sys.argv[1])
about = json.loads((folder / "openblip.json").read_text(encoding="utf-8"))
tokenizer, text = Tokenizer.from_file(str(folder / "tokenizer.json")), about["text"]
graph = cache(lambda name: InferenceSession(folder / f"{name}.onnx"))


def run(name: str, *inputs: np.ndarray) -> list[np.ndarray]:
    """The outputs of a graph; its inputs are in the order of `openblip.json`."""
    ports = [port.name for port in graph(name).get_inputs()]
    return graph(name).run(None, dict(zip(ports, inputs, strict=True)))


def encode(path: str, how: dict = about["preprocess"]) -> list[np.ndarray]:
    """States of an image, and its embedding if the model has one."""
    photo = ImageOps.exif_transpose(Image.open(path)).convert("RGBA")
    photo = Image.alpha_composite(Image.new("RGBA", photo.size, "white"), photo).convert("RGB")
    pixels = np.asarray(photo.resize([how["image_size"]] * 2, Image.BICUBIC)) / 255 - how["mean"]
    return run("image_encoder", np.float32(pixels / how["std"]).transpose(2, 0, 1)[None])


def tokens(texts: list[str], use: str) -> tuple[np.ndarray, np.ndarray]:
    """Ids and mask of texts that are to be matched ("match") or embedded ("embed")."""
    pieces = tokenizer.encode_batch(texts, add_special_tokens=False)
    rows = [[text["first"][use], *each.ids[: text["room"]], *text["last"]] for each in pieces]
    width = max(map(len, rows))
    ids = np.array([row + [text["special"]["pad"]] * (width - len(row)) for row in rows])
    return ids, np.arange(width) < np.array([[len(row)] for row in rows])


def caption(states: np.ndarray) -> str:
    """The best text that beam search finds."""
    prompt, beams, end = text["prompt_ids"], text["num_beams"], text["special"]["sep"]
    memory = run(about["memory"]["decoder"], states)
    _, _, heads, _, width = about["graphs"]["decoder"]["inputs"][-1]["shape"]
    past = [np.zeros((1, beams, heads, 0, width), np.float32)] * len(memory)
    rows, scores, ended = [prompt] * beams, [0.0] + [-1e9] * (beams - 1), []
    logits, *past = run("decoder", np.array([rows]), *memory, *past)
    for length in range(len(prompt), text["max_length"]):
        last = logits[0, :, -1] - np.logaddexp.reduce(logits[0, :, -1], axis=-1, keepdims=True)
        totals = last + np.float32(scores)[:, None]
        totals[:, end] -= np.inf if length < text["min_length"] else 0
        best = np.argsort(-totals, axis=None, kind="stable")[: 2 * beams]
        found = [(totals.flat[at], *divmod(int(at), totals.shape[1])) for at in best]
        ended += [(score / length, rows[row]) for score, row, id in found[:beams] if id == end]
        ended = sorted(ended, key=lambda each: -each[0])[:beams]
        if len(ended) == beams and ended[-1][0] >= found[0][0] / length:
            break
        going = [each for each in found if each[2] != end][:beams]
        rows, scores = [[*rows[row], id] for _, row, id in going], [each[0] for each in going]
        past = [each[:, [row for _, row, _ in going]] for each in past]
        logits, *past = run("decoder", np.array(rows)[None, :, -1:], *memory, *past)
    else:
        ended += [(score / len(row), row) for score, row in zip(scores, rows, strict=True)]
    return tokenizer.decode(max(ended, key=lambda each: each[0])[1][len(prompt) :])


if __name__ == "__main__":
    (states, *embeds), texts = encode(sys.argv[2]), sys.argv[3:]
    if "decoder" in about["memory"]:
        print(caption(states))
    if texts and "matcher" in about["memory"]:
        read = [each[None] for each in tokens(texts, "match")]
        logits = run("matcher", *read, *run(about["memory"]["matcher"], states))[0]
        print("match:", *(1 / (1 + np.exp(logits[0, :, 0] - logits[0, :, 1]))).round(4))
    if texts and embeds:
        print("cosine:", *(run("text_encoder", *tokens(texts, "embed"))[0] @ embeds[0][0]).round(4))
