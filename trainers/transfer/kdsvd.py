"""KD-SVD: the principal directions of neighbouring layers are related as in the teacher.

S. H. Lee, D. H. Kim, B. C. Song: Self-supervised knowledge distillation using singular value decomposition, ECCV 2018
(arXiv 1807.06819). With a map of one image as a matrix X (H W, C), its k leading right singular vectors v_1 .. v_k (C)
with singular values s, scaled by s_i / ||s||; layer l against layer l+1, for all pairs of channels c, c':

    r_i(c, c') = exp( - (v_i^l(c) - v_i^(l+1)(c'))^2 / 8 ),   L = sum over l, i, c, c' of (r_i^S - r_i^T)^2

averaged over the batch. Of the student's k + 3 leading vectors, the one with the largest |cos| to the teacher's is
used, with that sign, and scaled by the teacher's s. k = 1, weight 1, as in RepDistiller, which follows the authors'
code.

Where we differ: the vectors are over channels, so student and teacher must have equally many; if they do not, a learned
1x1 convolution maps the student's channels to the teacher's. The teacher's v, whose sign the decomposition leaves open,
is given a positive sum, which is always possible for the leading vector of a map after ReLU; theirs takes whatever sign
comes out. The gradient of a singular vector divides by differences of singular values, and the authors' code has to
catch NaN; ours is the same first derivative without the terms of (almost) equal singular values. Vectors with an
(almost) zero singular value are zero.
"""

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from spaces import BadInput
from trainers.families import Features
from trainers.transfer.feature import FeatureMethod, FeatureOptions, pairs
from trainers.transfer.method import Paper, Shapes
from trainers.transfer.signals import TeacherSignals

SPARE = 3
"""How many more vectors of the student than of the teacher are searched for the best match."""
LEAST_GAP = 1e-4
"""Squared singular values that differ by less than this share of the largest count as equal; below it, as zero."""


class KDSVDOptions(FeatureOptions):
    """Parameters of `kdsvd`."""

    weight: float = Field(default=1.0, ge=0.0, json_schema_extra={"search": {"low": 0.01, "high": 10.0, "log": True}})
    """Weight of the squared differences of the relations."""
    k: int = Field(default=1, ge=1, json_schema_extra={"search": [1, 2, 4]})
    """Singular vectors of each map, at most as many as it has pixels or channels."""


class KDSVD(FeatureMethod):
    """L = CE + w sum (r^S - r^T)^2."""

    name = "kdsvd"
    abbreviation = "KD-SVD"
    paper = Paper(
        "Lee, Kim, Song",
        "Self-supervised knowledge distillation using singular value decomposition",
        "ECCV 2018",
        "arXiv:1807.06819",
    )
    Options = KDSVDOptions

    @classmethod
    def check(cls, options: Any, shapes: Shapes) -> None:
        """There must be neighbouring layers."""
        super().check(options, shapes)
        if len(pairs(shapes.student, shapes.teacher)) < 2:
            raise BadInput(
                "`kdsvd` must have two features or more on both sides, but a network has only one; an mlp "
                "of depth 3 has two"
            )

    def __init__(self, options: KDSVDOptions, shapes: Shapes) -> None:
        """A convolution for each tap with different widths."""
        super().__init__(options, shapes)
        self.k = options.k
        self.adapters = nn.ModuleList(
            nn.Identity() if ours[0] == theirs[0] else nn.Conv2d(ours[0], theirs[0], 1, bias=False)
            for ours, theirs in pairs(shapes.student, shapes.teacher)
        )

    def distance(self, student: Features, teacher: TeacherSignals, labels: Tensor) -> Tensor:
        """The relations of all neighbouring layers, mean over the batch."""
        vectors = []
        for adapter, (ours, theirs) in zip(self.adapters, pairs(student.maps, teacher.maps), strict=True):
            v_T, s = singular(theirs, self.k)
            v_S, _ = singular(adapter(ours), self.k + SPARE)
            v_T = v_T * torch.where(v_T.sum(dim=1, keepdim=True) < 0, -1.0, 1.0)
            s = F.normalize(s, dim=1)[:, None]
            vectors.append((s * aligned(v_S, v_T), s * v_T))
        terms = [
            (relation(a_S, b_S) - relation(a_T, b_T)).square().sum() for (a_S, a_T), (b_S, b_T) in pairwise(vectors)
        ]
        return torch.stack(terms).sum() / len(labels)


def singular(maps: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The leading right singular vectors (B, C, k') and values (B, k') of maps (B, C, H, W) as (H W, C)."""
    X = maps.flatten(2).float()  # no decomposition in half precision
    gram = X @ X.transpose(1, 2)
    k = min(k, X.shape[1], X.shape[2])
    with torch.no_grad():
        squares, vectors = (each.flip(-1) for each in torch.linalg.eigh(gram))
        leading = squares[:, :k]
        gaps = leading[:, None, :] - squares[:, :, None]
        inverse = torch.where(gaps.abs() > LEAST_GAP * squares[:, :1, None].clamp_min(1e-12), 1.0 / gaps, 0.0)
    # v is constant here; its first-order change with the matrix is added as a term whose value is zero
    change = vectors.transpose(1, 2) @ ((gram - gram.detach()) @ vectors[:, :, :k])
    v = vectors[:, :, :k] + vectors @ (inverse * change)
    # without a component in the map, a vector is arbitrary
    there = leading > LEAST_GAP * leading[:, :1].clamp_min(1e-12)
    return torch.where(there[:, None], v, 0.0), torch.where(there, leading, 0.0).sqrt()


def aligned(v_S: Tensor, v_T: Tensor) -> Tensor:
    """For each of the teacher's vectors (B, C, k) the student's nearest in angle, with the matching sign."""
    cosines = (v_S.transpose(1, 2) @ v_T).detach()
    best = cosines.abs().argmax(dim=1, keepdim=True)
    sign = torch.where(cosines.gather(1, best) < 0, -1.0, 1.0)
    return sign * v_S.gather(2, best.expand(-1, v_S.shape[1], -1))


def relation(a: Tensor, b: Tensor) -> Tensor:
    """exp(-(a - b)^2 / 8) of all pairs of channels, (B, C, C', k), of vectors (B, C, k) and (B, C', k)."""
    k = min(a.shape[2], b.shape[2])
    return torch.exp(-(a[:, :, None, :k] - b[:, None, :, :k]).square() / 8)
