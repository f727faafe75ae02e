"""The configuration of an experiment: one frozen tree in which every number of a run has a name and a unit.

An experiment is made by a named function (`orchestration.presets`), changed by a YAML file or dotted overrides, and
written in full into the run's folder, from which it can be run again as it is.
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
from sepscene.models.card import dotted
from sepscene.models.config import Config, SepsceneError
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

MOST_BLOCK_BYTES = 128 * 2**20
"""Larger blocks of whole clips are cut by Ray Data (its `target_max_block_size`), and equal blocks keep the order."""


class Training(Config):
    """The schedule and the optimiser of pre-training."""

    start_encoder: str | None = Field(
        None,
        description="encoder bundle whose weights are the start (an earlier run's, or from `sepscene encoder import`); "
        "`encoder`, `front_end` and the rate must be its own; none starts from random weights",
    )
    epochs: int = Field(100, ge=1)
    global_batch: int = Field(4096, ge=2, description="rows a step over all workers [open; ours]")
    microbatch: int | None = Field(
        None,
        ge=1,
        description="rows of one forward pass of a worker, when all at once need too much memory; the losses still see "
        "the whole global batch (exact gradient, one more forward pass); BatchNorm's statistics are a microbatch's",
    )
    service_rows: int = Field(16, ge=1, description="rows of one block: separated together, shipped together")
    learning_rate: float = Field(1e-3, gt=0, description="AdamW, cosine after warm-up [open; ours]")
    warmup_share: float = Field(0.05, ge=0, le=1, description="share of the steps with growing learning rate")
    weight_decay: float = Field(1e-4, ge=0, description="of matrices and kernels; nothing else is decayed")
    clip_gradient_norm: float = Field(
        1.0,
        gt=0,
        description="largest norm of a step's gradient. At 1.0 it rescales nearly every step at tiny, where norms are "
        "3 to 7; 30 would be a safeguard, which rescales none [open; ours]",
    )
    precision: PrecisionChoice = Field(
        "auto",
        description="auto: bfloat16 where the device has units for it, else float32; a run keeps what was chosen",
    )
    ordered: bool = Field(True, description="rows arrive in the schedule's order: bit-for-bit repeatable on CPU")
    checkpoint_every_steps: int = Field(500, ge=1)
    checkpoints_kept: int = Field(2, ge=1)
    validation_every_steps: int = Field(
        0, ge=0, description="steps between validations while training goes on, and one at the end; 0 is never"
    )
    validation_clips: int = Field(
        512, ge=8, description="labelled training clips of a validation: three quarters answer for one quarter [ours]"
    )
    bad_steps: int = Field(10, ge=0, description="steps with a NaN or infinite loss or gradient that are skipped")
    quarantine_share: float = Field(0.05, ge=0, le=1, description="the run stops when more of its clips are unreadable")


class Evaluation(Config):
    """How an encoder is evaluated (paper: shallow classification and query by example)."""

    scoring: ScoringSettings = ScoringSettings()
    baselines: bool = Field(True, description="evaluate the untrained encoder and the mix-mix encoder beside this one")
    separator_mixtures: int = Field(32, ge=1, description="held-out mixtures on which each processor is scored")


class Resources(Config):
    """What a run asks of the cluster. Trainers + separation actors + readers must fit before anything starts."""

    trainers: int = Field(2, ge=1)
    trainers_min: int | None = Field(
        None, ge=1, description="go on with as few trainers when nodes are lost; none means never with fewer"
    )
    trainer_cpus: float = Field(1, gt=0)
    trainer_gpus: float = Field(0, ge=0, description="GPUs of one trainer")
    separation_actors: int = Field(1, ge=1, description="separation actors; with separation_actors_min the most")
    separation_actors_min: int | None = Field(
        None,
        ge=1,
        description="let Ray Data begin with so few and add more, up to separation_actors, while all have two blocks "
        "to do; none is a fixed number: pools of GPU actors have been seen to stay at their smallest (ray#59144)",
    )
    separation_cpus: float = Field(1, gt=0)
    separation_gpus: float = Field(0, ge=0, description="GPUs of one separation actor; fractions share one GPU")
    validation_cpus: float = Field(1, gt=0, description="of the validation task, when there is validation")
    validation_gpus: float = Field(0, ge=0, description="GPUs of the validation task; 0 validates on CPUs")
    separation_batch: int = Field(1, ge=1, description="clips in one forward pass; 1 on a CPU, several on a GPU")
    separation_precision: PrecisionChoice = Field("auto", description="of the separators; as training.precision")
    readers: int = Field(1, ge=1, description="reading actors")
    reader_cpus: float = Field(0.5, gt=0)
    trainer_labels: dict[str, str] = Field(default_factory=dict, description='node labels, e.g. {"pool": "trainers"}')
    separation_labels: dict[str, str] = Field(default_factory=dict, description='e.g. {"pool": "separators"}')
    trainer_accelerator: str | None = Field(None, description='accelerator type, e.g. "H100"')
    separation_accelerator: str | None = Field(None, description='accelerator type, e.g. "L4"')

    @property
    def trainer_counts(self) -> range:
        """How many trainers a worker group may have, from the fewest to the most."""
        return range(self.trainers_min or self.trainers, self.trainers + 1)

    @property
    def separation_counts(self) -> range:
        """How many separation actors there may be, from the fewest to the most."""
        return range(self.separation_actors_min or self.separation_actors, self.separation_actors + 1)

    @model_validator(mode="after")
    def _fewest_are_not_more_than_the_most(self) -> "Resources":
        for name in ("separation_actors", "trainers"):
            fewest = getattr(self, f"{name}_min")
            most = getattr(self, name)
            if fewest is not None and fewest > most:
                raise ValueError(f"resources.{name}_min {fewest} is more than .{name} {most}")
        return self

    @model_validator(mode="after")
    def _elastic_trainers_have_their_own(self) -> "Resources":
        shared = self.trainer_accelerator in (None, "", self.separation_accelerator)
        if self.trainers_min is not None and (shared or self.trainer_labels):
            raise ValueError(
                "resources.trainers_min needs nodes that only trainers use, marked by an accelerator type: Ray counts "
                "the places of an elastic group by resources and overlooks labels, and would wait forever for a place "
                "on a node of others; set resources.trainer_accelerator, other than .separation_accelerator, and no "
                ".trainer_labels"
            )
        return self


class Store(Config):
    """The SeparatedStore: each clip separated once for all trials."""

    mode: Literal["off", "read-through", "prefill"] = "off"
    uri: str | None = Field(None, description="folder or URI; none means <storage>/store")
    settings: StoreSettings = StoreSettings()


class Experiment(Config):
    """One run in full: every number that it depends on, frozen and validated.

    Example:
        >>> experiment = sepscene.named_experiment("demo", "tiny").changed({"objective.temperature": 0.1})
        >>> run = sepscene.pretrain(experiment)
    """

    name: str
    scale: Literal["mini", "tiny", "small", "paper"]
    table_row: str | None = Field(None, description='row of the paper this belongs to, e.g. "table4/S2+N/SimCLR&CP"')
    seed: int = Field(0, ge=0)
    audio: AudioFormat = AudioFormat()
    data: Data = Data()
    separator: Separator = Separator()
    views: Views = Views()
    augmentations: Augmentations = Field(
        {"specaugment": SpecAugment()},
        description="by names of your choice; those on waveforms come first, otherwise in this order. `use` is "
        "specaugment, gain, mix-back, crop-resize or your own. A name that is that of an augmentation needs no `use`. "
        "`specaugment.…` is short for `augmentations.specaugment.…`",
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
        """`specaugment` was a section of its own in earlier versions."""
        if not isinstance(given, dict) or not isinstance(given.get("specaugment"), dict):
            return given
        chosen = given.get("augmentations", {"specaugment": {}})
        if not isinstance(chosen, dict):
            return given
        if not isinstance(chosen.get("specaugment"), dict):
            raise ValueError("specaugment gives sizes, but augmentations has no specaugment: leave one of them out")
        rest = {field: value for field, value in given.items() if field != "specaugment"}
        return rest | {"augmentations": chosen | {"specaugment": {**chosen["specaugment"], **given["specaugment"]}}}

    @model_validator(mode="after")
    def _can_be_written_down(self) -> "Experiment":
        texts = list(texts_of(self.model_dump()))
        names = [f"{field} ({printable(text)})" for field, text in texts if not is_utf8(text)]
        if names:
            raise ValueError(f"{'; '.join(names)}: not UTF-8 text, which experiment.yaml must be; rename it")
        held = [f"{field} holds {secret}" for field, text in texts if (secret := secret_in(text))]
        if held:
            raise ValueError(
                f"{'; '.join(held)}, which the run's folder, MLflow and reports would show: leave it out, and give it "
                "to the storage's own client by its environment variables or its credentials file"
            )
        return self

    @model_validator(mode="after")
    def _parts_fit(self) -> "Experiment":
        rates = {self.audio.sample_rate, self.separator.network.sample_rate, self.front_end.sample_rate}
        rates |= {network.sample_rate for network in self.separator.beside.values()}
        if len(rates) > 1 and not self.separator.checkpoints:
            raise ValueError(
                f"sample rates differ: audio {self.audio.sample_rate}, separator {self.separator.network.sample_rate}, "
                f"front_end {self.front_end.sample_rate} Hz; set all three to one rate"
            )
        twice = sorted(self.separator.beside.keys() & self.separator.ladder.steps.keys())
        if twice:
            raise ValueError(f"separator.beside and separator.ladder.steps both have {', '.join(twice)}: rename one")
        known = [*(self.separator.checkpoints or [*self.separator.ladder.steps, *self.separator.beside])]
        wrong = [unknown(name, known, "processor") for name in self.views.combination if name not in known]
        if self.views.separates and wrong:
            raise ValueError(f"views.combination: {'; '.join(wrong)}")
        if self.views.patch_seconds > self.audio.clip_seconds:
            raise ValueError("views.patch_seconds is longer than audio.clip_seconds: a view is a crop of the clip")
        if self.separator.objective == "supervised" and (
            self.data.format != "scenes" or self.audio.sample_rate != 16_000
        ):
            raise ValueError(
                "separator.objective supervised needs isolated sources, which only synthetic scenes at 16000 Hz have: "
                "set data.format to scenes, or separator.objective to mixit"
            )
        for trainers in self.resources.trainer_counts:
            self._divides(trainers)
        return self

    def _divides(self, trainers: int) -> None:
        """Every step has the same rows whatever the number of trainers: each takes an equal part in whole blocks."""
        elastic = " (resources.trainers_min allows that many)" if trainers < self.resources.trainers else ""
        per_step = trainers * self.training.service_rows
        if self.training.global_batch % per_step:
            raise ValueError(
                f"training.global_batch {self.training.global_batch} is not a multiple of resources.trainers x "
                f"training.service_rows = {per_step}{elastic}; change one of the three"
            )
        block = self.training.service_rows * self.audio.samples * PCM_BYTES
        if block > MOST_BLOCK_BYTES:
            raise ValueError(
                f"a block of training.service_rows {self.training.service_rows} clips has {block >> 20} MiB, more than "
                f"the {MOST_BLOCK_BYTES >> 20} that Ray Data leaves in one piece; lower training.service_rows"
            )
        if self.separator.batch_mixtures % trainers:
            raise ValueError(
                f"separator.batch_mixtures {self.separator.batch_mixtures} is not a multiple of resources.trainers "
                f"{trainers}{elastic}; change one of them"
            )

    @property
    def custom_code(self) -> tuple[str, ...]:
        """Import paths of all code that this experiment, or a separator's folder in it, takes from elsewhere."""
        kept = {separator_code(place) for place in self.separator.checkpoints.values() if isinstance(place, str)}
        texts = texts_of(self.model_dump(mode="json"))
        named = {text for field, text in texts if field.endswith(".use") and is_custom(text)}
        return tuple(sorted((kept - {""}) | named))

    @property
    def used_augmentations(self) -> dict[str, AugmentationChoice]:
        """Those that change any view, in their order."""
        off = () if self.views.specaugment else ("specaugment",)
        return {name: one for name, one in self.augmentations.items() if one.used and name not in off}

    @property
    def specaugment(self) -> AugmentationChoice | None:
        """The augmentation of that name."""
        return self.augmentations.get("specaugment")

    def digest(self) -> str:
        """SHA-256 of the configuration, short: equal digests mean equal experiments."""
        tree = self.model_dump(mode="json")
        tree["augmentations"] = list(tree["augmentations"].items())  # their order counts
        return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:12]

    def value_of(self, field: str) -> Any:
        """The plain value of a dotted field or a short form, e.g. of "objective.temperature".

        Raises:
            SepsceneError: for a short form of what no term of the objective has.
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
            SepsceneError: for an unknown field or a value that the field refuses.
        """
        short = "specaugment."
        longer = {full_name(field) if field.startswith(short) else field: changes[field] for field in changes}
        try:
            return super().changed(longer)
        except ValidationError as error:
            raise SepsceneError(
                f"bad configuration in {self.name} with {', '.join(changes)}:\n{explain(error)}"
            ) from None

    def save(self, path: Path) -> None:
        """Write the resolved configuration as YAML."""
        write_atomically(path, as_yaml(self).encode())


def full_name(field: str) -> str:
    """Where the configuration keeps a field that has a short form, e.g. objective.alpha; any other as it is."""
    part, _, name = field.partition(".")
    if part == "objective" and name in (*SHORT_FORMS, "similarity"):
        term, setting = SHORT_FORMS.get(name, ("similarity", "use"))
        return f"objective.terms.{term}.{setting}"
    return f"augmentations.{field}" if part == "specaugment" else field


def parse_experiment(tree: Any, source: str) -> Experiment:
    """Validate a tree of plain values.

    Raises:
        SepsceneError: names each offending field, what is wrong with it, and the source.
    """
    try:
        return Experiment.model_validate(tree)
    except ValidationError as error:
        raise SepsceneError(f"bad configuration in {source}:\n{explain(error)}") from None


def explain(error: ValidationError, model: type[BaseModel] = Experiment) -> str:
    """One line a fault of `model`: dotted field, fault, and the value or the nearest spelling where that helps."""
    lines = []
    for fault in error.errors():
        field = dotted(fault["loc"])
        message = fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "extra_forbidden":
            new = new_name(field)
            message = f"it is called {new} now" if new else unknown_field(model, fault["loc"])
        elif field and not isinstance(fault["input"], dict):
            message += f"{near_choice(fault)} (got {fault['input']!r})"
        lines.append(f"  {field}: {message}" if field else f"  {message}")
    return "\n".join(lines)


def load_experiment(path: Path) -> Experiment:
    """Read a configuration from a YAML file.

    Raises:
        SepsceneError: when the file is missing, is not YAML, or holds a bad configuration.
    """
    return parse_experiment(read_yaml(path, "an experiment"), source=str(path))
