"""`evaluate`: judge one policy against the deployed one on the gate's users, and write report.json and report.html."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tqdm import tqdm

from mtf.errors import InputError
from mtf.evaluation import gate, weights
from mtf.evaluation.fqe import fqe
from mtf.evaluation.gauc import gauc_of_actions
from mtf.evaluation.guardrails import guardrails
from mtf.evaluation.importance import importance
from mtf.evaluation.intervals import by_user, ratio
from mtf.evaluation.power import canary_arms, detection_factor, power_of_steps
from mtf.evaluation.primary import Lift, primary
from mtf.evaluation.referee import calibrate, referee, slope_agreement
from mtf.evaluation.report import Dimension, Estimators, LiftInterval, Model, OnPolicy, Report, Weights
from mtf.evaluation.rows import Selection, select
from mtf.evaluation.steps import DEFAULT_GAMMA, Coverage, Steps, make_steps
from mtf.evaluation.values import FOLDS, ActionValue, fit_action_value
from mtf.fileio import write_atomic
from mtf.policy import Policy, bootstrap_policy, load_policy
from mtf.spec import FusionSpec
from mtf.transitions.table import TransitionSet, load_transitions

ALPHA = 0.04


def evaluate(
    transitions: Path,
    policy: Path,
    baseline: str | Path,
    out: Path,
    *,
    spec: FusionSpec | None = None,
    alpha: float = ALPHA,
    progress: bool = False,
) -> Report:
    """Evaluate the bundle `policy` against `baseline` on the gate's users of `transitions`; write `out`/report.{json,html}.

    baseline: a bundle, `bootstrap` (the spec's start), or `logged` (the centre of the rows themselves).
    alpha: of the lift's two-sided interval.
    Raises InputError where something handed in cannot be read; data that cannot carry a verdict gives one all the same:
    inconclusive, with the reason.
    """
    from mtf.evaluation.page import render

    data = load_transitions(transitions, users="gate", spec=spec)
    deployed = _baseline(baseline, data)
    report = evaluate_set(data, load_policy(policy), deployed, alpha=alpha, baseline=_name(baseline), progress=progress)
    out = Path(out)
    write_atomic(out / "report.html", render(report).encode())
    write_atomic(out / "report.json", report.to_json())
    return report


def evaluate_set(
    data: TransitionSet,
    policy: Policy,
    deployed: Policy | None,
    *,
    alpha: float = ALPHA,
    baseline: str = "logged",
    progress: bool = False,
) -> Report:
    """`evaluate` on rows in memory; `deployed` None takes the rows' own centre."""
    with tqdm(total=5, desc="evaluate", disable=not progress, leave=False) as bar:
        return _evaluate(data, policy, deployed, alpha, baseline, bar)


def _evaluate(data: TransitionSet, policy: Policy, deployed: Policy | None, alpha: float, baseline: str, bar: tqdm) -> Report:
    chosen = select(data, deployed.sha if deployed is not None else None)
    kept = chosen.data
    facts: dict[str, object] = {
        "alpha": alpha,
        "gamma": data.spec.gamma if data.spec is not None else DEFAULT_GAMMA,
        "policy_sha": policy.sha,
        "baseline": baseline,
        "baseline_sha": deployed.sha if deployed is not None else chosen.policy_sha,
        "days": sorted({str(d) for d in kept.dt if d is not None}),
        "sessions": kept.n_sessions,
        "users": len(np.unique(kept.user)),
        "requests": len(kept),
        "drops": chosen.drops,
    }
    if chosen.reason is not None:
        return _empty(facts, gate.sentence(chosen.reason))
    steps, coverage = make_steps(kept, policy, deployed)
    users = len(np.unique(steps.user))
    checks = [gate.coverage_check(coverage), *gate.row_checks(steps, coverage, users)]
    described: dict[str, object] = {
        "cut_sessions": steps.cut_sessions,
        "uncovered": coverage.states,
        "step_rms": gate.step_size(steps),
        "y_rms": _rms(steps.y[: len(steps), steps.varied]),
        "dimensions": _dimensions(kept, steps, coverage),
        "weights": _weights(steps),
    }
    if users < FOLDS:
        verdict, reason = gate.decide(None, checks, alpha, None)
        return Report(verdict=verdict, reason=reason, lift=LiftInterval(), checks=checks, **facts, **described)  # type: ignore[arg-type]
    bar.update()
    q = fit_action_value(steps)
    bar.update()
    return _judge(chosen, steps, q, policy, deployed, checks, facts, described, bar)


def _judge(
    chosen: Selection,
    steps: Steps,
    q: ActionValue,
    policy: Policy,
    deployed: Policy | None,
    checks: list[gate.Check],
    facts: dict[str, object],
    described: dict[str, object],
    bar: tqdm,
) -> Report:
    alpha = float(facts["alpha"])  # type: ignore[arg-type]
    first = primary(steps, q, alpha)
    second = referee(steps, q, first, alpha)
    calibration = calibrate(steps, q)
    kept = chosen.data
    guarded = guardrails(steps, kept.behaviour, kept.spec.behaviours if kept.spec is not None else (), alpha)
    checks = [*checks, *gate.estimate_checks(gate.step_size(steps), calibration, first.lift, first.deployed, second)]
    checks += [gate.guardrail_check(guarded)] if guarded else []
    on_policy = _on_policy(chosen.on_policy, steps.gamma, first)
    chi2, dof = slope_agreement(steps, q)
    detectable = detection_factor(alpha) * first.lift.se
    verdict, reason = gate.decide(first.lift, checks, alpha, detectable)
    lift = first.lift
    bar.update()
    others = Estimators(
        primary=lift,
        primary_bend=first.bend,
        referee=second.lift,
        degree2=primary(steps, q, alpha, degree=2).lift,
        fqe=fqe(steps, alpha),
        importance=importance(steps, alpha),
    )
    bar.update()
    arms, user_cv = canary_arms(kept)
    actions = {"policy": policy.act(kept.state), "baseline": kept.center if deployed is None else deployed.act(kept.state)}
    report = Report(
        verdict=verdict,
        reason=reason,
        lift=LiftInterval(mean=lift.mean, low=lift.low, high=lift.high, se=lift.se),
        checks=checks,
        value_deployed=first.deployed,
        value_target=first.target,
        estimators=others,
        guardrails=guarded,
        on_policy=on_policy,
        model=Model(ridge=q.ridge, prior_sd=q.prior_sd, explained=q.explained, slope_chi2=chi2, slope_dof=dof),
        gauc=gauc_of_actions(kept, {**actions, "logged": kept.action}),
        power=power_of_steps(steps, q.value, arms, user_cv),
        detectable_lift=detectable,
        **facts,  # type: ignore[arg-type]
        **described,  # type: ignore[arg-type]
    )
    bar.update()
    return report


def _baseline(baseline: str | Path, data: TransitionSet) -> Policy | None:
    if str(baseline) == "logged":
        return None
    if str(baseline) == "bootstrap":
        if data.spec is None:
            raise InputError("baseline = bootstrap: these transitions have no spec.json; give --spec FILE, or --baseline logged")
        return bootstrap_policy(data.spec)
    return load_policy(baseline)


def _name(baseline: str | Path) -> str:
    return str(baseline) if str(baseline) in ("logged", "bootstrap") else "bundle"


def _empty(facts: dict[str, object], reason: str) -> Report:
    return Report(verdict="inconclusive", reason=reason, lift=LiftInterval(), cut_sessions=0, checks=[], **facts)  # type: ignore[arg-type]


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt((values.astype(np.float64) ** 2).mean())) if values.size else 0.0


def _dimensions(data: TransitionSet, steps: Steps, coverage: Coverage) -> list[Dimension]:
    if data.spec is not None:
        names = [f"{kind} {o}" for kind in ("power", "bias") for o in data.spec.objectives]
    else:
        names = [f"action {d}" for d in range(data.action_width)]
    n = len(steps)
    half = ((data.upper - data.lower) / 2).mean(axis=0)
    y, y0 = steps.y[:n].astype(np.float64), steps.y0[:n].astype(np.float64)
    return [
        Dimension(
            name=name,
            half_width=float(half[d]),
            y_mean=float(y[:, d].mean()),
            y_rms=_rms(y[:, d]),
            y0_mean=float(y0[:, d].mean()),
            step_rms=_rms(y[:, d] - y0[:, d]),
            outside=float(coverage.dims[d]),
            at_edge=float((np.abs(y[:, d]) > 0.9).mean()) if steps.varied[d] else 0.0,
        )
        for d, name in enumerate(names)
    ]


def _weights(steps: Steps) -> Weights:
    y = steps.y[: len(steps)]
    omega = weights.degree1(steps.x, y)
    count = by_user(np.ones(len(omega)), steps.user)
    mean = ratio(by_user(omega, steps.user), count, 0.05)
    square = float((omega**2).mean())
    expected = float(weights.second_moment(y, 1).mean())
    return Weights(
        mean=mean.mean,
        mean_se=mean.se,
        square=square,
        square_expected=expected,
        effective_share=float(omega.mean() ** 2 / square) if square > 0 else 0.0,
    )


def _on_policy(data: TransitionSet, gamma: float, estimated: Lift) -> OnPolicy | None:
    if data.n_sessions < 2:
        return None
    returns = data.returns(gamma)[data.starts]
    user = data.user[data.starts]
    if len(np.unique(user)) < 2:
        return None
    own = ratio(by_user(returns, user), by_user(np.ones(len(returns)), user), 0.05)
    mean = own.mean
    apart = np.hypot(own.se, estimated.deployed.se)
    return OnPolicy(
        sessions=data.n_sessions,
        mean=mean,
        se=own.se,
        estimated=estimated.deployed.mean,
        z=float((estimated.deployed.mean - mean) / apart) if apart > 0 else 0.0,
    )
