"""The documentation: every `sepscene` command can be parsed, and every link between pages resolves."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.core import TyperGroup
from typer.main import get_command
from typer.testing import CliRunner

from sepscene.orchestration.cli.main import app
from sepscene.orchestration.cli.submission import parsed_command
from tests.docs.test_log import anchor

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = (DOCS.parent / "README.md", *sorted(DOCS.glob("*.md")))


def commands(path: Path) -> list[str]:
    """The `sepscene …` lines of a page's code blocks, continued lines joined."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [" ".join(line.split()) for line in lines if line.strip().startswith("sepscene ")] + [
        " ".join(line[line.index("sepscene ") :].split()) for line in lines if " -- sepscene " in " ".join(line.split())
    ]


@pytest.mark.parametrize("command", [command for page in PAGES for command in commands(page)])
def test_commands_of_every_page_parse(command: str) -> None:
    words = shlex.split(command, comments=True)[1:]
    group = get_command(app)
    context = group.make_context("sepscene", words, resilient_parsing=True)
    while isinstance(group, TyperGroup):
        name = words.pop(0)
        found = group.get_command(context, name)
        assert found is not None, f"there is no command {name!r}"
        group = found
    params = group.make_context("sepscene", words).params
    if name == "submit":  # `submit` accepts any words and parses the command among them later
        parsed_command(get_command(app), params["words"])


def test_the_tutorial_covers_every_step() -> None:
    first_words = {command.split()[1] for command in commands(DOCS / "tutorial.md")}
    assert {"doctor", "demo", "data", "pretrain", "embed", "sweep", "plan", "cluster", "submit"} <= first_words
    assert len(commands(DOCS / "tutorial.md")) >= 12


@pytest.mark.parametrize("page", [DOCS.parent / "README.md", *sorted(DOCS.rglob("*.md"))], ids=lambda page: page.name)
def test_links_between_pages_resolve(page: Path) -> None:
    for address in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        link, _, fragment = address.partition("#")
        if link.startswith("https://"):
            continue
        target = page.parent / link if link else page
        assert target.exists(), link
        if fragment:
            headings = re.findall(r"^#+ (.+)$", target.read_text(), flags=re.MULTILINE)
            assert fragment in map(anchor, headings), f"{link}#{fragment}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_headings_of_a_page_are_unique(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    assert sorted(set(headings)) == sorted(headings)


@pytest.mark.slow
def test_the_commands_of_the_tutorial_that_need_no_run_succeed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands as written, in a folder with the recordings that the tutorial's table names."""
    text = (DOCS / "tutorial.md").read_text()
    (table,) = re.findall(r"```\n(uri,labels.*?)```", text, flags=re.DOTALL)
    (tmp_path / "recordings").mkdir()
    (tmp_path / "recordings" / "manifest.csv").write_text(table)
    for uri in {line.split(",")[0] for line in table.splitlines()[1:]}:
        (tmp_path / "recordings" / uri).parent.mkdir(exist_ok=True)
        noise = np.random.default_rng(0).normal(0, 0.1, 20 * 16_000)
        soundfile.write(tmp_path / "recordings" / uri, noise, 16_000)
    (tmp_path / "clusters").symlink_to(DOCS.parent / "clusters")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sepscene.orchestration.cli.doctor.NEEDED_FREE_BYTES", 0)  # free space must not matter
    said = {}
    for command in commands(DOCS / "tutorial.md"):
        words = shlex.split(command)[1:]
        if words[0] in ("doctor", "data", "cluster"):
            result = CliRunner().invoke(app, words)
            assert result.exit_code == 0, (command, result.output, result.exception)
            said[words[0]] = result.output
    assert set(said) == {"doctor", "data", "cluster"}
    assert "fits" in said["cluster"]
