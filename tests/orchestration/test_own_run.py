"""A whole run on a lab's own parts, from Python: clips, and separators and a channel score in a package of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sepscene.augment.store.upkeep import list_store
from sepscene.models.card import read_card
from sepscene.models.own import OwnCode
from sepscene.orchestration.cli.main import app
from sepscene.orchestration.config import Experiment, load_experiment
from sepscene.orchestration.records.ledger import Ledger
from sepscene.orchestration.records.results import RunResults
from sepscene.orchestration.training.replay import replay
from sepscene.tasks.datasets.readers import Manifest
from tests.own_code import write_package

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
ROOT = Path(__file__).resolve().parents[2]

SCRIPT = """
import csv
import sys
from pathlib import Path

import sepscene
from wholelab.nets import Learned, Split, halves


def clips(folder):
    for split in ("train", "test"):
        with (folder / f"{split}.csv").open(newline="") as table:
            yield from ({**row, "uri": folder / row["uri"]} for row in csv.DictReader(table))


checkpoints = {"thirds": {"use": Split, "sources": 3}, "halves": halves}
changes = {"separator.checkpoints": checkpoints, "views.combination": list(checkpoints), "views.channel": Learned}
sepscene.pretrain(
    sys.argv[1], changes=changes, clips=clips(Path(sys.argv[3])), storage=sys.argv[2], run_id="own", quiet=True
)
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lab")
    with pytest.MonkeyPatch.context() as patch:
        write_package(folder, "wholelab", patch)
    return folder


@pytest.fixture(scope="module")
def finished(lab: Path, nano: Experiment, scenes_dir: Path) -> Path:
    """The run's folder. The store is read through, so both ways to a view are gone."""
    short = {"training.epochs": 2, "evaluation.baselines": False, "store.mode": "read-through"}
    nano.changed(short).save(lab / "nano.yaml")
    (lab / "script.py").write_text(SCRIPT)
    variables = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0"}
    variables["PYTHONPATH"] = os.pathsep.join((str(ROOT), str(lab)))
    variables.pop("MLFLOW_TRACKING_URI", None)
    words = [sys.executable, "script.py", "nano.yaml", str(lab / "runs"), str(scenes_dir)]
    done = subprocess.run(words, cwd=lab, env=variables, capture_output=True, text=True, timeout=560, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return lab / "runs" / "own"


def test_nothing_behind_knows_that_the_parts_are_somebody_s_own(finished: Path) -> None:
    results = RunResults.load(finished)
    kept = {name: read_card(finished / "ladder" / name) for name in ("thirds", "halves")}
    assert {processor.name: processor.digest for processor in results.ladder} == {
        name: card.digest for name, card in kept.items()
    }
    assert Ledger.from_json((finished / "ledger.json").read_text()).intervals == [(0, 48)]
    store = list_store(str(finished.parent / "store"))
    assert {card.digest for card in kept.values()} < {group.processor for group in store.groups}
    assert sum(group.entries for group in store.groups if group.processor.startswith("scores-")) > 24
    experiment = load_experiment(finished / "experiment.yaml")
    assert experiment.separator.checkpoints["halves"] == OwnCode(use="wholelab.nets:halves")
    assert experiment.data.format == "clips" and Path(experiment.data.root or "").parent == finished.parent / "clips"
    assert (finished / "report.html").exists() and (finished / "listen.html").exists()


def test_later_commands_need_the_code_and_the_trust_again(
    finished: Path, lab: Path, train_clips: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(lab / "configuration"))
    monkeypatch.delenv("SEPSCENE_TRUSTED_CODE", raising=False)
    experiment = load_experiment(finished / "experiment.yaml")
    words = ["plan", str(finished / "experiment.yaml"), "--seconds", "1"]
    refused = CliRunner().invoke(app, words)
    assert "is code that does not come with Sepscene" in str(refused.exception)
    monkeypatch.syspath_prepend(str(lab))
    monkeypatch.setenv("SEPSCENE_TRUSTED_CODE", ",".join(experiment.own_code))
    planned = CliRunner().invoke(app, words)
    assert planned.exit_code == 0, (planned.output, planned.exception)
    rows, loss = replay(finished, train_clips, [0, 1, 2, 3])
    assert [row.fault for row in rows] == [""] * 4 and loss == loss
    folders = experiment.changed(
        {"views.channel": "uniform", "separator.checkpoints.thirds": str(finished / "ladder" / "thirds")}
    )
    assert folders.own_code == ("wholelab.nets:Split", "wholelab.nets:halves"), "a folder's code travels, too"
