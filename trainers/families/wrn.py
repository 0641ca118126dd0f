"""Wide residual networks for small images.

S. Zagoruyko, N. Komodakis: Wide residual networks, BMVC 2016, table 1 (arXiv 1605.07146): 3x3 stem of 16 channels,
three groups of n blocks at 16k, 32k and 64k channels, depth 6n+4; in a block batch norm and ReLU come before each
convolution. The width is k: WRN-16-2 is depth 16, width 2.

Where ours differs: below k = 1 the stem is also narrowed, to 16k channels; no dropout.
"""

from torch import Tensor, nn

from trainers.families.family import Family, Network, Normalize, scaled


class Block(nn.Module):
    """Batch norm, ReLU and 3x3 convolution, twice; the input, unchanged or projected, is added."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        """inputs, outputs: channels; stride: of the first convolution and of the shortcut."""
        super().__init__()
        self.norm1, self.relu1 = nn.BatchNorm2d(inputs), nn.ReLU()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm2, self.relu2 = nn.BatchNorm2d(outputs), nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, inputs, H, W); returns (B, outputs, H', W')."""
        y = self.relu1(self.norm1(x))
        kept = x if self.shortcut is None else self.shortcut(y)
        out: Tensor = kept + self.conv2(self.relu2(self.norm2(self.conv1(y))))
        return out


class WideResNet(Network):
    """The network of depth 6n+4.

    Its taps are the groups' outputs as the next layers see them: after the batch norm and ReLU that follow.
    """

    def __init__(self, blocks: int, width: float, image_channels: int, classes: int) -> None:
        """blocks: n, per group; width: k."""
        super().__init__()
        self.activations = self.taps = ("groups.1.0.relu1", "groups.2.0.relu1", "relu")
        self.normalize = Normalize(image_channels)
        inputs = scaled(16, min(width, 1.0))
        self.stem = nn.Conv2d(image_channels, inputs, 3, 1, 1, bias=False)
        groups = []
        for index, base in enumerate((16, 32, 64)):
            outputs = scaled(base, width)
            first = Block(inputs, outputs, 1 if index == 0 else 2)
            groups.append(nn.Sequential(first, *(Block(outputs, outputs, 1) for _ in range(blocks - 1))))
            inputs = outputs
        self.groups = nn.Sequential(*groups)
        self.norm, self.relu = nn.BatchNorm2d(inputs), nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(inputs, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def logits(self, images: Tensor) -> Tensor:
        """images: (B, C, H, W) in [0, 1]; returns logits (B, classes)."""
        x = self.relu(self.norm(self.groups(self.stem(self.normalize(images)))))
        logits: Tensor = self.classifier(self.pool(x).flatten(1))
        return logits


class _Family(Family):
    name = "wrn"

    def build(self, depth: int, width: float, image_shape: tuple[int, int, int], classes: int) -> WideResNet:
        return WideResNet((depth - 4) // 6, width, image_shape[0], classes)


WRN = _Family()
