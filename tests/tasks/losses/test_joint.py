"""The joint objective in one process; several workers are in test_parity."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from sepscene.tasks.losses.coincidence import coincidence_loss
from sepscene.tasks.losses.gradcache import accumulate, split_into_chunks
from sepscene.tasks.losses.joint import JointObjective
from sepscene.tasks.losses.nt_xent import nt_xent
from sepscene.tasks.losses.settings import CoincidenceSettings, NtXentSettings, TripletSettings, VicregSettings
from sepscene.tasks.losses.terms import HeadSizes, NtXent, Term, build_term


class Trunk(nn.Module):
    """A minimal encoder: two layers with batch statistics between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 5)
        self.norm = nn.BatchNorm1d(5)
        self.last = nn.Linear(5, 4)

    def forward(self, logmel_BLF: Tensor) -> Tensor:
        return self.last(torch.tanh(self.norm(self.first(logmel_BLF.flatten(1)))))


SIZES = HeadSizes(embedding_dim=4, hidden=8, projection=3)


def build(coincidence: bool = True, **options: object) -> JointObjective:
    """NT-Xent with these settings, and coincidence prediction."""
    torch.manual_seed(0)
    trunk = Trunk()
    terms = {"similarity": build_term("similarity", NtXentSettings.model_validate(options), SIZES)}
    if coincidence:
        terms["coincidence"] = build_term("coincidence", CoincidenceSettings(), SIZES)
    return JointObjective(trunk, terms).double()


def nt_xent_of(objective: JointObjective) -> NtXent:
    term = objective.terms["similarity"]
    assert isinstance(term, NtXent)
    return term


def views(count: int = 2, rows: int = 5) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(rows, 2, 3, generator=generator, dtype=torch.float64) for _ in range(count)]


def gradients(objective: JointObjective) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in objective.named_parameters() if p.grad is not None}


def test_is_the_weighted_sum_of_its_parts() -> None:
    objective = build(temperature=0.3)
    head = objective.coincidence_head
    first = nt_xent_of(objective)
    assert head is not None
    result = objective(*views(), weights={"coincidence": 0.4})
    h_1, h_2 = objective.encode(*views())
    similarity = nt_xent(first.head(h_1), first.head(h_2), temperature=first.temperature)
    coincidence = coincidence_loss(head, h_1, h_2)
    torch.testing.assert_close(result.loss, similarity + 0.4 * coincidence, rtol=1e-12, atol=0)
    expected = {"loss": result.loss, "similarity": similarity, "coincidence": coincidence, "pairs": 5.0}
    assert {name: float(result.parts[name]) for name in expected} == pytest.approx(
        {name: float(torch.as_tensor(value).detach()) for name, value in expected.items()}, rel=1e-12
    )
    assert not any(part.requires_grad for part in result.parts.values())


def test_both_views_share_batch_statistics() -> None:
    objective = build()
    together = objective.encode(*views())[0]
    torch.testing.assert_close(together, objective.trunk(torch.cat(views()))[:5], rtol=1e-12, atol=0)
    assert (together - objective.encode(views()[0])[0]).abs().max() > 1e-3


def test_alpha_zero_still_reaches_every_parameter() -> None:
    objective = build()
    objective(*views(), weights={"coincidence": 0.0}).loss.backward()
    assert all(p.grad is not None for p in objective.parameters() if p.requires_grad)
    assert all(not p.grad.any() for p in objective.terms["coincidence"].parameters() if p.grad is not None)


def test_without_a_coincidence_head_there_is_similarity_only() -> None:
    result = build(coincidence=False)(*views())
    assert "coincidence" not in result.parts
    assert result.loss.item() == result.parts["similarity"].item()


def test_learned_temperature_moves_and_is_clamped() -> None:
    objective = build(learn_temperature=True, temperature=0.2)
    term = nt_xent_of(objective)
    objective(*views()).loss.backward()
    assert term.log_temperature.grad is not None and term.log_temperature.grad.abs() > 0
    with torch.no_grad():
        term.log_temperature.fill_(-20.0)
    assert term.temperature.item() == pytest.approx(0.01)
    assert nt_xent_of(build(temperature=0.005)).temperature.item() == pytest.approx(0.005, rel=1e-6)


def test_no_rows_give_zero_and_finite_gradients() -> None:
    objective = build()
    result = objective(*[view[:0] for view in views()])
    result.loss.backward()
    assert result.loss.item() == 0
    assert all(not gradient.any() for gradient in gradients(objective).values())
    assert all(torch.isfinite(buffer).all() for buffer in objective.buffers())


def test_bfloat16_autocast_keeps_losses_in_float32() -> None:
    objective = build().float()
    small = [view.float() for view in views()]
    with torch.autocast("cpu", torch.bfloat16):
        half = objective(*small)
    assert half.loss.dtype == torch.float32 and half.h_1_nD.dtype == torch.float32
    torch.testing.assert_close(half.loss, objective(*small).loss, rtol=0.02, atol=0)
    half.loss.backward()
    assert all(torch.isfinite(gradient).all() for gradient in gradients(objective).values())


class CustomTerm(Term):
    """A custom term with layers before and after the gathering, which records the precision in which they run."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 3)
        self.last = nn.Linear(3, 1)
        self.dtypes: list[torch.dtype] = []

    def project(self, h_1_nD: Tensor, h_2_nD: Tensor) -> Sequence[Tensor]:
        self.dtypes.append(self.first(h_1_nD).dtype)
        return self.first(h_1_nD), self.first(h_2_nD)

    def share(
        self, h_1_nD: Tensor, h_2_nD: Tensor, local: Sequence[Tensor], gathered: Sequence[Tensor], start: int
    ) -> Tensor:
        score_n1 = self.last(local[0] * gathered[1])
        self.dtypes.append(score_n1.dtype)
        return score_n1.square().mean()


def test_under_autocast_projections_are_fast_and_every_loss_is_computed_in_float32() -> None:
    """Bit-identical to the loss without autocast from the same projections; bfloat16 logits would be off by 1e-2."""
    torch.manual_seed(0)
    settings = [NtXentSettings(), TripletSettings(), VicregSettings(), CoincidenceSettings()]
    terms: dict[str, Term] = {each.use: build_term(each.use, each, SIZES) for each in settings}
    custom = CustomTerm()
    terms["custom"] = custom
    h_1, h_2 = (torch.randn(5, 4) for _ in range(2))
    with torch.autocast("cpu", torch.bfloat16):
        found = JointObjective(Trunk(), terms).loss(h_1, h_2).parts
        projected = {name: [part.float() for part in term.project(h_1, h_2)] for name, term in terms.items()}
    for name, term in terms.items():
        expected = term.share(h_1, h_2, projected[name], projected[name], 0).detach()
        assert found[name].dtype == torch.float32 and torch.equal(found[name], expected), name
    assert custom.dtypes[:2] == [torch.bfloat16, torch.float32]


def chunks(parts: list[Tensor]) -> list[tuple[Tensor, ...]]:
    return [tuple(part[start : start + 2] for part in parts) for start in (0, 2, 4, 6)]  # 2, 2, 1 and 0 rows


def test_accumulation_equals_the_large_batch() -> None:
    parts = views()
    large = build(learn_temperature=True).eval()
    small = build(learn_temperature=True).eval()
    whole = large(*parts, weights={"coincidence": 0.6})
    whole.loss.backward()
    accumulated = accumulate(small, chunks(parts), weights={"coincidence": 0.6})
    torch.testing.assert_close(accumulated.loss, whole.loss.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(gradients(small), gradients(large), rtol=1e-10, atol=1e-14)


def test_accumulation_in_training_uses_the_statistics_of_a_chunk_once() -> None:
    parts = views()
    direct = build()
    cached = build()
    pieces = chunks(parts)[:2]
    h = [torch.cat(view) for view in zip(*(direct.encode(*piece) for piece in pieces), strict=True)]
    direct.loss(*h).loss.backward()
    accumulate(cached, pieces)
    torch.testing.assert_close(gradients(cached), gradients(direct), rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(dict(cached.named_buffers()), dict(direct.named_buffers()), rtol=1e-12, atol=0)
    with pytest.raises(ValueError, match="at least one chunk"):
        accumulate(cached, [])


def test_accumulation_in_bfloat16_keeps_the_graph_of_every_weight() -> None:
    parts = [view.float() for view in views()]
    whole = build().float().eval()
    cached = build().float().eval()
    with torch.autocast("cpu", torch.bfloat16):
        result = whole(*parts)
    result.loss.backward()
    accumulate(cached, split_into_chunks(parts, 2, 5), dtype=torch.bfloat16)
    torch.testing.assert_close(gradients(cached), gradients(whole), rtol=0.05, atol=0.01)


def test_views_are_cut_into_as_many_chunks_on_every_worker() -> None:
    first, second = views()
    pieces = split_into_chunks((first, second), 2, 8)
    assert [len(piece[0]) for piece in pieces] == [2, 2, 1, 0] and len(
        split_into_chunks((first[:0], second[:0]), 2, 8)
    ) == 4
    assert torch.equal(torch.cat([piece[1] for piece in pieces]), second)


def test_views_without_a_partner_are_refused() -> None:
    objective = build()
    first, second = views()
    with pytest.raises(ValueError, match="got 5 and 4"):
        objective(first, second[:4])
