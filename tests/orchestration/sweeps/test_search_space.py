"""A sweep is refused before anything starts, or planned completely with values that the configuration accepts."""

from pathlib import Path
from typing import Any

import pytest
import ray.tune
import yaml
from ray.tune.search.variant_generator import generate_variants

from sepscene.models.config import SepsceneError
from sepscene.orchestration.cli.sweep_commands import _from_file, is_sweep
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.presets import resolve
from sepscene.orchestration.sweeps.config import SweepConfig, load_sweep, make_sweep
from sepscene.orchestration.sweeps.search_space import Space, draw_settings, parse_values, split_fields
from sepscene.orchestration.sweeps.trial_plan import Trial, find_sweep, plan_trials


def planned(**fields: Any) -> list[Trial]:
    config = make_sweep(**{"experiment": "demo", **fields})
    return plan_trials(config, *config.checked())


def test_a_grid_is_every_combination_with_every_seed_and_typed_values() -> None:
    trials = planned(over=split_fields(["combination=S2,S2+N", "temperature=0.1,2e-1", "alpha=0,1"]), seeds=2)
    assert len(trials) == len({trial.name for trial in trials}) == 16
    last = trials[-1]
    assert last.name == "t007-s1"
    assert last.settings == {
        "views.combination": ("S2", "N"),
        "objective.temperature": 0.2,  # YAML reads 2e-1 as text, the configuration converts it to a number
        "objective.alpha": 1.0,
    }
    assert (last.experiment.objective.temperature, last.experiment.seed) == (0.2, 1)


@pytest.mark.parametrize(
    ("experiment", "field", "values"),
    [
        ("demo", "objective.learn_temperature", [False, True]),
        ("table5/triplet", "objective.triplet_margin", [0.1, 0.2]),
        ("demo", "objective.alpha_warmup_steps", [0, 7]),
        ("demo", "objective.similarity", ["nt-xent", "vicreg"]),
        ("demo", "specaugment.time_mask_frames", [0, 3]),
    ],
)
def test_short_forms_can_be_swept(experiment: str, field: str, values: list[Any]) -> None:
    trials = planned(experiment=experiment, over={field: values})
    assert [trial.settings[field] for trial in trials] == values
    assert len({trial.experiment.digest() for trial in trials}) == 2


def test_tune_does_not_evaluate_a_mapping_of_the_experiment() -> None:
    """Tune takes {"eval": TEXT} for Python code and {"grid_search": LIST} for values, wherever they are nested."""
    labels = {"resources.trainer_labels": {"eval": "1/0"}, "resources.separation_labels": {"grid_search": "ab"}}
    (trial,) = planned(over={"alpha": "1"}, changes=labels)
    space = {"trial": ray.tune.grid_search([trial.for_tune()])}
    ((_, given),) = generate_variants({"config": space})
    assert Experiment.model_validate_json(given["config"]["trial"]["experiment"]) == trial.experiment


VALIDATES = {"training.validation_every_steps": 60}
RANDOM = {"search": "random", "budget": {"trials": 3}}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"over": {"temprature": "1"}}, r"temprature: unknown field \(did you mean objective\.temperature\?\)"),
        ({"over": {"objective.tau": "1"}}, r"objective\.tau: unknown field"),
        ({"over": {"temperature": "warm"}}, "valid number"),
        ({"over": {"temperature": "true"}}, "takes a number, not True"),
        ({"over": {"temperature": "0.1,0"}}, "greater than 0"),
        ({"over": {"temperature": "0.2,2e-1"}}, "same value twice"),
        ({"over": {"temperature": "loguniform(0.1,0.5)"}}, "a grid needs values"),
        ({"over": {"temperature": "uniform(0,0.5)"}, **RANDOM}, "greater than 0"),
        ({"over": {"temperature": "loguniform(0,0.5)"}, **RANDOM}, "lower bound greater than 0"),
        ({"over": {"temperature": "loguniform(0.5,0.1)"}, **RANDOM}, "is empty"),
        ({"over": {"temperature": "loguniform(0.5)"}, **RANDOM}, "a range has two numbers"),
        ({"over": {"temperature": "loguniform(a,b)"}, **RANDOM}, "a range has two numbers"),
        ({"over": {"temperature": "exit(0,1)"}, **RANDOM}, "there is no range 'exit'.*; known names: uniform"),
        ({"over": {"temperature": "log(0.05,0.5)"}, **RANDOM}, r"write loguniform\(LOW,HIGH\)"),
        ({"over": {"training.epochs": "int(1,5)"}, **RANDOM}, r"write randint\(LOW,HIGH\), where HIGH itself is not"),
        ({"over": {"training.epochs": "uniform(1,5)"}, **RANDOM}, r"write randint\(1,6\)"),
        ({"over": {"temperature": "randint(1,5)"}, "search": "random"}, r"budget\.trials is missing"),
        ({"over": {"alpha": "0,1"}, "scheduler": "pbt", "budget": {"trials": 4}}, "training was removed"),
        ({"over": {"objective.triplet_margin": "0.1,0.2"}}, "triplet_margin changes nothing in demo"),
        ({"over": {"views.weights": "[3,1],[1"}}, "cannot be read as YAML"),
        ({"over": {"combination": "S2,S3"}}, r"no processor 'S3' \(did you mean S"),
        ({"over": {"data.root": "a,b"}}, "all trials share the data"),
        ({"over": {"resources.trainers": "1,2"}}, "share the data, the separator, the store and the resources"),
        ({"over": {"seed": "1,2"}}, "--seeds"),
        ({"over": {"views.background": "kept,exchanged"}}, r"views\.background cannot be swept: exchanged works with"),
        ({"over": {"temperature": "0.1", "objective.temperature": "0.2"}}, "given twice"),
        ({"over": {}}, "over"),
        ({"over": {"alpha": "1"}, "search": "gird"}, "'grid', 'random' or 'optuna'"),
        ({"over": {"alpha": "0,1"}, "search": "optuna", "budget": {"trials": 4}, "seeds": 2}, "one seed"),
        ({"over": {"alpha": "0,1"}, "budget": {"gpu_hours": 1}}, "use no GPU"),
        ({"over": {"alpha": "1,2"}, "scheduler": "asha"}, "ASHA uses the validation kNN mAP, but no trial"),
        ({"over": {"alpha": "1,2"}, "search": "optuna", "budget": {"trials": 4}}, "Optuna uses the validation"),
        ({"over": {"alpha": "0,1,2"}, "budget": {"trials": 2}}, "3 settings, more than"),
        ({"over": {"alpha": "0"}, "budget": {"hours": 0}}, r"budget\.hours"),
        ({"over": {"temperature": ".inf,0.1"}}, "finite number"),
        ({"over": {"alpha": ".nan"}}, "finite number"),
        ({"over": {"temperature": "loguniform(0.1,2e999)"}, **RANDOM}, "upper bound"),
        ({"over": {"evaluation.scoring.seed": "0,1"}}, "metrics of different evaluation settings"),
        (
            {"over": {"alpha": "0"}, "changes": {"training.epoch": 3}},
            r"training\.epoch: unknown field \(did you mean epochs",
        ),
    ],
)
def test_invalid_sweeps_are_refused_with_the_name_of_the_field(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SepsceneError, match=message):
        planned(**fields)


def test_random_settings_are_reproducible_within_their_ranges_and_distinct() -> None:
    space: Space = {
        "objective.temperature": parse_values("objective.temperature", "loguniform(0.05, 0.5)"),
        "training.epochs": parse_values("training.epochs", "randint(2,5)"),
        "views.combination": [["S2"], ["N"]],
    }
    settings = draw_settings(space, 200, seed=3)
    assert settings[:5] == draw_settings(space, 5, seed=3) != draw_settings(space, 5, seed=4)
    temperatures = sorted(setting["objective.temperature"] for setting in settings)
    assert temperatures[0] >= 0.05 and temperatures[-1] <= 0.5
    assert temperatures[100] == pytest.approx((0.05 * 0.5) ** 0.5, rel=0.35)  # the median of a log-uniform
    assert {setting["training.epochs"] for setting in settings} == {2, 3, 4}
    assert len(draw_settings({"views.pair": ["mix-mix", "mix-chan"]}, 5, seed=0)) == 2


def test_a_file_and_the_command_line_give_the_same_sweep(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    tree = {
        "experiment": "demo",
        "over": {"combination": ["S2", "S2+N"], "temperature": "loguniform(0.05, 0.5)", "specaugment": [True, False]},
        "search": "random",
        "budget": {"trials": 4},
    }
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    texts = split_fields(["combination=S2,S2+N", "temperature=loguniform(0.05,0.5)", "specaugment=true,false"])
    line = make_sweep(experiment="demo", over=texts, search="random", budget={"trials": 4})
    from_file = load_sweep(path)
    assert plan_trials(from_file, *from_file.checked()) == plan_trials(line, *line.checked())
    path.write_text("experiment: demo\nover: {alpha: [0, 1]}\nseed: 3\n")
    with pytest.raises(SepsceneError, match="seed: unknown field"):
        load_sweep(path)


def test_a_sweep_is_found_by_its_arguments_and_a_folder_accepts_no_other(tmp_path: Path) -> None:
    first = make_sweep(experiment="demo", over={"alpha": "0,1"}, budget={"hours": 1})
    first.save(tmp_path / "one")
    more = make_sweep(experiment="demo", over={"alpha": "0,1"}, budget={"hours": 2}, seeds=3)
    assert find_sweep(tmp_path, more) == tmp_path / "one"
    more.save(tmp_path / "one")  # with a larger budget and more seeds, it is the same sweep
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "sweep.yaml").write_text("experiment: demo\nov")  # another sweep, the newest
    assert find_sweep(tmp_path, more) == tmp_path / "one"
    other = make_sweep(experiment="demo", over={"alpha": "0,2"})
    with pytest.raises(SepsceneError, match="contains no sweep with these arguments"):
        find_sweep(tmp_path, other)
    with pytest.raises(SepsceneError, match="contains another sweep"):
        other.save(tmp_path / "one")


def test_a_sweep_of_a_file_with_a_relative_path_is_continued_if_its_content_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    experiment = resolve("demo", "tiny", None)
    experiment.save(tmp_path / "mine.yaml")
    sweep = make_sweep(experiment="mine.yaml", over={"alpha": "0,1"})
    sweep.save(tmp_path / "runs" / "one")
    sweep.save(tmp_path / "runs" / "one")
    assert find_sweep(tmp_path / "runs", sweep) == tmp_path / "runs" / "one"
    (tmp_path / "runs" / "one").rename(tmp_path / "moved")
    assert load_sweep(tmp_path / "moved" / "sweep.yaml").checked() == sweep.checked()
    experiment.changed({"training.epochs": 3}).save(tmp_path / "mine.yaml")
    with pytest.raises(SepsceneError, match="contains another sweep"):
        sweep.save(tmp_path / "moved")


def test_optuna_plans_nothing_in_advance() -> None:
    fields = {"over": {"temperature": "loguniform(0.05,0.5)"}, "search": "optuna", "budget": {"trials": 4}}
    assert planned(**fields, changes=VALIDATES) == []


def test_a_schedule_that_is_not_a_mapping_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("experiment: demo\nover: {alpha: [0, 1]}\nschedule: 5\n")
    with pytest.raises(SepsceneError, match=r"bad sweep in .*mine\.yaml:\n.*schedule"):
        load_sweep(path)


def test_every_field_of_a_sweep_has_a_description() -> None:
    for name, field in SweepConfig.model_fields.items():
        assert field.description or name in ("budget", "schedule"), name


def test_probabilities_and_curricula_can_be_swept() -> None:
    over = split_fields(["views.weights=[3,1],[1,1]", "combination=S2+N"])
    assert [trial.settings["views.weights"] for trial in planned(over=over)] == ["3-1", "1-1"]
    points = "[{at: 0, weights: [0, 1]}, {at: 1, weights: [1, 0]}]"
    (trial,) = planned(over=split_fields([f"views.curriculum={points}"]))
    assert len(trial.experiment.views.curriculum) == 2
    assert trial.name == "t000-s0"


def test_a_file_gives_the_whole_sweep_and_the_command_line_can_change_the_budget(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("experiment: demo\nover: {alpha: [0, 1]}\nbudget: {hours: 1}\n")
    assert is_sweep(str(path)) and not is_sweep("demo")
    defaults = {"scale": None, "search": "grid", "scheduler": "none", "seeds": 1}
    more = _from_file(path, [], None, defaults, {"hours": 5.0, "trials": None, "gpu_hours": None})
    assert more.budget.hours == 5.0 and more.identity() == load_sweep(path).identity()
    with pytest.raises(SepsceneError, match=r"budget\.hours: Input should be greater than 0"):
        _from_file(path, [], None, defaults, {"hours": -5.0, "trials": None, "gpu_hours": None})
    with pytest.raises(SepsceneError, match="put --search, --over into the file"):
        _from_file(path, ["alpha=1"], None, {**defaults, "search": "random"}, {})
