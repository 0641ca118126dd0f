"""The importance of units.

Giambagli et al. 2023 rank unit i of a layer by |lambda_i| ||phi_i||_2 relative to the layer's largest. Here the same
number ranks units across the network, and units that span several coupled layers:

- |lambda_i| ||phi_i||_2 is the standard deviation of unit i's output before its activation, for inputs of unit variance
  as in the paper. After a batch norm this deviation is |gamma_i|, whatever lambda_i and phi_i are (the norm cancels
  them), so there the importance is |gamma_i|.
- A BatchEnsemble's members have the same channels; a unit's importance is the mean norm of the members' weights.
- Channels that are added, that share a depthwise kernel, or that are coupled in other ways are one unit; its importance
  is the mean over the layers that output it.
- Across layers, importances are compared as shares of their layer's mean. Shares of the largest, by which the paper
  counts units within a layer, would cut too much of a layer with one strong unit (benchmarks/pruning_criteria.py).
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from trainers.families.batch_ensemble import BatchEnsemble
from trainers.spectral.layers import SpectralConv2d, SpectralLinear, spectral_layers
from trainers.spectral.units import Traced, Unit


def importances(traced: Traced) -> dict[str, Tensor]:
    """Importance of every output unit of every spectral layer, (outputs,), as a share of its largest: in [0, 1].

    The paper's effective size of a layer is the number of units at 0.05 and above.
    """
    return {name: strength / _positive(strength.max()) for name, strength in _strengths(traced).items()}


def shares_of_mean(traced: Traced) -> dict[str, Tensor]:
    """Importance of every output unit of every spectral layer, (outputs,), as a share of the layer's mean."""
    return {name: strength / _positive(strength.mean()) for name, strength in _strengths(traced).items()}


def unit_importance(unit: Unit, importance: Mapping[str, list[float]]) -> float:
    """Mean over the layers that output the unit, and over the channels that a layer has in it."""
    shares = []
    for name in unit.makers:
        if name in importance:
            channels = unit.channels_of(name)
            shares.append(sum(importance[name][channel] for channel in channels) / len(channels))
    return sum(shares) / len(shares)


def _positive(value: Tensor) -> Tensor:
    return value.clamp_min(torch.finfo(value.dtype).tiny)


def _strengths(traced: Traced) -> dict[str, Tensor]:
    """The strength of every spectral layer's units, (outputs,): ||w_i||_2, or |gamma_i| if a batch norm follows."""
    strengths = {}
    for name, layer in spectral_layers(traced.network):
        norms = [traced.network.get_submodule(norm) for norm in traced.norms.get(name, ())]
        gammas = [norm.weight.detach().abs() for norm in norms if isinstance(norm, _BatchNorm) and norm.affine]
        ensemble = traced.network.get_submodule(name.rpartition(".")[0])
        if gammas and len(gammas) == len(norms):
            strengths[name] = torch.stack(gammas).mean(0)  # more than one where a layer is used more than once
        elif isinstance(ensemble, BatchEnsemble):
            strengths[name] = _member_norms(ensemble, layer)
        else:
            strengths[name] = layer.unit_norms()
    return strengths


def _member_norms(ensemble: BatchEnsemble, layer: SpectralLinear | SpectralConv2d) -> Tensor:
    """||gamma_i (w_i o alpha)||_2 of each output unit, (outputs,), averaged over members."""
    weight = layer.weight.detach()
    outputs, inputs = weight.shape[:2]
    squares = weight.square().reshape(outputs, inputs, -1).sum(2)
    alpha = ensemble.alpha.detach().square().view(ensemble.members, -1, inputs)  # by groups of a grouped convolution
    groups = alpha.shape[1]
    of_each = torch.einsum("gui,mgi->mgu", squares.view(groups, outputs // groups, inputs), alpha).flatten(1).sqrt()
    norms: Tensor = (of_each * ensemble.gamma.detach().abs()).mean(0)
    return norms
