"""How many trials fit at once: each asks for what it still uses, at the time when it uses most."""

import pytest

from sepscene.clusters.pools import Node
from sepscene.models.config import SepsceneError
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.presets import SCALES, Scale, named_experiment
from sepscene.orchestration.runtime.concurrency import fitting_trials, gpus_of, most_demanding, trial_phases


def filled(scale: Scale) -> Experiment:
    """What a trial is whose clips have been separated for all of them."""
    return SCALES[scale]().changed({"store.mode": "prefill"})


def test_no_phase_with_a_filled_store_holds_trainers_and_separation_actors() -> None:
    phases = [{demand.role for demand in phase} for phase in trial_phases(filled("tiny"))]
    assert len(phases) == 3
    assert not any({"trainer", "separation actor"} <= roles for roles in phases)
    assert {"trainer", "separation actor"} <= {demand.role for demand in trial_phases(SCALES["tiny"]())[0]}


@pytest.mark.parametrize(
    ("cpus", "live", "with_store"),
    [
        (2, 1, 1),  # tiny's two trainers and a reader take 0.5, and Ray Data's own task a whole one
        (3, 2, 3),
        (256, 240, 336),
    ],
)
def test_trials_with_a_filled_store_pack_closer(cpus: int, live: int, with_store: int) -> None:
    nodes = [Node("machine", cpus)]
    assert fitting_trials([SCALES["tiny"]()], nodes) == live
    assert fitting_trials([filled("tiny")], nodes) == with_store


def test_one_gpu_holds_two_small_trials_when_all_is_separated() -> None:
    nodes = [Node("machine", 16, 1)]
    assert (fitting_trials([SCALES["small"]()], nodes), gpus_of(SCALES["small"]())) == (1, 1.0)
    assert (fitting_trials([filled("small")], nodes), gpus_of(filled("small"))) == (2, 0.5)


def test_who_separates_nothing_is_evaluated_on_the_separators_gpus() -> None:
    mix_mix = named_experiment("table2/mix-mix", "small").changed({"resources.separation_gpus": 0.4})
    assert gpus_of(mix_mix) == pytest.approx(0.8)  # two actors that evaluate; the trainer takes half a GPU


def test_the_most_demanding_of_all_is_held_against_the_cluster() -> None:
    rows = [named_experiment(row, "tiny") for row in ("table2/mix-chan", "table4/N/simclr", "table2/mix-mix")]
    assert most_demanding(rows).name == "table2/mix-chan"
    assert fitting_trials(rows, [Node("machine", 256)]) == 240
    with pytest.raises(SepsceneError, match="nothing to run"):
        most_demanding([])
