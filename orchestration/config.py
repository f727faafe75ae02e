"""The configuration of an experiment: one immutable tree with every parameter of a run.

An experiment is created by a named function (`orchestration.presets`) or read from a YAML file, and can be changed by
dotted fields. The complete configuration is saved in the run's folder, so that the run can be repeated.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator

from sepscene.augment.audio import AudioFormat
from sepscene.augment.augmentations.settings import AugmentationChoice, Augmentations, SpecAugment
from sepscene.augment.locations import is_utf8
from sepscene.augment.store.separated_store import StoreSettings
from sepscene.augment.views import PCM_BYTES, Views
from sepscene.models.config import Config, SepsceneError, dotted
from sepscene.models.custom import EncoderChoice, separator_code
from sepscene.models.files import write_atomically
from sepscene.models.names import is_custom
from sepscene.models.settings import Cnn14Config, FrontEndConfig, PrecisionChoice
from sepscene.models.spelling import near_choice, unknown, unknown_field
from sepscene.orchestration.data_config import Data
from sepscene.orchestration.objective_config import SHORT_FORMS, Objective
from sepscene.orchestration.renamed import new_name
from sepscene.orchestration.separator_config import Separator
from sepscene.orchestration.terminal import printable
from sepscene.orchestration.yaml_files import as_yaml, read_yaml, secret_in, texts_of
from sepscene.tasks.evaluation.settings import ScoringSettings

MAX_BLOCK_BYTES = 128 * 2**20
"""Ray Data splits larger blocks (its `target_max_block_size`), but the order of rows relies on blocks of equal size."""


class Training(Config):
    """The schedule and the optimiser of pre-training."""

    start_encoder: str | None = Field(
        None,
        description="encoder bundle with the initial weights (from an earlier run or `sepscene encoder import`); "
        "`encoder`, `front_end` and the sample rate must match it; none: random weights",
    )
    epochs: int = Field(100, ge=1, description="how often each training clip is used [open]")
    global_batch: int = Field(4096, ge=2, description="rows per step over all workers [open]")
    microbatch: int | None = Field(
        None,
        ge=1,
        description="rows per forward pass of a worker, if all its rows need too much memory; the losses still use the "
        "whole global batch (exact gradient, one more forward pass); BatchNorm uses the statistics of a microbatch",
    )
    service_rows: int = Field(16, ge=1, description="rows per block, which are separated and sent together")
    learning_rate: float = Field(1e-3, gt=0, description="AdamW, cosine after warm-up [open]")
    warmup_share: float = Field(0.05, ge=0, le=1, description="share of the steps in which the learning rate grows")
    weight_decay: float = Field(1e-4, ge=0, description="for matrices and kernels; other parameters have none")
    clip_gradient_norm: float = Field(
        1.0,
        gt=0,
        description="maximum norm of a step's gradient. 1.0 rescales nearly every step at scale tiny, where norms are "
        "3 to 7; 30 rescales none and would only be a safeguard [open]",
    )
    precision: PrecisionChoice = Field(
        "auto",
        description="auto: bfloat16 if the device supports it in hardware, else float32; a run keeps its first choice",
    )
    ordered: bool = Field(True, description="rows arrive in the schedule's order: bit-for-bit reproducible on CPU")
    checkpoint_every_steps: int = Field(500, ge=1, description="steps between checkpoints, with one more at the end")
    checkpoints_kept: int = Field(2, ge=1, description="newest checkpoints that are kept; older ones are deleted")
    validation_every_steps: int = Field(
        0, ge=0, description="steps between validations during training, with one more at the end; 0: no validation"
    )
    validation_clips: int = Field(
        512,
        ge=8,
        description="labelled training clips per validation: the labels of one quarter are predicted from its nearest "
        "neighbours in the other three [ours]",
    )
    bad_steps: int = Field(
        10, ge=0, description="number of steps with a NaN or infinite loss or gradient that are skipped"
    )
    quarantine_share: float = Field(
        0.05, ge=0, le=1, description="the run stops when a larger share of its clips is unreadable"
    )


class Evaluation(Config):
    """How an encoder is evaluated (paper: shallow classification and query by example)."""

    scoring: ScoringSettings = ScoringSettings()
    baselines: bool = Field(True, description="also evaluate an untrained encoder and a mix-mix encoder")
    separator_mixtures: int = Field(32, ge=1, description="held-out mixtures on which each processor is evaluated")


class Resources(Config):
    """The resources that a run requests. All trainers, separation actors and readers must fit on the cluster."""

    trainers: int = Field(2, ge=1, description="Train workers, which share each global batch")
    trainers_min: int | None = Field(
        None,
        ge=1,
        description="minimum number of trainers with which training continues when nodes are lost; none: all",
    )
    trainer_cpus: float = Field(1, gt=0, description="CPUs per trainer")
    trainer_gpus: float = Field(0, ge=0, description="GPUs per trainer")
    separation_actors: int = Field(
        1, ge=1, description="separation actors; with separation_actors_min, the maximum number"
    )
    separation_actors_min: int | None = Field(
        None,
        ge=1,
        description="let Ray Data start with this many and add more, up to separation_actors, while each one has two "
        "blocks to process; none: a fixed number, because pools of GPU actors may stay at their minimum (ray#59144)",
    )
    separation_cpus: float = Field(1, gt=0, description="CPUs per separation actor")
    separation_gpus: float = Field(0, ge=0, description="GPUs per separation actor; fractions share one GPU")
    validation_cpus: float = Field(1, gt=0, description="CPUs of the validation task, if there is validation")
    validation_gpus: float = Field(0, ge=0, description="GPUs of the validation task; 0: it runs on CPUs")
    separation_batch: int = Field(1, ge=1, description="clips per forward pass; 1 on a CPU, several on a GPU")
    separation_precision: PrecisionChoice = Field("auto", description="of the separators; see training.precision")
    readers: int = Field(1, ge=1, description="actors that read and decode clips")
    reader_cpus: float = Field(0.5, gt=0, description="CPUs per reader")
    trainer_labels: dict[str, str] = Field(default_factory=dict, description='node labels, e.g. {"pool": "trainers"}')
    separation_labels: dict[str, str] = Field(default_factory=dict, description='e.g. {"pool": "separators"}')
    trainer_accelerator: str | None = Field(None, description='accelerator type, e.g. "H100"')
    separation_accelerator: str | None = Field(None, description='accelerator type, e.g. "L4"')

    @property
    def trainer_counts(self) -> range:
        """The numbers of trainers that a worker group may have, from the minimum to the maximum."""
        return range(self.trainers_min or self.trainers, self.trainers + 1)

    @property
    def separation_counts(self) -> range:
        """The possible numbers of separation actors, from the minimum to the maximum."""
        return range(self.separation_actors_min or self.separation_actors, self.separation_actors + 1)

    @model_validator(mode="after")
    def _minimum_is_not_above_maximum(self) -> "Resources":
        for name in ("separation_actors", "trainers"):
            minimum = getattr(self, f"{name}_min")
            maximum = getattr(self, name)
            if minimum is not None and minimum > maximum:
                raise ValueError(f"resources.{name}_min {minimum} is more than .{name} {maximum}")
        return self

    @model_validator(mode="after")
    def _elastic_trainers_have_their_own_nodes(self) -> "Resources":
        shared = self.trainer_accelerator in (None, "", self.separation_accelerator)
        if self.trainers_min is not None and (shared or self.trainer_labels):
            raise ValueError(
                "resources.trainers_min needs nodes that only trainers use, identified by their accelerator type: for "
                "an elastic group, Ray ignores labels and could wait forever for resources on other nodes. Set "
                "resources.trainer_accelerator to a type that differs from .separation_accelerator, and remove "
                ".trainer_labels"
            )
        return self


class Store(Config):
    """The SeparatedStore, which keeps separated clips so that all trials separate each clip only once."""

    mode: Literal["off", "read-through", "prefill"] = Field(
        "off",
        description="off: clips are separated while the encoder trains; read-through: what is missing in the store is "
        "separated and stored; prefill: all clips are separated before training",
    )
    uri: str | None = Field(None, description="folder or URI; none: <storage>/store")
    settings: StoreSettings = StoreSettings()


class Experiment(Config):
    """The complete, immutable and validated configuration of a run.

    Example:
        >>> experiment = sepscene.named_experiment("demo", "tiny").changed({"objective.temperature": 0.1})
        >>> run = sepscene.pretrain(experiment)
    """

    name: str = Field(description="name in reports and MLflow")
    scale: Literal["mini", "tiny", "small", "paper"] = Field(
        description="size of the experiment: mini and tiny for CPUs, small for one GPU, paper for a cluster"
    )
    table_row: str | None = Field(None, description='row of a table in the paper, e.g. "table4/S2+N/SimCLR&CP"')
    seed: int = Field(0, ge=0, description="seed of all random choices of the run")
    audio: AudioFormat = AudioFormat()
    data: Data = Data()
    separator: Separator = Separator()
    views: Views = Views()
    augmentations: Augmentations = Field(
        {"specaugment": SpecAugment()},
        description="augmentations by names of your choice; those on waveforms are applied first, otherwise in this "
        "order. `use` is specaugment, gain, mix-back, crop-resize or custom code. `use` can be omitted if the name is "
        "that of an augmentation. `specaugment.…` is short for `augmentations.specaugment.…`",
    )
    front_end: FrontEndConfig = FrontEndConfig()
    encoder: EncoderChoice = Cnn14Config()
    objective: Objective = Objective()
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    resources: Resources = Resources()
    store: Store = Store()

    @model_validator(mode="before")
    @classmethod
    def _sizes_of_specaugment(cls, given: Any) -> Any:
        """Accept the separate section `specaugment` of earlier versions."""
        if not isinstance(given, dict) or not isinstance(given.get("specaugment"), dict):
            return given
        chosen = given.get("augmentations", {"specaugment": {}})
        if not isinstance(chosen, dict):
            return given
        if not isinstance(chosen.get("specaugment"), dict):
            raise ValueError(
                "specaugment is set, but augmentations has no specaugment: remove the section, or add specaugment to "
                "augmentations"
            )
        rest = {field: value for field, value in given.items() if field != "specaugment"}
        return rest | {"augmentations": chosen | {"specaugment": {**chosen["specaugment"], **given["specaugment"]}}}

    @model_validator(mode="after")
    def _can_be_saved(self) -> "Experiment":
        texts = list(texts_of(self.model_dump()))
        names = [f"{field} ({printable(text)})" for field, text in texts if not is_utf8(text)]
        if names:
            raise ValueError(f"{'; '.join(names)}: not UTF-8 text, so it cannot be saved in experiment.yaml; rename it")
        secrets = [f"{field} contains {secret}" for field, text in texts if (secret := secret_in(text))]
        if secrets:
            raise ValueError(
                f"{'; '.join(secrets)}, which would be visible in the run's folder, MLflow and reports: remove it, and "
                "pass it by the environment variables or the credentials file of the storage's client"
            )
        return self

    @model_validator(mode="after")
    def _parts_fit(self) -> "Experiment":
        parts: dict[str, Any] = {"audio": self.audio, "front_end": self.front_end}
        if not self.separator.checkpoints:  # the rates of checkpoints are checked when they are read
            parts["separator.network"] = self.separator.network
            parts |= {f"separator.beside.{name}": network for name, network in self.separator.beside.items()}
        if len({part.sample_rate for part in parts.values()}) > 1:
            rates = ", ".join(f"{name}.sample_rate {part.sample_rate}" for name, part in parts.items())
            raise ValueError(f"sample rates differ: {rates} Hz; set all of them to the same rate")
        twice = sorted(self.separator.beside.keys() & self.separator.ladder.steps.keys())
        if twice:
            raise ValueError(f"separator.beside and separator.ladder.steps both have {', '.join(twice)}: rename one")
        known = [*(self.separator.checkpoints or [*self.separator.ladder.steps, *self.separator.beside])]
        wrong = [unknown(name, known, "processor") for name in self.views.combination if name not in known]
        if self.views.separates and wrong:
            raise ValueError(f"views.combination: {'; '.join(wrong)}")
        if self.views.patch_seconds > self.audio.clip_seconds:
            raise ValueError("views.patch_seconds is longer than audio.clip_seconds, but a view is a crop: lower it")
        if self.separator.objective == "supervised" and (
            self.data.format != "scenes" or self.audio.sample_rate != 16_000
        ):
            raise ValueError(
                "separator.objective supervised needs isolated sources, which only synthetic scenes at 16000 Hz have: "
                "set data.format to scenes, or separator.objective to mixit"
            )
        for trainers in self.resources.trainer_counts:
            self._check_equal_parts(trainers)
        return self

    def _check_equal_parts(self, trainers: int) -> None:
        """Check that every step consists of whole blocks, the same number for each of this many trainers."""
        elastic = " (resources.trainers_min allows that many)" if trainers < self.resources.trainers else ""
        per_step = trainers * self.training.service_rows
        if self.training.global_batch % per_step:
            raise ValueError(
                f"training.global_batch {self.training.global_batch} is not a multiple of resources.trainers x "
                f"training.service_rows = {per_step}{elastic}; change one of the three"
            )
        block = self.training.service_rows * self.audio.samples * PCM_BYTES
        if block > MAX_BLOCK_BYTES:
            raise ValueError(
                f"a block of training.service_rows {self.training.service_rows} clips has {block >> 20} MiB, but Ray "
                f"Data splits blocks above {MAX_BLOCK_BYTES >> 20} MiB; lower training.service_rows"
            )
        if self.separator.batch_mixtures % trainers:
            raise ValueError(
                f"separator.batch_mixtures {self.separator.batch_mixtures} is not a multiple of resources.trainers "
                f"{trainers}{elastic}; change one of them"
            )

    @property
    def custom_code(self) -> tuple[str, ...]:
        """Import paths of all custom code that this experiment, or one of its separators' folders, uses."""
        kept = {separator_code(place) for place in self.separator.checkpoints.values() if isinstance(place, str)}
        texts = texts_of(self.model_dump(mode="json"))
        named = {text for field, text in texts if field.endswith(".use") and is_custom(text)}
        return tuple(sorted((kept - {""}) | named))

    @property
    def used_augmentations(self) -> dict[str, AugmentationChoice]:
        """The augmentations that are applied at all, in their order."""
        off = () if self.views.specaugment else ("specaugment",)
        return {name: one for name, one in self.augmentations.items() if one.used and name not in off}

    def digest(self) -> str:
        """The first 12 digits of the configuration's SHA-256; equal digests mean equal experiments."""
        tree = self.model_dump(mode="json")
        tree["augmentations"] = list(tree["augmentations"].items())  # their order counts
        return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:12]

    def value_of(self, field: str) -> Any:
        """The plain value of a dotted field or a short form, e.g. "objective.temperature".

        Raises:
            SepsceneError: for a short form of a setting that no term of the objective has.
        """
        value: Any = self.model_dump(mode="json")
        try:
            for key in full_name(field).split("."):
                value = value[key]
        except KeyError:
            raise SepsceneError(f"{field} changes nothing in {self.name}: no term of its objective has it") from None
        return value

    def changed(self, changes: Mapping[str, Any]) -> "Experiment":
        """A copy with dotted fields changed, e.g. {"objective.temperature": 0.1}.

        Raises:
            SepsceneError: for an unknown field or an invalid value.
        """
        short = "specaugment."
        longer = {full_name(field) if field.startswith(short) else field: changes[field] for field in changes}
        return parse_experiment(self._tree_with(longer), f"{self.name} with {', '.join(changes)}")

    def save(self, path: Path) -> None:
        """Write the complete configuration as YAML."""
        write_atomically(path, as_yaml(self).encode())


def full_name(field: str) -> str:
    """The full name of a field given in a short form, e.g. objective.alpha; other names are returned unchanged."""
    part, _, name = field.partition(".")
    if part == "objective" and name in (*SHORT_FORMS, "similarity"):
        term, setting = SHORT_FORMS.get(name, ("similarity", "use"))
        return f"objective.terms.{term}.{setting}"
    return f"augmentations.{field}" if part == "specaugment" else field


def parse_experiment(tree: Any, source: str) -> Experiment:
    """Validate a tree of plain values, read from `source`.

    Raises:
        SepsceneError: names each invalid field and what is wrong with it.
    """
    try:
        return Experiment.model_validate(tree)
    except ValidationError as error:
        raise SepsceneError(f"bad configuration in {source}:\n{explain(error)}") from None


def explain(error: ValidationError, model: type[BaseModel] = Experiment) -> str:
    """One line per fault of `model`: dotted field, fault, and the value or the nearest known name if it helps."""
    lines = []
    for fault in error.errors():
        field = dotted(fault["loc"])
        message = fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "extra_forbidden":
            new = new_name(field)
            message = f"was renamed to {new}" if new else unknown_field(model, fault["loc"])
        elif field and not isinstance(fault["input"], dict):
            message += f"{near_choice(fault)} (got {fault['input']!r})"
        lines.append(f"  {field}: {message}" if field else f"  {message}")
    return "\n".join(lines)


def load_experiment(path: Path) -> Experiment:
    """Read a configuration from a YAML file.

    Raises:
        SepsceneError: when the file is missing, is not YAML, or contains an invalid configuration.
    """
    return parse_experiment(read_yaml(path, "an experiment"), source=str(path))
