"""The networks of an experiment: what is trained, what it starts from, and the encoder that it leaves."""

from pathlib import Path

import torch

from sepscene.models.config import SepsceneError
from sepscene.models.encoders.cnn14 import Cnn14
from sepscene.models.encoders.encoder import Encoder, load_encoder, read_encoder_config
from sepscene.models.encoders.frontend import LogMel
from sepscene.models.encoders.heads import CoincidenceHead, SimilarityHead
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.records.checkpoints import TrainingState
from sepscene.tasks.losses.joint import JointObjective


def build_objective(experiment: Experiment) -> JointObjective:
    """Encoder trunk, heads and losses with fresh weights, the same on every worker for the same seed."""
    torch.manual_seed(experiment.seed)
    settings, dim = experiment.objective, experiment.encoder.embedding_dim
    return JointObjective(
        Cnn14(experiment.encoder),
        SimilarityHead(dim, settings.head_hidden, settings.projection_dim),
        CoincidenceHead(dim, settings.head_hidden) if settings.alpha > 0 else None,
        temperature=settings.temperature,
        learn_temperature=settings.learn_temperature,
        similarity_loss=settings.similarity,
        margin=settings.triplet_margin,
    )


def check_start(experiment: Experiment) -> None:
    """Refuse a `training.start_encoder` that is not of the experiment's sizes and front-end, before anything starts.

    The classifier of an imported PANNs file may stay behind; all other weights of its trunk are taken over.

    Raises:
        SepsceneError: when it cannot be read, or names the fields that differ and what they must be.
    """
    start = experiment.training.start_encoder
    if start is None:
        return
    theirs = read_encoder_config(Path(start))
    wanted = {"encoder": experiment.encoder, "front_end": experiment.front_end}
    differ = [
        f"{part}.{name} is {ours!r}, must be {value!r}"
        for part, its in (("encoder", theirs.trunk), ("front_end", theirs.front_end))
        for name, value in its.model_dump().items()
        if value != (ours := getattr(wanted[part], name)) and name != "classes"
    ]
    if differ:
        raise SepsceneError(
            f"training.start_encoder {start} does not fit this experiment: {'; '.join(differ)}. Set these fields, or "
            "leave training.start_encoder out"
        )


def start_from(objective: JointObjective, start: Path) -> None:
    """Give the trunk the weights of an encoder bundle; the heads keep their fresh ones.

    Raises:
        SepsceneError: when the bundle is damaged; `check_start` has compared the sizes.
    """
    weights = load_encoder(start).trunk.state_dict()
    objective.trunk.load_state_dict({name: w for name, w in weights.items() if not name.startswith("tags.")})


def encoder_of(experiment: Experiment, state: TrainingState | None) -> Encoder:
    """The encoder of a checkpoint, or the untrained one of the experiment's seed."""
    objective = build_objective(experiment)
    if state is not None:
        objective.load_state_dict(state.tensors["model"])
    trunk = objective.trunk
    if not isinstance(trunk, Cnn14):
        raise SepsceneError("this checkpoint does not hold a CNN14")
    return Encoder(LogMel(experiment.front_end), trunk, experiment.views.patch_seconds).eval()
