"""Ten minutes on a GPU: do the networks compute what they must, how fast, and does a run work there?

    python -m benchmarks.gpu_check --out FOLDER [--device cuda] [--minutes 9] [--small] [--only PART,PART]

Needs no network. Each part runs in a process of its own and saves FOLDER/PART.json before the next begins, so that a
part that fails, hangs or is cut off costs nothing but itself; a part that is saved already is not run again. At the
end FOLDER/report.md holds all results as tables. `--device cpu --small` runs the same code with small networks in
minutes: the numbers mean nothing then, but the script is known to work before a GPU is there.

The parts are in `benchmarks.gpu_parts` (networks, separator, encoder, losses, copies, memory) and `benchmarks.gpu_runs`
(tests, live, stored, plan).
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import typer

PARTS = ("networks", "separator", "encoder", "losses", "copies", "memory", "tests", "live", "stored", "plan")
LONGEST_SECONDS = 240
"""Of one part. The whole must fit into `--minutes`."""


def run_part(name: str, out: Path, device: str, small: bool, seconds: float) -> dict[str, Any]:
    """Run one part in a process of its own; its result, or what went wrong."""
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--out", str(out), "--device", device, "--part", name]
    begin = time.monotonic()
    try:
        done = subprocess.run(
            command + ["--small"] * small, capture_output=True, text=True, timeout=seconds, check=False
        )
        failed = "" if done.returncode == 0 else f"exit code {done.returncode}: {done.stderr[-2000:]}"
    except subprocess.TimeoutExpired:
        failed = f"took more than {seconds:.0f} s"
    saved = out / f"{name}.json"
    result = json.loads(saved.read_text()) if saved.exists() and not failed else {"failed": failed}
    return result | {"seconds": round(time.monotonic() - begin, 1)}


def save(path: Path, content: str) -> None:
    """Write a file that is whole or not there."""
    partial = path.with_suffix(".partial")
    partial.write_text(content)
    partial.replace(path)


def report(results: dict[str, dict[str, Any]], device: str) -> str:
    """All results as Markdown: a heading for each part, a table for each of its lists of rows."""
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
    out: Path = typer.Option(..., help="Folder of the results."),  # noqa: B008
    device: str = "cuda",
    minutes: float = 9.0,
    small: bool = False,
    only: str = typer.Option("", help="Some parts, with commas between."),
    part: str = typer.Option("", hidden=True),
) -> None:
    """Run the parts one after the other and write the report; exit code 1 where a part failed."""
    out.mkdir(parents=True, exist_ok=True)
    if part:
        from benchmarks import gpu_parts, gpu_runs

        work = getattr(gpu_parts, part, None) or getattr(gpu_runs, part)
        save(out / f"{part}.json", json.dumps(work(device, small, out), indent=2))
        return
    end = time.monotonic() + 60 * minutes
    results: dict[str, dict[str, Any]] = {}
    for name in only.split(",") if only else PARTS:
        saved = out / f"{name}.json"
        known = json.loads(saved.read_text()) if saved.exists() else {"failed": "was not run"}
        left = end - time.monotonic()
        if "failed" in known and left > 0:
            known = run_part(name, out, device, small, min(left, LONGEST_SECONDS))
            save(saved, json.dumps(known, indent=2))
        results[name] = known
        save(out / "report.md", report(results, device))
        print(f"{name}: {known.get('failed') or 'done'} ({known.get('seconds', 0)} s)", flush=True)
    if any("failed" in result for result in results.values()):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
