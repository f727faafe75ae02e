"""The baselines of a run: the encoders with which the evaluation compares its own one."""

from pathlib import Path

from sepscene.models.encoders.encoder import save_encoder
from sepscene.orchestration.pipeline.run import Run
from sepscene.orchestration.training.builders import encoder_of
from sepscene.tasks.datasets.readers import Manifest


def baselines_of(run: Run, train: Manifest) -> dict[str, Path]:
    """Name of each baseline -> folder of its bundle; those that the run does not have yet are made.

    They are an encoder that is trained like the run's own, but without separation ("mix-mix"), and an untrained one.
    """
    bundles: dict[str, Path] = {}
    if not run.experiment.evaluation.baselines:
        return bundles
    if run.experiment.views.separates:
        bundles["mix-mix"] = run.encoder(train, {}, pair="mix-mix")
    untrained = run.files.baseline("untrained")
    if not untrained.exists():
        save_encoder(encoder_of(run.experiment, None), untrained, {"title": "untrained", "steps": 0})
    return {**bundles, "untrained": untrained}
