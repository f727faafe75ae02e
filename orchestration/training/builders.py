"""Builds the networks of an experiment: the objective to train, its initial weights, and the resulting encoder."""

import logging
from pathlib import Path

import torch

from sepscene.augment.augmentations.augmentation import build_augmentation, check_augmentation
from sepscene.augment.augmentations.settings import CustomAugmentation
from sepscene.augment.views import patch_samples
from sepscene.models.config import SepsceneError
from sepscene.models.custom import reporting_errors
from sepscene.models.encoders.encoder import Encoder, EncoderConfig, load_encoder, read_encoder_config
from sepscene.models.encoders.network import build_network, check_network, network_class, settings_of, with_defaults
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.records.checkpoints import TrainingState
from sepscene.tasks.losses.joint import JointObjective
from sepscene.tasks.losses.terms import HeadSizes, Term, build_term

logger = logging.getLogger("sepscene")


def build_objective(experiment: Experiment) -> JointObjective:
    """Encoder trunk, heads and losses with initial weights that depend on the seed only, so all workers agree."""
    torch.manual_seed(experiment.seed)
    return JointObjective(build_network(experiment.encoder), _fresh_terms(experiment))


def _fresh_terms(experiment: Experiment) -> dict[str, Term]:
    settings = experiment.objective
    dim = settings_of(experiment.encoder).embedding_dim
    sizes = HeadSizes(dim, settings.head_hidden, settings.projection_dim)
    return {name: build_term(name, term, sizes) for name, term in settings.used_terms.items()}


def check_parts(experiment: Experiment) -> None:
    """Resolve every name of an experiment, and try its custom code, before anything starts.

    Raises:
        SepsceneError: a name is unknown, its code is not trusted or cannot be imported, or parts are incompatible.
    """
    warning = check_network(experiment.encoder, experiment.front_end, experiment.views.patch_seconds)
    if warning and experiment.training.microbatch:
        raise SepsceneError(warning)
    if warning:
        logger.warning(warning)
    with torch.random.fork_rng(devices=[]):
        _try_terms(experiment)
    _try_augmentations(experiment)


def _try_augmentations(experiment: Experiment) -> None:
    """Build the augmentations, check that the experiment has what they need, and try custom ones on random views."""
    encoder = experiment.encoder
    front_end = experiment.front_end
    samples = patch_samples(experiment.views, front_end.sample_rate)
    waveforms = network_class(encoder).reads == "waveform"
    for name, chosen in experiment.used_augmentations.items():
        needs = chosen.needs
        if waveforms and needs.sound == "log-mel":
            off = "views.specaugment to false" if name == "specaugment" else f"augmentations.{name}.probability to 0"
            raise SepsceneError(
                f"the encoder {encoder.use} reads waveforms, and augmentations.{name} works on log-mels: set {off}"
            )
        if needs.mixture and not experiment.views.separates:
            raise SepsceneError(
                f"augmentations.{name} mixes sound into separated channels, but with views.pair="
                f"{experiment.views.pair} both views are the mixture: remove it"
            )
        build_augmentation(name, chosen)
        if isinstance(chosen, CustomAugmentation):
            logmel = front_end.frames(samples), front_end.mel_bands
            check_augmentation(name, chosen, (samples,) if needs.sound == "waveform" else logmel)


def _try_terms(experiment: Experiment) -> None:
    """Build the terms, and compute the loss of two pairs of random representations."""
    pair = torch.randn(2, 2, settings_of(experiment.encoder).embedding_dim)
    for name, term in _fresh_terms(experiment).items():
        full_name = f"objective.terms.{name} ({experiment.objective.used_terms[name].use})"
        with reporting_errors(full_name, "two pairs"):
            loss = JointObjective(torch.nn.Identity(), {name: term}).loss(*pair).parts[name]
        if not loss.isfinite():
            raise SepsceneError(f"{full_name} gives {loss} for two pairs; a loss must be finite")


def check_start(experiment: Experiment) -> None:
    """Check that `training.start_encoder` has the experiment's encoder and front-end, before anything starts.

    The classifier of an imported PANNs file is ignored; all other weights of its trunk are used.

    Raises:
        SepsceneError: when it cannot be read, or does not fit. The message names the fields that differ.
    """
    start = experiment.training.start_encoder
    if start is None:
        return
    config = read_encoder_config(Path(start))
    parts = {
        "encoder": (with_defaults(config.trunk).model_dump(), with_defaults(experiment.encoder).model_dump()),
        "front_end": (config.front_end.model_dump(), experiment.front_end.model_dump()),
    }
    differ = [
        f"{part}.{name} is {ours.get(name)!r}, must be {value!r}"
        for part, (required, ours) in parts.items()
        for name, value in required.items()
        if value != ours.get(name) and name != "classes"
    ]
    if differ:
        raise SepsceneError(
            f"training.start_encoder {start} does not fit this experiment: {'; '.join(differ)}. Set these fields, or "
            "remove training.start_encoder"
        )


def start_from(objective: JointObjective, start: Path) -> None:
    """Load the weights of an encoder bundle into the trunk; the heads keep their initial weights.

    Weights that the trunk does not have, such as a classifier, are ignored. `check_start` has compared the sizes.

    Raises:
        SepsceneError: when the bundle is damaged.
    """
    weights = load_encoder(start).trunk.state_dict()
    names = objective.trunk.state_dict().keys()
    objective.trunk.load_state_dict({name: weight for name, weight in weights.items() if name in names})


def encoder_config(experiment: Experiment) -> EncoderConfig:
    """Configuration of the encoder that an experiment trains; its patches are as long as the views."""
    seconds = experiment.views.patch_seconds
    return EncoderConfig(
        front_end=experiment.front_end, trunk=experiment.encoder, patch_seconds=seconds, shortest_seconds=seconds
    )


def encoder_of(experiment: Experiment, state: TrainingState | None) -> Encoder:
    """The encoder of a checkpoint; without one, the untrained encoder of the experiment's seed."""
    objective = build_objective(experiment)
    if state is not None:
        objective.load_state_dict(state.tensors["model"])
    return Encoder(encoder_config(experiment), objective.trunk).eval()
