"""The LSTM over sequences of different lengths."""

from __future__ import annotations

import torch

from trainers.models.parts.recurrent import Recurrent


def test_reads_step_by_step_as_an_lstm_does() -> None:
    torch.manual_seed(0)
    recurrent = Recurrent(3, 4)
    x = torch.randn(1, 5, 3)
    of_inputs, of_states, *biases = recurrent.lstm.parameters()
    bias = biases[0] + biases[1]
    state, cell, expected = torch.zeros(4), torch.zeros(4), []
    for step in x[0]:
        enters, forgets, new, leaves = (of_inputs @ step + of_states @ state + bias).chunk(4)
        cell = forgets.sigmoid() * cell + enters.sigmoid() * new.tanh()
        state = leaves.sigmoid() * cell.tanh()
        expected.append(state)
    states = recurrent(x, torch.ones(1, 5, dtype=torch.bool))
    torch.testing.assert_close(states[0], torch.stack(expected))


def test_what_is_behind_a_sequence_changes_nothing() -> None:
    torch.manual_seed(0)
    recurrent = Recurrent(3, 4)
    x = torch.randn(2, 7, 3)
    lengths = torch.tensor([4, 0])
    mask = torch.arange(7) < lengths[:, None]
    states = recurrent(x, mask)
    torch.testing.assert_close(states[:1, :4], recurrent(x[:1, :4], mask[:1, :4]))
    assert not states[~mask].any()
