"""What Ray Tune calls in a worker process: apart from the driver's side, whose libraries a worker need not import."""

from collections.abc import Mapping
from typing import Any

from search.backends.remote import disk_of  # first: Ray reads settings when it is imported

# isort: split
import numpy as np
import ray
from ray import tune

from search.backends.backend import Job
from search.backends.messages import to_tune
from search.backends.worker import Worker
from spaces import Recipe

_worker = Worker(transient=(ray.exceptions.RayError,))
"""This process's worker, if it is a worker process; Ray uses one for many trials."""


def work(config: Mapping[str, Any], job: Job, arrays: Mapping[str, np.ndarray], driver: str) -> None:
    """Run one trial in a worker process. `driver`: the machine to whose disk its files go."""
    outcome = _worker.carry_out(
        config["trial"],
        config["root"],
        Recipe.from_json(config["recipe"]),
        job,
        arrays,
        disk_of(driver),
        lambda message: tune.report(to_tune(message)),
    )
    tune.report(to_tune(outcome))
