"""Names of built-in and custom code: similar spellings, trust before import, and errors."""

from functools import partial
from pathlib import Path

import pytest

from sepscene.models import names
from sepscene.models.config import SepsceneError
from sepscene.models.encoders.cnn14 import Cnn14
from sepscene.models.names import ENCODERS, is_custom, name_of, package_of, resolve, trust_code
from sepscene.models.trust import CODE, trust_variables
from tests.custom_code import write_package


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "_trust_all", False)


def test_an_error_suggests_the_most_similar_name() -> None:
    with pytest.raises(SepsceneError, match=r"no encoder 'cnn41' \(did you mean cnn14\?\); known names: cnn14, patch-"):
        resolve("cnn41", ENCODERS, "encoder")
    with pytest.raises(ValueError, match=r"no encoder 'zzz'; known names: .* or an import path package\.module:Name"):
        name_of("zzz", ENCODERS, "encoder")
    with pytest.raises(ValueError, match="'zzz' is not an import path"):
        name_of("zzz", (), "separator")


def test_every_short_name_can_be_resolved() -> None:
    assert resolve("cnn14", ENCODERS, "encoder") is Cnn14
    assert all(isinstance(resolve(name, ENCODERS, "encoder"), type) for name in ENCODERS)
    assert not any(is_custom(name) for name in ENCODERS)


def test_custom_code_is_not_imported_before_it_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = write_package(tmp_path, "namelab", monkeypatch)
    path = "namelab.nets:MelNet"
    assert name_of(path, ENCODERS, "encoder") == path
    with pytest.raises(SepsceneError, match=r"namelab.nets:MelNet is code that does not come with .* --trust-code"):
        resolve(path, ENCODERS, "encoder")
    with pytest.raises(SepsceneError, match="not an import path"):
        trust_code("namelab")
    assert not mark.exists() and not CODE.entries()
    trust_code(path)
    found = resolve(path, ENCODERS, "encoder")
    assert mark.exists() and found.__name__ == "MelNet" and is_custom(path)
    assert trust_variables()["SEPSCENE_TRUSTED_CODE"] == path and not CODE.file.exists()
    assert package_of(path) == {"use": path, "package": "namelab", "version": "1.4"}
    with pytest.raises(SepsceneError, match=r"namelab\.nets:Dropping is code"):
        resolve("namelab.nets:Dropping", ENCODERS, "encoder")


def test_trust_given_to_a_command_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trust for this process only, from Python or the environment, is not stored with it."""
    write_package(tmp_path, "keptlab", monkeypatch)
    trust_code("keptlab.nets:WaveNet")
    names.trust_all_code()
    resolve("keptlab.nets:MelNet", ENCODERS, "encoder")
    assert CODE.file.read_text() == "keptlab.nets:MelNet\n" and CODE.file.stat().st_mode & 0o022 == 0
    assert CODE.entries() == {"keptlab.nets:MelNet", "keptlab.nets:WaveNet"}


def test_a_damaged_list_of_trusted_code_is_read_as_far_as_possible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    CODE.file.parent.mkdir()
    CODE.file.write_bytes(b"\xff\xfe\nlab.nets:MelNet\n")
    assert CODE.entries() == {"lab.nets:MelNet"}


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nolab.nets:MelNet", r"cannot be imported on .* \(ModuleNotFoundError: No module named 'nolab'\): install"),
        ("faultlab.nets:Nothing", r"cannot be imported on .* \(AttributeError: module 'faultlab.nets' has no"),
        ("faultlab.broken:Net", r"cannot be imported on .* \(ZeroDivisionError"),
    ],
)
def test_failed_imports_are_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, message: str) -> None:
    write_package(tmp_path, "faultlab", monkeypatch)
    (tmp_path / "faultlab" / "broken.py").write_text("1 / 0\n")
    trust_code(path)
    with pytest.raises(SepsceneError, match=message):
        resolve(path, ENCODERS, "encoder")


def test_a_class_is_stored_as_its_import_path_and_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEPSCENE_TRUSTED_CODE", "")

    class Inner:
        pass

    assert name_of(Cnn14, ENCODERS, "encoder") == "sepscene.models.encoders.cnn14:Cnn14" in CODE.entries()
    with pytest.raises(ValueError, match="cannot be imported by other processes: put it in a module"):
        name_of(Inner, ENCODERS, "encoder")
    with pytest.raises(ValueError, match="cannot be imported by other processes: put it in a module"):
        name_of(partial(write_package, name="x"), (), "separator")
