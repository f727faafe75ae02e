"""Named experiments: every row of the paper's tables that this framework produced, at four scales.

| scale | meant for | data | costs |
|---|---|---|---|
| mini | one core, no Ray (but for the demo) | 10 s synthetic scenes | two minutes a row, by `sepscene reproduce` |
| tiny | two CPU cores | 10 s synthetic scenes | minutes (the demo takes less of both) |
| small | one GPU | a few thousand clips of your own | about an hour |
| paper | a cluster | AudioSet's 2 M clips, set `data.root` | about 200 M rows; see `sepscene plan` |

The networks are the paper's at `small` and `paper`; `tiny` scales their widths, repeats and coefficients. Rows are
named like the paper's: `table2/mix-chan+specaug`, `table4/S2+N/simclr-cp`, `table5/d1024`. What a row must reach is in
`tasks.paper.claims`, beside the paper's other numbers.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

from sepscene import models
from sepscene.augment.views import CurriculumPoint, Views
from sepscene.models.config import SepsceneError
from sepscene.models.settings import Cnn14Config, PatchTransformerConfig, TDCNppConfig
from sepscene.models.spelling import unknown
from sepscene.orchestration.config import Data, Evaluation, Experiment, Resources, Store, Training, load_experiment
from sepscene.orchestration.objective_config import Objective
from sepscene.orchestration.separator_config import Ladder, Separator
from sepscene.orchestration.yaml_files import parse_yaml
from sepscene.tasks.evaluation.settings import ScoringSettings

Scale = Literal["mini", "tiny", "small", "paper"]

COMBINATIONS = (("S2",), ("S1",), ("F",), ("N",), ("S2", "F"), ("S2", "N"), ("S2", "F", "N"))
"""Table 4's combinations of processors, from top to bottom."""

OWN = (
    "name",
    "table_row",
    "views.pair",
    "views.combination",
    "views.weights",
    "views.curriculum",
    "views.channel",
    "views.specaugment",
    "augmentations.specaugment.probability",
    "augmentations.specaugment.curriculum",
    "objective.similarity",
    "objective.terms.similarity.use",
    "encoder.use",
    "encoder.embedding_dim",
)
"""Fields in which rows differ: a change of one would make a row another one under its old name."""

OF_COINCIDENCE = (
    "objective.alpha",
    "objective.alpha_warmup_steps",
    "objective.terms.coincidence.weight",
    "objective.terms.coincidence.warmup_steps",
)
"""Fields that only rows with coincidence prediction have."""


def mini() -> Experiment:
    """One core without Ray, two minutes a row: tiny's networks on half the frames and bands, the shipped separators.

    `sepscene reproduce … --scale mini` runs it: log-mels of mixtures and channels lie ready, crops are taken from them.
    """
    base = tiny()
    return base.changed(
        {
            "name": "mini",
            "scale": "mini",
            "data.scenes_train": 2048,
            "data.scenes_test": 2048,
            "data.scenes_profile": "recurring",
            "separator.checkpoints": shipped_ladder(),
            "front_end.hop_samples": 320,
            "front_end.mel_bands": 32,
            "encoder.mel_bands": 32,
            "specaugment.time_mask_frames": 8,
            "specaugment.frequency_mask_bands": 4,
            "specaugment.warp_frames": 3,
            "objective.temperature": 0.2,
            "training.clip_gradient_norm": 100.0,
            "training.epochs": 32,
            "training.learning_rate": 1e-3,
            "resources.trainers": 1,
        }
    )


def shipped_ladder() -> dict[str, str]:
    """The small separators that come with the package: processor name -> folder."""
    folder = Path(models.__file__).parent / "demo_ladder"
    return {path.parent.name: str(path.parent) for path in sorted(folder.glob("*/config.json"))}


def tiny() -> Experiment:
    """Two CPU cores, a few minutes a row: narrow networks on 10 s synthetic scenes, enough steps to learn something.

    Its tau of 0.1 is that of the results recorded for it; 0.2, the default elsewhere, did as well
    (docs/log/2026-11.md).
    """
    return Experiment(
        name="tiny",
        scale="tiny",
        data=Data(scenes_train=512, scenes_test=256),
        separator=Separator(
            network=TDCNppConfig.tiny(),
            ladder=Ladder(steps={"N": 0, "F": 20, "S1": 100, "S2": 600}),
            batch_mixtures=8,
            segment_seconds=2.0,
            learning_rate=3e-3,
        ),
        encoder=Cnn14Config.tiny(),
        objective=Objective.model_validate({"head_hidden": 256, "temperature": 0.1}),
        training=Training(
            epochs=40,
            global_batch=64,
            service_rows=32,
            precision="float32",  # the same numbers on every CPU
            checkpoint_every_steps=60,
            learning_rate=5e-4,
        ),
        evaluation=Evaluation(scoring=ScoringSettings(bootstrap=500)),
        resources=Resources(
            trainers=2,
            trainer_cpus=0.2,
            separation_actors=2,
            separation_cpus=0.15,
            separation_precision="float32",
            readers=1,
            reader_cpus=0.1,
            validation_cpus=0.15,
        ),
        store=Store(mode="read-through"),
    )


def small() -> Experiment:
    """One GPU, about an hour: full networks; separators and trainer share the GPU."""
    return Experiment(
        name="small",
        scale="small",
        data=Data(scenes_train=4096, scenes_test=1024),
        separator=Separator(ladder=Ladder(steps={"N": 0, "F": 100, "S1": 500, "S2": 3000}), segment_seconds=5.0),
        training=Training(epochs=50, global_batch=256, service_rows=32, checkpoint_every_steps=200),
        resources=Resources(
            trainers=1,
            trainer_gpus=0.5,
            separation_actors=2,
            separation_gpus=0.25,
            separation_batch=8,
            readers=4,
            reader_cpus=1,
        ),
        store=Store(mode="read-through"),
    )


def paper() -> Experiment:
    """A cluster: AudioSet, the ladder of the paper; trainers on one kind of GPU, separators on a cheaper one."""
    return Experiment(
        name="paper",
        scale="paper",
        data=Data(format="audioset", root="audioset", train=("unbalanced_train", "balanced_train"), test=("eval",)),
        separator=Separator(network=TDCNppConfig(), batch_mixtures=64),
        training=Training(epochs=100, global_batch=4096, service_rows=256, checkpoint_every_steps=500),
        # With two million clips the seed of a perceptron hardly matters, and each takes hours.
        evaluation=Evaluation(scoring=ScoringSettings(shallow_epochs=20, perceptrons=1)),
        resources=Resources(
            trainers=16,
            trainer_cpus=8,
            trainer_gpus=1,
            separation_actors=64,
            separation_cpus=3,
            separation_gpus=1,
            separation_batch=8,
            readers=128,
            reader_cpus=1,
            validation_cpus=8,
            trainer_labels={"pool": "trainers"},
            separation_labels={"pool": "separators"},
        ),
        store=Store(mode="read-through"),
    )


SCALES: dict[str, Callable[[], Experiment]] = {"mini": mini, "tiny": tiny, "small": small, "paper": paper}


def table2(separation: bool, specaugment: bool, scale: Scale) -> Experiment:
    """A row of Table 2: SimCLR alone, with or without the separated channel (S2) and SpecAugment."""
    row = ("mix-chan" if separation else "mix-mix") + ("+specaug" if specaugment else "")
    views = Views(pair="mix-chan" if separation else "mix-mix", combination=("S2",), specaugment=specaugment)
    return _row(f"table2/{row}", scale, views, coincidence=False)


def table4(combination: tuple[str, ...], coincidence: bool, scale: Scale) -> Experiment:
    """A cell of Table 4: a combination of processors, with SimCLR alone or with coincidence prediction as well."""
    task = "simclr-cp" if coincidence else "simclr"
    return _row(f"table4/{'+'.join(combination)}/{task}", scale, Views(combination=combination), coincidence)


def table5(dim: int, scale: Scale) -> Experiment:
    """Table 5's own rows: the best combination with both tasks, h of size d."""
    row = _row(f"table5/d{dim}", scale, Views(combination=("S2", "F", "N")), coincidence=True)
    return row.changed({"encoder.embedding_dim": dim})


def triplet(scale: Scale) -> Experiment:
    """A baseline beside Table 5's first row: the triplet loss on two crops of the mixture, without separation.

    The paper's number there (Jansen 2018) is another framework's: other encoder, other positives (noise, mixing,
    shifts). Ours shares encoder, views and schedule with this framework's rows, and changes the loss and the pairs.
    """
    row = _row("table5/triplet", scale, Views(pair="mix-mix"), coincidence=False)
    return row.changed({"objective.similarity": "triplet"})


def architectures(scale: Scale) -> Experiment:
    """Beyond the paper: S2, N, or an untrained network of another kind, whose basis is an STFT of 32 ms windows.

    That an untrained separator is as good as a trained one asks whether what matters is that channels differ. Another
    basis with windows twelve times as long differs from S2 and N more than they do from each other.
    """
    if scale == "mini":
        raise SepsceneError("beyond/architectures needs a separator that scale mini does not bring: use --scale tiny")
    network = SCALES[scale]().separator.network
    other = {"basis": "stft", "window_samples": 512, "hop_samples": 256}
    plain = {key: value for key, value in network.model_dump().items() if key != "coefficients"}
    beside = {"separator.beside": {"STFT": TDCNppConfig.model_validate({**plain, **other})}}
    return _row("beyond/architectures", scale, Views(combination=("S2", "N", "STFT")), coincidence=True, more=beside)


def patch_transformer(scale: Scale) -> Experiment:
    """Beyond the paper: another encoder, a transformer over patches of the log-mel, as large as the scale allows."""
    row = _row("beyond/patch-transformer", scale, Views(combination=("S2", "N")), coincidence=True)
    sizes = {"paper": PatchTransformerConfig(), "small": PatchTransformerConfig.small()}
    encoder = sizes.get(scale, PatchTransformerConfig.tiny()).model_dump()
    return row.changed({"encoder": encoder | {"mel_bands": row.front_end.mel_bands}})


def demo(scale: Scale = "tiny") -> Experiment:
    """A trained or an untrained separator, both tasks, on synthetic scenes.

    `make demo` runs it at mini, with the separators that come with the package. At tiny it trains its own. Both have
    fewer scenes and steps than the rows of the tables, so that all of it ends in a few minutes.
    """
    base = SCALES[scale]().changed({"name": "demo", "views.combination": ["S2", "N"]})
    if scale == "mini":
        # Without SpecAugment, with little coincidence prediction, and with S1 instead of S2: all three lower the metric
        # of so small a run (docs/results.md), and the demo is to show what separation is worth.
        return base.changed(
            {
                "views.combination": ["S1", "N"],
                "views.channel": "loudest",  # a good separator's other channel is often the background alone
                "audio.clip_seconds": 5.0,  # half the work of 10 s for all but the trainers
                "data.scenes_train": 320,
                "data.scenes_test": 768,
                "views.specaugment": False,
                "objective.alpha": 0.2,
                "training.epochs": 22,
                "training.service_rows": 64,  # half as many blocks: on two cores their scheduling sets the pace
            }
        )
    if scale != "tiny":
        return base
    return base.changed(
        {
            "data.scenes_train": 192,
            "data.scenes_test": 128,
            "separator.ladder.steps": {"N": 0, "F": 10, "S1": 30, "S2": 90},
            "training.epochs": 30,
        }
    )


def _row(name: str, scale: Scale, views: Views, coincidence: bool, more: Mapping[str, Any] | None = None) -> Experiment:
    """The scale's experiment with the views of a row; `more` holds other dotted fields that it changes."""
    base = SCALES[scale]()
    alpha = base.objective.alpha if coincidence else 0.0
    return base.changed({"name": name, "table_row": name, "views": views, "objective.alpha": alpha, **(more or {})})


_TO_S2 = (CurriculumPoint(at=0, weights=(0, 1)), CurriculumPoint(at=1, weights=(1, 0)))
_TO_N = (CurriculumPoint(at=0, weights=(1, 0)), CurriculumPoint(at=1, weights=(0, 1)))

BEYOND = {
    # N three times as often as S2. Better weights are found by a sweep, see docs/sweeps.md.
    "beyond/weights": Views(combination=("S2", "N"), weights=(1, 3)),
    # Up or down the ladder while the run goes on, from N alone to S2 alone or the other way.
    "beyond/curriculum-to-S2": Views(combination=("S2", "N"), curriculum=_TO_S2),
    "beyond/curriculum-to-N": Views(combination=("S2", "N"), curriculum=_TO_N),
    # Both views are separated channels, different ones, of S2 or N; the mixture is not heard.
    "beyond/chan-chan": Views(combination=("S2", "N"), pair="chan-chan"),
    # Of the two channels always the louder one.
    "beyond/loudest": Views(combination=("S2", "N"), channel="loudest"),
}
"""Rows beyond the paper with both tasks, which differ in their views alone."""

EXPERIMENTS: dict[str, Callable[[Scale], Experiment]] = {
    "demo": demo,
    "table2/mix-mix": partial(table2, False, False),
    "table2/mix-mix+specaug": partial(table2, False, True),
    "table2/mix-chan": partial(table2, True, False),
    "table2/mix-chan+specaug": partial(table2, True, True),
    **{
        f"table4/{'+'.join(combination)}/{task}": partial(table4, combination, task == "simclr-cp")
        for combination in COMBINATIONS
        for task in ("simclr", "simclr-cp")
    },
    "table5/triplet": triplet,
    "table5/d128": partial(table5, 128),
    "table5/d1024": partial(table5, 1024),
    **{name: partial(_row, name, views=views, coincidence=True) for name, views in BEYOND.items()},
    "beyond/architectures": architectures,
    "beyond/patch-transformer": patch_transformer,
}
"""Every named experiment, as a function of the scale."""


def named_experiment(name: str, scale: Scale) -> Experiment:
    """The experiment of that name (`sepscene show` lists them) at a scale: "mini", "tiny", "small" or "paper".

    Example:
        >>> experiment = sepscene.named_experiment("table4/S2+N/simclr-cp", "paper")

    Raises:
        SepsceneError: when there is none; it lists those that there are.
    """
    if name not in EXPERIMENTS:
        raise SepsceneError(f"{unknown(name, EXPERIMENTS, 'experiment')}; or give a YAML file")
    return EXPERIMENTS[name](scale)


def resolve(name: str, scale: str, changes: list[str] | None) -> Experiment:
    """The experiment of a name or a YAML file, with the changes of the command line.

    Raises:
        SepsceneError: for an unknown name, scale or field, a refused value, or a short form that changes nothing here.
    """
    if name.endswith((".yaml", ".yml")):
        experiment = load_experiment(Path(name))
    elif scale not in SCALES:
        raise SepsceneError(f"--scale: {unknown(scale, SCALES, 'scale')}")
    else:
        experiment = named_experiment(name, scale)  # type: ignore[arg-type]
    return with_changes(experiment, parse_changes(changes))


def with_changes(experiment: Experiment, changes: Mapping[str, Any]) -> Experiment:
    """The experiment with a user's changes, none of which may be without effect.

    Raises:
        SepsceneError: for an unknown field, a refused value, or a short form of what no term of the objective has.
    """
    changed = experiment.changed(changes) if changes else experiment
    for field in changes:
        if field.startswith("objective."):
            changed.value_of(field)
    return changed


def parse_changes(changes: list[str] | None) -> dict[str, Any]:
    """["a.b=1"] to {"a.b": 1}; values are read as YAML.

    Raises:
        SepsceneError: for a piece without "=".
    """
    parsed: dict[str, Any] = {}
    for change in changes or []:
        field, equals, value = change.partition("=")
        if not equals:
            raise SepsceneError(f"--set {change!r} must look like field=value, e.g. --set objective.temperature=0.1")
        parsed[field] = parse_yaml(value, f"--set {change!r}: the value")
    return parsed
