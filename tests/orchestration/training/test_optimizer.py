"""The optimiser: weight decay, the fused kernel compared with AdamW, resuming its state, the learning rate."""

import io

import pytest
import torch
from torch import Tensor

from sepscene.models.encoders.cnn14 import Cnn14
from sepscene.models.settings import Cnn14Config
from sepscene.orchestration.config import Training
from sepscene.orchestration.training.optimizer import adamw, learning_rate
from sepscene.tasks.losses.joint import JointObjective
from sepscene.tasks.losses.settings import CoincidenceSettings, NtXentSettings
from sepscene.tasks.losses.terms import HeadSizes, build_term

CPU = torch.device("cpu")
TRAINING = Training(weight_decay=0.1, learning_rate=1e-2)


def build(learn_temperature: bool = True) -> JointObjective:
    torch.manual_seed(0)
    trunk = Cnn14(Cnn14Config(widths=(2, 2, 4, 4, 4, 4), embedding_dim=4))
    chosen = {"similarity": NtXentSettings(learn_temperature=learn_temperature), "coincidence": CoincidenceSettings()}
    sizes = HeadSizes(embedding_dim=4, hidden=8, projection=4)
    return JointObjective(trunk, {name: build_term(name, settings, sizes) for name, settings in chosen.items()})


def set_gradients(objective: JointObjective, seed: int) -> None:
    """Give all parameters random gradients."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in objective.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_only_matrices_and_kernels_are_decayed() -> None:
    objective = build()
    decayed, kept = adamw(objective, TRAINING, CPU).param_groups
    names = {id(parameter): name for name, parameter in objective.named_parameters()}
    assert decayed["weight_decay"] == 0.1 and kept["weight_decay"] == 0
    assert all(names[id(p)].endswith("weight") and ".bn" not in names[id(p)] for p in decayed["params"])
    spared = {names[id(p)] for p in kept["params"]}
    assert {"terms.similarity.log_temperature", "trunk.bn0.weight", "trunk.bn0.bias", "trunk.embedding.bias"} <= spared
    assert len(decayed["params"]) + len(kept["params"]) == len(names)


def test_a_fixed_temperature_is_not_optimised() -> None:
    objective = build(learn_temperature=False)
    learned = {id(p) for group in adamw(objective, TRAINING, CPU).param_groups for p in group["params"]}
    assert id(objective.terms["similarity"].log_temperature) not in learned


def test_a_step_equals_the_formula_of_adamw() -> None:
    objective = build()
    before = {name: parameter.detach().clone() for name, parameter in objective.named_parameters()}
    optimizer = adamw(objective, TRAINING, CPU)
    set_gradients(objective, 1)
    optimizer.step()
    for name, parameter in objective.named_parameters():
        gradient: Tensor = parameter.grad  # type: ignore[assignment]
        decay = 0.1 if parameter.ndim > 1 else 0.0
        expected = before[name] * (1 - 1e-2 * decay) - 1e-2 * gradient / (gradient.abs() + 1e-8)
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-5, atol=1e-6)


def test_its_state_resumes_bit_for_bit() -> None:
    straight = build()
    resumed = build()
    optimizer = adamw(straight, TRAINING, CPU)
    for seed in (1, 2):
        set_gradients(straight, seed)
        optimizer.step()
        if seed == 1:
            saved = {"model": straight.state_dict(), "optimizer": optimizer.state_dict()}
            saved = torch.load(_stored(saved), weights_only=True)
    resumed.load_state_dict(saved["model"])
    continued = adamw(resumed, TRAINING, CPU)
    continued.load_state_dict(saved["optimizer"])
    set_gradients(resumed, 2)
    continued.step()
    for one, other in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def _stored(state: dict[str, object]) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return file


def test_the_learning_rate_warms_up_and_falls_to_zero() -> None:
    training = Training(learning_rate=2.0, warmup_share=0.1)
    rates = [learning_rate(training, step, 100) for step in range(100)]
    assert rates[:3] == pytest.approx([0.2, 0.4, 0.6]) and rates[9] == rates[10] == 2.0
    assert rates[55] == pytest.approx(1.0) and rates[99] < 1e-3
    assert sorted(rates[10:], reverse=True) == rates[10:]
