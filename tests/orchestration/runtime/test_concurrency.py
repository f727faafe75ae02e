"""How many trials fit at the same time: each is counted with its most demanding phase."""

import pytest

from sepscene.clusters.pools import Node
from sepscene.models.config import SepsceneError
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.presets import SCALES, Scale, named_experiment
from sepscene.orchestration.runtime.concurrency import fitting_trials, gpus_of, most_demanding, trial_phases


def filled(scale: Scale) -> Experiment:
    """A trial whose clips have been separated before, for all trials."""
    return SCALES[scale]().changed({"store.mode": "prefill"})


def test_no_phase_with_a_filled_store_holds_trainers_and_separation_actors() -> None:
    phases = [{demand.role for demand in phase} for phase in trial_phases(filled("tiny"))]
    assert len(phases) == 3
    assert not any({"trainer", "separation actor"} <= roles for roles in phases)
    assert {"trainer", "separation actor"} <= {demand.role for demand in trial_phases(SCALES["tiny"]())[0]}


@pytest.mark.parametrize(
    ("cpus", "live", "with_store"),
    [
        (2, 1, 1),  # the two trainers and the reader of scale tiny need 0.5 CPU, Ray Data's own task needs 1
        (3, 2, 3),
        (256, 240, 336),
    ],
)
def test_more_trials_with_a_filled_store_fit(cpus: int, live: int, with_store: int) -> None:
    nodes = [Node("machine", cpus)]
    assert fitting_trials([SCALES["tiny"]()], nodes) == live
    assert fitting_trials([filled("tiny")], nodes) == with_store


def test_two_small_trials_with_a_filled_store_fit_on_one_gpu() -> None:
    nodes = [Node("machine", 16, 1)]
    assert (fitting_trials([SCALES["small"]()], nodes), gpus_of(SCALES["small"]())) == (1, 1.0)
    assert (fitting_trials([filled("small")], nodes), gpus_of(filled("small"))) == (2, 0.5)


def test_trials_without_separation_are_evaluated_on_the_separators_gpus() -> None:
    mix_mix = named_experiment("table2/mix-mix", "small").changed({"resources.separation_gpus": 0.4})
    assert gpus_of(mix_mix) == pytest.approx(0.8)  # two actors that evaluate; the trainer needs half a GPU


def test_the_most_demanding_experiment_is_found() -> None:
    rows = [named_experiment(row, "tiny") for row in ("table2/mix-chan", "table4/N/simclr", "table2/mix-mix")]
    assert most_demanding(rows).name == "table2/mix-chan"
    assert fitting_trials(rows, [Node("machine", 256)]) == 240
    with pytest.raises(SepsceneError, match="nothing to run"):
        most_demanding([])
