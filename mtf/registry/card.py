"""A version's card: what it is, what it was made from, what was found, and how to read it (markdown)."""

from __future__ import annotations

from collections.abc import Mapping

from mtf.policy import Policy


def card(surface: str, policy: Policy, tags: Mapping[str, str]) -> str:
    """The description of a model version, from its bundle and its tags as they are now."""
    lineage = policy.lineage
    parts = [
        f"## Fusion policy for `{surface}`",
        f"Maps a state of {policy.state_width} features to {policy.action_width} fusion parameters "
        f"(powers, then biases, normalised to [-1, 1]). Algorithm `{lineage.algorithm}`, seed {lineage.seed}.",
        "### Data",
        _data(tags),
        "### Verdict",
        _verdict(tags),
        "### How to read this",
        "The verdict is that of the off-policy gate, on users whose rows training never sees: `pass` means that the lower end "
        "of the lift's two-sided 96 % interval lies above 0, `inconclusive` that the data cannot tell, `fail` that the policy "
        "looks worse. A pass earns a canary on real traffic, not a promotion; the tag `rollout` says what came of it.",
        "### Use",
        "```python\nimport mlflow\n"
        f'model = mlflow.pyfunc.load_model("models:/mtf-{surface}@champion")\nactions = model.predict(states)  # float32 [n, '
        f"{policy.state_width}] -> [n, {policy.action_width}]\n```",
        f"Bundle `{policy.sha}`; `mtf.load_policy` reads the artefact folder `bundle` and needs neither MLflow nor torch.",
    ]
    return "\n\n".join(parts)


def _data(tags: Mapping[str, str]) -> str:
    if "dataset_revision" not in tags:
        return "None: the surface's start, the same action for every state."
    return (
        f"Dataset `{tags['dataset_revision']}` (md5 `{tags['dataset_md5']}`, {tags['dataset_rows']} rows, newest day "
        f"{tags['dataset_dt']}), code `{tags['code_sha']}`. Check it out with `mtf data checkout {tags['dataset_revision']}`."
    )


def _verdict(tags: Mapping[str, str]) -> str:
    if "verdict" not in tags:
        return "Not evaluated yet." if "dataset_revision" in tags else "The baseline itself; there is nothing to compare it with."
    if tags["lift"] == "nan":
        return f"**{tags['verdict']}**: {tags['verdict_reason']}"
    return (
        f"**{tags['verdict']}**: {tags['verdict_reason']} "
        f"Lift over the champion `{tags['verdict_baseline'][:12]}`: {float(tags['lift']):+.2%} "
        f"[{float(tags['lift_low']):+.2%}, {float(tags['lift_high']):+.2%}]."
    )
