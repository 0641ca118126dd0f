"""How a study stands, by one look at its files."""

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
    """What MLflow will never take."""
    remarks: tuple[str, ...] = ()
    """What all trials so far show to be wrong."""

    def to_json(self, study: str) -> dict[str, object]:
        """What `json.dumps` takes."""
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
