"""MobileNetV2 for small images.

M. Sandler, A. Howard, M. Zhu, A. Zhmoginov, L.-C. Chen: MobileNetV2: inverted residuals and linear bottlenecks, CVPR
2018, table 2 (arXiv 1801.04381): 17 blocks that expand their input sixfold by a 1x1 convolution, apply a depthwise
convolution, and project to few channels without an activation; if input and output have the same shape, the input is
added. With a width below 1 the last convolution keeps its 1,280 channels.

For CIFAR as compared by Y. Tian, D. Krishnan, P. Isola (ICLR 2020, arXiv 1910.10699; there with width 0.5): the stage
with 24 channels does not halve the resolution. Other differences from the paper: channels are rounded to integers
rather than to multiples of 8; maps with sides below 4 pixels are not halved, so that 8x8 images are not pooled away;
there is no dropout before the classifier.
"""

from torch import Tensor, nn

from trainers.families.family import Family, Network, Normalize, scaled

STAGES = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""For each stage: expansion, channels, blocks, stride of the first block."""
SMALLEST = 4
"""Minimum side length of a map, in pixels, to be halved."""


class Block(nn.Module):
    """An inverted residual: expand, depthwise convolution, project."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        """inputs, outputs: channels; stride: of the depthwise convolution; expansion: of the inputs."""
        super().__init__()
        inner = inputs * expansion
        self.expand = _layer(inputs, inner, 1) if expansion != 1 else nn.Identity()
        self.depthwise = _layer(inner, inner, 3, stride, groups=inner)
        self.project = nn.Sequential(nn.Conv2d(inner, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.is_residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, inputs, H, W); returns (B, outputs, H', W')."""
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + y if self.is_residual else y


class MobileNetV2(Network):
    """The network of 53 layers.

    Its taps are the last block of each resolution, which does not end in a ReLU, and the last convolution after its
    ReLU.
    """

    def __init__(self, width: float, image_shape: tuple[int, int, int], classes: int) -> None:
        """width: multiplies the channels; image_shape: (C, H, W)."""
        super().__init__()
        image_channels, *sides = image_shape
        self.normalize = Normalize(image_channels)
        inputs = scaled(32, width)
        stride, sides = _halved(2, sides)
        self.stem = _layer(image_channels, inputs, 3, stride)
        self.blocks = nn.Sequential()
        taps = []
        for expansion, base, count, first in STAGES:
            stride, sides = _halved(first, sides)
            if stride > 1:
                taps.append(f"blocks.{len(self.blocks) - 1}")
            outputs = scaled(base, width)
            for index in range(count):
                self.blocks.append(Block(inputs, outputs, stride if index == 0 else 1, expansion))
                inputs = outputs
        outputs = scaled(1280, max(width, 1.0))
        self.last = _layer(inputs, outputs, 1)
        self.taps = (*taps, "last")
        self.activations = (*(None for _ in taps), "last.2")
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(outputs, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def logits(self, images: Tensor) -> Tensor:
        """images: (B, C, H, W) in [0, 1]; returns logits (B, classes)."""
        x = self.last(self.blocks(self.stem(self.normalize(images))))
        logits: Tensor = self.classifier(self.pool(x).flatten(1))
        return logits


def _layer(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU6())


def _halved(stride: int, sides: list[int]) -> tuple[int, list[int]]:
    """The stride for maps with these sides, and the sides afterwards."""
    if min(sides) < SMALLEST:
        stride = 1
    return stride, [-(-side // stride) for side in sides]


class _Family(Family):
    name = "mobilenetv2"

    def build(self, depth: int, width: float, image_shape: tuple[int, int, int], classes: int) -> MobileNetV2:
        return MobileNetV2(width, image_shape, classes)


MOBILENETV2 = _Family()
