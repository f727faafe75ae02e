"""What a report records about the process: the command that can be run again."""

import pytest

from sepscene.orchestration.records.environment import command_line


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("/opt/lab/.venv/bin/sepscene", "sepscene sweep demo --over 'alpha=0, 1'"),
        ("/opt/lab/sepscene/__main__.py", "sepscene sweep demo --over 'alpha=0, 1'"),
        ("study.py", ""),  # a user's program, whose arguments are not those of `sepscene`
    ],
)
def test_only_a_sepscene_command_is_recorded(monkeypatch: pytest.MonkeyPatch, program: str, expected: str) -> None:
    monkeypatch.setattr("sys.argv", [program, "sweep", "demo", "--over", "alpha=0, 1"])
    assert command_line() == expected
