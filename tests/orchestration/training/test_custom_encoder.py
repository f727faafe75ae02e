"""Training of encoders other than CNN14: configuration, a step compared with a plain loop, bundle."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sepscene.models.config import SepsceneError
from sepscene.models.custom import CustomEncoder
from sepscene.models.encoders.encoder import load_encoder, save_encoder
from sepscene.models.names import trust_code
from sepscene.models.settings import PatchTransformerConfig
from sepscene.orchestration.config import Experiment, load_experiment
from sepscene.orchestration.presets import named_experiment
from sepscene.orchestration.records.checkpoints import read_checkpoint, write_checkpoint
from sepscene.orchestration.training.builders import build_objective, check_parts, check_start, encoder_of
from sepscene.orchestration.training.flops import encoder_flops, step_flops
from sepscene.orchestration.training.pretrainer import Pretrainer, ViewInputs
from tests.custom_code import write_package
from tests.orchestration.training.test_pretraining import CPU, batch, consumed, weights

TRANSFORMER = {"use": "patch-transformer", "width": 8, "layers": 1, "heads": 2, "embedding_dim": 6}


@pytest.fixture
def _lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_package(tmp_path, "trainlab", monkeypatch)
    for name in ("MelNet", "WaveNet", "Dropping"):
        trust_code(f"trainlab.nets:{name}")


def with_encoder(nano: Experiment, which: str) -> Experiment:
    if which == "patch-transformer":
        return nano.changed({"encoder": TRANSFORMER})
    return nano.changed({"encoder.use": f"trainlab.nets:{which}", "views.specaugment": which != "WaveNet"})


@pytest.mark.usefixtures("_lab")
def test_an_encoder_is_chosen_by_name_or_class_and_survives_yaml(nano: Experiment, tmp_path: Path) -> None:
    custom = nano.changed({"encoder.size": 12, "encoder.use": "trainlab.nets:MelNet"})
    assert custom.encoder == CustomEncoder.model_validate({"use": "trainlab.nets:MelNet", "size": 12})
    assert custom.custom_code == ("trainlab.nets:MelNet",) and nano.custom_code == ()
    from trainlab.nets import MelNet  # type: ignore[import-not-found]

    assert nano.changed({"encoder": {"use": MelNet, "size": 12}}) == custom
    custom.save(tmp_path / "custom.yaml")
    assert load_experiment(tmp_path / "custom.yaml") == custom
    back = custom.changed({"encoder.use": "cnn14", "encoder.embedding_dim": 8})
    assert back.encoder.use == "cnn14" and back.encoder.embedding_dim == 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder.use": "cnn41"}, r"encoder\.use: there is no encoder 'cnn41' \(did you mean cnn14\?\)"),
        ({"encoder.use": "patch-transformer", "encoder.widths": [1]}, r"encoder\.widths: unknown field"),
        ({"encoder": {"use": "cnn14", "widths": [1]}}, r"encoder: widths \(1,\) must be six"),
    ],
)
def test_a_wrong_choice_gets_a_plain_message(nano: Experiment, change: dict, message: str) -> None:
    with pytest.raises(SepsceneError, match=message):
        nano.changed(change)


@pytest.mark.usefixtures("_lab")
def test_incompatible_parts_are_refused_before_anything_starts(
    nano: Experiment, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(SepsceneError, match=r"augmentations\.specaugment works on log-mels: set views\.spec"):
        check_parts(nano.changed({"encoder.use": "trainlab.nets:WaveNet"}))
    dropping = nano.changed({"encoder.use": "trainlab.nets:Dropping"})
    check_parts(dropping)
    assert "draws random numbers of its own" in caplog.text
    with pytest.raises(SepsceneError, match="draws random numbers"):
        check_parts(dropping.changed({"training.microbatch": 4}))
    check_parts(nano)


@pytest.mark.usefixtures("_lab")
@pytest.mark.parametrize("which", ["patch-transformer", "MelNet", "WaveNet"])
def test_a_step_equals_that_of_a_plain_loop(nano: Experiment, which: str) -> None:
    """The plain loop calls the objective directly and uses torch's AdamW; the weights agree to 1e-6."""
    experiment = with_encoder(nano, which).changed({"training.weight_decay": 0.0, "training.warmup_share": 0.0})
    check_parts(experiment)
    trainer = Pretrainer(experiment, 24, CPU)
    plain = build_objective(experiment)
    rows = batch(0)
    views = np.stack([rows["view_1"], rows["view_2"]], 1).astype(np.float32) / 32767
    front = ViewInputs(experiment)
    seen = front(torch.from_numpy(views), rows)
    assert seen[0].ndim == (2 if which == "WaveNet" else 3)
    result = plain(*seen)
    result.loss.backward()
    torch.nn.utils.clip_grad_norm_(plain.parameters(), experiment.training.clip_gradient_norm)
    torch.optim.AdamW(plain.parameters(), lr=experiment.training.learning_rate, weight_decay=0.0).step()
    assert consumed(trainer, rows)["loss"] == float(result.parts["loss"])
    for (name, ours), theirs in zip(trainer.objective.state_dict().items(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6, msg=name)


@pytest.mark.usefixtures("_lab")
@pytest.mark.parametrize("which", ["patch-transformer", "MelNet", "WaveNet"])
def test_it_continues_from_a_checkpoint_and_gives_a_bundle(nano: Experiment, tmp_path: Path, which: str) -> None:
    experiment = with_encoder(nano, which)
    straight = Pretrainer(experiment, 24, CPU)
    consumed(straight, batch(0))
    write_checkpoint(tmp_path / "step-00000001", straight.state())
    resumed = Pretrainer(experiment, 24, CPU, tmp_path / "step-00000001")
    for one in (straight, resumed):
        consumed(one, batch(1))
    assert all(torch.equal(one, other) for one, other in zip(weights(straight), weights(resumed), strict=True))
    write_checkpoint(tmp_path / "step-00000002", straight.state())
    encoder = encoder_of(experiment, read_checkpoint(tmp_path / "step-00000002"))
    save_encoder(encoder, tmp_path / "bundle", {})
    wave_BT = torch.randn(2, 32_000) / 10
    straight.objective.to(memory_format=torch.contiguous_format)  # as the bundle; some CPUs round differently in others
    assert torch.equal(load_encoder(tmp_path / "bundle")(wave_BT), straight.encoder().eval()(wave_BT))
    check_start(experiment.changed({"training.start_encoder": str(tmp_path / "bundle")}))
    with pytest.raises(SepsceneError, match=r"encoder\.use is 'cnn14', must be '"):
        check_start(nano.changed({"training.start_encoder": str(tmp_path / "bundle")}))


@pytest.mark.usefixtures("_lab")
def test_operations_are_counted_for_any_encoder(nano: Experiment) -> None:
    mel = with_encoder(nano, "MelNet")
    assert encoder_flops(mel) == 2 * (128 * 4 + 4 * 6)
    wave = with_encoder(nano, "WaveNet")
    assert encoder_flops(wave) == 2 * (((15_360 - 64) // 32 + 1) * 64 * 4 + 4 * 6)
    assert step_flops(mel) > 6 * 16 * encoder_flops(mel)


def test_the_patch_transformer_has_the_size_of_its_scale() -> None:
    sizes = {scale: named_experiment("beyond/patch-transformer", scale) for scale in ("mini", "tiny", "small", "paper")}
    assert (
        sizes["paper"].encoder == PatchTransformerConfig() and sizes["small"].encoder == PatchTransformerConfig.small()
    )
    assert sizes["tiny"].encoder == PatchTransformerConfig.tiny() and sizes["mini"].encoder.mel_bands == 32
    cnn14 = named_experiment("table4/S2+N/simclr-cp", "small")
    same = {"name": cnn14.name, "table_row": cnn14.table_row, "encoder": cnn14.encoder.model_dump()}
    assert sizes["small"].changed(same) == cnn14


@pytest.mark.slow
@pytest.mark.parametrize("scale", ["tiny", "small", "paper"])
def test_the_patch_transformer_learns_at_each_size(scale: str, nano: Experiment, tmp_path: Path) -> None:
    """With the settings of each scale, on batches of 8, three steps lower the loss of their batch."""
    encoder = named_experiment("beyond/patch-transformer", scale).encoder  # type: ignore[arg-type]
    learning = {"training.learning_rate": 1e-3 if scale == "tiny" else 1e-4, "training.warmup_share": 0.0}
    trainer = Pretrainer(nano.changed({"encoder": encoder.model_dump(), **learning}), 24, CPU)
    losses = [consumed(trainer, batch(0) | {"row": np.arange(8 * n, 8 * n + 8)})["loss"] for n in range(4)]
    assert losses[-1] < losses[0] - 0.1
    save_encoder(trainer.encoder().eval(), tmp_path / "bundle", {})
    wave_BT = torch.randn(2, 16_000) / 10
    trainer.objective.to(memory_format=torch.contiguous_format)  # as the bundle; some CPUs round differently in others
    assert torch.equal(load_encoder(tmp_path / "bundle")(wave_BT), trainer.encoder().eval()(wave_BT))
