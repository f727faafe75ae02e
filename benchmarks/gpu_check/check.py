"""A check on a GPU that takes ten minutes: correctness and speed of the networks, and complete runs.

    python -m benchmarks.gpu_check --out FOLDER [--device cuda] [--minutes 9] [--small] [--only PART,PART]

No network access is needed. The parts run one after the other in a child process, and each is saved as FOLDER/PART.json
before the next one starts. A part that raises an exception is saved with the reason. When a part takes too long, or its
process dies, it is recorded as failed, and a new process continues with the next part. Parts that have been saved are
not run again. At the end, FOLDER/report.md contains all results as tables. `--device cpu --small` runs the same code
with small networks in one or two minutes. Its speeds are meaningless, but it tests the script where there is no GPU.

The parts are in `benchmarks.gpu_check.parts` (networks, separator, encoder, losses, copies, memory) and
`benchmarks.gpu_check.runs` (tests, live, stored, plan).
"""

import faulthandler
import importlib
import json
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from sepscene.orchestration.records.files import write_text_atomically

PARTS = {
    "benchmarks.gpu_check.parts": ("networks", "separator", "encoder", "losses", "copies", "memory"),
    "benchmarks.gpu_check.runs": ("tests", "live", "stored", "plan"),
}
"""Module -> its parts, in order. A module is imported when its first part starts."""
NAMES = tuple(name for names in PARTS.values() for name in names)


def run_parts(names: Sequence[str], out: Path, device: str, small: bool, longest_seconds: float) -> None:
    """Run parts in this process and save each result; a part that exceeds the time limit ends the process."""
    for name in names:
        faulthandler.dump_traceback_later(longest_seconds, exit=True)
        began = time.monotonic()
        try:
            module = next(module for module, parts in PARTS.items() if name in parts)
            result = getattr(importlib.import_module(module), name)(device, small, out)
        except Exception:
            result = {"failed": traceback.format_exc(limit=-4)}
        faulthandler.cancel_dump_traceback_later()
        result["seconds"] = round(time.monotonic() - began, 1)
        write_text_atomically(out / f"{name}.json", json.dumps(result, indent=2))
        print(f"{name}: {result.get('failed', 'done')} ({time.monotonic() - began:.1f} s)", flush=True)


def run_in_processes(names: Sequence[str], out: Path, device: str, small: bool, seconds: float) -> None:
    """Run parts in a child process; if it ends early, its current part has failed."""
    end = time.monotonic() + seconds
    waiting = [name for name in names if not _is_done(out / f"{name}.json")]
    for name in waiting:
        (out / f"{name}.json").unlink(missing_ok=True)
    while waiting and (left := end - time.monotonic()) > 0:
        command = [sys.executable, "-m", "benchmarks.gpu_check", "--out", str(out), "--device", device]
        command += ["--small"] * small + ["--in-process", "--only", ",".join(waiting), "--minutes", str(seconds / 60)]
        try:
            process = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=left, check=False)
            reason = f"exit code {process.returncode}: {process.stderr[-2000:]}"
        except subprocess.TimeoutExpired:
            reason = "the time limit was reached"
        waiting = [name for name in waiting if not (out / f"{name}.json").exists()]
        if waiting:
            write_text_atomically(out / f"{waiting[0]}.json", json.dumps({"failed": reason}, indent=2))
            print(f"{waiting.pop(0)}: {reason}", flush=True)


def _is_done(saved: Path) -> bool:
    return saved.exists() and "failed" not in json.loads(saved.read_text())


def report(results: dict[str, dict[str, Any]], device: str) -> str:
    """All results as Markdown: one heading per part, and one table per list of rows."""
    lines = [f"# GPU check on {device}", ""]
    for name, result in results.items():
        lines += [f"## {name} ({result.get('seconds', 0)} s)", ""]
        for key, value in result.items():
            if isinstance(value, list) and value and isinstance(value[0], dict):
                columns = list(value[0])
                lines += ["", f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
                lines += ["| " + " | ".join(_shown(row.get(column, "")) for column in columns) + " |" for row in value]
                lines.append("")
            elif key != "seconds":
                lines.append(f"- {key}: {_shown(value)}")
        lines.append("")
    return "\n".join(lines)


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("\n", " ").replace("|", "/")


def main(
    out: Path = typer.Option(..., help="Folder for the results."),  # noqa: B008
    device: str = "cuda",
    minutes: float = typer.Option(9.0, help="Time limit for all parts; a single part can take half of it."),
    small: bool = False,
    only: str = typer.Option("", help="Parts to run, separated by commas."),
    in_process: bool = typer.Option(False, hidden=True),
) -> None:
    """Run the parts one after the other and write the report; exits with 1 if a part failed."""
    out.mkdir(parents=True, exist_ok=True)
    names = only.split(",") if only else NAMES
    if in_process:
        run_parts(names, out, device, small, longest_seconds=60 * minutes / 2)
        return
    run_in_processes(names, out, device, small, 60 * minutes)
    files = {name: out / f"{name}.json" for name in names}
    not_run = {"failed": "not run: the time limit was reached"}
    results = {name: json.loads(file.read_text()) if file.exists() else not_run for name, file in files.items()}
    write_text_atomically(out / "report.md", report(results, device))
    if any("failed" in result for result in results.values()):
        raise typer.Exit(1)
