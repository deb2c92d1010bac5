"""Products of matrices and attention, each done as a processor does its shape fastest.

PyTorch sends float32 products to a library of its own (on x86 MKL), which on some processors uses
half of the vector width: oneDNN, which PyTorch has too, is there twice as fast, and on others it is
slower (`docs/log.md`). Which one a direction takes (forward, the gradients of input and weight, and
forward of few rows) is measured once on each machine. oneDNN's product is reached through the
operator that `torch.compile` puts into graphs; it has no gradient of its own, so `_Product` gives
it one.
"""

import json
import os
import platform
import threading
import time
from collections.abc import Callable
from functools import cache
from hashlib import blake2b
from itertools import repeat
from math import log
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, cast, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import _disable_current_modes

from openblip.runtime.atomic import agreed_text, cache_folder
from openblip.runtime.errors import RecipeError
from openblip.runtime.threads import one_thread

# Multiply-adds from which a product with a gradient is a function of ours: in smaller ones, what it
# costs to call an autograd function written in Python is more than the product saves.
_WORTH_A_FUNCTION = 2**22
_WITH_GRADIENT: tuple["Direction", ...] = ("forward", "input", "weight")
# Numbers in both operands of a weight's gradient from which oneDNN's product is up to a fifth
# faster, copies included, once both lie by rows.
_BEYOND_CACHES = 2**22


class Linear(nn.Linear):
    """`torch.nn.Linear`; a state dict, and a gradient, are the same."""

    is_plain: ClassVar[bool] = True
    """Whether weight and bias are all that it computes with."""

    def forward(self, hidden: Float[Tensor, "*rows inner"]) -> Float[Tensor, "*rows outer"]:
        return linear(hidden, self.weight, self.bias)

    def of_normed(
        self, hidden: Float[Tensor, "*rows inner"], norm: nn.LayerNorm
    ) -> Float[Tensor, "*rows outer"]:
        """Of `norm` of the states, which is not kept for the backward pass but computed again."""
        normed = norm(hidden)
        if _has_own_gradient(normed, self.weight):
            return _product(normed, self.weight, self.bias, hidden, norm)
        return cast("Tensor", self(normed))

    def with_gelu(self, hidden: Float[Tensor, "*rows inner"]) -> Float[Tensor, "*rows outer"]:
        """The exact GELU of the outputs, applied where they are made."""
        if not torch.is_grad_enabled() and _takes_onednn(hidden, self.weight):
            return onednn_linear(hidden, self.weight, self.bias, "gelu")
        return F.gelu(self(hidden))


def linear(
    hidden: Float[Tensor, "*rows inner"],
    weight: Float[Tensor, "outer inner"],
    bias: Float[Tensor, " outer"] | None,
) -> Float[Tensor, "*rows outer"]:
    """`F.linear`, up to rounding; a gradient has no gradient itself."""
    if torch.is_grad_enabled():
        if _has_own_gradient(hidden, weight) and any(map(prefers_onednn, _WITH_GRADIENT)):
            return _product(hidden, weight, bias)
    elif _takes_onednn(hidden, weight):
        return onednn_linear(hidden, weight, bias)
    return F.linear(hidden, weight, bias)


def mlp(
    hidden: Float[Tensor, "*rows width"], up: Linear, down: Linear, norm: nn.LayerNorm | None = None
) -> Float[Tensor, "*rows width"]:
    """`down` of the exact GELU of `up`, of `norm` of the states if there is one.

    In float32 on a processor, what GELU and norm give is not kept for the backward pass but
    computed again: the hidden layer after GELU is as large as before, and to read it would take as
    long as to compute it.
    """
    normed = hidden if norm is None else norm(hidden)
    if up.is_plain and down.is_plain and _has_own_gradient(normed, up.weight):
        weights = (up.weight, up.bias, down.weight, down.bias)
        kept = (None, None) if norm is None else (hidden, norm)
        return cast("Tensor", _Mlp.apply(normed, *weights, *kept))  # type: ignore[no-untyped-call]
    return cast("Tensor", down(up.with_gelu(normed)))


def onednn_linear(
    hidden: Float[Tensor, "*rows inner"],
    weight: Float[Tensor, "outer inner"],
    bias: Float[Tensor, " outer"] | None = None,
    activation: Literal["none", "gelu"] = "none",
) -> Float[Tensor, "*rows outer"]:
    """`F.linear` by oneDNN, for float32 on a processor with `has_onednn`; without a gradient."""
    # The last "none" names the exact GELU, not the tanh approximation.
    out: Tensor = torch.ops.mkldnn._linear_pointwise(hidden, weight, bias, activation, [], "none")
    return out


Direction = Literal["forward", "input", "weight", "few"]
"""Of a product: forward, or the gradient of its input or of its weight; and forward of `FEW_ROWS`
rows or fewer, without a gradient, as when a caption is written word by word."""
FEW_ROWS = 32
"""To read the weight takes longer than to multiply it: other rules than those of large products."""


def _faster_linear(
    hidden: Tensor, weight: Tensor, bias: Tensor | None = None, direction: Direction = "forward"
) -> Tensor:
    """`F.linear` by the faster library, for tensors of a product with `_has_own_gradient`."""
    by_library = onednn_linear if prefers_onednn(direction) else F.linear
    return by_library(hidden, weight, bias)


Again = Callable[[Tensor], Tensor]


def _product(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    source: Tensor | None = None,
    again: Again | None = None,
) -> Tensor:
    return cast("Tensor", _Product.apply(hidden, weight, bias, source, again))  # type: ignore[no-untyped-call]


class _Product(torch.autograd.Function):
    """A product with a gradient, which is two products of the same library.

    With `again`, which gives `hidden` from `source`, `source` is kept in its place.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        source: Tensor | None,
        again: Again | None,
    ) -> Tensor:
        for_hidden, for_weight = ctx.needs_input_grad[:2]
        ctx.again = again
        kept = hidden if again is None else source
        ctx.save_for_backward(kept if for_weight else None, weight if for_hidden else None)
        return _faster_linear(hidden, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        kept, weight = ctx.saved_tensors
        grad = grad.contiguous()
        return (
            _faster_linear(grad, weight.t(), None, "input") if weight is not None else None,
            _weight_gradient(grad, _again(ctx, kept)) if kept is not None else None,
            _by_row(grad).sum(0) if ctx.needs_input_grad[2] else None,
            None,
            None,
        )


class _Mlp(torch.autograd.Function):
    """Two products with GELU between them; of the hidden layer what GELU takes is kept."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        up: Tensor,
        up_bias: Tensor,
        down: Tensor,
        down_bias: Tensor,
        source: Tensor | None,
        again: Again | None,
    ) -> Tensor:
        inner = _faster_linear(hidden, up, up_bias)
        ctx.again = again
        kept = hidden if again is None else source
        ctx.save_for_backward(kept if ctx.needs_input_grad[1] else None, inner, up, down)
        return _faster_linear(F.gelu(inner), down, down_bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        kept, inner, up, down = ctx.saved_tensors
        for_hidden, for_up, for_up_bias, for_down, for_down_bias, _, _ = ctx.needs_input_grad
        grad = grad.contiguous()
        down_grad = _weight_gradient(grad, F.gelu(inner)) if for_down else None
        inner_grad = _faster_linear(grad, down.t(), None, "input")
        torch.ops.aten.gelu_backward.grad_input(inner_grad, inner, grad_input=inner_grad)
        return (
            _faster_linear(inner_grad, up.t(), None, "input") if for_hidden else None,
            _weight_gradient(inner_grad, _again(ctx, kept)) if for_up else None,
            _by_row(inner_grad).sum(0) if for_up_bias else None,
            down_grad,
            _by_row(grad).sum(0) if for_down_bias else None,
            None,
            None,
        )


def _again(ctx: Any, kept: Tensor) -> Tensor:
    out: Tensor = kept if ctx.again is None else ctx.again(kept)
    return out


def _weight_gradient(grad: Tensor, hidden: Tensor) -> Tensor:
    """The gradient of a weight, laid out as the weight is: the transposed product is not."""
    by_column = _by_row(grad).t(), _by_row(hidden).t()
    if prefers_onednn("weight") and grad.numel() + hidden.numel() > _BEYOND_CACHES:
        # The first operand is copied in any case; the second need not be, but takes long to read.
        by_column = by_column[0].contiguous(), by_column[1].contiguous()
    return _faster_linear(*by_column, None, "weight")


def _by_row(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1, tensor.shape[-1])


@cache
def has_onednn() -> bool:
    """Whether this is an x86 processor, and a PyTorch with the operator."""
    return (
        bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
        and torch.backends.cpu.get_cpu_capability().startswith("AVX")
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


Library = Literal["torch", "onednn"]
"""PyTorch's own products, or oneDNN's."""
PRODUCTS_VARIABLE = "OPENBLIP_PRODUCTS"


class Products(NamedTuple):
    """Which library does the float32 products of each direction on a processor."""

    forward: Library
    input: Library
    weight: Library
    few: Library

    @staticmethod
    def of(text: str) -> "Products":
        """The choice that a text names: one library for all, or one for each direction.

        Between commas; without the last, few rows take what many do.

        Raises:
            RecipeError: it names something else.
        """
        names = text.split(",")
        if set(names) <= set(get_args(Library)) and len(names) in (1, 3, 4):
            names = {1: names * 4, 3: [*names, names[0]], 4: names}[len(names)]
            return Products(*cast("list[Library]", names))
        raise RecipeError(
            f"{text!r} names no products: give {' or '.join(get_args(Library))}, or several of "
            "them between commas for forward, gradient of the input, gradient of the weight, few "
            "rows"
        )

    def __str__(self) -> str:
        return ",".join(self)


def prefers_onednn(direction: Direction = "forward") -> bool:
    """Whether oneDNN does the products of a direction."""
    return has_onednn() and getattr(products(), direction) == "onednn"


_given: list[Products] = []


def products() -> Products:
    """The choice of this process: what `use_products` said, or else this machine's.

    The environment variable OPENBLIP_PRODUCTS decides for the machine; without it the choice is
    measured when it is first asked for, in half a second, and kept in the user's cache
    folder: all processes of a machine have the same, and so have all runs on it.
    """
    return _given[-1] if _given else _of_this_machine(os.environ.get(PRODUCTS_VARIABLE, ""))


def use_products(choice: Products) -> None:
    """Let this process take another choice than this machine's from here on.

    A run that is resumed takes the one that it began with: another library rounds otherwise.
    """
    _given[:] = [choice]


def machine_key() -> str:
    """12 hexadecimal digits: equal where the choice is, on this processor with this PyTorch."""
    known = [platform.machine(), torch.backends.cpu.get_cpu_capability(), torch.__version__]
    cores = Path("/proc/cpuinfo")
    if cores.exists():
        # Of the first core; its clock rate is another at every reading.
        lines = cores.read_text(encoding="utf-8", errors="replace").split("\n\n")[0].splitlines()
        known += [line for line in lines if line.startswith(("model", "cpu family", "stepping"))]
    known.append(platform.processor())
    return blake2b("\n".join(known).encode(), digest_size=6).hexdigest()


_choosing = threading.Lock()


@cache
def _of_this_machine(asked: str) -> Products:
    if asked:
        return Products.of(asked)
    if not has_onednn():
        return Products.of("torch")
    with _choosing:
        place = cache_folder() / f"products-by-shape-{machine_key()}.json"
        # Whoever comes first decides for all: two processes may measure at once, and differ.
        text = agreed_text(place, lambda: json.dumps(_measured()))
    try:
        return Products.of(json.loads(text)["products"])
    except (ValueError, KeyError, TypeError, RecipeError):
        # Nowhere to keep it, or damaged: what is measured twice may come out otherwise, so that
        # processes would differ. By the vendor's name then, which says the same to all.
        return Products.of("torch" if _is_intel() else "onednn")


def _is_intel() -> bool:
    # PyTorch 2.8 does not say which processor this is: it counts as one without a name.
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return str(capabilities.get("cpu_name", "")).startswith("Intel")


# Rows, inputs and outputs: of small and large models.
_MEASURED = ((256, 768, 768), (577, 768, 768), (512, 384, 384), (1576, 96, 384))
# Beams of one image, with weights that are larger than a core's cache, as they are when a whole
# model is read between two uses of one.
_MEASURED_FEW = ((3, 768, 3072), (3, 3072, 768), (3, 768, 8192))
_MEASURED_ROUNDS = 4
# oneDNN's product is taken where it is so many times as fast. Where it is faster at all it is twice
# as fast, since it uses vectors of twice the width; less than this is noise, and PyTorch's own is
# the faster one for the shapes that are not measured, the smallest ones.
_WORTH_ANOTHER = 1.25
# Of few rows PyTorch's own product hardly gains by a second thread, and oneDNN's does (3 rows of
# 768 to 30,524 numbers on two AVX2 cores: 30.9 and 9.0 ms): what one thread shows is the least.
_WORTH_ANOTHER_FOR_FEW = 1.0


def _measured() -> dict[str, Any]:
    """The choice, and of each direction how many times as fast oneDNN is, the mean over shapes."""
    speedup: dict[Direction, float] = {}
    # One thread: what several reach depends on what else runs on this machine just now. The modes
    # are those of somebody who counts operations, or makes a step on tensors without content.
    with _disable_current_modes(), torch.inference_mode(), one_thread():
        for direction in get_args(Direction):
            shapes = _MEASURED_FEW if direction == "few" else _MEASURED
            ratios = [_ratio(direction, *shape) for shape in shapes]
            speedup[direction] = sum(map(log, ratios)) / len(ratios)
    worth = dict.fromkeys(speedup, _WORTH_ANOTHER) | {"few": _WORTH_ANOTHER_FOR_FEW}
    chosen: dict[str, Library] = {
        direction: "onednn" if value > log(worth[direction]) else "torch"
        for direction, value in speedup.items()
    }
    return {"products": str(Products(**chosen)), "log_speedup": speedup}


def _ratio(direction: Direction, rows: int, inner: int, outer: int) -> float:
    """How many times as fast oneDNN is, of the fastest of some calls that take turns."""

    def filled(*shape: int) -> Tensor:
        return torch.full(shape, 0.5, device="cpu", dtype=torch.float32)

    hidden, weight, grad = filled(rows, inner), filled(outer, inner), filled(rows, outer)
    first, second = {
        "forward": (hidden, weight),
        "few": (hidden, weight),
        "input": (grad, weight.t()),
        "weight": (grad.t(), hidden.t()),
    }[direction]
    libraries: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (F.linear, onednn_linear)
    least = [float("inf")] * 2
    for _ in repeat(None, _MEASURED_ROUNDS):
        for number, by_library in enumerate(libraries):
            # This thread's own time: another program that gets the core in between is not counted.
            began = time.thread_time()
            by_library(first, second)
            least[number] = min(least[number], time.thread_time() - began)
    return least[0] / least[1]


def is_processor_product(hidden: Tensor, weight: Tensor) -> bool:
    """Whether a product is in float32 on a processor, outside of graphs and without autocast."""
    return (
        # Asked first: whatever else is asked, a compiled graph would be guarded by.
        not torch.compiler.is_compiling()
        and hidden.device.type == "cpu"
        and hidden.dtype == weight.dtype == torch.float32
        # A quantised weight is a tensor of another class, with a product of its own.
        and type(weight) in (Tensor, nn.Parameter, FakeTensor)
        and hidden.numel() > 0
        and not torch.is_autocast_enabled("cpu")
    )


def _has_own_gradient(hidden: Tensor, weight: Tensor) -> bool:
    """Whether a product with a gradient is a function of ours."""
    return (
        torch.is_grad_enabled()
        and is_processor_product(hidden, weight)
        and hidden.numel() * len(weight) >= _WORTH_A_FUNCTION
    )


def _takes_onednn(hidden: Tensor, weight: Tensor) -> bool:
    if not is_processor_product(hidden, weight):
        return False
    has_few = hidden.numel() <= FEW_ROWS * weight.shape[1]
    return prefers_onednn("few" if has_few else "forward")


# Up to so many queries, reading keys and values takes the time: a plain product reads them at
# about twice the rate at which PyTorch's fused attention does on a processor.
_FEW_QUERIES = 32
_MANY_KEYS = 128
# From so many keys on, a head is worth two calls of its own: 577 at 384 px are, 197 at 224 not.
_VERY_MANY_KEYS = 256


def attend(
    query: Float[Tensor, "batch heads queries head_dim"],
    key: Float[Tensor, "batch heads keys head_dim"],
    value: Float[Tensor, "batch heads keys head_dim"],
    mask: Bool[Tensor, "#batch 1 #queries keys"] | None = None,
    dropout: float = 0.0,
) -> Float[Tensor, "batch heads queries head_dim"]:
    """`F.scaled_dot_product_attention`, up to rounding.

    Args:
        query: of the tokens that attend.
        key: of the tokens that are attended to.
        value: of the same tokens.
        mask: True = attend; None attends to all.
        dropout: probability that an attention weight is dropped.
    """
    if mask is None and dropout == 0.0 and _is_inference(query) and key.shape[2] >= _MANY_KEYS:
        if query.shape[2] <= _FEW_QUERIES:
            return _by_plain_products(query, key, value)
        if key.shape[2] >= _VERY_MANY_KEYS and prefers_onednn():
            return _head_by_head(query, key, value)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)


def _is_inference(query: Tensor) -> bool:
    return (
        not torch.compiler.is_compiling()
        and not torch.is_grad_enabled()
        and query.device.type == "cpu"
        and query.dtype == torch.float32
        and query.numel() > 0
    )


def _by_plain_products(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(2, 3)
    out: Tensor = scores.softmax(dim=-1) @ value
    return out


def _head_by_head(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """A head's scores stay in the cache between its two products, which oneDNN does."""
    batch, heads, queries, head_dim = query.shape
    scaled = (query * head_dim**-0.5).contiguous()
    key = key.contiguous()
    value_columns = value.transpose(2, 3).contiguous()
    # In the order in which the heads are joined, so that joining them copies nothing.
    out = query.new_empty(batch, queries, heads, head_dim)
    for row in range(batch):
        for head in range(heads):
            scores = onednn_linear(scaled[row, head], key[row, head])
            torch.softmax(scores, dim=-1, out=scores)
            out[row, :, head] = onednn_linear(scores, value_columns[row, head])
    return out.transpose(1, 2)
