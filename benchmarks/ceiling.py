"""The model-free ceiling: what an idealised learner could reach from so many sessions a round, before any result is read.

It learns from the slopes of the reward alone. A learner with a model of the slate, such as slate replay, knows more of the
same sessions and may lie above: a share beyond 1 is no error.

The learner gets unbiased slopes with the noise that the logs have, and knows the curvature c of the return and the spread of
the optimum around the start. Let the optimal action be linear in F state features beside an intercept, `.3` away in root mean
square a dimension, and the advantage quadratic: a request gains `c/2 |a - a*|^2` less than it could, with c such that going
all the way is worth the headroom. Slopes are read off the TD residual, so that this gain, the headroom and the noise are
discounted alike: what a longer session adds beyond gamma's horizon is in no residual. A round of n requests in a box of
half-width h observes each coefficient of a* with variance

    v = 3 sd^2 / (n h^2 c^2)        sd: of the TD residual; h^2 / 3: the variance of a uniform draw

and after k rounds the optimal estimate (Kalman's) has variance `1 / (1 / p + k / v)`, p the coefficient's variance before.
The share of headroom reached is one minus the remaining over the initial square distance. A real learner of slopes also has to
learn p, and may not leave its box: below the ceiling.

    python -m benchmarks.ceiling --world var/worlds/personalised --oracle var/oracles/personalised/oracle.json
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from mtf.evaluation.power import power
from mtf.policy import bootstrap_policy
from mtf.world import oracle
from mtf.world.explore import explore
from mtf.world.world import World

DISTANCE = 0.3
SESSIONS = (10_000, 20_000, 100_000, 300_000, 1_000_000)


def ceiling(
    headroom: float,
    personal: float,
    sessions: float,
    *,
    rounds: int,
    value: float,
    discounted_requests: float,
    requests: float,
    residual_sd: float,
    half_width: float,
    dimensions: int,
    features: int,
) -> float:
    """Share of the headroom after `rounds` rounds of `sessions` sessions each.

    headroom: best over start - 1, discounted. personal: share of it that one setting for everybody cannot reach. value: mean
    discounted reward of a session. requests: a session; discounted_requests: sum of gamma^t over them. residual_sd: of the TD
    residual a request, in units of reward. features: beside the intercept.
    """
    a_request = headroom * value / discounted_requests
    curvature = 2 * a_request / (dimensions * DISTANCE**2)
    noise = 3 * residual_sd**2 / (sessions * requests * half_width**2 * curvature**2)
    before = DISTANCE**2 * np.array([1 - personal, *[personal / features] * features])
    after = np.where(before > 0, 1 / (1 / np.maximum(before, 1e-12) + rounds / noise), 0)
    return float(1 - after.sum() / before.sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", type=Path, required=True)
    parser.add_argument("--oracle", type=Path, required=True)
    parser.add_argument("--users", type=int, default=10_000, help="of the day whose noise is measured")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--box", type=float, default=0.3)
    options = parser.parse_args()
    world, found = World.load(options.world), oracle.read(options.oracle)
    day = explore(world, bootstrap_policy(world.spec), options.users, "2026-01-02", 100_001, options.box)
    noise = power(day)
    best, one = found.gain("best"), found.gain("global")
    personal = min(max(1 - one.lift_discounted / best.lift_discounted, 0.0), 1.0)
    value, discounted_requests = float(noise.value or 0), float((world.spec.gamma**day.step).sum() / day.n_sessions)
    print(
        f"{found.world}: headroom {best.lift_discounted:+.1%} discounted ({best.lift:+.1%} of session reward), {personal:.0%} "
        f"of it personal; value {value:.4g} a session, TD residual sd {noise.residual_sd:.3g}, {noise.requests_per_session:.1f} "
        f"requests a session, {discounted_requests:.2f} discounted"
    )
    print(f"share of headroom after {options.rounds} rounds, by sessions a round, box +-{options.box}")
    print(f"{'state features':<16}" + "".join(f"{s:>12,}" for s in SESSIONS))
    for features in (5, world.spec.state_width):
        shares = [
            ceiling(
                best.lift_discounted,
                personal,
                sessions,
                rounds=options.rounds,
                value=value,
                discounted_requests=discounted_requests,
                requests=noise.requests_per_session,
                residual_sd=float(noise.residual_sd or 0),
                half_width=options.box,
                dimensions=world.spec.action_width,
                features=features,
            )
            for sessions in SESSIONS
        ]
        print(f"{features:<16}" + "".join(f"{share:>12.2f}" for share in shares))


if __name__ == "__main__":
    main()
