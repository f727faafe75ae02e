"""A plan as tables for the terminal."""

from rich import box
from rich.console import Group
from rich.table import Table

from sepscene.orchestration.formatting import duration, quantity
from sepscene.orchestration.planning.plan import CPU, Plan
from sepscene.orchestration.runtime.precision import separation_precision, training_precision


def plan_table(plan: Plan) -> Group:
    """The whole plan, ready for `rich.console.Console.print`."""
    return Group(_facts(plan), "", _mode_table(plan), "", *_advice(plan))


def _facts(plan: Plan) -> Table:
    measured = plan.calibration
    resources = plan.experiment.resources
    table = Table(title=f"plan for {plan.experiment.name}", show_header=False, title_justify="left", box=None)
    table.add_column(style="bold")
    table.add_column()
    table.add_row("rows", f"{plan.rows:,} = {plan.clips:,} clips x {plan.experiment.training.epochs} epochs")
    table.add_row("steps", f"{plan.steps:,} of {plan.experiment.training.global_batch:,} rows")
    table.add_row("audio", f"{plan.clip_hours:,.1f} h of clips, {plan.view_hours:,.1f} h of views")
    table.add_row("separation", _separation(plan))
    table.add_row("training", f"{quantity(plan.train_flops_per_row)}FLOP per row")
    separators = separation_precision(plan.experiment)
    table.add_row("precision", f"separators {separators}, training {training_precision(plan.experiment)}")
    if plan.separator_training_flops:
        table.add_row(
            "separator (MixIT)",
            f"{quantity(plan.separator_training_flops)}FLOP, about {duration(plan.separator_training_seconds)}",
        )
    live = quantity(plan.live_row_bytes)
    stored = quantity(plan.stored_row_bytes)
    times = {name: f"{1e3 * seconds:.3g}" for name, seconds in measured.separation_seconds.items()}
    table.add_row("object store", f"{live}B per live row, {stored}B per row from the SeparatedStore")
    table.add_row(
        "measured, ms per row",
        f"decode {1e3 * measured.decode_seconds:.3g}, from the store {1e3 * measured.stored_seconds:.3g}, "
        f"separation {_once_or_each(times, ' ')} ({measured.separation_device}), "
        f"put {1e3 * measured.put_seconds:.3g}, "
        f"training {1e3 * measured.train_seconds:.3g} ({measured.train_device})",
    )
    table.add_row("resources", f"{resources.trainers} trainers, {_actors(plan)}{resources.readers} readers")
    return table


def _separation(plan: Plan) -> str:
    """Operations of each processor per clip."""
    if not plan.processors:
        return "none: mix-mix separates nothing"
    costs = {p.name: "unknown FLOP" if p.flops is None else f"{quantity(p.flops)}FLOP" for p in plan.processors}
    return f"{_once_or_each(costs, ', ')} per clip"


def _once_or_each(values: dict[str, str], between: str) -> str:
    """The value, if all processors have the same; otherwise the value of each, with its name."""
    if len(set(values.values())) == 1:
        return next(iter(values.values()))
    return between.join(f"{name} {value}" for name, value in values.items())


def _actors(plan: Plan) -> str:
    resources = plan.experiment.resources
    if not plan.processors:
        return ""
    minimum = resources.separation_actors_min
    return f"{f'{minimum} to ' if minimum else ''}{resources.separation_actors} separation actors, "


def _mode_table(plan: Plan) -> Table:
    """A column for each mode and a row for each quantity, so that no number is cut on a terminal of 80 columns."""
    configured = "live" if plan.experiment.store.mode == "off" else plan.experiment.store.mode
    table = Table("", box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0), pad_edge=False)
    for mode in plan.modes:
        chosen = mode.name == configured
        style = "bold" if chosen else None
        table.add_column(f"{mode.name} *" if chosen else mode.name, style=style, justify="right", overflow="fold")
    table.add_row("time", *(duration(mode.seconds) for mode in plan.modes))
    table.add_row("clips separated", *(f"{mode.separated:,.0f}" for mode in plan.modes))
    table.add_row("FLOP", *("?" if mode.flops is None else quantity(mode.flops).strip() for mode in plan.modes))
    table.add_row("GPU hours, busy", *(f"{mode.busy_gpu_hours:,.1f}" for mode in plan.modes))
    table.add_row("GPU hours, held", *(f"{mode.held_gpu_hours:,.1f}" for mode in plan.modes))
    table.add_row("store", *(f"{quantity(mode.store_bytes)}B" for mode in plan.modes))
    table.add_row("read", *(f"{quantity(mode.read_bytes)}B" for mode in plan.modes))
    table.add_row("moved", *(f"{quantity(mode.moved_bytes)}B" for mode in plan.modes))
    table.add_row("bottleneck", *(mode.bottleneck for mode in plan.modes))
    return table


def _advice(plan: Plan) -> list[str]:
    resources = plan.experiment.resources
    measured = plan.calibration
    lines = [
        "* the configured mode (store.mode); moved: through Ray's object store; read: from the SeparatedStore",
        f"in live mode, {plan.actors_per_trainer:.3g} separation actors keep one trainer busy: "
        f"{plan.actors} for {resources.trainers} trainers, with {plan.readers} readers",
    ]
    more = plan.actors - resources.separation_actors
    live = plan.mode("live")
    if not plan.processors:
        lines[1:] = [f"mix-mix separates nothing: {plan.readers} readers feed {resources.trainers} trainers"]
    elif live.bottleneck == "CPU cores":
        lines.append("all stages share the CPU cores: more actors on the same machine will not help")
    elif more > 0:
        lines.append(f"for live mode, add {more} separation actors (resources.separation_actors={plan.actors})")
    elif more < 0:
        lines.append(f"{-more} of the {resources.separation_actors} separation actors would idle even in live mode")
    separated_on_cpu = resources.separation_gpus and measured.separation_device == CPU
    trained_on_cpu = resources.trainer_gpus and measured.train_device == CPU
    if separated_on_cpu or trained_on_cpu:
        lines.append("measured on a CPU although GPUs are requested: run the calibration on a node with a GPU")
    return lines
