"""Imports: the reference's checkpoints against its outputs, Conv-TasNet, programs, and rejected files."""

import io
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchaudio.models import ConvTasNet

from sepscene.models.card import read_card
from sepscene.models.config import CheckpointError
from sepscene.models.separators.folder import load_separator
from sepscene.models.separators.import_tdcnpp import tensorflow_name
from sepscene.models.separators.importer import ImportHints, import_separator
from sepscene.models.separators.tf_bundle import TFBundle
from tests.models.separators.tensorflow_files import Variables, write_bundle

CHECKPOINTS = ["tdcnpp_small_m2", "tdcnpp_small_stft_m4"]
SIZES = {
    "num_sources": 3,
    "enc_kernel_size": 8,
    "enc_num_feats": 6,
    "msk_num_feats": 4,
    "msk_num_hidden_feats": 5,
}


class Filters(nn.Module):
    """A separator of two fixed filters that can be exported as a program."""

    def __init__(self) -> None:
        super().__init__()
        self.filters = nn.Conv1d(1, 2, 5, padding=2, bias=False)

    def forward(self, wave_BT: Tensor) -> Tensor:
        return self.filters(wave_BT.unsqueeze(1))


class Halves(nn.Module):
    """Not a separator: it returns half of the samples."""

    def forward(self, wave_BT: Tensor) -> Tensor:
        return wave_BT.unsqueeze(1)[:, :, ::2]


def export(module: nn.Module, path: Path, dynamic: bool = True) -> Path:
    sizes = ({0: torch.export.Dim("clips"), 1: torch.export.Dim("samples", min=16)},) if dynamic else None
    torch.export.save(torch.export.export(module, (torch.zeros(2, 400),), dynamic_shapes=sizes), path)
    return path


def edit(path: Path, ending: str, old: bytes, new: bytes) -> Path:
    """Change a file in an exported program, as an attacker would."""
    other = path.with_name("edited.pt2")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(other, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith(ending):
                assert old in content
                content = content.replace(old, new)
            target.writestr(name, content)
    return other


class Evil:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture(autouse=True)
def separate_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test has its own list of trusted programs."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "configuration"))
    monkeypatch.delenv("SEPSCENE_TRUSTED_PROGRAMS", raising=False)


@pytest.fixture
def bundle(shared_dir: Path, tmp_path: Path) -> Path:
    """A copy of a reference checkpoint without the configuration next to it."""
    for path in (shared_dir / "reference/tdcnpp_small_m2").glob("model.ckpt-1234.*"):
        shutil.copyfile(path, tmp_path / path.name)
    return tmp_path / "model.ckpt-1234"


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_the_network_equals_the_reference(name, shared_dir, tmp_path):
    folder = shared_dir / "reference" / name
    import_separator(folder / "model.ckpt-1234", 16000, tmp_path / "out")
    separator = load_separator(tmp_path / "out")
    vectors = np.load(folder / "vectors.npz")
    with torch.no_grad():
        separated_BST = separator(torch.from_numpy(vectors["mixture"]))
    assert np.abs(separated_BST.numpy() - vectors["separated"]).max() < 1e-5
    assert read_card(tmp_path / "out").metadata["assumed"] == []


def test_sizes_come_from_the_variables(shared_dir, tmp_path):
    import_separator(shared_dir / "reference/tdcnpp_small_stft_m4/model.ckpt-1234", 16000, tmp_path / "out")
    config = load_separator(tmp_path / "out").config
    assert (config.basis, config.sources, config.window_samples, config.hop_samples) == ("stft", 4, 512, 128)
    assert (config.repeats, config.blocks, config.skip_residual, config.consistency) == (2, 3, True, "magsq")


def test_every_parameter_has_a_name_in_the_checkpoint(shared_dir, tmp_path):
    for name in CHECKPOINTS:
        prefix = shared_dir / "reference" / name / "model.ckpt-1234"
        import_separator(prefix, 16000, tmp_path / name)
        ours = load_separator(tmp_path / name).state_dict()
        assert {tensorflow_name(key) for key in ours} == set(TFBundle(prefix).entries)


@pytest.fixture
def variables(bundle: Path) -> Variables:
    """The variables of the reference checkpoint, to write it again with others."""
    opened = TFBundle(bundle)
    return {name: opened.read(name) for name in opened.entries}


def test_a_skip_connection_into_the_first_block_is_rejected(bundle, variables, tmp_path):
    """Such a name once gave 0 blocks per repeat, by which the total was divided."""
    write_bundle(bundle, variables | {"improved_tdcn/res_dense_0_to_0/dense/kernel": variables["dense/kernel"]})
    with pytest.raises(CheckpointError, match="unknown variables improved_tdcn/res_dense_0_to_0"):
        import_separator(bundle, 16000, tmp_path / "out", ImportHints(blocks=3))


def test_optimiser_slots_and_averages_are_skipped(bundle, variables, tmp_path):
    extra = ("dense/kernel/Adam", "dense/kernel/Adam_1", "beta1_power", "global_step")
    extra += ("initial_dense/dense/bias/ExponentialMovingAverage",)
    trained = variables | dict.fromkeys(extra, variables["dense/kernel"])
    write_bundle(bundle, trained)
    import_separator(bundle, 16000, tmp_path / "out", ImportHints(blocks=3))
    write_bundle(bundle, trained | {"decoder/extra": variables["dense/kernel"]})
    with pytest.raises(CheckpointError, match="unknown variables decoder/extra"):
        import_separator(bundle, 16000, tmp_path / "out", ImportHints(blocks=3))
    for missing in ("mask", "blocks.2.norm1.slope", "basis.synthesis"):
        absent = tensorflow_name(missing)
        write_bundle(bundle, {name: value for name, value in trained.items() if name != absent})
        with pytest.raises(CheckpointError, match=absent):
            import_separator(bundle, 16000, tmp_path / "out", ImportHints(blocks=3))


def test_an_unknown_number_of_blocks_is_an_error(bundle, tmp_path):
    with pytest.raises(CheckpointError, match="6 dilated blocks, but the number of blocks per repeat is not known"):
        import_separator(bundle, 16000, tmp_path / "out")
    with pytest.raises(CheckpointError, match="not a multiple of blocks 4"):
        import_separator(bundle, 16000, tmp_path / "out", ImportHints(blocks=4))
    import_separator(f"{bundle}.index", 22050, tmp_path / "out", ImportHints(blocks=3))
    assert load_separator(tmp_path / "out").sample_rate == 22050


@pytest.mark.parametrize(
    ("source", "hints", "named"),
    [
        ("checkpoint", ImportHints(blocks=3, mask_activation="relu"), "mask_activation"),
        ("weights.pt", ImportHints(hop_samples=8, consistency="magsq"), "consistency, hop_samples"),
    ],
)
def test_a_hint_without_effect_is_rejected(bundle, tmp_path, source, hints, named):
    torch.save(ConvTasNet(**SIZES, msk_num_layers=2, msk_num_stacks=2).state_dict(), tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match=f"for which {named} has no effect"):
        import_separator(bundle if source == "checkpoint" else tmp_path / source, 16000, tmp_path / "out", hints)


def test_a_rate_other_than_that_of_the_training_is_rejected(shared_dir, tmp_path):
    with pytest.raises(CheckpointError, match="has the sample rate 16000 Hz, not 8000 Hz"):
        import_separator(shared_dir / "reference/tdcnpp_small_m2/model.ckpt-1234", 8000, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_stft_of_another_rate_is_rejected(shared_dir, tmp_path):
    for path in (shared_dir / "reference/tdcnpp_small_stft_m4").glob("model.ckpt-1234.*"):
        shutil.copyfile(path, tmp_path / path.name)
    with pytest.raises(CheckpointError, match="257 STFT bins, but a window of 1411 samples gives 1025"):
        import_separator(tmp_path / "model.ckpt-1234", 44100, tmp_path / "out")
    import_separator(tmp_path / "model.ckpt-1234", 16000, tmp_path / "out")
    assumed = read_card(tmp_path / "out").metadata["assumed"]
    assert assumed == ["window_samples 512 (32 ms)", "hop_samples 128 (8 ms)", "consistency magsq"]


@pytest.mark.parametrize("activation", ["sigmoid", "relu"])
@pytest.mark.parametrize("form", ["pt", "safetensors", "nested"])
def test_a_conv_tasnet_separates_as_before(tmp_path, form, activation):
    network = ConvTasNet(**SIZES, msk_num_layers=2, msk_num_stacks=2, msk_activate=activation).eval()
    path = tmp_path / f"weights.{'safetensors' if form == 'safetensors' else 'pt'}"
    if form == "safetensors":
        save_file(network.state_dict(), path)
    else:
        torch.save({"state_dict": network.state_dict()} if form == "nested" else network.state_dict(), path)
    import_separator(path, 8000, tmp_path / "out", ImportHints(blocks=2, mask_activation=activation))
    separator = load_separator(tmp_path / "out")
    wave_BT = torch.randn(2, 403)
    torch.testing.assert_close(separator(wave_BT), network(wave_BT[:, None]), rtol=0, atol=0)
    assert (separator.sample_rate, separator.sources) == (8000, 3)


def test_a_conv_tasnet_of_other_names_is_rejected(tmp_path):
    weights = ConvTasNet(**SIZES, msk_num_layers=2, msk_num_stacks=2).state_dict()
    weights["mask_generator.extra"] = torch.zeros(1)
    del weights["mask_generator.output_prelu.weight"]
    torch.save(weights, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match=r"output_prelu.weight is missing; mask_generator.extra is unknown"):
        import_separator(tmp_path / "weights.pt", 8000, tmp_path / "out", ImportHints(blocks=2))
    torch.save({"a": torch.zeros(2)}, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match=r"encoder.weight .* is it a torchaudio ConvTasNet"):
        import_separator(tmp_path / "weights.pt", 8000, tmp_path / "out")


def test_weights_that_are_not_finite_are_rejected(tmp_path):
    weights = ConvTasNet(**SIZES, msk_num_layers=2, msk_num_stacks=2).state_dict()
    weights["encoder.weight"][0] = float("nan")
    torch.save(weights, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match=r"network.encoder.weight contains NaN"):
        import_separator(tmp_path / "weights.pt", 8000, tmp_path / "out", ImportHints(blocks=2))


def test_a_pickle_is_never_executed(tmp_path):
    torch.save({"encoder.weight": Evil(tmp_path / "executed")}, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match="contains objects other than tensors"):
        import_separator(tmp_path / "weights.pt", 8000, tmp_path / "out")
    assert not (tmp_path / "executed").exists()


@pytest.mark.slow
def test_a_pickle_within_an_exported_program_is_never_executed(tmp_path):
    path = export(Filters(), tmp_path / "program.pt2")
    torch.save(Evil(tmp_path / "executed"), pickled := io.BytesIO())
    with zipfile.ZipFile(path) as archive:
        weights = archive.read("program/data/weights/weight_0")
    path = edit(path, "weights/weight_0", weights, pickled.getvalue())
    path = edit(
        path.rename(tmp_path / "program.pt2"),
        "weights_config.json",
        b'"use_pickle": false',
        b'"use_pickle": true',
    )
    with pytest.raises(CheckpointError, match="edited"):
        import_separator(path, 8000, tmp_path / "out")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("kind", ["torchscript", pytest.param("exported", marks=pytest.mark.slow)])
def test_a_program_separates_as_before(tmp_path, kind):
    module = Filters().eval()
    path = tmp_path / ("program.pt" if kind == "torchscript" else "program.pt2")
    if kind == "torchscript":
        torch.jit.script(module).save(path)
    else:
        export(module, path)
    import_separator(path, 8000, tmp_path / "out", trust_code=True)
    separator = load_separator(tmp_path / "out").eval().to("cpu")
    wave_BT = torch.randn(3, 777)
    torch.testing.assert_close(separator(wave_BT), module(wave_BT), rtol=0, atol=1e-7)
    assert (separator.sample_rate, separator.sources) == (8000, 2)
    content = bytearray((tmp_path / "out" / path.name).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "out" / path.name).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{path.name} is damaged"):
        load_separator(tmp_path / "out")


@pytest.mark.parametrize("ending", ["pt", pytest.param("pt2", marks=pytest.mark.slow)])
def test_a_damaged_program_is_named(tmp_path, ending):
    path = tmp_path / f"program.{ending}"
    torch.jit.script(Filters()).save(path) if ending == "pt" else export(Filters(), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointError, match=path.name):
        import_separator(path, 8000, tmp_path / "out", trust_code=True)


def test_a_program_that_is_not_a_separator_is_rejected(tmp_path):
    torch.jit.script(Halves()).save(tmp_path / "halves.pt")
    with pytest.raises(CheckpointError, match=r"maps \(1, 8000\) to \(1, 1, 4000\), not to \(B, S, T\)"):
        import_separator(tmp_path / "halves.pt", 8000, tmp_path / "out", trust_code=True)
    broken = Filters()
    nn.init.constant_(broken.filters.weight, float("inf"))
    torch.jit.script(broken).save(tmp_path / "infinite.pt")
    with pytest.raises(CheckpointError, match="NaN or infinite samples"):
        import_separator(tmp_path / "infinite.pt", 8000, tmp_path / "out", trust_code=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"torch.ops.aten.unsqueeze.default", b"torch.os.system"),
        (b"torch.ops.aten.unsqueeze.default", b"torch.ops.aten.from_file.default"),
        (b"torch.ops.aten.unsqueeze.default", b"#extension:evil"),
        (b"Symbol('s", b"__import__('os').system('true') or Symbol('s"),
        (b'"name": "unsqueeze"', b'"name": "unsqueeze = 0\\nimport os"'),
    ],
)
def test_an_exported_program_that_does_more_than_compute_is_rejected(tmp_path, old, new):
    path = edit(export(Filters(), tmp_path / "program.pt2"), "models/model.json", old, new)
    with pytest.raises(CheckpointError, match=r"edited\.pt2 is rejected"):
        import_separator(path, 8000, tmp_path / "out")


@pytest.mark.slow
def test_an_exported_program_of_one_size_is_rejected(tmp_path):
    export(Filters(), tmp_path / "fixed.pt2", dynamic=False)
    with pytest.raises(CheckpointError, match=r"maps|dynamic"):
        import_separator(tmp_path / "fixed.pt2", 8000, tmp_path / "out")


class Many(nn.Module):
    """More sources than a separator can have."""

    def forward(self, wave_BT: Tensor) -> Tensor:
        return wave_BT.unsqueeze(1).expand(-1, 65, -1)


def test_impossible_numbers_of_sources_and_sample_rates_are_rejected(tmp_path):
    torch.jit.script(Many()).save(tmp_path / "many.pt")
    with pytest.raises(CheckpointError, match=r"many\.pt does not define a separator: sources"):
        import_separator(tmp_path / "many.pt", 8000, tmp_path / "out", trust_code=True)
    for rate in (0, -8000, 10**9):
        with pytest.raises(CheckpointError, match="must be between 1 and 1000000 Hz"):
            import_separator(tmp_path / "many.pt", rate, tmp_path / "out", trust_code=True)


def test_a_missing_source_says_what_to_give(tmp_path):
    with pytest.raises(CheckpointError, match=r"is not a file, and .*index is missing"):
        import_separator(tmp_path / "model.ckpt-7", 16000, tmp_path / "out")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(CheckpointError, match=r"notes\.txt can't be read as weights"):
        import_separator(tmp_path / "notes.txt", 16000, tmp_path / "out")


@pytest.mark.parametrize("content", [["not", "ours"], {"tdcn": {"num_dilations": 0}}, {"hparams": {"ws": -1}}])
def test_another_config_file_next_to_the_checkpoint_is_named(bundle, tmp_path, content):
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"config\.json, next to the checkpoint, is not its"):
        import_separator(bundle, 16000, tmp_path / "out")
