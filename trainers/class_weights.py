"""How much each class's images count in the labels' loss, in teachers and students alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from trainers.data.dataset import Dataset
    from trainers.task_spec import TaskSpec


def class_weights(spec: TaskSpec, data: Dataset) -> Tensor | None:
    """The weights (classes,) of `task.class_weights` for these training images; None if all count the same."""
    return balanced(data.train.labels, data.classes) if spec.class_weights == "balanced" else None


def balanced(labels: Tensor, classes: int) -> Tensor:
    """n / (classes * n_c), as scikit-learn's "balanced": all classes together count the same, all images 1 on average.

    Args:
        labels: (n,) int64.
        classes: that there are; one without images has weight 0, and the others share what it would count.
    """
    counts = labels.bincount(minlength=classes).double()
    occurs = counts > 0
    return torch.where(occurs, len(labels) / (occurs.sum() * counts.clamp_min(1.0)), 0.0).float()


def label_loss(logits: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
    """The labels' cross-entropy, (): the mean over the batch of each image's, times its class's weight if given.

    It is divided by the number of images and not, as by torch, by the sum of their weights: then the expected loss of a
    batch is that of the whole split, and a batch of frequent classes counts as little as it should.

    Args:
        logits: (B, classes).
        labels: (B,).
        weights: (classes,), or None.
    """
    if weights is None:
        return F.cross_entropy(logits, labels)
    return F.cross_entropy(logits, labels, weights, reduction="sum") / len(labels)
