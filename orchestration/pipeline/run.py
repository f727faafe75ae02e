"""A run: one experiment from its data to its report, stage by stage, in one folder.

Every stage skips work that is already done, so a run continues where it was interrupted. The folder is the
authoritative record of the run; MLflow mirrors it.
"""

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from ray.train import UserCallback
from rich.console import Console

from sepscene import __version__
from sepscene.augment.store.separated_store import SeparatedStore
from sepscene.augment.synthetic.sources import scenes_manifest
from sepscene.models.card import read_card
from sepscene.models.config import SepsceneError
from sepscene.models.encoders.encoder import save_encoder
from sepscene.models.separators.custom import checkpoint_folders
from sepscene.orchestration.config import Experiment, load_experiment
from sepscene.orchestration.pipeline.description import parameters_of, summary_of, tags_of
from sepscene.orchestration.records.audit_log import audit_hash
from sepscene.orchestration.records.checkpoints import newest_intact, read_checkpoint, read_ledger, read_steps
from sepscene.orchestration.records.environment import environment
from sepscene.orchestration.records.files import read_typed_or, write_text_atomically
from sepscene.orchestration.records.metrics_log import append_metrics
from sepscene.orchestration.records.mlflow_mirror import STOPPED, Tracker, closing, following
from sepscene.orchestration.records.results import read_metrics
from sepscene.orchestration.records.run_folder import RunFolder, pretraining_stage
from sepscene.orchestration.records.run_lock import check_free, locked
from sepscene.orchestration.records.system_metrics import sampled
from sepscene.orchestration.reports.progress import BAR_COLUMNS, LOG_COLUMNS, Terms, progress
from sepscene.orchestration.runtime.precision import slow_precisions, with_precisions
from sepscene.orchestration.training.builders import encoder_of
from sepscene.orchestration.training.prefill import STAGE as PREFILL
from sepscene.orchestration.training.prefill import PrefillResult, fill, prefill_key
from sepscene.orchestration.training.pretraining import pretrain
from sepscene.orchestration.training.separator_training import STAGE as SEPARATOR
from sepscene.orchestration.training.separator_training import separator_steps, train_separator
from sepscene.orchestration.training.stream import schedule_of
from sepscene.orchestration.training.throughput import balance_line, balance_of, bottleneck, waiting_share
from sepscene.orchestration.training.validation import choose_probe
from sepscene.tasks.datasets.audit import quick_check
from sepscene.tasks.datasets.readers import Manifest, read_manifest

logger = logging.getLogger("sepscene")

BALANCE_EVERY = 10
"""Of this many reports of the balance, one is printed along with the progress."""


@contextmanager
def with_resume_hint(console: Console, command: str) -> Iterator[None]:
    """If the block fails or is stopped, print the command that continues it."""
    try:
        yield
    except BaseException as error:
        end = "stopped" if isinstance(error, STOPPED) else "failed"
        message = f"{end}; all completed work is kept. Continue with\n{command}"
        console.print(message, highlight=False, markup=False, soft_wrap=True)
        raise


def named_parts(train: Manifest, test: Manifest) -> dict[str, Manifest]:
    """The parts of a data set by name; for cross-validation, there is only one."""
    return {"clips": test} if train is test else {"training clips": train, "test clips": test}


class Run:
    """The folder of one run, its experiment, its tracker and its terminal."""

    def __init__(self, folder: Path, experiment: Experiment, tracker: Tracker, console: Console) -> None:
        self.folder = folder
        self.experiment = experiment
        self.tracker = tracker
        self.console = console
        self.files = RunFolder(folder)
        self.inputs: dict[str, str] = {}
        self.audit: str | None = None
        """Digest of the audit of the data set, if the storage has one."""
        self.callbacks: Sequence[UserCallback] = ()
        """The user's callbacks for Ray Train."""
        self.model_name = experiment.name
        """The experiment or the whole sweep, whose encoders are versions of one registered model."""

    @classmethod
    @contextmanager
    def open(
        cls,
        folder: Path,
        experiment: Experiment,
        tracking_uri: str,
        console: Console,
        resume: bool,
        tags: Mapping[str, str] | None = None,
    ) -> Iterator["Run"]:
        """Create the run's folder and its parent run in MLflow, or continue an earlier run.

        The run is closed in MLflow when the block ends, also after an error. In the run's experiment, `auto` precisions
        are replaced by those that are used.

        Args:
            tags: additional tags of the parent run in MLflow.

        Raises:
            SepsceneError: when the folder holds another experiment, or this one and `resume` is not set.
        """
        for warning in slow_precisions(experiment):
            console.print(warning, style="yellow", markup=False)
        experiment = with_precisions(experiment)
        files = RunFolder(folder)
        saved = files.experiment
        if saved.exists():
            earlier = load_experiment(saved).changed({"resources": experiment.resources})
            if earlier.digest() != experiment.digest():  # a run can continue with other resources
                raise SepsceneError(f"{folder} holds another experiment; choose another --run-id or storage")
            if not resume:
                raise SepsceneError(f"{folder} already holds this run; add --resume to continue it")
        check_free(files)
        folder.mkdir(parents=True, exist_ok=True)
        experiment.save(saved)
        tracker = Tracker(tracking_uri, "sepscene", folder)
        run = cls(folder, experiment, tracker, console)
        run.model_name = (tags or {}).get("sweep_id", experiment.name)
        if not files.started.exists():
            write_text_atomically(files.started, datetime.now(UTC).isoformat(timespec="seconds"))
        place = f"All files of this run are in `{folder}`; its report is among the artifacts."
        about = {
            **{f"env.{key}": value for key, value in environment().items()},
            "mlflow.note.content": f"{summary_of(experiment)}\n\n{place}",
            "sepscene_version": __version__,
        }
        tracker.start("", {**run.tags(), **about, **(tags or {})}, parameters_of(experiment))
        tracker.log_artifact("", saved)
        with closing(tracker):
            yield run

    def tags(self) -> dict[str, str]:
        """The experiment and its inputs, as tags of its runs in MLflow."""
        return {**tags_of(self.experiment), **self.inputs}

    def record_inputs(self, ladder: dict[str, str], **manifests: Manifest) -> None:
        """Log the inputs of the run to MLflow: the data sets and the separators, by their digests.

        The digest of the data set's audit is included, if the storage has an audit and the data set has not changed
        since.

        Args:
            ladder: processor name -> folder.
            manifests: `training`, and `evaluation` if the run is evaluated.
        """
        facts = {"data_hash" if name == "training" else f"{name}_hash": m.digest() for name, m in manifests.items()}
        if self.audit:
            facts["audit_hash"] = self.audit
        if ladder:
            digests = {name: read_card(folder).digest[:12] for name, folder in ladder.items()}
            facts["separator_digest"] = ",".join(f"{name}={digest}" for name, digest in digests.items())
        if facts.items() <= self.inputs.items():
            return
        self.inputs |= facts
        self.tracker.tag("", self.inputs)
        data = self.experiment.data
        for context, manifest in manifests.items():
            splits = data.train if context == "training" else data.test
            source = data.root or str(self.files.scenes)
            source = source if "://" in source else str(Path(source).resolve())
            self.tracker.log_data(f"{data.format} {'+'.join(splits)}", context, source, manifest)

    @contextmanager
    def stage(self, name: str, title: str, total: int, counts: str = "rows", pair: str | None = None) -> Iterator[None]:
        """Time a stage, show its progress, and mirror its metrics to MLflow.

        Args:
            name: of the stage, in metrics and in MLflow; `title` is for the terminal.
            total: the end of the progress.
            counts: the field of a metrics record that gives the progress.
            pair: kind of its positive pairs, for the tags; None: as in the experiment.
        """
        about = {"stage": name, "mlflow.note.content": f"Stage {name} of {summary_of(self.experiment)}"}
        tags = self.tags() | about | ({"pair": pair} if pair else {})
        self.tracker.start(name, tags, parameters_of(self.experiment))
        terms = Terms(self.console.width - BAR_COLUMNS if self.console.is_terminal else LOG_COLUMNS)
        balances = 0
        with progress(self.console, title, max(1, total), self._done(name, counts)) as shown:

            def show(record: dict[str, Any]) -> None:
                nonlocal balances
                if "event" in record:
                    shown.event(record["event"])
                elif record["stage"] == name:
                    shown.update(record.get(counts), terms.update(record))
                    balance = balance_line(record)
                    balances += bool(balance)
                    if balance and balances % BALANCE_EVERY == 0:
                        shown.event(balance)

            self._progress = shown.update
            with (
                self._timed(name),
                closing(self.tracker, name),
                locked(self.files),
                following(self.folder, self.tracker, show),
                sampled(self.folder, name),
            ):
                yield

    def _done(self, stage: str, counts: str) -> float:
        """Progress of an earlier command in a training stage; 0 for a new stage or one without checkpoints."""
        newest = newest_intact(self.files.stage(stage).path)
        if newest is None:
            return 0.0
        return max((float(record[counts]) for record in read_steps(newest) if counts in record), default=0.0)

    def advance(self, done: float) -> None:
        """Update the progress of a stage that runs in this process."""
        self._progress(done)

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        """Add the time of the block to RUN/stages.json, which sums all commands of a stage, interrupted ones too."""
        started = time.perf_counter()
        try:
            yield
        finally:
            timings = read_typed_or(self.files.timings, dict[str, float], {})
            timings[stage] = timings.get(stage, 0.0) + time.perf_counter() - started
            try:
                write_text_atomically(self.files.timings, json.dumps(timings, indent=2))
            except OSError as error:  # must not hide why the stage ended
                logger.warning("%s cannot be written (%s)", self.files.timings, error)

    @cached_property
    def manifests(self) -> tuple[Manifest, Manifest]:
        """The training and the test clips, read once; generates missing scenes. The same clips for cross-validation."""
        data = self.experiment.data
        if data.is_generated:
            self._generate_scenes()
        manifest = read_manifest(data.format, data.root or str(self.files.scenes))
        self.audit = audit_hash(self.folder, manifest)
        train = manifest.select(*data.train)
        test = train if data.by_folds else manifest.select(*data.test)
        for name, part, splits in (("train", train, data.train), ("test", test, data.test)):
            if not len(part.clips):
                raise SepsceneError(f"data.{name}: no clip of {data.root or 'the scenes'} is in {', '.join(splits)}")
        if self.experiment.training.validation_every_steps:
            choose_probe(train, self.experiment.training.validation_clips)  # raises now if the labels do not suffice
        unlabelled = [
            f"{part.unlabelled} of {len(part)} {name} have no label; the evaluation leaves them out"
            for name, part in named_parts(train, test).items()
            if part.unlabelled
        ]
        for line in (*manifest.remarks(), *unlabelled, *quick_check(train, self.experiment.audio)):
            self.console.print(f"note          {line}", soft_wrap=True, markup=False, highlight=False)
        return train, test

    def _generate_scenes(self) -> None:
        # Imported here because scipy.signal takes a second, and most runs do not generate scenes.
        from sepscene.augment.synthetic.scenes import profile_of_length, write_scenes

        data = self.experiment.data
        folder = self.files.scenes
        config = profile_of_length(self.experiment.audio.clip_seconds, data.scenes_profile)
        splits = {"train": data.scenes_train, "test": data.scenes_test}
        if all(scenes_manifest(folder, split).exists() for split in splits):  # each is written last
            return
        with self.stage("scenes", "generate sound scenes", sum(splits.values())):
            done = 0

            def progress(written: int) -> None:
                self.advance(done + written)

            for split, count in splits.items():
                with_sources = split == "test" or self.experiment.separator.objective == "supervised"
                write_scenes(folder, count, self.experiment.seed, split, config, with_sources, progress=progress)
                done += count

    def ladder(self) -> dict[str, str]:
        """The processors of the configuration, or the ladder, which this trains: name -> folder."""
        experiment = self.experiment
        if experiment.separator.checkpoints:
            return checkpoint_folders(experiment.separator.checkpoints, self.files.ladder)
        if not experiment.views.separates and not experiment.evaluation.baselines:
            return {}
        train, test = self.manifests
        self.record_inputs({}, training=train)
        with self.stage(SEPARATOR, "train separator", separator_steps(experiment), counts="step"):
            return train_separator(experiment, train, self.folder, test, self.callbacks)

    def store_uri(self) -> str:
        """URI of the SeparatedStore; by default, one next to the run for all runs of its storage."""
        return self.experiment.store.uri or str(self.files.store.resolve())

    def store(self) -> SeparatedStore | None:
        """The SeparatedStore of the configuration, opened."""
        store = self.experiment.store
        return None if store.mode == "off" else SeparatedStore(self.store_uri(), store.settings)

    def prefill(self, ladder: dict[str, str], processors: tuple[str, ...] | None = None) -> PrefillResult:
        """Separate every training clip into the store with these processors; None: those of the combination.

        A prefill that any run has completed before is skipped. Clips that cannot be used are reported; training will
        quarantine them. Missing entries are reported, too; the next prefill tries them again.
        """
        train, _ = self.manifests
        processors = processors or self.experiment.views.combination
        views = {"views.combination": processors, "views.weights": None, "views.curriculum": ()}
        experiment = self.experiment.changed(views)
        total = len(train) * len(processors)
        store = SeparatedStore(self.store_uri(), experiment.store.settings)
        key = prefill_key(experiment, train, ladder)
        if store.folder.is_filled(key):
            return PrefillResult(total, 0, 0, {})
        with self.stage(PREFILL, "separate into the store", total):
            filled = fill(experiment, train, ladder, store, self.advance)
            record = {f"store/{name}": float(count) for name, count in filled.counts.items()}
            record |= {"unusable": float(filled.unusable), "missing": float(filled.missing)}
            append_metrics(self.files.stage(PREFILL), [{"step": 1, "rows": total} | record])
        if not filled.missing:
            store.folder.mark_filled(key)
        else:
            logger.warning(
                "%d of %d separated clips are still missing in %s, so training must separate them itself, which is "
                "slow; is the store full (store.settings.max_bytes), or its filesystem?",
                filled.missing, total, self.store_uri(),
            )  # fmt: skip
        return filled

    def encoder(self, ladder: dict[str, str], pair: str | None = None) -> Path:
        """Pre-train an encoder and write its bundle; `pair` overrides `views.pair` for a baseline.

        Returns:
            The bundle's folder: RUN/encoder, or RUN/baselines/<pair>.
        """
        train, _ = self.manifests
        self.record_inputs(ladder, training=train)
        experiment = self.experiment
        bundle = self.files.encoder
        if pair is not None:
            experiment = experiment.changed({"views.pair": pair})
            bundle = self.files.baseline(pair)
        stage = pretraining_stage(experiment.views.pair)
        rows = schedule_of(experiment, len(train.clips)).rows
        if experiment.store.mode == "prefill" and experiment.views.separates:
            self.prefill(ladder)
        with self.stage(stage, stage, rows, pair=experiment.views.pair):
            newest = pretrain(experiment, train, ladder, self.folder, stage, self.store(), self.callbacks)
            state = read_checkpoint(newest)
            card = {
                "title": f"{experiment.name} ({experiment.views.pair})",
                "data": f"{experiment.data.format}, {len(train.clips)} clips, manifest {train.digest()[:12]}",
                "separator": "TDCN++ by MixIT" if experiment.views.separates else "none",
                "combination": list(experiment.views.combination) if experiment.views.separates else [],
                "losses": experiment.objective.description,
                "steps": state.step,
                "start": experiment.training.start_encoder or "random weights",
                "seed": experiment.seed,
                "versions": environment(),
            }
            save_encoder(encoder_of(experiment, state), bundle, card)
        self._report_balance(stage, experiment)
        if pair is None:
            write_text_atomically(self.files.ledger, read_ledger(newest).to_json())
            self.tracker.log_artifact("", self.files.ledger)
        return bundle

    def publish(self, pair: str, bundle: Path) -> None:
        """Log an encoder with its model card to MLflow; the run's own encoder is registered, a baseline is not.

        Call it when the card contains the metrics.
        """
        is_baseline = bundle != self.files.encoder
        registered = None if is_baseline else f"sepscene-{self.model_name.replace('/', '-')}"
        self.tracker.log_encoder(pretraining_stage(pair), bundle, f"{self.experiment.name} {pair}", registered)

    def _report_balance(self, stage: str, experiment: Experiment) -> None:
        """Print the bottleneck of the stream, and log the balance as metrics of the stage."""
        balance = balance_of(read_metrics(self.folder), stage)
        if not balance:
            return
        advice = bottleneck(balance, experiment)
        self.console.print(f"  {advice}", style="dim", highlight=False)
        metrics = {name.removeprefix("views/").replace("/", "_"): value for name, value in balance.items()}
        del metrics["trainers_core_share"]
        metrics["waiting_share"] = waiting_share(balance)
        self.tracker.log_metrics(stage, {f"balance/{name}": float(value) for name, value in metrics.items()})
        self.tracker.tag(stage, {"bottleneck": advice})
        if stage == pretraining_stage(self.experiment.views.pair):
            self.tracker.tag("", {"bottleneck": advice})
