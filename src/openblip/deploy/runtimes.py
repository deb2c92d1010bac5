"""Graphs as files, and what carries them out: ONNX Runtime and OpenVINO.

The only file that imports `onnx`, `onnxruntime`, `openvino` and `nncf`.
"""

import contextlib
import importlib
import io
import logging
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from openblip.deploy.graphs import Part, Port
from openblip.runtime.errors import CheckpointError, RecipeError, install_extra, one_line
from openblip.runtime.threads import BRIEF_MICROSECONDS, may_spin

Format = Literal["onnx", "openvino"]
Arrays = Mapping[str, NDArray[Any]]
Run = Callable[[Arrays], list[NDArray[Any]]]

WEIGHTS_FILE = "weights.bin"
"""Holds the weights of all graphs of ONNX: one that several have stands there once."""
SUFFIXES: dict[Format, str] = {"onnx": ".onnx", "openvino": ".xml"}
"""Of a graph's file."""
OPSET = 20
"""Of ONNX: the first with GELU as one operator."""
_NEEDED: dict[Format, tuple[str, ...]] = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "openvino"),
}
_EXTRAS: dict[Format, str] = {"onnx": "export", "openvino": "openvino"}
# Smaller tensors stay in the graph: shapes and the like, which a reader may ask for early.
_LEAST_SHARED_BYTES = 1024
_PAGE = 4096
# Release of ONNX Runtime in which the time that threads spin can be set.
_SPINS_BRIEFLY = (1, 26)


def check_installed(to: Format, int8: bool = False) -> None:
    """Nothing, if the packages are there that write graphs of a format, and read them again.

    Raises:
        RecipeError: one is missing.
    """
    for name in (*_NEEDED[to], *(("nncf",) if int8 and to == "openvino" else ())):
        try:
            importlib.import_module(name)
        except ImportError as error:
            remedy = "pip install nncf" if name == "nncf" else install_extra(_EXTRAS[to])
            raise RecipeError(
                f"export to {to} needs {name} ({one_line(error)}): {remedy}"
            ) from error


EXAMPLE_SIZES = {
    "images": 2,
    "texts": 3,
    "questions": 3,
    "tokens": 5,
    "memory_tokens": 6,
    "past": 4,
}
"""Of the axes, when a graph is made. No two that meet are equal, and none is 0 or 1, which
`torch.export` would take for all that there is."""


def make_graph(part: Part) -> Any:
    """A part as a graph of ONNX, an `onnx.ModelProto` with its weights in it.

    Raises:
        CheckpointError: PyTorch cannot make a graph of the part.
    """
    example = part.example(EXAMPLE_SIZES)
    with _quiet(), torch.no_grad(), _PlainAttention():
        try:
            # Made here: left to `torch.onnx`, a part that fails is traced again with fixed sizes.
            program = torch.export.export(
                part.module, example, dynamic_shapes=(_dynamic_axes(part.inputs),)
            )
            graph = torch.onnx.export(
                program,
                dynamo=True,
                input_names=[port.name for port in part.inputs],
                output_names=[port.name for port in part.outputs],
                opset_version=OPSET,
            )
        except Exception as error:  # both raise many kinds
            raise CheckpointError(
                f"the {part.name} cannot be made a graph ({one_line(error)}); a backbone of "
                "somebody else's may do what a graph has no word for"
            ) from error
    assert graph is not None
    return _named(part, graph.model_proto)


class _PlainAttention(TorchFunctionMode):
    """Attention is traced as products.

    PyTorch's own translation turns the keys around between two changes of their shape, so that no
    runtime can make that a part of the product: at each step of a text all keys of its image would
    be copied, which takes as long as everything else (`benchmarks/results/anchors_intel.md`).
    """

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            return _attended(*args, **kwargs or {})
        return func(*args, **kwargs or {})


def _attended(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """As `F.scaled_dot_product_attention`, whose arguments these are, without dropout."""
    if enable_gqa:
        heads = query.shape[-3]
        key, value = (
            each.repeat_interleave(heads // each.shape[-3], dim=-3) for each in (key, value)
        )
    # The few numbers of the queries are scaled, not those of the keys.
    scores = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.mT
    # Not minus infinity: of a row that attends to nothing it would make no number.
    least = torch.finfo(scores.dtype).min
    if attn_mask is not None and attn_mask.dtype != torch.bool:
        scores = scores + attn_mask
    elif attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, least)
    if is_causal:
        # As PyTorch counts: the first query stands beside the first key.
        keys, queries = torch.arange(key.shape[-2]), torch.arange(query.shape[-2])
        scores = scores.masked_fill(keys > queries[:, None], least)
    return scores.softmax(dim=-1) @ value


def _dynamic_axes(ports: Sequence[Port]) -> tuple[dict[int, Any], ...]:
    """Of each input the axes of any size: `torch.export` refuses a part that fixes one."""
    dynamic = torch.export.Dim.DYNAMIC
    return tuple(
        {place: dynamic for place, axis in enumerate(port.shape) if isinstance(axis, str)}
        for port in ports
    )


def _named(part: Part, graph: Any) -> Any:
    """The graph with our names of axes, without what the exporter noted of this machine."""
    body = graph.graph
    del body.value_info[:]
    for holder in (graph, body, *graph.functions, *body.node, *body.initializer):
        del holder.metadata_props[:]
        holder.ClearField("doc_string")
    for values, ports in ((body.input, part.inputs), (body.output, part.outputs)):
        for value, port in zip(values, ports, strict=True):
            assert value.name == port.name, f"{part.name}: {value.name} is not {port.name}"
            del value.metadata_props[:]
            for dim, axis in zip(value.type.tensor_type.shape.dim, port.shape, strict=True):
                if isinstance(axis, str):
                    dim.dim_param = axis
    return graph


def quantised(graph: Any) -> Any:
    """The graph with products that multiply 8-bit integers, for ONNX Runtime.

    Weights are rounded for each output, activations as they come.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder, _quiet():
        file = Path(folder, "graph.onnx")
        quantize_dynamic(
            graph,
            file,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            # On a processor without instructions for it, sums of larger products overflow.
            reduce_range=True,
            weight_type=QuantType.QInt8,
            extra_options={"MatMulConstBOnly": True},
        )
        return onnx.load(file)


class OnnxFolder:
    """Graphs in a folder, and a file of their weights in which equal ones stand once."""

    def __init__(self, folder: Path) -> None:
        """Begins an empty file of weights."""
        self._folder = folder
        self._places: dict[bytes, tuple[int, int]] = {}
        (folder / WEIGHTS_FILE).write_bytes(b"")

    def write(self, name: str, graph: Any) -> None:
        """Write a graph, whose larger tensors then name their place in the file of weights."""
        from onnx import TensorProto
        from onnx.external_data_helper import set_external_data

        with (self._folder / WEIGHTS_FILE).open("ab") as file:
            for tensor in graph.graph.initializer:
                if len(tensor.raw_data) < _LEAST_SHARED_BYTES:
                    continue
                set_external_data(tensor, WEIGHTS_FILE, *self._place(file, tensor.raw_data))
                tensor.ClearField("raw_data")
                tensor.data_location = TensorProto.EXTERNAL
        path = self._folder / f"{name}{SUFFIXES['onnx']}"
        path.write_bytes(graph.SerializeToString())

    def _place(self, file: BinaryIO, content: bytes) -> tuple[int, int]:
        """Where bytes stand in the file, and how many they are."""
        key = sha256(content).digest()
        if key not in self._places:
            # Readers map whole pages into memory.
            file.write(b"\0" * (-file.tell() % _PAGE))
            self._places[key] = (file.tell(), len(content))
            file.write(content)
        return self._places[key]


def write_openvino(graph: Any, path: Path, int8: bool = False) -> None:
    """Write a graph of ONNX as OpenVINO's own files: `path`, and its weights beside it.

    Args:
        graph: of `make_graph`.
        path: ends in `.xml`.
        int8: whether weights are stored as 8-bit integers, with a scale for each output.
    """
    import openvino

    with _quiet():
        model = openvino.Core().read_model(graph.SerializeToString())
        if int8:
            import nncf

            model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM)
        # By default it would round weights to float16.
        openvino.save_model(model, path, compress_to_fp16=False)


def open_graph(file: Path, threads: int | None = None, precision: str = "f32") -> Run:
    """A graph's file as a function of named arrays; it gives arrays in the order of its outputs.

    Args:
        file: of `OnnxFolder` or `write_openvino`.
        threads: by default as many as there are cores.
        precision: of OpenVINO's products, "f32" or "bf16".

    Raises:
        CheckpointError: the runtime cannot read it.
    """
    is_onnx = file.suffix == SUFFIXES["onnx"]
    try:
        return _open_onnx(file, threads) if is_onnx else _open_ir(file, threads, precision)
    except ImportError as error:
        extra = _EXTRAS["onnx" if is_onnx else "openvino"]
        raise RecipeError(f"{file}: {one_line(error)}; {install_extra(extra)}") from error
    except Exception as error:  # runtimes raise kinds of their own
        raise CheckpointError(f"{file}: cannot be opened ({one_line(error)})") from error


def _open_onnx(file: Path, threads: int | None) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    # As threads of PyTorch do, see `spin_briefly`. An earlier release would spin for much longer.
    release = tuple(map(int, onnxruntime.__version__.split(".")[:2]))
    spins = may_spin() and release >= _SPINS_BRIEFLY
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spins)))
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(BRIEF_MICROSECONDS))
    # 3: errors. It warns of weights that a part of the model does not use.
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def run(arrays: Arrays) -> list[NDArray[Any]]:
        found: list[NDArray[Any]] = session.run(None, dict(arrays))
        return found

    return run


def _open_ir(file: Path, threads: int | None, precision: str) -> Run:
    import openvino

    # Its own guess of the precision is bfloat16 where the processor has it.
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": precision}
    settings["PERFORMANCE_HINT"] = "LATENCY"
    if threads:
        settings["INFERENCE_NUM_THREADS"] = threads
    request = openvino.Core().compile_model(file, "CPU", settings).create_infer_request()

    # A request holds its outputs until the next call: two threads would take each other's.
    lock = threading.Lock()

    def run(arrays: Arrays) -> list[NDArray[Any]]:
        with lock:
            results = request.infer(dict(arrays), share_inputs=True)
            return [np.array(results[number]) for number in range(len(results))]

    return run


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what exporters tell of their steps, on both outputs and in logs."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
