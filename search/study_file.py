"""The study file: what a study is, read from YAML and checked whole before anything starts."""

import inspect
import itertools
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, InstanceOf, PlainSerializer, ValidationError

from search.constraints import Limits
from search.ledger.samplers import make_sampler
from search.study_checks import check_constraints, check_objectives, check_sizes, check_space
from search.study_yaml import read_yaml
from spaces import BadInput, Recipe, Scalar, Space, Student
from spaces.errors import Problems, brief, one_line, shown
from spaces.own import own_object
from spaces.recipe import Part, in_one_level
from trainers.depths import titled
from trainers.machine import usable_cpus
from trainers.metrics import TIMED, Direction
from trainers.task_spec import TaskSpec

if TYPE_CHECKING:
    from trainers.data.dataset import Dataset

MOST_FIRST = 1_000


def is_name(name: str) -> bool:
    """Whether a study may have the name. Studies are folders, so that none may lead elsewhere."""
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", name) is not None


def as_name(name: str) -> str:
    """`name`, if a study may have it; else ValueError."""
    if not is_name(name):
        raise ValueError("must be 1 to 63 letters, digits, `.`, `_` or `-`, the first a letter or a digit")
    return name


def check_name(name: str) -> None:
    """Raise BadInput unless a study may have the name."""
    try:
        as_name(name)
    except ValueError as error:
        raise BadInput(f"a study's name {error}, but got {shown(name)}") from None


def _as_recipe(raw: object) -> object:
    return in_one_level(raw, "search.first") if isinstance(raw, Mapping) else raw


class SearchSpec(Part):
    """How the space is searched."""

    trials: int = Field(default=24, ge=1, le=1_000_000)
    """Trials that end, well or badly; interrupted ones are done again and do not count."""
    concurrent: int | None = Field(default=None, ge=1, le=10_000)
    """Trials at a time; left out, as many as the CPUs allow that this process may use."""
    sampler: str = "tpe"
    """A name in `search.ledger.samplers.SAMPLERS`, or `package.module:Class` of an Optuna sampler."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    seeds: int = Field(default=1, ge=1, le=100)
    """Above 1, the trials that the front's students come from are repeated at the end with other seeds, so that each
    has been trained with so many."""
    curve: bool = True
    """Whether every trained student is also measured at the other fractions of `pruning.fraction`, not fine-tuned, and
    between the rounds of an iterative cut."""
    first: list[Annotated[dict[str, Scalar], BeforeValidator(_as_recipe)]] = Field(
        default_factory=list, max_length=MOST_FIRST
    )
    """Recipes to try first, each by some of its parameters; the sampler draws the others."""
    start_from: Annotated[str, AfterValidator(as_name)] | None = None
    """An earlier study on the same task, whose finished trials the sampler learns from."""
    retries: int = Field(default=1, ge=0, le=100)
    """How often a trial is tried again whose worker process died or took too long, or that ran out of memory."""
    trial_timeout: float | None = Field(default=None, gt=0.0, le=1e9)
    """Seconds that a trial may take."""
    checkpoint_seconds: float = Field(default=30.0, ge=0.0, le=1e9)
    """The least time between two checkpoints of a trial; 0 writes one after every epoch."""
    stopping: Literal["none", "pareto"] = "none"
    """Whether trials that others beat are stopped early, and by what (`search.stopping`)."""
    min_epochs: int = Field(default=3, ge=1, le=100_000)
    """Of early stopping: after how many epochs trials are first compared."""
    reduction: int = Field(default=3, ge=2, le=1_000)
    """Of early stopping: about one trial in so many goes on, to be compared again after so many times the epochs."""
    cpus: int = Field(default=1, ge=1, le=10_000)
    """CPUs a trial has; it computes with as many threads."""
    gpus: float = Field(default=0.0, ge=0.0, le=10_000.0)
    """GPUs a trial has; a fraction shares one between trials."""

    @property
    def at_a_time(self) -> int:
        """How many trials run at a time on this machine."""
        return self.concurrent or max(1, usable_cpus() // self.cpus)


def _as_space(raw: object) -> object:
    if isinstance(raw, Space):
        return raw
    if not isinstance(raw, Mapping):
        raise BadInput(f"`space` must be a mapping of parameters, or `package.module:function`, but got {shown(raw)}")
    return Space.from_mapping(raw)


class StudyFile(Part):
    """A study as its file writes it. Making one checks everything that can be checked without reading data.

    Raises:
        BadInput: through `read` and `from_mapping`; one line with the rule, the value and the way out.
    """

    name: Annotated[str, AfterValidator(as_name)]
    task: TaskSpec = TaskSpec()
    space: Annotated[InstanceOf[Space], BeforeValidator(_as_space), PlainSerializer(lambda space: space.to_mapping())]
    objectives: dict[str, Direction] = Field(default={"accuracy": "max", "parameters": "min"}, min_length=1)
    constraints: dict[str, Limits] = Field(default_factory=dict)
    """Measurement -> its limits; students that overstep one are kept, but not on the front."""
    search: SearchSpec = SearchSpec()

    @property
    def timed(self) -> bool:
        """Whether something that is timed, such as latency, is an objective or has a constraint."""
        return not TIMED.isdisjoint({*self.objectives, *self.constraints})

    @classmethod
    def read(cls, path: Path) -> Self:
        """The study that a YAML file describes; relative paths of `task` are taken from the file's folder.

        Args:
            path: of the file.

        Raises:
            BadInput: the file cannot be read, is not YAML, or breaks a rule.
        """
        raw = read_yaml(path)
        if raw is None:
            raise BadInput(f"{path} must describe a study, but is empty; `dux init` writes an example")
        return cls.from_mapping(raw, path.parent)

    @classmethod
    def from_mapping(cls, raw: object, folder: Path | None = None) -> Self:
        """The study that a mapping of the study file's form describes.

        Args:
            raw: what the YAML file holds.
            folder: where relative paths of `task` start, and where the modules of a `space: module:function`, of a
                method `module:Class` and of a family `module:function` may lie.
        """
        if not isinstance(raw, Mapping):
            raise BadInput(f"a study file must be a mapping with `name`, `task` and `space`, but got {shown(raw)}")
        for key in raw:
            if not isinstance(key, str):
                raise BadInput(f"keys of a study file must be texts, but got {shown(key)}")
        raw = {key: value for key, value in raw.items() if not key.startswith("x-")}  # for anchors
        if _names_a_module(raw):
            find_modules_in(folder or Path())
        if isinstance(raw.get("space"), str):
            raw["space"] = _space_from_function(raw["space"])
        study = cls._made(raw)
        study = study.model_copy(update={"task": study.task.beside(folder or Path())})
        problems = Problems()
        with problems.noted():
            study.task.check()
        with problems.noted():
            check_space(study.space)
        with problems.noted():
            make_sampler(study.search.sampler, study.search.seed)
        for place, recipe in enumerate(study.search.first):
            with problems.noted():
                try:
                    study.space.partial(recipe)
                except BadInput as error:
                    raise BadInput(f"`search.first.{place}`: {error}") from None
        problems.check()
        return study

    @classmethod
    def _made(cls, raw: Mapping[str, Any]) -> Self:
        """The study of a mapping, checked as far as that needs neither its data nor code of the user's."""
        try:
            # the space first: inside of pydantic's check its errors would be wrapped into others
            study = cls.model_validate({**raw, "space": _as_space(raw["space"])} if "space" in raw else raw)
        except ValidationError as error:
            raise BadInput(one_line(error, cls)) from None
        check_objectives(study.objectives)
        check_constraints(study.constraints, study.space)
        check_sizes(study.space, looks_along_curve=study.search.curve, is_grid=study.search.sampler == "grid")
        return study

    @property
    def remark(self) -> str:
        """What the user should know of a study that is sound, in a line; empty where that is nothing."""
        try:
            recipes = self.space.size
        except BadInput:  # without number
            return ""
        if recipes >= self.trials:
            return ""
        has = "one recipe" if recipes == 1 else f"{recipes} recipes"
        return (
            f"{self.trials} trials are asked for, but `space` has {has}: "
            f"trials of the same recipe are the same student; set `search.trials: {recipes}`, list more values in "
            "`space`, or draw `seed`, too"
        )

    @property
    def own_code(self) -> list[str]:
        """What of the user's is imported to carry the study out, as `package.module:name`."""
        families = {str(family) for family in self.space.extremes_of("student.family")}
        named = {*self.space.methods, self.search.sampler, self.task.dataset, *families}
        return sorted({name for name in named if ":" in name} | {*self.task.teacher.own_code})

    @property
    def trials(self) -> int:
        """How many trials there will be: a grid may have fewer than are asked for."""
        asked, space = self.search.trials, self.space
        return min(asked, space.size) if self.search.sampler == "grid" else asked

    def check_pairs(self, data: "Dataset") -> None:
        """Raise BadInput where a method of the space cannot work with one of its students and the teacher.

        Args:
            data: the task's; the features' sizes depend on its images.
        """
        # here: they need torch, and a mistake in the file is told before that is there
        from trainers.planning import TeacherShape, check_layers, check_pair, check_size

        teacher, problems = TeacherShape.planned(self.task, data), Problems()
        if "teacher" in self.space.extremes_of("student.start"):
            with problems.noted():
                check_layers(self.task, data)
        for student in (*self.students(min), *self.students(max)):
            if student.start != "teacher":
                with problems.noted():
                    check_size(student, data)
        problems.check()
        # what a method asks of the number of features and of their sizes, it asks of the least or of the most
        for student, method in itertools.product(self.students(min), self.space.methods):
            with problems.noted():
                try:
                    check_pair(Recipe(student=student, transfer=method), teacher, data)
                except BadInput as error:
                    raise BadInput(f"space: with a student that is {titled(student)}: {error}") from None
        problems.check()

    def students(self, pick: Callable[[Sequence[float]], float]) -> Iterator[Student]:
        """Students of the space at the extremes of what their features depend on.

        Args:
            pick: their width, of the extreme ones: `min` or `max`.
        """
        width = float(pick(self.space.extremes_of("student.width")))
        families, depths, counts = (
            self.space.extremes_of(f"student.{name}") for name in ("family", "depth", "members")
        )
        least_and_most = [sorted({min(values), max(values)}) for values in (depths, counts)]
        for start in self.space.extremes_of("student.start"):
            if start == "teacher":
                yield Student(start="teacher", width=width)
                continue
            for family, depth, members in itertools.product(families, *least_and_most):
                yield Student(family=str(family), depth=depth, width=width, members=members)

    def to_json(self) -> str:
        """What `from_json` reads back as an equal study; the space of a Python function is written out."""
        return self.model_dump_json(indent=1)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The study that `to_json` wrote; not checked against this machine's files again, and nothing is imported.

        Raises:
            BadInput: it is no such text.
        """
        try:
            raw = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BadInput(f"it must be JSON, but {brief(error)}") from None
        if not isinstance(raw, Mapping):
            raise BadInput(f"it must be a mapping, but is {shown(raw)}")
        if isinstance(raw.get("space"), str):
            raise BadInput(f"its `space` must be written out, but is {shown(raw['space'])}, which is not imported")
        return cls._made(raw)


def _names_a_module(raw: Mapping[Any, Any]) -> bool:
    """Whether the space, the sampler, or a method or family that is drawn may be `package.module:name`."""
    space, search, task = raw.get("space"), raw.get("search"), raw.get("task")
    named: list[object] = [space if isinstance(space, str) else None]
    if isinstance(space, Mapping):
        student = space.get("student")
        nested = student.get("family") if isinstance(student, Mapping) else None
        for drawn in (space.get("transfer"), space.get("student.family"), nested):
            named += drawn if isinstance(drawn, list) else [drawn]
    teacher = task.get("teacher") if isinstance(task, Mapping) else None
    members = teacher.get("members") if isinstance(teacher, Mapping) else None
    teachers = [teacher, *(members if isinstance(members, list) else ())]
    named += [part.get(key) for part in teachers if isinstance(part, Mapping) for key in ("family", "network")]
    named += [part.get(key) for part, key in ((search, "sampler"), (task, "dataset")) if isinstance(part, Mapping)]
    return any(":" in str(name) for name in named)


def find_modules_in(folder: Path) -> None:
    """Let modules of `folder` and of the current folder be imported, where no other has their names."""
    for place in (str(folder.resolve()), str(Path.cwd())):
        if place not in sys.path:
            sys.path.append(place)


def _space_from_function(reference: str) -> Space:
    if ":" not in reference:
        raise BadInput(f"`space` must be a mapping or `package.module:function`, but got {shown(reference)}")
    function = own_object(reference, "space")
    # not a builtin, which may be anything of Python's under a module of the user's, nor a command of ours
    if not inspect.isfunction(function) or function.__module__.partition(".")[0] in _NO_SPACES:
        raise BadInput(
            f"`space: {reference}` must be a function of yours that is written in Python, but is {shown(function)}"
        )
    try:
        space = function()
    except (BadInput, KeyboardInterrupt):
        raise
    except BaseException as error:  # it may be a script that exits
        raise BadInput(
            f"`space: {reference}` must be a function that runs, but {brief(error)}; try it in Python"
        ) from None
    if isinstance(space, Mapping):
        return Space.from_mapping(space)
    if not isinstance(space, Space):
        raise BadInput(f"`space: {reference}` must return a spaces.Space or a mapping, but got {shown(space)}")
    return space


_NO_SPACES = {*sys.stdlib_module_names, "dux", "search", "spaces", "trainers"}
