"""Custom separators: errors, the folder in which they are saved, and what their digest depends on."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sepscene.augment.audio import AudioFormat
from sepscene.augment.separation.service import open_separator
from sepscene.models.card import CARD_FILE
from sepscene.models.config import CheckpointError, SepsceneError
from sepscene.models.custom import CustomCode, separator_code
from sepscene.models.names import trust_code
from sepscene.models.separators.custom import card_of, checkpoint_folders, save_custom
from sepscene.models.separators.fast_path import fast_separator
from sepscene.models.separators.folder import load_separator
from tests.custom_code import write_package

AUDIO = AudioFormat(clip_seconds=0.5)


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    mark = write_package(tmp_path, "seplab", monkeypatch)
    for name in ("Split", "halves", "Chance", "Neighbours", "Flat", "MelNet"):
        trust_code(f"seplab.nets:{name}")
    return mark.parent / "nets.py"


def custom(name: str, **options: object) -> CustomCode:
    return CustomCode.model_validate({"use": f"seplab.nets:{name}", **options})


@pytest.mark.usefixtures("lab")
@pytest.mark.parametrize(("name", "options"), [("Split", {"sources": 3}), ("halves", {"first": 0.9})])
def test_a_folder_stores_it_with_its_weights(name: str, options: dict, tmp_path: Path) -> None:
    choice = custom(name, **options)
    card = save_custom(choice, tmp_path / "mine")
    assert card.digest == card_of(choice).digest == card_of(str(tmp_path / "mine")).digest
    assert separator_code(str(tmp_path / "mine")) == choice.use
    direct = load_separator(choice)
    kept = load_separator(tmp_path / "mine")
    wave_BT = torch.randn(2, 500) / 10
    assert torch.equal(direct(wave_BT), kept(wave_BT)) and torch.equal(fast_separator(kept)(wave_BT), kept(wave_BT))
    assert (kept.sample_rate, kept.sources) == (16_000, options.get("sources", 2))
    assert kept(wave_BT).shape == (2, kept.sources, 500)
    assert save_custom(choice, tmp_path / "mine") == card, "a continued run finds its separator"


@pytest.mark.usefixtures("lab")
def test_the_digest_depends_on_code_and_options(lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = [card_of(custom("halves", **options)).digest for options in ({}, {"first": 0.5}, {"first": 0.25})]
    digests += [card_of(custom("Split")).digest, card_of(custom("Split", sources=3)).digest]
    save_custom(custom("halves"), tmp_path / "mine")
    lab.write_text(lab.read_text() + "\n# another version of this file\n")
    digests.append(card_of(custom("halves")).digest)
    monkeypatch.setattr("seplab.__version__", "1.5")
    digests.append(card_of(custom("halves")).digest)
    assert len(set(digests)) == len(digests)
    with pytest.raises(
        CheckpointError, match=r"saved with seplab\.nets:halves 1\.4 .*, but seplab\.nets:halves 1\.5 .*is installed"
    ):
        load_separator(tmp_path / "mine")
    with pytest.raises(CheckpointError, match="start another run"):
        checkpoint_folders({"mine": custom("halves")}, tmp_path)


@pytest.mark.usefixtures("lab")
def test_a_card_whose_options_are_not_a_mapping_is_rejected(tmp_path: Path) -> None:
    card = save_custom(custom("halves"), tmp_path / "mine").model_dump()
    card["config"]["options"] = 5
    (tmp_path / "mine" / CARD_FILE).write_text(json.dumps(card))
    with pytest.raises(CheckpointError, match="mine is damaged: the options"):
        load_separator(tmp_path / "mine")


@pytest.mark.usefixtures("lab")
@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("Chance", {}, "must draw no random numbers"),
        ("Neighbours", {}, "depend on the other clips of a batch"),
        ("Flat", {}, r"returns a Tensor of shape \(2, 8000\), not a tensor of shape \(2, 2, 8000\)"),
        ("Split", {"sources": 0}, "sources: Input should be greater than or equal to 1"),
        ("Split", {"source": 3}, r"source: unknown field \(did you mean sources\?\)"),
        ("Split", {"sample_rate": 8000}, "works at 8000 Hz but audio.sample_rate is 16000"),
        ("MelNet", {}, "needs an attribute sample_rate"),
        ("Missing", {}, "cannot be imported on"),
    ],
)
def test_a_separator_that_does_not_fit_is_rejected_before_a_run(name: str, options: dict, message: str) -> None:
    trust_code(f"seplab.nets:{name}")
    with pytest.raises(SepsceneError, match=f"processor mine.*{message}"):
        open_separator("mine", custom(name, **options), AUDIO)


def test_it_is_not_imported_without_trust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = write_package(tmp_path, "foreignlab", monkeypatch)
    choice = CustomCode.model_validate({"use": "foreignlab.nets:Split"})
    with pytest.raises(SepsceneError, match=r"the separator foreignlab\.nets:Split is code that does not come with"):
        load_separator(choice)
    assert not mark.exists()
    trust_code(choice.use)
    save_custom(choice, tmp_path / "mine")
    read = f"from sepscene.models.separators.folder import load_separator; load_separator({str(tmp_path / 'mine')!r})"
    monkeypatch.delenv("SEPSCENE_TRUSTED_CODE")
    done = subprocess.run([sys.executable, "-c", read], capture_output=True, text=True, timeout=120, check=False)
    assert "is code that does not come with Sepscene" in done.stderr, "a folder cannot grant trust to itself"
