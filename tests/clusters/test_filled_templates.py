"""Templates are filled with a user's sizes and read back as pools."""

import subprocess
from pathlib import Path

import pytest

from sepscene.clusters.descriptions import read_pools
from sepscene.clusters.templates import FOLDER, TEMPLATES, Sizes, write_template
from sepscene.models.config import SepsceneError


@pytest.mark.parametrize("name", TEMPLATES)
def test_without_sizes_only_the_names_of_files_change(name: str, tmp_path: Path) -> None:
    out = tmp_path / f"mine.{name.partition('.')[2]}"
    write_template(name, out, {}, {})
    assert (
        out.read_text().replace(str(tmp_path / "mine"), f"clusters/{name.partition('.')[0]}")
        == (FOLDER / name).read_text()
    )
    assert read_pools(out) == read_pools(FOLDER / name)


@pytest.mark.parametrize("name", ["aws", "gcp", "raycluster", "rayjob", "slurm"])
def test_counts_are_filled_in_everywhere(name: str, tmp_path: Path) -> None:
    out = tmp_path / "mine.yaml"
    write_template(name, out, {"trainers": Sizes(3), "separators": Sizes(17)}, {})
    most = {pool.name: pool.most for pool in read_pools(out)}
    assert (most["trainers"], most["separators"]) == (3, 17)
    usual = {pool.name: pool.node for pool in read_pools(next(FOLDER.glob(f"{name}.[ys]*")))}
    assert all(usual[pool.name].cpus == pool.node.cpus for pool in read_pools(out))


def test_cpus_and_gpus_can_be_set_for_slurm(tmp_path: Path) -> None:
    out = tmp_path / "mine.sh"
    write_template("slurm", out, {"trainers": Sizes(1, 16, 0), "separators": Sizes(2, 8, 4)}, {"24:00:00": "1:00:00"})
    text = out.read_text()
    subprocess.run(["bash", "-n", str(out)], check=True)
    trainers, separators = text.split("#SBATCH hetjob")
    assert "gpus-per-node" not in trainers and "--nodes=1\n" in trainers and "--cpus-per-task=16\n" in trainers
    assert "--gpus-per-node=L4:4\n" in separators and "--nodes=2\n" in separators
    assert "TRAINER_CPUS=16 SEPARATOR_CPUS=8" in text and "--time=1:00:00" in text
    assert f"SEPSCENE_CLUSTER:-{tmp_path}/mine.pools.yaml" in text
    nodes = {pool.name: (pool.least, pool.most, pool.node.cpus, pool.node.gpus) for pool in read_pools(out)}
    assert nodes == {"trainers": (1, 1, 16.0, 0), "separators": (2, 2, 8.0, 4)}


def test_values_that_a_template_does_not_support_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SepsceneError, match="no template 'azure'"):
        write_template("azure", tmp_path / "a", {}, {})
    with pytest.raises(SepsceneError, match="cannot be set by options"):
        write_template("onprem", tmp_path / "a.yaml", {"trainers": Sizes(4)}, {})
    with pytest.raises(SepsceneError, match="machine type"):
        write_template("aws", tmp_path / "a.yaml", {"trainers": Sizes(4, cpus=8)}, {})
    with pytest.raises(SepsceneError, match="does not contain 'BUCKET-OF-MINE'"):
        write_template("aws", tmp_path / "a.yaml", {}, {"BUCKET-OF-MINE": "x"})
    (tmp_path / "there.yaml").touch()
    with pytest.raises(SepsceneError, match="exists"):
        write_template("aws", tmp_path / "there.yaml", {}, {})
