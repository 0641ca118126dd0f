"""Factor transfer: the student's translator mimics the factors that a paraphraser extracts from the teacher's features.

J. Kim, S. Park, N. Kwak: Paraphrasing complex network: network compression via factor transfer, NeurIPS 2018
(arXiv 1802.04977). With x_T, x_S the outputs of the last residual group after its ReLU, m and c their channels,
f = round(m k):

    stage 1 (no labels):  min over P = decoder o encoder of  mean |P(x_T) - x_T|
    stage 2:              L = CE(z_S, y) + beta L_FT,   L_FT = || F_S/||F_S||_2 - F_T/||F_T||_2 ||_p,
                          F_T = encoder(x_T) detached, F_S = translator(x_S), each sample's factor as one vector

Paraphraser and translator are 3x3 convolutions (transposed in the decoder), stride 1, padding 1, with bias, without
batch norm, LeakyReLU(0.1) after each, including the last. The translator is discarded after training.

What `weight` means: the authors take the mean of |.| over batch *and* the D elements of a factor, with beta = 500; D is
2,048 in their networks. beta is therefore meaningless for a network of another size. `weight` is w = beta / D with the
*sum* over the elements and the mean over the batch: the default 500/2048 is exactly their loss at their D, and equally
strong at any other.

Where we differ from the authors' code: stage 1 is counted in steps, as many as their 6 epochs of 391 batches, because 6
epochs on a small data set leave the paraphraser untrained, which silently hurts; students start only if its
reconstruction loss is below half the mean |x_T|. If heights or widths differ, the larger is average-pooled to the
smaller (the original does not cover this). The paper's loss for stage 1 may be squared; the authors' code, followed
here, uses L1.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from trainers.families import Features
from trainers.transfer.feature import FeatureMethod, FeatureOptions, same_size
from trainers.transfer.method import Paper, Shapes
from trainers.transfer.signals import Needs, Stage, StageFailed, TeacherSignals


def factor_channels(channels: int, rate: float) -> int:
    """f = round(m k), at least 1."""
    return max(1, round(channels * rate))


class ParaphraserModule(nn.Module):
    """Encoder m -> m -> f -> f and decoder f -> f -> m -> m; the layers have the authors' names."""

    def __init__(self, m: int, f: int) -> None:
        """m: channels of the teacher's map; f: channels of its factor."""
        super().__init__()
        self.conv0, self.conv1, self.conv2 = (nn.Conv2d(i, o, 3, 1, 1) for i, o in ((m, m), (m, f), (f, f)))
        self.deconv0, self.deconv1, self.deconv2 = (
            nn.ConvTranspose2d(i, o, 3, 1, 1) for i, o in ((f, f), (f, m), (m, m))
        )

    def encode(self, maps: Tensor) -> Tensor:
        """maps: (B, m, H, W); returns the factor (B, f, H, W)."""
        return _leaky(maps, self.conv0, self.conv1, self.conv2)

    def forward(self, maps: Tensor) -> Tensor:
        """maps: (B, m, H, W); returns their reconstruction, the same shape."""
        return _leaky(self.encode(maps), self.deconv0, self.deconv1, self.deconv2)


class Translator(nn.Module):
    """c -> c -> f -> f on the student's side."""

    def __init__(self, c: int, f: int) -> None:
        """c: channels of the student's map; f: channels of the factor."""
        super().__init__()
        self.conv0, self.conv1, self.conv2 = (nn.Conv2d(i, o, 3, 1, 1) for i, o in ((c, c), (c, f), (f, f)))

    def forward(self, maps: Tensor) -> Tensor:
        """maps: (B, c, H, W); returns the student's factor (B, f, H, W)."""
        return _leaky(maps, self.conv0, self.conv1, self.conv2)


def _leaky(x: Tensor, *layers: nn.Module) -> Tensor:
    for layer in layers:
        x = F.leaky_relu(layer(x), 0.1)
    return x


@dataclass(frozen=True)
class Paraphraser(Stage):
    """Stage 1: trained once per teacher and factor rate."""

    rate: float
    """k."""
    steps: int
    """Batches."""

    def build(self, shape: tuple[int, int, int]) -> ParaphraserModule:
        """An untrained paraphraser for maps (m, H, W)."""
        return ParaphraserModule(shape[0], factor_channels(shape[0], self.rate))

    def train(self, module: nn.Module, maps: Callable[[], Iterator[Tensor]]) -> dict[str, float]:
        """SGD 0.1, momentum 0.9, weight decay 5e-4, as in the authors' code."""
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
        done = 0
        while done < self.steps:
            for batch in islice(maps(), self.steps - done):
                optimizer.zero_grad(set_to_none=True)
                F.l1_loss(module(batch), batch).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                done += 1
        with torch.no_grad():
            sums = torch.zeros(3, dtype=torch.float64)
            for batch in maps():
                sums += torch.tensor(
                    [(module(batch) - batch).abs().sum(), batch.abs().sum(), batch.numel()], dtype=torch.float64
                )
        ratio = float(sums[0] / sums[1].clamp_min(1e-12))
        if not ratio < 0.5:
            raise StageFailed(
                f"the paraphraser's reconstruction L1 must be below half of mean |x|, but is {ratio:.2f} of it after "
                f"{self.steps} steps; raise factor.paraphraser_steps or factor.rate"
            )
        return {"reconstruction_l1": float(sums[0] / sums[2]), "reconstruction_ratio": ratio}

    def apply(self, module: nn.Module, maps: Tensor) -> Tensor:
        """maps: (B, m, H, W); returns the teacher's factors (B, f, H, W)."""
        assert isinstance(module, ParaphraserModule)
        return module.encode(maps)


class FactorOptions(FeatureOptions):
    """Parameters of `factor`."""

    rate: float = Field(default=0.5, gt=0.0, le=2.0, json_schema_extra={"search": [0.25, 0.5, 0.75, 1.0]})
    """k: channels of the factor over channels of the teacher's map."""
    weight: float = Field(
        default=500 / 2048, ge=0.0, json_schema_extra={"search": {"low": 0.03, "high": 1.0, "log": True}}
    )
    """w = beta / D, see the module's docstring."""
    p: Literal[1, 2] = 1
    """Which norm of the difference."""
    paraphraser_steps: int = Field(default=6 * 391, ge=1)
    """Batches of 128 in stage 1."""


class Factor(FeatureMethod):
    """L = CE + w || F_S/||F_S|| - F_T/||F_T|| ||_p."""

    name = "factor"
    abbreviation = "FT"
    paper = Paper(
        "Kim, Park, Kwak",
        "Paraphrasing complex network: network compression via factor transfer",
        "NeurIPS 2018",
        "arXiv:1802.04977",
    )
    Options = FactorOptions
    features = Needs()

    def __init__(self, options: FactorOptions, shapes: Shapes) -> None:
        """The translator, from the student's last map to the factor's channels."""
        super().__init__(options, shapes)
        self.p = options.p
        self.translator = Translator(shapes.student[-1][0], factor_channels(shapes.teacher[-1][0], options.rate))

    @classmethod
    def needs(cls, options: FactorOptions) -> Needs:
        """The teacher's factors."""
        return replace(super().needs(options), stage=Paraphraser(options.rate, options.paraphraser_steps))

    def distance(self, student: Features, teacher: TeacherSignals, labels: Tensor) -> Tensor:
        """Between the normalised factors."""
        assert teacher.staged is not None
        ours, theirs = same_size(self.translator(student.maps[-1]), teacher.staged)
        return factor_distance(ours, theirs, self.p)


def factor_distance(ours: Tensor, theirs: Tensor, p: int) -> Tensor:
    """Mean over the batch of the p-norm between normalised factors (B, f, H, W), ()."""
    # F.normalize bounds the norm from below: an all-zero factor stays zero rather than becoming NaN
    difference = F.normalize(ours.flatten(1), dim=1) - F.normalize(theirs.flatten(1), dim=1)
    distances: Tensor = torch.linalg.vector_norm(difference, p, dim=1)
    return distances.mean()
