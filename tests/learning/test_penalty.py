import pytest
import torch

from mtf.learning.penalty import distance, phi, relative_excess


def excess(action):
    """Box of width .3 around 0, beta .3."""
    lower, upper = torch.full((1, 1), -0.15), torch.full((1, 1), 0.15)
    return relative_excess(torch.tensor([[action]]), torch.zeros(1, 1), lower, upper, 0.3)


@pytest.mark.parametrize("side", [1, -1])
def test_published_values_on_both_sides(side):
    outside = excess(side * 0.195)
    assert phi(outside).item() == pytest.approx(0.60653, abs=1e-5)
    assert distance(outside).item() == pytest.approx(1.64872, abs=1e-5)
    assert distance(outside, continuous=True).item() == pytest.approx(0.64872, abs=1e-5)


def test_inside_nothing_is_penalised():
    assert phi(excess(0.1)).item() == 1
    assert distance(excess(0.1)).item() == 0


def test_fixed_dimensions_are_left_out():
    zero = torch.zeros(1, 2)
    found = relative_excess(torch.tensor([[0.0, 0.7]]), zero, torch.tensor([[-0.1, 0.0]]), torch.tensor([[0.1, 0.0]]), 0.3)
    assert found.tolist() == [[0.0, 0.0]]
