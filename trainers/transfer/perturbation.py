"""Images perturbed so that the members of an ensemble disagree on them.

G. Nam, J. Yoon, Y. Lee, J. Lee: Diversity matters when learning from ensembles, NeurIPS 2021 (arXiv 2110.14149),
section 3. An ensemble agrees on its training images; output-diversified sampling (ODS: Y. Tashiro, Y. Song, S. Ermon,
NeurIPS 2020, arXiv 2003.06878) moves each image along the gradient of a random direction of the outputs:

    g   = grad_x sum_c w_c softmax(f_j(x) / tau)_c,    w ~ U(-1, 1)^C for each image, j one member for each batch
    x~  = clip(x + eta sqrt(D) g / ||g||_2, 0, 1)      D: values in an image, so that eta is the step's RMS per pixel

`conf_ods` multiplies the step by max_c softmax(f_j(x) / tau)_c; `gaussian` draws it from N(0, eta^2) instead. If an
over-confident member's gradient is exactly zero, the image is left unchanged.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Kind = Literal["none", "gaussian", "ods", "conf_ods"]


@dataclass(frozen=True)
class Perturbation:
    """How images are perturbed before teacher and student see them."""

    kind: Literal["gaussian", "ods", "conf_ods"]
    step_size: float
    """eta: RMS of the step per pixel, in 1/255 of the input range."""
    temperature: float
    """tau: temperature of the differentiated softmax."""

    def apply(
        self, images: Tensor, members: int, outputs: Callable[[int, Tensor], Tensor], generator: torch.Generator
    ) -> Tensor:
        """The perturbed images: (B, C, H, W) in [0, 1], before any normalisation.

        Args:
            images: (B, C, H, W) in [0, 1].
            members: number of the teacher's members.
            outputs: maps a member's number and images (B, C, H, W) to logits (B, classes), in eval mode, with gradient.
            generator: on the CPU; the directions, the member and the noise are drawn from it.
        """
        eta = self.step_size / 255

        def drawn(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=generator).to(images.device)

        if self.kind == "gaussian":
            noise = torch.randn(images.shape, generator=generator).to(images.device)
            return _clipped(images + eta * noise)
        chosen = int(torch.randint(members, (), generator=generator))
        with torch.enable_grad():
            x = images.detach().clone().requires_grad_()
            p = (outputs(chosen, x) / self.temperature).softmax(1)
            w = 2.0 * drawn(*p.shape) - 1.0
            (g,) = torch.autograd.grad((w * p).sum(), x)
        step = eta * g[0].numel() ** 0.5 * F.normalize(g.flatten(1), dim=1, eps=torch.finfo(g.dtype).tiny).view_as(g)
        if self.kind == "conf_ods":
            step = step * p.detach().amax(1)[:, None, None, None]
        return _clipped(images + step)


def _clipped(images: Tensor) -> Tensor:
    return images.clamp(0.0, 1.0)
