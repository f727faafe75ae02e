"""`sepscene cluster check`: templates against the named experiments, and what its verdicts say."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from sepscene.models.config import SepsceneError
from sepscene.orchestration.presets import named_experiment
from sepscene.orchestration.runtime.cluster_check import check_cluster

CLUSTERS = Path(__file__).resolve().parents[3] / "clusters"
POOLS = """pools:
  - {name: head, nodes: 1, cpus: 2}
  - {name: big, nodes: 4, least: 1, cpus: 8, gpus: 2, accelerator: H100, labels: {pool: trainers}}
  - {name: cheap, nodes: 8, least: 0, cpus: 4, gpus: 1, labels: {pool: separators}, spot: true}
"""
ASKED = {
    "resources.trainers": 2,
    "resources.trainer_gpus": 1,
    "resources.trainer_labels": {"pool": "trainers"},
    "resources.separation_actors": 4,
    "resources.separation_cpus": 1,
    "resources.separation_gpus": 0.5,
    "resources.separation_labels": {"pool": "separators"},
}


@pytest.fixture
def pools(tmp_path: Path) -> Path:
    path = tmp_path / "mine.pools.yaml"
    path.write_text(POOLS)
    return path


@pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml", "onprem.yaml", "raycluster.yaml", "rayjob.yaml", "slurm.sh"])
def test_the_papers_scale_fits_every_template_that_names_it(name: str) -> None:
    verdict = check_cluster(CLUSTERS / name, named_experiment("table4/S2+N/simclr-cp", "paper"))
    assert verdict.places["trainer"] == {"trainers": 16}
    assert verdict.places["separation actor"] == {"separators": 64}
    assert verdict.trials == 1
    autoscaling = name in ("aws.yaml", "gcp.yaml", "raycluster.yaml", "rayjob.yaml")
    assert verdict.started == ({"trainers": 2, "separators": 64} if autoscaling else {})


def test_the_verdict_says_what_waits_what_is_on_spot_and_how_many_trials_fit(pools: Path) -> None:
    verdict = check_cluster(pools, named_experiment("demo", "tiny").changed(ASKED))
    assert verdict.places == {
        "trainer": {"big": 2},
        "separation actor": {"cheap": 4},
        "reader": {"head": 1},
        "data task": {"head": 1},
    }
    assert verdict.started == {"cheap": 2}  # two actors share a GPU; one big node is there already
    assert verdict.spot == ["separation actors"]
    assert verdict.trials == 4  # 8 GPUs for trainers
    assert "waits until autoscaling has started 2 x cheap" in " ".join(verdict.lines())


def test_a_driver_that_takes_a_cpu_counts(pools: Path) -> None:
    experiment = named_experiment("demo", "tiny").changed(ASKED)
    assert check_cluster(pools, experiment, driver_cpus=1).places["trial driver"] == {"head": 1}


def test_without_autoscaling_nothing_waits(tmp_path: Path) -> None:
    (tmp_path / "laptop.pools.yaml").write_text("pools: [{name: laptop, nodes: 1, cpus: 2}]")
    verdict = check_cluster(tmp_path / "laptop.pools.yaml", named_experiment("demo", "tiny"))
    assert (verdict.started, verdict.spot, verdict.trials) == ({}, [], 1)
    assert "starts at once" in " ".join(verdict.lines())


def test_separation_before_training_needs_no_place_beside_it(tmp_path: Path) -> None:
    """A filled store: actors first, trainers then, as the run itself checks it."""
    (tmp_path / "laptop.pools.yaml").write_text("pools: [{name: laptop, nodes: 1, cpus: 2}]")
    changes = {"resources.separation_actors": 4, "resources.separation_cpus": 0.2}
    beside = named_experiment("demo", "tiny").changed(changes)
    with pytest.raises(SepsceneError, match="would wait forever"):
        check_cluster(tmp_path / "laptop.pools.yaml", beside)
    verdict = check_cluster(tmp_path / "laptop.pools.yaml", beside.changed({"store.mode": "prefill"}))
    assert verdict.places["separation actor"] == {"laptop": 4} and verdict.places["trainer"] == {"laptop": 2}
    assert verdict.trials == 1


def test_what_does_not_fit_at_its_largest_is_refused(pools: Path) -> None:
    experiment = named_experiment("demo", "tiny").changed({**ASKED, "resources.separation_actors": 17})
    with pytest.raises(SepsceneError, match="1 of 17 separation actors"):
        check_cluster(pools, experiment)


def test_the_command_prints_the_verdict(pools: Path) -> None:
    from sepscene.orchestration.cli.main import app

    settings = [f"--set={field}={value}" for field, value in ASKED.items()]
    shown = CliRunner().invoke(
        app, ["cluster", "check", str(pools), "--experiment", "demo", "--scale", "tiny", *settings]
    )
    assert shown.exit_code == 0, shown.output
    assert "fits" in shown.output and "at once: 4 trials" in shown.output
