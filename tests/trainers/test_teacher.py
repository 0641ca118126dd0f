"""Teachers that somebody else has trained: read, measured, never changed; and what does not fit is said."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torchvision
from torch import Tensor, nn

from spaces import BadInput, Recipe
from trainers import Knowledge, Task, TaskSpec, TeacherSpec, run_trial
from trainers.data import pixels
from trainers.files import sha256
from trainers.measure import measure, predictions
from trainers.networks import Weights, load_weights, named_network
from trainers.store import load_student, save_student, weights_bytes
from trainers.trial import TrialResult

OWN = '''
import numpy as np
import torch
from torch import nn


class Branches(nn.Module):
    """Residual, depthwise and concatenated parts."""

    def __init__(self, num_classes=10, width=8):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.point = nn.Conv2d(width, width, 1)
        self.norm = nn.BatchNorm2d(width)
        self.branch = nn.Conv2d(width, 6, 3, stride=2, padding=1)
        self.other = nn.Conv2d(width, 5, 1, stride=2)
        self.last = nn.BatchNorm2d(11)
        self.classifier = nn.Linear(11, num_classes)

    def forward(self, x):
        x = self.stem(x)
        x = torch.relu(x + self.norm(self.point(torch.relu(self.depthwise(x)))))
        x = self.last(torch.cat([self.branch(x), self.other(x)], 1)).relu()
        return self.classifier(x.mean((2, 3)))


class Tied(Branches):
    """Uses one weight in two places."""

    def __init__(self, num_classes=10):
        super().__init__(num_classes)
        self.again = nn.Conv2d(8, 8, 1)
        self.again.weight = self.point.weight
        self.register_buffer("mask", torch.full((4,), -torch.inf))

    def forward(self, x):
        return super().forward(x + 0 * self.again(x.expand(-1, 8, -1, -1)).mean())


class Random(Branches):
    """Has a constant that no file knows."""

    def __init__(self, num_classes=10):
        super().__init__(num_classes)
        self.shift = float(np.random.default_rng().normal())

    def forward(self, x):
        return super().forward(x + self.shift)


class Lazy(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.LazyLinear(10)

    def forward(self, x):
        return self.layer(x.flatten(1))


class Extra(Branches):
    def get_extra_state(self):
        return {"a": 1}

    def set_extra_state(self, state):
        pass


def popper(sizes):
    return Branches(sizes.pop())


def pictures():
    """Noise of 32 x 32 in three colours, with a class that says which colour is brightest."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(3).repeat(40)
    images = torch.rand(len(labels), 3, 32, 32, generator=generator) / 2
    images[torch.arange(len(labels)), labels] += 0.4
    return torch.utils.data.TensorDataset(images, labels)
'''


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], nn.Module]:
    """The class of a module `branches_of_mine`, which can be imported."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "branches_of_mine.py").write_text(OWN)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        from branches_of_mine import Branches  # type: ignore[import-not-found]
    import sys

    sys.path.append(str(folder))
    made: Callable[[], nn.Module] = Branches
    return made


REFERENCE = "branches_of_mine:Branches"


@pytest.fixture(scope="module")
def trained(own: Callable[[], nn.Module]) -> nn.Module:
    """A network that was trained outside of Dux, on images that are not normalised; about 0.8 of them right."""
    data = TaskSpec().load_data().train
    torch.manual_seed(0)
    network = own()
    optimizer = torch.optim.SGD(network.parameters(), 0.05, 0.9, nesterov=True)
    for _ in range(8):
        for rows in torch.randperm(len(data)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(pixels(data.images[rows])), data.labels[rows]).backward()
            optimizer.step()
    return network.eval()


def spec(weights: Path | None = None, teacher: dict[str, Any] | None = None, **fields: Any) -> TaskSpec:
    given = {"network": REFERENCE, "input": {"mean": [0.0], "std": [1.0]}, **(teacher or {})}
    if weights is not None:
        given["weights"] = str(weights)
    return TaskSpec(teacher=TeacherSpec.model_validate(given), **{"train_limit": 200, "augment": "none", **fields})


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def weights(trained: nn.Module, home: Path) -> Path:
    torch.save(trained.state_dict(), home / "weights.pth")
    return home / "weights.pth"


@pytest.fixture(scope="module")
def task(weights: Path, home: Path) -> Task:
    return Task.load(spec(weights), home)


def test_a_network_that_somebody_has_trained_is_measured_and_not_changed(trained: nn.Module, task: Task) -> None:
    images = task.data.validation
    assert torch.equal(predictions(task.teacher, images), predictions(trained, images))
    assert task.teacher_measurements == measure(task.teacher, images, ensemble_nlls=task.curve)
    assert task.teacher_measurements["accuracy"] > 0.6
    assert task.notes == ()
    assert not any(p.requires_grad for p in task.teacher.parameters())


def test_it_is_read_once_and_then_as_it_was(weights: Path, task: Task, home: Path) -> None:
    again = Task.load(spec(weights), home)
    assert again.key == task.key
    assert weights_bytes(again.teacher) == weights_bytes(task.teacher)


def test_another_process_builds_the_same_teacher_from_its_arrays(task: Task) -> None:
    there = Task.from_arrays(
        task.spec, task.teacher_measurements, task.curve, task.key, task.data.class_names, task.arrays()
    )
    images = task.data.validation
    assert torch.equal(predictions(there.teacher, images), predictions(task.teacher, images))
    assert there.teacher.taps == task.teacher.taps


@pytest.mark.parametrize(
    ("saved", "notes"),
    [
        (lambda own: {"epoch": 3, "state_dict": own}, ["its weights were found under `state_dict`"]),
        (lambda own: {f"module.{name}": t for name, t in own.items()}, ["the prefix `module.` was removed from"]),
        (
            lambda own: {"model": {f"net.net.{name}": t for name, t in own.items()}},
            ["its weights were found under `model`", "the prefix `net.net.` was removed from the names"],
        ),
        (
            lambda own: {"model": own, "model_ema": own, "epoch": 3},
            ["its weights were found under `model`, and 'model_ema' was not read"],
        ),
        (
            lambda own: {"n_averaged": torch.tensor(3), **{f"module.{name}": t for name, t in own.items()}},
            ["`n_averaged`, how often a torch.optim.swa_utils.AveragedModel averaged, was", "the prefix `module.` was"],
        ),
        (lambda own: {name: t for name, t in own.items() if "num_batches_tracked" not in name}, []),
        (lambda own: {name: t.double() if t.is_floating_point() else t for name, t in own.items()}, []),
    ],
)
def test_weights_are_read_however_they_were_saved(
    saved: Callable[[dict[str, Tensor]], Any], notes: list[str], trained: nn.Module, task: Task, tmp_path: Path
) -> None:
    torch.save(saved(trained.state_dict()), tmp_path / "w.pt")
    other = Task.load(spec(tmp_path / "w.pt"), tmp_path / "home")
    images = task.data.validation
    assert torch.equal(predictions(other.teacher, images), predictions(task.teacher, images))
    assert len(other.notes) == len(notes)
    assert all(said.startswith(note) for said, note in zip(other.notes, notes, strict=True))


def test_weights_are_told_by_what_is_in_their_file(trained: nn.Module, task: Task, tmp_path: Path) -> None:
    safetensors.torch.save_file(trained.state_dict(), tmp_path / "w.safetensors")
    safetensors.torch.save_file(trained.state_dict(), tmp_path / "pytorch_model.bin")
    torch.save(trained.state_dict(), tmp_path / "x.safetensors")
    for name in ("w.safetensors", "pytorch_model.bin", "x.safetensors"):
        other = Task.load(spec(tmp_path / name), tmp_path)
        assert other.key == task.key  # of what is in the file, not of the file
    (tmp_path / "w.pth").write_bytes(b"GIF89a, a picture")
    with pytest.raises(BadInput, match=r"w.pth` must be a safetensors or torch.save file, but is neither$"):
        Task.load(spec(tmp_path / "w.pth"), tmp_path)


def test_all_that_is_wrong_with_an_ensembles_members_is_told(own: object, tmp_path: Path) -> None:
    members = [{"network": REFERENCE, "arguments": {"depth": n}} for n in (3, 4)]
    with pytest.raises(BadInput, match=r"2 problems: .*'depth': 3.*'depth': 4"):
        Task.load(TaskSpec(teacher=TeacherSpec.model_validate({"members": members}), train_limit=200), tmp_path)


def test_outputs_that_only_training_uses_are_left_out_of_torchvisions_networks() -> None:
    network = named_network("torchvision:googlenet", {}, 4)
    with_them = torchvision.models.googlenet(weights=None, num_classes=4, aux_logits=True, init_weights=False)
    notes = load_weights(network, Weights(with_them.state_dict(), ""), "the weights")
    assert notes == ["the weights of its auxiliary outputs, which only training uses, were left out"]
    assert not any(name.startswith("aux") for name in network.state_dict())
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(network.eval()(images), with_them.eval()(images))
    assert network.train()(images).shape == (2, 4)
    kept = named_network("torchvision:googlenet", {"aux_logits": True, "init_weights": False}, 4)
    assert kept.state_dict().keys() == with_them.state_dict().keys()
    with pytest.raises(BadInput, match=r"must have `arguments: \{transform_input: true\}` for torchvision's own"):
        named_network("torchvision:googlenet", {}, 4, downloaded=True)


class _Code:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("/tmp/dux-test-was-run"),))


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        (lambda own: own, r"must contain only weights, but reading it would run code, which Dux does not do"),
        (lambda own: {"a": _Code()}, r"must contain only weights, but reading it would run code"),
        (lambda own: {"epoch": 3}, r"must contain a state dict \(names and tensors\), but contains \['epoch'\]; save"),
        (lambda own: 3, r"must contain a state dict \(names and tensors\), but contains int"),
        (
            lambda own: {**own.state_dict(), "fc.weight": torch.zeros(3)},
            r"must belong to Branches as .* the network lacks fc.weight$",
        ),
        (
            lambda own: {n: t for n, t in own.state_dict().items() if not n.startswith("classifier")},
            r"it lacks classifier.bias, classifier.weight$",
        ),
        (
            lambda own: {**own.state_dict(), "classifier.weight": torch.zeros(12, 11)},
            r"shapes differ: classifier.weight \(12, 11\) instead of \(10, 11\)$",
        ),
        (
            lambda own: {**own.state_dict(), "classifier.weight": torch.full((10, 11), torch.nan)},
            r"not finite classifier.weight$",
        ),
    ],
)
def test_what_are_no_weights_of_the_network_is_refused_in_a_line(
    saved: Callable[[nn.Module], Any], message: str, trained: nn.Module, tmp_path: Path
) -> None:
    torch.save(saved(trained), tmp_path / "w.pth")
    with pytest.raises(BadInput, match=message):
        Task.load(spec(tmp_path / "w.pth"), tmp_path / "home")
    assert not Path("/tmp/dux-test-was-run").exists()


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (
            lambda own: {**own, "classifier.weight": torch.zeros(10, 11, dtype=torch.int8)},
            r"of another kind: classifier",
        ),
        (lambda own: {**own, "classifier.weight": torch.zeros(10, 11, device="meta")}, r"must be ordinary tensors"),
        (lambda own: {"model": {"model": {"model": {"model": {"model": {"model": own}}}}}}, r"contain a state dict"),
    ],
)
def test_tensors_that_would_be_something_else_are_refused(
    state: Callable[[dict[str, Tensor]], Any], message: str, trained: nn.Module, tmp_path: Path
) -> None:
    torch.save(state(dict(trained.state_dict())), tmp_path / "w.pth")
    with pytest.raises(BadInput, match=message):
        Task.load(spec(tmp_path / "w.pth"), tmp_path / "home")


def test_the_first_key_with_a_state_dict_is_taken(trained: nn.Module, task: Task, tmp_path: Path) -> None:
    torch.save({"model": {"arch": "x"}, "net": trained.state_dict()}, tmp_path / "w.pth")
    assert Task.load(spec(tmp_path / "w.pth"), tmp_path / "home").notes == ("its weights were found under `net`",)


@pytest.mark.parametrize("cut", range(0, 2000, 97))
def test_damaged_weights_are_refused_in_a_line(cut: int, weights: Path, tmp_path: Path) -> None:
    content = bytearray(weights.read_bytes())
    content[cut : cut + 8] = b"\xff" * 8
    (tmp_path / "w.pth").write_bytes(content)
    try:
        Task.load(spec(tmp_path / "w.pth"), tmp_path / "home")
    except BadInput as error:
        assert "\n" not in str(error)  # noqa: PT017


def test_a_network_that_is_made_when_it_first_runs_cannot_be_filled(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="Lazy has some that are made when it first runs"):
        Task.load(spec(weights, {"network": "branches_of_mine:Lazy"}), tmp_path)


def test_a_constructor_may_change_what_it_is_given(own: object, tmp_path: Path) -> None:
    given = spec(teacher={"network": "branches_of_mine:popper", "arguments": {"sizes": [3, 10]}})
    keys = [Task.load(given, tmp_path).key for _ in range(2)]
    assert keys[0] == keys[1]
    assert given.teacher.arguments == {"sizes": [3, 10]}


def test_tied_weights_are_sent_to_workers_and_saved(own: object, tmp_path: Path) -> None:
    task = Task.load(spec(teacher={"network": "branches_of_mine:Tied"}), tmp_path)
    there = Task.from_arrays(
        task.spec, task.teacher_measurements, task.curve, task.key, task.data.class_names, task.arrays()
    )
    images = task.data.validation
    assert torch.equal(predictions(there.teacher, images), predictions(task.teacher, images))
    result = trial(task, student__width=0.5)
    save_student(tmp_path / "trial", result.files(task))
    student = load_student(tmp_path / "trial")
    assert torch.equal(predictions(student, images), predictions(result.network, images))


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ({"members": [{"members": [{"network": "a:b"}]}]}, "must have members that are single networks"),
        ({"members": [{"network": "a:b"}, {"network": "a:c"}], "epochs": 7}, "must give `epochs` for each"),
        ({"network": "a:b", "members": 3}, "must have members that differ: list them, or have them fine-tuned"),
    ],
)
def test_what_members_would_not_hear_of_is_refused(teacher: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TeacherSpec.model_validate(teacher)


def test_a_file_cut_short_is_refused_in_a_line(weights: Path, tmp_path: Path) -> None:
    for name in ("w.pth", "w.safetensors"):
        (tmp_path / name).write_bytes(weights.read_bytes()[:1000])
        with pytest.raises(BadInput, match=rf"{name}` must be a safetensors or torch.save file, but .*"):
            Task.load(spec(tmp_path / name), tmp_path / "home")


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ({"network": "torchvision:resnet81"}, r"must be a torchvision classifier; did you mean `resnet18`\?"),
        ({"network": "timm:resnet81"}, r"must be a timm network; "),
        ({"network": "branches_of_mine:Brunches"}, r"must be something that can be imported, but AttributeError"),
        ({"network": "branches_of_mine:OWN"}, r"must be something that can be imported"),
        ({"network": "branches_of_mine:nn"}, r"must be a class or a function that returns a torch.nn.Module, but is"),
        ({"arguments": {"depth": 3}}, r"must accept `arguments: \{'depth': 3\}`, but TypeError: .*'depth'"),
        ({"arguments": {"num_classes": 12}}, r"must put out logits \(B, 10\), but puts out \(2, 12\) for two images"),
        ({"network": "torchvision:resnet18"}, r"must take images \(B, 1, 8, 8\), but RuntimeError: .*3 channels"),
        ({"taps": ["stem", "nowhere"]}, r"a tap must be the name of one of its modules, but got 'nowhere'"),
        (
            {"input": {"size": 32}},
            r"`task.teacher.input.size` must match the images, but is 32 and they are 8 x 8; leave it out$",
        ),
        (
            {"network": "branches_of_mine:Random"},
            r"must be the same network each time it is built, but is not; register",
        ),
        ({"network": "branches_of_mine:Extra"}, r"must have a state of tensors alone, but `_extra_state` is not one"),
        ({"input": {"mean": [0, 0, 0], "std": [1, 1, 1]}}, r"must have a mean and a std for each of 1 channels"),
    ],
)
def test_a_network_that_cannot_be_is_refused_in_a_line(
    teacher: dict[str, Any], message: str, own: object, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=message) as refused:
        Task.load(spec(teacher=teacher), tmp_path)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "teachers").exists()


def test_a_network_near_chance_is_called_out(own: object, tmp_path: Path) -> None:
    task = Task.load(spec(), tmp_path)  # not trained at all
    note = task.doubt
    assert "is near chance (0.1" in note
    assert "do its weights belong to `network`" in note


def test_classes_in_another_order_are_called_out_and_put_right(trained: nn.Module, task: Task, tmp_path: Path) -> None:
    order = torch.tensor([3, 1, 4, 0, 5, 9, 2, 6, 8, 7])  # of the teacher's outputs, which digit each is
    state = {**trained.state_dict()}
    state["classifier.weight"], state["classifier.bias"] = (
        state[f"classifier.{name}"][order] for name in ("weight", "bias")
    )
    torch.save(state, tmp_path / "w.pth")
    permuted = Task.load(spec(tmp_path / "w.pth"), tmp_path)
    note = permuted.doubt
    assert f"but would be {task.teacher_measurements['accuracy']:.3f} with its classes in another order" in note
    names = tmp_path / "classes.txt"
    names.write_text("\n".join(task.data.class_names[digit] for digit in order) + "\n")
    righted = Task.load(spec(tmp_path / "w.pth", classes=str(names)), tmp_path)
    assert (righted.notes, righted.doubt) == ((), "")
    size = {"size_bytes": task.teacher_measurements["size_bytes"]}  # the order is in the file, too
    assert {**righted.teacher_measurements, **size} == task.teacher_measurements
    names.write_text("zero\none\n")
    with pytest.raises(BadInput, match=r"`task.classes` must have each class of the data once, but it lacks"):
        Task.load(spec(tmp_path / "w.pth", classes=str(names)), tmp_path)


def test_a_network_is_fine_tuned_first_where_epochs_are_given(weights: Path, task: Task, tmp_path: Path) -> None:
    seen: list[int] = []
    tuned = Task.load(spec(weights, {"epochs": 2}), tmp_path, lambda epoch, loss: seen.append(epoch))
    assert seen == [1, 2]
    assert tuned.key != task.key
    assert tuned.teacher_measurements["nll"] < task.teacher_measurements["nll"] + 0.1
    assert weights_bytes(tuned.teacher) != weights_bytes(task.teacher)


def test_members_of_an_ensemble_may_be_such_networks(weights: Path, task: Task, tmp_path: Path) -> None:
    one = {"network": REFERENCE, "weights": str(weights), "input": {"mean": [0.0], "std": [1.0]}}
    family = {"family": "mlp", "depth": 2, "width": 0.1, "epochs": 1}
    given = TeacherSpec.model_validate({"members": [one, {**one, "input": {"mean": [0.1], "std": [1.0]}}, family]})
    ensemble = Task.load(TaskSpec(teacher=given, train_limit=200, augment="none"), tmp_path)
    assert ensemble.teacher.members == 3
    images = pixels(task.data.validation.images[:5])
    assert torch.equal(ensemble.teacher.member(0, images), task.teacher(images))
    again = Task.load(TaskSpec(teacher=given, train_limit=200, augment="none"), tmp_path)
    assert weights_bytes(again.teacher) == weights_bytes(ensemble.teacher)
    with pytest.raises(BadInput, match=r"`student.start: teacher` must be of a single network, but the teacher has 3"):
        run_trial(Recipe.from_flat({"student.start": "teacher"}), ensemble, Knowledge(ensemble))


def trial(task: Task, **flat: Any) -> TrialResult:
    given = {
        "student.start": "teacher",
        "training.epochs": 1,
        "pruning.fine_tune_epochs": 0,
        **{name.replace("__", "."): value for name, value in flat.items()},
    }
    return run_trial(Recipe.from_flat(given), task, Knowledge(task), curve=())


def test_a_student_that_starts_as_the_teacher_begins_with_what_the_teacher_knows(task: Task, home: Path) -> None:
    gentle = trial(task, training__learning_rate=1e-9, spectral__eigenvector_l2=0.0, spectral__eigenvalue_l2=0.0)
    for (name, own), (_, whole) in zip(gentle.network.named_parameters(), task.teacher.named_parameters(), strict=True):
        torch.testing.assert_close(own, whole, msg=name)
    halved = trial(task, student__width=0.5, training__learning_rate=1e-9)
    assert halved.measurements["parameters"] < 0.5 * gentle.measurements["parameters"]
    assert halved.measurements["accuracy"] > 0.3  # 0.7 when this was written; guessing is 0.1
    assert weights_bytes(task.teacher) == weights_bytes(Task.load(task.spec, home).teacher)  # which is not touched


def test_width_is_the_share_of_each_group_of_units_that_stays(task: Task) -> None:
    result = trial(task, student__width=0.5, pruning__round_to=2)
    tensors = result.network.state_dict()
    sizes = {name: tensors[f"network.{name}.weight"].shape[0] for name in ("stem.0", "depthwise", "branch", "other")}
    assert sizes == {"stem.0": 4, "depthwise": 4, "branch": 4, "other": 4}  # 8, 8, 6 and 5, up to a multiple of 2


def test_a_student_that_starts_as_the_teacher_is_the_same_after_saving(task: Task, tmp_path: Path) -> None:
    result = trial(task, student__width=0.75, pruning__fraction=0.5, transfer="kd")
    files = result.files(task)
    save_student(tmp_path, files)
    student = load_student(tmp_path)
    images = task.data.validation
    assert measure(student, images, ensemble_nlls=task.curve) == result.measurements
    assert torch.equal(predictions(student, images), predictions(result.network, images))
    described = json.loads(files["student.json"])
    assert (described["format"], described["network"]) == (2, REFERENCE)
    assert sha256(weights_bytes(student)) == sha256(files["student.safetensors"])


def test_a_student_may_start_as_a_teacher_that_dux_trained(tmp_path: Path) -> None:
    teacher = TeacherSpec(family="resnet", depth=8, width=0.25, epochs=1)
    task = Task.load(TaskSpec(train_limit=200, augment="none", teacher=teacher), tmp_path)
    result = trial(task, student__width=0.5, transfer="fitnet")
    save_student(tmp_path / "trial", result.files(task))
    student = load_student(tmp_path / "trial")
    assert measure(student, task.data.validation, ensemble_nlls=task.curve) == result.measurements
    assert result.measurements["parameters"] < 0.5 * task.teacher_measurements["parameters"]


VIT = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 24, "num_heads": 3}


@pytest.mark.parametrize(
    ("network", "arguments", "transfer"),
    [
        ("torchvision:mobilenet_v3_small", {}, "kd"),
        ("torchvision:resnet18", {}, "attention"),
        ("timm:mobilenetv3_small_050", {}, "fitnet"),
        ("timm:vit_tiny_patch16_224", VIT, "kd"),
    ],
)
def test_networks_of_the_libraries_are_cut_saved_and_read_back(
    network: str, arguments: dict[str, Any], transfer: str, own: object, tmp_path: Path
) -> None:
    teacher = TeacherSpec.model_validate({"network": network, "arguments": arguments})
    task = Task.load(TaskSpec(dataset="branches_of_mine:pictures", augment="none", teacher=teacher), tmp_path)
    assert task.teacher.taps
    quick = {"pruning.reconstruct": network != "torchvision:resnet18"}  # of 512 channels it takes 10 s
    result = trial(task, student__width=0.5, pruning__fraction=0.3, transfer=transfer, training__batch_size=16, **quick)
    assert result.units_cut > 0
    assert result.measurements["parameters"] < task.teacher_measurements["parameters"]
    save_student(tmp_path / "trial", result.files(task))
    student = load_student(tmp_path / "trial")
    assert measure(student, task.data.validation, ensemble_nlls=task.curve) == result.measurements
    there = Task.from_arrays(
        task.spec, task.teacher_measurements, task.curve, task.key, task.data.class_names, task.arrays()
    )
    images = task.data.validation
    assert torch.equal(predictions(there.teacher, images), predictions(task.teacher, images))
