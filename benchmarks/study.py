"""The effect of settings on the metrics: runs without Ray, in one process each, for questions that need many runs.

    sepscene separator train table4/S2+N/simclr-cp --run-id study --storage runs     # data and ladder, once
    python -m benchmarks.study runs/study table4/S2/simclr table4/S2/simclr-cp --set training.epochs=120 --seeds 0,1,2

Rows, views, networks and losses are the same as on a cluster, in one loop over the schedule. Views come from the
SeparatedStore, which the first run fills. Each run appends a line to FOLDER/study.jsonl: experiment, changes, seed,
both losses over the last tenth, metrics on the test clips. Finished runs are not repeated, and several commands can
share a folder. --table prints its results:

    python -m benchmarks.study runs/study --table
"""

import argparse
import json
import os
import sys
import time
from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn

from sepscene.augment.audio import read_sound
from sepscene.augment.augmentations.settings import streams_of
from sepscene.augment.separation.blocks import ServiceSettings
from sepscene.augment.separation.reader import ViewMaker
from sepscene.augment.store.separated_store import SeparatedStore
from sepscene.models.encoders.encoder import Encoder
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.mini.training import check_supported
from sepscene.orchestration.presets import resolve
from sepscene.orchestration.records.ledger import Ledger
from sepscene.orchestration.runtime.allocator import MALLOC
from sepscene.orchestration.training.builders import build_objective, encoder_config, start_from
from sepscene.orchestration.training.optimizer import adamw, learning_rate
from sepscene.orchestration.training.pretrainer import ViewInputs, pcm_pair
from sepscene.orchestration.training.row_draws import DrawRows
from sepscene.orchestration.training.separator_training import read_ladder
from sepscene.orchestration.training.stream import schedule_of
from sepscene.tasks.datasets.readers import Manifest, read_manifest
from sepscene.tasks.evaluation.embed_sounds import embed_sounds
from sepscene.tasks.evaluation.scores import score_embeddings

METRICS = ("shallow_map", "linear_map", "knn_map", "qbe_map")
EMBED_CLIPS = 16


def trained(
    experiment: Experiment, clips: Manifest, ladder: dict[str, str], store: SeparatedStore
) -> tuple[Encoder, dict[str, float]]:
    """Train over the whole schedule; returns the encoder and its mean losses over the last tenth of the steps."""
    check_supported(experiment)
    training = experiment.training
    schedule = schedule_of(experiment, len(clips.clips))
    streams = streams_of(experiment.used_augmentations)
    rows = DrawRows(clips.clips, schedule, Ledger(schedule.rows), experiment.views, streams)
    make = ViewMaker(ServiceSettings(views=experiment.views, audio=experiment.audio, checkpoints=ladder), store)
    front_end = ViewInputs(experiment)
    objective = build_objective(experiment)
    if training.start_encoder is not None:
        start_from(objective, Path(training.start_encoder))
    objective = objective.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = adamw(objective, training, torch.device("cpu"))
    steps = -(-schedule.rows // training.global_batch)
    losses: dict[str, list[float]] = defaultdict(list)
    for step in track(range(steps), experiment.name, console=Console(stderr=True)):
        batch = make(rows({"id": np.arange(step * training.global_batch, (step + 1) * training.global_batch)}))
        usable_B = (batch["row"] >= 0) & (batch["fault"] == "")
        batch = {name: column[usable_B] for name, column in batch.items()}
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(training, step, steps)
        optimizer.zero_grad(set_to_none=True)
        views = front_end(pcm_pair(batch, "view", torch.device("cpu")), batch)
        result = objective(*views, weights=experiment.objective.weights_at(step))
        result.loss.backward()
        nn.utils.clip_grad_norm_(objective.parameters(), training.clip_gradient_norm)
        optimizer.step()
        for name in ("similarity", "coincidence"):
            if name in result.parts:
                losses[name].append(float(result.parts[name]))
    encoder = Encoder(encoder_config(experiment), objective.trunk).eval()
    return encoder, {name: mean(values[-max(1, steps // 10) :]) for name, values in losses.items()}


def embedded(encoder: Encoder, clips: Manifest, experiment: Experiment) -> np.ndarray:
    """h of every clip, (N, D), without padding, as in the evaluation of a run."""
    found = list(zip(*(clips.clips[name].to_pylist() for name in ("uri", "offset_seconds")), strict=True))
    h = []
    for start in range(0, len(found), EMBED_CLIPS):
        waves = [read_sound(uri, experiment.audio, offset) for uri, offset in found[start : start + EMBED_CLIPS]]
        h.append(embed_sounds(encoder, waves, "cpu"))
    return np.concatenate(h)


def one_run(folder: Path, experiment: Experiment) -> dict[str, float]:
    """Losses and metrics of one experiment with the folder's data and ladder."""
    manifest = read_manifest(experiment.data.format, experiment.data.root or str(folder / "scenes"))
    train = manifest.select(*experiment.data.train)
    test = manifest.select(*experiment.data.test)
    store = SeparatedStore(str(folder / "store"))
    encoder, losses = trained(experiment, train, read_ladder(folder), store)
    store.close()
    h = embedded(encoder, train, experiment), embedded(encoder, test, experiment)
    scores = score_embeddings(h[0], train.targets(), h[1], test.targets(), test.classes, experiment.evaluation.scoring)
    return losses | {name: scores.metrics[name].value for name in METRICS}


def known(folder: Path) -> list[dict[str, Any]]:
    """The records in the folder."""
    path = folder / "study.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def print_table(folder: Path) -> None:
    """Print means over seeds, and in brackets the shallow mAP of every seed."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for record in known(folder):
        groups[record["experiment"], " ".join(record["changes"])].append(record)
    table = Table("experiment", "changes", "shallow mAP (by seed)", "linear", "kNN", "QbE", "NT-Xent", "coincidence")
    for (name, changes), records in sorted(groups.items()):
        records = sorted(records, key=lambda record: record["seed"])
        shallow = [record["shallow_map"] for record in records]
        by_seed = " ".join(f"{value:.3f}" for value in shallow)
        others = (*METRICS[1:], "similarity", "coincidence")
        means = [mean([r[key] for r in records]) if key in records[0] else float("nan") for key in others]
        table.add_row(name, changes, f"{mean(shallow):.3f} ({by_seed})", *(f"{value:.3f}" for value in means))
    Console(width=160).print(table)


def main() -> None:
    """Run the experiments that have no record, and print the table with --table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("experiments", nargs="*")
    parser.add_argument("--set", action="append", default=[], dest="changes")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    if "GLIBC_TUNABLES" not in os.environ:  # it is read only when a process starts
        environment = os.environ | {"GLIBC_TUNABLES": MALLOC}
        os.execve(sys.executable, [sys.executable, "-m", "benchmarks.study", *sys.argv[1:]], environment)
    torch.set_num_threads(1)
    for seed in map(int, given.seeds.split(",")):
        for name in given.experiments:
            what = {"experiment": name, "changes": given.changes, "seed": seed}
            if any(what.items() <= record.items() for record in known(given.folder)):
                continue
            experiment = resolve(name, "tiny", [*given.changes, f"seed={seed}"])
            begin = time.perf_counter()
            record = what | one_run(given.folder, experiment) | {"seconds": round(time.perf_counter() - begin)}
            with (given.folder / "study.jsonl").open("a") as file:
                file.write(json.dumps(record) + "\n")
    if given.table:
        print_table(given.folder)


if __name__ == "__main__":
    main()
