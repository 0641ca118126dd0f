"""FitNet, AT, SP, CC, VID, RKD, PKT, NST against their equations written as loops in NumPy."""

import itertools
import math

import numpy as np
import pytest
import torch
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
    unit,
    weights,
)

from trainers.transfer.attention import Attention, attention_distance
from trainers.transfer.correlation import Correlation
from trainers.transfer.fitnet import FitNet
from trainers.transfer.nst import NST, discrepancy
from trainers.transfer.pkt import PKT
from trainers.transfer.rkd import RKD, relations
from trainers.transfer.similarity import Similarity
from trainers.transfer.vid import VID

STUDENT = features((3, 8, 8), (4, 4, 4), (5, 2, 2), seed=1)
TEACHER = features((6, 4, 4), (2, 4, 4), (7, 4, 2), seed=50)
SHALLOW = features((4, 4, 4), (5, 2, 2), seed=30)
"""A student of two taps, which are paired with the teacher's last two."""


# --- FitNet


def test_the_hint_is_the_middle_layer_and_the_regressors_mean_squared_error_counts() -> None:
    actual = transfer_term(FitNet, STUDENT, TEACHER, weight=2.5)
    weight = weights(made(FitNet, STUDENT, TEACHER))["regressor.0.0.weight"]
    guess = np.maximum(batch_normed(pointwise(array(STUDENT.maps[1]), weight)), 0)
    np.testing.assert_allclose(actual, 2.5 * ((guess - array(TEACHER.maps[1])) ** 2).mean())


def test_of_two_pairs_the_hint_is_the_shallower() -> None:
    weight = weights(made(FitNet, SHALLOW, TEACHER))["regressor.0.0.weight"]
    guess = np.maximum(batch_normed(pointwise(array(SHALLOW.maps[0]), weight)), 0)
    expected = ((guess - array(TEACHER.maps[1])) ** 2).mean()
    np.testing.assert_allclose(transfer_term(FitNet, SHALLOW, TEACHER, weight=1.0), expected)


# --- attention transfer


def attention_by_hand(ours: np.ndarray, theirs: np.ndarray) -> float:
    total = 0.0
    for a, b in zip(ours, theirs, strict=True):
        q, t = (sum(channel.ravel() ** 2 for channel in m) / len(m) for m in (a, b))
        total += ((q / math.sqrt((q**2).sum()) - t / math.sqrt((t**2).sum())) ** 2).mean()
    return total / len(ours)


def test_attention_is_compared_at_the_smaller_size_and_summed_over_the_taps() -> None:
    maps = [(array(s), array(t)) for s, t in zip(STUDENT.maps, TEACHER.maps, strict=True)]
    expected = attention_by_hand(smaller(maps[0][0], 4, 4), maps[0][1]) + attention_by_hand(*maps[1])
    expected += attention_by_hand(maps[2][0], smaller(maps[2][1], 2, 2))
    np.testing.assert_allclose(transfer_term(Attention, STUDENT, TEACHER, weight=7.0), 7 * expected)


def test_attention_on_two_pixels_is_what_one_works_out_by_hand() -> None:
    # squares (9, 16) point along (0.49, 0.87), (0, 1) along (0, 1)
    ours, theirs = torch.tensor([3.0, 4.0]).view(1, 1, 1, 2), torch.tensor([0.0, 1.0]).view(1, 1, 1, 2)
    root = math.sqrt(9**2 + 16**2)
    by_hand = ((9 / root) ** 2 + (1 - 16 / root) ** 2) / 2
    assert attention_distance(ours, theirs).item() == pytest.approx(by_hand, rel=1e-6)
    assert attention_distance(ours, -5 * ours.repeat(1, 3, 1, 1)).item() == pytest.approx(0.0, abs=1e-12)


def test_maps_of_one_pixel_are_left_out_where_others_have_more() -> None:
    flat = features((4, 4, 4), (5, 1, 1), seed=30)
    ours, theirs = array(flat.maps[0]), array(TEACHER.maps[1])
    expected = attention_by_hand(ours, theirs)
    np.testing.assert_allclose(transfer_term(Attention, flat, TEACHER, weight=1.0), expected)


# --- similarity


def test_similarities_are_those_of_the_papers_matrices() -> None:
    matrices = []
    for side in (STUDENT, TEACHER):
        maps = array(side.maps[-1])
        G = np.array([[(a * b).sum() for b in maps] for a in maps])
        matrices.append(np.array([row / math.sqrt((row**2).sum()) for row in G]))
    expected = ((matrices[0] - matrices[1]) ** 2).sum() / 6**2
    np.testing.assert_allclose(transfer_term(Similarity, STUDENT, TEACHER, weight=11.0), 11 * expected)


# --- correlation congruence


def test_correlation_multiplies_the_differences_of_neighbours() -> None:
    w = weights(made(Correlation, STUDENT, TEACHER, dimensions=3))
    pooled = [array(side.maps[-1]).mean(axis=(2, 3)) for side in (STUDENT, TEACHER)]
    e = [
        x @ w[f"embed_{side}.weight"].T + w[f"embed_{side}.bias"]
        for side, x in zip(("student", "teacher"), pooled, strict=True)
    ]
    delta = abs(e[0] - e[1])
    expected = sum(float(delta[i] @ delta[i + 1]) for i in range(5)) / 5
    np.testing.assert_allclose(transfer_term(Correlation, STUDENT, TEACHER, weight=0.3, dimensions=3), 0.3 * expected)


# --- variational information distillation


def test_the_negative_log_likelihood_is_a_gaussians_without_its_constant() -> None:
    w = weights(made(VID, STUDENT, TEACHER, initial_variance=0.8))
    expected = 0.0
    sizes = [(4, 4), (4, 4), (2, 2)]
    for tap, (s, t, size) in enumerate(zip(STUDENT.maps, TEACHER.maps, sizes, strict=True)):
        mu = smaller(array(s), *size)
        for layer in (0, 2, 4):
            mu = pointwise(mu, w[f"likelihoods.{tap}.mu.{layer}.weight"])
            mu = np.maximum(mu, 0) if layer < 4 else mu
        density = torch.distributions.Normal(torch.from_numpy(mu), math.sqrt(0.8))
        log_q = array(density.log_prob(torch.from_numpy(smaller(array(t), *size))))
        expected -= log_q.mean() + 0.5 * math.log(2 * math.pi)
    # the variance passes through float32 on its way into the parameter
    np.testing.assert_allclose(
        transfer_term(VID, STUDENT, TEACHER, weight=0.5, initial_variance=0.8), 0.5 * expected, rtol=1e-6
    )


@pytest.mark.parametrize("variance", [2e-5, 0.01, 5.0, 200.0])
def test_the_variance_begins_as_asked_for(variance: float) -> None:
    alpha = made(VID, STUDENT, TEACHER, initial_variance=variance).get_parameter("likelihoods.0.alpha")
    np.testing.assert_allclose(np.log1p(np.exp(array(alpha))) + 1e-5, variance, rtol=1e-3)


def test_every_channel_has_a_variance_of_its_own_which_training_fits() -> None:
    method = made(VID, STUDENT, TEACHER)
    noisy = TEACHER.maps[0].clone()
    noisy[:, 0] *= 50
    alpha = method.get_parameter("likelihoods.0.alpha")
    signals = everything(TEACHER, VID)
    loss = method(STUDENT, type(signals)(maps=(noisy, *signals.maps[1:])), torch.tensor(LABELS))
    (gradient,) = torch.autograd.grad(loss, alpha)
    assert gradient[0] < 0 < gradient[1:].min()  # a noisy channel wants more variance, the others less than 5


# --- relational knowledge distillation


def huber(a: float, b: float) -> float:
    return 0.5 * (a - b) ** 2 if abs(a - b) < 1 else abs(a - b) - 0.5


def relations_by_hand(e: np.ndarray) -> tuple[dict[tuple[int, ...], float], dict[tuple[int, ...], float]]:
    count = range(len(e))
    d = {(i, j): math.dist(e[i], e[j]) for i in count for j in count}
    mean = np.mean([value for value in d.values() if value > 0])
    angles = {}
    for i, j, k in itertools.product(count, repeat=3):
        a, b = e[i] - e[j], e[k] - e[j]
        norms = math.hypot(*a) * math.hypot(*b)
        angles[i, j, k] = float(a @ b) / norms if norms > 0 else 0.0
    return {pair: value / mean for pair, value in d.items()}, angles


def test_distances_and_angles_are_those_of_all_pairs_and_triples() -> None:
    sides = [relations_by_hand(array(side.maps[-1]).mean(axis=(2, 3))) for side in (STUDENT, TEACHER)]
    distance, angle = (
        np.mean([huber(ours[key], theirs[key]) for key in ours]) for ours, theirs in zip(*sides, strict=True)
    )
    actual = transfer_term(RKD, STUDENT, TEACHER, weight=2.0, distance_weight=3.0, angle_weight=5.0)
    np.testing.assert_allclose(actual, 2 * (3 * distance + 5 * angle))


def test_relations_of_a_right_triangle_are_what_one_works_out_by_hand() -> None:
    distances, angles = relations(torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]]))
    torch.testing.assert_close(distances, torch.tensor([[0.0, 3, 4], [3, 0, 5], [4, 5, 0]]) / 4)
    assert angles[0, 1, 2].item() == pytest.approx(0.0, abs=1e-6)  # the right angle is at the first point
    assert angles[1, 0, 2].item() == pytest.approx(3 / 5)
    assert angles[2, 1, 0].item() == pytest.approx(4 / 5)


def test_relations_do_not_change_when_features_are_turned_moved_and_scaled() -> None:
    e = numbers(5, 3)
    turn = torch.linalg.qr(numbers(3, 3, seed=1))[0]
    for one, other in zip(relations(e), relations(7 * e @ turn + 2), strict=True):
        torch.testing.assert_close(one, other)


# --- probabilistic knowledge transfer


def test_neighbours_are_compared_by_the_mean_term_of_the_divergence() -> None:
    sides = []
    for side in (STUDENT, TEACHER):
        e = unit(array(side.maps[-1]).mean(axis=(2, 3)))
        K = np.array([[(float(a @ b) + 1) / 2 for b in e] for a in e])
        sides.append(K / K.sum(axis=1, keepdims=True))
    expected = np.mean(
        [q * math.log((q + 1e-7) / (p + 1e-7)) for p, q in zip(*(s.ravel() for s in sides), strict=True)]
    )
    # in float32, see the method
    np.testing.assert_allclose(transfer_term(PKT, STUDENT, TEACHER, weight=1000.0), 1000 * expected, rtol=1e-3)


# --- neuron selectivity transfer


def test_the_discrepancy_is_that_of_the_polynomial_kernels_features() -> None:
    # <x, y>^2 is the inner product of all products x_a x_b: the discrepancy is between the means of these
    ours, theirs = numbers(2, 3, 2, 2), numbers(2, 4, 2, 2, seed=1)
    expected = 0.0
    for a, b in zip(array(ours), array(theirs), strict=True):
        means = [np.mean([np.outer(f, f) for f in unit(m.reshape(len(m), -1))], axis=0) for m in (a, b)]
        expected += ((means[0] - means[1]) ** 2).sum() / 2
    np.testing.assert_allclose(discrepancy(ours, theirs).item(), expected)
    assert discrepancy(ours, 3 * ours.repeat(1, 2, 1, 1)).item() == pytest.approx(0.0, abs=1e-12)


def test_selectivity_is_summed_over_the_taps() -> None:
    sizes = [(4, 4), (4, 4), (2, 2)]
    terms = [
        discrepancy(*(torch.from_numpy(smaller(array(m), *size)) for m in pair)).item()
        for *pair, size in zip(STUDENT.maps, TEACHER.maps, sizes, strict=True)
    ]
    np.testing.assert_allclose(transfer_term(NST, STUDENT, TEACHER, weight=4.0), 4 * sum(terms))


def test_without_weight_the_labels_are_left() -> None:
    for method in (FitNet, Attention, Similarity, Correlation, RKD, PKT, NST):
        actual = made(method, STUDENT, TEACHER, weight=0.0)(STUDENT, everything(TEACHER, method), torch.tensor(LABELS))
        np.testing.assert_allclose(actual.item(), cross_entropy(array(STUDENT.logits)))
