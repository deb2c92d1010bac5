"""The teacher follows the student."""

import torch
from torch import nn

from openblip.objectives.itc import update_teacher


def test_after_k_steps_the_teacher_keeps_momentum_to_the_k() -> None:
    teacher, student = nn.Linear(3, 2), nn.Linear(3, 2)
    first, target = teacher.weight.detach().clone(), student.weight.detach().clone()
    for _ in range(5):
        update_teacher(teacher, student, momentum=0.9)
    torch.testing.assert_close(teacher.weight.detach(), 0.9**5 * first + (1 - 0.9**5) * target)
    assert torch.equal(student.weight, target)


def test_parts_are_paired_by_name() -> None:
    student = nn.ModuleDict({"extra": nn.Linear(2, 2), "shared": nn.Linear(2, 2)})
    teacher = nn.ModuleDict({"shared": nn.Linear(2, 2)})
    update_teacher(teacher, student, momentum=0.0)
    torch.testing.assert_close(teacher["shared"].weight, student["shared"].weight)


def test_gradients_do_not_flow_into_the_teacher() -> None:
    teacher, student = nn.Linear(2, 2), nn.Linear(2, 2)
    teacher.requires_grad_(False)
    update_teacher(teacher, student, momentum=0.5)
    assert not teacher.weight.requires_grad
