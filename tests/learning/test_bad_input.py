"""What cannot be learned from is refused by name, by every learner, before time is spent; so is another training's checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtf.errors import InputError, IntegrityError
from mtf.learning.registry import ALGORITHMS
from mtf.learning.run import train, train_on
from mtf.policy import Lineage, constant_policy, load_policy
from mtf.transitions.table import is_gate_user
from tests.conftest import small_spec
from tests.evaluation.conftest import make_sessions
from tests.transitions.files import LISTS, to_table, write_transitions

SLOPE = np.array([1.0, -1.0])
LEARNERS = sorted(set(ALGORITHMS) - {"es", "plug_in"})
"""Without those that need candidates, and say so (tests/commands/test_learn.py)."""


@pytest.fixture
def no_training(monkeypatch):
    """Whoever gets as far as fitting V has spent time."""

    def spent(*_):
        raise AssertionError("it went on to fit V")

    monkeypatch.setattr("mtf.learning.run.fit_value", spent)


def refused(data, says, algorithm="linear_advantage", **changes):
    with pytest.raises(InputError, match=says):
        train_on(data, None, **{"algorithm": algorithm, "baseline": "logged", "progress": False} | changes)


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize("algorithm", LEARNERS)
def test_one_session(algorithm):
    long = make_sessions(1, seed=0, slope=SLOPE, end=0.0, longest=60)
    refused(long, r"1 session\(s\) of training users.*log at least 20", algorithm)


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize("algorithm", sorted(set(LEARNERS) - {"bc"}))
def test_a_reward_that_never_differs(algorithm):
    data = make_sessions(50, seed=0, slope=SLOPE)
    refused(replace(data, reward=np.zeros_like(data.reward)), "`reward` is 0 in all of", algorithm)
    alike = make_sessions(50, seed=0, slope=SLOPE, end=1.0)
    refused(replace(alike, reward=np.ones_like(alike.reward)), "`reward` is 1 in all of 50 rows.*check", algorithm)


def test_where_only_the_length_of_sessions_differs_it_is_learned_with_a_warning():
    data = make_sessions(3000, seed=0, slope=SLOPE, leave=2.0)
    found = train_on(
        replace(data, reward=np.ones_like(data.reward)), None, algorithm="linear_advantage", baseline="logged", progress=False
    )
    assert any(w.startswith("constant_reward: every row earned 1;") for w in found.report["warnings"])
    move = found.policy.act(np.zeros((1, 3), np.float32))[0]
    assert move[0] > 0.05 > -0.05 > move[1]


@pytest.mark.usefixtures("no_training")
def test_rows_or_a_baseline_of_another_spec(tmp_path):
    spec, other = small_spec(), small_spec(power_high=(3.0, 2.0))
    data = make_sessions(50, seed=0, slope=np.zeros(4))
    table = to_table(data)
    made_by = pa.array([spec.version if i % 7 else other.version for i in range(len(data))])
    pq.write_table(table.append_column("spec_version", made_by), tmp_path / "x.parquet")
    settings = {"algorithm": "linear_advantage", "progress": False}
    with pytest.raises(InputError, match=f"`spec_version` is {other.version} in some rows, {spec.version} given"):
        train(tmp_path, None, baseline="logged", spec=spec, **settings)
    constant_policy(np.zeros(4), 3, spec=other, lineage=Lineage(algorithm="t")).write(tmp_path / "p")
    refused(replace(data, spec=spec), f"made for spec {other.version}.* are of {spec.version}", baseline=tmp_path / "p")


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize("name", ["lower", "upper", "center"])
def test_rows_that_do_not_say_what_they_were_drawn_from(tmp_path, name):
    pq.write_table(to_table(make_sessions(50, seed=0, slope=SLOPE)).drop_columns([name]), tmp_path / "x.parquet")
    with pytest.raises(InputError, match=rf"lacks the column\(s\) {name}"):
        train(tmp_path, None, algorithm="linear_advantage", baseline="logged", progress=False)


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize("mapped_from", [1, 10**6], ids=["mapped", "in memory"])
@pytest.mark.parametrize("lost", [None, float("nan")])
def test_explored_rows_whose_propensity_was_lost(tmp_path, mapped_from, lost):
    data = make_sessions(50, seed=0, slope=SLOPE)
    # two rows of a user that training reads: the one explored, the other did not, and has none for good reason
    row, other = [i for i in range(len(data)) if not is_gate_user(data.user_ids[data.user[i]])][100:102]
    density = [float(-np.log(0.6) * 2)] * len(data)
    density[row], density[other] = lost, None
    exploring = np.arange(len(data)) != other
    table = to_table(replace(data, exploring=exploring))
    if "exploring" not in table.column_names:
        table = table.append_column("exploring", pa.array(exploring))
    pq.write_table(table.append_column("log_propensity", pa.array(density, pa.float64())), tmp_path / "x.parquet")
    with pytest.raises(InputError, match=r"`log_propensity` is not known of 1 row\(s\) that explored \(the first: session"):
        train(tmp_path, None, algorithm="linear_advantage", baseline="logged", mapped_from=mapped_from, progress=False)


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(
    ("algorithm", "says", "settings"),
    [
        ("es", "es: needs a spec and the candidates' scores", {}),
        ("plug_in", "plug_in: needs a spec and the candidates' scores", {}),
        ("integrated_rl", "form = 'slate': 0 of [0-9]+ explored rows logged", {"form": "slate"}),
        ("unified_rl", "form = 'slate': 0 of [0-9]+ explored rows logged", {"form": "slate"}),
    ],
)
def test_no_candidates_where_they_are_needed(algorithm, says, settings):
    refused(make_sessions(50, seed=0, slope=SLOPE), says, algorithm, overrides=settings)


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize("algorithm", sorted(set(LEARNERS) - {"bc"}))
def test_bounds_that_were_logged_as_actions(algorithm):
    data = make_sessions(50, seed=0, slope=SLOPE)
    refused(replace(data, lower=data.lower + 1, upper=data.upper + 1), "`action` lies outside .* are offsets", algorithm)


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize("mapped_from", [1, 10**6], ids=["mapped", "in memory"])
@pytest.mark.parametrize("name", [*LISTS, "next_center", "next_lower", "next_upper", "behaviour"])
def test_a_number_that_is_not_finite(tmp_path, name, mapped_from):
    data = make_sessions(50, seed=0, slope=SLOPE)
    table = to_table(data)
    for extra in ("next_center", "next_lower", "next_upper"):
        table = table.append_column(extra, pa.array(getattr(data, extra).tolist(), pa.list_(pa.float32())))
    table = table.append_column("behaviour", pa.array([[0.0, 1.0, 0.0]] * len(data), pa.list_(pa.float32())))
    place = table.column_names.index(name)
    # the last value of a row in the middle, of a user that training reads
    row = next(i for i in range(100, len(data)) if not is_gate_user(table["user_id"][i].as_py()))
    for value in (float("nan"), float("inf"), None):
        rows = table.column(name).to_pylist()
        rows[row][-1] = value
        pq.write_table(table.set_column(place, name, pa.array(rows, table.schema.field(name).type)), tmp_path / "x.parquet")
        with pytest.raises(InputError, match=rf"`{name}`\[\d\] is (nan|inf) in row \d+; drop or mend"):
            train(tmp_path, tmp_path / "p", algorithm="bc", baseline="logged", mapped_from=mapped_from, progress=False)
        assert [f.name for f in tmp_path.iterdir()] == ["x.parquet"]


@pytest.mark.usefixtures("no_training")
def test_an_output_that_would_delete_what_it_should_not(tmp_path):
    """Folders of something else, files, and what is read."""
    rows = write_transitions(tmp_path / "rows", make_sessions(50, seed=0, slope=SLOPE))
    notes = tmp_path / "mine" / "sub" / "notes.txt"
    notes.parent.mkdir(parents=True)
    notes.write_text("keep me")
    parent = tmp_path / "p0"
    constant_policy(np.zeros(2), 3, spec=None, lineage=Lineage(algorithm="t")).write(parent)
    (tmp_path / "old" / "kept").mkdir(parents=True)
    (tmp_path / "old" / "policy.json").write_text("{}")
    (tmp_path / "older").mkdir()
    (tmp_path / "older" / "policy.json").write_text("{}")
    (box := tmp_path / "older" / "exploration.json").write_text("{}")
    before = sorted(tmp_path.rglob("*"))
    settings = {"algorithm": "corner", "progress": False, "baseline": str(parent), "checkpoints": tmp_path / "old" / "kept"}
    for out, says in (
        (rows, "rows is there, holds no policy.json and would be deleted; give a new or empty folder"),
        (tmp_path / "mine", "mine is there, holds no policy.json"),
        (notes, "notes.txt is there, holds no policy.json"),
        (parent, "--out .*p0 would replace baseline .*p0; give another folder"),
        (tmp_path / "old", "--out .*old would replace checkpoints .*old/kept"),
    ):
        with pytest.raises(InputError, match=says):
            train(rows, out, **settings)
    with pytest.raises(InputError, match=r"--out .*older would replace exploration .*exploration.json"):
        train(rows, tmp_path / "older", **settings, exploration=box)
    with pytest.raises(InputError, match=r"notes.txt is a file, not a folder; give another place"):
        train(rows, notes / "p", **settings)
    with pytest.raises(InputError, match=r"notes.txt is a file, not a folder; give another place"):
        train(rows, tmp_path / "new", **settings | {"checkpoints": notes})
    # checkpoints that are not there yet: they would make a folder that the bundle cannot take the place of
    for checkpoints in (tmp_path / "new", tmp_path / "new" / "kept"):
        with pytest.raises(InputError, match=r"--out .*new would replace checkpoints .*new"):
            train(rows, tmp_path / "new", **settings | {"checkpoints": checkpoints})
    assert sorted(tmp_path.rglob("*")) == before
    assert notes.read_text() == "keep me"


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"seed": 2**31}, "--seed 2147483648: keep it from 0 to 2147483646"),
        ({"seed": -1}, "--seed -1: keep it from 0"),
        ({"algorithm": "td3", "overrides": {"keep": "best", "held_out": "0"}}, "keep=best held_out=0: nobody is held out"),
        ({"algorithm": "td3", "overrides": {"steps": "7"}, "steps": 5}, "--steps 5, but --set steps=7; give one of the two"),
        ({"algorithm": "td3", "overrides": {"batch": "100000000000000"}}, "--set batch=1e[+]14: keep it from 1 to"),
        ({"algorithm": "slate_replay", "overrides": {"draws": "3"}}, "--set draws=3: keep it even and at least 4"),
        ({"algorithm": "naive", "overrides": {"head_lr": "0.1"}}, "--set head_lr=0.1: changes nothing where form=joint"),
        (
            {"algorithm": "integrated_rl", "overrides": {"continuous": "True"}},
            "--set continuous=1: changes nothing where target=phi",
        ),
        ({"algorithm": "integrated_rl", "overrides": {"alpha": "0"}}, "--set alpha=0: changes nothing where target=phi"),
        ({"algorithm": "cql_sac", "overrides": {"keep": "best"}}, "--set keep=best: cql_sac pushes its Q down"),
        ({"algorithm": "batch_rl", "overrides": {"lr": "0.1"}}, "--set lr: no such setting; there are .*vae_lr"),
        ({"algorithm": "naive", "steps": 10}, "--steps 10: the actor moves every 15 steps; take more, or --set delay="),
        ({"algorithm": "td3", "steps": 1}, "--steps 1: the actor moves every 2 steps; take more, or --set delay="),
        ({"algorithm": "td3_bc", "steps": 1}, "--steps 1: the actor moves every 2 steps; take more, or --set delay="),
    ],
)
def test_settings_that_make_no_sense(changes, says):
    refused(make_sessions(50, seed=0, slope=SLOPE), says, **changes)


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize("algorithm", ["slate_replay", "plug_in", "es"])
def test_candidates_of_a_width_that_cannot_be(algorithm):
    data = make_sessions(200, seed=0, slope=np.zeros(4), end=1.0, longest=1)
    whole = np.random.default_rng(0).random((len(data), 8)).astype("<f2")
    cut = pa.chunked_array([pa.array([row.tobytes()[: 7 if i == 5 else 16] for i, row in enumerate(whole)], pa.binary())])
    says = "cand_scores: row 5 has 7 bytes, no multiple of a candidate's 4"
    refused(replace(data, spec=small_spec(), cand_scores=cut), says, algorithm)


@pytest.mark.usefixtures("no_training")
def test_a_segment_that_is_no_column_or_logged_nothing():
    spec, data = small_spec(), make_sessions(200, seed=0, slope=np.zeros(4), end=1.0, longest=1)
    low = data.state[:, 0] <= np.median(data.state[:, 0])
    logged = pa.chunked_array([pa.array([b"" if some else bytes(16) for some in low], pa.binary())])
    data, name = replace(data, spec=spec, cand_scores=logged), spec.features[0].name
    refused(data, "segment=nosuch: no such column of the state; there are", "es", overrides={"segment": "nosuch"})
    says = f"es: no request with candidates where {name} <= .*use fewer segments"
    refused(data, says, "es", overrides={"segment": name, "segments": "2"})


def test_checkpoints_of_a_closed_form_are_said_to_be_ignored(tmp_path):
    data = make_sessions(100, seed=0, slope=SLOPE)
    found = train_on(data, None, algorithm="corner", baseline="logged", progress=False, checkpoints=tmp_path / "c")
    assert any(w.startswith("checkpoints_ignored: corner takes no optimiser steps") for w in found.report["warnings"])
    assert not (tmp_path / "c").exists()


def test_a_box_that_was_not_explored_is_warned_of(tmp_path):
    """Wider than the rows', or of another policy."""
    policy = constant_policy(np.zeros(2), 3, spec=None, lineage=Lineage(algorithm="t"))
    policy.write(tmp_path / "p")
    data = make_sessions(100, seed=0, slope=SLOPE, half_width=0.05)
    data = replace(data, policy_sha=np.full(len(data), policy.sha, object))

    def said(**changes):
        found = train_on(data, None, algorithm="corner", baseline=tmp_path / "p", progress=False, **changes)
        return [w for w in found.report["warnings"] if w.startswith(("wider_than_explored", "box_of_another_policy"))]

    assert said() == said(half_width=np.full(2, 0.05, np.float32), box_of=policy.sha) == []
    (wide,) = said(half_width=np.array([0.3, 0.05], np.float32))
    assert "dimension(s) 0 (0.3, explored 0.05);" in wide
    (other,) = said(half_width=np.full(2, 0.05, np.float32), box_of="f" * 64)
    assert f"is of policy ffffffffffff, the baseline is policy {policy.sha[:12]};" in other


def test_actions_that_are_not_centred_in_their_boxes_are_warned_of():
    """Ends that are not those of the draw: what lies in [-h, h] is said to be from [-h, 3 h]."""
    from mtf.learning.problem import prepare

    data = make_sessions(400, seed=0, slope=SLOPE)
    width = np.float32(data.upper[data.exploring].max())

    def said(upper):
        moved = np.where(data.exploring[:, None], np.float32(upper) * np.array([width, 0], np.float32), 0)
        changed = replace(data, upper=data.upper + moved, next_upper=data.next_upper + moved)
        return [w for w in prepare(changed, "logged").warnings if w.startswith("exploration_off_center")]

    assert said(0) == []
    (far,) = said(2)
    # the middle lies a half-width further: one in spreads of 1 / sqrt 3
    assert "lie on average -1.7" in far
    assert "(dimension 0)" in far
    assert "dimension 1" not in far


def test_explored_rows_of_held_out_users_alone():
    from mtf.learning.problem import prepare, users_held_out

    data = make_sessions(40, seed=0, slope=SLOPE)
    held = users_held_out(prepare(data, "logged"), 0.1)
    still = {n: np.where(held[:, None], getattr(data, n), 0).astype(np.float32) for n in ("action", "lower", "upper")}
    refused(replace(data, exploring=held, **still), "all explored rows are of the held-out users", "td3_bc")


def test_a_checkpoint_of_another_configuration_seed_or_data(tmp_path, monkeypatch):
    few = {"steps": "20", "batch": "32", "critics": "2", "checkpoint_every": "10", "distil_steps": "5"}
    data = make_sessions(60, seed=0, slope=SLOPE)
    first = {"algorithm": "integrated_rl", "overrides": few, "checkpoints": tmp_path}
    train_on(data, None, baseline="logged", progress=False, **first)
    says = "of other data, settings or code; give another folder, or delete this one"
    with monkeypatch.context() as soon:
        soon.setattr("mtf.learning.run.fit_value", lambda *_: pytest.fail("it went on to fit V"))
        foreign(data, says, first, few)
    # nobody wrote over what was there
    again = train_on(data, None, baseline="logged", progress=False, **first)
    assert again.report["algorithm"]["resumed_from"] == 20


def foreign(data, says, first, few):
    """Another training by its settings, seed, algorithm, or by any of what it reads of the data."""
    refused(data, says, **first | {"overrides": few | {"lam": "1"}})
    refused(data, says, **first | {"seed": 1})
    refused(data, says, **first | {"algorithm": "unified_rl"})
    refused(replace(data, reward=data.reward * 2), says, **first)
    refused(replace(data, value_mask=~data.value_mask), says, **first)
    refused(replace(data, user=data.user[::-1].copy()), says, **first)
    refused(replace(data, action=-data.action), says, **first)
    logged = pa.chunked_array([pa.array([b"\0\0" * 8] * len(data), pa.binary())])
    refused(replace(data, cand_scores=logged, spec=small_spec()), says, **first)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"overrides": {"nope": "1"}}, "--set nope: no such setting"),
        ({"baseline": "nowhere"}, "nowhere holds no policy.json"),
        ({"exploration": Path("nowhere.json")}, "nowhere.json does not exist"),
    ],
)
def test_what_needs_no_rows_is_looked_at_before_they_are_read(tmp_path, changes, says):
    settings = {"algorithm": "corner", "baseline": "logged", "progress": False} | changes
    with pytest.raises(InputError, match=says):
        train(tmp_path / "no rows", None, **settings)


def test_a_bundle_that_is_not_what_was_trained(tmp_path):
    rows = write_transitions(tmp_path / "rows", make_sessions(200, seed=0, slope=SLOPE))
    settings = {"algorithm": "bc", "overrides": {"distil_steps": "5"}, "progress": False}
    found = train(rows, tmp_path / "p", baseline="logged", **settings)
    assert load_policy(tmp_path / "p", found.sha).sha == found.sha
    document = tmp_path / "p" / "policy.json"
    document.write_bytes(document.read_bytes().replace(b'"seed": 0', b'"seed": 1'))
    with pytest.raises(IntegrityError, match=f"expected {found.sha}; fetch the bundle again"):
        load_policy(tmp_path / "p", found.sha)
    weights = tmp_path / "p" / "policy.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 0x40
    weights.write_bytes(data)
    with pytest.raises((InputError, IntegrityError), match=r"golden|diverged|not finite"):
        train(rows, tmp_path / "q", baseline=tmp_path / "p", **settings)
    assert not (tmp_path / "q").exists()
