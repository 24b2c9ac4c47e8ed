import dataclasses

import numpy as np
import pytest

from mtf import box
from mtf.contracts import check_table, requests_schema
from mtf.contracts.ids import days, milliseconds
from mtf.errors import InputError
from mtf.fusion import rank
from mtf.policy import bootstrap_policy
from mtf.rollout.document import Arms, PolicyRef
from mtf.serving.engine import Engine, RankBatch
from tests.conftest import random_policy, small_spec
from tests.serving.test_arms import document

SPEC = small_spec()
TS = 1_767_225_600_000_000  # 2026-01-01


def batch(n=400, candidates=8, seed=0):
    rng = np.random.default_rng(seed)
    scores = (rng.random((n, candidates, 2)) * [1, 60]).astype(np.float32)
    items = np.arange(n * candidates).reshape(n, candidates)
    return RankBatch([f"u{i}" for i in range(n)], TS + np.arange(n) * 1000, rng.random((n, 2)).astype(np.float32), items, scores)


@pytest.fixture
def engine():
    champion, canary = bootstrap_policy(SPEC), random_policy(1, spec=SPEC)
    doc = document(Arms(explore=0.4, canary=0.3, control=0.3))
    import msgspec

    doc = msgspec.structs.replace(
        doc,
        champion=PolicyRef(sha=champion.sha, version="1", uri=""),
        bootstrap=PolicyRef(sha=champion.sha, version="1", uri=""),
        canary=PolicyRef(sha=canary.sha, version="2", uri=""),
    )
    return Engine(SPEC, doc, {champion.sha: champion, canary.sha: canary})


def columns(table, *names):
    return [np.array(table.column(n).to_pylist(), float) for n in names]


def test_rows_hold_the_contract_and_what_was_done(engine):
    given = batch()
    found = engine.decide(given, np.random.default_rng(0), TS)
    rows = check_table(found.rows, requests_schema(), "requests")
    action, center, lower, upper = columns(rows, "action", "center", "lower", "upper")
    exploring = np.array(rows.column("exploring").to_pylist())
    arms = np.array(rows.column("arm").to_pylist())
    assert (exploring == (arms == "explore")).all()
    assert box.contains(action, center, lower, upper).all()
    assert (action[~exploring] == center[~exploring]).all()
    propensity = rows.column("log_propensity").to_pylist()
    assert all((p is None) == (not e) for p, e in zip(propensity, exploring, strict=True))
    assert np.allclose([p for p in propensity if p is not None], box.log_density(lower, upper)[exploring], atol=1e-5)
    shown = rank(SPEC, action.astype(np.float32), given.scores)
    assert (found.shown == shown).all()
    assert rows.column("item_ids").to_pylist()[3] == given.item_ids[3, shown[3]].tolist()
    assert np.allclose(rows.column("scores").to_pylist()[3], given.scores[3, shown[3]].reshape(-1))


def test_candidates_are_logged_where_explored_in_half_precision(engine):
    given = batch()
    rows = engine.decide(given, np.random.default_rng(0), TS).rows
    for i, (data, exploring, ids) in enumerate(
        zip(
            rows.column("cand_scores").to_pylist(),
            rows.column("exploring").to_pylist(),
            rows.column("cand_item_ids").to_pylist(),
            strict=True,
        )
    ):
        if not exploring:
            assert data is None
            assert ids is None
        else:
            assert np.frombuffer(data, "<f2").tolist() == given.scores[i].astype("<f2").reshape(-1).tolist()
            assert ids == given.item_ids[i].tolist()


def test_each_arm_has_its_policy_and_the_rollout_is_named(engine):
    rows = engine.decide(batch(), np.random.default_rng(0), TS).rows.to_pylist()
    versions = {row["arm"]: row["policy_version"] for row in rows}
    assert versions == {"explore": "1", "control": "1", "canary": "2"}


def test_ids_carry_the_event_time(engine):
    found = engine.decide(batch(), np.random.default_rng(0), TS)
    assert milliseconds(found.rows.column("request_id"))[5] == TS // 1000 + 5
    assert set(days(found.rows.column("request_id"))) == {"2026-01-01"}
    assert len(set(found.request_ids)) == 400


def test_same_seed_same_rows(engine):
    first, second = (engine.decide(batch(), np.random.default_rng(7), TS).rows for _ in range(2))
    assert first.equals(second)


def test_scores_that_are_no_numbers_fall_back_and_are_not_explored(engine):
    given = batch()
    given.scores[2, 0, 0] = np.nan
    given.scores[3, 1, 1] = -1
    rows = engine.decide(given, np.random.default_rng(0), TS).rows.to_pylist()
    assert [i for i, row in enumerate(rows) if row["fallback"]] == [2, 3]
    assert not rows[2]["exploring"]
    assert not rows[3]["exploring"]


def test_a_policy_that_is_not_loaded_is_named(engine):
    with pytest.raises(InputError, match="not loaded"):
        Engine(SPEC, engine.document, {})


def test_what_pads_the_candidates_is_no_score(engine):
    """A batch of unequal lists, padded with NaN: real candidates alone can be unusable."""
    given = batch()
    counts = np.full(400, 5)
    scores = given.scores.copy()
    scores[:, 5:] = np.nan
    scores[7, 4, 0] = np.nan
    padded = dataclasses.replace(given, scores=scores, n_candidates=counts)
    rows = engine.decide(padded, np.random.default_rng(0), TS).rows.to_pylist()
    assert [i for i, row in enumerate(rows) if row["fallback"]] == [7]
    assert sum(row["exploring"] for row in rows) > 100


def test_scores_too_large_for_half_precision_are_logged_as_its_largest(engine):
    given = batch()
    given.scores[:, 0, 1] = 70_000
    rows = engine.decide(given, np.random.default_rng(0), TS).rows.to_pylist()
    logged = [np.frombuffer(row["cand_scores"], "<f2") for row in rows if row["exploring"]]
    assert len(logged) > 100
    assert all(values.max() == 65_504 for values in logged)
