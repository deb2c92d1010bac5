"""The teacher: a slow copy of the student whose features supervise the contrast."""

import torch
from torch import nn


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Move the teacher's parameters to `momentum * teacher + (1 - momentum) * student`.

    ALBEF, section 3.2 (there xi = 0.995), after MoCo.

    Args:
        teacher: changed in place; its parameters' names are among the student's.
        student: not changed.
        momentum: in [0, 1]; 0 copies the student.
    """
    online = dict(student.named_parameters())
    slow = dict(teacher.named_parameters())
    torch._foreach_lerp_(list(slow.values()), [online[name] for name in slow], 1.0 - momentum)
