"""A stage whose one trainer works in the driver's own process, without Ray Train.

No controller, no worker and no coordinator of data are started: for a small trial, most of its time. (Ray Train has a
local mode, `num_workers=0`, but it refuses to work inside a Tune trial.) What Train's controller does with reports is
done here, and nothing restarts what is killed: who kills the driver ends the stage, and whoever starts it again goes on
from its newest checkpoint. So only the trials of a sweep on one machine are run like this.
"""

import shutil
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train.v2.api.validation_config import ValidationConfig

from sepscene.orchestration.config import Experiment
from sepscene.orchestration.records.metrics_log import MetricsFile, collect_validations
from sepscene.orchestration.records.run_folder import StageFolder
from sepscene.orchestration.runtime.placement import is_local, separates_live


def starts_light(experiment: Experiment) -> bool:
    """Whether a trial's trainer can do without a process of its own: one, on this machine's CPU, nothing separated."""
    asked = experiment.resources
    somewhere = asked.trainer_gpus or asked.trainer_labels or asked.trainer_accelerator
    return list(asked.trainer_counts) == [1] and not somewhere and not separates_live(experiment) and is_local()


class LocalReports:
    """Takes the place of `ray.train.report`: metrics to the run's file at once, encoders to their validation."""

    def __init__(self, folder: StageFolder, validation: ValidationConfig | None) -> None:
        """Args: validation: as `validation_of` gives it; none validates nothing."""
        self.folder = folder
        self.validation = validation
        self.file = MetricsFile(folder.metrics, folder.name)

    def __call__(
        self,
        metrics: dict[str, Any],
        checkpoint: ray.train.Checkpoint | None = None,
        checkpoint_dir_name: str = "",
        **_: Any,
    ) -> None:
        """The arguments of `ray.train.report`."""
        self.file.after_report(None, [metrics], None)
        if checkpoint is None or self.validation is None:
            return
        encoder = Path(checkpoint.path).rename(Path(checkpoint.path).with_name(checkpoint_dir_name))
        threads = torch.get_num_threads()
        self.validation.fn(ray.train.Checkpoint.from_directory(encoder))
        torch.set_num_threads(threads)
        shutil.rmtree(encoder)
        collect_validations(self.folder.metrics, self.folder.name)
