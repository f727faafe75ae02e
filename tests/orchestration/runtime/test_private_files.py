"""Other users of the machine can neither read the token of a local Ray nor replace its sockets."""

import os
from pathlib import Path

import pytest

from sepscene.models.config import SepsceneError
from sepscene.orchestration.runtime.private_files import make_token, private_temp_folder


@pytest.fixture(autouse=True)
def _temporary_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for name in ("RAY_TMPDIR", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)


def test_only_this_user_has_access_to_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = os.umask(0)
    try:
        folder = Path(private_temp_folder())
    finally:
        os.umask(old)
    assert folder.parent == tmp_path and folder.stat().st_mode & 0o777 == 0o700
    assert private_temp_folder() == str(folder)
    folder.chmod(0o755)
    with pytest.raises(SepsceneError, match="chmod 700"):
        private_temp_folder()
    monkeypatch.setenv("RAY_TMPDIR", "/my/own")
    assert private_temp_folder() == "/my/own"


def test_a_link_or_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / f"sepscene-{os.getuid()}"
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    for target in ("elsewhere", "missing"):
        folder.symlink_to(tmp_path / target)
        with pytest.raises(SepsceneError, match="remove it"):
            private_temp_folder()
        folder.unlink()
    folder.touch(mode=0o600)
    with pytest.raises(SepsceneError, match="remove it"):
        private_temp_folder()


def test_the_token_is_never_readable_for_other_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = os.umask(0)
    try:
        make_token()
    finally:
        os.umask(old)
    token = tmp_path / ".ray" / "auth_token"
    assert token.stat().st_mode & 0o777 == 0o600 and len(token.read_text()) == 64
    before = token.read_text()
    token.chmod(0o644)
    make_token()
    assert token.read_text() == before and token.stat().st_mode & 0o777 == 0o600
    token.unlink()
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    make_token()
    assert not token.exists()
