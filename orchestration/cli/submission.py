"""Converts a `sepscene` command into a job for a cluster: resolves its arguments and collects its files."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from sepscene.clusters.descriptions import read_pools, write_pools
from sepscene.models.config import SepsceneError
from sepscene.models.names import require_trust
from sepscene.models.spelling import unknown
from sepscene.models.trust import CODE
from sepscene.orchestration.cli.sweep_commands import is_sweep, sweep_of
from sepscene.orchestration.presets import resolve
from sepscene.orchestration.records.run_folder import RunFolder, dated, plain_name
from sepscene.orchestration.records.sweep_folder import SweepFolder
from sepscene.orchestration.runtime.cluster_check import check_cluster
from sepscene.orchestration.runtime.jobs import Submission
from sepscene.orchestration.runtime.placement import CLUSTER_VARIABLE
from sepscene.orchestration.yaml_files import as_yaml, is_yaml

if TYPE_CHECKING:
    from sepscene.orchestration.sweeps.config import SweepConfig

EXPERIMENT_FILE = RunFolder.experiment.name
SWEEP_FILE = SweepFolder.configuration.name
"""The files of a job are named like those of a run and of a sweep."""

COMMANDS = ("pretrain", "sweep", "reproduce", "separator train", "embed")
CLUSTER_STORAGE = Path("/mnt/sepscene/runs")
"""Default folder for runs on a cluster; every template mounts it."""


def submission_of(program: Any, words: list[str], cluster: Path | None = None) -> Submission:
    """The job for `sepscene WORDS`.

    Experiments and sweeps are resolved here, so that mistakes are found before anything is sent, and sent as YAML
    files. All other paths must exist on the cluster. The default scale is `paper`, the default storage CLUSTER_STORAGE.

    Args:
        program: the whole command line as a click group, whose commands parse `words`.
        words: the command and its arguments, e.g. ["pretrain", "mine.yaml", "--run-id", "first"].
        cluster: description of an autoscaling cluster, e.g. clusters/aws.yaml. When placement is checked, nodes that it
            can still start count as available. Only its list of pools is sent to the cluster.

    Raises:
        SepsceneError: for any other command, an invalid experiment, or one that does not fit `cluster`.
    """
    name, context = parsed_command(program, words)
    given = context.params
    defaults: dict[str, Any] = {"storage": CLUSTER_STORAGE}
    if not is_yaml(given.get("experiment", "")):
        defaults["scale"] = "paper"
    for field, value in defaults.items():
        source = context.get_parameter_source(field)
        if field in given and source is not None and source.name == "DEFAULT":
            given[field] = value
    files: dict[str, str] = {}
    code: tuple[str, ...] = ()
    metadata: dict[str, str] = {"command": name}
    if name in ("pretrain", "separator train"):
        experiment = resolve(given["experiment"], given["scale"], given["change"])
        code = experiment.custom_code
        if cluster:
            check_cluster(cluster, experiment)
        files[EXPERIMENT_FILE] = as_yaml(experiment)
        metadata |= {"experiment": experiment.name, "scale": experiment.scale, "digest": experiment.digest()}
        run_id = given["run_id"] or dated(f"{experiment.name}-{experiment.digest()}")
        given |= {"experiment": EXPERIMENT_FILE, "scale": None, "change": None, "run_id": run_id, "resume": True}
    elif name == "sweep":
        sweep = sweep_of(given)
        code = _code_of_sweep(sweep)
        files = _stage_sweep(given, sweep)
        run_id = given["sweep_id"] or dated("sweep")
        given["sweep_id"] = run_id
    elif name == "reproduce":
        run_id = given["reproduction_id"] or dated("-".join(given["tables"]))
        given["reproduction_id"] = run_id
    else:
        run_id = dated(f"embed-{Path(given['out']).stem}")
    for import_path in code:
        require_trust(import_path, "class or function")
    trusted = {CODE.variable: ",".join(code)} if code else {}
    if cluster:
        files["cluster.pools.yaml"] = write_pools(read_pools(cluster))
    return Submission(
        arguments=(*name.split(), *_as_words(context)),
        run_id=plain_name(run_id, "the run id"),
        metadata=metadata,
        files=files,
        environment=({CLUSTER_VARIABLE: "cluster.pools.yaml"} if cluster else {}) | trusted,
        code=code,
    )


def parsed_command(program: Any, words: list[str]) -> tuple[str, typer.Context]:
    """The command's name and its parsed arguments.

    Raises:
        SepsceneError: when the name is not in COMMANDS.
    """
    size = 2 if words[:1] == ["separator"] else 1
    name = " ".join(words[:size])
    if name not in COMMANDS:
        hint = f", e.g. `sepscene submit pretrain {name}`" if "/" in name or is_yaml(name) else ""
        raise SepsceneError(f"cannot submit {name!r}: {unknown(name, COMMANDS, 'command')}{hint}")
    command = program
    for word in name.split():
        command = command.commands[word]
    context: typer.Context = command.make_context(name, words[size:])
    return name, context


def _stage_sweep(given: dict[str, Any], sweep: "SweepConfig") -> dict[str, str]:
    """The YAML files of a sweep, by their names on the cluster; `given` is changed to name them."""
    files: dict[str, str] = {}
    if is_yaml(sweep.experiment):
        files[EXPERIMENT_FILE] = as_yaml(resolve(sweep.experiment, sweep.scale, None))
        sweep = sweep.changed({"experiment": EXPERIMENT_FILE})
    if is_sweep(given["experiment"]):
        files[SWEEP_FILE] = as_yaml(sweep)
        given |= {"experiment": SWEEP_FILE, "scale": None}
    else:
        given["experiment"] = sweep.experiment
    return files


def _code_of_sweep(sweep: "SweepConfig") -> tuple[str, ...]:
    """Import paths of the custom code that the experiments of a sweep name."""
    from sepscene.orchestration.sweeps.trial_plan import possible_experiments

    base, space = sweep.checked()
    possible = possible_experiments(base, [], space)
    return tuple(sorted({name for experiment in possible for name in experiment.custom_code}))


def _as_words(context: typer.Context) -> list[str]:
    """Parsed arguments as words again: arguments first, then the options that differ from their defaults."""
    words: list[str] = []
    options: list[str] = []
    for parameter in context.command.params:
        value = context.params.get(parameter.name or "")
        if value is None or value == parameter.default or value in ((), []):
            continue
        values = [str(each) for each in (value if isinstance(value, list | tuple) else [value])]
        if parameter.param_type_name == "argument":
            words += values
        elif isinstance(value, bool):
            options.append(parameter.opts[0] if value else parameter.secondary_opts[0])
        else:
            options += [word for each in values for word in (parameter.opts[0], each)]
    return [*words, *options]
