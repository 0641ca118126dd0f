"""Layers written in eigenvalues and eigenvectors.

L. Giambagli, L. Buffoni, L. Chicchi, D. Fanelli: How a student becomes a teacher: learning and forgetting through
spectral methods, NeurIPS 2023 (arXiv 2310.12612). The weight from unit j to unit i is

    w_ij = (lambda_in_j - lambda_out_i) phi_ij

with eigenvector entries phi. As in the paper's experiments lambda_in is 0 and fixed, lambda_out trainable from 1, phi
trainable. For a convolution the eigenvalues belong to channels and phi_ij is a kernel. The layer begins as the ordinary
layer it replaces (phi = -w), so that any initialisation, the paper's Glorot included, is that layer's own.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)
Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)

UNFILLED = "meta"
"""Where a layer is made that is filled at once: initialising it for real would draw from the global generator."""


class _Spectral(nn.Module):
    """What the dense and the convolutional layer share."""

    def __init__(
        self, weight: Tensor, bias: Tensor | None, inputs: int, *, train_inputs: bool, train_outputs: bool
    ) -> None:
        super().__init__()
        outputs = weight.shape[0]
        self.eigenvectors = nn.Parameter(-weight.detach().clone())
        self.eigenvalues_in = nn.Parameter(weight.new_zeros(inputs), requires_grad=train_inputs)
        self.eigenvalues_out = nn.Parameter(weight.new_ones(outputs), requires_grad=train_outputs)
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())

    @property
    def weight(self) -> Tensor:
        """The ordinary layer's weight: (outputs, inputs, ...)."""
        phi = self.eigenvectors
        outputs, inputs, *kernel = phi.shape
        ones = (1,) * len(kernel)
        # a grouped convolution's kernel i sees the inputs of its own group only
        lambda_in = self.eigenvalues_in.view(-1, 1, inputs, *ones)
        groups = len(lambda_in)
        difference = lambda_in - self.eigenvalues_out.view(groups, outputs // groups, 1, *ones)
        return (difference * phi.view(groups, outputs // groups, inputs, *kernel)).view_as(phi)

    def unit_norms(self) -> Tensor:
        """||w_i||_2 of each output unit, (outputs,); with lambda_in = 0 the paper's |lambda_i| ||phi_i||_2."""
        norms: Tensor = torch.linalg.vector_norm(self.weight.detach().flatten(1), dim=1)
        return norms


class SpectralLinear(_Spectral):
    """`nn.Linear` in eigenvalues and eigenvectors."""

    def __init__(self, linear: nn.Linear, *, train_inputs: bool = False, train_outputs: bool = True) -> None:
        """Begins as `linear`; which side's eigenvalues are trained is chosen here."""
        super().__init__(
            linear.weight, linear.bias, linear.in_features, train_inputs=train_inputs, train_outputs=train_outputs
        )

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., inputs); returns (..., outputs)."""
        return F.linear(x, self.weight, self.bias)

    def fold(self) -> nn.Linear:
        """The ordinary layer with the same weight."""
        outputs, inputs = self.eigenvectors.shape
        return _filled(nn.Linear(inputs, outputs, self.bias is not None, device=UNFILLED), self)


class SpectralConv2d(_Spectral):
    """`nn.Conv2d` in eigenvalues and eigenvectors, an eigenvalue a channel."""

    def __init__(self, conv: nn.Conv2d, *, train_inputs: bool = False, train_outputs: bool = True) -> None:
        """Begins as `conv`; which side's eigenvalues are trained is chosen here."""
        super().__init__(
            conv.weight, conv.bias, conv.in_channels, train_inputs=train_inputs, train_outputs=train_outputs
        )
        if conv.padding_mode != "zeros":
            raise ValueError(f"padding_mode of a spectral convolution must be 'zeros', but got {conv.padding_mode!r}")
        self.stride, self.dilation, self.groups = _pair(conv.stride), _pair(conv.dilation), conv.groups
        self.padding = conv.padding if isinstance(conv.padding, str) else _pair(conv.padding)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, inputs, H, W); returns (B, outputs, H', W')."""
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)

    def fold(self) -> nn.Conv2d:
        """The ordinary layer with the same weight."""
        outputs, inputs, *kernel = self.eigenvectors.shape
        conv = nn.Conv2d(
            inputs * self.groups,
            outputs,
            _pair(kernel),
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            self.bias is not None,
            device=UNFILLED,
        )
        return _filled(conv, self)


def _pair(numbers: Sequence[int]) -> tuple[int, int]:
    height, width = numbers
    return height, width


def _filled(layer: Layer, spectral: _Spectral) -> Layer:
    layer.weight = nn.Parameter(spectral.weight.detach().clone(memory_format=torch.contiguous_format))
    if spectral.bias is not None:
        layer.bias = nn.Parameter(spectral.bias.detach().clone())
    return layer


def spectralize(model: Model, *, keep: Iterable[str] = ()) -> Model:
    """A copy of `model` whose linear and convolutional layers are spectral; the function it computes is unchanged.

    Args:
        model: any module that contains layers; its class need not know of this.
        keep: names of layers that stay ordinary, such as the classifier.
    """
    kept = set(keep)

    def spectral(name: str, layer: nn.Module) -> nn.Module | None:
        if name in kept:
            return None
        if type(layer) is nn.Linear:
            return SpectralLinear(layer)
        return SpectralConv2d(layer) if type(layer) is nn.Conv2d else None

    return _replaced(model, spectral)


def fold(model: Model) -> Model:
    """A copy of `model` whose spectral layers are ordinary ones with the same weights."""
    return _replaced(
        model, lambda _, layer: layer.fold() if isinstance(layer, SpectralLinear | SpectralConv2d) else None
    )


def spectral_layers(model: nn.Module) -> Iterator[tuple[str, SpectralLinear | SpectralConv2d]]:
    """Every spectral layer of `model` with its name."""
    for name, layer in model.named_modules():
        if isinstance(layer, SpectralLinear | SpectralConv2d):
            yield name, layer


def spectral_penalty(model: nn.Module, *, eigenvector_l2: float, eigenvalue_l2: float) -> Tensor:
    """`eigenvector_l2 * sum phi^2 + eigenvalue_l2 * sum lambda^2` over the trained parts of all spectral layers, ().

    Added to the loss, as the authors' Keras code does; it is twice PyTorch's `weight_decay` of the same coefficient.
    Together the two are a group lasso of weight 2 sqrt(eigenvector_l2 eigenvalue_l2) on each unit's ||lambda_i phi_i||:
    that is what makes whole units vanish.
    """
    total = torch.zeros(())
    for _, layer in spectral_layers(model):
        total = total.to(layer.eigenvectors.device) + eigenvector_l2 * layer.eigenvectors.square().sum()
        for eigenvalues in (layer.eigenvalues_in, layer.eigenvalues_out):
            if eigenvalues.requires_grad:
                total = total + eigenvalue_l2 * eigenvalues.square().sum()
    return total


def _replaced(model: Model, replacement: Callable[[str, nn.Module], nn.Module | None]) -> Model:
    """A deep copy of `model` with `replacement(name, layer)` wherever that is not None."""
    model = copy.deepcopy(model)
    for name, module in list(model.named_modules()):
        for child_name, child in list(module.named_children()):
            full = f"{name}.{child_name}" if name else child_name
            if (new := replacement(full, child)) is not None:
                setattr(module, child_name, new)
    return model
