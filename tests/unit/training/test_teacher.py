"""The teacher equals the closed form of the moving average, buffers too."""

from __future__ import annotations

import math

import pytest
import torch
from builders import tiny_config, tiny_network
from torch import Tensor, nn

from vqseg.training.teacher import make_teacher, teacher_decay, update_teacher


def random_student(seed: int) -> nn.Module:
    student = nn.Sequential(nn.Conv3d(1, 2, 1), nn.BatchNorm3d(2))
    generator = torch.Generator().manual_seed(seed)
    for value in student.state_dict().values():
        value.copy_(torch.rand(value.shape, generator=generator) * 100)
    return student


def test_teacher_after_n_steps_is_the_closed_form() -> None:
    students = [random_student(seed) for seed in range(9)]
    teacher = make_teacher(students[0])
    weights = torch.tensor([1.0])
    for step, student in enumerate(students[1:], 1):
        decay = teacher_decay(step, 0.7)
        update_teacher(teacher, student, decay)
        weights = torch.cat([weights * decay, torch.tensor([1 - decay])])
    for name, value in teacher.state_dict().items():
        values = [student.state_dict()[name].double() for student in students]
        expected = sum(w * v for w, v in zip(weights.double(), values, strict=True))
        assert isinstance(expected, Tensor)
        if not value.is_floating_point():
            expected = values[-1]
        torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-5, msg=name)


def test_decay_grows_to_its_bound_and_the_first_update_is_a_copy() -> None:
    decays = [teacher_decay(step, 0.9) for step in range(1, 50)]
    assert decays[0] == 0
    assert decays == sorted(decays)
    assert decays[-1] == 0.9
    # With 1 - 1/n the average of n students counts each of them alike.
    assert [teacher_decay(n, 1) for n in (2, 4)] == [0.5, 0.75]
    teacher, student = make_teacher(random_student(0)), random_student(1)
    update_teacher(teacher, student, teacher_decay(1, 0.996))
    for name, value in student.state_dict().items():
        torch.testing.assert_close(teacher.state_dict()[name], value)


def test_updating_leaves_the_student_alone_and_shares_nothing_with_it() -> None:
    student = random_student(0)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    teacher = make_teacher(student)
    update_teacher(teacher, random_student(1), 0.5)
    for name, value in student.state_dict().items():
        assert torch.equal(value, before[name])
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert all(parameter.requires_grad for parameter in student.parameters())
    assert not teacher.training
    with torch.no_grad():
        update_teacher(teacher, student, 0)
        next(student.parameters()).add_(1)
    assert not torch.equal(next(teacher.parameters()), next(student.parameters()))


@pytest.mark.parametrize(("own", "other"), [(math.nan, 3.0), (3.0, math.nan)])
def test_a_temperature_that_was_not_fitted_yet_does_not_poison_the_other(own: float, other: float) -> None:
    student = tiny_network(tiny_config())
    teacher = make_teacher(student)
    teacher.get_buffer("qpm.temperature").fill_(own)
    student.get_buffer("qpm.temperature").fill_(other)
    update_teacher(teacher, student, 0.9)
    found = teacher.get_buffer("qpm.temperature").item()
    assert found == pytest.approx(other, nan_ok=True)
    teacher.get_buffer("qpm.temperature").fill_(1)
    student.get_buffer("qpm.temperature").fill_(2)
    update_teacher(teacher, student, 0.9)
    assert teacher.get_buffer("qpm.temperature").item() == pytest.approx(1.1)
