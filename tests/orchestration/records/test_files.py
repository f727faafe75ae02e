"""Files of a run: written atomically, and no content of a file leads to a traceback."""

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sepscene.models.config import SepsceneError
from sepscene.orchestration.evaluation.compare import load_predictions
from sepscene.orchestration.records.checkpoints import is_intact
from sepscene.orchestration.records.files import (
    append_lines,
    parse_records,
    read_bytes,
    read_last_lines,
    read_typed,
    read_typed_or,
    write_text_atomically,
)
from sepscene.orchestration.records.ledger import Ledger
from sepscene.orchestration.records.results import ReproductionResults, RunResults, SweepResults, read_metrics
from sepscene.orchestration.records.run_folder import RunFolder, folder_in
from sepscene.orchestration.training.separator_training import read_ladder
from tests.orchestration.samples import sample_results, sample_sweep

STRANGE = (b"", b"null", b"{}", b"[]", b"[[]]", b"1", b'"x"', b"{", b"\xff\xfe{}", b"\x00" * 9, b"[" * 10_000, b"NaN")

READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "results": ("results.json", RunResults.load),
    "sweep": ("sweep.json", SweepResults.load),
    "reproduction": ("reproduction.json", ReproductionResults.load),
    "metrics": ("metrics.jsonl", read_metrics),
    "ladder": ("ladder/ladder.json", read_ladder),
    "ledger": ("ledger.json", lambda run: Ledger.load(RunFolder(run).ledger)),
    "predictions": ("evaluation/mix-chan.npz", lambda run: load_predictions(RunFolder(run).predictions("mix-chan"))),
    "checkpoint": ("manifest.json", is_intact),
    "timings": ("stages.json", lambda run: read_typed_or(RunFolder(run).timings, dict[str, float], {})),
}


def message_of(read: Callable[[Path], object], run: Path) -> str | None:
    """The message of the error, or None: some contents are valid, and some readers skip damage."""
    try:
        read(run)
    except SepsceneError as error:
        return str(error)
    return None


@pytest.mark.parametrize("reader", READERS)
def test_strange_files_lead_to_a_message(reader: str, tmp_path: Path) -> None:
    name, read = READERS[reader]
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    for content in STRANGE:
        path.write_bytes(content)
        message = message_of(read, tmp_path)
        assert message is None or path.name in message, content


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(sorted(READERS)), st.integers(0, 10_000), st.integers(0, 255), st.booleans())
def test_damaged_files_lead_to_a_message(tmp_path: Path, reader: str, at: int, byte: int, cut: bool) -> None:
    """A valid file in which one byte is changed, or which is truncated there."""
    sample_results().save(tmp_path)
    sample_sweep().save(tmp_path)
    RunFolder(tmp_path).ledger.write_text(Ledger(100, [(0, 7)], {"a.wav": "too short"}).to_json())
    RunFolder(tmp_path).metrics.write_text(json.dumps({"stage": "a", "seconds": 1.0, "step": 2, "loss": 0.5}) + "\n")
    write_text_atomically(RunFolder(tmp_path).ladder_index, json.dumps({"N": "N-0-abc"}))
    name, read = READERS[reader]
    path = tmp_path / name
    exists = reader in ("results", "sweep", "metrics", "ladder", "ledger")
    content = bytearray(path.read_bytes() if exists else b'{"step": 1, "sha256": {}}')
    at %= len(content)
    content[at] = byte
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content[:at] if cut else content)
    message = message_of(read, tmp_path)
    assert message is None or path.name in message


def test_damaged_records_are_counted_and_skipped(caplog: pytest.LogCaptureFixture) -> None:
    good = json.dumps({"stage": "a", "seconds": 1.5, "step": 3, "loss": float("nan")})
    bad = ("null", "{}", '{"stage": 1}', '{"stage": "a", "step": "x"}', '{"stage": "a", "x": [1]}', "{", "\xff")
    with caplog.at_level(logging.WARNING, logger="sepscene"):
        records = parse_records("\n".join([good, *bad, "", good]).encode("latin-1"), "metrics.jsonl")
    assert len(records) == 2 and records[0]["step"] == 3
    assert "metrics.jsonl: 7 damaged lines are skipped" in caplog.text


def test_results_of_an_earlier_version_name_the_new_field(tmp_path: Path) -> None:
    """Before 2026-11-29, "metrics" and "metric" were called "figures" and "figure"."""
    for results in (sample_results(), sample_sweep()):
        path = results.save(tmp_path)
        path.write_text(path.read_text().replace('"metric', '"figure'))
        with pytest.raises(SepsceneError, match=r"\.0\.figures was renamed to \w+\.0\.metrics"):
            type(results).load(tmp_path)


def test_a_damaged_file_is_named_with_its_remedy(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "stages.json"
    path.write_text('{"train": "long"}')
    with pytest.raises(SepsceneError, match=r"stages\.json is damaged: train: .*number.*; begin again"):
        read_typed(path, dict[str, float], "begin again")
    with caplog.at_level(logging.WARNING, logger="sepscene"):
        assert read_typed_or(path, dict[str, float], {"a": 1.0}) == {"a": 1.0}
    assert "stages.json is damaged" in caplog.text
    assert read_typed_or(tmp_path / "none.json", dict[str, float], {}) == {}


def test_a_file_that_is_too_large_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    with path.open("wb") as file:
        file.truncate(2**40)  # sparse: uses no disk space
    with pytest.raises(SepsceneError, match=r"1,099,511,627,776 bytes"):
        RunResults.load(tmp_path)
    with pytest.raises(SepsceneError, match="cannot be read"):
        read_bytes(tmp_path)


def test_a_failed_write_leaves_the_old_file_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a" / "stages.json"
    write_text_atomically(path, "old")
    with monkeypatch.context() as full:
        full.setattr(os, "fsync", _full_disk)
        with pytest.raises(OSError, match="No space"):
            write_text_atomically(path, "new")
    assert path.read_text() == "old"


def _full_disk(_: int) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    "name", ["../../x", "/etc/passwd", "", ".", "..", ".hidden", "a/b", "a\nb", "a\x1b[31m", "x" * 201, "ä"]
)
def test_a_run_id_is_a_plain_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(SepsceneError, match=r"the run id .*cannot be the name of a folder"):
        folder_in(tmp_path, name, "the run id")
    with pytest.raises(SepsceneError, match="cannot be the name"):
        RunFolder(tmp_path).predictions(name)


def test_plain_names_are_accepted(tmp_path: Path) -> None:
    for name in ("demo", "t003-s1", "objective.temperature=0.1,seed=2", "S2+N", "2026-11-29"):
        assert folder_in(tmp_path, name, "the run id") == tmp_path / name


def test_a_ladder_that_leads_out_of_its_folder_is_refused(tmp_path: Path) -> None:
    write_text_atomically(RunFolder(tmp_path).ladder_index, json.dumps({"S2": "/../../../ESC/S2"}))
    with pytest.raises(SepsceneError, match=r"ladder\.json is damaged"):
        read_ladder(tmp_path)


def test_the_last_lines_of_a_growing_file_are_complete(tmp_path: Path) -> None:
    """A live table shows the end of a file that is being written: partial lines at either end are not damage."""
    path = tmp_path / "metrics.jsonl"
    assert read_last_lines(path, 100) == b""
    lines = [json.dumps({"stage": "s", "step": step}) for step in range(20)]
    append_lines(path, lines)
    with path.open("ab") as file:
        file.write(b'{"stage": "s", "st')  # a line that is being written
    assert [record["step"] for record in parse_records(read_last_lines(path, 10_000), path)] == list(range(20))
    for size in range(30, 200):
        found = [record["step"] for record in parse_records(read_last_lines(path, size), path)]
        assert found == list(range(20 - len(found), 20))
