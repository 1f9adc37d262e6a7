"""The gate that fuses two views of a user."""

from __future__ import annotations

import torch

from trainers.models.parts.gates import FusionGate


def test_fuses_number_by_number_as_the_formula_says() -> None:
    torch.manual_seed(0)
    gate = FusionGate(4)
    profile, short, long = torch.randn(3, 2, 4)
    torch.testing.assert_close(gate(profile, short, long), (short + long) / 2)  # in the beginning
    for parameter in gate.parameters():
        torch.nn.init.normal_(parameter)
    w1, w2, w3 = gate.weights.weight.chunk(3, dim=1)
    e, s, p = (x / x.square().mean(1, keepdim=True).sqrt() for x in (profile, short, long))
    share = torch.sigmoid(e @ w1.T + s @ w2.T + p @ w3.T + gate.weights.bias)
    fused = (1 - share) * long + share * short
    torch.testing.assert_close(gate(profile, short, long), fused, rtol=1e-4, atol=1e-5)


def test_a_view_of_nothing_opens_no_gate() -> None:
    gate, nothing = FusionGate(4), torch.zeros(1, 4, requires_grad=True)
    found = gate(nothing, nothing, torch.ones(1, 4))
    torch.testing.assert_close(found, torch.full((1, 4), 0.5))
    found.sum().backward()
    assert nothing.grad is not None
    assert torch.isfinite(nothing.grad).all()


def test_learns_which_view_to_trust_and_of_whom() -> None:
    torch.manual_seed(0)
    gate = FusionGate(4)
    optimiser = torch.optim.Adam(gate.parameters(), lr=0.05)
    for _ in range(200):
        profile, short, long = torch.randn(3, 64, 4)
        of_the_moment = profile[:, :1] > 0  # some live for the day, and the profile tells
        wanted = torch.where(of_the_moment, short, long)
        loss = (gate(profile, short, long) - wanted).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    profile = torch.tensor([[2.0, 0.0, 0.0, 0.0], [-2.0, 0.0, 0.0, 0.0]])
    short, long = torch.ones(2, 4), torch.zeros(2, 4)
    shares = gate(profile, short, long)  # with these it is G itself
    assert shares[0].min() > 0.9
    assert shares[1].max() < 0.1
