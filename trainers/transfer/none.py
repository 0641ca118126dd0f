"""No transfer: the student learns from the labels alone. The baseline for every method."""

from torch import Tensor

from trainers.families import Features
from trainers.transfer.method import Method, Options, Paper, Shapes
from trainers.transfer.signals import Needs, TeacherSignals


class NoTransfer(Method):
    """L = CE(z_S, y)."""

    name = "none"
    abbreviation = "none"
    paper = Paper("", "labels alone", "", "")

    def __init__(self, options: Options, shapes: Shapes) -> None:
        """Nothing to build."""
        super().__init__(options, shapes)

    @classmethod
    def needs(cls, options: Options) -> Needs:
        """Nothing from the teacher."""
        return Needs()

    def forward(self, student: Features, teacher: TeacherSignals, labels: Tensor) -> Tensor:
        """The labels' cross-entropy."""
        return self.label_loss(student.logits, labels)
