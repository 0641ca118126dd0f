"""Every method in a real trial: the loop carries it, its stages included, and asks nobody which it is."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from spaces import Recipe
from trainers import Knowledge, Report, Task, TaskSpec, TeacherSpec, run_trial
from trainers.families import Features
from trainers.store import weights_bytes
from trainers.transfer import METHODS, TeacherSignals
from trainers.transfer.ab import AB
from trainers.transfer.dkd import DKD
from trainers.transfer.feature import FeatureMethod
from trainers.transfer.fsp import FSP

QUICK: dict[str, dict[str, float]] = {
    "factor": {"factor.paraphraser_steps": 700, "factor.rate": 1.0},
    "ab": {"ab.pretraining_epochs": 1},
    "fsp": {"fsp.pretraining_epochs": 1},
    "crd": {"crd.negatives": 64},
}


@pytest.fixture(scope="module")
def knowledge(home: Path) -> Knowledge:
    """Of a teacher of 100 digits; what one method computed another may use."""
    teacher = TeacherSpec(depth=8, width=0.25, epochs=4, batch_size=16)
    return Knowledge(Task.load(TaskSpec(train_limit=100, augment="none", teacher=teacher), home))


def recipe(name: str, **more: float | str) -> Recipe:
    flat = {"student.width": 0.25, "training.epochs": 1, "pruning.fine_tune_epochs": 1}
    return Recipe.from_flat({**flat, "transfer": name, **QUICK.get(name, {}), **more})


@pytest.mark.parametrize("name", METHODS)
def test_a_trial_with_pruning_is_carried_out(name: str, knowledge: Knowledge) -> None:
    # that it is the same again, to the bit, test_checkpoint.py says of every method
    reports: list[Report] = []
    asked = recipe(name, **{"pruning.fraction": 0.4, "training.learning_rate": 0.02})
    result = run_trial(asked, knowledge.task, knowledge, reports.append)
    expected = ["pretrain"] * METHODS[name].pretraining_epochs(METHODS[name].parse(dict(asked.options)))
    assert [r.phase for r in reports] == [*expected, "train", "fine_tune"]
    assert [(r.step, r.steps) for r in reports] == [(i + 1, len(reports)) for i in range(len(reports))]
    assert result.units_cut > 0
    assert {key.partition(".")[0] for key in result.network.state_dict()} == {
        "classifier",
        "groups",
        "normalize",
        "stem",
    }


def test_an_mlp_learns_of_a_resnet_and_the_soft_labels_count(knowledge: Knowledge) -> None:
    flat = {"student.family": "mlp", "student.depth": 3}
    results = [
        run_trial(recipe("vid", **flat, **{"vid.soft_labels": weight}), knowledge.task, knowledge)
        for weight in (0.0, 0.9)
    ]
    assert weights_bytes(results[0].network) != weights_bytes(results[1].network)


@pytest.mark.parametrize("method_type", [AB, FSP])
def test_the_student_is_pretrained_on_the_methods_own_loss_and_by_labels_afterwards(
    method_type: type[FeatureMethod], knowledge: Knowledge, monkeypatch: pytest.MonkeyPatch
) -> None:
    own: list[list[float]] = []
    """The distances of each epoch, as the method has them."""
    by_labels: list[float] = []
    """Cross entropies of each batch, worked out beside the loop."""
    distance, forward = method_type.distance, method_type.forward

    def watched(self: FeatureMethod, student: Features, teacher: TeacherSignals, labels: torch.Tensor) -> torch.Tensor:
        value = distance(self, student, teacher, labels)  # type: ignore[arg-type]
        own[-1].append(self.weight * value.item())
        return value

    def watched_forward(
        self: FeatureMethod, student: Features, teacher: TeacherSignals, labels: torch.Tensor
    ) -> torch.Tensor:
        by_labels.append(F.cross_entropy(student.logits, labels).item())
        return forward(self, student, teacher, labels)  # type: ignore[arg-type]

    def heard(report: Report) -> None:
        reports.append(report)
        own.append([])

    own.append([])
    reports: list[Report] = []
    monkeypatch.setattr(method_type, "distance", watched)
    monkeypatch.setattr(method_type, "forward", watched_forward)
    name = method_type.name
    rates = {"training.learning_rate": 0.02, "training.batch_size": 20}
    no_penalty = {"spectral.eigenvector_l2": 0.0, "spectral.eigenvalue_l2": 0.0}
    asked = recipe(name, **{f"{name}.pretraining_epochs": 3, "training.epochs": 2}, **rates, **no_penalty)
    run_trial(asked, knowledge.task, knowledge, heard)
    assert [r.phase for r in reports] == ["pretrain"] * 3 + ["train"] * 2
    pretraining, training = [r.metrics["loss"] for r in reports[:3]], [r.metrics["loss"] for r in reports[3:]]
    assert [len(each) for each in own] == [5, 5, 5, 0, 0, 0]  # batches of an epoch; none by the labels
    assert pretraining == pytest.approx([sum(each) / 5 for each in own[:3]])
    assert pretraining[0] > pretraining[1] > pretraining[2]
    assert training == pytest.approx([sum(by_labels[i : i + 5]) / 5 for i in (0, 5)])
    assert len(by_labels) == 10
    assert training[0] > training[1]


def test_methods_are_told_how_far_the_training_is(knowledge: Knowledge, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    forward = DKD.forward

    def watched(self: DKD, student: object, teacher: TeacherSignals, labels: torch.Tensor) -> torch.Tensor:
        seen.append(self.progress)
        return forward(self, student, teacher, labels)  # type: ignore[arg-type]

    monkeypatch.setattr(DKD, "forward", watched)
    run_trial(recipe("dkd", **{"training.epochs": 4, "training.batch_size": 100}), knowledge.task, knowledge)
    assert seen == [0.25, 0.5, 0.75, 1.0]


def test_a_method_pretrains_as_long_as_is_asked_and_only_where_it_has_a_stage_of_its_own() -> None:
    for method_type in METHODS.values():
        pretrains = method_type.pretraining_epochs(method_type.parse({})) > 0
        assert pretrains == (method_type in (AB, FSP))
    assert [m.pretraining_epochs(m.parse({"pretraining_epochs": 7})) for m in (AB, FSP)] == [7, 7]
