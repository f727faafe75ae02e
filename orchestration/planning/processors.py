"""A combination's processors before anything is measured: their sizes, from a card or from the experiment."""

import json
from dataclasses import dataclass

from sepscene.models.custom import CustomCode
from sepscene.models.separators.custom import card_of
from sepscene.models.settings import TDCNppConfig
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.training.flops import separation_flops


@dataclass(frozen=True)
class Processor:
    """One processor of the ladder, as a plan counts it.

    Attributes:
        kind: processors of the same kind cost the same, whatever their weights.
        sources: channels S that it gives.
        flops: operations for one clip; None for a network that nobody has counted.
        network: what it is built from where it has no checkpoint yet.
        place: its checkpoint, where there is one: a folder, or code of the user's own.
    """

    name: str
    kind: str
    sources: int
    flops: int | None
    network: TDCNppConfig | None
    place: str | CustomCode | None


def processors_of(experiment: Experiment) -> tuple[Processor, ...]:
    """The processors of `views.combination`, in its order.

    Raises:
        SepsceneError: when the card of a checkpoint cannot be read.
    """
    return tuple(_processor(name, experiment) for name in experiment.views.combination)


def _processor(name: str, experiment: Experiment) -> Processor:
    settings = experiment.separator
    samples = experiment.audio.samples
    place = settings.checkpoints.get(name)
    if place is None:
        network = settings.beside.get(name, settings.network)
        flops = separation_flops(network, samples)
        return Processor(name, network.model_dump_json(), network.sources, flops, network, None)
    card = card_of(place)
    kind = json.dumps([card.architecture, card.config], sort_keys=True)
    if card.architecture != "tdcnpp":
        # The configuration of an imported program says next to nothing of its cost.
        kind += card.sha256 if card.architecture == "program" else ""
        return Processor(name, kind, int(card.config["sources"]), None, None, place)
    network = TDCNppConfig.model_validate(card.config)
    return Processor(name, network.model_dump_json(), network.sources, separation_flops(network, samples), None, place)
