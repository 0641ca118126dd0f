"""Batch norm statistics of a network that has just been cut."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def reestimate(network: nn.Module, images: Iterable[Tensor]) -> None:
    """Set the running statistics of every batch norm to their mean over these batches; nothing else changes.

    Where inputs of a layer are gone, its outputs have another mean and variance than those that its batch norm saw in
    training.

    Args:
        network: in any mode; without batch norms nothing happens.
        images: (B, C, H, W) each.
    """
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    if not norms:
        return
    training = [module for module in network.modules() if module.training]
    momenta = [norm.momentum for norm in norms]
    network.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # every batch counts the same
        norm.train()
    with torch.no_grad():
        for batch in images:
            network(batch)
    network.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    for module in training:
        module.training = True
