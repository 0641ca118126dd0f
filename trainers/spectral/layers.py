"""Layers written in eigenvalues and eigenvectors.

L. Giambagli, L. Buffoni, L. Chicchi, D. Fanelli: How a student becomes a teacher: learning and forgetting through
spectral methods, NeurIPS 2023 (arXiv 2310.12612). The weight from unit j to unit i is

    w_ij = (lambda_in_j - lambda_out_i) phi_ij

with eigenvector entries phi. Each of the three is trained or fixed; as in the paper's experiments lambda_in starts (and
by default stays) at 0, lambda_out is trained from 1, phi is trained. For a convolution the eigenvalues belong to
channels and phi_ij is a kernel. The layer initially equals the ordinary layer it replaces (phi = -w), so that any
initialisation, including the paper's Glorot, is that layer's own.
"""

import copy
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainers.spectral.attention import Attention, can_be_opened

Model = TypeVar("Model", bound=nn.Module)
Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)

UNFILLED = "meta"
"""Device for creating a layer that is filled at once: initialising it would draw from the global generator."""


class _Spectral(nn.Module):
    """What the dense and the convolutional layer share."""

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        inputs: int,
        *,
        train_inputs: bool,
        train_outputs: bool,
        train_eigenvectors: bool,
    ) -> None:
        super().__init__()
        outputs = weight.shape[0]
        self.eigenvectors = nn.Parameter(-weight.detach().clone(), requires_grad=train_eigenvectors)
        self.eigenvalues_in = nn.Parameter(weight.new_zeros(inputs), requires_grad=train_inputs)
        self.eigenvalues_out = nn.Parameter(weight.new_ones(outputs), requires_grad=train_outputs)
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        self.trained = (train_eigenvectors, train_inputs, train_outputs)
        """Which of eigenvectors, eigenvalues_in and eigenvalues_out; under `torch.vmap` `requires_grad` is False."""

    @property
    def weight(self) -> Tensor:
        """The ordinary layer's weight: (outputs, inputs, ...)."""
        phi = self.eigenvectors
        outputs, inputs, *kernel = phi.shape
        ones = (1,) * len(kernel)
        # kernel i of a grouped convolution sees only the inputs of its own group
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

    def __init__(
        self,
        linear: nn.Linear,
        *,
        train_inputs: bool = False,
        train_outputs: bool = True,
        train_eigenvectors: bool = True,
    ) -> None:
        """Initially equal to `linear`; the flags choose what is trained (besides the bias)."""
        super().__init__(
            linear.weight,
            linear.bias,
            linear.in_features,
            train_inputs=train_inputs,
            train_outputs=train_outputs,
            train_eigenvectors=train_eigenvectors,
        )
        self.in_features, self.out_features = linear.in_features, linear.out_features

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., inputs); returns (..., outputs)."""
        return F.linear(x, self.weight, self.bias)

    def fold(self) -> nn.Linear:
        """The ordinary layer with the same weight."""
        outputs, inputs = self.eigenvectors.shape
        return _filled(nn.Linear(inputs, outputs, self.bias is not None, device=UNFILLED), self)


class SpectralConv2d(_Spectral):
    """`nn.Conv2d` in eigenvalues and eigenvectors, one eigenvalue per channel."""

    def __init__(
        self,
        conv: nn.Conv2d,
        *,
        train_inputs: bool = False,
        train_outputs: bool = True,
        train_eigenvectors: bool = True,
    ) -> None:
        """Initially equal to `conv`; the flags choose what is trained (besides the bias)."""
        super().__init__(
            conv.weight,
            conv.bias,
            conv.in_channels,
            train_inputs=train_inputs,
            train_outputs=train_outputs,
            train_eigenvectors=train_eigenvectors,
        )
        if conv.padding_mode != "zeros":
            raise ValueError(f"padding_mode of a spectral convolution must be 'zeros', but got {conv.padding_mode!r}")
        self.in_channels, self.out_channels = conv.in_channels, conv.out_channels
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


def spectralize(
    model: Model,
    *,
    keep: Iterable[str] = (),
    train_inputs: bool = False,
    train_outputs: bool = True,
    train_eigenvectors: bool = True,
) -> Model:
    """A copy of `model` whose linear and convolutional layers are spectral; the function it computes is unchanged.

    Layers of other classes, or with padding other than zeros, stay as they are; a layer that `model` uses in several
    places becomes one spectral layer. An `nn.MultiheadAttention` becomes an `Attention`
    (`trainers.spectral.attention`), with the names `in_proj` and `out_proj` for its layers.

    Args:
        model: any module that contains layers; its class need not know about this.
        keep: names of layers, or of modules that contain them, that stay ordinary, such as the classifier.
        train_inputs, train_outputs, train_eigenvectors: whether lambda_in, lambda_out and phi are trained.
    """
    ordinary = set(keep)
    trained = {
        "train_inputs": train_inputs,
        "train_outputs": train_outputs,
        "train_eigenvectors": train_eigenvectors,
    }

    def spectral(names: Iterable[str], layer: nn.Module) -> nn.Module | None:
        if any(named(name, ordinary) for name in names):
            return None
        if type(layer) is nn.Linear:
            return SpectralLinear(layer, **trained)
        if type(layer) is nn.Conv2d and layer.padding_mode == "zeros":
            return SpectralConv2d(layer, **trained)
        return None

    return _replaced(model, spectral)


def open_attention(model: nn.Module, names: Container[str] | None = None) -> None:
    """Turn every `nn.MultiheadAttention` in `model` into an `Attention` with the same parameters, in place.

    Args:
        model: which may have none.
        names: of tensors; attention that is not an `Attention` in a network of such tensors stays as it is.
    """

    def is_open(own: Iterable[str]) -> bool:
        return names is None or any(f"{name}.in_proj.weight" in names for name in own)

    _replace(model, lambda own, module: Attention(module) if can_be_opened(module) and is_open(own) else None)


def fold(model: Model) -> Model:
    """A copy of `model` whose spectral layers are ordinary ones with the same weights.

    An `nn.MultiheadAttention` becomes an `Attention`, as in `spectralize`.
    """
    return _replaced(
        model, lambda _, layer: layer.fold() if isinstance(layer, SpectralLinear | SpectralConv2d) else None
    )


def named(name: str, keep: Iterable[str]) -> bool:
    """Whether `keep` names a module or one that contains it."""
    return any(name == each or name.startswith(f"{each}.") for each in keep)


def spectral_layers(model: nn.Module) -> Iterator[tuple[str, SpectralLinear | SpectralConv2d]]:
    """Every spectral layer of `model` with its name."""
    for name, layer in model.named_modules():
        if isinstance(layer, SpectralLinear | SpectralConv2d):
            yield name, layer


def spectral_penalty(model: nn.Module, *, eigenvector_l2: float, eigenvalue_l2: float) -> Tensor:
    """`eigenvector_l2 * sum phi^2 + eigenvalue_l2 * sum lambda^2` over the trained parts of all spectral layers, ().

    Added to the loss, as in the authors' Keras code; it is twice PyTorch's `weight_decay` with the same coefficient.
    Together the two amount to a group lasso with weight 2 sqrt(eigenvector_l2 eigenvalue_l2) on each unit's
    ||lambda_i phi_i||: that is what makes whole units vanish.
    """
    total = torch.zeros(())
    for _, layer in spectral_layers(model):
        total = total.to(layer.eigenvectors.device)
        parts = (
            (layer.eigenvectors, eigenvector_l2),
            (layer.eigenvalues_in, eigenvalue_l2),
            (layer.eigenvalues_out, eigenvalue_l2),
        )
        for (part, coefficient), trained in zip(parts, layer.trained, strict=True):
            if trained:
                total = total + coefficient * part.square().sum()
    return total


def _replaced(model: Model, replacement: Callable[[Iterable[str], nn.Module], nn.Module | None]) -> Model:
    """A deep copy of `model`, its attention opened, with `replacement(names, layer)` wherever that is not None."""
    model = copy.deepcopy(model)
    open_attention(model)
    _replace(model, replacement)
    return model


def _replace(model: nn.Module, replacement: Callable[[Iterable[str], nn.Module], nn.Module | None]) -> None:
    places: dict[nn.Module, dict[str, tuple[nn.Module, str]]] = {}
    for name, module in model.named_modules():
        for key, child in module._modules.items():  # named_children leaves out what is used twice
            if child is not None:
                places.setdefault(child, {})[f"{name}.{key}" if name else key] = (module, key)
    for child, owners in places.items():
        if (new := replacement(owners.keys(), child)) is not None:
            for owner, key in owners.values():
                setattr(owner, key, new)
