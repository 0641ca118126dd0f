"""Fully connected networks: depth counts layers with weights, hidden layers have 256 units times the width."""

import math

from torch import Tensor, nn

from trainers.families.family import Family, Network, Normalize, scaled


class FullyConnected(Network):
    """Linear layers with ReLU between them; its taps are the hidden layers' outputs after ReLU."""

    def __init__(self, depth: int, units: int, image_shape: tuple[int, int, int], classes: int) -> None:
        """depth: layers with weights; units: of each hidden layer; image_shape: (C, H, W)."""
        super().__init__()
        self.activations = self.taps = tuple(f"hidden.{index}.1" for index in range(depth - 1))
        self.normalize = Normalize(image_shape[0])
        inputs = math.prod(image_shape)
        self.hidden = nn.Sequential()
        for _ in range(depth - 1):
            self.hidden.append(nn.Sequential(nn.Linear(inputs, units), nn.ReLU()))
            inputs = units
        self.classifier = nn.Linear(inputs, classes)

    def logits(self, images: Tensor) -> Tensor:
        """images: (B, C, H, W) in [0, 1]; returns logits (B, classes)."""
        logits: Tensor = self.classifier(self.hidden(self.normalize(images).flatten(1)))
        return logits


class _Family(Family):
    name = "mlp"

    def build(self, depth: int, width: float, image_shape: tuple[int, int, int], classes: int) -> FullyConnected:
        return FullyConnected(depth, scaled(256, width), image_shape, classes)


MLP = _Family()
