"""The results of a finished run: metrics with intervals, stage timings, the ledger's summary.

`RUN/results.json` contains one `RunResults`, `SWEEP/sweep.json` one `SweepResults`. Reports and tables read only these
files, so they can be created again at any time, on another machine, without Ray.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from sepscene.augment.locations import leaves_root
from sepscene.models.config import Config, SepsceneError
from sepscene.orchestration.records.files import Record, parse_records, read_bytes, read_typed, write_text_atomically
from sepscene.orchestration.records.ledger import Ledger
from sepscene.orchestration.records.run_folder import RunFolder
from sepscene.orchestration.records.sweep_folder import SweepFolder

if TYPE_CHECKING:
    from sepscene.tasks.evaluation.statistics import Interval

MAX_METRICS_BYTES = 8 * 2**30
"""Maximum size of a metrics file; 10 million steps take about 5 GB."""


def _inside(name: str) -> str:
    """Refuse a path that leads out of its folder; results can come from an untrusted source."""
    if leaves_root(name):
        raise ValueError(f"{name!r} leads out of the folder of these results")
    return name


InsideFolder = Annotated[str, AfterValidator(_inside)]
"""A relative path without "..": a report reads files there and links to them."""


class Metric(Config):
    """A measured number with its confidence interval."""

    model_config = ConfigDict(allow_inf_nan=True, ser_json_inf_nan="constants")  # NaN is written and read as NaN

    value: float
    low: float | None = Field(None, description="lower end of the interval")
    high: float | None = Field(None, description="upper end of the interval")
    count: int | None = Field(None, description="number of clips, queries or seeds from which the value is computed")
    interval: str = Field("", description='method of the interval, e.g. "95 % bootstrap over clips"')


def metric_of(interval: "Interval") -> Metric:
    """Convert an interval to a metric of the results."""
    return Metric(
        value=interval.value,
        low=interval.low,
        high=interval.high,
        count=interval.count,
        interval=interval.method,
    )


class ClassResult(Config):
    """Metrics of one class of the evaluation data."""

    name: str
    positives: int = Field(description="positive clips in the test split")
    shallow_ap: float | None = None
    linear_ap: float | None = None
    qbe_ap: float | None = None


class EncoderResult(Config):
    """The evaluation of one encoder."""

    name: str = Field(description='"mix-chan", "mix-mix", "untrained", or a row of a table')
    description: str = ""
    metrics: dict[str, Metric] = Field(
        description='"shallow_map", "qbe_map", "knn_map", "linear_map", "d_prime", "lwlrap"'
    )
    classes: tuple[ClassResult, ...] = ()
    map_2d: tuple[tuple[float, float, str], ...] = Field(
        (), description="test clips' embeddings in two dimensions: x, y, first label"
    )
    replicates: tuple[float, ...] = Field((), description="shallow mAP on resampled test clips")
    diagnostics: dict[str, float] = Field(
        default_factory=dict, description="background, level: shares of h that each explains; rank: of h"
    )


class ProcessorResult(Config):
    """One separator checkpoint of the ladder."""

    name: str
    step: int
    digest: str
    si_sdr_improvement_db: Metric | None = Field(None, description="on mixtures of two held-out clips, remixed (MoMi)")
    source_improvement_db: Metric | None = Field(None, description="on single held-out clips whose sources are known")
    mixit_loss: Metric | None = None


class StageResult(Config):
    """One stage of a run: its wall time, and for streaming stages how the time was spent."""

    name: str
    seconds: float
    rows: int | None = None
    busy_share: float | None = Field(None, description="share of the stage's capacity that was in use, 0 to 1")
    waiting_share: float | None = Field(None, description="share of the time spent waiting for input, 0 to 1")
    bytes_out: int | None = None
    note: str = ""


class LedgerResult(Config):
    """The ledger's summary: how many rows the weights have consumed."""

    rows: int = Field(description="rows of the schedule")
    consumed: int
    lost: int
    twice: int
    untrained: int = Field(0, description="consumed rows that were not trained on: their clips could not be used")
    quarantined: dict[str, str] = Field(default_factory=dict, description="clip URI -> reason")

    @classmethod
    def of(cls, ledger: Ledger) -> "LedgerResult":
        """The summary of a ledger."""
        return cls(
            rows=ledger.rows,
            consumed=ledger.consumed,
            lost=ledger.rows - (ledger.consumed - ledger.twice),
            twice=ledger.twice,
            untrained=ledger.untrained,
            quarantined=ledger.quarantined,
        )


class _ResultsFile(Config):
    """Results that are stored as a JSON file in the folder of their run, sweep or reproduction."""

    file: ClassVar[Path]
    missing: ClassVar[str]
    """What to do if the folder has no such file."""
    remedy: ClassVar[str]
    """What to do if the file in `{folder}` is damaged."""

    def save(self, folder: Path) -> Path:
        """Write the file atomically, as it can be read at any time; returns its path."""
        path = folder / self.file
        write_text_atomically(path, self.model_dump_json(indent=2) + "\n")
        return path

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read the file of a folder.

        Raises:
            SepsceneError: if it does not exist or is damaged.
        """
        path = folder / cls.file
        try:
            return read_typed(path, cls, cls.remedy.format(folder=folder))
        except FileNotFoundError:
            raise SepsceneError(f"{folder} contains no {path.name}: {cls.missing}") from None


class RunResults(_ResultsFile):
    """The content of the report of a run: RUN/results.json."""

    file = RunFolder.results
    missing = "not a finished run; evaluate it first"
    remedy = "write it again with `sepscene evaluate {folder}`"

    run_id: str
    experiment: str
    scale: str
    table_row: str | None = None
    seed: int
    started: str = Field(description="UTC, ISO 8601")
    seconds: float
    stages: tuple[StageResult, ...] = ()
    ladder: tuple[ProcessorResult, ...] = ()
    encoders: tuple[EncoderResult, ...] = ()
    ledger: LedgerResult | None = None
    bottleneck: str = Field("", description="which stage limits the run and what to change")
    environment: dict[str, str] = Field(default_factory=dict, description="versions, devices, commit")
    data: dict[str, str] = Field(default_factory=dict, description="data set, clips, hours, hash")
    left_out: dict[str, int] = Field(
        default_factory=dict, description="reason -> files or clips of the data set that were not used"
    )


def read_metrics(run_dir: Path) -> list[Record]:
    """The step metrics of a run, in the order in which they were written.

    Each is {"stage": str, "step": int, "seconds": float, <metric>: float, ...}. Damaged lines, left by a killed run or
    a full disk, are skipped with a warning.
    """
    path = RunFolder(run_dir).metrics
    try:
        return parse_records(read_bytes(path, MAX_METRICS_BYTES), path)
    except FileNotFoundError:
        return []


Setting = str | bool | int | float | tuple[str, ...] | None


class TrialFacts(Config):
    """The content of trial.json, which the trial itself writes."""

    model_config = ConfigDict(allow_inf_nan=True, ser_json_inf_nan="constants")

    name: str
    settings: dict[str, Setting] = Field(description="the settings shown in tables")
    seed: int
    chosen: dict[str, Any] = Field(default_factory=dict, description="the settings chosen by a searcher")
    gpus: float = Field(description="GPUs that the trial occupies")
    steps: int | None = Field(None, ge=1, description="steps of the complete training")
    metric: float | None = Field(None, description="the newest validation metric")


class TrialResult(Config):
    """One trial of a sweep."""

    name: str = Field(description="unique within the sweep")
    status: Literal["finished", "stopped early", "failed", "unfinished"]
    reason: str = Field("", description="why it failed or was stopped early")
    settings: dict[str, Setting] = Field(description="the swept fields, dotted, with this trial's values")
    seed: int
    metrics: dict[str, Metric] = Field(default_factory=dict, description="as in EncoderResult")
    steps: int = Field(0, description="training steps done")
    seconds: float = 0.0
    run_dir: InsideFolder = Field("", description="the trial's run folder, relative to the sweep's")


class SweepResults(_ResultsFile):
    """The content of the report of a sweep: SWEEP/sweep.json, rewritten each time a trial ends."""

    file = SweepFolder.sweep
    missing = "give the folder of a sweep"
    remedy = "continue the sweep, which writes it again"

    sweep_id: str
    experiment: str
    scale: str
    started: str = Field(description="UTC, ISO 8601")
    seconds: float
    command: str = Field("", description="the command that ran it")
    metric: str = Field("shallow_map", description="the metric by which trials are ranked; larger is better")
    fields: tuple[str, ...] = Field(description="the swept fields, dotted; the seed is not one of them")
    scheduler: str = Field("", description="which trials are stopped early, as text; empty if none are")
    trials: tuple[TrialResult, ...] = ()
    environment: dict[str, str] = Field(default_factory=dict)
    data: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _settings_are_the_swept_fields(self) -> "SweepResults":
        for trial in self.trials:
            if set(trial.settings) != set(self.fields):
                raise ValueError(f"trial {trial.name!r} has settings {sorted(trial.settings)}, not {self.fields}")
        return self


class ReproducedRun(Config):
    """One row of the paper, run with one seed."""

    row: str = Field(description='as in sepscene.tasks.paper.claims, e.g. "table4/S2+N/simclr-cp"')
    seed: int
    metric: Metric = Field(description="shallow classification mAP")
    untrained: Metric | None = Field(
        None, description="the same metric of the encoder before training, if it was evaluated"
    )
    replicates: tuple[float, ...] = Field(
        (),
        description="the metric on resampled test clips, with the same resamples in all runs: the effect of the choice "
        "of clips",
    )
    diagnostics: dict[str, float] = Field(
        default_factory=dict, description="background, level: shares of h that each explains; rank: of h"
    )
    differs: tuple[str, ...] = Field((), description='differences from the paper, e.g. "batch 64 instead of 4096"')
    run_dir: InsideFolder = Field("", description="the run's folder, relative to the reproduction's")


class ReproductionResults(_ResultsFile):
    """The content of the report of a reproduction of the paper's tables: REPRODUCTION/reproduction.json."""

    file = SweepFolder.reproduction
    missing = "give the folder of a reproduction"
    remedy = "continue the reproduction, which writes it again"

    reproduction_id: str
    scale: str
    started: str = Field(description="when the first run began; UTC, ISO 8601")
    seconds: float = Field(description="sum over all runs, some of which ran in parallel")
    command: str = Field("", description="the command that ran it; the last one of several")
    differs: tuple[str, ...] = Field((), description="how all runs differ from the paper: data, steps, batch")
    runs: tuple[ReproducedRun, ...] = ()
    failed: dict[str, str] = Field(default_factory=dict, description="trial -> why it failed")
    environment: dict[str, str] = Field(default_factory=dict)
    data: dict[str, str] = Field(default_factory=dict)
