"""Ensemble distillation: the loss against NumPy, the perturbation against its definition, trials on real ensembles."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from spaces import BadInput, Recipe
from trainers import Knowledge, Task, TaskSpec, TeacherSpec, load_student, run_trial, save_student
from trainers.data.dataset import pixels
from trainers.families import Features
from trainers.loop import Batch
from trainers.measure import measure
from trainers.store import weights_bytes
from trainers.transfer import METHODS, Needs, Shapes, TeacherSignals
from trainers.transfer.ensemble import Ensemble, EnsembleOptions
from trainers.transfer.perturbation import Perturbation

Array = np.ndarray
TEACHER = TeacherSpec(family="mlp", depth=3, width=0.25, epochs=6, batch_size=16, members=3)
KINDS: tuple[Literal["gaussian", "ods", "conf_ods"], ...] = ("gaussian", "ods", "conf_ods")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def ensemble(home: Path) -> Task:
    """Three networks that learned 200 digits."""
    return Task.load(TaskSpec(train_limit=200, augment="none", teacher=TEACHER), home)


def softmax(z: Array) -> Array:
    e = np.exp(z - z.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))


def nam(clean: Array, moved: Array, teacher: Array, labels: Array, tau: float, alpha: float) -> float:
    """A loop over members and images; clean, moved, teacher: (M, B, classes)."""
    total = 0.0
    M, B, _ = clean.shape
    for i in range(M):
        for b in range(B):
            p, q = softmax(teacher[i, b] / tau), softmax(moved[i, b] / tau)
            total += (1 - alpha) * -math.log(softmax(clean[i, b])[labels[b]])
            total += alpha * tau**2 * float((p * np.log(p / q)).sum())
    return total / (M * B)


@pytest.mark.parametrize(("tau", "alpha"), [(4.0, 0.9), (1.0, 0.5), (2.0, 1.0), (2.0, 0.0)])
@pytest.mark.parametrize("perturbation", ["conf_ods", "none"])
def test_labels_are_learned_on_clean_images_and_each_teacher_by_its_own_member_on_moved_ones(
    tau: float, alpha: float, perturbation: Literal["conf_ods", "none"]
) -> None:
    clean, moved, teacher = (torch.randn(3, 5, 10, generator=seeded(i)) for i in range(3))
    labels = torch.arange(5)
    method = Ensemble(EnsembleOptions(temperature=tau, weight=alpha, perturbation=perturbation), Shapes((), ()))
    seen = None if perturbation == "none" else torch.zeros(5, 1, 2, 2)
    actual = method(
        Features(clean.flatten(0, 1), (), (), moved.flatten(0, 1)),
        TeacherSignals(members=teacher, perturbed=seen),
        labels.repeat(3),
    )
    learned = clean if perturbation == "none" else moved
    expected = nam(clean.numpy(), learned.numpy(), teacher.numpy(), labels.numpy(), tau, alpha)
    assert actual.item() == pytest.approx(expected, rel=1e-5)


def test_a_student_of_fewer_members_learns_the_first_teachers() -> None:
    clean, teacher = torch.randn(2, 5, 10, generator=seeded()), torch.randn(3, 5, 10, generator=seeded(1))
    method = Ensemble(EnsembleOptions(perturbation="none"), Shapes((), ()))
    labels = torch.arange(5)
    results = [
        method(Features(clean.flatten(0, 1), ()), TeacherSignals(members=members), labels.repeat(2)).item()
        for members in (teacher, teacher[:2], teacher[[1, 0]])
    ]
    assert results[0] == results[1] != results[2]


def outputs(z: Tensor) -> Callable[[int, Tensor], Tensor]:
    """Three members, each a linear map of the pixels plus a curve; they notice which of them is asked."""
    weights = torch.randn(3, z[0].numel(), 4, generator=seeded(5))
    return lambda member, x: (x.flatten(1) @ weights[member]).sin() * 3.0


GREY = torch.full((6, 2, 3, 4), 0.5)
"""So far from black and white that nothing is clipped."""


def test_the_step_has_the_asked_for_size_per_pixel_whatever_the_gradients() -> None:
    for kind in ("ods", "gaussian"):
        many = GREY.repeat(200 if kind == "gaussian" else 1, 1, 1, 1)
        moved = Perturbation(kind, 8.0, 2.0).apply(many, 3, outputs(GREY), seeded())
        rms = (moved - many).square().flatten(1).mean(1).sqrt()
        if kind == "ods":  # exactly, for each image
            torch.testing.assert_close(rms, torch.full((6,), 8 / 255), rtol=1e-5, atol=1e-7)
        else:  # on average, over 28,800 pixels
            assert rms.square().mean().sqrt().item() == pytest.approx(8 / 255, rel=0.02)


def test_the_direction_is_the_gradient_of_a_random_sum_of_one_members_softened_outputs() -> None:
    network = outputs(GREY)
    generator = seeded(3)
    chosen = int(torch.randint(3, (), generator=generator))
    w = 2.0 * torch.rand(6, 4, generator=generator) - 1.0
    asked: list[int] = []

    def watched(member: int, x: Tensor) -> Tensor:
        asked.append(member)
        return network(member, x)

    x = GREY + 0.1 * torch.rand(GREY.shape, generator=seeded(4))
    moved = Perturbation("ods", 4.0, 2.0).apply(x, 3, watched, seeded(3))
    assert asked == [chosen]
    for i in range(6):  # a Jacobian by finite differences, in double precision
        flat, step = x[i].double().flatten(), 1e-6

        def f(point: Tensor, i: int = i) -> Tensor:
            z = (point @ torch.randn(3, 24, 4, generator=seeded(5))[chosen].double()).sin() * 3.0
            return (w[i].double() * (z / 2.0).softmax(0)).sum()

        g = torch.stack([(f(flat + step * e) - f(flat - step * e)) / (2 * step) for e in torch.eye(24).double()])
        expected = 4 / 255 * math.sqrt(24) * g / g.norm()
        torch.testing.assert_close((moved - x)[i].flatten().double(), expected, rtol=2e-3, atol=2e-5)


def test_confident_images_are_moved_by_their_confidence() -> None:
    plain, scaled = (Perturbation(kind, 4.0, 2.0).apply(GREY, 3, outputs(GREY), seeded(3)) for kind in KINDS[1:])
    chosen = int(torch.randint(3, (), generator=seeded(3)))
    confidence = (outputs(GREY)(chosen, GREY) / 2.0).softmax(1).amax(1)
    torch.testing.assert_close(scaled - GREY, (plain - GREY) * confidence[:, None, None, None], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_moved_images_stay_images_and_the_batch_is_left_alone(kind: Literal["gaussian", "ods", "conf_ods"]) -> None:
    x = torch.rand(GREY.shape, generator=seeded()).round()  # black and white
    before = x.clone()
    moved = Perturbation(kind, 64.0, 1.0).apply(x, 3, outputs(GREY), seeded())
    assert torch.equal(x, before)
    assert 0.0 <= moved.min() < moved.max() <= 1.0
    assert not torch.equal(moved, x)
    assert not moved.requires_grad
    again = Perturbation(kind, 64.0, 1.0).apply(x, 3, outputs(GREY), seeded())
    assert torch.equal(again, moved)


def test_an_image_without_a_gradient_stays_where_it_is() -> None:
    def sure(member: int, x: Tensor) -> Tensor:
        return torch.stack([1000.0 + x.flatten(1).sum(1), x.flatten(1).sum(1)], dim=1)  # softmax is exactly (1, 0)

    assert torch.equal(Perturbation("ods", 8.0, 1.0).apply(GREY, 3, sure, seeded()), GREY)


def batch_of(task: Task, *rows: int) -> Batch:
    index = torch.tensor(rows)
    return Batch(index, pixels(task.data.train.images[index]), task.data.train.labels[index])


def test_knowledge_has_every_members_outputs_of_clean_and_of_moved_images(ensemble: Task) -> None:
    learned, batch = Knowledge(ensemble), batch_of(ensemble, 5, 0, 7)
    networks = ensemble.teacher.get_submodule("networks")
    clean = learned.signals(Needs(members=True, logits=True), batch, seeded())
    assert clean.perturbed is None
    assert set(learned.arrays()) == {"members", "logits"}
    moved = learned.signals(Needs(members=True, perturbation=Perturbation("ods", 8.0, 1.0)), batch, seeded())
    assert moved.perturbed is not None
    assert clean.members is not None
    assert moved.members is not None
    with torch.no_grad():
        for i, network in enumerate(networks.children()):
            torch.testing.assert_close(clean.members[i], network(batch.images), rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(moved.members[i], network(moved.perturbed), rtol=1e-5, atol=1e-5)
    assert clean.logits is not None
    torch.testing.assert_close(clean.logits.softmax(1), clean.members.softmax(2).mean(0))


def test_members_disagree_more_on_images_moved_by_their_gradients_than_by_noise(ensemble: Task) -> None:
    """The heart of the paper; measured for digits at 16/255: eight times and more."""
    batch = batch_of(ensemble, *range(200))
    learned = Knowledge(ensemble)

    def disagreement(kind: Literal["gaussian", "ods"]) -> float:
        needs = Needs(members=True, perturbation=Perturbation(kind, 16.0, 1.0))
        members = learned.signals(needs, batch, seeded()).members
        assert members is not None
        log_p = members.double().log_softmax(2)
        pairs = [(log_p[j].exp() * (log_p[j] - log_p[i])).sum(1).mean() for i in range(3) for j in range(3) if i != j]
        return float(sum(pairs) / len(pairs))

    assert disagreement("ods") > 3.0 * disagreement("gaussian")


def recipe(**options: Any) -> Recipe:
    flat = {"student.width": 0.125, "student.members": 3, "training.epochs": 2, "training.learning_rate": 0.02}
    flat |= {"pruning.fraction": 0.3, "pruning.fine_tune_epochs": 1}
    return Recipe.from_flat({**flat, "transfer": "ensemble", **options})


@pytest.mark.parametrize("perturbation", ["none", *KINDS])
def test_a_trial_is_the_same_again_and_its_files_are_the_student(
    perturbation: str, ensemble: Task, tmp_path: Path
) -> None:
    asked = recipe(**{"ensemble.perturbation": perturbation})
    result = run_trial(asked, ensemble, Knowledge(ensemble))
    assert result.units_cut > 0
    assert result.network.members == 3
    assert 0.0 <= result.measurements["deep_ensemble_equivalent"] <= 3.0
    assert result.measurements["diversity"] > 0.0
    again = run_trial(asked, ensemble, Knowledge(ensemble))
    assert weights_bytes(again.network) == weights_bytes(result.network)
    save_student(tmp_path, result.files(ensemble))
    loaded = load_student(tmp_path)
    assert measure(loaded, ensemble.data.validation, ensemble_nlls=ensemble.curve) == result.measurements


def test_perturbations_make_students_that_differ(ensemble: Task) -> None:
    results = {
        weights_bytes(run_trial(recipe(**{"ensemble.perturbation": kind}), ensemble, Knowledge(ensemble)).network)
        for kind in ("none", *KINDS)
    }
    assert len(results) == 4


@pytest.mark.parametrize("name", ["kd", "dkd", "dist", "none"])
def test_methods_on_outputs_learn_what_the_ensemble_says_together(name: str, ensemble: Task) -> None:
    for members in (1, 2):
        asked = recipe(**{"transfer": name, "student.members": members})
        assert run_trial(asked, ensemble, Knowledge(ensemble)).network.members == members


@pytest.mark.parametrize("name", [n for n, m in METHODS.items() if m.needs(m.parse({})).maps or n == "factor"])
def test_methods_on_features_refuse_an_ensemble(name: str, ensemble: Task) -> None:
    asked = Recipe.from_flat({"transfer": name})
    with pytest.raises(BadInput, match=f"`{name}` learns the features of one network, but `task.teacher.members` is 3"):
        run_trial(asked, ensemble, Knowledge(ensemble))


def test_more_members_than_teachers_are_refused(ensemble: Task) -> None:
    with pytest.raises(BadInput, match=r"`student\.members` must be at most `task\.teacher\.members`, 3, but got 4"):
        run_trial(recipe(**{"student.members": 4}), ensemble, Knowledge(ensemble))


def test_a_student_of_members_learns_features_of_a_single_teacher(task: Task) -> None:
    asked = Recipe.from_flat(
        {"student.width": 0.25, "student.members": 2, "training.epochs": 1, "transfer": "attention"}
    )
    plain = asked.model_copy(update={"transfer": "none"})
    results = [weights_bytes(run_trial(one, task, Knowledge(task)).network) for one in (asked, plain)]
    assert results[0] != results[1]
