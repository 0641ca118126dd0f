"""Residual networks for small images.

K. He, X. Zhang, S. Ren, J. Sun: Deep residual learning for image recognition, CVPR 2016, section 4.2
(arXiv 1512.03385): 3x3 stem, three groups of n blocks at 16, 32 and 64 channels, depth 6n+2. If the shape changes, the
shortcut is a projection (1x1 convolution and batch norm), as in the factor-transfer authors' networks: zero-padded
identity shortcuts could not follow pruned channels.
"""

from torch import Tensor, nn

from trainers.families.family import Family, Network, Normalize, scaled


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut; the sum goes through ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        """inputs, outputs: channels; stride: of the first convolution and of the shortcut."""
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, inputs, H, W); returns (B, outputs, H', W') after the ReLU."""
        y = self.relu(self.norm1(self.conv1(x)))
        out: Tensor = self.relu(self.norm2(self.conv2(y)) + self.shortcut(x))
        return out


class ResNet(Network):
    """The network of depth 6n+2; its taps are the groups' outputs after their last ReLU."""

    def __init__(self, blocks: int, channels: tuple[int, int, int], image_channels: int, classes: int) -> None:
        """blocks: n, per group; channels: of the three groups."""
        super().__init__()
        self.taps = ("groups.0", "groups.1", "groups.2")
        self.activations = tuple(f"{group}.{blocks - 1}.relu" for group in self.taps)
        self.normalize = Normalize(image_channels)
        self.stem = nn.Sequential(
            nn.Conv2d(image_channels, channels[0], 3, 1, 1, bias=False), nn.BatchNorm2d(channels[0]), nn.ReLU()
        )
        groups = []
        inputs = channels[0]
        for index, outputs in enumerate(channels):
            stride = 1 if index == 0 else 2
            first = Block(inputs, outputs, stride)
            groups.append(nn.Sequential(first, *(Block(outputs, outputs, 1) for _ in range(blocks - 1))))
            inputs = outputs
        self.groups = nn.Sequential(*groups)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(inputs, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def logits(self, images: Tensor) -> Tensor:
        """images: (B, C, H, W) in [0, 1]; returns logits (B, classes)."""
        x = self.groups(self.stem(self.normalize(images)))
        logits: Tensor = self.classifier(self.pool(x).flatten(1))
        return logits


class _Family(Family):
    name = "resnet"

    def build(self, depth: int, width: float, image_shape: tuple[int, int, int], classes: int) -> ResNet:
        channels = (scaled(16, width), scaled(32, width), scaled(64, width))
        return ResNet((depth - 2) // 6, channels, image_shape[0], classes)


RESNET = _Family()
