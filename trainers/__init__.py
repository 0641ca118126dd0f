"""Dux, one trial: data, students, teachers, transfer methods, spectral layers, the loop, measurement."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainers.checkpoint import Checkpoint
    from trainers.knowledge import Knowledge
    from trainers.metrics import METRICS
    from trainers.planning import check_pair
    from trainers.store import load_student, save_student
    from trainers.task import Task
    from trainers.task_spec import TaskSpec
    from trainers.teacher_spec import TeacherSpec
    from trainers.trainer import Report
    from trainers.trial import TrialResult, run_trial

_FOUND_IN = {
    "METRICS": "metrics",
    "Checkpoint": "checkpoint",
    "Knowledge": "knowledge",
    "Report": "trainer",
    "Task": "task",
    "TaskSpec": "task_spec",
    "TeacherSpec": "teacher_spec",
    "TrialResult": "trial",
    "check_pair": "planning",
    "load_student": "store",
    "run_trial": "trial",
    "save_student": "store",
}

__all__ = [
    "METRICS",
    "Checkpoint",
    "Knowledge",
    "Report",
    "Task",
    "TaskSpec",
    "TeacherSpec",
    "TrialResult",
    "check_pair",
    "load_student",
    "run_trial",
    "save_student",
]


def __getattr__(name: str) -> Any:
    # on demand: most need torch, and checking a study file or showing a study should not wait seconds for it
    if name not in _FOUND_IN:
        raise AttributeError(f"module 'trainers' has no attribute {name!r}")
    return getattr(import_module(f"trainers.{_FOUND_IN[name]}"), name)
