"""What the value tests of the transfer methods share: numbers, features made of them, and NumPy's cross-entropy."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trainers.families import Features
from trainers.transfer import Method, Shapes, TeacherSignals
from trainers.transfer.signals import Pass

Array = np.ndarray
LABELS = [3, 0, 1, 3, 2, 4]


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def array(tensor: Tensor) -> Array:
    result: Array = tensor.detach().numpy()
    return result


def features(*shapes: tuple[int, int, int], seed: int, count: int = 6) -> Features:
    """Maps of these (C, H, W) before and after their ReLU, logits of five classes."""
    before = tuple(numbers(count, *shape, seed=seed + index) for index, shape in enumerate(shapes))
    return Features(numbers(count, 5, seed=seed + 90), tuple(m.relu() for m in before), before)


def shapes_of(features: Features) -> tuple[tuple[int, int, int], ...]:
    return tuple((m.shape[1], m.shape[2], m.shape[3]) for m in features.maps)


def made(method_type: type[Method], student: Features, teacher: Features, **options: Any) -> Method:
    """In double precision, as a loop has it: in training mode."""
    generator = torch.Generator().manual_seed(7)
    shapes = Shapes(shapes_of(student), shapes_of(teacher), labels=torch.arange(40) % 5)
    return method_type.make(method_type.parse(options), shapes, generator=generator).double().train()


def everything(teacher: Features, method_type: type[Method], **options: Any) -> TeacherSignals:
    """What a method asks for, from whole features; of a stage, nothing."""
    needs = replace(method_type.needs(method_type.parse(options)), stage=None)
    seen = Pass(teacher, 1, lambda stage: nn.Identity())
    rows = torch.tensor([4, 0, 9, 30, 22, 39]) if needs.rows else None
    return needs.gather(len(teacher.maps), lambda signal: signal.compute(seen), rows=rows)


def transfer_term(method_type: type[Method], student: Features, teacher: Features, **options: Any) -> float:
    """The loss beyond the labels' cross-entropy, the method being as initialised."""
    loss = made(method_type, student, teacher, **options)(
        student, everything(teacher, method_type, **options), torch.tensor(LABELS)
    )
    return loss.item() - cross_entropy(array(student.logits))


def cross_entropy(z: Array) -> float:
    return float(np.mean([math.log(np.exp(row).sum()) - row[y] for row, y in zip(z, LABELS, strict=True)]))


def weights(method: torch.nn.Module) -> dict[str, Array]:
    return {name: array(tensor) for name, tensor in method.state_dict().items()}


def smaller(x: Array, height: int, width: int) -> Array:
    """Average over blocks, for sizes that are whole multiples."""
    b, c, h, w = x.shape
    result: Array = x.reshape(b, c, height, h // height, width, w // width).mean(axis=(3, 5))
    return result


def unit(x: Array, axis: int = -1) -> Array:
    result: Array = x / np.sqrt((x**2).sum(axis=axis, keepdims=True))
    return result


def pointwise(x: Array, weight: Array) -> Array:
    """A 1x1 convolution; x: (B, C, H, W), weight: (O, C, 1, 1)."""
    result: Array = np.einsum("oc,bchw->bohw", weight[:, :, 0, 0], x)
    return result


def batch_normed(x: Array) -> Array:
    """By the batch's own statistics, scale 1 and shift 0."""
    centred = x - x.mean(axis=(0, 2, 3), keepdims=True)
    result: Array = centred / np.sqrt((centred**2).mean(axis=(0, 2, 3), keepdims=True) + 1e-5)
    return result
