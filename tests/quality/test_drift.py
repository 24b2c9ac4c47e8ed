import json

import msgspec
import numpy as np
import pyarrow as pa
import pytest

from mtf.errors import InputError
from mtf.quality import read_verdict, sketch, validate_day
from mtf.quality.drift import Limits, Moved, judge, measure, psi, read_limits, reference_of, shift, violations
from mtf.quality.sketch import POINTS, Entry, entry
from tests.quality import rows

LIMITS = Limits(psi=0.1, shift=0.1, of_days=5, reference_days=14, at_least_days=5, at_least_users=200)


def day(mean=0.0, n=2000, seed=0, name="x"):
    return entry("state", name, "", np.random.default_rng(seed).normal(mean, 1, n))


def summary(mean, sd=1.0, n=10**9):
    """An entry of so many users that its mean is exact."""
    return Entry("state", "x", "", n, mean, sd, np.linspace(mean - sd, mean + sd, POINTS))


@pytest.mark.parametrize("zeros", [0, 0.3, 0.95])
def test_shares_are_read_off_the_quantiles_also_where_many_values_are_equal(zeros):
    rng = np.random.default_rng(0)
    values = np.where(rng.random(5000) < zeros, 0, rng.exponential(1, 5000))
    found = entry("rewards", "like", "", values)
    edges = np.array([-1.0, 0.0, 0.1, 1.0, 5.0, 100.0])
    true = np.array([(values <= e).mean() for e in edges])
    np.testing.assert_allclose(found.share_up_to(edges), true, atol=0.006)


def test_the_index_against_its_formula():
    # squares of uniforms: bin b of ten holds sqrt(b / 10) - sqrt((b - 1) / 10) where the reference holds a tenth
    grid = (np.arange(200_000) + 0.5) / 200_000
    reference, moved = entry("state", "x", "", grid), entry("state", "x", "", grid**2)
    p = np.diff(np.sqrt(np.arange(11) / 10))
    assert psi(moved, [reference]) == pytest.approx(((p - 0.1) * np.log(p / 0.1)).sum(), rel=0.02)
    assert psi(reference, [reference]) == 0


@pytest.mark.parametrize("n", [200, 1000, 20_000])
def test_the_index_of_an_ordinary_day_does_not_depend_on_its_rows(n):
    reference = [day(n=n, seed=s) for s in range(5)]
    found = [psi(day(n=n, seed=100 + s), reference) for s in range(40)]
    assert np.mean(found) < 4 / n and max(found) < LIMITS.psi


def test_a_constant_that_stays_is_no_drift_and_one_that_changes_is():
    # of float32 values, whose means differ in the last digits
    usual = [entry("actions", "center", "", np.full(n, np.float32(0.3))) for n in (300, 401, 512, 613, 777)]
    assert shift(entry("actions", "center", "", np.full(350, np.float32(0.3))), usual) == 0
    changed = entry("actions", "center", "", np.full(350, np.float32(0.31)))
    assert psi(changed, usual) > 1 and shift(changed, usual) == 1000
    assert psi(entry("actions", "center", "", np.full(350, np.float32(0.3))), usual) == 0


def test_shift_by_hand():
    # five days with means 0..4: variance 2.5, band t(.9995, 4) = 8.6103 times sqrt(2.5 * 6 / 5) = 14.913
    usual = [summary(float(m)) for m in range(5)]
    assert shift(summary(2 + 14.9), usual) == 0
    # 18 is 3.0868 beyond it; the feature's standard deviation is sqrt(1 + 2)
    assert shift(summary(20.0), usual) == pytest.approx(3.0868 / 3**0.5, rel=1e-3)
    assert shift(summary(-16.0), usual) == pytest.approx(-3.0868 / 3**0.5, rel=1e-3)


def test_what_is_measured_can_be_written():
    usual = [{("state", "x", ""): summary(float(m))} for m in range(5)]
    for mean in (2.0, 20.0, -20.0):
        (found,) = measure({("state", "x", ""): summary(mean)}, usual, LIMITS)
        assert msgspec.json.decode(msgspec.json.encode(found), type=Moved) == found


def test_many_rows_alone_are_no_drift():
    """Days of 100,000 users that differ by .03 sd, as days do: sampling errors would call that 6 standard errors."""
    means = np.random.default_rng(3).normal(0, 0.03, 40)
    days = [day(mean=m, n=100_000, seed=i) for i, m in enumerate(means)]
    for i in range(14, 40):
        (found,) = measure({days[i].key: days[i]}, [{d.key: d} for d in days[i - 14 : i]], LIMITS)
        assert not found.violates(LIMITS)


def test_values_that_many_users_share_are_the_same_number_before_and_after_the_file(tmp_path):
    twelfths = np.random.default_rng(0).integers(0, 13, 3000) / 12
    usual = entry("rewards", "click", "", twelfths[:2000])
    sketch.write(tmp_path / sketch.FILE, [usual])
    assert psi(entry("rewards", "click", "", twelfths[2000:]), list(sketch.read(tmp_path / sketch.FILE).values())) < 0.02


def moved(violates=True, name="x"):
    value = 0.5 if violates else 0.0
    return Moved(kind="state", name=name, group="", psi=value, shift=0, mean=0, usual=0, sd=1, users=1000, days=9)


@pytest.mark.parametrize(
    ("before", "today", "count"),
    [("0000", 1, 1), ("0110", 1, 3), ("1111", 1, 5), ("1111", 0, 0), ("11110000", 1, 1), ("", 1, 1), ("1010", 1, 3)],
)
def test_violations_are_counted_in_the_last_days_while_today_is_one(before, today, count):
    history = [[moved(bool(int(b))), moved(True, name="other")] for b in before]
    assert violations(moved(bool(today)), history, LIMITS) == count


def test_the_reference_ends_where_the_last_days_begin():
    days = [{("state", "x", ""): summary(float(i))} for i in range(30)]
    assert [d["state", "x", ""].mean for d in reference_of(days, LIMITS)] == list(range(12, 26))
    assert reference_of(days[:4], LIMITS) == []


def test_a_month_of_many_features_is_silent_and_a_shift_alarms_on_its_third_day():
    rng = np.random.default_rng(7)
    features, sketches, measured, alarms = 24, [], [], []
    for number in range(45):
        # from day 40 on the first feature lies .5 sd higher; ordinary days differ by .02
        means = rng.normal(0, 0.02, features) + 0.5 * (np.arange(features) == 0) * (number >= 40)
        entries = [entry("state", f"f{k}", "", rng.normal(m, 1, 1000)) for k, m in enumerate(means)]
        today = {e.key: e for e in entries}
        found = judge(today, sketches, measured, {"state": LIMITS})
        alarms.append([m.name for m, n in zip(found.moved, found.counts, strict=True) if n > 2])
        sketches.append(today)
        measured.append(found.moved)
    assert alarms[:42] == [[]] * 42
    assert alarms[42:] == [["f0"]] * 3
    assert sum(len(m) for m in measured[:40]) == 31 * features  # judged since day 9: five days and four before them


def test_what_a_policy_moves_is_not_compared_with_another_policys_days():
    old = [{("rewards", "reward", "policy a"): summary(1.0)} for _ in range(20)]
    new = Entry("rewards", "reward", "policy b", 5000, 9.0, 1.0, np.linspace(8, 10, POINTS))
    found = judge({new.key: new}, old, [[]] * 20, {"rewards": LIMITS})
    assert found.moved == [] and "no policy and box of today" in found.absent["rewards"]


def test_a_sketch_comes_back_from_its_file(tmp_path):
    entries = [day(n=300), entry("rewards", "reward", "policy a, no box", np.arange(100.0))]
    sketch.write(tmp_path / sketch.FILE, entries)
    found = sketch.read(tmp_path / sketch.FILE)
    assert list(found) == [e.key for e in entries]
    for e in entries:
        assert (found[e.key].n, found[e.key].mean, found[e.key].sd) == (e.n, e.mean, e.sd)
        np.testing.assert_allclose(found[e.key].quantiles, e.quantiles, rtol=1e-6)
    assert sketch.read(tmp_path / "none.parquet") == {}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"kwargs": {"column": "weather", "max_value": 2}}, "column = 'weather'"),
        ({"meta": {"violation": {"psi": 0.1}}}, "meta.violation"),
        ({"meta": {"rule": "other"}}, "with its name"),
    ],
)
def test_a_drift_rule_that_is_none_is_refused(tmp_path, change, says):
    folder = rows.suites(tmp_path / "suites")
    document = json.loads((folder / "drift.json").read_text())
    first = document["expectations"][0]
    first["meta"] |= change.pop("meta", {})
    first |= change
    (folder / "drift.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"drift\.json, expectation 0") as error:
        read_limits(folder)
    assert says in str(error.value)


@pytest.fixture(scope="module")
def few_days(tmp_path_factory):
    """(logs, out, suites): three ordinary days of 120 users, and a fourth with a moved feature and twice the users."""
    folder = tmp_path_factory.mktemp("drift")
    suites = rows.suites(folder / "suites")
    document = json.loads((suites / "drift.json").read_text())
    for expectation in document["expectations"]:
        expectation["kwargs"]["max_value"] = 0
        expectation["meta"]["violation"] |= {"of_days": 1, "at_least_days": 3, "at_least_users": 100, "psi": 0.3}
    (suites / "drift.json").write_text(json.dumps(document))
    for number in range(4):
        users, shifted = (250, 0.5) if number == 3 else (120, 0.0)
        requests, feedback = rows.day(users, seed=number, dt=f"2026-01-0{number + 1}", shifted=shifted)
        rows.logs_of(folder / "logs", requests, feedback, f"2026-01-0{number + 1}")
        validate_days(folder / "logs", folder / "out", suites, number)
    return folder / "logs", folder / "out", suites


def validate_days(logs, out, suites, number):
    dt = f"2026-01-0{number + 1}"
    return validate_day(logs, dt, out, spec=rows.SPEC, expectations_dir=suites, threads=1)


def test_a_moved_feature_and_an_unusual_volume_are_found_in_the_days_own_history(few_days):
    logs, out, _ = few_days
    for dt in ("2026-01-01", "2026-01-02", "2026-01-03"):
        assert read_verdict(out, dt).status == "pass"
    verdict = read_verdict(out, "2026-01-04")
    assert verdict.status == "warning"
    (volume,) = (r for r in verdict.reasons if "day.volume" in r)
    assert "found 1000, expected requests 240 to 960" in volume
    (state,) = (r for r in verdict.reasons if "drift.state" in r)
    assert "activity mean 1.0" in state and "(usually 0.5" in state and "1 of 1 days" in state
    # the policy answers to the state, so its centers moved, and the boxes that the edge cuts; the rest did not
    assert {r.split("(drift.")[1] for r in verdict.reasons if "(drift." in r} == {"state)", "actions)", "propensities)"}
    assert not [m for m in verdict.drift if m.psi > 0.3 and (m.name.startswith("position") or m.kind in ("scores", "rewards"))]
    assert {m.kind for m in verdict.drift} == set(sketch.KINDS)
    page = (out / "dt=2026-01-04" / "r1" / "summary.html").read_text()
    assert "Violating days" in page and "The last 4 days" in page


def test_the_sketch_agrees_with_the_rows(few_days):
    logs, out, _ = few_days
    requests, feedback = rows.day(250, seed=3, dt="2026-01-04", shifted=0.5)
    first = requests.take(pa.array(np.arange(0, 1000, 4)))
    found = sketch.read(out / "dt=2026-01-04" / "r1" / sketch.FILE)
    state = np.array(first["state"].to_pylist())
    assert found["state", "activity", ""].mean == pytest.approx(state[:, 0].mean())
    assert found["state", "activity", ""].n == 250
    explored = np.array(first["exploring"].to_pylist())
    key = next(k for k in found if k[1] == "reward" and k[2].endswith(", box box"))
    watch = feedback["watch_s"].to_numpy().reshape(250, 12).astype(float)
    valid = feedback["valid"].to_numpy().reshape(250, 12)
    reward = (0.01 * np.minimum(watch, 600) + 0.5 * valid).sum(1)[explored]
    assert (found[key].n, found[key].mean) == (len(reward), pytest.approx(reward.mean()))
    assert not [k for k in found if k[1] == "position bias watch"]  # that dimension of the box has no width


def test_an_edited_limit_moves_the_verdict_without_the_old_logs(few_days, tmp_path):
    import shutil

    logs, out, suites = few_days
    copy = tmp_path / "out"
    shutil.copytree(out, copy)
    lone = rows.logs_of(tmp_path / "logs", *rows.day(250, seed=3, dt="2026-01-04", shifted=0.5), "2026-01-04")
    document = json.loads((suites / "drift.json").read_text())
    folder = tmp_path / "suites"
    shutil.copytree(suites, folder)
    for expectation in document["expectations"]:
        expectation["meta"]["violation"] |= {"psi": 50.0, "shift": 50.0}
    (folder / "drift.json").write_text(json.dumps(document))
    verdict = validate_days(lone, copy, folder, 3)
    assert not [r for r in verdict.reasons if "drift." in r] and len(verdict.drift) > 10
    strict = msgspec.structs.replace(LIMITS, psi=0.3)
    assert any(m.violates(strict) for m in verdict.drift)
