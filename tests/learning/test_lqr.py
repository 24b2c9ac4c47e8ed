"""Rounds of explore, train, deploy on linear-quadratic problems whose optimum is known, from files as anybody may write them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtf import box
from mtf.learning.run import train
from mtf.policy import Lineage, Policy, constant_policy, load_policy

HALF = 0.3
STEP = 0.5
"""The longest step of a round, root mean square in half-widths."""


def write(path: Path, **columns: np.ndarray) -> None:
    """Rows in the schema of docs/transitions.md, without a spec; arrays [n, width] become lists."""
    arrays = {
        name: pa.array(value)
        if value.ndim == 1
        else pa.FixedSizeListArray.from_arrays(value.astype(np.float32).ravel(), value.shape[1])
        for name, value in columns.items()
    }
    path.parent.mkdir(parents=True)
    pq.write_table(pa.table(arrays), path)


def explored(rng: np.random.Generator, policy: Policy, state: np.ndarray, half: float) -> dict[str, np.ndarray]:
    """What a server logs of the states: centre, box, action."""
    center = policy.act(state)
    lower, upper = box.offsets(center, half)
    return {"action": box.sample(rng, center, lower, upper), "center": center, "lower": lower, "upper": upper}


def improved(folder: Path, baseline: str | Path, algorithm: str, settings: dict[str, str], step: float = STEP) -> Policy:
    found = train(
        folder / "rows",
        folder / "policy",
        algorithm=algorithm,
        baseline=baseline,
        overrides={"max_rms_step": str(step), "distil_steps": "50", **settings},
        progress=False,
    )
    report = found.report
    assert report["step"]["rms_y"] <= step + 1e-6
    assert report["distilled"]["outside_share"] <= 0.01
    return load_policy(folder / "policy", found.sha)


# One step: E r = A / 4 - |a - t(s)|^2 with noise, best at a = t(s); r has no large mean, which would cost critics steps.

FEW = {"steps": "300", "batch": "256", "delay": "3"}
ENSEMBLE = FEW | {"critics": "3", "critic_hidden": "16", "value_lr": "1e-2", "head_lr": "1e-2"}
TWIN = FEW | {"critic_hidden": "32", "actor_hidden": "16", "lr": "5e-3"}
CASES = [
    *(("linear_advantage", width, {}) for width in (1, 2, 5, 10)),
    *(("integrated_rl", width, ENSEMBLE) for width in (2, 10)),
    *(("td3_bc", width, TWIN) for width in (1, 5)),
]


def optimum(state: np.ndarray, width: int) -> np.ndarray:
    """t(s) [n, A], about half the space away from 0 in every dimension; its state part has either sign."""
    dimension = np.arange(width)
    return 0.45 * np.where(dimension % 2, -1, 1) + 0.1 * state[:, :1] * np.where(dimension % 3, 1, -1)


def bandit(path: Path, policy: Policy, width: int, seed: int) -> None:
    """2,400 users with a request each; training reads half of them."""
    rng, n = np.random.default_rng(seed), 2400
    state = rng.normal(size=(n, 2)).astype(np.float32)
    logged = explored(rng, policy, state, HALF)
    reward = 0.25 * width - np.square(logged["action"] - optimum(state, width)).sum(axis=1) + rng.normal(0, 0.3, n)
    user = np.array([f"round{seed}-user{i}" for i in range(n)])
    ends = {"step": np.zeros(n, np.int64), "terminal": np.ones(n, bool), "next_state": np.zeros_like(state)}
    write(path, session_id=user, user_id=user, state=state, reward=reward[:, None], **logged, **ends)


@pytest.mark.parametrize(("algorithm", "width", "settings"), CASES, ids=[f"{a}-{w}" for a, w, _ in CASES])
def test_rounds_lead_to_the_best_action_of_every_state(tmp_path, algorithm, width, settings):
    states = np.random.default_rng(99).normal(size=(4000, 2)).astype(np.float32)
    best = optimum(states, width)

    def distance(policy: Policy) -> float:
        return float(np.sqrt(np.square(policy.act(states) - best).mean()))

    policy = constant_policy(np.zeros(width), 2, spec=None, lineage=Lineage(algorithm="start"))
    baseline: str | Path = "logged"
    far = [distance(policy)]
    for number in range(3):
        folder = tmp_path / str(number)
        bandit(folder / "rows" / "part.parquet", policy, width, number)
        policy = improved(folder, baseline, algorithm, settings)
        baseline = folder / "policy"
        far.append(distance(policy))
    gained = -np.diff(far)
    # the best that a round can do is to go straight there, a step long
    assert (gained > 0.02).all()
    assert (gained < 1.05 * STEP * HALF).all()
    if algorithm == "linear_advantage":
        assert (gained[:2] > 0.95 * STEP * HALF).all()
        assert far[-1] < 0.1 * far[0]
    else:
        assert far[-1] < 0.65 * far[0]


# Many steps, each dimension a system of its own: s' = .9 s + .5 a, r = -(s^2 + .1 a^2), gamma .9. By the Riccati equation the
# best policy is a = -1.32462 s, worth -1.23843 s^2.

GAIN, VALUE = 1.32462, 1.23843


def worth(gain: float) -> float:
    """P of a = -gain s, worth -P s^2: `P = 1 + .1 gain^2 + gamma (.9 - .5 gain)^2 P`."""
    return (1 + 0.1 * gain**2) / (1 - 0.9 * (0.9 - 0.5 * gain) ** 2)


def gains(policy: Policy) -> np.ndarray:
    """[A, A]: of each dimension's action on each dimension's state."""
    ends = 0.2 * np.eye(policy.action_width, dtype=np.float32)
    return (policy.act(-ends) - policy.act(ends)) / 0.4


def system(path: Path, policy: Policy, width: int, seed: int, users: int) -> None:
    """Sessions of eight steps that are cut, not ended."""
    rng, length = np.random.default_rng(seed), 8
    state = rng.uniform(-HALF, HALF, (users, width)).astype(np.float32)
    steps = []
    for step in range(length):
        logged = explored(rng, policy, state, HALF)
        after = (0.9 * state + 0.5 * logged["action"]).astype(np.float32)
        reward = -(np.square(state) + 0.1 * np.square(logged["action"])).sum(axis=1)
        cut = {"step": np.full(users, step), "truncated": np.full(users, step == length - 1)}
        nxt = {f"next_{name}": value for name, value in explored(rng, policy, after, HALF).items() if name != "action"}
        steps.append({"state": state, "next_state": after, "reward": reward[:, None], **logged, **nxt, **cut})
        state = after
    columns = {name: np.concatenate([s[name] for s in steps]) for name in steps[0]}
    user = np.array([f"round{seed}-user{i}" for i in range(users)] * length)
    write(path, session_id=user, user_id=user, terminal=np.zeros(len(user), bool), **columns)


@pytest.mark.parametrize(
    ("algorithm", "width", "users", "settings"),
    [
        ("linear_advantage", 1, 400, {}),
        ("linear_advantage", 3, 400, {}),
        # what each dimension earns is noise to the nine others
        ("linear_advantage", 10, 1600, {}),
        ("integrated_rl", 1, 400, ENSEMBLE),
    ],
    ids=["linear_advantage-1", "linear_advantage-3", "linear_advantage-10", "integrated_rl-1"],
)
def test_rounds_lead_to_the_gain_of_the_riccati_equation(tmp_path, algorithm, width, users, settings):
    """Steps are made shorter, as those of one length would pass the optimum by."""
    assert worth(GAIN) == pytest.approx(VALUE, abs=5e-6)
    policy = constant_policy(np.zeros(width), width, spec=None, lineage=Lineage(algorithm="start"))
    baseline: str | Path = "logged"
    values = [worth(0.0)]
    for number, step in enumerate((0.5, 0.4, 0.2, 0.1)):
        folder = tmp_path / str(number)
        system(folder / "rows" / "part.parquet", policy, width, number, users)
        policy = improved(folder, baseline, algorithm, settings, step)
        baseline = folder / "policy"
        values.append(float(np.mean([worth(k) for k in np.diag(gains(policy))])))
        # nearer in every round, until it is there
        assert values[-1] < max(values[-2], 1.001 * VALUE)
    # of a hundred gains one or two are further off
    np.testing.assert_allclose(gains(policy), GAIN * np.eye(width), atol=0.1 if width < 10 else 0.15)
    assert values[-1] == pytest.approx(VALUE, rel=0.01)
