"""What a study needs before its trials begin: its task with the teacher, the teacher's knowledge, intact files.

This imports torch and the methods, so that showing a study need not wait for them.
"""

import importlib.util
import itertools
import shutil
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from search.backends.backend import Job
from search.folder import StudyFolder
from search.provenance import data_of
from search.signals import raise_if_pressed
from search.study_file import StudyFile, find_modules_in
from spaces import BadInput, Choice, Space
from trainers.checkpoint import is_sound
from trainers.computing import computing
from trainers.files import Damaged, listing, read_whole, sealed, sha256, write_whole
from trainers.knowledge import Knowledge
from trainers.loop import Diverged
from trainers.measure import timings
from trainers.metrics import TIMED
from trainers.store import weights_bytes
from trainers.task import Task
from trainers.transfer import Needs, StageFailed, method_named

Say = Callable[[str], object]


def prepare(file: StudyFile, files: StudyFolder, begun: bool, now: Say, say: Say) -> tuple[Task, Knowledge]:
    """Load the study's task, record it in the study's folder, and prepare what its methods need from the teacher.

    Args:
        file: the study.
        files: its files.
        begun: whether trials have already learned from the task, so that it must not change.
        now: called with the current phase.
        say: called with lines for the user.

    Raises:
        BadInput: the data or the teacher are not those that the trials learned from, the teacher cannot be trained, or
            a method cannot work with it.
    """
    _name_own_code(file, say)
    task = _load(file, files, begun, now)
    for note in (*task.notes, *([task.doubt] if task.doubt else [])):
        say(f"teacher: {note}")
    knowledge = Knowledge(task, files.home / "knowledge", say=say)
    for method in file.space.methods:
        for needs in needs_of(file.space, method):
            now(f"computing what students learn from the teacher by {method}")
            try:
                knowledge.prepare(needs)
            except StageFailed as error:
                knowledge.forget()
                raise BadInput(
                    f"`{method}` must be possible with this teacher, but {error}; the teacher is kept"
                ) from None
    drop_changed_checkpoints(files, say)
    return task, knowledge


def _name_own_code(file: StudyFile, say: Say) -> None:
    """Say which of the user's code will be imported, and from where, before it is."""
    find_modules_in(Path())
    for reference in file.own_code:
        module = reference.partition(":")[0].partition(".")[0]
        if module not in sys.modules:
            spec = importlib.util.find_spec(module)
            where = "" if spec is None else spec.origin or next(iter(spec.submodule_search_locations or ()), "")
            say(f"importing {reference}, which the study names, {f'from {where}' if where else ''}")


def _load(file: StudyFile, files: StudyFolder, begun: bool, now: Say) -> Task:
    """The task, recorded in the study's folder; its teacher is trained if there was none."""
    now("reading the data, looking for the teacher")
    epochs = sum(member.training_epochs for member in file.task.teacher.each)

    def on_epoch(epoch: int, loss: float) -> None:
        raise_if_pressed()
        now(f"training the teacher: epoch {epoch} of {epochs}")

    def check_data(key: str, teacher: Mapping[str, Any]) -> None:
        if begun:
            files.check_data(key, file.task, teacher)

    try:
        task = Task.load(file.task, files.home, on_epoch, check_data)
    except Diverged as error:
        raise BadInput(f"`task.teacher` must be one that can be trained, but {error}") from None
    weights = sha256(weights_bytes(task.teacher))
    if begun:
        _check_teacher(files, weights)
    record = {
        "key": task.key,
        "classes": task.data.classes,
        "class_names": list(task.data.class_names),
        "image_shape": list(task.data.image_shape),
        "images": {"colour": task.data.colour, "preparation": task.data.preparation},
        "notes": list(task.data.notes),
        "teacher": {**task.teacher_measurements, **_teacher_latency(file, files, task)},
        "teacher_sha256": weights,
        "teacher_identity": dict(task.identity),
        "data": data_of(task),
    }
    if file.task.root is not None and not begun:
        write_whole(files.data_file, sealed(listing(Path(file.task.root))))
    write_whole(files.task_file, sealed(record))
    return task


def _check_teacher(files: StudyFolder, weights: str) -> None:
    """Raise BadInput if the study's trials learned from another teacher: both would be on one front."""
    if files.has_task and files.task().get("teacher_sha256") != weights:
        raise BadInput(
            f"the teacher of {files.name!r} must be the one that its trials learned from, but in "
            f"{files.home / 'teachers' / files.task()['key']} is another; put that one back, or start over "
            "under another name"
        )


def _teacher_latency(file: StudyFile, files: StudyFolder, task: Task) -> dict[str, float]:
    """Measured once per study, if it asks for latency: the front is computed from it."""
    if not file.timed:
        return {}
    try:
        teacher = files.task()["teacher"]
        return {name: teacher[name] for name in TIMED}
    except BadInput:
        with computing(file.search.cpus):
            return timings(task.teacher, task.data.image_shape)


def needs_of(space: Space, method: str) -> list[Needs]:
    """What a method of the space needs from the teacher, as far as that can be listed before recipes are drawn.

    Empty if a stage depends on a parameter drawn from an interval: the first trial that needs it then prepares it.
    """
    own = {key: domain for key, domain in space.parameters.items() if key.rpartition(".")[0] == method}
    options = [key.rpartition(".")[2] for key in own]
    combinations = itertools.product(*(domain.extremes() for domain in own.values()))
    method_type = method_named(method)
    parsed = [method_type.parse(dict(zip(options, values, strict=True))) for values in combinations]
    needed = {method_type.needs(option) for option in parsed}
    listed = len(needed) == 1 or all(isinstance(domain, Choice) for domain in own.values())
    return sorted(needed, key=repr) if listed else []


def drop_changed_checkpoints(files: StudyFolder, say: Say) -> None:
    """Delete checkpoints that were changed, with a line each: their trials start over."""
    for file in sorted(files.checkpoints.glob("*.safetensors")):
        with suppress(Damaged):
            if is_sound(read_whole(file)):
                continue
        say(f"{file.name} was changed; the trial of that checkpoint starts over (in {file.parent})")
        shutil.rmtree(file) if file.is_dir() else file.unlink()


def job_of(file: StudyFile, files: StudyFolder, task: Task) -> Job:
    """What the study's workers need besides arrays."""
    return Job(
        task=file.task,
        task_key=task.key,
        class_names=task.data.class_names,
        teacher_measurements=dict(task.teacher_measurements),
        teacher_curve=task.curve,
        trials_folder=str(files.trials),
        checkpoints_folder=str(files.checkpoints),
        checkpoint_seconds=file.search.checkpoint_seconds,
        knowledge_folder=str(files.home / "knowledge"),
        threads=file.search.cpus,
        device="cuda" if file.search.gpus else "cpu",
        curve=file.space.fractions() if file.search.curve else (),
        timed=file.timed,
        import_folders=tuple(sys.path),
    )
