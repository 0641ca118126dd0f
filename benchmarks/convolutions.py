"""Which convolutions have sound gradients on this machine: every kind, few channels, channels last, in processes.

    python benchmarks/convolutions.py [--isa AVX2] [--sound] [--families] [--threads 2]

Each layer's backward pass is compared with double precision. A process takes many layers and says which it is at; where
it dies, that one is counted and the next process goes on after it. `--sound` computes as the training loop does
(`trainers.computing.SoundConvolutions`). `--families` trains each family a step or two instead, at widths that give 1
to 16 channels.

Measured 2026-11-25 (torch 2.15, AMD EPYC with AVX-512, one thread): all 240 networks of `--families` agree with double
precision to 0.011 under AVX2, where no process died.
"""

import argparse
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import common  # noqa: F401, so that it measures the checkout it lies in
import torch
from torch import Tensor, nn

from spaces import Student
from trainers.computing import SoundConvolutions
from trainers.families import build
from trainers.spectral import spectralize

CHANNELS = (1, 2, 3, 4, 5, 6, 7, 8, 12, 16)
SIDES = (8, 15, 28, 48, 96)
TOLERANCE = 1e-3
"""Norm of the error over the norm of a gradient: single precision stays below 1e-5, wrong ones were 0.99."""
OF_NETWORKS = 0.05
"""The same of a network: where a ReLU is at its corner, rounding counts for more, in whatever memory layout."""
BATCH = 64


def kinds(c: int) -> dict[str, nn.Module]:
    """Layers of c channels by what they are."""
    return {
        "1x1": nn.Conv2d(c, 2 * c, 1),
        "1x1, stride 2": nn.Conv2d(c, 2 * c, 1, 2),
        "1x1, stride 2, half the channels": nn.Conv2d(c, max(1, c // 2), 1, 2),
        "1x1, stride (1, 2)": nn.Conv2d(c, c, 1, (1, 2)),
        "1x1, stride 3, padding 1": nn.Conv2d(c, c, 1, 3, 1),
        "1x1, stride 2, depthwise": nn.Conv2d(c, 2 * c, 1, 2, groups=c),
        "1x1, stride 2, grouped": nn.Conv2d(2 * c, 2 * c, 1, 2, groups=2),
        "3x3": nn.Conv2d(c, c, 3, 1, 1),
        "3x3, stride 2": nn.Conv2d(c, 2 * c, 3, 2, 1),
        "3x3, depthwise": nn.Conv2d(c, c, 3, 1, 1, groups=c),
        "3x3, stride 2, grouped": nn.Conv2d(2 * c, 2 * c, 3, 2, 1, groups=2),
        "3x3, dilation 2": nn.Conv2d(c, c, 3, 1, 2, 2),
        "2x2, stride 2": nn.Conv2d(c, 2 * c, 2, 2),
        "1x3, stride (2, 1)": nn.Conv2d(c, 2 * c, (1, 3), (2, 1), (0, 1)),
        "5x5, stride 2": nn.Conv2d(c, c, 5, 2, 2),
        "transposed 1x1, stride 2": nn.ConvTranspose2d(c, 2 * c, 1, 2),
        "transposed 2x2, stride 2": nn.ConvTranspose2d(c, 2 * c, 2, 2),
        "transposed 3x3": nn.ConvTranspose2d(c, c, 3, 1, 1),
    }


def error_of(layer: nn.Module, channels: int, side: int, sound: bool) -> float:
    """The largest relative error of a gradient, twice over; more than 1 is wrong in any sense."""
    layer = layer.to(memory_format=torch.channels_last)
    worst = 0.0
    for _ in range(2):
        x = torch.randn(BATCH, channels, side, side).contiguous(memory_format=torch.channels_last).requires_grad_()
        with SoundConvolutions() if sound else nullcontext():
            y = layer(x)
            g = torch.randn_like(y)
            actual = torch.autograd.grad(y, [x, *layer.parameters()], g)
        exact = [t.detach().double().contiguous().requires_grad_() for t in (x, *layer.parameters())]
        names = [name for name, _ in layer.named_parameters()]
        z = torch.func.functional_call(layer, dict(zip(names, exact[1:], strict=True)), exact[0])
        expected = torch.autograd.grad(z, exact, g.double().contiguous())
        pairs: list[tuple[Tensor, Tensor]] = [(y.detach(), z.detach()), *zip(actual, expected, strict=True)]
        worst = max([worst, *(float((a - b).norm() / b.norm().clamp_min(1e-12)) for a, b in pairs)])
    return worst


def trained(family: str, members: int, channels: int, side: int, spectral: bool) -> float:
    """The relative error of all gradients of a network's step."""
    depth, base = (8, 16) if family == "resnet" else (3, 256)
    student = Student(family=family, depth=depth, width=channels / base, members=members)
    network = build(student, (min(3, channels), side, side), 10, generator=torch.Generator().manual_seed(0))
    if spectral:
        network = spectralize(network, keep=["classifier"])
    images = torch.rand(BATCH // members, min(3, channels), side, side)
    labels = torch.randint(10, (len(images) * members,))

    def gradients(dtype: torch.dtype, layout: torch.memory_format) -> Tensor:
        network.to(dtype).to(memory_format=layout).zero_grad()
        outputs = network.outputs(images.to(dtype, memory_format=layout))
        nn.functional.cross_entropy(outputs, labels).backward()
        return torch.cat([p.grad.double().flatten() for p in network.parameters() if p.grad is not None])

    with SoundConvolutions():
        gradients(torch.float32, torch.channels_last)
        actual = gradients(torch.float32, torch.channels_last)
    expected = gradients(torch.float64, torch.contiguous_format)
    return float((actual - expected).norm() / expected.norm().clamp_min(1e-12))


def jobs(families: bool) -> list[list[Any]]:
    """What there is to try, simplest first."""
    if families:
        return [
            [family, members, channels, side, spectral]
            for family in ("resnet", "mlp")
            for members in (1, 2)
            for spectral in (False, True)
            for side in (8, 28, 48, 96)
            for channels in (*range(1, 9), 12, 16)
            if members == 1 or not spectral
        ]
    return [[kind, channels, side] for kind in kinds(1) for side in SIDES for channels in CHANNELS]


def work(todo: Iterable[list[Any]], families: bool, sound: bool, threads: int) -> None:
    """Do these, saying before each which it is and after it how wrong it was."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    for job in todo:
        print(json.dumps(job), flush=True)
        if families:
            error = trained(*job)
        else:
            kind, channels, side = job
            layer = kinds(channels)[kind]
            into = layer.in_channels
            assert isinstance(into, int)
            error = error_of(layer, into, side, sound)
        print(error, flush=True)


def sweep(todo: list[list[Any]], options: list[str], isa: str | None, tolerance: float) -> dict[str, str]:
    """What was wrong of `todo`, by its JSON."""
    wrong: dict[str, str] = {}
    while todo:
        arguments = [sys.executable, __file__, "--work", *options]
        environment = {**os.environ, **({"ONEDNN_MAX_CPU_ISA": isa} if isa else {})}
        try:
            process = subprocess.run(
                arguments, input=json.dumps(todo), capture_output=True, text=True, env=environment, timeout=900
            )
            ended = f"exit {process.returncode}"
            out = process.stdout
        except subprocess.TimeoutExpired as error:
            ended, out = "hung", (error.stdout or b"").decode()
        lines = out.splitlines()
        for job, error in zip(lines[::2], lines[1::2], strict=False):
            if not float(error) <= tolerance:
                wrong[job] = f"{float(error):.2g} wrong"
        if ended == "exit 0":
            return wrong
        done = (len(lines) + 1) // 2
        wrong[json.dumps(todo[max(0, done - 1)])] = ended
        todo = todo[max(1, done) :]
    return wrong


def main() -> None:
    """Print what was wrong, by kind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--isa", help="ONEDNN_MAX_CPU_ISA, such as AVX2")
    parser.add_argument("--sound", action="store_true")
    parser.add_argument("--families", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        work(json.load(sys.stdin), given.families, given.sound, given.threads)
        return
    options = [f"--{name}" for name in ("sound", "families") if getattr(given, name)]
    todo = jobs(given.families)
    wrong = sweep(
        todo, [*options, "--threads", str(given.threads)], given.isa, OF_NETWORKS if given.families else TOLERANCE
    )
    print(f"{len(todo)} tried, {len(wrong)} wrong")
    for kind, count in Counter(json.loads(job)[0] for job in wrong).items():
        print(f"{kind}: {count}")
    for job, what in wrong.items():
        print(f"  {job}: {what}")


if __name__ == "__main__":
    main()
