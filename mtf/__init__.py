"""Multi-task fusion for feed ranking, learned by offline reinforcement learning.

The public surface from Python is small: `load_policy(path).act(states)` runs a trained policy.
Everything else is reached through the command line (`mtf --help`) or the Airflow DAGs in `dags/`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtf.policy import Policy, load_policy

__all__ = ["Policy", "load_policy"]


def __getattr__(name: str) -> Any:
    """Import on first use: `import mtf` must stay cheap, Airflow parses DAGs that start with it."""
    if name in __all__:
        import mtf.policy

        return getattr(mtf.policy, name)
    raise AttributeError(f"module 'mtf' has no attribute {name!r}")
