"""The sizes of a combination's processors, from their cards or from the experiment."""

import json
from dataclasses import dataclass

from sepscene.models.custom import CustomCode
from sepscene.models.separators.custom import card_of
from sepscene.models.settings import TDCNppConfig
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.training.flops import separation_flops


@dataclass(frozen=True)
class Processor:
    """The properties of a processor that a plan uses.

    Attributes:
        kind: processors of the same kind have the same cost; only their weights differ.
        sources: number of channels S that it returns.
        flops: operations per clip; None if they are not known for its network.
        network: configuration of its network, if it has no checkpoint yet.
        place: its checkpoint, if it has one: a folder, or custom code.
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
        if card.architecture == "program":
            kind += card.sha256  # its configuration contains almost nothing about its cost
        return Processor(name, kind, int(card.config["sources"]), None, None, place)
    network = TDCNppConfig.model_validate(card.config)
    return Processor(name, network.model_dump_json(), network.sources, separation_flops(network, samples), None, place)
