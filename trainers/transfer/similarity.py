"""Similarity-preserving distillation: images with similar activations in the teacher have so in the student.

F. Tung, G. Mori: Similarity-preserving knowledge distillation, ICCV 2019  (arXiv 1907.09682). With A the last map of a
batch as a matrix (B, C H W):

    G~ = A A^T,   G = G~ with each row divided by its 2-norm,   L_SP = 1/B^2 || G_T - G_S ||_F^2

Weight 3,000, as in Tian et al. (RepDistiller, whose code the first author verified). Only the last tap is compared, as
there. No known differences.
"""

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from trainers.families import Features
from trainers.transfer.feature import FeatureMethod, FeatureOptions
from trainers.transfer.method import Paper
from trainers.transfer.signals import Needs, TeacherSignals


class SimilarityOptions(FeatureOptions):
    """Parameters of `similarity`."""

    weight: float = Field(
        default=3000.0, ge=0.0, json_schema_extra={"search": {"low": 30.0, "high": 30000.0, "log": True}}
    )
    """gamma: weight of the mean squared difference of the similarity matrices."""


class Similarity(FeatureMethod):
    """L = CE + gamma 1/B^2 ||G_T - G_S||^2."""

    name = "similarity"
    abbreviation = "SP"
    paper = Paper("Tung, Mori", "Similarity-preserving knowledge distillation", "ICCV 2019", "arXiv:1907.09682")
    Options = SimilarityOptions
    features = Needs(maps=(-1,))
    minimum_batch = 2  # one image is only similar to itself

    def distance(self, student: Features, teacher: TeacherSignals, labels: Tensor) -> Tensor:
        """Between the similarity matrices of the last maps."""
        return (similarities(teacher.maps[0]) - similarities(student.maps[-1])).square().mean()


def similarities(maps: Tensor) -> Tensor:
    """(B, C, H, W) to G (B, B), with unit rows."""
    A = maps.flatten(1)
    return F.normalize(A @ A.T, dim=1)
