"""ShuffleNetV2 for small images.

N. Ma, X. Zhang, H.-T. Zheng, J. Sun: ShuffleNet V2: practical guidelines for efficient CNN architecture design, ECCV
2018, table 5 and figure 3 (arXiv 1807.11164): a unit leaves half of its channels unchanged, convolves the other half
(1x1, depthwise, 1x1) and shuffles both; the first unit of each of three stages halves the resolution in both of its
branches. With a width below 1 the stem keeps its 24 channels and the last convolution its 1,024; above 1 they widen.

For CIFAR as compared by Y. Tian, D. Krishnan, P. Isola (ICLR 2020, arXiv 1910.10699): the stem, a 1x1 convolution there
and a 3x3 one here and in the paper, has stride 1, and no pooling follows. Other differences from the paper: the stages'
channels are those of 1x (116, 232, 464) times the width, rounded to even numbers, which differs slightly from the
paper's 0.5x, 1.5x and 2x; maps with sides below 4 pixels are not halved, so that 8x8 images are not pooled away.

When a student is cut, the channels that are split and shuffled stay; only channels inside a unit are cut.
"""

import torch
from torch import Tensor, nn

from trainers.families.family import Family, Network, Normalize, scaled

STAGES = ((116, 4), (232, 8), (464, 4))
"""For each stage: channels, units."""
SMALLEST = 4
"""Minimum side length of a map, in pixels, to be halved."""


class Unit(nn.Module):
    """Half of the channels unchanged, half through three convolutions; shuffled."""

    def __init__(self, channels: int) -> None:
        """channels: of its input and of its output, an even number."""
        super().__init__()
        self.branch = _branch(channels // 2, channels // 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, channels, H, W); returns the same shape."""
        kept, other = x.chunk(2, dim=1)
        return _shuffled(torch.cat([kept, self.branch(other)], dim=1))


class Down(nn.Module):
    """All channels through two branches, each of which makes half of the outputs; shuffled."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        """inputs, outputs: channels, the latter even; stride: of the depthwise convolutions."""
        super().__init__()
        self.branch = _branch(inputs, outputs // 2, stride)
        self.shortcut = nn.Sequential(*_depthwise(inputs, stride), *_pointwise(inputs, outputs // 2))

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, inputs, H, W); returns (B, outputs, H', W')."""
        return _shuffled(torch.cat([self.shortcut(x), self.branch(x)], dim=1))


class ShuffleNetV2(Network):
    """The network of 51 layers; its taps are the last stage of each resolution, the deepest after the last ReLU.

    A stage's output is shuffled, so only the last tap ends in its own ReLU.
    """

    def __init__(self, width: float, image_shape: tuple[int, int, int], classes: int) -> None:
        """width: multiplies the channels; image_shape: (C, H, W)."""
        super().__init__()
        image_channels, *sides = image_shape
        self.normalize = Normalize(image_channels)
        inputs = scaled(24, max(width, 1.0))
        self.stem = nn.Sequential(
            nn.Conv2d(image_channels, inputs, 3, 1, 1, bias=False), nn.BatchNorm2d(inputs), nn.ReLU()
        )
        self.stages = nn.Sequential()
        before, taps = "stem", []
        for index, (base, count) in enumerate(STAGES):
            outputs = 2 * scaled(base // 2, width)
            stride = 2 if min(sides) >= SMALLEST else 1
            if stride > 1:
                taps.append(before)
            sides = [-(-side // stride) for side in sides]
            self.stages.append(nn.Sequential(Down(inputs, outputs, stride), *(Unit(outputs) for _ in range(count - 1))))
            inputs, before = outputs, f"stages.{index}"
        outputs = scaled(1024, max(width, 1.0))
        self.last = nn.Sequential(*_pointwise(inputs, outputs))
        self.taps = (*taps, "last")
        self.activations = tuple({"stem": "stem.2", "last": "last.2"}.get(tap) for tap in self.taps)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(outputs, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def logits(self, images: Tensor) -> Tensor:
        """images: (B, C, H, W) in [0, 1]; returns logits (B, classes)."""
        x = self.last(self.stages(self.stem(self.normalize(images))))
        logits: Tensor = self.classifier(self.pool(x).flatten(1))
        return logits


def _branch(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(*_pointwise(inputs, outputs), *_depthwise(outputs, stride), *_pointwise(outputs, outputs))


def _pointwise(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()


def _depthwise(channels: int, stride: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False), nn.BatchNorm2d(channels)


def _shuffled(x: Tensor) -> Tensor:
    """The channels (B, 2 C, H, W) of both halves, alternating."""
    return torch.unflatten(x, 1, (2, -1)).transpose(1, 2).flatten(1, 2)


class _Family(Family):
    name = "shufflenetv2"

    def build(self, depth: int, width: float, image_shape: tuple[int, int, int], classes: int) -> ShuffleNetV2:
        return ShuffleNetV2(width, image_shape, classes)


SHUFFLENETV2 = _Family()
