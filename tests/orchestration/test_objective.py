"""The objective in a configuration: terms, the paper's short forms, custom terms, and sweeps."""

from pathlib import Path

import pytest
import torch

from sepscene.models.config import SepsceneError
from sepscene.models.names import trust_code
from sepscene.orchestration.config import Experiment
from sepscene.orchestration.objective_config import Objective
from sepscene.orchestration.presets import named_experiment, resolve, with_changes
from sepscene.orchestration.sweeps.search_space import checked_space
from sepscene.orchestration.training.builders import build_objective, check_parts
from sepscene.orchestration.training.flops import step_flops
from sepscene.orchestration.training.pretrainer import Pretrainer
from sepscene.tasks.losses.settings import (
    CoincidenceSettings,
    CustomTerm,
    NtXentSettings,
    TripletSettings,
    VicregSettings,
)
from sepscene.tasks.losses.vicreg import vicreg
from tests.custom_code import write_package
from tests.orchestration.training.test_pretraining import CPU, batch, consumed


def objective(**fields: object) -> Objective:
    return Objective.model_validate(fields)


@pytest.mark.parametrize(
    ("short", "terms"),
    [
        ({}, {"similarity": NtXentSettings(), "coincidence": CoincidenceSettings()}),
        (
            {"alpha": 0.5, "alpha_warmup_steps": 7, "temperature": 0.1, "learn_temperature": True},
            {
                "similarity": NtXentSettings(temperature=0.1, learn_temperature=True),
                "coincidence": CoincidenceSettings(weight=0.5, warmup_steps=7),
            },
        ),
        (
            {"similarity": "triplet", "triplet_margin": 0.3, "alpha": 0, "temperature": 0.2},
            {"similarity": TripletSettings(margin=0.3), "coincidence": CoincidenceSettings(weight=0)},
        ),
        ({"terms": {"nt-xent": {}}}, {"nt_xent": NtXentSettings()}),
        ({"similarity": "vicreg"}, {"similarity": VicregSettings(), "coincidence": CoincidenceSettings()}),
        (
            {"terms": {"vicreg": {"weight": 0.1}, "coincidence": {}}, "alpha": 2},
            {"vicreg": VicregSettings(weight=0.1), "coincidence": CoincidenceSettings(weight=2)},
        ),
        (
            {"terms": {"mine": {"use": "lab.losses:Pull", "power": 3}}},
            {"mine": CustomTerm.model_validate({"use": "lab.losses:Pull", "power": 3})},
        ),
    ],
)
def test_short_forms_are_terms(short: dict[str, object], terms: dict[str, object]) -> None:
    found = objective(**short)
    assert found.terms == terms and list(found.terms) == list(terms)
    assert Objective.model_validate(found.model_dump(mode="json")) == found


def test_the_configuration_of_an_older_version_is_read() -> None:
    old = {
        "similarity": "nt-xent", "temperature": 0.1, "learn_temperature": False, "triplet_margin": 0.1, "alpha": 0.5,
        "coincidence_pairs": "same", "alpha_warmup_steps": 3, "projection_dim": 128, "head_hidden": 256,
    }  # fmt: skip
    found = objective(**old)
    assert (found.alpha, found.alpha_warmup_steps, found.temperature, found.similarity) == (0.5, 3, 0.1, "nt-xent")
    assert (
        found.weights_at(0) == {"similarity": 1.0, "coincidence": 0.5 / 3} and found.weights_at(2)["coincidence"] == 0.5
    )
    assert found.description == "NT-Xent (tau 0.1) + 0.5 coincidence"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"terms": {"loss": {"use": "vicreg"}}}, "cannot be called 'loss'"),
        ({"terms": {"a.b": {"use": "vicreg"}}}, "cannot be called 'a.b'"),
        ({"terms": {"vicreg": {"weight": 0}}}, "nothing to learn"),
        ({"terms": {"mine": {"use": "vicrge"}}}, r"no loss term 'vicrge' \(did you mean vicreg\?\)"),
        ({"terms": {"similarity": {"use": "vicreg"}}, "temperature": 0.1}, "is a setting of nt-xent"),
        ({"similarity": "triplet", "learn_temperature": True}, "the triplet loss has no temperature"),
        ({"coincidence_pairs": "own"}, "all terms learn from the same pairs"),
    ],
)
def test_invalid_objectives_are_refused(nano: Experiment, fields: dict[str, object], message: str) -> None:
    with pytest.raises(SepsceneError, match=message):
        nano.changed({"objective": fields})


def test_weights_can_be_swept_by_both_names(nano: Experiment) -> None:
    space = {"objective.terms.coincidence.weight": ["0", "0.5"], "objective.terms.similarity.temperature": [0.1]}
    assert checked_space(nano, space)["objective.terms.coincidence.weight"] == [0, 0.5]
    assert checked_space(nano, {"objective.alpha": ["1e-1", 2]}) == {"objective.alpha": [0.1, 2]}
    both = nano.changed({"objective.terms.coincidence.weight": 0.25})
    assert both == nano.changed({"objective.alpha": 0.25}) and both.digest() != nano.digest()
    assert nano.changed({"objective.terms.similarity.use": "vicreg"}).objective.similarity == "vicreg"


def test_a_change_that_has_no_effect_is_refused(nano: Experiment) -> None:
    """Older files contain all short forms, but a value that the user sets must not be ignored."""
    for name, change in {"demo": "triplet_margin=0.3", "table5/triplet": "temperature=0.1"}.items():
        field, value = change.split("=")
        with pytest.raises(SepsceneError, match=rf"{field} changes nothing in {name}: no term"):
            resolve(name, "tiny", [f"objective.{change}"])
        with pytest.raises(SepsceneError, match="changes nothing"):
            with_changes(named_experiment(name, "tiny"), {f"objective.{field}": float(value)})
    both = ["objective.similarity=triplet", "objective.triplet_margin=0.3"]
    assert resolve("demo", "tiny", both).value_of("objective.triplet_margin") == 0.3
    assert with_changes(nano, {"objective.alpha": 0}).value_of("objective.alpha") == 0


def test_rows_of_the_tables_have_their_terms() -> None:
    for name, uses in {"table4/S2/simclr": ["nt-xent"], "table4/S2/simclr-cp": ["nt-xent", "coincidence"],
                       "table5/triplet": ["triplet"]}.items():  # fmt: skip
        terms = named_experiment(name, "tiny").objective.used_terms
        assert [term.use for term in terms.values()] == uses
    assert named_experiment("table4/S2/simclr", "tiny").objective.temperature == 0.1


def test_vicreg_trains_an_encoder_and_its_metric_is_the_loss(nano: Experiment) -> None:
    experiment = nano.changed(
        {"objective": {"terms": {"vicreg": {}, "coincidence": {"weight": 0.5}}, "head_hidden": 8}}
    )
    check_parts(experiment)
    one = Pretrainer(experiment, 24, CPU)
    fresh = build_objective(experiment)
    step = consumed(one, batch(0))
    assert step["loss"] == pytest.approx(step["vicreg"] + 0.5 * step["coincidence"], rel=1e-6)
    h = [torch.randn(8, 16) for _ in range(2)]
    z = [fresh.terms["vicreg"].head(view) for view in h]
    expected = vicreg(z, z, VicregSettings())
    torch.testing.assert_close(fresh.loss(*h).parts["vicreg"], expected.detach(), rtol=1e-5, atol=0)
    assert step_flops(experiment) > 0


def test_a_custom_term_is_trained_with_the_others(
    nano: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_package(tmp_path, "termlab", monkeypatch)
    experiment = nano.changed({"objective.terms": {"similarity": {}, "pull": {"use": "termlab.nets:Pull", "power": 1}}})
    assert experiment.custom_code == ("termlab.nets:Pull",)
    with pytest.raises(SepsceneError, match="is code that does not come with"):
        check_parts(experiment)
    trust_code("termlab.nets:Pull")
    check_parts(experiment)
    one = Pretrainer(experiment, 24, CPU)
    before = one.objective.terms["pull"].scale.detach().clone()
    step = consumed(one, batch(0))
    assert step["loss"] == pytest.approx(step["similarity"] + step["pull"], rel=1e-6)
    assert (one.objective.terms["pull"].scale != before).any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use": "badlab.nets:Pull", "power": 0}, r"objective.terms.mine \(badlab.nets:Pull\): power: Input should be"),
        (
            {"use": "badlab.nets:Pull", "pover": 1},
            r"pover: unknown field \(did you mean power\?\); known fields: power",
        ),
        ({"use": "badlab.nets:Endless"}, "for two pairs; a loss must be finite"),
        ({"use": "badlab.nets:MelNet"}, "is not a subclass of tasks.losses.terms.Term"),
        (
            {"use": "badlab.nets:PullNoSettings"},
            r"objective.terms.mine \(badlab.nets:PullNoSettings\) needs a class attribute Config, a pydantic model",
        ),
    ],
)
def test_a_failing_custom_term_is_reported_before_anything_starts(
    nano: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, object], message: str
) -> None:
    write_package(tmp_path, "badlab", monkeypatch)
    trust_code(str(settings["use"]))
    with pytest.raises(SepsceneError, match=message):
        check_parts(nano.changed({"objective": {"terms": {"similarity": {}, "mine": settings}}}))
