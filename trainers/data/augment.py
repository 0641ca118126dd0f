"""Training images, varied anew for every batch; whole batches at once.

torchvision's transforms (v2) draw once for a batch, from torch's global generator. Here every image is varied by
itself, from the trial's generator, and the arithmetic is that of `torchvision.transforms.v2.functional`: the tests
compare image by image. A loop over the images with those functions takes 4 to 6 times as long for 128 x 3 x 32 x 32,
and as long for 64 x 3 x 224 x 224 (one CPU thread).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from spaces.errors import BadInput
from trainers.data import AUGMENTATIONS

AREA = (0.08, 1.0)
"""Share of an image's area that `resized_crop` keeps, as in torchvision."""
RATIO = (3 / 4, 4 / 3)
"""Its width over its height, relative to the image's. torchvision's is absolute, which is the same for square images;
others would all be stretched, as no image is that is measured."""
ATTEMPTS = 10
"""Boxes that are drawn for an image, of which the first that lies within it is taken."""
COLOR = 0.4
"""By how much of itself `color` changes brightness, contrast and saturation at most."""
AT_ONCE = 2**17
"""Numbers of the images that `color` changes at a time, so that they stay in the processor's cache: 64 x 3 x 224 x 224
at once took three times as long (one CPU thread)."""
GREY = (0.2989, 0.587, 0.114)
"""Shares of red, green and blue in a grey level (ITU-R BT.601)."""


def augment(images: Tensor, policy: str, generator: torch.Generator) -> Tensor:
    """Varies each image by itself; the same generator state gives the same result.

    A policy's steps, in this order:

    - `crop` pads with zeros by an eighth of the side, rounded down (4 at 32, 3 at 28, 1 at 8), and cuts the old size
      out at a random place; or `resized_crop` scales a random part of the image to its whole size (Szegedy et al.,
      CVPR 2015): as large as AREA and RATIO say, drawn as by torchvision's RandomResizedCrop.
    - `flip` mirrors every other image, by chance, left to right.
    - `color` multiplies brightness, contrast and saturation, in this order, by factors between 1 - COLOR and 1 + COLOR;
      grey images have no saturation. Hues stay: by them many classes are told apart.

    `none` returns `images`.

    Args:
        images: (B, C, H, W) float in [0, 1]; not changed.
        policy: one of AUGMENTATIONS.
        generator: of any device; the numbers drawn are moved to the images.

    Raises:
        BadInput: for an unknown policy.
    """
    if policy not in AUGMENTATIONS:
        raise BadInput(f"augmentation must be one of {', '.join(AUGMENTATIONS)}, but got {policy!r}")
    for step in AUGMENTATIONS[policy]:
        images = _STEPS[step](images, generator)
    return images


def _crop(images: Tensor, generator: torch.Generator) -> Tensor:
    B, _, H, W = images.shape
    pad_h, pad_w = H // 8, W // 8
    top = _draw(2 * pad_h + 1, B, generator, images.device)
    left = _draw(2 * pad_w + 1, B, generator, images.device)
    # Every window as a view, (B, C, 2 pad_h + 1, 2 pad_w + 1, H, W); picking one per image is the only copy. Gathering
    # rows and then columns took 2.5 times as long, picking single pixels 5 times (128 x 3 x 32 x 32, one CPU thread).
    windows = F.pad(images, (pad_w, pad_w, pad_h, pad_h)).unfold(2, H, 1).unfold(3, W, 1)
    return windows[torch.arange(B, device=images.device), :, top, left]


def _resized_crop(images: Tensor, generator: torch.Generator) -> Tensor:
    B, _, H, W = images.shape
    top, left, height, width = boxes(B, H, W, generator).to(images.device)
    grid = torch.empty(B, H, W, 2, dtype=images.dtype, device=images.device)
    grid[..., 0] = _places(left, width, W)[:, None, :]
    grid[..., 1] = _places(top, height, H)[:, :, None]
    return F.grid_sample(images, grid, mode="bilinear", align_corners=False)


def _places(start: Tensor, length: Tensor, side: int) -> Tensor:
    """(B, side): where each image's pixels come from on one axis, as `grid_sample` takes it.

    Args:
        start: (B,) pixels from which the part that is scaled begins.
        length: (B,) pixels of it.
        side: of the image.
    """
    middles = (torch.arange(side, device=start.device) + 0.5) * (length[:, None] / side) - 0.5
    inside = torch.minimum(middles.clamp_min(0.0), length[:, None] - 1)  # beyond the part's own pixels is nothing of it
    return (2 * (start[:, None] + inside) + 1) / side - 1


def boxes(count: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """(4, count) float64: top, left, height and width, in whole pixels, of a random part of each image."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        drawn = torch.rand(*shape, generator=generator, dtype=torch.float64, device=generator.device)
        return low + (high - low) * drawn

    area = uniform(*AREA, ATTEMPTS, count)
    ratio = uniform(math.log(RATIO[0]), math.log(RATIO[1]), ATTEMPTS, count).exp()
    h, w = (height * (area / ratio).sqrt()).round(), (width * (area * ratio).sqrt()).round()
    first = ((h <= height) & (w <= width)).int().argmax(0, keepdim=True)
    h, w = (of.gather(0, first)[0].clamp(1, most) for of, most in ((h, height), (w, width)))
    top, left = (uniform(0.0, 1.0, count) * (most - of + 1) for of, most in ((h, height), (w, width)))
    return torch.stack([top.floor(), left.floor(), h, w])


def _flip(images: Tensor, generator: torch.Generator) -> Tensor:
    mirrored = _draw(2, len(images), generator, images.device).bool()
    return torch.where(mirrored[:, None, None, None], images.flip(-1), images)


def _color(images: Tensor, generator: torch.Generator) -> Tensor:
    each = factors(len(images), generator).to(images)[..., None, None, None]
    few = max(1, AT_ONCE // images[0].numel())
    return torch.cat(
        [_recolored(*parts) for parts in zip(torch.split(images, few), torch.split(each, few, dim=1), strict=True)]
    )


def _recolored(images: Tensor, changes: Tensor) -> Tensor:
    brightness, contrast, saturation = changes
    images = (images * brightness).clamp_(0.0, 1.0)
    images = _blend(images, _grey(images).mean((1, 2, 3), keepdim=True), contrast)
    return _blend(images, _grey(images), saturation) if images.shape[1] == 3 else images


def factors(count: int, generator: torch.Generator) -> Tensor:
    """(3, count) float64: what each image's brightness, contrast and saturation are multiplied by."""
    drawn = torch.rand(3, count, generator=generator, dtype=torch.float64, device=generator.device)
    return 1.0 + COLOR * (2.0 * drawn - 1.0)


def _blend(images: Tensor, others: Tensor, share: Tensor) -> Tensor:
    """`share` of the images and the rest of the others; shares above 1 lead away from these."""
    return torch.lerp(others, images, share).clamp_(0.0, 1.0)


def _grey(images: Tensor) -> Tensor:
    """(B, C, H, W) as (B, 1, H, W)."""
    if images.shape[1] != 3:
        return images
    return GREY[0] * images[:, :1] + GREY[1] * images[:, 1:2] + GREY[2] * images[:, 2:]


def _draw(below: int, count: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """`count` integers in 0..below-1, on `device`."""
    return torch.randint(below, (count,), generator=generator, device=generator.device).to(device)


_STEPS = {"crop": _crop, "resized_crop": _resized_crop, "flip": _flip, "color": _color}
