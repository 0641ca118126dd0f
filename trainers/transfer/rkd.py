"""Relational knowledge distillation: distances and angles between images are the same as for the teacher.

W. Park, D. Kim, Y. Lu, M. Cho: Relational knowledge distillation, CVPR 2019  (arXiv 1904.05068). With e_i the pooled
last map of image i, h the Huber loss with threshold 1, and means over all pairs and triples:

    psi_D(i, j) = ||e_i - e_j|| / mu,   mu the mean of the positive distances of the batch,
    psi_A(i, j, k) = cos of the angle at j between e_i and e_k,
    L = w_D mean h(psi_D^S, psi_D^T) + w_A mean h(psi_A^S, psi_A^T)

w_D = 25 and w_A = 50 are the authors'. As in their code, the means include i = j, where both sides are zero.
"""

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from trainers.families import Features
from trainers.transfer.feature import FeatureMethod, FeatureOptions, pooled
from trainers.transfer.method import Paper, Shapes
from trainers.transfer.signals import Needs, TeacherSignals


class RKDOptions(FeatureOptions):
    """Parameters of `rkd`."""

    weight: float = Field(default=1.0, ge=0.0, json_schema_extra={"search": {"low": 0.01, "high": 10.0, "log": True}})
    """Weight of distances and angles together."""
    distance_weight: float = Field(default=25.0, ge=0.0, json_schema_extra={"search": [0.0, 25.0]})
    """w_D."""
    angle_weight: float = Field(default=50.0, ge=0.0, json_schema_extra={"search": [0.0, 50.0]})
    """w_A."""


class RKD(FeatureMethod):
    """L = CE + w (w_D Huber of distances + w_A Huber of angles)."""

    name = "rkd"
    abbreviation = "RKD"
    paper = Paper("Park, Kim, Lu, Cho", "Relational knowledge distillation", "CVPR 2019", "arXiv:1904.05068")
    Options = RKDOptions
    features = Needs(maps=(-1,))
    minimum_batch = 2  # one image has no relations

    def __init__(self, options: RKDOptions, shapes: Shapes) -> None:
        """No adapters: relations do not depend on channels."""
        super().__init__(options, shapes)
        self.distance_weight, self.angle_weight = options.distance_weight, options.angle_weight

    def distance(self, student: Features, teacher: TeacherSignals, labels: Tensor) -> Tensor:
        """Between the relations of the pooled last maps."""
        (ours_d, ours_a), (theirs_d, theirs_a) = (relations(pooled(m)) for m in (student.maps[-1], teacher.maps[0]))
        return self.distance_weight * F.smooth_l1_loss(ours_d, theirs_d) + self.angle_weight * F.smooth_l1_loss(
            ours_a, theirs_a
        )


def relations(e: Tensor) -> tuple[Tensor, Tensor]:
    """e: (B, D); returns distances divided by their mean (B, B) and cosines of angles (B, B, B), the vertex first."""
    difference = e[None, :] - e[:, None]
    distances: Tensor = torch.linalg.vector_norm(difference, dim=2)
    positive = distances > 0
    # if all images are the same, distances are zero, not NaN
    mean = distances.sum() / positive.sum().clamp_min(1)
    rays = F.normalize(difference, dim=2)
    return distances / mean.clamp_min(1e-12), rays @ rays.transpose(1, 2)
