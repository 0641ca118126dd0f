"""Correlation congruence: relations between images are the same for the student as for the teacher.

B. Peng, X. Jin, J. Liu, D. Li, Y. Wu, Y. Liu, S. Zhou, Z. Zhang: Correlation congruence for knowledge distillation,
ICCV 2019 (arXiv 1904.01802). The loss is that of the code that the first author gave to Tian et al. (RepDistiller);
e_S, e_T are learned linear embeddings of the pooled last maps, and i, i+1 are neighbours in the shuffled batch:

    delta_i = | e_S(x_i) - e_T(x_i) |,     L_CC = mean over i of  <delta_i, delta_(i+1)>

The embedding size of 128 and the weight of 0.02 are RepDistiller's. The paper itself compares matrices of a Gaussian
kernel over all pairs of a batch; we follow the code, since the published numbers come from it.
"""

from pydantic import Field
from torch import Tensor, nn

from trainers.families import Features
from trainers.transfer.feature import FeatureMethod, FeatureOptions, pooled
from trainers.transfer.method import Paper, Shapes
from trainers.transfer.signals import Needs, TeacherSignals


class CorrelationOptions(FeatureOptions):
    """Parameters of `correlation`."""

    weight: float = Field(default=0.02, ge=0.0, json_schema_extra={"search": {"low": 0.001, "high": 1.0, "log": True}})
    """beta: weight of the correlations of the differences."""
    dimensions: int = Field(default=128, ge=1, json_schema_extra={"search": [32, 64, 128]})
    """Size of the embeddings."""


class Correlation(FeatureMethod):
    """L = CE + beta mean <delta_i, delta_(i+1)>."""

    name = "correlation"
    abbreviation = "CC"
    paper = Paper(
        "Peng, Jin, Liu, Li, Wu, Liu, Zhou, Zhang",
        "Correlation congruence for knowledge distillation",
        "ICCV 2019",
        "arXiv:1904.01802",
    )
    Options = CorrelationOptions
    features = Needs(maps=(-1,))
    minimum_batch = 2  # neighbours

    def __init__(self, options: CorrelationOptions, shapes: Shapes) -> None:
        """One embedding for each side."""
        super().__init__(options, shapes)
        self.embed_student = nn.Linear(shapes.student[-1][0], options.dimensions)
        self.embed_teacher = nn.Linear(shapes.teacher[-1][0], options.dimensions)

    def distance(self, student: Features, teacher: TeacherSignals, labels: Tensor) -> Tensor:
        """Between the embedded, pooled last maps."""
        ours, theirs = self.embed_student(pooled(student.maps[-1])), self.embed_teacher(pooled(teacher.maps[0]))
        delta = (ours - theirs).abs()
        products: Tensor = (delta[:-1] * delta[1:]).sum(dim=1)
        return products.mean()
