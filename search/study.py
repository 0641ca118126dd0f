"""The study: many trials that form one front, resumable by its name. Each command is one call here."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Self

from search.backends.backend import BackendName
from search.display import Display, Silent, display_of_reading
from search.errors import LedgerGone
from search.folder import StudyFolder
from search.fronts.front import Front
from search.fronts.pareto import Axis
from search.home import default_home
from search.ledger.ledger import Ledger
from search.ledger.lines import Line
from search.remarks import remarks
from search.standing import Standing
from search.status import State, Status
from search.study_file import StudyFile
from search.tracking.mlflow_models import fetched
from search.tracking.mlflow_runs import ANSWER_S, find_runs
from search.tracking.spool import Refused
from spaces import BadInput


@dataclass(frozen=True)
class Study:
    """One study in a home folder.

    Args:
        file: the study's definition.
        home: where its folder, the teachers and the local databases are.
    """

    file: StudyFile
    home: Path = field(default_factory=default_home)

    @classmethod
    def open(cls, name: str, home: Path | None = None) -> Self:
        """The study with this name.

        Raises:
            BadInput: there is none, or it is damaged.
        """
        home = home or default_home()
        return cls(StudyFolder(name, home).read(), home)

    @staticmethod
    def names(home: Path) -> list[str]:
        """All studies of a home folder, including damaged ones."""
        return StudyFolder.names(home)

    @property
    def name(self) -> str:
        """The study's name."""
        return self.file.name

    @cached_property
    def files(self) -> StudyFolder:
        """Its files on disk."""
        return StudyFolder(self.name, self.home)

    @property
    def folder(self) -> Path:
        """The study's own folder."""
        return self.files.path

    def search(
        self,
        *,
        address: str | None = None,
        backend: BackendName = "ray",
        display: Display | None = None,
        verbose: bool = False,
    ) -> Front:
        """Start the study and run it.

        Args:
            address: of a running Ray cluster; None computes on this machine. If the cluster's head does not answer for
                20 s, Ray's calls hang, and the process ends with a line and code 130; `resume` continues.
            backend: what runs the trials: "ray", in worker processes; or "local", in this process, one after the other
                (search/backends/local.py describes the differences). The numbers are the same.
            display: shows progress.
            verbose: whether to show Ray's and MLflow's messages.

        Raises:
            BadInput: a study with this name exists, or its data do not.
            Interrupted: it was told to stop; `resume` continues.
            AllFailed: no trial succeeded.
            LedgerLost: the connection to the ledger's database was lost.
        """
        if self.files.exists:
            raise BadInput(
                f"a new study must have a new name, but {self.name!r} exists in {self.home}; "
                f"{self.files.command('resume')} continues it, another `name:` starts a new study"
            )
        task = fetched(self.file.task, self.home / "networks", self.files.tracking_uri)
        here = replace(self, file=self.file.model_copy(update={"task": task}))
        if here.file.search.start_from is not None:
            here.earlier(here.file.search.start_from)
        display = display or Silent()
        data = here.file.task.load_data(self.home, display_of_reading(display.say))
        here.file.check_pairs(data)  # report problems before anything is written
        for note in data.notes:
            display.say(f"data: {note}")
        return here._run(address, backend, display, verbose)

    def earlier(self, name: str) -> Self:
        """The study that this one starts from.

        Raises:
            BadInput: there is no study with this name, or it has another task.
        """
        earlier = type(self).open(name, self.home)
        if not earlier.file.task.is_as(self.file.task):
            raise BadInput(f"`search.start_from` must be a study of the same task, but {name!r} has another `task`")
        return earlier

    def resume(
        self,
        trials: int | None = None,
        *,
        address: str | None = None,
        backend: BackendName = "ray",
        display: Display | None = None,
        verbose: bool = False,
    ) -> Front:
        """Continue a study after any interruption; a finished one is left as it is and its front returned.

        Args:
            trials: the new total number of trials; None keeps the old one.
            address: as in `search`.
            backend: as in `search`.
            display: as in `search`.
            verbose: as in `search`.

        Raises:
            BadInput: another process is running it, or more trials are done than `trials`.
            Interrupted: it was told to stop again.
            AllFailed: no trial succeeded.
            LedgerLost: the connection to the ledger's database was lost.
        """
        if trials is None or trials == self.file.search.trials:
            return self._run(address, backend, display or Silent(), verbose)
        with suppress(LedgerGone):
            if trials < (done := sum(line.counts for line in self.lines())):
                raise BadInput(
                    f"`--trials` must be at least the {done} trials already done, but got {trials}; leave it out"
                )
        search = self.file.search.model_copy(update={"trials": trials})
        longer = replace(self, file=self.file.model_copy(update={"search": search}))
        return longer._run(address, backend, display or Silent(), verbose, carried_on=True)

    def front(self, run_ids: Mapping[int, str] | None = None) -> Front:
        """The front of the students finished so far; `run_ids`: trial -> MLflow run, for its students.

        Raises:
            BadInput: the study has no teacher yet.
        """
        standing = self.standing()
        standing.measure_by(self.axes(), self.validation_images())
        return standing.front_of_runs(run_ids or {})

    def standing(self) -> Standing:
        """The study's state according to its ledger; without a front until there is a teacher."""
        file, lines = self.file, self.lines()
        standing = Standing(file.objectives, file.constraints, file.trials, file.search.seeds, self.files.trials, lines)
        if self.files.has_task or any(line.ended for line in lines):
            standing.measure_by(self.axes(), self.validation_images())
        return standing

    def status(self) -> Status:
        """The study's current state."""
        at_work = self.files.at_work  # first: better to call a trial that ends in between running than cut short
        standing = self.standing()
        state: State = "running" if at_work else "finished" if standing.is_complete else "interrupted"
        said = remarks(standing.lines, self.file.constraints)
        return Status(state, standing, Refused.of(self.folder), tuple(said.values()))

    def axes(self) -> list[Axis]:
        """The objectives' axes, from a worthless value to an unbeatable one.

        Raises:
            BadInput: the study has no teacher yet.
        """
        record = self.files.task()
        return [
            Axis.of_metric(name, direction, record["teacher"], record["classes"])
            for name, direction in self.file.objectives.items()
        ]

    def validation_images(self) -> int | None:
        """How many images students are measured on; None if an earlier Dux did not record it.

        Raises:
            BadInput: the study has no teacher yet.
        """
        splits = {split["context"]: split["profile"] for split in self.files.task().get("data", [])}
        images: int | None = splits.get("validation", {}).get("num_rows")
        return images

    def run_ids(self, timeout_s: float = ANSWER_S, say: Callable[[str], object] = lambda line: None) -> dict[int, str]:
        """Trial -> MLflow run, as far as MLflow has them.

        Args:
            timeout_s: how long MLflow may take to answer, if it has to be asked.
            say: called with a line if it does not answer.
        """
        try:
            runs = find_runs(self.folder, self.name, self.files.tracking_uri, timeout_s)
        except ConnectionError as error:
            say(f"{error}; the MLflow runs of students are left out")
            return {}
        return {} if runs is None else runs.run_ids

    def lines(self) -> list[Line]:
        """Every line of the ledger, without writing anything.

        Raises:
            LedgerGone: the study's ledger is gone, or trials are missing from it.
            BadInput: as in `ledger`.
        """
        return self.files.lines()

    def ledger(self) -> Ledger:
        """The study's ledger, for the process that runs it; created if there is none.

        Raises:
            BadInput: the study was started with a ledger in another database, or the database does not answer.
        """
        search = self.file.search
        self.files.check_database()
        return Ledger(
            self.files.storage,
            self.name,
            self.file.objectives,
            search.sampler,
            search.seed,
            self.file.space,
            self.file.constraints,
            search.curve,
            self.files.journal,
        )

    def _run(
        self, address: str | None, backend: BackendName, display: Display, verbose: bool, carried_on: bool = False
    ) -> Front:
        from search.session import carry_out

        return carry_out(self, address, backend, display, verbose, carried_on)
