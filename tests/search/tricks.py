"""A transfer method that goes wrong as it is told; beside a study file, `tricks:Tricks` in its space names it."""

import os
import signal
import time
from pathlib import Path

from torch import Tensor

from trainers.families import Features
from trainers.transfer import Method, Needs, Options, Paper, TeacherSignals


class TrickOptions(Options):
    """What goes wrong in the last quarter of the training, and the folder where every try leaves a mark.

    Tricks: none, wrong, no memory, hang, slow (by as many seconds as follow), die, Ctrl-C, a signal; with ` once` at
    the end only the first try goes wrong.
    """

    trick: str = "none"
    folder: str = ""


class Tricks(Method):
    """Tries are counted by the length of a file, which outlives the worker."""

    name = "tricks"
    abbreviation = "T"
    paper = Paper("", "", "", "")
    Options = TrickOptions

    @classmethod
    def needs(cls, options: TrickOptions) -> Needs:
        return Needs()

    def __init__(self, options: TrickOptions, shapes: object) -> None:
        super().__init__(options, shapes)  # type: ignore[arg-type]
        file = Path(options.folder) / options.trick
        with file.open("a") as tries:
            tries.write("x")
        is_over = options.trick.endswith(" once") and len(file.read_text()) > 1
        self.trick = "none" if is_over else options.trick.removesuffix(" once")

    def forward(self, student: Features, teacher: TeacherSignals, labels: Tensor) -> Tensor:
        trick, _, seconds = self.trick.partition(" for ")
        if self.progress >= 0.75 and trick != "none":
            self.trick = "none"
            if trick == "wrong":
                raise KeyError("a mistake")
            if trick == "no memory":
                raise MemoryError("none left")
            if trick == "slow":
                time.sleep(float(seconds))
            elif trick == "Ctrl-C":
                os.kill(os.getpid(), signal.SIGINT)
            else:
                if trick == "die":
                    os.kill(os.getpid(), signal.SIGKILL)
                if trick.startswith("SIG"):
                    signal.raise_signal(getattr(signal, trick))  # in this thread, as a crash's are
                time.sleep(600)
        return student.logits.square().mean()
