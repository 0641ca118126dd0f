"""KD-SVD, FSP, AB, OFD, ReviewKD and CRD against second implementations: other formulations, or loops in NumPy."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transfer_values import (
    LABELS,
    array,
    batch_normed,
    cross_entropy,
    everything,
    features,
    made,
    numbers,
    pointwise,
    smaller,
    transfer_term,
    weights,
)

from trainers.families import Features
from trainers.transfer import TeacherSignals
from trainers.transfer.ab import AB, boundary_distance
from trainers.transfer.crd import CRD, OtherClasses
from trainers.transfer.fsp import FSP
from trainers.transfer.kdsvd import KDSVD, aligned, singular
from trainers.transfer.ofd import OFD, Margin, partial_distance
from trainers.transfer.review import Review, hierarchical

STUDENT = features((3, 8, 8), (4, 4, 4), (5, 2, 2), seed=1)
TEACHER = features((6, 4, 4), (2, 4, 4), (7, 4, 2), seed=50)
SIZES = [(4, 4), (4, 4), (2, 2)]
"""To which the pairs' larger maps are pooled."""


def pretraining(method_type: type, **options: float) -> float:
    method = made(method_type, STUDENT, TEACHER, **options)
    loss = method.pretraining_loss(STUDENT, everything(TEACHER, method_type), torch.tensor(LABELS))
    return loss.item()


def labels_alone(method_type: type) -> None:
    assert transfer_term(method_type, STUDENT, TEACHER) == pytest.approx(0.0, abs=1e-12)


# --- KD-SVD


def leading(m: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(C, k) and (k,) of a map (C, H, W), by NumPy's decomposition."""
    _, s, vh = np.linalg.svd(m.reshape(len(m), -1).T)
    k = min(k, len(s))
    return (vh[:k] * (s[:k, None] > 0.01 * s[0])).T, s[:k]


@pytest.mark.parametrize("k", [1, 2])
def test_relations_are_those_of_the_singular_vectors(k: int) -> None:
    student, teacher = (features((3, 4, 4), (4, 4, 4), (5, 2, 2), seed=seed) for seed in (1, 60))
    total = 0.0
    for image in range(6):
        sides = []
        for ours, theirs in zip(student.maps, teacher.maps, strict=True):
            v_T, s = leading(array(theirs)[image], k)
            v_S, _ = leading(array(ours)[image], k + 3)
            v_T = np.array([v * (1 if v.sum() >= 0 else -1) for v in v_T.T])
            best = [max(v_S.T, key=lambda v, t=t: abs(v @ t)) for t in v_T]
            match = np.array([v * np.sign(v @ t) for v, t in zip(best, v_T, strict=True)])
            s = s / math.sqrt((s**2).sum())
            sides.append((match * s[:, None], v_T * s[:, None]))
        for one, other in pairwise(sides):
            for i in range(k):
                r_S, r_T = (np.exp(-((a[i][:, None] - b[i][None]) ** 2) / 8) for a, b in zip(one, other, strict=True))
                total += ((r_S - r_T) ** 2).sum()
    actual = transfer_term(KDSVD, student, teacher, weight=3.0, k=k)
    # the decomposition is in float32, and of squared matrices
    np.testing.assert_allclose(actual, 3 * total / 6, rtol=1e-3)


def test_the_gradient_of_a_singular_vector_is_that_of_the_decomposition() -> None:
    x = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    probe = torch.randn(2, 4, 2, generator=torch.Generator().manual_seed(1))

    def gradient(of_vectors: object) -> Tensor:
        maps = x.clone().requires_grad_()
        v = of_vectors(maps)  # type: ignore[operator]
        sign = torch.sign(v.sum(dim=1, keepdim=True)).detach()  # which a decomposition leaves open
        (actual,) = torch.autograd.grad((sign * v * probe).sum(), maps)
        return actual

    def of_torch(maps: Tensor) -> Tensor:
        return torch.linalg.svd(maps.double().flatten(2).transpose(1, 2), full_matrices=False).Vh[:, :2].transpose(1, 2)

    torch.testing.assert_close(gradient(lambda maps: singular(maps, 2)[0]), gradient(of_torch), rtol=1e-3, atol=1e-4)


def test_a_students_vector_is_chosen_by_its_angle_and_turned() -> None:
    v_S = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]])[None]
    v_T = torch.tensor([[0.1, -0.9, 0.2], [0.8, 0.1, 0.1]]).T[None]
    expected = torch.tensor([[0.0, -1, 0], [1, 0, 0]]).T[None]
    torch.testing.assert_close(aligned(v_S, v_T), expected)


def test_maps_of_equal_singular_values_have_a_finite_gradient() -> None:
    maps = torch.eye(4).view(1, 4, 2, 2).clone().requires_grad_()
    singular(maps, 2)[0].square().sum().backward()  # type: ignore[no-untyped-call]
    assert maps.grad is not None
    assert bool(maps.grad.isfinite().all())


# --- FSP


def test_the_flow_is_the_mean_product_of_two_layers_and_learned_before_training() -> None:
    method = made(FSP, STUDENT, TEACHER)
    adapted = [pointwise(array(m), weights(method)[f"adapters.{i}.weight"]) for i, m in enumerate(STUDENT.maps)]

    def flow(shallow: np.ndarray, deep: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        a, b = smaller(shallow, *size), smaller(deep, *size)
        return np.array(
            [[[(x[i] * y[j]).mean() for j in range(len(y))] for i in range(len(x))] for x, y in zip(a, b, strict=True)]
        )

    theirs = [array(m) for m in TEACHER.maps]
    expected = ((flow(*adapted[:2], (4, 4)) - flow(*theirs[:2], (4, 4))) ** 2).mean()
    expected += ((flow(*adapted[1:], (2, 2)) - flow(*theirs[1:], (4, 2))) ** 2).mean()
    np.testing.assert_allclose(pretraining(FSP, weight=2.0), 2 * expected)
    labels_alone(FSP)


def test_equally_wide_networks_need_no_adapter() -> None:
    method = made(FSP, STUDENT, STUDENT)
    assert list(method.parameters()) == []
    assert method.pretraining_loss(STUDENT, everything(STUDENT, FSP), torch.tensor(LABELS)).item() == 0.0


# --- activation boundaries


def boundary_by_hand(s: np.ndarray, t: np.ndarray, mu: float) -> float:
    total = 0.0
    for a, b in zip(s.ravel(), t.ravel(), strict=True):
        if b <= 0 and a > -mu:
            total += (a + mu) ** 2
        elif b > 0 and a <= mu:
            total += (a - mu) ** 2
    return total / len(s)


def test_neurons_on_the_wrong_side_are_pushed_over_by_the_margin() -> None:
    s, t = numbers(3, 2, 2, 2) * 2, numbers(3, 2, 2, 2, seed=1)
    for mu in (0.5, 1.0):
        np.testing.assert_allclose(boundary_distance(s, t, mu).item(), boundary_by_hand(array(s), array(t), mu))
    # on the wrong side of 1 by 0.5, on the right one by 0.25, by 3; and the other way round
    s, t = torch.tensor([-0.5, 0.25, 3.0, 0.5]).view(1, 4, 1, 1), torch.tensor([2.0, 2.0, 2.0, -9.0]).view(1, 4, 1, 1)
    assert boundary_distance(s, t, 1.0).item() == pytest.approx(1.5**2 + 0.75**2 + 1.5**2)


def test_boundaries_are_learned_before_the_relu_deeper_ones_first_and_before_training() -> None:
    w = weights(made(AB, STUDENT, TEACHER))
    expected = 0.0
    for tap, (s, t) in enumerate(zip(STUDENT.before_relu, TEACHER.before_relu, strict=True)):
        ours = batch_normed(pointwise(smaller(array(s), *SIZES[tap]), w[f"connectors.{tap}.0.weight"]))
        expected += boundary_by_hand(ours, smaller(array(t), *SIZES[tap]), 1.0) * (0.25, 0.5, 1.0)[tap]
    np.testing.assert_allclose(pretraining(AB, weight=0.1), 0.1 * expected)
    labels_alone(AB)


# --- overhaul of feature distillation


def test_the_partial_distance_is_zero_where_both_are_silent() -> None:
    s, t = numbers(4, 3, 2, 2), numbers(4, 3, 2, 2, seed=1)
    expected = sum(
        0.0 if a <= b <= 0 else (a - b) ** 2 for a, b in zip(array(s).ravel(), array(t).ravel(), strict=True)
    )
    np.testing.assert_allclose(partial_distance(s, t).item(), expected / 4)


def test_the_margin_is_the_mean_of_the_negative_values_of_all_batches() -> None:
    margin = Margin(3).double().train()
    batches = [numbers(4, 3, 2, 2, seed=seed) for seed in range(3)]
    batches[1][:, 2] = batches[1][:, 2].abs()
    for seen in range(3):
        actual = margin(batches[seen])
        values = array(torch.cat(batches[: seen + 1])).transpose(1, 0, 2, 3).reshape(3, -1)
        np.testing.assert_allclose(array(actual).ravel(), [v[v < 0].mean() for v in values])
    assert torch.equal(margin.eval()(-batches[0]), actual)
    assert Margin(1)(torch.ones(2, 1, 1, 1)).item() == 0.0


def test_the_overhaul_compares_before_the_relu_with_the_teachers_margin() -> None:
    w = weights(made(OFD, STUDENT, TEACHER))
    expected = 0.0
    for tap, (s, t) in enumerate(zip(STUDENT.before_relu, TEACHER.before_relu, strict=True)):
        ours = batch_normed(pointwise(smaller(array(s), *SIZES[tap]), w[f"connectors.{tap}.0.weight"]))
        theirs = smaller(array(t), *SIZES[tap])
        for image in range(6):
            for channel in range(theirs.shape[1]):
                m = theirs[:, channel][theirs[:, channel] < 0].mean()
                for a, b in zip(ours[image, channel].ravel(), theirs[image, channel].ravel(), strict=True):
                    target = max(b, m)
                    expected += (0.25, 0.5, 1.0)[tap] / 6 * (0 if a <= target <= 0 else (a - target) ** 2)
    np.testing.assert_allclose(transfer_term(OFD, STUDENT, TEACHER, weight=0.01), 0.01 * expected)


# --- ReviewKD


def hierarchy_by_hand(a: np.ndarray, b: np.ndarray) -> float:
    total, sum_weights, weight = ((a - b) ** 2).mean(), 1.0, 1.0
    for side in (4, 2, 1):
        if side < min(a.shape[2:]):
            weight /= 2
            total += weight * ((smaller(a, side, side) - smaller(b, side, side)) ** 2).mean()
            sum_weights += weight
    return float(total / sum_weights)


@pytest.mark.parametrize("size", [(8, 8), (4, 4), (2, 4), (1, 1), (8, 4)])
def test_the_hierarchical_loss_pools_to_ever_fewer_pixels(size: tuple[int, int]) -> None:
    a, b = numbers(2, 3, *size), numbers(2, 3, *size, seed=1)
    np.testing.assert_allclose(hierarchical(a, b).item(), hierarchy_by_hand(array(a), array(b)))


def nearest(x: np.ndarray, height: int, width: int) -> np.ndarray:
    rows, columns = np.arange(height) * x.shape[2] // height, np.arange(width) * x.shape[3] // width
    return x[:, :, rows][:, :, :, columns]


def convolved(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    height, width = x.shape[2:]
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    shifted = [
        np.einsum("oc,bchw->bohw", weight[:, :, a, b], padded[:, :, a : a + height, b : b + width])
        for a in range(3)
        for b in range(3)
    ]
    result: np.ndarray = sum(shifted[1:], start=shifted[0])
    return result


def test_deep_layers_are_fused_into_shallow_ones_on_the_way_up() -> None:
    w = weights(made(Review, STUDENT, TEACHER, warm_up=0.0))
    ours = [array(m) for m in STUDENT.maps] + [array(STUDENT.maps[-1]).mean(axis=(2, 3), keepdims=True)]
    theirs = [array(m) for m in TEACHER.before_relu] + [array(TEACHER.maps[-1]).mean(axis=(2, 3), keepdims=True)]
    residual, expected = None, 0.0
    for level, (s, t) in enumerate(zip(reversed(ours), reversed(theirs), strict=True)):
        x = batch_normed(pointwise(s, w[f"fusions.{level}.enter.0.weight"]))
        if residual is not None:
            residual = nearest(residual, *x.shape[2:])
            both = np.concatenate([x, residual], axis=1)
            bias = w[f"fusions.{level}.attention.bias"].reshape(1, 2, 1, 1)
            a = 1 / (1 + np.exp(-pointwise(both, w[f"fusions.{level}.attention.weight"]) - bias))
            x = a[:, :1] * x + a[:, 1:] * residual
        residual = nearest(x, *t.shape[2:])
        expected += hierarchy_by_hand(batch_normed(convolved(residual, w[f"fusions.{level}.leave.0.weight"])), t)
    np.testing.assert_allclose(transfer_term(Review, STUDENT, TEACHER, weight=1.5, warm_up=0.0), 1.5 * expected)


def test_the_reviews_weight_rises_over_the_first_epochs() -> None:
    method = made(Review, STUDENT, TEACHER, warm_up=0.5)
    results = []
    for method.progress in (0.25, 1.0):
        results.append(method(STUDENT, everything(TEACHER, Review), torch.tensor(LABELS)).item())
    hard = cross_entropy(array(STUDENT.logits))
    assert results[0] - hard == pytest.approx((results[1] - hard) / 2)


# --- contrastive representation distillation


def test_negatives_are_drawn_evenly_from_other_classes() -> None:
    labels = torch.tensor([2, 0, 1, 1, 0, 2, 2, 1, 0, 2])
    rows = torch.tensor([0, 2, 4])
    drawn = OtherClasses(labels).draw(rows, 30_000, torch.Generator().manual_seed(0))
    for row, each in zip(rows, drawn, strict=True):
        shares = np.bincount(each.numpy(), minlength=10) / 30_000
        others = (labels != labels[row]).numpy()
        # of 30,000 draws a share near 1/6 has a deviation of 0.0022
        np.testing.assert_allclose(shares, others / others.sum(), atol=0.011)
        assert (shares[~others] == 0).all()


def crd_by_hand(w: dict[str, np.ndarray], rows: Tensor, drawn: Tensor, tau: float, banks: list[np.ndarray]) -> float:
    """One batch, the first; `banks` (of the student, of the teacher) are brought up to date."""
    pooled = [array(side.maps[-1]).mean(axis=(2, 3)) for side in (STUDENT, TEACHER)]
    u, v = (
        np.array([y / math.sqrt(y @ y) for y in x @ w[f"embed_{side}.weight"].T + w[f"embed_{side}.bias"]])
        for side, x in zip(("student", "teacher"), pooled, strict=True)
    )
    N, K = len(banks[0]), drawn.shape[1]
    total = 0.0
    for anchors, bank in ((u, banks[1]), (v, banks[0])):
        scores = np.array(
            [
                [math.exp(a @ bank[k] / tau) for k in (i, *js)]
                for a, i, js in zip(anchors, rows.tolist(), drawn.tolist(), strict=True)
            ]
        )
        P = scores / (scores.mean() * N)
        h = P / (P + K / N + 1e-7)
        total -= (np.log(h[:, 0]) + np.log((K / N) / (P[:, 1:] + K / N + 1e-7)).sum(axis=1)).mean()
    for bank, new in zip(banks, (u, v), strict=True):
        mixed = 0.75 * bank[rows] + 0.25 * new
        bank[rows] = mixed / np.sqrt((mixed**2).sum(axis=1, keepdims=True))
    return total


def test_the_contrast_and_the_banks_are_the_authors() -> None:
    options = {"weight": 0.5, "dimensions": 4, "negatives": 7, "temperature_contrast": 0.4, "momentum": 0.75}
    method, twin = (made(CRD, STUDENT, TEACHER, **options) for _ in range(2))
    assert isinstance(method, CRD)
    assert isinstance(twin, CRD)
    signals = everything(TEACHER, CRD)
    assert signals.rows is not None
    drawn = twin.others.draw(signals.rows, 7, twin.generator)
    w = weights(twin)
    banks = [w["bank_student"].copy(), w["bank_teacher"].copy()]
    expected = crd_by_hand(w, signals.rows, drawn, 0.4, banks)
    actual = method(STUDENT, signals, torch.tensor(LABELS)).item() - cross_entropy(array(STUDENT.logits))
    # Z is remembered in float64 here, in the method's precision otherwise
    np.testing.assert_allclose(actual, 0.5 * expected, rtol=1e-9)
    np.testing.assert_allclose(array(method.bank_student), banks[0])
    np.testing.assert_allclose(array(method.bank_teacher), banks[1])


def test_the_constant_is_that_of_the_first_batch_for_good() -> None:
    method = made(CRD, STUDENT, TEACHER, negatives=5, dimensions=4)
    assert isinstance(method, CRD)
    signals = everything(TEACHER, CRD)
    method(STUDENT, signals, torch.tensor(LABELS))
    first = method.constants.clone()
    other = Features(STUDENT.logits, tuple(3 - m for m in STUDENT.maps))
    method(other, signals, torch.tensor(LABELS))
    assert torch.equal(method.constants, first)


def test_an_image_that_both_see_alike_and_no_other_has_a_smaller_contrast() -> None:
    method = made(CRD, STUDENT, TEACHER, negatives=20, dimensions=4)
    assert isinstance(method, CRD)
    signals = everything(TEACHER, CRD)
    assert signals.rows is not None
    u = F.normalize(method.embed_student(STUDENT.maps[-1].mean(dim=(2, 3))), dim=1)
    method.constants.fill_(40.0)
    state = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    results = []
    for sign in (1, -1):
        method.load_state_dict(state)
        method.generator.manual_seed(3)
        with torch.no_grad():
            method.bank_teacher[signals.rows] = sign * u
        results.append(method(STUDENT, signals, torch.tensor(LABELS)).item())
    assert results[0] < results[1]


def test_signals_that_are_not_asked_for_are_not_needed() -> None:
    for method_type in (OFD, AB):
        signals = everything(TEACHER, method_type)
        assert signals == TeacherSignals(before_relu=TEACHER.before_relu)
