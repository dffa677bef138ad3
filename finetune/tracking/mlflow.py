"""MLflow: a run where MLFLOW_TRACKING_URI says."""

from __future__ import annotations

import os
from typing import Any

from finetune.recipe.secrets import mask_text
from finetune.tracking.accelerate_tracker import AccelerateTracker
from finetune.tracking.run_names import unique_name

ENDS = {"done": "FINISHED", "stopped": "KILLED"}  # MLflow's status of a run; all else is FAILED


class MLflow(AccelerateTracker):
    """A resumed run continues the same MLflow run, whose history keeps steps that are trained again."""

    name, kind = "mlflow", "MLflowTracker"

    def _make(self, kind: Any) -> Any:
        project, name = self._recipe.tracking.project, unique_name(self._run, self._recipe)
        return kind(experiment_name=project, run_id=self._known_id or None, run_name=name)

    def _has_history(self) -> bool:
        if self._known_id:
            return True
        self._run.update(mlflow={"id": str(self._tracker.tracker.info.run_id)})
        return False

    def _place(self) -> str:
        address = os.environ.get("MLFLOW_TRACKING_URI")
        return f" at {mask_text(address)}" if address else ""

    def _close(self, status: str) -> None:
        """Accelerate's tracker would end every run as finished."""
        import mlflow

        mlflow.end_run(status=ENDS.get(status, "FAILED"))

    @property
    def _known_id(self) -> str:
        """The id that MLflow gave this run; "" if it never had one."""
        return str(self._run.read().get("mlflow", {}).get("id", ""))
