"""Untrusted configuration files: no alias bombs, no huge files, no secrets."""

import os
from pathlib import Path

import pytest

from sepscene.augment.locations import ClipError
from sepscene.models.config import SepsceneError
from sepscene.orchestration.cli.sweep_commands import is_sweep
from sepscene.orchestration.config import Data, load_experiment
from sepscene.orchestration.presets import named_experiment, parse_changes
from sepscene.orchestration.records.ledger import Ledger
from sepscene.orchestration.records.results import LedgerResult
from sepscene.orchestration.records.run_folder import folder_in
from sepscene.orchestration.sweeps.config import load_sweep
from sepscene.orchestration.sweeps.search_space import parse_values
from sepscene.tasks.datasets.readers import read_manifest

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    "content", [BOMB.encode(), b"\xff\xfe", b"[" * 100_000, b"a: [", b"#" * 2**21, b"!!python/object:os.system {}"]
)
def test_a_malformed_experiment_is_refused_with_a_message(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "experiment.yaml"
    path.write_bytes(content)
    with pytest.raises(SepsceneError, match=r"experiment\.yaml"):
        load_experiment(path)


@pytest.mark.parametrize("content", [BOMB.encode(), b"\xff\xfe", b"[" * 100_000, b"#" * 2**21])
def test_a_malformed_sweep_is_refused_with_a_message(content: bytes, tmp_path: Path) -> None:
    """The same in every function that opens such files: for sweeps, for experiments, and to distinguish the two."""
    path = tmp_path / "sweep.yaml"
    path.write_bytes(content)
    for read in (load_sweep, lambda path: is_sweep(str(path)), lambda path: load_experiment(path)):
        with pytest.raises(SepsceneError, match=r"sweep\.yaml"):
            read(path)


def test_aliases_in_arguments_are_refused() -> None:
    for read in (lambda: parse_changes(["name=[&a 1, *a]"]), lambda: parse_values("seed", "&a 1,*a")):
        with pytest.raises(SepsceneError, match="alias"):
            read()


@pytest.mark.parametrize(
    ("address", "secret"),
    [
        ("s3://KEY:SECRET@bucket/clips", "user name and password"),
        ("https://host/clips?password=SECRET", "query key 'password'"),
        ("https://host/clips?X-Amz-Signature=SECRET", "query key 'X-Amz-Signature'"),
        ("https://SECRET@host/clips", "user name and password"),
    ],
)
def test_a_secret_in_an_address_is_refused_and_not_shown(address: str, secret: str) -> None:
    demo = named_experiment("demo", "tiny")
    for field in ("data.root", "store.uri"):
        with pytest.raises(SepsceneError, match=f"{field} contains .*{secret}.*credentials file") as refused:
            demo.changed({field: address})
        assert "SECRET" not in str(refused.value)
    assert demo.changed({"store.uri": "s3://bucket/store?region=eu-west-1"}).store.uri


def test_the_message_about_an_old_name_gives_the_new_one() -> None:
    with pytest.raises(SepsceneError, match=r"evaluation\.judge: was renamed to evaluation\.scoring"):
        named_experiment("demo", "tiny").changed({"evaluation.judge": {}})


def test_home_folders_and_numbers_as_folds_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/user")
    data = Data(format="esc50", root="~/esc50", train=[1, 2], test=[3])  # type: ignore[arg-type]
    assert (data.root, data.train, data.test) == ("/home/user/esc50", ("1", "2"), ("3",))


def test_a_path_that_is_not_utf8_is_refused_before_anything_is_created(tmp_path: Path) -> None:
    """Linux allows such names, but a run's files, MLflow and Parquet do not."""
    name = os.fsdecode(bytes(tmp_path) + b"/caf\xe9")
    Path(name).mkdir()
    for field in ("data.root", "store.uri", "training.start_encoder", "separator.checkpoints.S1"):
        with pytest.raises(SepsceneError, match=rf"{field} \(.*caf\\xe9\): not UTF-8 text.*rename it"):
            named_experiment("demo", "tiny").changed({field: name})
    with pytest.raises(SepsceneError, match=r"caf\\udce9': the value contains a name that is not UTF-8.*rename"):
        parse_changes([f"data.root={name}"])
    with pytest.raises(SepsceneError, match="choose another --storage"):
        folder_in(Path(name), "run", "the run id")
    with pytest.raises(SepsceneError, match=r"caf\\udce9: its path is not UTF-8 text: rename the folder"):
        read_manifest("directory", name)
    assert list(Path(name).iterdir()) == []


def test_an_error_that_contains_such_a_name_can_be_saved(tmp_path: Path) -> None:
    cause = ClipError("a.wav", "caf\udce9 is missing").cause
    ledger = Ledger(rows=4, quarantined={"a.wav": cause})
    (tmp_path / "ledger.json").write_text(ledger.to_json())
    assert Ledger.load(tmp_path / "ledger.json").quarantined == {"a.wav": r"caf\udce9 is missing"}
    results = LedgerResult(rows=4, consumed=0, lost=4, twice=0, quarantined=ledger.quarantined)
    assert LedgerResult.model_validate_json(results.model_dump_json()) == results
