"""Contrastive representation distillation: the student's view of an image matches the teacher's, and no other image's.

Y. Tian, D. Krishnan, P. Isola: Contrastive representation distillation, ICLR 2020 (arXiv 1910.10699), as in their code
(HobbitLong/RepDistiller). u and v are linear embeddings, normalised to length 1, of the pooled last maps of student and
teacher; banks U and V store one for each of the N training images. For image i with K images drawn from other classes:

    P(a, b) = exp(<a, b> / tau) / Z,   h = P / (P + K/N)          (Z: N times the mean of exp in the first batch)

    L_S = - log h(u, V_i) - sum over drawn k of log(1 - h(u, V_k)),   L_T the same for v and U,
    L = CE + w mean over batch (L_S + L_T),         then  U_i <- normalised (mu U_i + (1 - mu) u), V_i likewise

An embedding size of 128, K = 16,384, tau = 0.07, mu = 0.5 and w = 0.8 are all theirs. Drawing from other classes is
their `exact` mode.

Where we differ: the K are always drawn with replacement (theirs: only if a data set has fewer than K others). The banks
live as long as the method, so fine-tuning after a cut starts with new ones. N is the number of training images of any
data set.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from spaces import BadInput
from trainers.families import Features
from trainers.transfer.feature import FeatureMethod, FeatureOptions, pooled
from trainers.transfer.method import Paper, Shapes
from trainers.transfer.signals import Needs, TeacherSignals

EPSILON = 1e-7


class CRDOptions(FeatureOptions):
    """Parameters of `crd`."""

    weight: float = Field(default=0.8, ge=0.0, json_schema_extra={"search": {"low": 0.01, "high": 3.0, "log": True}})
    """Weight of the contrastive loss."""
    dimensions: int = Field(default=128, ge=1, json_schema_extra={"search": [32, 64, 128]})
    """Size of the embeddings."""
    negatives: int = Field(default=16384, ge=1, json_schema_extra={"search": [1024, 4096, 16384]})
    """K: images of other classes that each image is compared with."""
    temperature_contrast: float = Field(
        default=0.07, gt=0.0, json_schema_extra={"search": {"low": 0.03, "high": 0.3, "log": True}}
    )
    """tau."""
    momentum: float = Field(default=0.5, ge=0.0, lt=1.0, json_schema_extra={"search": [0.0, 0.5, 0.9]})
    """mu: the share of an image's old embedding that the bank keeps."""


class CRD(FeatureMethod):
    """L = CE + w (contrast of the student with the teacher's bank, and of the teacher with the student's)."""

    name = "crd"
    abbreviation = "CRD"
    paper = Paper("Tian, Krishnan, Isola", "Contrastive representation distillation", "ICLR 2020", "arXiv:1910.10699")
    Options = CRDOptions
    features = Needs(maps=(-1,), rows=True)
    bank_student: Tensor
    bank_teacher: Tensor
    constants: Tensor

    @classmethod
    def check(cls, options: Any, shapes: Shapes) -> None:
        """There must be training images of two classes."""
        super().check(options, shapes)
        if shapes.labels is None or bool((shapes.labels == shapes.labels[0]).all()):
            raise BadInput("`crd` must have training images of two classes or more, but has not; use another method")

    def __init__(self, options: CRDOptions, shapes: Shapes) -> None:
        """Embeddings for both sides, and random banks."""
        super().__init__(options, shapes)
        assert shapes.labels is not None
        images, D = len(shapes.labels), options.dimensions
        self.K, self.tau, self.momentum = options.negatives, options.temperature_contrast, options.momentum
        self.embed_student = nn.Linear(shapes.student[-1][0], D)
        self.embed_teacher = nn.Linear(shapes.teacher[-1][0], D)
        bound = math.sqrt(3 / D)
        self.register_buffer("bank_student", torch.empty(images, D).uniform_(-bound, bound))
        self.register_buffer("bank_teacher", torch.empty(images, D).uniform_(-bound, bound))
        self.register_buffer("constants", torch.zeros(2))  # Z of both sides, 0 while unknown
        self.others = OtherClasses(shapes.labels)
        self.generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))

    def get_extra_state(self) -> Tensor:
        """The generator's state, for checkpoints."""
        return self.generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        """Restore what `get_extra_state` returned."""
        self.generator.set_state(state)

    def distance(self, student: Features, teacher: TeacherSignals, labels: Tensor) -> Tensor:
        """L_S + L_T, mean over the batch; the banks are updated with the batch afterwards."""
        assert teacher.rows is not None
        u = F.normalize(self.embed_student(pooled(student.maps[-1])), dim=1)
        v = F.normalize(self.embed_teacher(pooled(teacher.maps[0])), dim=1)
        drawn = self.others.draw(teacher.rows.cpu(), self.K, self.generator).to(u.device)
        rows = torch.cat([teacher.rows[:, None], drawn], dim=1)
        loss = self._contrast(u, self.bank_teacher, rows, 0) + self._contrast(v, self.bank_student, rows, 1)
        if self.training:
            for bank, new in ((self.bank_student, u), (self.bank_teacher, v)):
                mixed = self.momentum * bank[teacher.rows] + (1 - self.momentum) * new.detach()
                bank[teacher.rows] = F.normalize(mixed, dim=1)
        return loss

    def _contrast(self, anchor: Tensor, bank: Tensor, rows: Tensor, side: int) -> Tensor:
        """anchor: (B, D); bank: (N, D); rows: (B, 1 + K), the image's own first; returns ()."""
        # a copy, since the bank changes before the backward pass; all products are cheaper than gathering K vectors
        products = anchor @ bank.clone().T
        scores = (products.gather(1, rows) / self.tau).exp()
        if self.constants[side] == 0:
            self.constants[side] = scores.detach().mean() * len(bank)
        P = scores / self.constants[side].clone()
        noise = self.K / len(bank)
        positive = (P[:, 0] / (P[:, 0] + noise + EPSILON)).log()
        negative = (noise / (P[:, 1:] + noise + EPSILON)).log()
        return -(positive + negative.sum(dim=1)).mean()


class OtherClasses:
    """Draws images of classes other than a given image's."""

    def __init__(self, labels: Tensor) -> None:
        """labels: (N,) int64 of all images."""
        self.labels = labels
        self.by_class = labels.argsort(stable=True)
        self.sizes = labels.bincount()
        self.starts = self.sizes.cumsum(0) - self.sizes

    def draw(self, rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """`count` rows for each of (B,) rows, uniformly from other classes' images, with replacement: (B, count)."""
        own = self.labels[rows][:, None]
        among = len(self.labels) - self.sizes[own]
        place = (torch.rand(len(rows), count, generator=generator, dtype=torch.float64) * among).long()
        # positions in the list of all images by class, skipping the image's own class
        return self.by_class[place + torch.where(place >= self.starts[own], self.sizes[own], 0)]
