"""The main tasks as Python functions. The command line calls them; `sepscene` exports some of them."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console

from sepscene.models.config import SepsceneError
from sepscene.models.names import is_custom
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.presets import resolve, with_changes
from sepscene.orchestration.records.run_folder import Storage, dated, encoder_of, folder_in, newest_dated
from sepscene.orchestration.records.sweep_folder import SweepFolder
from sepscene.orchestration.terminal import Terminal
from sepscene.tasks.datasets.python_clips import write_clips

if TYPE_CHECKING:
    import ray.train
    import ray.tune

    from sepscene.orchestration.evaluation.embed_files import EmbedReport
    from sepscene.orchestration.pipeline.run import Run
    from sepscene.orchestration.records.results import SweepResults
    from sepscene.orchestration.sweeps.config import SweepConfig
    from sepscene.tasks.datasets.manifest import Clip


def pretrain(
    experiment: Experiment | str,
    *,
    scale: str | None = None,
    changes: Mapping[str, Any] | None = None,
    clips: "Iterable[Clip | Mapping[str, Any]] | None" = None,
    storage: Path | str = "runs",
    run_id: str | None = None,
    resume: bool = False,
    evaluate: bool = True,
    address: str | None = None,
    callbacks: "Sequence[ray.train.UserCallback]" = (),
    dashboard: bool = False,
    quiet: bool = False,
    verbose: bool = False,
) -> Path:
    """Pre-train an encoder on separated views. Trains the separator first, unless its checkpoints are given.

    Example:
        >>> import sepscene
        >>> run = sepscene.pretrain("demo", changes={"training.epochs": 2})
        >>> encoder = sepscene.load_encoder(run / "encoder")

    Args:
        experiment: a name (`sepscene show` lists them), the path of a YAML file, or an `Experiment`.
        scale: "tiny", "small" or "paper", for a name; "mini" is also possible for the demo. None: "tiny".
        changes: dotted fields with new values.
        clips: the data set; each clip as for `sepscene.write_clips`. The list is saved in STORAGE/clips, the audio
            files are not copied. None: the experiment's own data.
        storage: folder for runs; on a cluster, a folder that all nodes mount.
        run_id: name of the run's folder; by default derived from the experiment.
        resume: continue the run with this id, or the newest run of this experiment, from where it stopped.
        evaluate: evaluate the encoder and write a report at the end.
        address: address of a Ray cluster; None: the Ray that is already connected, RAY_ADDRESS, or this machine.
        callbacks: for Ray Train, which calls them in its controller process when the workers of a training stage
            report, fail or finish. They must be picklable. An exception in one of them ends the stage.
        dashboard: start the dashboard of a local Ray; a cluster has its own.
        quiet: show no progress bars and tables.
        verbose: show Ray's own messages.

    Returns:
        The run's folder: `encoder/`, `report.html`, `results.json`, `experiment.yaml`, `ledger.json`, `checkpoints/`.

    Raises:
        SepsceneError: for an experiment that is invalid or does not fit the machine or cluster, or a stage that fails.
    """
    from sepscene.orchestration.pipeline.encoders import encoders_of
    from sepscene.orchestration.pipeline.run import Run
    from sepscene.orchestration.pipeline.session import prepared_session
    from sepscene.orchestration.records.mlflow_address import default_tracking_uri

    if isinstance(experiment, str):
        experiment = resolve(experiment, scale, None)
    experiment = with_changes(experiment, changes or {})
    storage = Path(storage)
    console = Terminal(quiet=quiet)
    if clips is not None:
        table = write_clips(clips, Storage(storage).clips)
        experiment = experiment.changed({"data.format": "clips", "data.root": str(table)})
    if run_id is None:
        name = f"{experiment.name}-{experiment.digest()}"
        run_id = newest_dated(storage, name, "--run-id") if resume else dated(name)
    folder = folder_in(storage, run_id, "the run id")
    # The demo has its own MLflow store; all other runs in a storage folder share one, so that they can be compared.
    uri = default_tracking_uri(folder if experiment.name == "demo" else storage)
    with prepared_session(experiment, address, verbose, dashboard):
        with Run.open(folder, experiment, uri, console, resume) as run, _continuable(run, "pretrain"):
            run.callbacks = callbacks
            ladder = run.ladder()
            bundle = run.encoder(ladder)
            # Imported here because scikit-learn and matplotlib take two seconds, which would delay the training.
            from sepscene.orchestration.pipeline.evaluate_stage import evaluate_run, print_summary

            if evaluate:
                evaluate_run(run, encoders_of(run), ladder)
            else:
                run.publish(experiment.views.pair, bundle)
        print_summary(run)
    return folder


def train_separator(
    experiment: Experiment, storage: Path, run_id: str | None, resume: bool, address: str | None, verbose: bool
) -> dict[str, str]:
    """Train a separator with MixIT on unlabelled clips.

    Returns:
        The ladder: processor name -> folder of the checkpoint.

    Raises:
        SepsceneError: as for `pretrain`.
    """
    from sepscene.orchestration.pipeline.run import Run
    from sepscene.orchestration.pipeline.session import prepared_session
    from sepscene.orchestration.records.mlflow_address import default_tracking_uri

    folder = folder_in(storage, run_id or f"separator-{experiment.digest()}", "the run id")
    with prepared_session(experiment, address, verbose):
        opened = Run.open(folder, experiment, default_tracking_uri(storage), Terminal(), resume)
        with opened as run, _continuable(run, "separator", "train"):
            return run.ladder()


def _continuable(run: "Run", *command: str) -> AbstractContextManager[None]:
    """Print the command that continues the run if the block fails."""
    from sepscene.orchestration.pipeline.run import with_resume_hint

    words = [*command, str(run.files.experiment), "--storage", str(run.folder.parent)]
    resume_command = shlex.join(["sepscene", *words, "--run-id", run.folder.name, "--resume"])
    return with_resume_hint(run.console, resume_command)


def sweep(
    experiment: str,
    over: Mapping[str, Any],
    *,
    scale: str | None = None,
    changes: Mapping[str, Any] | None = None,
    seeds: int = 1,
    search: Literal["grid", "random", "optuna"] = "grid",
    scheduler: str = "none",
    budget: Mapping[str, Any] | None = None,
    storage: Path | str = "runs",
    sweep_id: str | None = None,
    resume: bool = False,
    address: str | None = None,
    callbacks: "Sequence[ray.tune.Callback]" = (),
    dashboard: bool = False,
    quiet: bool = False,
    verbose: bool = False,
) -> "ray.tune.ResultGrid":
    """Run an experiment with many settings and rank them.

    Example:
        >>> import sepscene
        >>> grid = sepscene.sweep("demo", {"temperature": [0.1, 0.2]}, seeds=2, sweep_id="tau")
        >>> grid.get_best_result("shallow_map", "max").path

    Args:
        experiment: a name (`sepscene show` lists them) or the path of an experiment's YAML file.
        over: field -> list of values, or a range such as "loguniform(0.05,0.5)".
        scale: "tiny", "small" or "paper", for a name. None: "tiny".
        changes, storage, address, dashboard, quiet, verbose: as for `pretrain`.
        seeds: number of runs per setting.
        search: "grid", "random" or "optuna".
        scheduler: how trials are stopped early: "none" or "asha".
        budget: limits of the sweep: "trials", "hours" and "gpu_hours".
        sweep_id: name of the sweep's folder; an existing sweep is continued.
        resume: continue the newest sweep that had the same arguments.
        callbacks: for Ray Tune, which calls them in this process.

    Returns:
        The results of the trials that this call ran. Trials that an earlier call finished are only in the sweep's
        report and in sweep.json. If nothing was left to run: the results of the most recent call that ran trials.

    Raises:
        SepsceneError: for invalid fields, values or budgets, before anything starts.
    """
    from sepscene.orchestration.sweeps.config import make_sweep

    config = make_sweep(
        experiment=experiment,
        over=dict(over),
        scale=scale,
        changes=dict(changes or {}),
        seeds=seeds,
        search=search,
        scheduler=scheduler,
        budget=dict(budget or {}),
    )
    console = Terminal(quiet=quiet)
    folder, _ = run_sweep(config, Path(storage), sweep_id, resume, address, verbose, console, callbacks, dashboard)
    return _newest_grid(folder)


def run_sweep(
    config: "SweepConfig",
    storage: Path,
    sweep_id: str | None,
    resume: bool,
    address: str | None,
    verbose: bool,
    console: Console,
    callbacks: "Sequence[ray.tune.Callback]" = (),
    dashboard: bool = False,
) -> "tuple[Path, SweepResults]":
    """Run or continue a configured sweep (see `sweep`); returns its folder and its results."""
    from sepscene.orchestration.dataset_presets import check_splits
    from sepscene.orchestration.pipeline.session import prepared_session
    from sepscene.orchestration.records.mlflow_address import default_tracking_uri
    from sepscene.orchestration.runtime.concurrency import most_demanding
    from sepscene.orchestration.sweeps.trial_plan import find_sweep, plan_trials, possible_experiments

    base, space = config.checked()
    planned = plan_trials(config, base, space)  # raises an error for bad combinations before anything starts
    check_splits(base.data)
    trials = possible_experiments(base, planned, space)
    most = most_demanding(trials)
    from sepscene.orchestration.sweeps import sweep as sweeps

    if resume and sweep_id is None:
        folder = find_sweep(storage, config).resolve()
    else:
        folder = folder_in(storage, sweep_id or dated(f"sweep-{base.name}"), "the sweep id")
    with prepared_session(most, address, verbose, dashboard, trials):
        return folder, sweeps.sweep(config, folder, default_tracking_uri(storage), console, callbacks)


def _newest_grid(folder: Path) -> "ray.tune.ResultGrid":
    """The results that Tune has saved of the most recent call for a sweep."""
    import ray.tune

    newest = max(path for path in SweepFolder(folder).tune.iterdir() if path.is_dir())
    return ray.tune.ResultGrid(ray.tune.ExperimentAnalysis(str(newest)))


def embed(
    encoder: Path | str,
    inputs: Sequence[Path | str],
    out: Path | str,
    *,
    device: str = "auto",
    bfloat16: bool = False,
    readers: int = 2,
    actors: int = 0,
    gpus: float = 0.0,
    address: str | None = None,
    quiet: bool = False,
) -> "EmbedReport":
    """Compute embeddings of sound files. Called again after an interruption, it continues where it stopped.

    Example:
        >>> import sepscene
        >>> report = sepscene.embed("runs/demo", ["recordings/"], "embeddings.parquet")
        >>> report.written, report.bad

    Args:
        encoder: folder of an encoder bundle or of a run, or an MLflow URI.
        inputs: files, folders, manifests (.csv or .parquet with a column `uri`), and data sets as FORMAT:FOLDER.
        out: .parquet (columns uri, h), or NAME.npy with the names in NAME.names.json.
        device: "cpu", "cuda", "cuda:1", or "auto", which uses a GPU if there is one.
        bfloat16: half precision on a GPU.
        readers: number of files that are decoded in advance.
        actors: number of Ray actors that share the work; 0: compute in this process, without Ray.
        gpus: GPUs per actor; actors with a share of a GPU compute on it.
        address: address of a Ray cluster, with `actors`.
        quiet: show no progress bar.

    Raises:
        SepsceneError: the encoder, a manifest, the device or an existing output cannot be used, or an argument has no
            effect with or without `actors`. Errors in single files are not raised; the report lists them.
    """
    if actors and device != "auto":
        raise SepsceneError(f"--device {device} has no effect with --actors: set the GPUs of each actor with --gpus")
    for name, value in (("--gpus", gpus), ("--address", address)):
        if value and not actors:
            raise SepsceneError(f"{name} {value} has no effect without --actors: set their number")
    from sepscene.models.encoders.encoder import load_encoder
    from sepscene.orchestration.evaluation.embed_files import embed_files, on_cluster, usable_device
    from sepscene.orchestration.evaluation.file_encoder import FileEncoder

    loaded = load_encoder(encoder_of(Path(encoder)))
    files = [str(path) for path in inputs]
    if not actors:
        file_encoder = FileEncoder(loaded, usable_device(device), bfloat16, readers)
        return embed_files(loaded, files, Path(out), file_encoder.embed, not quiet)
    from sepscene.orchestration.runtime.session import check_custom_code, connected

    use = loaded.config.trunk.use
    code = [use] if is_custom(use) else []
    with connected(address, code=code):
        embedder = on_cluster(loaded, actors, gpus, bfloat16, readers)
        check_custom_code(code)
        return embed_files(loaded, files, Path(out), embedder, not quiet)
