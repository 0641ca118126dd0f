"""The state of a study, read from its files."""

from dataclasses import dataclass
from typing import Literal

from search.standing import Standing
from search.tracking.spool import Refused

State = Literal["running", "interrupted", "finished"]


@dataclass(frozen=True)
class Status:
    """What `dux status` shows."""

    state: State
    standing: Standing
    refused: Refused | None = None
    """Events that MLflow will never accept."""
    remarks: tuple[str, ...] = ()
    """Problems that all trials so far share."""

    def to_json(self, study: str) -> dict[str, object]:
        """The status as a value for `json.dumps`."""
        standing = self.standing
        repeats, front = standing.repeats, standing.front
        return {
            "study": study,
            "state": self.state,
            "trials": standing.trials,
            "done": standing.done,
            "failed": standing.count("failed"),
            "stopped": standing.count("stopped"),
            "repeats": len(repeats),
            "repeated": standing.repeated,
            "repeats_failed": standing.repeats_failed,
            "running": [line.trial for line in standing.of("running")] if self.state == "running" else [],
            "front": [] if front is None else [entry.trial for entry in front.non_dominated],
            "hypervolume": 0.0 if front is None else front.hypervolume,
            "broke_constraints": 0 if front is None else front.broken,
            "refused_by_mlflow": 0 if self.refused is None else self.refused.count,
            "remarks": [*self.remarks],
            **({} if self.refused is None else {"first_refused": self.refused.first}),
        }
