"""Every algorithm through the same door: it trains, stays in the box, repeats itself, and what is exported acts alike."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file

from mtf.learning.registry import ALGORITHMS, algorithm
from mtf.learning.run import train_on
from mtf.learning.trainer import TrainerConfig
from mtf.policy import bootstrap_policy, load_policy
from mtf.world.explore import explore
from mtf.world.world import World

BOX = 0.3


@pytest.fixture(scope="module")
def data():
    world = World.make("default", users=1500, items=300, scalars={"n_candidates": 12})
    return explore(world, bootstrap_policy(world.spec), 500, "2026-03-02", 1, BOX)


def small(name):
    """Few steps: what is tested is the way, not how far it leads."""
    kind = algorithm(name).config
    settings = {"distil_steps": "50"}
    if issubclass(kind, TrainerConfig):
        settings |= {"steps": "40", "batch": "128"}
    return settings | ({"steps": "4", "requests": "300"} if name == "es" else {})


def in_torch(bundle, states):
    """The bundle's function from its arrays alone: raw states in, the scaler first."""
    arrays = load_file(bundle / "policy.safetensors")
    clip = load_policy(bundle).scaler_clip
    z = ((torch.from_numpy(states) - arrays["mean"]) / arrays["scale"]).clamp(-clip, clip)
    depth = sum(name.startswith("weight_") for name in arrays)
    h = z
    for i in range(depth):
        h = torch.nn.functional.linear(torch.relu(h) if i else h, arrays[f"weight_{i}"].T, arrays[f"bias_{i}"])
    return (h + z @ arrays["skip"]).clamp(-1, 1).numpy()


@pytest.mark.parametrize("name", ALGORITHMS)
def test_it_trains_stays_in_the_box_and_repeats_itself(name, data, tmp_path):
    found, again = (
        train_on(data, out, algorithm=name, baseline="bootstrap", seed=3, overrides=small(name), progress=False)
        for out in (tmp_path / "policy", None)
    )
    assert found.sha == again.sha
    policy = load_policy(tmp_path / "policy")
    action = policy.act(data.state)
    assert np.isfinite(action).all()
    session = onnxruntime.InferenceSession(tmp_path / "policy" / "policy.onnx")
    for n in (1, 7):
        states = 3 * data.state[:n]  # further out than it was trained: the scaler clips
        expected = in_torch(tmp_path / "policy", states)
        np.testing.assert_allclose(policy.act(states), expected, rtol=0, atol=1e-5)
        np.testing.assert_allclose(session.run(None, {"states": states})[0], expected, rtol=0, atol=1e-5)
    off = np.abs(action - data.center)
    assert (off <= BOX + 1e-3).all(axis=1).mean() > 0.99
    report = found.report
    assert report["distilled"]["outside_share"] <= 0.01
    assert report["algorithm"]["name"] == name
    if issubclass(algorithm(name).config, TrainerConfig):
        curve = report["algorithm"]["curve"]
        assert [point["step"] for point in curve][-1] == 40
        assert all(np.isfinite(list(point.values())).all() for point in curve)
        assert "held_out" in curve[-1]
