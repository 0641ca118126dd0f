"""VGG networks for small images, with batch norm.

K. Simonyan, A. Zisserman: Very deep convolutional networks for large-scale image recognition, ICLR 2015, table 1
(arXiv 1409.1556): five stages of 3x3 convolutions of 64, 128, 256, 512 and 512 channels, VGG-11 (its A), 13 (B), 16 (D)
and 19 (E). For CIFAR, as compared by Y. Tian, D. Krishnan, P. Isola (Contrastive representation distillation, ICLR
2020, arXiv 1910.10699): VGG-8 with one convolution per stage, batch norm after each convolution (S. Ioffe, C. Szegedy,
ICML 2015), global average pooling and one linear layer instead of the paper's three of 4,096 units.

Where ours differs: a stage ends in 2x2 max pooling if both sides of its map have more than 4 pixels, and without
pooling otherwise. On 32x32 images that leaves 4x4 for the last two stages, as there; smaller images are not pooled
away. The depth counts convolutions and the three linear layers of the paper, as the networks' names do.
"""

from torch import Tensor, nn

from trainers.families.family import Family, Network, Normalize, scaled

CONVOLUTIONS = {8: (1, 1, 1, 1, 1), 11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
"""Depth -> convolutions in each stage."""
SMALLEST = 4
"""Side length of a map, in pixels, that is not halved any further."""


class VGGNet(Network):
    """The network of one of the depths; its taps are the outputs of each resolution's last stage, after its ReLU."""

    def __init__(self, depth: int, width: float, image_shape: tuple[int, int, int], classes: int) -> None:
        """depth: a key of CONVOLUTIONS; width: multiplies the stages' channels; image_shape: (C, H, W)."""
        super().__init__()
        inputs, *sides = image_shape
        self.normalize = Normalize(inputs)
        self.stages, self.pools = nn.ModuleList(), nn.ModuleList()
        taps = []
        for index, (base, count) in enumerate(zip((64, 128, 256, 512, 512), CONVOLUTIONS[depth], strict=True)):
            outputs = scaled(base, width)
            stage = nn.Sequential()
            for _ in range(count):
                stage.extend((nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()))
                inputs = outputs
            self.stages.append(stage)
            is_halved = index < 4 and min(sides) > SMALLEST
            self.pools.append(nn.MaxPool2d(2) if is_halved else nn.Identity())
            if is_halved or index == 4:
                taps.append(f"stages.{index}.{3 * count - 1}")
            sides = [side // 2 if is_halved else side for side in sides]
        self.activations = self.taps = tuple(taps)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(inputs, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def logits(self, images: Tensor) -> Tensor:
        """images: (B, C, H, W) in [0, 1]; returns logits (B, classes)."""
        x = self.normalize(images)
        for stage, pool in zip(self.stages, self.pools, strict=True):
            x = pool(stage(x))
        logits: Tensor = self.classifier(self.pool(x).flatten(1))
        return logits


class _Family(Family):
    name = "vgg"

    def build(self, depth: int, width: float, image_shape: tuple[int, int, int], classes: int) -> VGGNet:
        return VGGNet(depth, width, image_shape, classes)


VGG = _Family()
