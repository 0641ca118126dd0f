"""A session: what one process does with a study, from lock to front, in the order of docs/architecture.md."""

import os
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NoReturn

from filelock import Timeout

from search.backends.attempts import Attempts
from search.backends.backend import Backend, BackendDidNotStart, BackendDied, BackendName
from search.display import Display, Gauge
from search.errors import AllFailed, Interrupted, LedgerLost, NotStarted
from search.fronts.front import Front
from search.home import make_writable
from search.ledger.lines import Repeat, grouped
from search.ledger.locks import notified_of_locks
from search.ledger.storage import delete, in_ledger, lost_database, why_lost
from search.machine import check_machine
from search.nodes import check_visible, files_of
from search.remarks import remarks
from search.reporting import Reporter
from search.secrets import redacted
from search.signals import catch_ctrl_c, end
from search.standing import Standing
from search.stopping import Halving
from search.tracking.spool import Refused
from spaces import BadInput, Recipe
from trainers.files import write_whole

if TYPE_CHECKING:  # it imports us
    from search.study import Study


def carry_out(
    study: "Study", address: str | None, backend: BackendName, display: Display, verbose: bool, carried_on: bool
) -> Front:
    """Run the study, or what is left of it, as its only process; arguments and errors as for `Study.search`.

    `carried_on`: whether the study file was changed since the study began.
    """
    files = study.files
    study.file.task.check()
    if address is None:
        check_machine(study.file.search.cpus, study.file.search.gpus, starts_ray=backend == "ray")
    elif backend != "ray":
        raise BadInput(f"an address must be that of a Ray cluster, but the backend is {backend!r}; leave one out")
    if os.environ.get("DUX_STORAGE"):
        in_ledger(files.storage, study.name)  # report a database that does not answer before anything is written
    with ExitStack() as stack:
        if address is not None:  # join first, to report an address where nothing answers before anything is written
            from search.backends.cluster import cluster

            joined = cluster(address, cpus=0, gpus=0.0, store_bytes=0, verbose=verbose, on_death=_ends_at_once(study))
            stack.enter_context(joined)
            check_visible(files_of(study.file))
        files.check_name_is_free()  # before anything is written, and again under the lock
        make_writable(files.path, files.home)
        try:
            stack.enter_context(files.lock.acquire(timeout=0.5))  # `at_work` also holds it for a moment
        except Timeout:
            raise BadInput(
                f"only one process may run a study at a time, but another is running {study.name!r}; "
                f"{files.command('status')} shows it"
            ) from None
        files.check_name_is_free()
        new = not files.exists
        before = files.write_down(study.file, carried_on)
        stack.enter_context(catch_ctrl_c())
        try:
            session = Session(study, display, verbose)
            stack.enter_context(notified_of_locks(session.gauge.locked))
            return session.run(address, backend)
        except BadInput:
            _take_back(study, new, before)
            raise
        except Exception as error:
            if (lost := lost_database(error)) is None:
                raise
            # whatever else was going on: nothing can be recorded
            raise LedgerLost(
                f"the ledger's database has stopped working ({redacted(why_lost(lost), files.storage)}); "
                f"{files.command('resume')} continues once it works"
            ) from error
        except KeyboardInterrupt:  # while it waited for the ledger, or a second one
            raise Interrupted(f"stopped; {files.command('resume')} continues") from None


def _take_back(study: "Study", new: bool, before: bytes | None) -> None:
    """Leave a refused study as it was; if it is new and nothing was tried, its name is free for a corrected file."""
    if before is not None:
        write_whole(study.files.path / "study.json", before)
    elif new and not study.lines():
        delete(study.files.storage, study.name)
        shutil.rmtree(study.files.path)


def _ends_at_once(study: "Study") -> Any:
    def end_at_once(why: str) -> NoReturn:
        """End the process like a kill: Ray's calls hang, and would end it later. Finished trials are in the ledger."""
        end(f"stopped, because {why}; {study.files.command('resume')} continues")

    return end_at_once


class Session:
    """One process running a study: it watches the trials, and informs MLflow and the display."""

    def __init__(self, study: "Study", display: Display, verbose: bool) -> None:
        self._study, self._display, self._verbose = study, display, verbose
        self._files = study.files
        self._reporter = Reporter(study.file, study.files, display)
        self._ledger = study.ledger()
        self._standing = Standing(
            study.file.objectives,
            study.file.constraints,
            study.file.trials,
            study.file.search.seeds,
            study.files.trials,
        )
        self.gauge = Gauge(display, self._standing)
        self._remarked: set[str] = set()
        """The remarks made so far."""
        self._stopped_by = Interrupted
        """What the study raises if it ends early."""

    def run(self, address: str | None, backend: BackendName) -> Front:
        """Run the study, or what is left of it."""
        why = ""
        try:
            self._restore_ledger()
            self._tell_the_sampler()
        except BadInput:
            self._reporter.close()
            raise
        again = self._ledger.reconcile(self._result)
        self._read_ledger()
        self._files.drop_checkpoints(self._standing.lines)
        # without the task's record there is no front: running the study writes it again
        complete = self._standing.is_complete and not again and self._files.has_task
        if not (complete and self._reporter.is_finished):
            try:
                if complete:
                    self._reporter.start()  # killed between the last trial and the front
                else:
                    why = self._carry_out(address, backend)
            except (KeyboardInterrupt, SystemExit):
                pass  # Ctrl-C outside Tune's own loop, or SIGTERM while Ray was starting, on which Ray exits
            except BadInput:
                self._reporter.close()
                raise
            finally:
                self._ledger.reconcile(self._result)  # trials still open were cut short; they are queued for next time
            if not self._files.has_task:
                self._reporter.close(1.0)
                raise Interrupted(f"stopped before the first trial; {self._files.command('resume')} continues")
            self._read_ledger()
            complete = self._standing.is_complete
            self._finish(complete)
        elif self._reporter.wait(self.gauge.now) == 0 and not self._files.front_names(self._reporter.run_ids()):
            self._finish(True)  # MLflow now has runs that it did not have when the study ended
        return self._end(complete, why)

    def _restore_ledger(self) -> None:
        """Restore to the ledger the trials that only the study's files have."""
        numbers_given = self._reporter.numbers_given
        run_ids = self._study.run_ids() if numbers_given else {}
        if self._ledger.restore(self._files.trials, max(numbers_given, max(run_ids, default=-1) + 1)):
            self._ledger.note_runs(run_ids)

    def _tell_the_sampler(self) -> None:
        """Give the sampler the recipes to try first, and an earlier study's results."""
        search, proposals = self._study.file.search, self._ledger.proposals
        if search.start_from is not None and not proposals.has_learned:
            earlier = self._study.earlier(search.start_from)
            if not proposals.learn_from(earlier.name, earlier.lines()):
                raise BadInput(
                    f"`search.start_from` must be a study with a finished trial whose recipe is in this space, but "
                    f"{earlier.name!r} has none; leave it out"
                )
        proposals.try_first(search.first)

    def _read_ledger(self) -> None:
        """Bring the standing up to date with the ledger."""
        if self._files.has_task:
            self._standing.measure_by(self._study.axes(), self._study.validation_images())
        for line in self._ledger.lines():
            self._standing.add(line)

    def _carry_out(self, address: str | None, backend: BackendName) -> str:
        """Run the trials; returns why they ended early, if the user should know."""
        from search.preparation import job_of, prepare

        file, search = self._study.file, self._study.file.search
        task, knowledge = prepare(file, self._files, bool(self._standing.lines), self.gauge.now, self._display.say)
        if address is not None:
            check_visible(part.file for part in task.data.splits().values() if part.file is not None)
        self._standing.measure_by(self._study.axes(), self._study.validation_images())
        if file.remark:
            self._display.say(file.remark)
        self.gauge.now("starting the workers")
        job = job_of(file, self._files, task)
        arrays = {**task.arrays(), **{f"knowledge/{name}": array for name, array in knowledge.arrays().items()}}
        carrier = self._backend(address, backend)
        self._reporter.start()
        attempts = Attempts(
            self._ledger,
            self,
            self._halving(),
            retries=search.retries,
            trial_timeout=search.trial_timeout,
        )
        try:
            carrier.run(job, arrays, attempts)
        except (BackendDied, BackendDidNotStart) as error:
            self._stopped_by = NotStarted if isinstance(error, BackendDidNotStart) else Interrupted
            return f", because {error}"
        return ""

    def _backend(self, address: str | None, name: BackendName) -> Backend:
        # imported here, so that `dux front` and bad input need not wait seconds for Ray
        if name == "local":
            from search.backends.local import LocalBackend

            return LocalBackend()
        from search.backends.tuning import RayBackend

        search = self._study.file.search
        return RayBackend(
            address,
            concurrent=search.at_a_time,
            cpus=search.cpus,
            gpus=search.gpus,
            scratch=self._files.path / "ray",
            verbose=self._verbose,
            on_death=_ends_at_once(self._study),
        )

    def _halving(self) -> Halving | None:
        """Early stopping in the state at the end of the last session."""
        search = self._study.file.search
        if search.stopping == "none":
            return None
        halving = Halving(self._study.axes(), search.min_epochs, search.reduction)
        for line in self._standing.lines:
            if line.outcome in ("complete", "stopped"):
                for epoch, measured in line.rungs.items():
                    halving.add(line.trial, epoch, measured)
        return halving

    def ready(self) -> None:
        """The first trial is about to begin."""
        self.gauge.begin()

    def left(self) -> int:
        """How many of the trials asked for have not ended."""
        return self._standing.left

    def repeats(self) -> list[Repeat]:
        """What is left to do once all trials are done."""
        return self._standing.repeats_left

    def trial_started(self, trial: int, recipe: Recipe) -> None:
        """A worker has the trial."""
        self.gauge.started(trial)
        line = self._ledger.line(trial)
        self._standing.add(line)
        self._reporter.began(line)

    def trial_reported(self, trial: int, step: int, steps: int, metrics: Mapping[str, float]) -> None:
        """An epoch is over."""
        self.gauge.reached(trial, step / steps)
        self._reporter.reached(trial, step, metrics)

    def trial_ended(self, trial: int) -> None:
        """The ledger has the trial's outcome: pass it on."""
        self.gauge.ended(trial)
        line, *points = self._ledger.ended(trial)
        for each in (line, *points):
            self._standing.add(each)
        if not self._standing.is_complete:
            said = remarks(self._standing.lines, self._study.file.constraints)
            for about in said.keys() - self._remarked:
                self._display.say(said[about])
            self._remarked |= said.keys()
        self._files.drop_checkpoints([line])
        self._reporter.ended(line, points, self._standing)

    def tick(self) -> None:
        """Some time has passed."""
        self.gauge.tick()

    def _result(self, trial: int) -> dict[str, Any] | None:
        """The result of a trial that had ended when the driver was killed."""
        return self._files.result(trial, self._display.say)

    def _finish(self, complete: bool) -> None:
        """Write the front to the study's folder and to MLflow."""
        from search.fronts.files import write_front

        self.gauge.now("writing the front")
        self._reporter.catch_up(self._standing.lines)
        self._reporter.front(self._standing)
        self._reporter.wait(self.gauge.now)
        run_ids = self._reporter.run_ids()
        self._ledger.note_runs(run_ids)
        front = self._standing.front_of_runs(run_ids)
        paths = write_front(front, self._study.name, self._files.path, self._files.task()["teacher"])
        if complete:
            shutil.rmtree(self._files.checkpoints, ignore_errors=True)
        self._reporter.finish(front, paths, complete)

    def _end(self, complete: bool, why: str) -> Front:
        """Return the front, or raise the reason why there is none; `why`: the study ended early, if not by the user."""
        standing, reporter = self._standing, self._reporter
        unsent = reporter.wait(self.gauge.now)
        reporter.close()
        if refused := Refused.of(self._files.path):
            self._display.say(str(refused))
        left = f"MLflow has not accepted {unsent} event{'s' if unsent > 1 else ''} ({reporter.in_the_way})"
        if not complete:
            repeats = standing.repeats
            again = f" and {standing.repeated} of {len(repeats)} repeats" if repeats else ""
            why += f"; {left}" if unsent else ""
            raise self._stopped_by(
                f"stopped after {standing.done} of {standing.trials} trials{again}{why}; "
                f"{self._files.command('resume')} continues"
            )
        if unsent and reporter.gave_up:
            raise Interrupted(f"stopped waiting; all trials are done, but {left}; {reporter.sends_the_rest}")
        if unsent:
            self._display.say(f"{left}; {reporter.sends_the_rest}")
        front = standing.front_of_runs(reporter.run_ids())
        if not front.entries and not front.broken:
            reasons = grouped(standing.of("failed"))
            ended = "failed" if not standing.count("stopped") else "failed or were stopped early"
            why = "; ".join(f"{len(which)} x {reason}" for reason, which in reasons[:3])
            others = f"; and {len(reasons) - 3} other reasons" if len(reasons) > 3 else ""
            raise AllFailed(f"all {standing.done} trials {ended}: {why}{others}")
        return front
