import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtf.errors import IntegrityError
from mtf.quality.flatten import COLUMNS, create_transitions_view
from mtf.quality.rules import clean_predicates, mark_broken
from mtf.quality.transitions import validate_transitions
from mtf.transitions.build import build_day
from tests.quality import rows

NAN = float("nan")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The day's transitions.parquet: 60 sessions of four steps."""
    folder = tmp_path_factory.mktemp("built")
    logs = rows.logs_of(folder / "logs", *rows.day())
    build_day(logs, rows.DT, folder / "out", spec=rows.SPEC, expectations_dir=rows.EXPECTATIONS, threads=1)
    return folder / "out" / f"dt={rows.DT}" / "transitions.parquet"


def look(path, table):
    """{row: rules that it breaks}."""
    pq.write_table(table, path)
    con = duckdb.connect()
    create_transitions_view(con, path, rows.SPEC, rows.DT)
    mark_broken(con, "transitions", clean_predicates(rows.EXPECTATIONS, "transitions"))
    return {row: set(names) for row, names in con.execute("SELECT file_row, broken FROM transitions_broken").fetchall()}


def test_what_is_built_is_clean_and_has_every_column(built, tmp_path):
    assert look(tmp_path / "t.parquet", pq.read_table(built)) == {}
    con = duckdb.connect()
    create_transitions_view(con, built, rows.SPEC, rows.DT)
    found = con.execute(f"SELECT {', '.join(COLUMNS['transitions'])} FROM transitions_flat").fetchall()
    assert len(found) == 240


SPOILT = {
    "nan state": ("state", [NAN, 0.0, 0.0], "state_finite"),
    "short state": ("state", [0.0], "widths"),
    "nan action": ("action", [NAN, 0.0, 0.0, 0.0], "action_finite"),
    "outside its box": ("action", [-0.99, -0.99, -0.99, -0.99], "action_in_box"),
    "outside the space": ("center", [1.5, 0.0, 0.0, 0.0], "center_high"),
    "box upside down": ("lower", [0.1, 0.0, 0.0, 0.0], "box_lower"),
    "lost propensity": ("log_propensity", None, "propensity_logged"),
    "wrong propensity": ("log_propensity", 3.0, "propensity_agrees"),
    "negative reward": ("reward", [-1.0, 0.0], "reward_positive"),
    "nan reward": ("reward", [NAN, 0.0], "reward_finite"),
    "other reward": ("reward", [9.0, 0.0], "reward_agrees"),
    "negative behaviour": ("behaviour", [-1.0, 0.0, 0.0], "behaviour_positive"),
    "labels of more items": ("shown_valid", [0.0] * 9, "widths"),
    "nothing shown": ("n_shown", 0, "shown"),
    "negative step": ("step", -1, "step"),
    "both ends": ("truncated", True, "ends_once"),
    "after its end": ("next_state", [0.5, 0.0, 0.0], "next_at_end"),
    "nan successor": ("next_center", [NAN, 0.0, 0.0, 0.0], "next_finite"),
    "before its session": ("session_start", pa.scalar(rows.END, pa.timestamp("us", "UTC")).as_py(), "after_start"),
    "another day": ("dt", "2026-01-02", "day"),
    "another spec": ("spec_version", "0", "spec"),
    "half a candidate": ("cand_scores", b"\0\0\0", "candidate_bytes"),
}


@pytest.mark.parametrize(("column", "value", "rule"), SPOILT.values(), ids=SPOILT)
def test_a_spoilt_row_is_found(built, tmp_path, column, value, rule):
    table = pq.read_table(built)
    explored, ends = (np.array(table[c].to_pylist()) for c in ("exploring", "terminal"))
    row = int(np.flatnonzero(explored & ends)[2])
    found = look(tmp_path / "t.parquet", rows.put(table, column, row, value))
    assert set(found) == {row} and rule in found[row]


def judge(path, out, **kwargs):
    kwargs = {"unaccounted": 0, "expectations_dir": rows.EXPECTATIONS} | kwargs
    return validate_transitions(path, out, dt=rows.DT, revision=1, spec=rows.SPEC, threads=1, **kwargs)


def test_a_clean_day_passes_is_shown_and_is_judged_once(built, tmp_path):
    verdict = judge(built, tmp_path / "out")
    assert (verdict.status, verdict.reasons) == ("pass", [])
    assert verdict.counts == {"transitions": 240, "sessions": 60}
    table = pq.read_table(built)
    assert verdict.metrics["mean_session_length"] == 4
    assert verdict.metrics["mean_reward"] == pytest.approx(np.array(table["reward"].to_pylist()).sum(1).mean(), rel=1e-5)
    index = (tmp_path / "out" / "site" / "index.html").read_text()
    page = f"days/feed/{rows.DT}/transitions/index.html"
    assert page in index and "reward a request" in (tmp_path / "out" / "site" / page).read_text()
    written = (tmp_path / "out" / f"dt={rows.DT}" / "transitions" / "verdict.json").stat().st_mtime_ns
    assert judge(built, tmp_path / "out") == verdict
    assert (tmp_path / "out" / f"dt={rows.DT}" / "transitions" / "verdict.json").stat().st_mtime_ns == written


def test_sessions_that_do_not_hold_together_are_critical(built, tmp_path):
    """One defect a session, and each is counted by its own figure."""
    table = pq.read_table(built)
    table = rows.put(table, "next_state", 0, [0.1, 0.2, 0.3])  # session 0: the chain
    table = rows.put(table, "terminal", 5, True)  # session 1: an end in the middle
    for column, width in (("next_state", 3), ("next_center", 4), ("next_lower", 4), ("next_upper", 4)):
        table = rows.put(table, column, 5, [0.0] * width)
    table = rows.put(table, "terminal", 11, False)  # session 2: no end
    table = rows.put(table, "policy_sha", 13, "other")  # session 3: two policies
    table = rows.put(table, "step", 19, 7)  # session 4: a hole
    table = pa.concat_tables([table, table.slice(23, 1)])  # session 5: a row twice
    pq.write_table(table, tmp_path / "t.parquet")
    verdict = judge(tmp_path / "t.parquet", tmp_path / "out", unaccounted=3)
    assert verdict.status == "critical"
    found = {name: verdict.metrics[name] for name in ("chain_breaks", "early_ends", "unended_sessions", "mixed_sessions")}
    # what ends early, and what is repeated after its end, are broken chains too
    assert found == {"chain_breaks": 3, "early_ends": 2, "unended_sessions": 1, "mixed_sessions": 1}
    assert (verdict.metrics["repeated_requests"], verdict.metrics["broken_steps"]) == (1, 2)
    assert "neither here, nor carried over, nor dropped for a known reason: found 3" in " ".join(verdict.reasons)
    assert all(c.success for c in verdict.checks if c.suite == "transitions")


def test_a_file_that_is_none_is_named(tmp_path):
    (tmp_path / "t.parquet").write_bytes(b"nothing")
    with pytest.raises(IntegrityError, match=r"t\.parquet: no transitions that can be read"):
        judge(tmp_path / "t.parquet", tmp_path / "out")
    assert not list((tmp_path / "out").glob("dt=*/transitions"))
