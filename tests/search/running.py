"""The tiny study that most tests look at.

Ray is never started in the tests' own process: every study that runs does so in a subprocess of its own.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from processes import Ended

from search.study import Study

TASK = """
task:
  dataset: digits
  augment: none
  train_limit: 200
  teacher: {family: resnet, depth: 8, width: 0.25, epochs: 2, batch_size: 16}
"""
"""200 digits and a teacher that is trained in a second."""

TINY = f"""
name: tiny
{TASK}
space:
  student.width: {{low: 0.125, high: 0.5, step: 0.125}}
  transfer: [none, kd, factor]
  kd.temperature: {{low: 1.0, high: 8.0}}
  factor.rate: [0.5, 1.0]
  factor.paraphraser_steps: 400  # enough for this teacher; 200 are not
  pruning.fraction: {{low: 0.0, high: 0.9}}
  pruning.fine_tune_epochs: 1
  training.epochs: 2
  training.batch_size: 16
search: {{trials: 6, concurrent: 2, sampler: tpe, seed: 0, curve: false}}
"""


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 300.0) -> None:
    """Return once the condition holds; fail where it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:g} s for: {what}"
        time.sleep(0.1)


@dataclass(frozen=True)
class Finished:
    """The tiny study after its end. To be read only: every test shares it."""

    home: Path
    file: Path
    done: Ended
    """What the command printed, and its exit code."""

    @property
    def study(self) -> Study:
        return Study.open("tiny", self.home)


Said = tuple[int, str, str]
"""Exit code, standard output, standard error."""
