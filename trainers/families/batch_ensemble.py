"""BatchEnsemble: an ensemble for little more than the size of one network.

Y. Wen, D. Tran, J. Ba: BatchEnsemble: an alternative approach to efficient ensemble and lifelong learning, ICLR 2020
(arXiv 2002.06715). Members share each layer's weight W; member i has two vectors ("fast weights") and a bias:

    y_i = gamma_i * (W (alpha_i * x_i)) + b_i

which is a layer with the weight W o (gamma_i alpha_i^T). Rows come member by member, as `Network.outputs` repeats the
images. Batch norm is ordinary and shared: its statistics are over all members, as in the code of Nam et al. (NeurIPS
2021).
"""

import torch
from torch import Tensor, nn

from spaces import Student
from trainers.families.family import Network, by_member


class BatchEnsemble(nn.Module):
    """A linear or convolutional layer in which each member has its own fast weights."""

    bias: nn.Parameter | None

    def __init__(self, layer: nn.Linear | nn.Conv2d, student: Student) -> None:
        """Uses `layer` itself; its bias becomes every member's. The fast weights come from the global generator."""
        super().__init__()
        self.members = student.members
        inputs, outputs = _channels(layer)
        self.alpha = nn.Parameter(_fast_weights(student, inputs))
        self.gamma = nn.Parameter(_fast_weights(student, outputs))
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().repeat(self.members, 1))
        layer.bias = None
        self.layer: nn.Module = layer

    def forward(self, x: Tensor) -> Tensor:
        """x: (members * B, inputs, ...), member by member; returns (members * B, outputs, ...)."""
        y = self.layer((by_member(x, self.members) * _like(self.alpha, x)).flatten(0, 1))
        y = by_member(y, self.members) * _like(self.gamma, x)
        return (y if self.bias is None else y + _like(self.bias, x)).flatten(0, 1)


def _like(vectors: Tensor, x: Tensor) -> Tensor:
    """(members, C) in a shape that multiplies (members, B, C, ...)."""
    return vectors.view(vectors.shape[0], 1, vectors.shape[1], *(1,) * (x.dim() - 2))


def _channels(layer: nn.Linear | nn.Conv2d) -> tuple[int, int]:
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    return layer.in_channels, layer.out_channels


def _fast_weights(student: Student, channels: int) -> Tensor:
    """(members, channels): normal around 1, or signs."""
    drawn = torch.randn(student.members, channels)
    if student.fast_weights == "signs":
        return torch.where(drawn < 0, -1.0, 1.0)
    return 1.0 + student.fast_weight_spread * drawn


def batch_ensemble(network: Network, student: Student) -> Network:
    """`network` itself, with every linear and convolutional layer turned into a BatchEnsemble of `student.members`.

    Args:
        network: of one member; its weights become the shared ones.
        student: the number of members, and their initial fast weights, drawn from the global generator.
    """
    network.members = student.members
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear | nn.Conv2d):
                setattr(module, name, BatchEnsemble(child, student))
    return network


class _Shared(nn.Module):
    """Only the shared layer of a BatchEnsemble, under the same name."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, inputs, ...); returns (B, outputs, ...)."""
        outputs: Tensor = self.layer(x)
        return outputs


def share_all(network: nn.Module) -> None:
    """Reduce `network` to its shared weights: one member, without fast weights or their biases."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, BatchEnsemble):
                setattr(parent, name, _Shared(child.layer))
    if isinstance(network, Network):
        network.members = 1
