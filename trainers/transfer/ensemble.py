"""Ensemble distillation: each student member learns from one teacher member, on images on which these disagree.

G. Nam, J. Yoon, Y. Lee, J. Lee: Diversity matters when learning from ensembles, NeurIPS 2021 (arXiv 2110.14149),
equations 5 to 8:

    L = mean over i of (1 - alpha) CE(z_i(x), y) + alpha tau^2 KL(softmax(f_i(x~) / tau) || softmax(z_i(x~) / tau))

for member z_i of the student and f_i of the teacher. Labels are learned on the original images x, soft labels on the
perturbed images x~ (`perturbation.py`), which are the same for all members; both are means over the batch. As in the
authors' code, the student processes x and x~ one after the other in training mode. Defaults are theirs, except for the
step size: their 1/255 hardly changes small grey images.
"""

from typing import Any

from pydantic import Field
from torch import Tensor

from spaces import BadInput
from trainers.families import Features
from trainers.transfer.kd import soft_label_loss
from trainers.transfer.method import Method, Options, Paper, Shapes
from trainers.transfer.perturbation import Kind, Perturbation
from trainers.transfer.signals import Needs, TeacherSignals


class EnsembleOptions(Options):
    """Parameters of `ensemble`."""

    perturbation: Kind = Field(
        default="conf_ods", json_schema_extra={"search": ["none", "gaussian", "ods", "conf_ods"]}
    )
    """How images are perturbed: not at all, by noise, or so that the members disagree."""
    step_size: float = Field(default=4.0, gt=0.0, json_schema_extra={"search": {"low": 0.5, "high": 16.0, "log": True}})
    """eta: size of the perturbation, as RMS per pixel in 1/255 of the input range."""
    temperature: float = Field(default=4.0, gt=0.0, json_schema_extra={"search": {"low": 1.0, "high": 4.0}})
    """tau: temperature of the outputs, also for the perturbation."""
    weight: float = Field(default=0.9, ge=0.0, le=1.0, json_schema_extra={"search": {"low": 0.5, "high": 1.0}})
    """alpha: the teacher's share of the loss; the rest is the labels'."""


class Ensemble(Method):
    """L = (1 - alpha) CE on x + alpha tau^2 KL(teacher_i || student_i) on x~."""

    name = "ensemble"
    abbreviation = "DM"
    paper = Paper(
        "Nam, Yoon, Lee, Lee", "Diversity matters when learning from ensembles", "NeurIPS 2021", "arXiv:2110.14149"
    )
    Options = EnsembleOptions

    def __init__(self, options: EnsembleOptions, shapes: Shapes) -> None:
        """No adapters: the logits have the same shape on both sides."""
        super().__init__(options, shapes)
        self.temperature, self.weight = options.temperature, options.weight

    @classmethod
    def needs(cls, options: EnsembleOptions) -> Needs:
        """Every member's logits, on perturbed images or on the batch's own."""
        if options.perturbation == "none":
            return Needs(members=True)
        return Needs(
            members=True, perturbation=Perturbation(options.perturbation, options.step_size, options.temperature)
        )

    @classmethod
    def check(cls, options: Any, shapes: Shapes) -> None:
        """The student may have fewer members than the teacher, but not more."""
        super().check(options, shapes)
        if shapes.student_members > shapes.teacher_members:
            raise BadInput(
                "`ensemble` pairs each member of the student with one of the teacher, so `student.members` must be at "
                f"most `task.teacher.members`, {shapes.teacher_members}, but got {shapes.student_members}; train more "
                "teachers or lower it"
            )

    def forward(self, student: Features, teacher: TeacherSignals, labels: Tensor) -> Tensor:
        """The weighted sum of the losses on labels and soft labels."""
        assert teacher.members is not None
        moved = student.logits if teacher.perturbed is None else student.perturbed
        assert moved is not None
        own = len(labels) // teacher.members.shape[1]
        soft = soft_label_loss(moved, teacher.members[:own].flatten(0, 1), self.temperature)
        return (1.0 - self.weight) * self.label_loss(student.logits, labels) + self.weight * soft
