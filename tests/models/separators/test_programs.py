"""Untrusted programs cannot cause harm: TorchScript needs the user's trust, exported programs can only compute."""

import hashlib
import io
import json
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sepscene.models.config import CheckpointError
from sepscene.models.separators.folder import load_separator
from sepscene.models.separators.importer import import_separator
from sepscene.models.separators.program_audit import _allowed, audited_archive
from sepscene.models.trust import PROGRAMS


@pytest.fixture(autouse=True)
def separate_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "configuration"))
    monkeypatch.delenv(PROGRAMS.variable, raising=False)


class Writer(nn.Module):
    """A separator that writes to a file."""

    def __init__(self, target: str) -> None:
        super().__init__()
        self.target = target

    def forward(self, wave_BT: Tensor) -> Tensor:
        torch.from_file(self.target, True, 4).fill_(0x41)
        return torch.stack([wave_BT, wave_BT * 0], dim=1)


@pytest.fixture
def program(tmp_path: Path) -> Path:
    torch.jit.script(Writer(str(tmp_path / "written"))).save(tmp_path / "program.pt")
    return tmp_path / "program.pt"


def test_torchscript_is_rejected_before_any_of_it_runs(program, tmp_path):
    with pytest.raises(CheckpointError, match=r"program\.pt is a TorchScript program .* --trust-code"):
        import_separator(program, 8000, tmp_path / "out")
    assert not (tmp_path / "written").exists() and not (tmp_path / "out").exists()


def test_trust_belongs_to_the_user_and_not_to_the_folder(program, tmp_path, monkeypatch):
    import_separator(program, 8000, tmp_path / "out", trust_code=True)
    load_separator(tmp_path / "out")
    assert PROGRAMS.file.stat().st_mode & 0o022 == 0
    digest = next(iter(PROGRAMS.entries()))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "another_user"))
    with pytest.raises(CheckpointError, match="--trust-code"):
        load_separator(tmp_path / "out")
    monkeypatch.setenv(PROGRAMS.variable, f"{'0' * 64},{digest}")
    load_separator(tmp_path / "out")


def test_another_program_in_a_trusted_folder_is_rejected(program, tmp_path):
    import_separator(program, 8000, tmp_path / "out", trust_code=True)
    torch.jit.script(Writer(str(tmp_path / "other"))).save(tmp_path / "out/program.pt")
    card = json.loads((tmp_path / "out/config.json").read_text())
    card["sha256"] = hashlib.sha256((tmp_path / "out/program.pt").read_bytes()).hexdigest()
    (tmp_path / "out/config.json").write_text(json.dumps(card))
    with pytest.raises(CheckpointError, match="--trust-code"):
        load_separator(tmp_path / "out")


@pytest.mark.parametrize(
    "target",
    [
        "torch.ops.aten.from_file.default",
        "torch.ops.aten.set_.source_Storage",
        "torch.ops.aten.resize_.default",
        "torch.ops.aten.empty.memory_format",
        "torch.ops.aten.save.default",
        "torch.ops.prims.device_put.default",
        "torch.ops.inductor.resize_storage_bytes_.default",
        "torch.load",
        "math.factorial",
        "_operator.attrgetter",
        "builtins.open",
    ],
)
def test_operators_that_are_not_listed_are_rejected(target):
    assert not _allowed("target", target)


@pytest.mark.parametrize("name", ["relu", "add", "copy", "index_put", "_softmax", "conv1d", "_fft_r2c"])
def test_listed_operators_are_operators_of_torch(name):
    assert hasattr(torch.ops.aten, name)
    assert _allowed("target", f"torch.ops.aten.{name}.default") and _allowed(
        "target", f"torch.ops.aten.{name}_.default"
    )


@pytest.mark.parametrize(
    "text",
    [
        "Pow(Integer(9), Pow(Integer(9), Integer(9)))",
        "Pow(Integer(9), Integer(99999999))",
        "Pow(Pow(Pow(Integer(9), Integer(8)), Integer(8)), Integer(8))",
        "Integer(9) ** Integer(9) ** Integer(9)",
        "Integer(9) << Integer(99999999)",
        f"Integer({10**30})",
        "Integer('9' * 99)",
        "Add(" * 3000 + "s0" + ")" * 3000,
        "Symbol('s0').func.__globals__",
        "__import__('os').system('true')",
        "Max(*[s0])",
        "lambda: 1",
        "Symbol('__import__')",
        "",
    ],
)
def test_sizes_that_are_expensive_or_do_more_than_compute_are_rejected(text):
    assert not _allowed("expr_str", text)


@pytest.mark.parametrize(
    "text",
    [
        "Add(Mul(Integer(20), FloorDiv(Symbol('s21', positive=True, integer=True), Integer(20))), Integer(-20))",
        "Pow(Symbol('s0', integer=True), Integer(-1))",
        "Mul(Rational(1, 2), Pow(Symbol('s0'), Rational(1, 2)))",
        "2*s0 + 1",
    ],
)
def test_sizes_that_torch_writes_are_read(text):
    assert _allowed("expr_str", text)


def archive(files: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", compression) as target:
        for name, data in files.items():
            target.writestr(name, data)
    return content.getvalue()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"p/models/model.json": b"[" * 100_000}, "not a torch.export program"),
        ({"p/models/model.json": b"[" * 5_000 + b"]" * 5_000}, "not a torch.export program"),
        ({"p/models/model.json": b"{}", "p/data/weights/w": b"\0" * (80 << 20)}, "unpack to"),
        ({"p/models/model.json": b'{"as_ints": [1000000, 1000000]}'}, "constant size"),
        ({"p/models/model.json": b"{}", "p/data/aotinductor/model/x.so": b""}, "compiled code"),
        ({"p/version": b"1"}, "contains no program"),
    ],
)
def test_bad_archives_are_rejected(files, message):
    with pytest.raises(CheckpointError, match=message):
        audited_archive(archive(files, zipfile.ZIP_DEFLATED), Path("program.pt2"))


def test_the_loader_gets_what_was_audited():
    """If two files in an archive have the same name, readers can use either: only one is passed on."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as target:
        target.writestr("p/models/model.json", b'{"target": "torch.ops.aten.from_file.default"}')
        with pytest.warns(UserWarning, match="Duplicate"):
            target.writestr("p/models/model.json", b"{}")
    with zipfile.ZipFile(io.BytesIO(audited_archive(content.getvalue(), Path("program.pt2")))) as handed_on:
        assert [(entry.filename, handed_on.read(entry)) for entry in handed_on.infolist()] == [
            ("p/models/model.json", b"{}")
        ]
