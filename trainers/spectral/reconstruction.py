"""Fits the weights of a cut network to the outputs that its layers had before the cut.

Y. He, X. Zhang, J. Sun: Channel pruning for accelerating very deep neural networks, ICCV 2017 (arXiv 1707.06168): when
a layer has lost inputs, its weights become the least-squares solution for its previous outputs. Here every convolution
and linear layer is fitted, in the order of a forward pass, to its outputs in the whole network, given the inputs from
the layers fitted before it; with a ridge penalty towards the previous weights. A linear layer whose outputs are the
network's own is assumed to be a classifier, and is then fitted to the whole network's probabilities by cross-entropy
(convex: logistic regression with soft targets). No labels are read, and nothing is backpropagated: it costs about three
forward passes.

Measured on scikit-learn's digits (ResNet-8 with spectral layers, trained on labels for 30 epochs, 2 seeds each, 1,024
calibration images, torch 2.15, AMD EPYC; validation accuracy in % without fine-tuning, batch norms always
recalibrated):

    units cut                        0 %          30 %          50 %          70 %          90 %
    width 0.25   cut alone        97.2  97.5    53.6  71.4    19.7  20.6     8.1   8.6    11.7  10.6
                 least squares                  88.3  92.5    74.7  74.4    43.1  43.9    22.8  24.2
                 and the last layer             89.4  92.8    76.7  85.3    44.4  53.6    26.7  27.2
    width 0.5    cut alone        98.1  97.8    83.1  67.2    30.8  23.6    14.2  13.1    12.2  11.4
                 least squares                  96.9  96.9    92.5  88.6    67.8  67.2    34.4  28.1
                 and the last layer             97.8  97.2    93.3  89.7    75.6  74.4    38.9  38.6
    width 1      cut alone        99.2  98.3    78.3  85.6    30.0  41.1    16.9  22.8    11.4  13.6
                 least squares                  98.3  97.5    97.2  96.9    92.5  93.6    57.8  64.2
                 and the last layer             98.3  97.5    97.8  96.7    94.2  94.4    65.8  70.3
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

RIDGE = 0.3
"""Ridge penalty, relative to the mean square of the inputs and to the number of unknowns over that of equations. The
fewer positions a map has, the more the fit would follow these images alone: with a fixed penalty of 0.001, as before, a
MobileNetV3 of 32 x 32 pixels, whose last maps are single positions, got weights of twelve times the teacher's sum of
squares, and then diverged. Validation NLL of students that start as the teacher with this share of its units, not
trained (Fashion-MNIST, 3,000 training images; torch 2.15, Xeon):

    penalty                          0.001 fixed         0.3                 1
    share of the units               0.75  0.5   0.25    0.75  0.5   0.25    0.75  0.5   0.25
    timm mobilenetv3_small_050       0.77  1.09  1.41    0.72  0.87  1.20    0.70  0.84  1.17
    timm ViT of 4 blocks             0.53  0.56  0.70    0.53  0.56  0.72    0.53  0.56  0.73
    residual and depthwise           0.37  0.46  0.78    0.37  0.46  0.78    0.37  0.47  0.79
    resnet 8 (digits)                0.01  0.07  0.74    0.01  0.08  0.74    0.01  0.08  0.74
"""
CLASSIFIER_RIDGE = 1e-3
"""Of the logistic regression, relative to the mean square of the inputs; ten times as much changed nothing (digits)."""
ROWS = 2**16
"""About how many positions of a layer's outputs are fitted, spread evenly over images and maps."""
STEPS = 50
"""Maximum number of L-BFGS steps."""
_PART = 128
"""Images whose inputs are unfolded at a time."""

_Layer = nn.Conv2d | nn.Linear


@dataclass(frozen=True)
class _Wanted:
    """A layer's outputs, (B, O, h, w) for a convolution: at every `step`th position of a map in each direction."""

    outputs: Tensor
    step: int = 1

    @classmethod
    def of(cls, layer: _Layer, outputs: Tensor) -> Self:
        """About ROWS positions of the layer's outputs."""
        if isinstance(layer, nn.Linear):
            return cls(outputs.clone())
        places = outputs.shape[0] * outputs.shape[2] * outputs.shape[3]
        step = max(1, math.ceil(math.sqrt(places / ROWS)))
        return cls(outputs[:, :, ::step, ::step].clone(), step)


def reconstruct(silent: nn.Module, whole: nn.Module, images: Tensor, gone: Mapping[str, Sequence[int]]) -> None:
    """Fit the weights and biases of `silent`, in place; both networks' modes are restored.

    Args:
        silent: the network with the units to be cut masked.
        whole: the same network with all its units, folded.
        images: (B, C, H, W), calibration images.
        gone: layer name -> cut channels of its outputs, whose weights stay as they are.
    """
    wanted: dict[str, _Wanted] = {}
    last: str | None = None
    """The layer whose outputs are the network's own."""
    logits: Tensor | None = None

    def note(name: str, layer: _Layer, outputs: Tensor) -> None:
        nonlocal last, logits
        if name not in wanted:  # a layer that is used twice is fitted to its first use
            wanted[name] = _Wanted.of(layer, outputs)
            last, logits = name, outputs

    def fit(name: str, layer: _Layer, inputs: Tensor) -> None:
        if name not in wanted:
            return
        target = wanted.pop(name)
        _fit(layer, inputs, target, gone.get(name, ()))
        if name == last and isinstance(layer, nn.Linear) and inputs.dim() == 2:
            _fit_to_probabilities(layer, inputs, target.outputs.softmax(1))

    modes = [(module, module.training) for network in (silent, whole) for module in network.modules()]
    norms = [module for module in silent.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    hooks = []
    for name, layer in whole.named_modules():
        if not isinstance(layer, nn.Conv2d | nn.Linear) or _is_unusual(layer):
            continue
        hooks += [
            layer.register_forward_hook(lambda layer, _, outputs, name=name: note(name, layer, outputs)),
            silent.get_submodule(name).register_forward_pre_hook(
                lambda layer, inputs, name=name: fit(name, layer, inputs[0])
            ),
        ]
    with torch.no_grad():
        if whole.eval()(images) is not logits:
            last = None
        silent.eval()
        for norm in norms:  # with the statistics of these images, without recording them
            norm.train()
            norm.momentum = 0.0
        silent(images)
    for hook in hooks:
        hook.remove()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    for module, training in modes:
        module.training = training


def _is_unusual(layer: _Layer) -> bool:
    """Whether `F.unfold` does not give a convolution's inputs."""
    return isinstance(layer, nn.Conv2d) and (isinstance(layer.padding, str) or layer.padding_mode != "zeros")


def _fit(layer: _Layer, given: Tensor, wanted: _Wanted, gone: Sequence[int]) -> None:
    """Least squares, group by group, for the change of the weights that makes up for what is missing."""
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    outputs = layer.weight.shape[0] // groups
    weight = layer.weight.double().reshape(groups, outputs, -1)
    if layer.bias is not None:
        weight = torch.cat([weight, layer.bias.double().view(groups, outputs, 1)], 2)
    used = _used(layer, given, groups)
    whole, weight = weight, weight[:, :, used]
    size, rows = weight.shape[2], 0
    square, crossed = weight.new_zeros(groups, size, size), weight.new_zeros(groups, size, outputs)
    for x, y in zip(torch.split(given, _PART), torch.split(wanted.outputs, _PART), strict=True):
        inputs = _inputs(layer, x, wanted.step).double()
        if layer.bias is not None:
            inputs = torch.cat([inputs, inputs.new_ones(groups, inputs.shape[1], 1)], 2)
        inputs = inputs[:, :, used]
        last = y.movedim(1, -1) if isinstance(layer, nn.Conv2d) else y
        missing = last.double().reshape(-1, groups, outputs).movedim(1, 0) - inputs @ weight.mT
        square += inputs.mT @ inputs
        crossed += inputs.mT @ missing
        rows += inputs.shape[1]
    square, crossed = square / rows, crossed / rows
    if not (square.isfinite().all() and crossed.isfinite().all()):
        return  # a diverged student is reported when it is measured
    ridge = (RIDGE * size / rows * square.diagonal(dim1=1, dim2=2).mean(1)).clamp_min(torch.finfo(torch.float64).tiny)
    change = torch.linalg.solve(square + torch.diag_embed(ridge[:, None].expand(-1, size)), crossed).mT
    fitted = whole.clone()
    fitted[:, :, used] += change
    fitted = fitted.reshape(groups * outputs, -1)
    stays = torch.ones(groups * outputs, dtype=torch.bool, device=fitted.device)
    stays[list(gone)] = False
    if layer.bias is not None:
        layer.bias[stays] = fitted[stays, -1].to(layer.bias.dtype)
        fitted = fitted[:, :-1]
    layer.weight[stays] = fitted[stays].reshape(-1, *layer.weight.shape[1:]).to(layer.weight.dtype)


def _used(layer: _Layer, given: Tensor, groups: int) -> Tensor | slice:
    """Which inputs of an output, its bias included, are ever other than 0: the weights of the others are not changed.

    Solving for half of the inputs takes an eighth of the time.
    """
    if groups > 1:
        return slice(None)
    channels = given.movedim(1, -1) if isinstance(layer, nn.Conv2d) else given
    used = channels.reshape(-1, channels.shape[-1]).any(0)
    used = used.repeat_interleave(layer.weight[0, 0].numel())
    return used if layer.bias is None else torch.cat([used, used.new_ones(1)])


def _fit_to_probabilities(layer: nn.Linear, given: Tensor, wanted: Tensor) -> None:
    """Minimum cross-entropy with the probabilities `wanted` (B, O), and a ridge penalty towards the old weights."""
    x, targets = given.double(), wanted.double()
    start = [parameter.detach().double() for parameter in layer.parameters()]
    parameters = [parameter.clone().requires_grad_() for parameter in start]
    ridge = CLASSIFIER_RIDGE * float(x.square().mean())
    if not (x.isfinite().all() and targets.isfinite().all()):
        return

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(x, *parameters), targets)
        for parameter, before in zip(parameters, start, strict=True):
            loss = loss + ridge * (parameter - before).square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer = torch.optim.LBFGS(parameters, max_iter=STEPS, line_search_fn="strong_wolfe")
    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    if all(parameter.isfinite().all() for parameter in parameters):
        for own, parameter in zip(layer.parameters(), parameters, strict=True):
            own.copy_(parameter.detach())


def _inputs(layer: _Layer, given: Tensor, step: int) -> Tensor:
    """A layer's inputs as (groups, rows, terms of an output's sum)."""
    if isinstance(layer, nn.Linear):
        return given.reshape(1, -1, given.shape[-1])
    assert not isinstance(layer.padding, str)
    stride = (step * layer.stride[0], step * layer.stride[1])
    unfolded = F.unfold(given, layer.kernel_size, layer.dilation, layer.padding, stride)
    by_group = unfolded.view(len(given), layer.groups, -1, unfolded.shape[2])
    return by_group.permute(1, 0, 3, 2).reshape(layer.groups, -1, by_group.shape[2])
