"""Probabilistic knowledge transfer: each image's neighbours are as probable for the student as for the teacher.

N. Passalis, A. Tefas: Learning deep representations with probabilistic knowledge transfer, ECCV 2018 (arXiv
1803.10837). With e_i the pooled last map of image i:

    K(i, j) = (cos(e_i, e_j) + 1) / 2,   p(j | i) = K(i, j) / sum over l of K(i, l),
    L_PKT = mean over i, j of  p_T(j | i) log( p_T(j | i) / p_S(j | i) )

with 1e-7 added inside the logarithm, as in the authors' code; weight 30,000 as in Tian et al. (RepDistiller), large
because the mean is over B^2 small terms. The sums include j = i, as theirs do. No known differences.
"""

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from trainers.families import Features
from trainers.transfer.feature import FeatureMethod, FeatureOptions, pooled
from trainers.transfer.method import Paper
from trainers.transfer.signals import Needs, TeacherSignals


class PKTOptions(FeatureOptions):
    """Parameters of `pkt`."""

    weight: float = Field(
        default=30000.0, ge=0.0, json_schema_extra={"search": {"low": 300.0, "high": 300000.0, "log": True}}
    )
    """Weight of the mean over all pairs of a batch."""


class PKT(FeatureMethod):
    """L = CE + w mean p_T log(p_T / p_S)."""

    name = "pkt"
    abbreviation = "PKT"
    paper = Paper(
        "Passalis, Tefas",
        "Learning deep representations with probabilistic knowledge transfer",
        "ECCV 2018",
        "arXiv:1803.10837",
    )
    Options = PKTOptions
    features = Needs(maps=(-1,))
    minimum_batch = 2  # one image has no neighbours

    def distance(self, student: Features, teacher: TeacherSignals, labels: Tensor) -> Tensor:
        """Between the distributions over neighbours."""
        p_S, p_T = neighbours(pooled(student.maps[-1])), neighbours(pooled(teacher.maps[0]))
        return (p_T * ((p_T + 1e-7) / (p_S + 1e-7)).log()).mean()


def neighbours(e: Tensor) -> Tensor:
    """e: (B, D); returns p(j | i), (B, B), rows that sum to 1."""
    e = F.normalize(e.float(), dim=1)  # half precision cannot distinguish B probabilities near 1/B
    K = (e @ e.T + 1.0) / 2.0
    return K / K.sum(dim=1, keepdim=True)
