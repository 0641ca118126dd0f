"""Networks in `.pt2` files: they compute what was exported, learn and can be cut, and no code of a file's is run."""

import io
import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from spaces import BadInput, Recipe
from trainers import Knowledge, Task, TaskSpec, TeacherSpec, load_student, run_trial, save_student
from trainers.exported import read_exported
from trainers.families.taps import find_places
from trainers.measure import measure, predictions
from trainers.planning import check_layers
from trainers.spectral import cut, mask, plan, spectralize, trace

GREY = (1, 8, 8)


class Net(nn.Module):
    """Residual, depthwise, grouped, concatenated and tied parts; ReLUs of all kinds; a constant, a bare parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.constant = torch.tensor(2.0)
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.depthwise = nn.Conv2d(8, 8, 3, padding="same", groups=8)
        self.norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 12, 3, 2, 1, groups=2)
        self.point = nn.Conv2d(12, 6, (1, 1))
        self.hidden = nn.Linear(18, 10)
        self.flat_norm = nn.BatchNorm1d(10)
        self.scale = nn.Parameter(torch.full((10,), 1.5))
        self.layer_norm = nn.LayerNorm(10)
        self.dropout = nn.Dropout(0.3)
        self.fc = nn.Linear(10, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(self.depthwise(x))
        y += x
        x = self.grouped(y.relu_()) * self.constant
        x = torch.cat([x, self.point(x).relu()], 1).mean((2, 3))
        x = self.layer_norm(self.flat_norm(self.hidden(x)) * self.scale)
        logits: Tensor = self.fc(self.dropout(torch.relu(self.fc(torch.relu(x)))))
        return logits


def drawn(network: nn.Module) -> nn.Module:
    """With numbers in its batch norms."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
            if name.endswith("running_var"):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
            elif tensor.is_floating_point() and tensor.dim() == 1:
                tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return network


def made() -> nn.Module:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        return drawn(Net())


def exported(
    network: nn.Module, path: Path, shape: tuple[int, ...] = GREY, batch: Any = torch.export.Dim.DYNAMIC
) -> Path:
    program = torch.export.export(network, (torch.rand(2, *shape),), dynamic_shapes=({0: batch},))
    torch.export.save(program, path)
    return path


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(made().eval(), tmp_path_factory.mktemp("exported") / "net.pt2")


def images(count: int = 5, shape: tuple[int, ...] = GREY) -> Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(1))


def kinds(network: nn.Module) -> dict[str, int]:
    counts: dict[str, int] = {}
    for module in network.modules():
        if not list(module.children()) and type(module) is not nn.Module:
            counts[type(module).__name__] = counts.get(type(module).__name__, 0) + 1
    return counts


LAYERS = {"Conv2d": 4, "BatchNorm2d": 2, "BatchNorm1d": 1, "LayerNorm": 1, "Linear": 2, "ReLU": 5, "Dropout": 1}


@pytest.mark.parametrize("training", [False, True])
def test_it_computes_what_was_exported_in_layers_in_either_mode(training: bool, tmp_path: Path) -> None:
    network = made().train(training)
    read = read_exported(exported(network, tmp_path / "net.pt2"))
    assert kinds(read) == LAYERS
    assert not any(module.training for module in read.modules())
    network.eval()
    assert torch.equal(read(images()), network(images()))
    for each in (read.train(), network.train()):
        torch.manual_seed(0)  # of the dropout
        each(images())
    before, after = read.get_submodule("norm"), network.get_submodule("norm")
    assert torch.equal(before.get_buffer("running_mean"), after.get_buffer("running_mean"))
    assert [len(read.eval()(images(count))) for count in (1, 2, 7)] == [1, 2, 7]


class Bare(nn.Module):
    """Parameters of its own as weights, some called as other layers are."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 1, 3, 3))
        self.w = nn.Parameter(torch.randn(4, 4, 1, 1))
        self.proj_weight = nn.Parameter(torch.randn(5, 4))
        self.layer, self.proj = nn.Linear(5, 3), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(F.conv2d(F.conv2d(x, self.weight), self.w)).mean((2, 3))
        logits: Tensor = self.layer(F.linear(x, self.proj_weight))
        return logits


def test_weights_of_no_layer_become_layers_whatever_they_are_called(tmp_path: Path) -> None:
    network = Bare().eval()
    read = read_exported(exported(network, tmp_path / "bare.pt2"))
    assert kinds(read) == {"Conv2d": 3, "Linear": 2}
    assert torch.equal(read(images()), network(images()))


def test_a_batch_norm_that_averages_over_all_batches_still_does(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, momentum=None), nn.Flatten(), nn.Linear(144, 3))
    read = read_exported(exported(drawn(network).eval(), tmp_path / "net.pt2"))
    for each in (read, network):
        each.train()(images())
    means = [dict(each.named_buffers())["1.running_mean"] for each in (read, network)]
    assert torch.allclose(*means)


def test_its_features_and_units_are_those_of_the_network(file: Path) -> None:
    read, network = read_exported(file), made().eval()
    found, expected = find_places(read, GREY), find_places(network, GREY)
    assert (found.outputs, found.heads) == (expected.outputs, expected.heads) == ((2, 10), ("fc",))
    assert len(found.taps) == 2
    read, network = (spectralize(each, keep=["fc"]) for each in (read, network))
    traced = trace(read, GREY)
    assert traced.units == trace(network, GREY).units
    planned = plan(traced, 0.5, floor=0.0)
    assert planned.removed > 5
    smaller, masked = cut(read, planned), mask(read, planned)
    torch.testing.assert_close(smaller(images()), masked(images()))


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_a_network_of_torchvisions_has_the_same_units_as_before_it_was_exported(name: str, tmp_path: Path) -> None:
    shape = (3, 32, 32)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        network = torchvision.models.get_model(name, weights=None, num_classes=4).eval()
    read = read_exported(exported(network, tmp_path / "net.pt2", shape))
    assert torch.equal(read(images(3, shape)), network(images(3, shape)))
    ours, theirs = (plan(trace(spectralize(each), shape), 0.0, floor=0.0) for each in (read, network))
    assert [(c.root, c.units) for c in ours.cuts] == [(c.root, c.units) for c in theirs.cuts]


def task_of(file: Path, home: Path, **teacher: Any) -> Task:
    spec = TeacherSpec.model_validate({"network": str(file), "input": {"mean": [0.0], "std": [1.0]}, **teacher})
    return Task.load(TaskSpec(teacher=spec, train_limit=200, augment="none"), home)


def test_a_study_measures_it_distils_it_and_cuts_students_out_of_it(file: Path, tmp_path: Path) -> None:
    task = task_of(file, tmp_path)
    validation = task.data.validation
    assert torch.equal(predictions(task.teacher, validation), predictions(made().eval(), validation))
    (tmp_path / "elsewhere").mkdir()
    moved = (tmp_path / "elsewhere" / "same.pt2").absolute()
    moved.write_bytes(file.read_bytes())
    assert task_of(moved, tmp_path).key == task.key  # of what is in the file, not of the file
    arrays = task.arrays()
    there = Task.from_arrays(task.spec, task.teacher_measurements, task.curve, task.key, task.data.class_names, arrays)
    assert torch.equal(predictions(there.teacher, validation), predictions(task.teacher, validation))
    flat = {"student.start": "teacher", "student.width": 0.5, "training.epochs": 1, "transfer": "kd"}
    result = run_trial(Recipe.from_flat({**flat, "pruning.fraction": 0.3}), task, Knowledge(task), curve=())
    assert result.units_cut > 0
    assert result.measurements["parameters"] < 0.6 * task.teacher_measurements["parameters"]
    save_student(tmp_path / "trial", result.files(task))
    student = load_student(tmp_path / "trial")
    assert measure(student, validation, ensemble_nlls=task.curve) == result.measurements


def test_it_can_be_fine_tuned_first(file: Path, tmp_path: Path) -> None:
    task, tuned = task_of(file, tmp_path), task_of(file, tmp_path, epochs=3)
    assert tuned.teacher_measurements["nll"] < task.teacher_measurements["nll"]


class Two(nn.Module):
    """Puts out more than logits."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y: Tensor = self.net(x)
        return y, y + 1


class Masked(Two):
    """Takes more than images."""

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:  # type: ignore[override]
        z: Tensor = self.net(x)
        return z if y is None else z + y


def refused(path: Path) -> str:
    with pytest.raises(BadInput) as error:
        read_exported(path)
    assert "\n" not in str(error.value)
    return str(error.value).removeprefix(f"`task.teacher.network: {path}` ")


def test_what_is_no_network_for_batches_of_images_is_refused_in_a_line(tmp_path: Path) -> None:
    path = tmp_path / "net.pt2"
    fixed = refused(exported(made().eval(), path, batch=None))
    assert fixed.startswith("must take batches of any size, but was exported for exactly 2 images at a time; export it")
    assert "dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)" in fixed
    assert refused(exported(Two().eval(), path)).startswith("must put out one tensor of logits, but puts out 2")
    torch.export.save(torch.export.export(Masked().eval(), (images(2), torch.rand(2, 10))), path)
    assert refused(path).startswith("must take one tensor of images (B, C, H, W), but takes (2, 1, 8, 8), (2, 10)")
    for content in (b"", b"no archive", exported(made().eval(), path).read_bytes()[:5000]):
        path.write_bytes(content)
        assert refused(path).startswith("must be a file that torch.export.save of this PyTorch")
    torch.save(made().state_dict(), path)
    assert refused(path).startswith("must be a file that torch.export.save of this PyTorch")


def test_students_cannot_start_as_a_file_without_layers(tmp_path: Path) -> None:
    program = torch.export.export(made().eval(), (images(2),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    torch.export.save(program.run_decompositions(), tmp_path / "net.pt2")
    assert torch.allclose(read_exported(tmp_path / "net.pt2")(images()), made().eval()(images()), atol=1e-5)
    spec = TaskSpec(teacher=TeacherSpec(network=str(tmp_path / "net.pt2")), train_limit=200, augment="none")
    with pytest.raises(BadInput, match=r"`student.start: teacher` must be of a network with layers, but .*net.pt2 has"):
        check_layers(spec, spec.load_data())


def changed(file: Path, to: Path, change: Callable[[str, bytes], bytes]) -> Path:
    """The archive with other records."""
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(to, "w", zipfile.ZIP_STORED) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return to


class Code:
    """Creates a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return (Path.touch, (self.file,))


def with_code(ran: Path) -> dict[str, Callable[[str, bytes], bytes]]:
    """Ways to have a file's code run."""
    pickled = io.BytesIO()
    torch.save(((Code(ran),), {}), pickled)
    call = f"__import__('pathlib').Path({str(ran)!r}).touch()"

    def inputs(name: str, content: bytes) -> bytes:
        return pickled.getvalue() if "sample_inputs" in name else content

    def tensors(name: str, content: bytes) -> bytes:
        return content.replace(b'"use_pickle":false', b'"use_pickle":true').replace(
            b'"use_pickle": false', b'"use_pickle": true'
        )

    def function(name: str, content: bytes) -> bytes:
        return content.replace(b"torch.ops.aten.mean.dim", b"torch.serialization.os.system")

    def sizes(name: str, content: bytes) -> bytes:
        return re.sub(rb'"expr_str": ?"[^"]*"', f'"expr_str": {json.dumps(call)}'.encode(), content)

    return {"inputs": inputs, "tensors": tensors, "function": function, "sizes": sizes}


@pytest.mark.parametrize("way", ["inputs", "tensors", "function", "sizes"])
def test_a_file_that_could_run_code_is_refused_before_it_does(way: str, file: Path, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    bad = changed(file, tmp_path / "bad.pt2", with_code(ran)[way])
    assert bad.read_bytes() != changed(file, tmp_path / "same.pt2", lambda name, content: content).read_bytes()
    read_exported(tmp_path / "same.pt2")
    assert refused(bad).startswith(
        "must be only tensors and PyTorch's own operations, but it could run code or open files ("
    )
    assert not ran.exists()


class Writer(nn.Module):
    """Writes into a file of this name when it is run."""

    def __init__(self, name: Path) -> None:
        super().__init__()
        self.name, self.layer = str(name), nn.Linear(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layer(x.mean((2, 3))) + torch.ops.aten.from_file(self.name, True, 2).fill_(1.0)
        return logits


def test_a_network_that_would_open_files_is_refused(tmp_path: Path) -> None:
    with torch.library._scoped_library("aten", "IMPL", "Meta") as library:  # without it export refuses to write it
        library.impl("from_file", lambda name, shared=None, size=0, **_: torch.empty(size, device="meta"))
        bad = exported(Writer(tmp_path / "made").eval(), tmp_path / "bad.pt2")
    assert refused(bad).startswith("must be only tensors and PyTorch's own operations, but it could run code or open f")


def test_a_file_with_other_records_is_refused(file: Path, tmp_path: Path) -> None:
    bad = changed(file, tmp_path / "bad.pt2", lambda name, content: content)
    with zipfile.ZipFile(bad, "a") as more:
        top = more.namelist()[0].partition("/")[0]
        more.writestr(f"{top}/data/aotinductor/model/lib.so", b"code")
    assert "'data/aotinductor/model/lib.so'" in refused(bad)


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ({"network": "gone.pt2"}, r"`task.teacher.network` must be a file, but gone.pt2 is not"),
        ({"network": "net.pt2", "weights": "w.pth"}, r"must have no `weights`, since the file has the whole network"),
        ({"network": "net.pt2", "arguments": {"a": 1}}, r"must have no `arguments`, since the file has the whole"),
        ({"network": "a.b:C", "weights": "net.pt2"}, r"must be a file of weights, but net.pt2 is a whole network"),
        ({"network": "net.pth"}, r"a file that ends in .pt2, or models:/NAME/VERSION, but got 'net.pth'"),
        (
            {"members": [{"network": "gone.pt2"}, {"network": "torchvision:resnet18", "weights": "gone.pth"}]},
            r"2 problems: \(1\) .*gone.pt2 is not; \(2\) `task.teacher.weights` must be a file, but gone.pth is not",
        ),
    ],
)
def test_what_cannot_be_is_told_as_the_study_file_is_read(teacher: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        TaskSpec(teacher=TeacherSpec.model_validate(teacher)).check()


def test_a_path_starts_beside_the_study_file(tmp_path: Path) -> None:
    spec = TeacherSpec.model_validate({"members": [{"network": "net.pt2"}, {"network": "models:/net/1"}]})
    assert [one.network for one in spec.beside(tmp_path).each] == [str(tmp_path / "net.pt2"), "models:/net/1"]
    assert spec.own_code == []
