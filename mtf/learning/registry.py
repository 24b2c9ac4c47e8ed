"""The algorithms by name."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass

from mtf.errors import InputError
from mtf.learning.config import Config
from mtf.learning.result import Learned

ALGORITHMS: dict[str, tuple[str, str]] = {
    "integrated_rl": ("IntegratedRLConfig", "IntegratedRL-MTF: an ensemble of advantage-form critics and a boxed actor."),
    "unified_rl": ("UnifiedRLConfig", "UnifiedRL: the same with a group of critics for each reward head."),
    "slate_replay": ("SlateReplayConfig", "The action's effect through the slates that it ranks, replayed on logged candidates."),
    "linear_advantage": ("LinearAdvantageConfig", "A closed form: linear slopes of the TD residual, empirical Bayes."),
    "es": ("EvolutionConfig", "Global weights by CMA-ES: production before reinforcement learning."),
    "naive": ("NaiveConfig", "IntegratedRL-MTF with an MLP critic Q(s, a): the comparator that misses the action."),
    "batch_rl": ("BatchRLConfig", "BatchRL-MTF: proposals like the logged actions, a small perturbation, clipped critics."),
    "cql_sac": ("CQLSACConfig", "CQL+SAC: soft actor-critic with critics pushed down off the data."),
    "iql": ("IQLConfig", "IQL: expectile values of logged actions, an advantage-weighted actor."),
    "ddpg": ("DDPGConfig", "DDPG: the deterministic policy gradient, without caution."),
    "td3": ("TD3Config", "TD3: twin critics and a smoothed target, without caution."),
    "plug_in": ("PlugInConfig", "Rank by the reward that the scores promise: learns nothing from outcomes."),
    "corner": ("CornerConfig", "The sign of each dimension's slope: the rule that a learner must beat."),
    "td3_bc": ("TD3BCConfig", "TD3+BC: the critic's gradient, held to the logged actions."),
    "bc": ("BCConfig", "Behaviour cloning: the logged actions' conditional mean."),
}


@dataclass(frozen=True)
class Algorithm:
    """A name, its settings and its `learn(problem, value, config, *, seed, progress) -> Learned`.

    require: `require(problem, config)` raises InputError for data that it cannot learn from, before time is spent on them.
    """

    name: str
    config: type[Config]
    learn: Callable[..., Learned]
    require: Callable[..., None]


def algorithm(name: str) -> Algorithm:
    """Look one up. Raises InputError listing the names."""
    if name not in ALGORITHMS:
        raise InputError(f"algorithm: `{name}` is not known; use one of {', '.join(ALGORITHMS)}")
    module = importlib.import_module(f"mtf.learning.{name}")
    return Algorithm(name, getattr(module, ALGORITHMS[name][0]), module.learn, getattr(module, "require", lambda *_: None))
