"""`sepscene cluster check`: templates with the named experiments, and the result it prints."""

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
CHANGES = {
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
def test_scale_paper_fits_every_template(name: str) -> None:
    fit = check_cluster(CLUSTERS / name, named_experiment("table4/S2+N/simclr-cp", "paper"))
    assert fit.places["trainer"] == {"trainers": 16}
    assert fit.places["separation actor"] == {"separators": 64}
    assert fit.trials == 1
    autoscaling = name in ("aws.yaml", "gcp.yaml", "raycluster.yaml", "rayjob.yaml")
    assert fit.started == ({"trainers": 2, "separators": 64} if autoscaling else {})


def test_the_result_gives_nodes_to_start_spot_roles_and_concurrent_trials(pools: Path) -> None:
    fit = check_cluster(pools, named_experiment("demo", "tiny").changed(CHANGES))
    assert fit.places == {
        "trainer": {"big": 2},
        "separation actor": {"cheap": 4},
        "reader": {"head": 1},
        "data task": {"head": 1},
    }
    assert fit.started == {"cheap": 2}  # two actors share a GPU; one big node exists already
    assert fit.spot == ["separation actors"]
    assert fit.trials == 4  # 8 GPUs for trainers
    assert "waits until autoscaling has started 2 x cheap" in " ".join(fit.lines())


def test_a_driver_that_needs_a_cpu_is_placed(pools: Path) -> None:
    experiment = named_experiment("demo", "tiny").changed(CHANGES)
    assert check_cluster(pools, experiment, driver_cpus=1).places["trial driver"] == {"head": 1}


def test_without_autoscaling_nothing_waits(tmp_path: Path) -> None:
    (tmp_path / "laptop.pools.yaml").write_text("pools: [{name: laptop, nodes: 1, cpus: 2}]")
    fit = check_cluster(tmp_path / "laptop.pools.yaml", named_experiment("demo", "tiny"))
    assert (fit.started, fit.spot, fit.trials) == ({}, [], 1)
    assert "starts immediately" in " ".join(fit.lines())


def test_separation_before_training_uses_the_same_resources(tmp_path: Path) -> None:
    """With a filled store, actors run first and trainers later; the run checks each phase separately."""
    (tmp_path / "laptop.pools.yaml").write_text("pools: [{name: laptop, nodes: 1, cpus: 2}]")
    changes = {"resources.separation_actors": 4, "resources.separation_cpus": 0.2}
    live = named_experiment("demo", "tiny").changed(changes)
    with pytest.raises(SepsceneError, match="would wait forever"):
        check_cluster(tmp_path / "laptop.pools.yaml", live)
    fit = check_cluster(tmp_path / "laptop.pools.yaml", live.changed({"store.mode": "prefill"}))
    assert fit.places["separation actor"] == {"laptop": 4} and fit.places["trainer"] == {"laptop": 2}
    assert fit.trials == 1


def test_an_experiment_that_does_not_fit_at_maximum_size_is_refused(pools: Path) -> None:
    experiment = named_experiment("demo", "tiny").changed({**CHANGES, "resources.separation_actors": 17})
    with pytest.raises(SepsceneError, match="1 of 17 separation actors"):
        check_cluster(pools, experiment)


def test_the_command_prints_the_result(pools: Path) -> None:
    from sepscene.orchestration.cli.main import app

    settings = [f"--set={field}={value}" for field, value in CHANGES.items()]
    result = CliRunner().invoke(
        app, ["cluster", "check", str(pools), "--experiment", "demo", "--scale", "tiny", *settings]
    )
    assert result.exit_code == 0, result.output
    assert "fits" in result.output and "concurrent trials: 4" in result.output
