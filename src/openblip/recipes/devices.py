"""Accelerators that a run may be planned for: memory, arithmetic and links, from data sheets."""

import os
from dataclasses import dataclass

import torch

from openblip.errors import RecipeError
from openblip.training.config import Precision
from openblip.training.utilisation import measure_peak

_GB = 10**9
_TERA = 10**12


@dataclass(frozen=True, kw_only=True)
class Device:
    """What a process of a run computes on."""

    name: str
    """As on the command line."""
    memory: int
    """Bytes, as sold."""
    bfloat16: float
    """Dense matrix products with sums in float32, in operations per second: the peak."""
    float32: float
    """The same in float32 without TF32, which PyTorch does not use unless it is asked to."""
    link: float
    """Bytes per second to the other devices of a node, one way."""
    is_accelerator: bool = True
    """False for a processor."""

    def peak(self, precision: Precision) -> float:
        """Operations per second in a run's precision."""
        return self.bfloat16 if precision == "bfloat16" else self.float32


def _gpu(name: str, gigabytes: int, bfloat16: float, float32: float, link: float) -> Device:
    return Device(
        name=name,
        memory=gigabytes * _GB,
        bfloat16=bfloat16 * _TERA,
        float32=float32 * _TERA,
        link=link * _GB,
    )


DEVICES = {
    device.name: device
    for device in (
        # NVIDIA A100 Tensor Core GPU data sheet: SXM, NVLink 600 GB/s both ways together.
        _gpu("a100-40g", 40, 312.0, 19.5, 300),
        _gpu("a100-80g", 80, 312.0, 19.5, 300),
        # NVIDIA H100 and H200 data sheets: SXM, half of the figures with sparsity; 900 GB/s.
        _gpu("h100-80g", 80, 989.4, 66.9, 450),
        _gpu("h200", 141, 989.4, 66.9, 450),
        # NVIDIA L4 data sheet, half of the figures with sparsity; PCIe 4.0 x16.
        _gpu("l4", 24, 121.0, 30.3, 32),
        # NVIDIA Ada GPU architecture white paper, appendix A; PCIe 4.0 x16.
        _gpu("rtx4090", 24, 165.2, 82.6, 32),
        # AMD Instinct MI300X data sheet: seven links of 128 GB/s both ways together.
        _gpu("mi300x", 192, 1307.4, 163.4, 448),
    )
}
"""By name. What they reach in practice is the plan's `utilisation`."""


def find_device(name: str) -> Device:
    """The device of that name; "cpu" is this machine, whose products are measured now.

    Raises:
        RecipeError: if there is none.
    """
    if name == "cpu":
        return _this_processor()
    if name not in DEVICES:
        raise RecipeError(f"--gpu {name!r}: choose one of {', '.join([*DEVICES, 'cpu'])}")
    return DEVICES[name]


def _this_processor() -> Device:
    cpu = torch.device("cpu")
    return Device(
        name="cpu",
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        bfloat16=measure_peak(cpu, torch.bfloat16),
        float32=measure_peak(cpu, torch.float32),
        # Processes of one machine exchange gradients in its memory.
        link=10 * _GB,
        is_accelerator=False,
    )
