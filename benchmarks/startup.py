"""Start-up times that a user waits for: the help, embedding one file, the first step of a pre-training.

    python -m benchmarks.startup [--repeats 5] [--imports]

help      `sepscene --help`, the whole process
embed     `sepscene embed` of one file of ten seconds with the full-size CNN14, the whole process, without Ray
pretrain  `sepscene pretrain table4/S2/simclr` at tiny with an existing data set and separator: from the start of the
          process to the first step in its metrics.jsonl; then the run is stopped

Prints median and range over the repeats; the machine should be idle otherwise. `--imports` lists the slowest imports of
the help, from Python's `-X importtime`.
"""

import argparse
import json
import os
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

COMMAND = (sys.executable, "-m", "sepscene")
LIMIT_SECONDS = 300


def prepare(folder: Path) -> None:
    """Create a data set, an untrained separator and an untrained encoder of full size."""
    import torch

    from sepscene.augment.synthetic.scenes import write_scenes
    from sepscene.models.encoders.encoder import Encoder, save_encoder
    from sepscene.models.separators.folder import save_separator
    from sepscene.models.separators.tdcnpp import TDCNpp
    from sepscene.orchestration.presets import named_experiment
    from sepscene.orchestration.training.builders import encoder_config

    tiny = named_experiment("table4/S2/simclr", "tiny")
    for split, count in (("train", tiny.data.scenes_train), ("test", tiny.data.scenes_test)):
        write_scenes(folder / "scenes", count, 0, split)
    torch.manual_seed(0)
    save_separator(TDCNpp(tiny.separator.network), folder / "S2", {"step": 0})
    full = named_experiment("table4/S2/simclr", "paper")
    save_encoder(Encoder(encoder_config(full)), folder / "encoder", {})


def seconds_of(arguments: list[str]) -> float:
    """Wall time of a whole command, in seconds; also prints its CPU time, which depends less on other load."""
    began = time.perf_counter()
    cpu = cpu_of_children()
    subprocess.run([*COMMAND, *arguments], check=True, capture_output=True, timeout=LIMIT_SECONDS)
    print(f"  {arguments[0]}: {cpu_of_children() - cpu:.2f} s of CPU", flush=True)
    return time.perf_counter() - began


def cpu_of_children() -> float:
    """CPU seconds of all ended child processes."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def help_seconds(folder: Path) -> float:
    """Seconds of the help."""
    return seconds_of(["--help"])


def embed_seconds(folder: Path) -> float:
    """Seconds to embed one file."""
    out = folder / "one.parquet"
    out.unlink(missing_ok=True)
    sound = sorted((folder / "scenes").rglob("*.wav"))[0]
    return seconds_of(["embed", str(folder / "encoder"), str(sound), "--out", str(out)])


def first_step_seconds(folder: Path) -> float:
    """Seconds from the start of a pre-training to its first step."""
    from sepscene.orchestration.records.run_folder import RunFolder

    run = folder / "runs" / "one"
    shutil.rmtree(run, ignore_errors=True)
    changes = {
        "data.root": str(folder / "scenes"),
        "separator.checkpoints": json.dumps({"S2": str(folder / "S2")}),
        "resources.trainers": "1",
    }
    arguments = ["pretrain", "table4/S2/simclr", "--storage", str(run.parent), "--run-id", run.name]
    arguments += [part for field, value in changes.items() for part in ("--set", f"{field}={value}")]
    began = time.perf_counter()
    process = subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not _has_step(RunFolder(run).metrics):
            if process.poll() is not None or time.perf_counter() - began > LIMIT_SECONDS:
                raise RuntimeError(f"no first step: {' '.join([*COMMAND, *arguments])}")
            time.sleep(0.02)
        return time.perf_counter() - began
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(LIMIT_SECONDS)


def _has_step(metrics: Path) -> bool:
    return metrics.exists() and '"step"' in metrics.read_text()


def imports() -> None:
    """Print the slowest imports of the help."""
    lines = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "sepscene", "--help"], capture_output=True, text=True, check=True
    ).stderr.splitlines()
    rows = [line.removeprefix("import time:").split("|") for line in lines if line.startswith("import time:")][1:]
    for own, cumulative, name in sorted(rows, key=lambda row: -int(row[1]))[:25]:
        print(f"{int(cumulative) / 1000:8.1f} ms in all, {int(own) / 1000:7.1f} ms without imports  {name.strip()}")


def main() -> None:
    """Print one line per part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="+", default=["help", "embed", "pretrain"])
    parser.add_argument("--imports", action="store_true", help="only list the slowest imports of the help")
    given = parser.parse_args()
    if given.imports:
        imports()
        return
    parts = {"help": help_seconds, "embed": embed_seconds, "pretrain": first_step_seconds}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if set(given.only) - {"help"}:
            prepare(folder)
        for part in given.only:
            took = [parts[part](folder) for _ in range(given.repeats)]
            print(f"{part:9} {statistics.median(took):6.2f} s  ({min(took):.2f} to {max(took):.2f})", flush=True)


if __name__ == "__main__":
    main()
