"""Gradients are sound on every CPU: layers that oneDNN gets wrong are computed another way wherever Dux trains."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from processes import environment
from torch import nn

from trainers.computing import SoundConvolutions

STEPS = """
import sys
import torch
import torch.nn.functional as F
from torch import nn
from spaces import Student
from trainers.data.dataset import Split
from trainers.families import build
from trainers.loop import Schedule, fit
from trainers.spectral import cut, plan, spectralize, trace

class Own(nn.Module):
    # strided layers of kernel size 1 that are no module of torch's, grouped, padded
    def __init__(self, channels):
        super().__init__()
        self.stem = nn.Conv2d(1, channels, 3, padding=1)
        self.weight = nn.Parameter(torch.randn(2 * channels, channels, 1, 1))
        self.grouped = nn.Conv2d(2 * channels, 2 * channels, 1, (1, 2), (1, 0), groups=2)
        self.classifier = nn.Linear(2 * channels, 10)
    def forward(self, x):
        x = F.conv2d(self.stem(x).relu(), self.weight, stride=2)
        return self.classifier(self.grouped(x).mean((2, 3)))

def made(kind, width, side):
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    if kind == "own":
        return Own(round(16 * width))
    members = 2 if kind == "members" else 1
    network = build(Student(depth=8, width=width, members=members), (1, side, side), 10, generator=generator)
    if kind == "spectral":
        return spectralize(network, keep=["classifier"])
    if kind == "cut":
        return cut(network, plan(trace(network, (1, side, side)), 0.5, floor=0.1))
    return network

def trained(kind, width, side, layout):
    network = made(kind, width, side).to(memory_format=layout)
    images = torch.randint(256, (128, 1, side, side), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    split = Split(images, torch.arange(128) % 10)
    outputs = getattr(network, "outputs", network)
    members = getattr(network, "members", 1)
    def loss(batch):
        rows = outputs(batch.images.contiguous(memory_format=layout))
        return F.cross_entropy(rows, batch.labels.repeat(members))
    schedule = Schedule(1, 64, 0.01, 0.9, 0.0)
    fit(network, loss, split, schedule, policy="none", generator=torch.Generator().manual_seed(2))
    return torch.cat([p.detach().flatten() for p in network.parameters()])

torch.set_num_threads(1)
for side in map(int, sys.argv[1].split(",")):
    for kind in sys.argv[2].split(","):
        for width in map(float, sys.argv[3].split(",")):
            start = torch.cat([p.detach().flatten() for p in made(kind, width, side).parameters()])
            found = trained(kind, width, side, torch.channels_last) - start
            expected = trained(kind, width, side, torch.contiguous_format) - start
            error = float((found - expected).norm() / expected.norm())
            assert error < 0.02, (kind, width, side, error)  # of rounding where a ReLU is at its corner; else 0.99
print("sound")
"""

STAGE = """
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
import sys
import torch
from torch import nn
from spaces import Recipe
from trainers import Knowledge, Task, TaskSpec, TeacherSpec, run_trial
from trainers.transfer.signals import Needs, Stage

@dataclass(frozen=True)
class Halved(Stage):
    tap = 0
    def build(self, shape):
        return nn.Conv2d(shape[0], shape[0], 1, 2).to(memory_format=torch.channels_last)
    def train(self, module, maps):
        for batch in maps():
            batch = batch.contiguous(memory_format=torch.channels_last).requires_grad_()
            module(batch).sum().backward()
            exact = torch.zeros_like(batch)
            exact[:, :, ::2, ::2] = module.weight.detach().sum((0, 2, 3))[:, None, None]
            torch.testing.assert_close(batch.grad, exact)
        return {}
    def apply(self, module, maps):
        return module(maps)

teacher = TeacherSpec(depth=8, width=0.25, epochs=1)
task = Task.load(TaskSpec(train_limit=200, augment="none", teacher=teacher), Path(sys.argv[-1]))
Knowledge(task).prepare(Needs(stage=Halved()))
flat = {"student.depth": 8, "student.width": 0.125, "training.epochs": 1, "transfer": "fitnet"}
flat |= {"pruning.fraction": 0.5, "pruning.fine_tune_epochs": 1}
run_trial(Recipe.from_flat(flat), task, Knowledge(task), curve=[0.25])
print("sound")
"""


def ended(isa: str | None, script: str, *arguments: str) -> tuple[int, str, str]:
    """Exit code and output of a script; isa: the newest instructions that oneDNN may use."""
    settings = environment() | ({} if isa is None else {"ONEDNN_MAX_CPU_ISA": isa})
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=Path(__file__).parent.parent.parent,
        env=settings,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr[-2000:]


def test_few_channels_are_trained_alike_in_either_memory_layout() -> None:
    assert ended(None, STEPS, "48,96", "plain,spectral,own", "0.25") == (0, "sound\n", "")


def test_without_avx_512_they_are_too_and_so_are_a_stage_and_the_narrowest_student(tmp_path: Path) -> None:
    given = ("8,28", "plain,members,spectral,cut,own", "0.125,0.25", str(tmp_path))
    assert ended("AVX2", STEPS + STAGE, *given) == (0, "sound\nsound\n", "")


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(4, 6, 1, 2), (3, 4, 9, 8)),
        (nn.Conv2d(4, 6, 1, (2, 3), (1, 2), groups=2), (3, 4, 11, 12)),
        (nn.Conv2d(4, 6, 1, 2, "valid", dilation=3), (4, 9, 9)),
        (nn.Conv2d(4, 6, 1, 2, 1, padding_mode="reflect"), (2, 4, 9, 9)),
        (nn.Conv1d(4, 6, 1, 3, 1), (3, 4, 11)),
        (nn.Conv3d(2, 6, 1, (1, 2, 3), (1, 0, 2)), (3, 2, 5, 6, 7)),
        (nn.Conv2d(4, 6, (1, 3), (2, 1), 1), (2, 4, 9, 9)),
        (nn.Conv2d(4, 6, 1, padding="same"), (2, 4, 9, 9)),
    ],
    ids=str,
)
def test_another_way_of_computing_a_layer_is_the_same_function(layer: nn.Module, shape: tuple[int, ...]) -> None:
    layer = layer.double()
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    expected = layer(x)
    with SoundConvolutions():
        actual = layer(x)
    torch.testing.assert_close(actual, expected)
    of = [x, *layer.parameters()]
    gradients = (torch.autograd.grad(y.sin().sum(), of) for y in (actual, expected))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)
