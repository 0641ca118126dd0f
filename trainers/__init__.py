"""Dux, one trial: data, students, teachers, transfer methods, spectral layers, the loop, measurement."""

from trainers.checkpoint import Checkpoint
from trainers.knowledge import Knowledge
from trainers.measure import METRICS, measure
from trainers.store import load_student, save_student
from trainers.task import Task, TaskSpec, TeacherSpec
from trainers.trial import Report, TrialResult, check_pair, run_trial

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
    "measure",
    "run_trial",
    "save_student",
]
