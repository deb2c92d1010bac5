"""A comparison of seconds, carried out once."""

from pathlib import Path

import pytest

from openblip.comparison.run import Compared, compare

TINY = """\
title: Tiny
seeds: [0, 1]
data:
  pairs:
    world: {web_rows: 16, human_rows: 24, val_rows: 2, test_rows: 8}
  cleaned:
    capfilt: {of: pairs, captioner: captioner, filter: filter, decoding: {max_length: 10}}
models:
  noise:
    recipe: world
    label: the noise
    settings:
      train.steps: 2
      train.batch_size: 8
      tokenizer: train:300
  captioner:
    recipe: world_captioner
    init: noise
    settings: {train.steps: 1, train.batch_size: 8}
  filter:
    recipe: world_filter
    init: noise
    settings: {train.steps: 1, train.batch_size: 8}
  both:
    label: CapFilt
    like: noise
    data: cleaned
    view: {sources: [human, web, synthetic], itm: 0.0}
  clip: {label: CLIP, like: noise, trained_as: clip}
tasks:
  retrieval: {task: retrieval, settings: {k: 4}}
  caption: {task: caption, settings: {prompt: "", decoding: {max_length: 8, min_length: 3}}}
tables:
  - title: CapFilt
    models: [noise, both]
    figures: [retrieval.R@1, caption.CIDEr]
  - title: Models
    layout: figures
    models: [noise, clip]
    figures: [retrieval.TR@1, caption.CIDEr]
  - title: Domains
    layout: gains
    rows:
      - {labels: [drawn, world], model: both, figure: retrieval.R@5, baseline: clip}
claims:
  - {claim: CapFilt > none, better: both, than: noise, figures: [retrieval.R@1]}
"""


def written(folder: Path, text: str = TINY) -> Path:
    """A comparison file."""
    path = folder / "tiny.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Compared:
    """The tiny comparison, finished; not to be changed."""
    folder = tmp_path_factory.mktemp("tiny")
    return compare(written(folder), folder / "out", jobs=2)
