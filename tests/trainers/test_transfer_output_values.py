"""No transfer, DKD and DIST against their equations as loops in NumPy, and DKD against KD, which it takes apart."""

import math

import numpy as np
import pytest
import torch
from transfer_values import LABELS, array, cross_entropy, everything, features, made, numbers, transfer_term

from trainers.transfer import Shapes, TeacherSignals
from trainers.transfer.dist import DIST, uncorrelated
from trainers.transfer.dkd import DKD, decoupled, ramped
from trainers.transfer.kd import soft_label_loss
from trainers.transfer.none import NoTransfer

STUDENT, TEACHER = features((2, 2, 2), seed=1), features((2, 2, 2), seed=2)


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max())
    result: np.ndarray = e / e.sum()
    return result


def divergence(p: np.ndarray, q: np.ndarray) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def test_without_transfer_the_loss_is_the_labels_cross_entropy() -> None:
    method, signals = made(NoTransfer, STUDENT, TEACHER), everything(TEACHER, NoTransfer)
    np.testing.assert_allclose(
        method(STUDENT, signals, torch.tensor(LABELS)).item(), cross_entropy(array(STUDENT.logits))
    )


def test_both_parts_are_divergences_of_the_right_class_and_of_the_others() -> None:
    tau, right, others = 2.5, 0.0, 0.0
    for s, t, y in zip(array(STUDENT.logits), array(TEACHER.logits), LABELS, strict=True):
        q, p = softmax(s / tau), softmax(t / tau)
        right += divergence(np.array([p[y], 1 - p[y]]), np.array([q[y], 1 - q[y]])) / 6
        others += divergence(np.delete(p, y) / (1 - p[y]), np.delete(q, y) / (1 - q[y])) / 6
    actual = transfer_term(DKD, STUDENT, TEACHER, alpha=0.7, beta=3.0, temperature=tau)
    np.testing.assert_allclose(actual, tau**2 * (0.7 * right + 3 * others))


def test_the_parts_make_up_kd_when_the_others_count_as_the_teacher_doubts() -> None:
    # Zhao et al.: KD = TCKD + (1 - p_t) NCKD, image by image
    student, teacher = numbers(6, 5) * 3, numbers(6, 5, seed=1) * 3
    for row in range(6):
        one, label = slice(row, row + 1), torch.tensor(LABELS[row : row + 1])
        right, others = decoupled(student[one], teacher[one], label, 2.0)
        doubt = 1 - (teacher[row] / 2).softmax(dim=0)[label]
        torch.testing.assert_close((right + doubt * others).squeeze(), soft_label_loss(student[one], teacher[one], 2.0))


def test_a_teacher_that_is_certain_gives_a_finite_loss() -> None:
    teacher, student = torch.tensor([[500.0, 0.0, -500.0]]), torch.tensor([[-500.0, 300.0, 0.0]], requires_grad=True)
    loss = sum(decoupled(student, teacher, torch.tensor([0]), 1.0))
    assert isinstance(loss, torch.Tensor)
    loss.backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None
    assert bool(student.grad.isfinite().all())


def test_the_teachers_share_rises_over_the_first_epochs() -> None:
    method = made(DKD, STUDENT, TEACHER, warm_up=0.5)
    results = []
    for method.progress in (0.1, 0.25, 0.5, 1.0):
        results.append(method(STUDENT, everything(TEACHER, DKD), torch.tensor(LABELS)).item())
    shares = (np.array(results) - cross_entropy(array(STUDENT.logits))) / (
        results[-1] - cross_entropy(array(STUDENT.logits))
    )
    np.testing.assert_allclose(shares, [0.2, 0.5, 1.0, 1.0])
    assert ramped(0.01, 0.0) == 1.0


def test_dist_is_one_minus_the_mean_correlations_of_rows_and_of_columns() -> None:
    tau = 2.0
    q, p = (np.array([softmax(row / tau) for row in array(side.logits)]) for side in (STUDENT, TEACHER))
    inter = 1 - np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(q, p, strict=True)])
    intra = 1 - np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(q.T, p.T, strict=True)])
    actual = transfer_term(DIST, STUDENT, TEACHER, beta=0.4, gamma=1.7, temperature=tau)
    np.testing.assert_allclose(actual, tau**2 * (0.4 * inter + 1.7 * intra))


def test_a_linear_relation_is_as_good_as_equality() -> None:
    a = numbers(4, 6)
    assert uncorrelated(3 * a + 1, a).item() == pytest.approx(0.0, abs=1e-9)
    assert uncorrelated(-a, a).item() == pytest.approx(2.0)


def test_one_image_has_no_relations_within_a_class() -> None:
    loss = DIST(DIST.Options(), Shapes((), ()))(
        features((1, 1, 1), seed=3, count=1), TeacherSignals(logits=numbers(1, 5)), torch.tensor([2])
    )
    assert torch.isfinite(loss)
