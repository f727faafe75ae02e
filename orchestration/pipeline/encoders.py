"""The encoders that the evaluation of a run compares: its own encoder and its baselines."""

from pathlib import Path

from sepscene.models.encoders.encoder import save_encoder
from sepscene.orchestration.pipeline.run import Run
from sepscene.orchestration.training.builders import encoder_of


def encoders_of(run: Run) -> dict[str, Path]:
    """Name of each encoder -> folder of its bundle; baselines that the run does not have yet are made.

    The first is the run's own encoder, which is pre-trained before. The baselines are an encoder that is trained like
    it, but without separation ("mix-mix"), and an untrained one.
    """
    bundles: dict[str, Path] = {run.experiment.views.pair: run.files.encoder}
    if not run.experiment.evaluation.baselines:
        return bundles
    if run.experiment.views.separates:
        bundles["mix-mix"] = run.encoder({}, pair="mix-mix")
    untrained = run.files.baseline("untrained")
    if not untrained.exists():
        save_encoder(encoder_of(run.experiment, None), untrained, {"title": "untrained", "steps": 0})
    return {**bundles, "untrained": untrained}
