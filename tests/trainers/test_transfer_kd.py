"""Knowledge distillation against the equation written in NumPy, and against values worked out by hand."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from trainers.families import Features
from trainers.transfer import Shapes, TeacherSignals
from trainers.transfer.kd import KD, KDOptions, soft_label_loss

Array = np.ndarray


def softmax(z: Array) -> Array:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    result: Array = e / e.sum(axis=1, keepdims=True)
    return result


def hinton(student: Array, teacher: Array, labels: Array, tau: float, alpha: float) -> float:
    """(1 - alpha) CE + alpha tau^2 KL(teacher || student), the mean of a loop over images."""
    total = 0.0
    for z, t, y in zip(student, teacher, labels, strict=True):
        hard = -math.log(softmax(z[None])[0, y])
        p, q = softmax(t[None] / tau)[0], softmax(z[None] / tau)[0]
        total += (1 - alpha) * hard + alpha * tau**2 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return total / len(student)


def loss(student: Tensor, teacher: Tensor, labels: Tensor, options: KDOptions) -> Tensor:
    result: Tensor = KD(options, Shapes((), ()))(Features(student, ()), TeacherSignals(logits=teacher), labels)
    return result


@pytest.mark.parametrize(("tau", "alpha"), [(4.0, 0.9), (1.0, 0.5), (0.7, 0.1), (8.0, 1.0), (2.0, 0.0)])
def test_the_loss_is_hintons(tau: float, alpha: float) -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(7, 5, generator=generator, dtype=torch.float64) * 3 for _ in range(2))
    labels = torch.tensor([0, 1, 2, 3, 4, 0, 1])
    actual = loss(student, teacher, labels, KDOptions(temperature=tau, weight=alpha))
    np.testing.assert_allclose(actual.item(), hinton(student.numpy(), teacher.numpy(), labels.numpy(), tau, alpha))


def test_the_soft_loss_of_two_classes_is_what_one_works_out_by_hand() -> None:
    # at temperature 2 the teacher says 3/4 and 1/4, the student 1/2 and 1/2
    teacher, student = torch.tensor([[2 * math.log(3.0), 0.0]]), torch.tensor([[5.0, 5.0]])
    by_hand = 4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert soft_label_loss(student, teacher, 2.0).item() == pytest.approx(by_hand, rel=1e-6)
    # the other way round it is another number: 4 * (1/2 log 2/3 + 1/2 log 2)
    other = 4 * (0.5 * math.log(2 / 3) + 0.5 * math.log(2.0))
    assert soft_label_loss(teacher, student, 2.0).item() == pytest.approx(other, rel=1e-6)


def test_a_student_that_says_what_its_teacher_says_has_no_soft_loss() -> None:
    logits = torch.tensor([[1.0, -2.0, 3.0], [1e4, 0.0, -1e4]])
    assert soft_label_loss(logits, logits + 7.0, 4.0).item() == pytest.approx(0.0, abs=1e-6)


def test_at_a_high_temperature_the_gradient_is_that_of_matched_logits_whatever_the_temperature() -> None:
    # Hinton et al., equation 4: (z - v) / N of centred logits, once multiplied by tau^2
    student = torch.tensor([[0.3, -0.1, -0.2]], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[-0.5, 0.4, 0.1]], dtype=torch.float64)
    for tau in (1e3, 1e4):
        (gradient,) = torch.autograd.grad(soft_label_loss(student, teacher, tau), student)
        torch.testing.assert_close(gradient, (student - teacher).detach() / 3, rtol=1e-2, atol=1e-4)


def test_a_confident_teacher_gives_a_finite_loss() -> None:
    student, teacher = torch.tensor([[0.0, 500.0]]), torch.tensor([[500.0, 0.0]])
    assert soft_label_loss(student, teacher, 1.0).item() == pytest.approx(500.0)
