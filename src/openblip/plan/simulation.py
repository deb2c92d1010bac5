"""Tensors without numbers: a program runs at any size in no memory, and is watched as it runs.

PyTorch's fake tensors have shape, type and storage but no content. `Simulation` runs a program on
them and keeps count of the storages that are alive, so that the memory of a training step is
counted on the step itself, with what autograd saves, and not by formulas that the code outgrows.

Fake tensors take the processor's kernels. `accelerator_kernels` makes the choices that decide how
much is kept for the backward pass as PyTorch makes them on CUDA.
"""

import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map_only
from torch.utils.module_tracker import ModuleTracker

from openblip.model import kernels, packing, vision
from openblip.model.flops import flop_counter

# Of PyTorch's operators these are known by name, because their results depend on numbers:
# `_local_scalar_dense` (`.item()`, `int(tensor)`, `.tolist()`), `nonzero` (packing), `index` with a
# mask (labelled positions), and `argmax` (which negative is drawn). Any other with such a result,
# as `unique` or `masked_select`, ends the simulation with an error of PyTorch's, not with a wrong
# figure. `accelerator_kernels` relies on two more: the flash and the memory-efficient attention.
aten = torch.ops.aten
# Results up to so many elements are computed beside the fakes: masks, labels, indices.
_MOST_KNOWN = 2**22
# The same of floating-point results: a few settings.
_MOST_KNOWN_FLOATS = 2**10


class Simulation(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's base
    """Runs what is called within it on fake tensors, and counts their memory and its arithmetic.

    What a program reads back (lengths of texts, which positions have a label) must be known, so
    small results that follow from real tensors and sizes alone are computed as well. Where a draw
    depends on features, which have no values, row r draws candidate r + 1; a number that depends
    on them is 1.

    Use as a context manager.

    Attributes:
        alive: bytes of living storages by label.
        peak: what `alive` was when its sum was largest.
        operations: of all products that ran, as `flop_counter` knows them.
        recomputed: those among them that a forward pass of a watched module did in a backward pass.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch
        self.alive: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self._total = self._most = 0
        self._labels: list[str] = [""]
        self._label_of: dict[int, str] = {}
        self._fakes = FakeTensorMode(allow_non_fake_inputs=True)
        # Its table alone: as a context, PyTorch's counter keeps tensors alive.
        self._known_products = flop_counter().flop_registry
        self._tracker = ModuleTracker()
        self.operations = self.recomputed = self._depth = 0

    def __enter__(self) -> Self:
        self._fakes.__enter__()
        super().__enter__()  # type: ignore[no-untyped-call]  # torch
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]  # torch
        self._fakes.__exit__(*error)

    def stage(self, label: str) -> None:
        """Begin a stage of the program: what is allocated from here on has its label."""
        self._labels = [label]

    def within(self, module: nn.Module, label: str | Callable[[Any], str]) -> None:
        """Give what a module's forward allocates a label; of nested modules the inner one's.

        Args:
            module: gets hooks.
            label: or a function of the forward's first argument that returns it.
        """

        def enter(_: nn.Module, arguments: tuple[Any, ...]) -> None:
            self._labels.append(label if isinstance(label, str) else label(arguments[0]))

        def leave(*_: Any) -> None:
            self._labels.pop()

        module.register_forward_pre_hook(enter)
        # What a checkpointed layer computes again ends early, by an exception.
        module.register_forward_hook(leave, always_call=True)

    def watch(self, module: nn.Module) -> None:
        """Tell what the module's forward computes again, for checkpointing, from all else."""

        def move(by: int) -> Callable[..., None]:
            def hook(*_: Any) -> None:
                self._depth += by

            return hook

        module.register_forward_pre_hook(move(1))
        module.register_forward_hook(move(-1), always_call=True)

    def relabel(self, tensor: Tensor, label: str) -> None:
        """Let a tensor's storage have another label from here on."""
        storage = tensor.untyped_storage()
        before, size = self._label_of.get(storage._cdata), storage.nbytes()
        if before is not None:
            self._label_of[storage._cdata] = label
            self.alive[before] -= size
            self.alive[label] += size

    def forget_peak(self) -> None:
        """Let the peak be that of what comes from here on."""
        self._most = 0
        self._raise_peak()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = self._run(func, args, kwargs or {})
        if (product := self._known_products.get(func._overloadpacket)) is not None:
            done = product(*args, **(kwargs or {}), out_val=out)
            self.operations += done
            if self._depth and self._tracker.is_bw:
                self.recomputed += done
        for leaf in tree_flatten(out)[0]:
            if isinstance(leaf, FakeTensor):
                self._count(leaf)
        return out

    def _run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func is aten._local_scalar_dense.default:
            # A number that nobody knows is 1: it divides and scales without harm.
            value = _value_of(args[0])
            with unset_fake_temporarily():
                return torch.ones((), dtype=args[0].dtype).item() if value is None else value.item()
        if func is aten.index.Tensor and (index := self._plain_index(args[1])) is not None:
            args = (args[0], index)
        elif func is aten.nonzero.default:
            return self._known(_places(args[0]))
        out = func(*args, **kwargs)
        # Were all rows to draw the same candidate, its text's length would stand for all lengths.
        if func is aten.argmax.default and _value_of(args[0]) is None:
            self._remember(out, _next_row(args[0], out))
        elif _is_small(out):
            values = _computed(func, args, kwargs)
            several = isinstance(out, list | tuple)
            for number, each in enumerate(out if several else [out]):
                self._remember(each, values[number] if several and values is not None else values)
        return out

    def _plain_index(self, indices: Any) -> list[Tensor | None] | None:
        """Indices without a mask, whose number of elements a fake would not tell."""
        if not any(each is not None and each.dtype == torch.bool for each in indices):
            return None
        plain: list[Tensor | None] = []
        for each in indices:
            if each is None or each.dtype != torch.bool:
                plain.append(each)
            else:
                plain += [self._known(column) for column in _columns(each)]
        return plain

    def _known(self, value: Tensor) -> Tensor:
        fake = self._fakes.from_tensor(value)
        self._remember(fake, value)
        return fake

    @staticmethod
    def _remember(fake: Any, value: Tensor | None) -> None:
        if value is not None:
            fake.known_value = value
        elif hasattr(fake, "known_value"):
            # Written in place with what nobody knows.
            del fake.known_value

    def _count(self, tensor: Tensor) -> None:
        # Storages, not tensors: views share one. It is told apart by its address, as Python may
        # wrap the same one again and again; the address is free again once it has died.
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._label_of:
            return
        self._label_of[key] = self._labels[-1]
        self.alive[self._labels[-1]] += size
        self._total += size
        # Autograd frees what it saved at moments that no operator shows.
        weakref.finalize(storage, self._free, key, size).atexit = False
        self._raise_peak()

    def _free(self, key: int, size: int) -> None:
        self.alive[self._label_of.pop(key)] -= size
        self._total -= size

    def _raise_peak(self) -> None:
        if self._total > self._most:
            self._most = self._total
            self.peak = Counter(self.alive)


@contextmanager
def unsimulated() -> Iterator[None]:
    """Within it tensors are real, as outside of the simulation, and no memory is counted."""
    with _disable_current_modes():
        yield


def _value_of(tensor: Any) -> Tensor | None:
    """The content of a tensor, if it is known."""
    if isinstance(tensor, FakeTensor):
        value: Tensor | None = getattr(tensor, "known_value", None)
        return value
    return tensor if isinstance(tensor, Tensor) else None


def _places(mask: Tensor) -> Tensor:
    """Where a mask is true; one that is not known is true everywhere."""
    value = _value_of(mask)
    with unset_fake_temporarily():
        known = torch.ones(mask.shape, dtype=torch.bool) if value is None else value
        return known.nonzero()


def _columns(mask: Tensor) -> tuple[Tensor, ...]:
    places = _places(mask)
    with unset_fake_temporarily():
        return places.unbind(1)


def _next_row(scores: Tensor, out: Tensor) -> Tensor:
    with unset_fake_temporarily():
        rows = torch.arange(1, out.numel() + 1) % max(scores.shape[-1], 1)
        return rows.reshape(out.shape)


def _is_small(out: Any) -> bool:
    if isinstance(out, list | tuple):
        return len(out) > 0 and all(_is_small(each) for each in out)
    if not isinstance(out, FakeTensor):
        return False
    most = _MOST_KNOWN_FLOATS if out.is_floating_point() else _MOST_KNOWN
    return out.numel() <= most


def _computed(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The result of an operation whose arguments are all known; None of any other."""
    # A draw would take numbers from the generator of the process.
    if torch.Tag.nondeterministic_seeded in func.tags:
        return None
    leaves = tree_flatten((args, kwargs))[0]
    if any(isinstance(leaf, Tensor) and _value_of(leaf) is None for leaf in leaves):
        return None
    with unset_fake_temporarily():
        real_args, real_kwargs = tree_map_only(Tensor, _value_of, (args, kwargs))
        return func(*real_args, **real_kwargs)


@contextmanager
def accelerator_kernels() -> Iterator[None]:
    """Within it, attention is fused, and layer norms compute in float32 under autocast.

    - Attention without a mask in bfloat16 goes to the flash kernel, all other to the
      memory-efficient one; both keep the output and one number per query, with dropout too, where
      a processor keeps the probabilities.
    - Under autocast CUDA's layer norm reads and gives float32, a processor's the type that it gets.
    - The teacher encodes all images at once.
    - Products are no functions of ours that compute again what they read.
    - Texts keep their padding.

    The two functions of PyTorch's are exchanged in `torch.nn.functional` for the time: a mode of
    PyTorch's would not see what a backward pass computes again.
    """
    attention, layer_norm = F.scaled_dot_product_attention, F.layer_norm
    patches_at_once, is_ours = vision.PATCHES_AT_ONCE, kernels.is_processor_product
    removes_padding = packing.removes_padding

    def float32_norm(hidden: Tensor, *others: Any, **named: Any) -> Tensor:
        whole = hidden.float() if torch.is_autocast_enabled("cpu") else hidden
        return layer_norm(whole, *others, **named)

    # Of the callers our models give no further arguments, and backbones a scale.
    F.scaled_dot_product_attention = _fused_attention  # type: ignore[assignment]
    F.layer_norm = float32_norm  # type: ignore[assignment]
    vision.PATCHES_AT_ONCE = sys.maxsize
    kernels.is_processor_product = lambda hidden, weight: False
    packing.removes_padding = lambda device: False
    try:
        yield
    finally:
        F.scaled_dot_product_attention, F.layer_norm = attention, layer_norm
        vision.PATCHES_AT_ONCE, kernels.is_processor_product = patches_at_once, is_ours
        packing.removes_padding = removes_padding


def _fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    **others: Any,
) -> Tensor:
    if attn_mask is None and query.dtype == torch.bfloat16:
        outputs = aten._scaled_dot_product_flash_attention(
            query, key, value, dropout_p, is_causal, scale=scale
        )
        return cast("Tensor", outputs[0])
    bias = None
    if attn_mask is not None:
        shape = (query.shape[0], query.shape[1], query.shape[2], key.shape[2])
        bias = torch.zeros_like(attn_mask, dtype=query.dtype).expand(shape)
    keeps = torch.is_grad_enabled()
    outputs = aten._scaled_dot_product_efficient_attention(
        query, key, value, bias, keeps, dropout_p, is_causal, scale=scale
    )
    return cast("Tensor", outputs[0])
