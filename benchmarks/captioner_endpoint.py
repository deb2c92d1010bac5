"""How close a CapFilt job with a server as captioner comes to a bare client of that server.

    python benchmarks/captioner_endpoint.py --output benchmarks/results/captioner_endpoint.md

The server runs on this machine, answers over HTTP, and takes a stated time for each request, as a
model with room for so many requests at once would. In each round a bare client sends it as many
requests as the job does, as many at once, with images that are encoded already; then the job runs
over the same images. Rates are differences of two lengths, so that imports, the loading of the
filter and the first and last requests count for nothing. The table gives medians and ranges of the
paired quotients.
"""

import argparse
import io
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import numpy as np
import torch
from PIL import Image

from openblip.batches.tokenizer import TextTokenizer
from openblip.capfilt.captioners import INSTRUCTION
from openblip.capfilt.endpoint import Requests, data_url
from openblip.capfilt.job import CapFiltSettings
from openblip.capfilt.run import run_capfilt
from openblip.inference.blip import Blip
from openblip.model import Med, MedConfig, TextConfig, VisionConfig
from openblip.sources.images import open_image
from openblip.table.table import PairRow, PairTable

TEXT = "a small red dog under two large trees"


def serve(seconds: float, spread: float) -> None:
    """Answer every request after its time, until this process is killed; prints the port."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            # By the request's seed: client and job wait for the same times.
            draw = random.Random(body["seed"])
            time.sleep(seconds * draw.uniform(1 - spread, 1 + spread))
            message = {"role": "assistant", "content": TEXT}
            answer = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
            content = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Nothing is printed."""

    class Server(ThreadingHTTPServer):
        request_queue_size = 512
        daemon_threads = True

    server = Server(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()


def photograph(number: int, side: int) -> bytes:
    """A JPEG with structure at several scales, another one for each number."""
    generator = np.random.default_rng(number)
    coarse = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(file, "JPEG")
    return file.getvalue()


def save_filter(folder: Path) -> None:
    """A filter that costs little: what is measured is how the server is kept at work."""
    tokenizer = TextTokenizer.train([TEXT] * 4, 100)
    config = MedConfig(
        vision=VisionConfig(image_size=32, patch_size=16, width=16, depth=1, heads=2),
        text=TextConfig(
            vocab_size=tokenizer.vocab_size,
            width=16,
            depth=1,
            heads=2,
            ffn_width=32,
            max_positions=48,
        ),
        embed_dim=8,
    )
    torch.manual_seed(0)
    Blip(Med(config), tokenizer, "filter", 32, 32).save(folder)


def bare_seconds(url: str, images: list[bytes], at_once: int) -> float:
    """Wall time of a client that does nothing but send requests."""
    urls = [data_url(open_image(image), 1024) for image in images]
    limits = httpx.Limits(max_connections=at_once, max_keepalive_connections=at_once)
    with httpx.Client(limits=limits, timeout=120) as client, ThreadPoolExecutor(at_once) as threads:

        def ask(number: int) -> None:
            content = [
                {"type": "image_url", "image_url": {"url": urls[number]}},
                {"type": "text", "text": INSTRUCTION},
            ]
            body = {
                "model": "m",
                "seed": number,
                "messages": [{"role": "user", "content": content}],
            }
            client.post(f"{url}/chat/completions", json=body).raise_for_status()

        started = time.perf_counter()
        list(threads.map(ask, range(len(urls))))
        return time.perf_counter() - started


def job_seconds(url: str, folder: Path, images: list[bytes], at_once: int, name: str) -> float:
    """Wall time of a job in this process over a fresh table."""
    rows = [PairRow(f"r{n}", image, captions=[TEXT]) for n, image in enumerate(images)]
    table = str(folder / f"{name}.lance")
    PairTable.create(table, rows)
    settings = CapFiltSettings(captioner=f"openai:{url}#m", filter=str(folder / "filter"))
    result = run_capfilt(table, settings, processes=1, requests=Requests(at_once=at_once))
    assert (result.errors, result.refused) == (0, 0)
    return result.seconds


def told(rates: tuple[float, ...]) -> str:
    """The cells of a row."""
    return f"{statistics.median(rates):.1f} | {min(rates):.1f} to {max(rates):.1f}"


def measure(folder: Path, arguments: argparse.Namespace) -> str:
    save_filter(folder / "filter")
    images = [photograph(number, 384) for number in range(2 * arguments.images)]
    half = images[: arguments.images]
    words = ["--serve", str(arguments.seconds), str(arguments.spread)]
    rates: list[tuple[float, float]] = []
    with subprocess.Popen(
        [sys.executable, __file__, *words], stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        url = f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
        try:
            for number in range(arguments.rounds):
                at_once = arguments.requests
                bare = bare_seconds(url, images, at_once) - bare_seconds(url, half, at_once)
                job = job_seconds(url, folder, images, at_once, f"{number}-long")
                job -= job_seconds(url, folder, half, at_once, f"{number}-short")
                rates.append((arguments.images / bare, arguments.images / job))
                print(f"round {number + 1}: bare {rates[-1][0]:.1f}, job {rates[-1][1]:.1f}/s")
        finally:
            server.kill()
    shares = [job / bare for bare, job in rates]
    labels = ("a bare client", "a job with one worker")
    labelled = zip(labels, zip(*rates, strict=True), strict=True)
    return "\n".join(
        [
            "# CapFilt: a server as captioner",
            "",
            f"A server on this machine that takes {arguments.seconds:g} s for a request "
            f"(± {arguments.spread:.0%}), {arguments.requests} requests at once, "
            f"{arguments.images} images of 384 px, {arguments.rounds} rounds, medians. "
            f"Command: `python benchmarks/captioner_endpoint.py --requests {arguments.requests} "
            f"--seconds {arguments.seconds:g} --images {arguments.images} "
            f"--rounds {arguments.rounds}`",
            "",
            "| | images/s | range |",
            "| --- | ---: | ---: |",
            *(f"| {label} | {told(own)} |" for label, own in labelled),
            "",
            f"The job reaches {statistics.median(shares):.1%} of the bare client "
            f"({min(shares):.1%} to {max(shares):.1%}; goal: 90 %).",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=400, help="rows of the shorter table")
    parser.add_argument("--requests", type=int, default=32, help="requests at once")
    parser.add_argument("--seconds", type=float, default=0.5, help="time of a request")
    parser.add_argument("--spread", type=float, default=0.5, help="its largest deviation, a share")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--serve", type=float, nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(*arguments.serve)
        return
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        text = measure(Path(scratch), arguments)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
