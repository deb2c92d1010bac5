"""How graphs are made and opened: nothing large is copied, and threads wait as PyTorch's do."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from openblip.deploy.runtimes import _attended, open_graph
from openblip.inference.export import Exported

onnx = pytest.importorskip("onnx", reason="the extra `export` is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")

# Of 2 images or texts, 4 heads, 3 queries and 5 keys of 8 channels.
MASK = torch.tensor([[1, 1, 0, 0, 0], [1, 0, 1, 1, 0], [0, 0, 0, 0, 1]], dtype=torch.bool)


@pytest.mark.parametrize(
    ("key_heads", "settings"),
    [
        (4, {}),
        (4, {"scale": 0.3}),
        (4, {"attn_mask": MASK}),
        (4, {"attn_mask": MASK[None, None]}),
        (4, {"attn_mask": torch.linspace(-2, 2, 15).view(3, 5)}),
        (4, {"is_causal": True}),
        (4, {"is_causal": True, "attn_mask": torch.linspace(-2, 2, 15).view(3, 5)}),
        (2, {"enable_gqa": True}),
        (2, {"enable_gqa": True, "is_causal": True, "scale": 2.0}),
    ],
    ids=str,
)
def test_a_graphs_attention_is_pytorchs(key_heads: int, settings: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(2, heads, tokens, 8, generator=generator)
        for heads, tokens in ((4, 3), (key_heads, 5), (key_heads, 5))
    )
    expected = F.scaled_dot_product_attention(query, key, value, **settings)
    found = _attended(query, key, value, **settings)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_a_row_that_attends_to_nothing_gives_numbers() -> None:
    query, key, value = (torch.randn(1, 1, tokens, 8) for tokens in (3, 5, 5))
    assert _attended(query, key, value, torch.zeros(3, 5, dtype=torch.bool)).isfinite().all()


def test_a_step_of_a_text_copies_no_key_of_its_image(exported: Exported, tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(exported.folder / "decoder.onnx", options)
    graph = onnx.load(tmp_path / "optimised.onnx", load_external_data=False).graph
    readers = {
        node.op_type
        for node in graph.node
        if any(name.startswith("memory.") for name in node.input)
    }
    # What turns the keys around is a part of the product; a shape is no copy.
    assert readers == {"FusedMatMul", "MatMul", "Shape"}


@pytest.mark.parametrize(
    ("wish", "release", "expected"),
    [
        ({}, "1.32.0", ("1", "250")),
        ({"GOMP_SPINCOUNT": "5000"}, "1.26.1", ("1", "250")),
        # An earlier one knows no time, and would spin for long.
        ({}, "1.25.9", ("0", "250")),
        # A process that shares the machine, and a user who wants that none spins.
        ({"GOMP_SPINCOUNT": "0"}, "1.32.0", ("0", "250")),
        ({"OMP_WAIT_POLICY": "PASSIVE"}, "1.32.0", ("0", "250")),
        ({"KMP_BLOCKTIME": "0"}, "1.32.0", ("0", "250")),
        ({"GOMP_SPINCOUNT": "5000", "KMP_BLOCKTIME": "0"}, "1.32.0", ("1", "250")),
    ],
)
def test_threads_spin_as_those_of_pytorch_do(
    wish: dict[str, str],
    release: str,
    expected: tuple[str, str],
    exported: Exported,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in wish.items():
        monkeypatch.setenv(name, value)
    opened = []

    class Session(onnxruntime.InferenceSession):  # type: ignore[misc, name-defined]
        def __init__(self, *args: Any, **named: Any) -> None:
            super().__init__(*args, **named)
            opened.append(self.get_session_options())

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr(onnxruntime, "__version__", release)
    open_graph(exported.folder / "image_embedding.onnx", threads=2)
    (options,) = opened
    names = ("session.intra_op.allow_spinning", "session.intra_op.spin_duration_us")
    assert tuple(options.get_session_config_entry(name) for name in names) == expected
