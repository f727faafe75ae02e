"""The command line: help with examples, and one message with exit code 2 for errors that a user can fix."""

import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import get_args

import numpy as np
import pytest
import soundfile
import typer
from typer.testing import CliRunner

from sepscene.models.config import SepsceneError
from sepscene.models.separators.folder import save_separator
from sepscene.models.separators.tdcnpp import TDCNpp
from sepscene.models.settings import TDCNppConfig
from sepscene.orchestration.cli import doctor
from sepscene.orchestration.cli.main import app, pretrain_with
from sepscene.orchestration.data_config import DataFormat
from sepscene.orchestration.presets import named_experiment

COMMANDS = (
    "demo", "scenes", "separator train", "separator import", "separator prefill", "pretrain", "evaluate", "sweep",
    "reproduce", "embed", "report", "doctor", "show", "plan", "submit", "stop", "compare", "ui", "sync", "replay",
    "data audit",
    "store ls", "store verify", "store gc", "encoder import", "encoder export", "cluster check", "cluster template",
)  # fmt: skip


def test_the_command_after_a_separators_training_keeps_the_users_data() -> None:
    """Without the storage and the `--set` options it would pre-train on synthetic scenes instead."""
    given = ["data.root=my sounds", "separator.ladder.steps={N: 0, S: 20}", "data.format=directory"]
    command = pretrain_with({"N": "/r/ladder/N"}, "demo", "tiny", Path("/r"), given)
    assert command == (
        "sepscene pretrain demo --scale tiny --storage /r --set 'data.root=my sounds' --set data.format=directory "
        """--set 'separator.checkpoints={"N": "/r/ladder/N"}'"""
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_every_command_has_an_example(command: str) -> None:
    result = CliRunner().invoke(app, [*command.split(), "--help"])
    assert result.exit_code == 0 and "Usage" in result.output
    assert f"sepscene {command}" in " ".join(result.output.split()), "the help has no example"


def test_the_help_of_data_audit_names_all_formats() -> None:
    help_text = CliRunner().invoke(app, ["data", "audit", "--help"]).output
    assert [name for name in get_args(DataFormat) if f"`{name}`" not in help_text] == []


def test_every_command_is_described_in_one_whole_sentence_and_every_option_has_a_help_text() -> None:
    for group in ("", "data", "separator", "encoder", "store", "cluster"):
        listed = CliRunner().invoke(app, [*group.split(), "--help"], env={"COLUMNS": "80"}).output
        assert "..." not in listed.partition("Commands:")[2], "a description is cut on a terminal of 80 columns"
    command = typer.main.get_command(app)
    for words in COMMANDS:
        found = command
        for word in words.split():
            found = found.commands[word]  # type: ignore[attr-defined]
        assert [parameter.name for parameter in found.params if not getattr(parameter, "help", None)] == [], words


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pretrain", "table9"], "there is no experiment 'table9'"),
        (["pretrain", "demo", "--scale", "huge"], "--scale: there is no scale 'huge'; known names: mini"),
        (["pretrain", "demo", "--set", "objective.temperature"], "must look like field=value"),
        (["pretrain", "demo", "--set", "objective.temperature=-1"], "greater than 0"),
        (["pretrain", "nowhere.yaml"], "does not exist"),
        (["pretrain", "demo", "--storage", "s3://bucket/runs"], "runs cannot be stored at s3://.*store.uri"),
        (["sweep", "demo", "--over", "alpha=0,1", "--storage", "gs://bucket/runs"], "runs cannot be stored at gs://"),
        (["submit", "pretrain", "demo", "--storage", "s3://bucket/runs"], "every node mounts"),
        (["sweep", "demo"], "nothing to sweep over"),
        (["sweep", "nowhere.yaml"], "nowhere.yaml does not exist"),
        (["reproduce", "table2", "--hours", "2"], "--hours: only with --scale mini"),
        (
            ["cluster", "template", "aws", "--out", "x.yaml", "--fill", "YOUR-BUCKET"],
            "must look like PLACEHOLDER=VALUE",
        ),
        (["sweep", "demo", "--over", "temprature=1,2"], "did you mean objective.temperature"),
        (["sweep", "demo", "--over", "alpha=0,high"], "alpha"),
        (["report", "test"], "test: there is no such run .did you mean tests"),
        (["sync", "nowhere"], "nowhere: there is no such run"),
        (["ui", "nowhere"], "nowhere: there is no such run"),
        (["compare", "tests"], "takes two runs"),
        (["reproduce", "table2", "--scale", "mini", "--dashboard"], "--dashboard: not at scale mini"),
        (
            ["reproduce", "table2", "--resume", "--storage", "nowhere"],
            "nowhere contains no table2-tiny-.*give its --id",
        ),
        (["pretrain", "demo", "--resume", "--storage", "nowhere"], "nowhere contains no demo-.*give its --run-id"),
        (["compare", "a", "b", "--csv", "table.csv"], "--csv: only with --tasks"),
        (["compare", "a", "b", "--tasks", "results", "--seeds"], "A B, --seeds: only for runs, without --tasks"),
        (
            ["evaluate", "tests", "--device", "cpu", "--out", "results"],
            "--out, --device: only with --task FORMAT:FOLDER",
        ),
        (["evaluate", "tests", "--task", "esc50:esc10", "--address", "a:1"], "--address: only without --task"),
        (["embed", "nowhere", "x.wav", "--out", "x.npy", "--gpus", "1"], "--gpus 1.0 has no effect without --actors"),
        (["embed", "a", "x.wav", "--out", "x.npy", "--actors", "1", "--device", "cpu"], "set the GPUs of each actor"),
        (["compare", "a", "b", "c", "d", "--seeds", "--encoder-a", "mix-mix"], "omit --encoder-a"),
        (["evaluate", "nowhere"], "there is no such run"),
        (["pretrain", "demo", "--set", "separator.checkpoints={S2: nowhere, N: nowhere}"], "processor S2: nowhere"),
        (["embed", "nowhere", "x.wav", "--out", "x.npy"], "nowhere"),
        (["separator", "prefill", "table2/mix-mix"], "separates nothing"),
        (["data", "audit", "nowhere", "--format", "esc50"], "nowhere"),
    ],
)
def test_a_mistake_is_one_message(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, SepsceneError), result.output
    with pytest.raises(SepsceneError, match=message):
        raise result.exception


def test_cluster_check_prints_that_an_experiment_fits_only_if_it_does(tmp_path: Path) -> None:
    pools = tmp_path / "small.pools.yaml"
    pools.write_text("pools: [{name: all, nodes: 1, cpus: 1}]\n")
    words = ["cluster", "check", str(pools), "--experiment", "demo", "--scale"]
    refused = CliRunner().invoke(app, [*words, "paper"])
    assert isinstance(refused.exception, SepsceneError) and "fits" not in refused.output
    pools.write_text("pools: [{name: all, nodes: 1, cpus: 4}]\n")
    fitting = CliRunner().invoke(app, [*words, "tiny"])
    assert fitting.exit_code == 0 and fitting.output.startswith("fits demo (tiny) on ")


@pytest.mark.parametrize(("check", "name"), [(doctor._torch, "torch"), (doctor._ray, "ray")])
def test_the_doctor_names_a_package_that_is_missing(
    check: Callable[[], str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "version", lambda name: importlib.metadata.version(f"no-{name}"))
    with pytest.raises(RuntimeError, match=f"^{name} is not installed; run `make setup`"):
        check()


@pytest.mark.slow
def test_the_exit_code_is_2_and_there_is_no_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sepscene", "pretrain", "demo", "--set", "objective.temperature=-1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (
        done.returncode == 2
        and "Traceback" not in done.stderr
        and "objective.terms.similarity.temperature" in done.stderr
    )


def test_doctor_checks_the_temporary_folder_that_a_run_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is inside the system's folder for temporary files, whose own path is short enough."""
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    with TemporaryDirectory(prefix=20 * "t", dir="/tmp") as folder:
        assert len(folder) < 39
        monkeypatch.setattr("tempfile.tempdir", folder)
        with pytest.raises(SepsceneError, match=rf"{folder}/sepscene-\d+, has \d+ bytes.* set RAY_TMPDIR"):
            doctor._temp_folder()
    monkeypatch.setenv("RAY_TMPDIR", "/" + 39 * "t")
    with pytest.raises(SepsceneError, match="set RAY_TMPDIR to a shorter path"):
        doctor._temp_folder()


def test_separators_of_another_rate_are_refused_before_anything_starts(tmp_path: Path) -> None:
    separator = TDCNpp(TDCNppConfig.tiny(sample_rate=8000))
    save_separator(separator, tmp_path / "S2", {})
    change = f"separator.checkpoints={{S2: {tmp_path / 'S2'}, N: {tmp_path / 'S2'}}}"
    result = CliRunner().invoke(app, ["pretrain", "demo", "--storage", str(tmp_path / "runs"), "--set", change])
    assert isinstance(result.exception, SepsceneError)
    with pytest.raises(SepsceneError, match=r"processor S2 .* works at 8000 Hz but audio.sample_rate is 16000 Hz"):
        raise result.exception
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "command", ["pretrain FILE", "show FILE", "plan FILE", "sweep FILE --over alpha=0,1", "submit pretrain FILE"]
)
def test_a_scale_that_is_not_the_files_is_refused(tmp_path: Path, command: str) -> None:
    """It would have no effect: the file's settings are those of its own scale."""
    path = tmp_path / "mine.yaml"
    named_experiment("demo", "tiny").save(path)
    words = [str(path) if word == "FILE" else word for word in command.split()]
    result = CliRunner().invoke(app, [*words, "--scale", "paper"])
    assert isinstance(result.exception, SepsceneError), result.output
    assert "mine.yaml has the scale tiny" in str(result.exception)


def test_show_prints_what_pretrain_reads(tmp_path: Path) -> None:
    shown = CliRunner().invoke(app, ["show", "table4/S2+N/simclr-cp", "--scale", "paper"])
    assert shown.exit_code == 0
    (tmp_path / "mine.yaml").write_text(shown.output)
    again = CliRunner().invoke(app, ["show", str(tmp_path / "mine.yaml")])
    assert again.output == shown.output


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_chinese_root_where_the_locale_is_ascii(tmp_path: Path) -> None:
    """The name is UTF-8 in every locale; it used to be refused as a name that is not UTF-8."""
    root = tmp_path / "日本"
    root.mkdir()
    soundfile.write(root / "a.wav", np.linspace(-0.5, 0.5, 16_000), 16_000)
    command = [sys.executable, "-m", "sepscene", "data", "audit", "日本", "--format", "directory"]
    ascii_only = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | ascii_only, capture_output=True, timeout=200)
    output = (done.stdout + done.stderr).decode()
    assert done.returncode == 0, output
    assert "clips       1, readable 1" in output
