"""What a finished run leaves behind for readers: metrics with intervals, stage timings, the ledger's summary.

`RUN/results.json` holds one `RunResults`, `SWEEP/sweep.json` one `SweepResults`. Reports and tables read
these files alone, so that they can be made again at any time, on another machine, without Ray.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from sepscene.augment.locations import leaves_root
from sepscene.models.config import Config, SepsceneError
from sepscene.orchestration.records.files import Record, parse_records, read_bytes, read_typed, write_whole
from sepscene.orchestration.records.ledger import Ledger
from sepscene.orchestration.records.run_folder import RunFolder
from sepscene.orchestration.records.sweep_folder import SweepFolder

if TYPE_CHECKING:
    from sepscene.tasks.evaluation.statistics import Interval

MOST_METRICS = 8 * 2**30
"""Bytes of a metrics file: 10 million steps have some 5 GB."""


def _inside(name: str) -> str:
    """A path that stays in its folder; results may be a stranger's."""
    if leaves_root(name):
        raise ValueError(f"{name!r} leads out of the folder that holds these results")
    return name


InsideFolder = Annotated[str, AfterValidator(_inside)]
"""A relative path of which no part is "..": a report reads files there and links to them."""


class Metric(Config):
    """A measured number with its confidence interval."""

    model_config = ConfigDict(allow_inf_nan=True, ser_json_inf_nan="constants")  # not a number comes back as such

    value: float
    low: float | None = Field(None, description="lower end of the interval")
    high: float | None = Field(None, description="upper end of the interval")
    count: int | None = Field(None, description="clips, queries or seeds behind the number")
    interval: str = Field("", description='how the interval was made, e.g. "95 % bootstrap over clips"')


def metric_of(interval: "Interval") -> Metric:
    """What results keep of an interval."""
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
    """How one encoder was evaluated."""

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
        default_factory=dict, description="background, level: shares of h that they explain; rank: of h"
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
    """One stage of a run: its wall time, and for streaming stages where the time went."""

    name: str
    seconds: float
    rows: int | None = None
    busy_share: float | None = Field(None, description="share of the stage's capacity that was working, 0 to 1")
    waiting_share: float | None = Field(None, description="share of the time spent waiting for input, 0 to 1")
    bytes_out: int | None = None
    note: str = ""


class LedgerResult(Config):
    """The ledger in numbers: what the weights have consumed."""

    rows: int = Field(description="rows of the schedule")
    consumed: int
    lost: int
    twice: int
    untrained: int = Field(0, description="consumed rows that nothing was learned from: their clips could not be used")
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


class Kept(Config):
    """Results that lie in the folder that they are about, in one JSON file."""

    file: ClassVar[Path]
    missing: ClassVar[str]
    """What to do about a folder without the file."""
    remedy: ClassVar[str]
    """What to do about a damaged file in `{folder}`."""

    def save(self, folder: Path) -> Path:
        """Write the file whole or not at all, as a reader may come at any time; returns its path."""
        path = folder / self.file
        write_whole(path, self.model_dump_json(indent=2) + "\n")
        return path

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read the file of a folder.

        Raises:
            SepsceneError: when there is none, or it is damaged.
        """
        path = folder / cls.file
        try:
            return read_typed(path, cls, cls.remedy.format(folder=folder))
        except FileNotFoundError:
            raise SepsceneError(f"{folder} holds no {path.name}: {cls.missing}") from None


class RunResults(Kept):
    """Everything a report says about one run: RUN/results.json."""

    file = RunFolder.results
    missing = "not a finished run; evaluate it first"
    remedy = "make it again with `sepscene evaluate {folder}`"

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

    Each is {"stage": str, "step": int, "seconds": float, <metric>: float, ...}. Damaged lines, as a killed run or a
    full disk leaves them, are left out with a warning.
    """
    path = RunFolder(run_dir).metrics
    try:
        return parse_records(read_bytes(path, MOST_METRICS), path)
    except FileNotFoundError:
        return []


Setting = str | bool | int | float | tuple[str, ...] | None


class TrialFacts(Config):
    """A trial's trial.json, which it writes about itself."""

    model_config = ConfigDict(allow_inf_nan=True, ser_json_inf_nan="constants")

    name: str
    settings: dict[str, Setting] = Field(description="what tables show of them")
    seed: int
    chosen: dict[str, Any] = Field(default_factory=dict, description="the settings that a searcher chose")
    gpus: float = Field(description="that it holds")
    steps: int | None = Field(None, ge=1, description="of its whole training")
    metric: float | None = Field(None, description="its newest validation")


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


class SweepResults(Kept):
    """Everything a report says about one sweep: SWEEP/sweep.json, written anew whenever a trial ends."""

    file = SweepFolder.sweep
    missing = "give the folder of a sweep"
    remedy = "go on with the sweep, which writes it again"

    sweep_id: str
    experiment: str
    scale: str
    started: str = Field(description="UTC, ISO 8601")
    seconds: float
    command: str = Field("", description="the command that made it")
    metric: str = Field("shallow_map", description="the metric by which trials are ranked; larger is better")
    fields: tuple[str, ...] = Field(description="the swept fields, dotted; the seed is not one of them")
    scheduler: str = Field("", description="which trials are stopped early, in words; empty when none are")
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
        None, description="the same of the encoder before training, where it was evaluated"
    )
    replicates: tuple[float, ...] = Field(
        (),
        description="the metric on resampled test clips, the same resamples in all runs: what the clips' luck is worth",
    )
    diagnostics: dict[str, float] = Field(
        default_factory=dict, description="background, level: shares of h that they explain; rank: of h"
    )
    differs: tuple[str, ...] = Field((), description='from the paper, e.g. "batch 64 instead of 4096"')
    run_dir: InsideFolder = Field("", description="the run's folder, relative to the reproduction's")


class ReproductionResults(Kept):
    """Everything a report says about a reproduction of the paper's tables: REPRODUCTION/reproduction.json."""

    file = SweepFolder.reproduction
    missing = "give the folder of a reproduction"
    remedy = "go on with the reproduction, which writes it again"

    reproduction_id: str
    scale: str
    started: str = Field(description="when the first run began; UTC, ISO 8601")
    seconds: float = Field(description="of all runs together; some ran beside each other")
    command: str = Field("", description="the command that made it; the last one of several")
    differs: tuple[str, ...] = Field((), description="how all runs differ from the paper: data, steps, batch")
    runs: tuple[ReproducedRun, ...] = ()
    failed: dict[str, str] = Field(default_factory=dict, description="trial -> why it failed")
    environment: dict[str, str] = Field(default_factory=dict)
    data: dict[str, str] = Field(default_factory=dict)
