import json

import numpy as np
import onnxruntime
import pytest
from safetensors.numpy import load, save

import mtf
from mtf.errors import InputError, IntegrityError
from mtf.policy import FILES, bootstrap_policy, load_policy
from tests.conftest import random_policy, small_spec


def test_round_trip_keeps_hash_and_actions(tmp_path):
    policy = random_policy()
    sha = policy.write(tmp_path / "bundle")
    again = mtf.load_policy(tmp_path / "bundle")
    states = np.random.default_rng(1).normal(size=(11, 3)).astype(np.float32)
    assert again.sha == sha == policy.sha
    assert (again.act(states) == policy.act(states)).all()
    assert again.lineage == policy.lineage


def test_same_policy_same_bytes_and_other_lineage_other_hash():
    assert random_policy(3).to_files() == random_policy(3).to_files()
    assert random_policy(3).sha != random_policy(4).sha


@pytest.mark.parametrize("n", [1, 7])
def test_onnx_gives_the_same_actions(tmp_path, n):
    policy = random_policy()
    policy.write(tmp_path / "b")
    states = np.random.default_rng(n).normal(size=(n, 3)).astype(np.float32) * 3
    session = onnxruntime.InferenceSession(tmp_path / "b" / "policy.onnx")
    assert np.abs(session.run(None, {"states": states})[0] - policy.act(states)).max() < 1e-5


def test_actions_stay_in_the_space():
    policy = random_policy()
    assert np.abs(policy.act(np.full((1, 3), 1e30, np.float32))).max() <= 1


def test_bad_states_are_named():
    policy = random_policy()
    with pytest.raises(InputError, match=r"takes \[n, 3\]"):
        policy.act(np.zeros((2, 4)))
    with pytest.raises(InputError, match="row 1, column 2"):
        policy.act(np.array([[0, 0, 0], [0, 0, np.nan]]))


def test_tampering_is_found(tmp_path):
    policy = random_policy()
    sha = policy.write(tmp_path / "b")
    other = random_policy(9).to_files()["policy.safetensors"]
    (tmp_path / "b" / "policy.safetensors").write_bytes(other)
    with pytest.raises(IntegrityError, match="expected"):
        load_policy(tmp_path / "b", sha)
    with pytest.raises(IntegrityError, match="golden"):
        load_policy(tmp_path / "b")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(tmp_path, name):
    random_policy().write(tmp_path / "b")
    (tmp_path / "b" / name).unlink()
    with pytest.raises(InputError, match=name):
        load_policy(tmp_path / "b")


def test_a_damaged_file_is_no_traceback(tmp_path):
    random_policy().write(tmp_path / "b")
    (tmp_path / "b" / "policy.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(InputError, match="damaged"):
        load_policy(tmp_path / "b")


@pytest.mark.parametrize(
    ("file", "name", "change", "says"),
    [
        ("policy", "mean", lambda _: None, r"array `mean` has shape None, its document says \(3,\)"),
        ("policy", "skip", lambda a: a[:-1], r"array `skip` has shape \(2, 4\), its document says \(3, 4\)"),
        ("policy", "weight_9", lambda _: np.zeros(2), r"array `weight_9` has shape \(2,\), its document says None"),
        ("golden", "actions", lambda _: None, r"array `actions` has shape None, its document says \(7, 4\)"),
        ("golden", "actions", lambda a: a * np.float32("nan"), "misses its golden actions by nan"),
    ],
)
def test_arrays_that_are_not_the_documents_are_named(tmp_path, file, name, change, says):
    random_policy().write(tmp_path / "b")
    path = tmp_path / "b" / f"{file}.safetensors"
    arrays = load(path.read_bytes())
    changed = change(arrays.pop(name, None))
    path.write_bytes(save(arrays | ({} if changed is None else {name: np.ascontiguousarray(changed, np.float32)})))
    with pytest.raises((InputError, IntegrityError), match=says):
        load_policy(tmp_path / "b")


def test_a_format_of_the_future_is_refused(tmp_path):
    random_policy().write(tmp_path / "b")
    path = tmp_path / "b" / "policy.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    with pytest.raises(InputError, match="format 99"):
        load_policy(tmp_path / "b")


def test_diverged_weights_are_refused():
    policy = random_policy()
    with pytest.raises(InputError, match="diverged"):
        type(policy)(policy.arrays | {"bias_0": np.full(8, np.nan)}, spec=None, lineage=policy.lineage)


def test_bootstrap_answers_the_start():
    spec = small_spec(start=(0.1, -0.2, 0.3, 0.0))
    actions = bootstrap_policy(spec).act(np.random.default_rng(0).normal(size=(4, 3)))
    assert np.allclose(actions, [spec.start] * 4)
