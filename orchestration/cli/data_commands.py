"""The commands for data: `data audit`, `store ls | verify | gc`, `separator prefill`, `plan`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from sepscene.orchestration.cli.arguments import Address, Changes, ExperimentName, Scale, Storage, TrustCode, Verbose
from sepscene.orchestration.terminal import Terminal

if TYPE_CHECKING:
    from sepscene.augment.audio import AudioFormat
    from sepscene.orchestration.config import Experiment
    from sepscene.tasks.datasets.readers import Manifest

console = Terminal()
data_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Inspect a data set before using it.")
store_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Inspect and clean the SeparatedStore.")

CALIBRATION_CLIPS = 16
"""Maximum number of clips that a plan decodes to measure the time."""

StoreUri = Annotated[str, typer.Argument(metavar="STORE", help="Folder or URI of a store, e.g. `runs/store`.")]


@data_app.command("audit")
def audit_command(
    root: Annotated[str, typer.Argument(help="Folder or URI of the data set.")],
    format: Annotated[
        str,
        typer.Option(
            help="`directory`, `table`, `esc50`, `urbansound8k`, `audioset`, `fsd50k`, `shards`, `parquet`, `folder`, "
            "`huggingface`, `clips` or `scenes`; docs/data.md describes them."
        ),
    ],
    threads: Annotated[int, typer.Option(min=1, help="Number of threads for decoding.")] = 4,
    storage: Storage = Path("runs"),
) -> None:
    """Decode every clip and report problems.

    Reports missing, corrupt and duplicate clips, durations and label counts. The exit code is 3 if clips are missing or
    corrupt, or if a file name is not UTF-8. The report is saved in the storage folder and logged to MLflow; runs on the
    same data in this storage record its hash.

    Example: `sepscene data audit esc10 --format esc50`
    """
    from rich.progress import Progress

    from sepscene.orchestration.records.audit_log import save_audit
    from sepscene.orchestration.records.mlflow_address import default_tracking_uri
    from sepscene.tasks.datasets.audit import audit
    from sepscene.tasks.datasets.readers import read_manifest

    manifest = read_manifest(format, root, survey=True)
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("decode", total=len(manifest.clips))
        found = audit(manifest, threads, lambda done: progress.update(task, completed=done))
    print(found.text())
    kept = save_audit(found, manifest, format, root, storage, default_tracking_uri(storage))
    console.print(f"saved in {kept}", soft_wrap=True)
    if found.missing or found.corrupt or found.unnamed:
        raise typer.Exit(3)


@store_app.command("ls")
def store_ls(store: StoreUri) -> None:
    """List the contents of a store by separator and settings.

    Example: `sepscene store ls runs/store`
    """
    from rich.table import Table

    from sepscene.augment.store.upkeep import list_store

    listing = list_store(store)
    console.print(f"{listing.uri}: {listing.entries} clips in {listing.shards} shards, {listing.bytes / 2**20:.1f} MiB")
    if listing.groups:
        table = Table("separator", "clips", "channels", "MiB", "settings")
        for group in listing.groups:
            size = f"{2 * group.samples / 2**20:.1f}"
            table.add_row(group.processor[:12], f"{group.entries:,}", f"{group.channels:,}", size, Text(group.settings))
        console.print(table)
    for shard in listing.damaged_shards:
        console.print(Text("damaged", "red"), f"{shard}")


@store_app.command("verify")
def store_verify(store: StoreUri) -> None:
    """Read a whole store and verify every checksum.

    The exit code is 3 if anything is damaged.

    Example: `sepscene store verify runs/store`
    """
    from sepscene.augment.store.upkeep import verify_store

    found = verify_store(store)
    console.print(
        f"{found.entries} clips in {found.shards} shards, {found.bytes_read / 2**20:.1f} MiB, {found.seconds:.1f} s"
    )
    for name, fault in found.damaged_shards:
        console.print(Text("damaged", "red"), f"{name}: {fault}")
    for entry in found.damaged_entries:
        where = f"channel {entry.channel} of clip {entry.content[:12]} by {entry.processor[:12]}"
        console.print(Text("damaged", "red"), f"{entry.shard}: {where}")
    if not found.whole:
        console.print(
            "damaged clips are separated again when they are needed; `sepscene store gc` removes unreadable shards"
        )
        raise typer.Exit(3)


@store_app.command("gc")
def store_gc(
    store: StoreUri,
    max_gib: Annotated[float | None, typer.Option(min=0, help="Maximum size of the store in GiB.")] = None,
) -> None:
    """Remove damaged and leftover files from a store.

    With --max-gib, also removes the oldest shards until the store is small enough.

    Example: `sepscene store gc runs/store --max-gib 200`
    """
    from sepscene.augment.store.upkeep import collect_store

    removed = collect_store(store, None if max_gib is None else int(max_gib * 2**30))
    console.print(
        f"removed {removed.damaged_shards} damaged and {removed.old_shards} old shards, {removed.leftovers} leftover "
        f"files: {removed.bytes_freed / 2**20:.1f} MiB freed, {removed.bytes_left / 2**20:.1f} MiB left"
    )


def prefill(
    experiment: ExperimentName,
    scale: Scale = None,
    storage: Storage = Path("runs"),
    run_id: Annotated[str | None, typer.Option(help="Use the data and the separators of this run.")] = None,
    change: Changes = None,
    address: Address = None,
    verbose: Verbose = False,
    trust_code: TrustCode = False,
) -> None:
    """Fill the SeparatedStore with every clip before training.

    Separates every clip with every processor of the experiment. The exit code is 3 if separated clips are missing at
    the end.

    Example: `sepscene separator prefill demo --run-id demo`
    """
    from sepscene.models.config import SepsceneError
    from sepscene.orchestration.pipeline.run import Run
    from sepscene.orchestration.pipeline.session import prepared_session
    from sepscene.orchestration.presets import resolve
    from sepscene.orchestration.records.mlflow_address import default_tracking_uri
    from sepscene.orchestration.records.run_folder import folder_in

    resolved = resolve(experiment, scale, change)
    if not resolved.views.separates:
        raise SepsceneError(
            "views.pair mix-mix separates nothing, so there is nothing to store; use another views.pair"
        )
    folder = folder_in(storage, run_id or f"prefill-{resolved.digest()}", "the run id")
    with prepared_session(resolved, address, verbose):
        with Run.open(folder.resolve(), resolved, default_tracking_uri(storage), console, resume=True) as run:
            filled = run.prefill(run.ladder())
        parts = [f"{filled.present} of {filled.expected} separated clips are in {run.store_uri()}"]
        if not filled.counts:
            parts = [f"{run.store_uri()} is already complete: it has every usable clip, separated by all processors"]
        if filled.unusable:
            parts.append(f"{filled.unusable} are of unusable clips")
        if filled.missing:
            parts.append(f"{filled.missing} are missing")
        console.print("; ".join(parts), soft_wrap=True)
    if filled.missing:
        raise typer.Exit(3)


def plan(
    experiment: ExperimentName,
    scale: Scale = None,
    change: Changes = None,
    seconds: Annotated[float, typer.Option(min=1, help="Seconds that the calibration may take.")] = 10.0,
    clips: Annotated[
        int | None, typer.Option(min=1, help="Number of training clips, if the data set is not on this machine.")
    ] = None,
    trust_code: TrustCode = False,
) -> None:
    """Estimate the cost of a run before it starts.

    Shows rows, hours of audio, operations, bytes, time and GPU-hours. The times are measured on this machine for about
    ten seconds, so they hold for similar machines. If there is a data set at `data.root`, its training clips are
    counted and the first few are decoded.

    Example: `sepscene plan table4/S2+N/simclr-cp --scale paper --clips 2000000`
    """
    from sepscene.orchestration.planning.calibration import calibrate
    from sepscene.orchestration.planning.plan import plan as make_plan
    from sepscene.orchestration.planning.plan_table import plan_table
    from sepscene.orchestration.presets import resolve
    from sepscene.orchestration.runtime.precision import slow_precisions

    resolved = resolve(experiment, scale, change)
    present = _training_clips(resolved, needed=clips is None)
    uris: list[str] = []
    offsets: list[float] = []
    skipped = 0
    if present:
        uris, offsets, skipped = _readable(present, resolved.audio)
    if skipped:
        console.print(f"{skipped} of the first {len(uris) + skipped} clips cannot be read; see `sepscene data audit`")
    for warning in slow_precisions(resolved):
        console.print(warning, style="yellow")
    measured = calibrate(resolved, seconds, uris, offsets)
    console.print(plan_table(make_plan(resolved, measured, clips or (len(present) if present else None))))


def _training_clips(experiment: "Experiment", needed: bool) -> "Manifest | None":
    """The training clips of a data set that is on this machine, otherwise None.

    Raises:
        SepsceneError: when the data set cannot be read and is `needed`.
    """
    from sepscene.models.config import SepsceneError
    from sepscene.tasks.datasets.readers import read_manifest

    data = experiment.data
    if data.root is None:
        return None
    try:
        return read_manifest(data.format, data.root).select(*data.train)
    except SepsceneError as error:
        if not needed:
            return None
        raise SepsceneError(f"{error}; or give the number of clips with --clips N") from error


def _readable(manifest: "Manifest", audio: "AudioFormat") -> tuple[list[str], list[float], int]:
    """URIs and offsets of the readable clips among the first ones, and the number of the unreadable."""
    from sepscene.augment.audio import ClipError, read_clip

    uris = list[str]()
    offsets = list[float]()
    first = manifest.clips.slice(0, CALIBRATION_CLIPS)
    for uri, offset in zip(first["uri"].to_pylist(), first["offset_seconds"].to_pylist(), strict=True):
        try:
            read_clip(uri, audio, offset)
        except ClipError:
            continue
        uris.append(uri)
        offsets.append(offset)
    return uris, offsets, len(first) - len(uris)
