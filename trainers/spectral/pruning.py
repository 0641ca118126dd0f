"""Ranking units by eigenvalue and cutting the lowest out of the network.

Giambagli et al. 2023 rank unit i of a layer by |lambda_i| ||phi_i||_2 relative to the layer's largest, and silence the
lowest. Here the same number ranks units across the network and through the layers that depend on each other:

- A batch norm right behind a layer multiplies unit i by gamma_i / sigma_i: that factor belongs to the eigenvalue (a
  network with batch norm computes the same whatever lambda_i is), so the rank is of the two together.
- Channels that are added, or that otherwise exist only together (Torch-Pruning's dependency groups), are one unit; its
  relevance is the mean over the layers that make it, each relative to its layer's largest.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch_pruning as tp
from torch import Tensor, nn

from trainers.families import Network
from trainers.families.batch_ensemble import BatchEnsemble, shared_only
from trainers.spectral.layers import SpectralConv2d, SpectralLinear, fold, spectral_layers

ROUNDING = 1e-9
"""0.29 * 100 is 28.999999999999996 to a computer, and means 29 units."""


@dataclass(frozen=True)
class Cut:
    """One group of coupled channels: the layer it is reached by, how many units it has, and which of them go."""

    root: str
    units: int
    removed: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """Which units of each group are cut."""

    cuts: tuple[Cut, ...]

    @property
    def units(self) -> int:
        """Units in all groups together."""
        return sum(cut.units for cut in self.cuts)

    @property
    def removed(self) -> int:
        """Units that are cut."""
        return sum(len(cut.removed) for cut in self.cuts)


@dataclass(frozen=True)
class _Group:
    """Coupled channels. `producers[name][u]` lists the output channels of layer `name` that unit u stands for."""

    root: str
    units: int
    producers: Mapping[str, Sequence[Sequence[int]]]


def relevances(network: nn.Module) -> dict[str, Tensor]:
    """Relevance of every output unit of every spectral layer, (outputs,), as a share of its largest: in [0, 1]."""
    scales = _norm_scales(network)
    found = {}
    for name, layer in spectral_layers(network):
        ensemble = network.get_submodule(name.rpartition(".")[0])
        norms = _member_norms(ensemble, layer) if isinstance(ensemble, BatchEnsemble) else layer.unit_norms()
        relevance = norms * scales.get(name, 1.0)
        found[name] = relevance / relevance.max().clamp_min(torch.finfo(relevance.dtype).tiny)
    return found


def _member_norms(ensemble: BatchEnsemble, layer: SpectralLinear | SpectralConv2d) -> Tensor:
    """||gamma_i (w_i o alpha)||_2 of each output unit, (outputs,), the mean over members."""
    weight = layer.weight.detach()
    outputs, inputs = weight.shape[:2]
    squares = weight.square().reshape(outputs, inputs, -1).sum(2)
    alpha = ensemble.alpha.detach().square().view(ensemble.members, -1, inputs)  # by groups of a grouped convolution
    groups = alpha.shape[1]
    of_each = torch.einsum("gui,mgi->mgu", squares.view(groups, outputs // groups, inputs), alpha).flatten(1).sqrt()
    norms: Tensor = (of_each * ensemble.gamma.detach().abs()).mean(0)
    return norms


def plan(network: Network, fraction: float, *, floor: float, image_shape: tuple[int, int, int]) -> Plan:
    """Which units of a spectral network to cut.

    Args:
        network: with spectral layers.
        fraction: share of all units to cut, rounded down; fewer where the floor forbids it.
        floor: share of each group's units that stays, rounded up; at least one always does.
        image_shape: (C, H, W) of its input.
    """
    relevance = relevances(network)
    groups = _groups(fold(network), image_shape)
    ranked: list[tuple[float, int, int]] = []
    for index, group in enumerate(groups):
        total, makers = torch.zeros(group.units), 0
        for name, channels in group.producers.items():
            if name in relevance:
                # one unit may stand for several channels of a layer (flattened pixels): its strongest counts
                total += torch.stack([relevance[name][list(own)].max() for own in channels]).cpu()
                makers += 1
        score = (total / max(1, makers)).tolist()
        keep = max(1, math.ceil(floor * group.units - ROUNDING))
        order = sorted(range(group.units), key=lambda unit: (score[unit], unit))
        ranked += [(score[unit], index, unit) for unit in order[: group.units - keep]]
    budget = math.floor(fraction * sum(group.units for group in groups) + ROUNDING)
    chosen = sorted(ranked)[:budget]
    return Plan(
        tuple(
            Cut(group.root, group.units, tuple(sorted(unit for _, owner, unit in chosen if owner == index)))
            for index, group in enumerate(groups)
        )
    )


def mask(network: Network, plan: Plan, *, image_shape: tuple[int, int, int]) -> Network:
    """A folded copy of `network` in which the planned units are silent but still there: what `cut` is checked by."""
    silent = fold(network)
    groups = {group.root: group for group in _groups(silent, image_shape)}
    with torch.no_grad():
        for step in plan.cuts:
            for name, channels in groups[step.root].producers.items():
                module = silent.get_submodule(name)
                gone = [channel for unit in step.removed for channel in channels[unit]]
                for parameter in (module.weight, module.bias):
                    if isinstance(parameter, Tensor):
                        parameter[gone] = 0.0
                ensemble = silent.get_submodule(name.rpartition(".")[0])
                if isinstance(ensemble, BatchEnsemble) and ensemble.bias is not None:
                    ensemble.bias[:, gone] = 0.0
    return silent


def cut(network: Network, plan: Plan, *, image_shape: tuple[int, int, int]) -> Network:
    """A folded copy of `network` without the planned units: smaller in every layer that has to do with them."""
    smaller = fold(network)
    roots = [smaller.get_submodule(step.root) for step in plan.cuts]
    with shared_only(smaller) as ensembles:
        graph = _graph(smaller, image_shape)
        for step, root in zip(plan.cuts, roots, strict=True):
            if step.removed:
                group = graph.get_pruning_group(root, _prune_outputs(root), idxs=list(step.removed))
                for item in group:
                    if (ensemble := ensembles.get(item.dep.target.module)) is not None:
                        _cut_fast_weights(ensemble, item.idxs, graph.is_out_channel_pruning_fn(item.dep.handler))
                group.prune()
    smaller.zero_grad(set_to_none=True)
    return smaller


def _cut_fast_weights(ensemble: BatchEnsemble, channels: Sequence[int], are_outputs: bool) -> None:
    """Cut what belongs to channels of a BatchEnsemble's layer out of its fast weights."""
    for name in ("gamma", "bias") if are_outputs else ("alpha",):
        old = getattr(ensemble, name)
        if old is not None:
            gone = {int(channel) for channel in channels}
            kept = [channel for channel in range(old.shape[1]) if channel not in gone]
            setattr(ensemble, name, nn.Parameter(old.detach()[:, kept]))


def _prune_outputs(module: nn.Module) -> object:
    return tp.prune_linear_out_channels if isinstance(module, nn.Linear) else tp.prune_conv_out_channels


def _graph(network: Network, image_shape: tuple[int, int, int]) -> tp.DependencyGraph:
    # two images: a batch norm in training mode refuses one value a channel; the graph itself is traced in eval mode
    example = torch.zeros(2, *image_shape, device=next(network.parameters()).device)
    training = network.training
    with torch.enable_grad():
        graph = tp.DependencyGraph().build_dependency(network.eval(), example_inputs=example, verbose=False)
    network.train(training)
    return graph


def _groups(network: Network, image_shape: tuple[int, int, int]) -> list[_Group]:
    """All groups of coupled channels of an ordinary network but that of its head, in the order of their roots."""
    names = {module: name for name, module in network.named_modules()}
    with shared_only(network):
        graph = _graph(network, image_shape)
        head = network.get_submodule(network.head)
    makers = (nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.BatchNorm1d)
    groups = []
    for found in graph.get_all_groups(ignored_layers=[head], root_module_types=[nn.Conv2d, nn.Linear]):
        root = found[0].dep.target.module
        units = len(found[0].idxs)
        producers: dict[str, list[list[int]]] = {}
        for item in found:
            module = item.dep.target.module
            if isinstance(module, makers) and graph.is_out_channel_pruning_fn(item.dep.handler):
                channels: list[list[int]] = producers.setdefault(names[module], [[] for _ in range(units)])
                for position, channel in enumerate(item.idxs):
                    unit = item.root_idxs[position]
                    channels[unit].append(int(channel))
        groups.append(_Group(names[root], units, producers))
    return sorted(groups, key=lambda group: group.root)


def _norm_scales(network: nn.Module) -> dict[str, Tensor]:
    """gamma / sigma, (outputs,), for each spectral layer that a batch norm follows in the module order of its parent.

    In every network of ours, and by custom elsewhere, a layer's batch norm is the next module registered after it.
    """
    scales: dict[str, Tensor] = {}
    modules = [(name, module) for name, module in network.named_modules() if not list(module.children())]
    layers = dict(spectral_layers(network))
    for (name, _), (_, following) in pairwise(modules):
        if (
            name in layers
            and isinstance(following, nn.BatchNorm2d | nn.BatchNorm1d)
            and following.running_var is not None
        ):
            gamma = following.weight.detach().abs() if following.affine else torch.ones_like(following.running_var)
            scales[name] = gamma / (following.running_var + following.eps).sqrt()
    return scales
