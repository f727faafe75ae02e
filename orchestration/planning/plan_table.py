"""A plan as text for the terminal."""

from rich import box
from rich.console import Group
from rich.table import Table

from sepscene.orchestration.formatting import duration, quantity
from sepscene.orchestration.planning.plan import CPU, Plan
from sepscene.orchestration.runtime.precision import separation_precision, training_precision


def plan_table(plan: Plan) -> Group:
    """The whole plan, ready for `rich.console.Console.print`."""
    return Group(_facts(plan), "", _ways(plan), "", *_advice(plan))


def _facts(plan: Plan) -> Table:
    measured = plan.calibration
    resources = plan.experiment.resources
    table = Table(title=f"plan of {plan.experiment.name}", show_header=False, title_justify="left", box=None)
    table.add_column(style="bold")
    table.add_column()
    table.add_row("rows", f"{plan.rows:,} = {plan.clips:,} clips x {plan.experiment.training.epochs} epochs")
    table.add_row("steps", f"{plan.steps:,} of {plan.experiment.training.global_batch:,} rows")
    table.add_row("audio", f"{plan.clip_hours:,.1f} h of clips, {plan.view_hours:,.1f} h of views")
    table.add_row("separation", _separation(plan))
    table.add_row("training", f"{quantity(plan.train_flops_per_row)}FLOP a row")
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
    table.add_row("object store", f"{live}B a live row, {stored}B a row from the SeparatedStore")
    table.add_row(
        "measured, ms a row",
        f"decode {1e3 * measured.decode_seconds:.3g}, from the store {1e3 * measured.stored_seconds:.3g}, "
        f"separation {_once_or_each(times, ' ')} ({measured.separation_device}), "
        f"put {1e3 * measured.put_seconds:.3g}, "
        f"training {1e3 * measured.train_seconds:.3g} ({measured.train_device})",
    )
    table.add_row("resources", f"{resources.trainers} trainers, {_actors(plan)}{resources.readers} readers")
    return table


def _separation(plan: Plan) -> str:
    """Operations of each kind of processor for one clip."""
    if not plan.processors:
        return "none: mix-mix separates nothing"
    costs = {p.name: "unknown FLOP" if p.flops is None else f"{quantity(p.flops)}FLOP" for p in plan.processors}
    return f"{_once_or_each(costs, ', ')} a clip"


def _once_or_each(values: dict[str, str], between: str) -> str:
    """The value, where all processors have the same; otherwise that of each, by name."""
    if len(set(values.values())) == 1:
        return next(iter(values.values()))
    return between.join(f"{name} {value}" for name, value in values.items())


def _actors(plan: Plan) -> str:
    resources = plan.experiment.resources
    if not plan.processors:
        return ""
    fewest = resources.separation_actors_min
    return f"{f'{fewest} to ' if fewest else ''}{resources.separation_actors} separation actors, "


def _ways(plan: Plan) -> Table:
    """A column for each way and a row for each quantity, so that no number is cut on a terminal of 80 columns."""
    mode = plan.experiment.store.mode
    configured = "live" if mode == "off" else mode
    table = Table("", box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0), pad_edge=False)
    for way in plan.ways:
        chosen = way.name == configured
        style = "bold" if chosen else None
        table.add_column(f"{way.name} *" if chosen else way.name, style=style, justify="right", overflow="fold")
    table.add_row("time", *(duration(way.seconds) for way in plan.ways))
    table.add_row("clips separated", *(f"{way.separated:,.0f}" for way in plan.ways))
    table.add_row("FLOP", *("?" if way.flops is None else quantity(way.flops).strip() for way in plan.ways))
    table.add_row("GPU hours, busy", *(f"{way.busy_gpu_hours:,.1f}" for way in plan.ways))
    table.add_row("GPU hours, held", *(f"{way.held_gpu_hours:,.1f}" for way in plan.ways))
    table.add_row("store", *(f"{quantity(way.store_bytes)}B" for way in plan.ways))
    table.add_row("read", *(f"{quantity(way.read_bytes)}B" for way in plan.ways))
    table.add_row("moved", *(f"{quantity(way.moved_bytes)}B" for way in plan.ways))
    table.add_row("bottleneck", *(way.bottleneck for way in plan.ways))
    return table


def _advice(plan: Plan) -> list[str]:
    resources = plan.experiment.resources
    measured = plan.calibration
    lines = [
        "* as configured (store.mode); moved: through Ray's object store; read: from the SeparatedStore",
        f"live, one trainer is kept busy by {plan.actors_per_trainer:.3g} separation actors: "
        f"{plan.actors} for {resources.trainers} trainers, with {plan.readers} readers",
    ]
    more = plan.actors - resources.separation_actors
    live = plan.way("live")
    if not plan.processors:
        lines[1:] = [f"mix-mix separates nothing: {plan.readers} readers feed {resources.trainers} trainers"]
    elif live.bottleneck == "CPU cores":
        lines.append("the CPU cores are shared by all stages: more actors on the same machine will not help")
    elif more > 0:
        lines.append(f"to run live, add {more} separation actors (resources.separation_actors={plan.actors})")
    elif more < 0:
        lines.append(f"{-more} of the {resources.separation_actors} separation actors would idle even live")
    separated_on_cpu = resources.separation_gpus and measured.separation_device == CPU
    trained_on_cpu = resources.trainer_gpus and measured.train_device == CPU
    if separated_on_cpu or trained_on_cpu:
        lines.append("measured on a CPU although GPUs are asked for: calibrate on a node that has one")
    return lines
