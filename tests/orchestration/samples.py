"""Realistic run, sweep and reproduction folders for the report tests, created with the models of real runs."""

import json
from pathlib import Path

import numpy as np

from sepscene.orchestration.records.results import (
    ClassResult,
    EncoderResult,
    LedgerResult,
    Metric,
    ProcessorResult,
    ReproducedRun,
    ReproductionResults,
    RunResults,
    StageResult,
    SweepResults,
    TrialResult,
)
from sepscene.tasks.paper.claims import PAPER_TABLES

CLASSES = (
    "dog bark", "rain", "sea waves", "crying baby", "clock tick", "sneezing", "helicopter", "chainsaw",
    "rooster", "crackling fire", "door, knock", "siren | alarm", "keyboard typing", "church bells",
    "footsteps",
)  # fmt: skip
BOOTSTRAP = "95 % bootstrap over clips"


def metric(value: float, half: float = 0.018, count: int = 128) -> Metric:
    """A metric with a symmetric interval."""
    return Metric(value=value, low=value - half, high=value + half, count=count, interval=BOOTSTRAP)


def encoder(name: str, level: float, spread: float, seed: int, description: str = "") -> EncoderResult:
    """An encoder with plausible metrics around `level` and a map in which classes form clusters."""
    draws = np.random.default_rng(seed)
    centres = draws.normal(0, 3, (len(CLASSES), 2))
    classes = tuple(
        ClassResult(
            name=label,
            positives=int(draws.integers(5, 40)),
            shallow_ap=float(ap),
            linear_ap=float(ap) * 0.8,
            qbe_ap=float(ap) * 0.9,
        )
        for label, ap in zip(CLASSES, np.clip(draws.normal(level, 0.15, len(CLASSES)), 0.03, 0.98), strict=True)
    )
    points = [
        (float(x), float(y), label)
        for label, centre in zip(CLASSES, centres, strict=True)
        for x, y in draws.normal(centre, spread, (12, 2))
    ]
    metrics = {
        "shallow_map": metric(level),
        "linear_map": metric(level - 0.02),
        "qbe_map": metric(level + 0.11, 0.012),
        "d_prime": Metric(value=1.62),
    }
    return EncoderResult(name=name, description=description, metrics=metrics, classes=classes, map_2d=tuple(points))


def sample_results() -> RunResults:
    """A finished tiny run of Table 4's row S2+N with both tasks, evaluated with two baselines."""
    return RunResults(
        run_id="tiny-s2-or-n-joint-3f9c1a",
        experiment="table4-s2-n-joint",
        scale="tiny",
        table_row="table4/S2+N/simclr-cp",
        seed=0,
        started="2026-11-22T17:02:11Z",
        seconds=412.7,
        stages=(
            StageResult(name="scenes", seconds=8.4, rows=384, note="synthetic scenes written"),
            StageResult(name="separator", seconds=131.0, rows=9600),
            StageResult(name="separate", seconds=198.3, rows=5120, busy_share=0.93, bytes_out=314_572_800),
            StageResult(name="pre-train", seconds=201.9, rows=5120, busy_share=0.41, waiting_share=0.57),
            StageResult(name="evaluate", seconds=48.2, note="mix-chan, mix-mix, untrained"),
        ),
        ladder=(
            ProcessorResult(name="N", step=0, digest="9d2e" * 16, si_sdr_improvement_db=metric(-1.73, 0.4)),
            ProcessorResult(name="F", step=30, digest="41aa" * 16, si_sdr_improvement_db=metric(0.61, 0.5)),
            ProcessorResult(
                name="S2",
                step=600,
                digest="c07b" * 16,
                si_sdr_improvement_db=metric(3.94, 0.6),
                source_improvement_db=metric(5.21, 0.7),
                mixit_loss=metric(-9.1, 0.3),
            ),
        ),
        encoders=(
            encoder("mix-chan", 0.412, 0.7, 1, "the mixture and a channel of S2 or N; both tasks"),
            encoder("mix-mix", 0.389, 0.9, 2, "both views from the mixture; same steps and batch"),
            encoder("untrained", 0.227, 2.5, 3, "random weights"),
        ),
        ledger=LedgerResult(
            rows=5120, consumed=5118, lost=0, twice=0,
            quarantined={"train/00017.flac": "holds 0 samples", "train/00203.flac": "12 samples are NaN"},
        ),
        bottleneck="separation limits the run: trainers wait 57 % of the time; add separation actors",
        environment={"python": "3.11.2", "ray": "2.60.0", "torch": "2.11.0", "devices": "2 CPU cores"},
        data={"set": "synthetic scenes", "clips": "256 train, 128 test", "hash": "b5bb9d80"},
    )  # fmt: skip


def write_metrics(run_dir: Path, seed: int = 0, level: float = 1.0) -> None:
    """Step metrics of two stages: the MixIT loss of a separator, and losses and waiting share of a pre-training."""
    draws = np.random.default_rng(seed)
    lines = []
    for step in range(0, 600, 2):
        loss = -9 + 7 * np.exp(-step / 120) + draws.normal(0, 0.7)
        lines.append({"stage": "separator", "step": step, "seconds": step * 0.2, "mixit_loss": loss})
    for step in range(1, 81):
        similarity = 1.9 + level * 2.2 * np.exp(-step / 25) + draws.normal(0, 0.05)
        metrics = {
            "train/loss": similarity + 0.5,
            "similarity/loss": similarity,
            "learning_rate": 1e-3 * (1 + np.cos(np.pi * step / 80)) / 2,
            "waiting_share": draws.uniform(0.5, 0.65),
        }
        lines.append({"stage": "pretrain", "step": step, "seconds": step * 2.5} | metrics)
    lines.append({"stage": "evaluate", "step": 1, "seconds": 0.5, "loss": float("nan")})
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"stage": "pre-tr')


def write_sample_run(run_dir: Path) -> RunResults:
    """Write the folder of a finished run."""
    run_dir.mkdir(parents=True, exist_ok=True)
    results = sample_results()
    results.save(run_dir)
    write_metrics(run_dir)
    (run_dir / "experiment.yaml").write_text("name: table4-s2-n-joint\nscale: tiny\nobjective:\n  temperature: 0.2\n")
    return results


def sample_sweep() -> SweepResults:
    """Three combinations by three temperatures by two seeds; one trial failed, some were stopped early."""
    draws = np.random.default_rng(5)
    combinations: tuple[tuple[tuple[str, ...], float], ...] = (
        (("S2",), 0.39),
        (("N",), 0.395),
        (("S2", "N"), 0.42),
    )
    trials = []
    for combination, level in combinations:
        for temperature, change in ((0.1, -0.012), (0.2, 0.0), (0.5, -0.04)):
            for seed in (0, 1):
                name = f"{'-or-'.join(combination)}-t{temperature}-s{seed}"
                settings = {"views.combination": combination, "objective.temperature": temperature}
                value = level + change + float(draws.normal(0, 0.004))
                finished = {"shallow_map": metric(value), "qbe_map": metric(value + 0.1, 0.012)}
                trial = TrialResult(
                    name=name, status="finished", settings=settings, seed=seed, metrics=finished, steps=80,
                    seconds=220.0, run_dir=f"trials/{name},100%",
                )  # fmt: skip
                changes: dict[str, object] = {}
                if temperature == 0.5 and combination != ("S2", "N"):
                    changes = {
                        "status": "stopped early",
                        "reason": "below the median at step 20",
                        "steps": 20,
                    }
                    changes["metrics"] = {"shallow_map": metric(value - 0.05)}
                if name == "S2-t0.1-s1":
                    changes = {
                        "status": "failed",
                        "reason": "worker lost 3 times | see its log",
                        "metrics": {},
                    }
                trials.append(trial.changed(changes))
    return SweepResults(
        sweep_id="tiny-combinations-77aa10", experiment="table4-s2-n-joint", scale="tiny", seconds=3720.0,
        started="2026-11-22T17:02:11+00:00", fields=("views.combination", "objective.temperature"),
        scheduler="Trials below the median after 20 steps are stopped early.", trials=tuple(trials),
        environment={"ray": "2.60.0", "devices": "2 CPU cores"}, data={"set": "synthetic scenes"},
    )  # fmt: skip


def write_sample_sweep(sweep_dir: Path) -> SweepResults:
    """Write a sweep's folder with the metrics of its trials."""
    sweep_dir.mkdir(parents=True, exist_ok=True)
    sweep = sample_sweep()
    sweep.save(sweep_dir)
    for index, trial in enumerate(sweep.trials):
        (sweep_dir / trial.run_dir).mkdir(parents=True, exist_ok=True)
        write_metrics(sweep_dir / trial.run_dir, seed=index, level=1 + 0.1 * index)
    return sweep


def write_sample_reproduction(directory: Path) -> ReproductionResults:
    """Write all rows of Tables 2 and 4 with three seeds each, without d = 1024; coincidence prediction helps."""
    directory.mkdir(parents=True, exist_ok=True)
    draws = np.random.default_rng(11)
    runs = []
    for row in (*PAPER_TABLES["table2"], *PAPER_TABLES["table4"]):
        for seed in range(3):
            value = row.value + 0.1 + float(draws.normal(0, 0.003)) + 0.02 * row.name.endswith("-cp")
            folder = f"runs/{row.name.replace('/', '-')}-s{seed}"
            runs.append(ReproducedRun(row=row.name, seed=seed, metric=metric(value), run_dir=folder))
    results = ReproductionResults(
        reproduction_id="tiny-19fe02", scale="tiny", started="2026-11-22T17:02:11Z", seconds=9000.0,
        differs=("256 synthetic scenes instead of AudioSet", "80 steps", "batch 64"),
        runs=tuple(runs), environment={"ray": "2.60.0"}, data={"set": "synthetic scenes"},
    )  # fmt: skip
    results.save(directory)
    return results
