"""The losses of the χ-Model."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dadl_ext import ChiModelLoss, DisagreementLoss, DropoutDisagreementLoss, GradientReversal, functional, reference

PAIRINGS = ("cross", "same_view", "same_head", "all")


def parts(outputs: int = 2, **settings) -> tuple[nn.Module, ChiModelLoss, tuple[Tensor, Tensor, Tensor, Tensor]]:
    """An extractor, the loss around two heads, and labelled inputs, targets and two unlabelled views."""
    torch.manual_seed(0)
    extractor = nn.Linear(6, 5).double()
    heads = [nn.Sequential(nn.Tanh(), nn.Linear(5, outputs)).double() for _ in range(2)]
    chi = ChiModelLoss(*heads, nn.MSELoss(), **settings)
    batch = (torch.randn(4, 6), torch.randn(4, outputs), torch.randn(7, 6), torch.randn(7, 6))
    return extractor, chi, tuple(x.double() for x in batch)


def by_hand(extractor: nn.Module, chi: ChiModelLoss, batch, pairing: str, measure: str) -> tuple[Tensor, Tensor]:
    """L_s and L_χ with the pairs written out."""
    x, y, u1, u2 = batch
    a, b = chi.head_a, chi.head_b
    f, v1, v2 = extractor(x), extractor(u1), extractor(u2)
    supervised = F.mse_loss(a(f), y) + F.mse_loss(b(f), y)
    a1, a2, b1, b2 = a(v1), a(v2), b(v1), b(v2)
    pairs = {
        "cross": [(a1, b2)],
        "same_view": [(a1, b1), (a2, b2)],
        "same_head": [(a1, a2), (b1, b2)],
        "all": [(a1, a2), (a1, b1), (a1, b2), (a2, b1), (a2, b2), (b1, b2)],
    }[pairing]
    terms = [reference.disagreement(torch.stack(pair), measure) for pair in pairs]
    return supervised, sum(terms) / len(terms)


@pytest.mark.parametrize("pairing", PAIRINGS)
@pytest.mark.parametrize("minimax", [True, False])
@pytest.mark.parametrize("measure", ["l1", "symmetric_kl"])
def test_every_parameter_gets_its_sign(pairing: str, minimax: bool, measure: str) -> None:
    extractor, chi, batch = parts(pairing=pairing, minimax=minimax, measure=measure, eta=0.3)
    supervised, disagreement = by_hand(extractor, chi, batch, pairing, measure)
    body, heads = list(extractor.parameters()), list(chi.parameters())
    for_body = torch.autograd.grad(supervised + 0.3 * disagreement, body, retain_graph=True)
    sign = -0.3 if minimax else 0.3
    for_heads = torch.autograd.grad(supervised + sign * disagreement, heads)

    x, y, u1, u2 = batch
    terms = chi.terms(extractor(x), y, extractor(u1), extractor(u2))
    terms.loss.backward()
    torch.testing.assert_close(terms.loss, supervised + 0.3 * disagreement)
    torch.testing.assert_close(terms.supervised, supervised.detach())
    torch.testing.assert_close(terms.disagreement, disagreement.detach())
    assert terms.clamped == 0
    for parameter, expected in zip(body + heads, for_body + for_heads, strict=True):
        torch.testing.assert_close(parameter.grad, expected)


def test_alternating_steps_are_the_halves_of_the_game() -> None:
    extractor, chi, batch = parts(eta=0.3)
    x, y, u1, u2 = batch
    chi(extractor(x), y, extractor(u1), extractor(u2)).backward()
    heads = [p.grad.clone() for p in chi.parameters()]
    body = [p.grad.clone() for p in extractor.parameters()]
    extractor.zero_grad()
    chi.zero_grad()
    chi.head_loss(extractor(x), y, extractor(u1), extractor(u2)).backward()
    assert all(p.grad is None for p in extractor.parameters())
    for parameter, expected in zip(chi.parameters(), heads, strict=True):
        torch.testing.assert_close(parameter.grad, expected)
    chi.zero_grad()
    (chi.extractor_loss(extractor(u1), extractor(u2)) + chi.supervised(extractor(x), y)).backward()
    for parameter, expected in zip(extractor.parameters(), body, strict=True):
        torch.testing.assert_close(parameter.grad, expected)
    chi.zero_grad()
    chi.extractor_loss(extractor(u1), extractor(u2)).backward()
    assert all(p.grad is None for p in chi.parameters())


def test_clamp_stops_both_sides_and_is_reported() -> None:
    extractor, chi, (x, y, u1, u2) = parts()
    rows = reference.disagreement(torch.stack([chi.head_a(extractor(u1)), chi.head_b(extractor(u2))]), reduction="none")
    clamp = rows.median().item()
    chi.clamp = clamp
    terms = chi.terms(extractor(x), y, extractor(u1), extractor(u2))
    torch.testing.assert_close(terms.disagreement, rows.clamp(max=clamp).mean())
    assert terms.clamped.item() == pytest.approx((rows > clamp).double().mean().item())
    assert "clamp" in chi.bound
    assert "heads must bound" in ChiModelLoss(chi.head_a, chi.head_b, nn.L1Loss()).bound
    assert "own" in ChiModelLoss(chi.head_a, chi.head_b, nn.L1Loss(), measure="js").bound


def test_ramp_is_counted_saved_and_only_in_training() -> None:
    extractor, chi, (x, y, u1, u2) = parts(eta=2.0, ramp_steps=4)
    arguments = extractor(x), y, extractor(u1), extractor(u2)
    seen = [chi.terms(*arguments).eta for _ in range(6)]
    expected = [2 * torch.tensor(-5 * (1 - min(t / 4, 1)) ** 2).exp().item() for t in range(6)]
    assert seen == pytest.approx(expected)
    other = copy.deepcopy(chi)
    other.step.zero_()
    other.load_state_dict(chi.state_dict())
    assert other.eta == chi.eta == 2.0
    chi.eval()
    chi(*arguments)
    assert chi.step == 6


@pytest.mark.parametrize(("measure", "shape"), [("l1", (4, 3)), ("js", (4, 3)), ("symmetric_kl", (4, 2, 5, 5))])
def test_predict_is_the_mean_of_the_heads(measure: str, shape: tuple[int, ...]) -> None:
    a, b = torch.randn(shape), torch.randn(shape)
    chi = ChiModelLoss(nn.Identity(), nn.Identity(), nn.L1Loss(), measure=measure)
    if measure == "l1":
        torch.testing.assert_close(chi.predict(a), a)
    else:
        dims = (2, 3) if len(shape) == 4 else 1
        torch.testing.assert_close(chi.predict(b).sum(dim=dims), torch.ones(shape[:2] if len(shape) == 4 else shape[0]))


def test_the_game_raises_disagreement_in_the_heads_and_lowers_it_in_the_features() -> None:
    """Gradient steps of one side alone move L_χ to its end."""
    for side, rises in (("heads", True), ("body", False)):
        extractor, chi, (x, y, u1, u2) = parts(eta=1.0)
        parameters = list(chi.parameters()) if side == "heads" else list(extractor.parameters())
        optimizer = torch.optim.SGD(parameters, lr=0.05)
        history = []
        for _ in range(20):
            terms = chi.terms(extractor(x), y, extractor(u1), extractor(u2))
            history.append(terms.disagreement.item())
            optimizer.zero_grad()
            (terms.loss - chi.supervised(extractor(x), y)).backward()  # the game alone
            optimizer.step()
        assert (history[-1] > 1.2 * history[0]) if rises else (history[-1] < 0.8 * history[0])


def test_disagreement_and_reversal_modules() -> None:
    x = torch.randn(3, 4, 5, requires_grad=True)
    for reduction in ("mean", "sum", "none"):
        loss = DisagreementLoss("js", reduction=reduction)(x)
        assert torch.equal(loss, functional.disagreement(x, "js", reduction=reduction))
    y = GradientReversal(0.5)(x)
    assert torch.equal(y, x)
    (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    torch.testing.assert_close(gradient, -x.detach())
    (second,) = torch.autograd.grad(gradient.sum(), x)
    torch.testing.assert_close(second, torch.full_like(x, 0.5))


def test_dropout_disagreement_module_draws_seeds() -> None:
    head = nn.Linear(30, 2)
    features = torch.randn(6, 30)
    loss = DropoutDisagreementLoss(head, p=0.3, samples=4, measure="l1", reduction="none")
    torch.manual_seed(3)
    first, second = loss(features), loss(features)
    torch.manual_seed(3)
    assert torch.equal(loss(features), first)
    assert not torch.equal(first, second)
    generators = [torch.Generator().manual_seed(5) for _ in range(2)]
    assert torch.equal(*(loss(features, generator) for generator in generators))
    assert dict(loss.named_parameters()).keys() == {"head.weight", "head.bias"}


def test_bad_settings() -> None:
    head, features, targets = nn.Linear(3, 1), torch.randn(2, 3), torch.randn(2, 1)
    for message, settings in (
        ("pairing must be one of", {"pairing": "both"}),
        ("measure must be one of", {"measure": "kl"}),
        ("eta", {"eta": -1.0}),
        ("clamp", {"clamp": 0.0}),
        ("ramp_steps", {"ramp_steps": -1}),
    ):
        with pytest.raises(ValueError, match=message):
            ChiModelLoss(head, head, nn.L1Loss(), **settings)
    with pytest.raises(ValueError, match=r"one shape, got \(2, 3\) and \(3, 3\)"):
        ChiModelLoss(head, head, nn.L1Loss())(features, targets, features, torch.randn(3, 3))
    with pytest.raises(ValueError, match="both heads"):
        ChiModelLoss(head, nn.Linear(3, 2), lambda p, y: p.sum())(features, targets, features, features)
    with pytest.raises(ValueError, match="samples"):
        DropoutDisagreementLoss(head, samples=0)
