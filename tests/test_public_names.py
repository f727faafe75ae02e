"""The public names: each has a docstring with an example whose calls are valid."""

import ast
import doctest
import inspect
import re
from typing import Any

import pytest

import sepscene

PARSER = doctest.DocTestParser()


def example_of(name: str) -> str:
    """The code of a public name's example."""
    documentation = inspect.getdoc(getattr(sepscene, name)) or ""
    assert "Example:" in documentation, f"{name} has no example in its docstring"
    return "".join(example.source for example in PARSER.get_examples(documentation))


def called(node: ast.Call) -> Any:
    """The public function or class of a call; None for other calls."""
    words = ast.unparse(node.func).split(".")
    return getattr(sepscene, words[1]) if len(words) == 2 and words[0] == "sepscene" else None


@pytest.mark.parametrize("name", sepscene.__all__)
def test_examples_use_existing_names_with_valid_arguments(name: str) -> None:
    tree = ast.parse(example_of(name))
    attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    mentioned = {node.attr for node in attributes if ast.unparse(node.value) == "sepscene"}
    assert mentioned and mentioned <= set(sepscene.__all__)
    for node in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        if (function := called(node)) is not None:
            words = {word.arg: word.value for word in node.keywords if word.arg}
            inspect.signature(function).bind(*node.args, **words)


def test_examples_that_need_no_run_work(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {"sepscene": sepscene}
    exec(example_of("named_experiment"), names)
    assert names["experiment"].scale == "paper"
    exec(example_of("Experiment").splitlines()[0], names)
    assert names["experiment"].objective.temperature == 0.1
    exec(example_of("SepsceneError"), names)
    assert "runs/nothing/encoder" in capsys.readouterr().out


@pytest.mark.slow  # imports Ray
def test_the_range_in_the_documentation_of_sweep_is_valid() -> None:
    from sepscene.orchestration.sweeps.search_space import parse_values

    (shown,) = re.findall(r'a range such as "(.+)"', inspect.getdoc(sepscene.sweep) or "")
    assert not isinstance(parse_values("objective.temperature", shown), list)


def test_the_example_of_sweep_uses_a_metric_that_trials_report() -> None:
    from sepscene.orchestration.records.mlflow_names import metric_name

    (call,) = [
        node
        for node in ast.walk(ast.parse(example_of("sweep")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "grid.get_best_result"
    ]
    assert metric_name(ast.literal_eval(call.args[0])).startswith("2_quality/")
