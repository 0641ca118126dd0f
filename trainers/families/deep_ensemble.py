"""Deep ensembles: independently trained networks whose probabilities are averaged.

B. Lakshminarayanan, A. Pritzel, C. Blundell: Simple and scalable predictive uncertainty estimation using deep
ensembles, NeurIPS 2017 (arXiv 1612.01474).
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from trainers.families.family import Network


class DeepEnsemble(Network):
    """Several networks as one. It has no taps: each member has its own features."""

    taps = ()
    activations = ()

    def __init__(self, networks: Iterable[Network]) -> None:
        """networks: for the same classes; each is called separately."""
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.members = len(self.networks)

    def logits(self, images: Tensor) -> Tensor:
        """The first member's, (B, classes)."""
        return self.member(0, images)

    def outputs(self, images: Tensor) -> Tensor:
        """images: (B, C, H, W); returns every member's logits, (members * B, classes), member by member."""
        return torch.cat([network(images) for network in self.networks])

    def member(self, index: int, images: Tensor) -> Tensor:
        """images: (B, C, H, W); returns one member's logits (B, classes); the others are not run."""
        logits: Tensor = self.networks[index](images)
        return logits

    def set_normalization(self, mean: Tensor, std: Tensor) -> None:
        """mean, std: (C,), for every member."""
        for network in self.networks:
            assert isinstance(network, Network)
            network.set_normalization(mean, std)
