"""Students that a function of the user's makes: found, checked, trained, cut, saved, as ours are."""

import json
import sys
from pathlib import Path

import pytest
import torch

from search import StudyFile
from spaces import BadInput, Recipe, Student
from trainers import Knowledge, Task, load_student, run_trial, save_student
from trainers.families import Network, OwnNetwork, build, capture, outline
from trainers.measure import measure

MODULE = '''
import warnings

import torch
from torch import nn

def behind(c):
    return nn.BatchNorm2d(c), nn.ReLU(inplace=True)

class Net(nn.Module):
    """Residual, depthwise and concatenated parts; ReLUs that compute in place; a constant that is no buffer."""

    def __init__(self, c, num_classes, in_channels):
        super().__init__()
        self.constant = torch.tensor(2.0)
        self.kept = [self.constant.item()]
        self.stem = nn.Sequential(nn.Conv2d(in_channels, c, 3, padding=1, bias=False), *behind(c))
        self.depthwise = nn.Sequential(nn.Conv2d(c, c, 3, padding=1, groups=c), *behind(c))
        self.down = nn.Sequential(nn.Conv2d(c, 2 * c, 3, 2, 1), *behind(2 * c))
        self.side = nn.Conv2d(2 * c, c, 1)
        self.fc = nn.Linear(3 * c, num_classes)

    def forward(self, x):
        x = self.stem(x)
        x = self.down(x + self.depthwise(x)) * self.constant
        return self.fc(torch.cat([x, self.side(x).relu()], 1).mean((2, 3)))

def small(width, num_classes, in_channels):
    return Net(max(2, int(8 * width)), num_classes, in_channels)

def attends(width, num_classes, in_channels):
    patches = nn.Sequential(nn.Conv2d(in_channels, 8, 4, 4), nn.Flatten(2), Swap())
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return nn.Sequential(patches, layer, Mean(), nn.Linear(8, num_classes))

class Swap(nn.Module):
    def forward(self, x):
        return x.mT

class Mean(nn.Module):
    def forward(self, x):
        return x.mean(1)

class Two(Net):
    def forward(self, x):
        return (super().forward(x), x) if self.training else super().forward(x)

def auxiliary(width, num_classes, in_channels):
    return Two(4, num_classes, in_channels)

def number(width, num_classes, in_channels):
    return 3

def positional(width, classes):
    return Net(8, classes, 1)

def ten(width, num_classes, in_channels):
    return Net(4, 10, in_channels)

def colour(width, num_classes, in_channels):
    return Net(4, num_classes, 3)

def empty(width, num_classes, in_channels):
    return nn.Flatten()

def normed(width, num_classes, in_channels):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = Net(4, num_classes, in_channels)
        nn.utils.weight_norm(net.side)
    return net

def leaves(width, num_classes, in_channels):
    raise SystemExit("bye")

something = 3
'''
OWN = "my_nets.small:small"
GREY = (1, 8, 8)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With the user's package in it."""
    (tmp_path / "my_nets").mkdir()
    (tmp_path / "my_nets" / "small.py").write_text(MODULE)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    for name in ("my_nets", "my_nets.small"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def made(function: str = "small", members: int = 1, classes: int = 10) -> Network:
    student = Student(family=f"my_nets.small:{function}", width=0.5, members=members)
    return build(student, GREY, classes, generator=torch.Generator().manual_seed(0))


def images(count: int = 4) -> torch.Tensor:
    return torch.rand(count, *GREY, generator=torch.Generator().manual_seed(1))


def test_it_computes_what_the_users_does_on_normalised_images_and_keeps_its_class() -> None:
    network = made().eval()
    assert isinstance(network, OwnNetwork)
    assert type(network.network).__name__ == "Net"
    network.set_normalization(torch.tensor([0.5]), torch.tensor([0.25]))
    assert torch.equal(network(images()), network.network((images() - 0.5) / 0.25))
    again, other = made(), build(Student(family=OWN, width=2.0), GREY, 10, generator=torch.Generator().manual_seed(0))
    assert all(torch.equal(p, q) for p, q in zip(network.parameters(), again.parameters(), strict=True))
    assert sum(p.numel() for p in other.parameters()) > sum(p.numel() for p in network.parameters())


def test_its_features_are_found_before_and_after_the_relus_that_compute_in_place_no_more() -> None:
    network = made().eval()
    assert network.taps == ("network.depthwise", "network.side")
    assert network.activations == ("network.depthwise.2", None)
    assert network.heads == ("network.fc",)
    features = capture(network, images())
    assert [tuple(m.shape) for m in features.maps] == [(4, 4, 8, 8), (4, 4, 4, 4)]
    assert torch.equal(features.before_relu[0].relu(), features.maps[0])
    assert bool((features.before_relu[0] < 0).any())
    assert features.before_relu[1] is features.maps[1]
    assert torch.equal(features.logits, network(images()))


def test_tokens_are_features() -> None:
    network = made("attends").eval()
    assert [tuple(m.shape) for m in capture(network, images()).maps] == [(4, 8, 2, 2)]


def test_taps_may_be_named() -> None:
    inner = made().get_submodule("network")
    network = OwnNetwork(inner, GREY, 10, called="it", taps=["stem", "down"])
    assert network.taps == ("network.stem", "network.down")
    assert network.activations == ("network.stem.2", "network.down.2")
    for name in ("", "stme", "stem.7"):
        with pytest.raises(BadInput, match=f"^it: a tap must be the name of one of its modules, but got '{name}'$"):
            OwnNetwork(inner, GREY, 10, called="it", taps=[name])


def test_it_is_made_whole_even_where_networks_are_made_of_shapes_alone() -> None:
    for network in (made(), outline(Student(family=OWN, width=0.5), GREY, 10)):
        assert isinstance(network, OwnNetwork)
        assert {tensor.device.type for tensor in network.state_dict().values()} == {"cpu"}
        assert network.network.constant == 2.0
    with torch.device("meta"):
        assert next(made().parameters()).device.type == "cpu"


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("missing", "`family: my_nets.small:missing` must be something that can be imported, but AttributeError"),
        ("something", r"`family: my_nets.small:something` must be a function\(width, num_classes, in_channels\) that"),
        ("positional", "must be a function.*that runs, but TypeError.*unexpected keyword argument.*; try it in Python"),
        ("leaves", "must be a function.*that runs, but SystemExit: bye; try it in Python"),
        ("number", "what `my_nets.small:number` returns must be a torch.nn.Module, but is 3"),
        ("empty", "returns must have weights, but Flatten has none"),
        ("ten", r"returns must put out logits \(B, 7\), but puts out \(2, 10\) for two images"),
        ("normed", r"returns must have layers that can be copied, but `side` has torch.nn.utils.weight_norm or"),
        ("colour", r"returns must take images \(B, 1, 8, 8\), but RuntimeError: .*; try it in Python"),
    ],
)
def test_what_makes_no_such_network_is_refused(function: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        made(function, classes=7)


def test_outputs_that_are_no_logits_in_training_are_told() -> None:
    network = made("auxiliary")
    network.eval()(images())
    with pytest.raises(BadInput, match="must put out logits in training, too, but puts out tuple; turn its auxiliary"):
        network.train()(images())


def test_it_has_members_where_its_layers_are_called() -> None:
    network = made(members=3).eval()
    outputs = network.outputs(images())
    assert outputs.shape == (12, 10)
    assert not torch.equal(outputs[:4], outputs[4:8])
    with pytest.raises(BadInput, match="must be a network whose layers are called one by one to have 2 members, but"):
        made("attends", members=2)


def test_a_study_names_it_and_finds_it_beside_its_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", sys.path[:-1])
    for space in (f"student.family: [resnet, '{OWN}']", f"student: {{family: ['{OWN}', resnet]}}"):
        (folder / "study.yaml").write_text(f"name: own\nspace:\n  {space}\n  transfer: [kd, attention]\n")
        study = StudyFile.read(folder / "study.yaml")
        study.check_pairs(study.task.load_data())
        assert study.own_code == [OWN]
        assert StudyFile.from_json(study.to_json()) == study
    with pytest.raises(BadInput, match=r"`space\.student`: `family: my_nets\.small:nine` must be something that can"):
        StudyFile.from_mapping({"name": "own", "space": {"student.family": "my_nets.small:nine"}}, folder)


@pytest.mark.parametrize("transfer", ["kd", "attention", "ofd"])
def test_a_trial_trains_cuts_saves_and_loads_it(transfer: str, plain_task: Task, tmp_path: Path) -> None:
    flat = {"student.family": OWN, "training.epochs": 2, "training.learning_rate": 0.01, "transfer": transfer}
    recipe = Recipe.from_flat({**flat, "pruning.fraction": 0.5, "pruning.fine_tune_epochs": 1})
    result = run_trial(recipe, plain_task, Knowledge(plain_task))
    assert result.units_cut == result.units // 2
    assert result.measurements["parameters"] < result.before_cut["parameters"]
    save_student(tmp_path / "trial", result.files(plain_task))
    assert json.loads((tmp_path / "trial" / "student.json").read_text())["family"] == OWN
    loaded = load_student(tmp_path / "trial")
    assert measure(loaded, plain_task.data.validation, ensemble_nlls=plain_task.curve) == result.measurements
    assert isinstance(loaded, OwnNetwork)
    assert loaded.network.constant == 2.0


def test_a_saved_student_whose_function_is_gone_is_told_with_its_name(
    plain_task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe.from_flat({"student.family": OWN, "training.epochs": 1})
    save_student(tmp_path / "trial", run_trial(recipe, plain_task, Knowledge(plain_task)).files(plain_task))
    (tmp_path / "my_nets" / "small.py").write_text("")
    monkeypatch.delitem(sys.modules, "my_nets.small")
    with pytest.raises(BadInput, match=r"`family: my_nets\.small:small` must be something that can be imported"):
        load_student(tmp_path / "trial")
