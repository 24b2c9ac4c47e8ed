"""The shared loop: what is drawn, what is kept, and that a run that is killed ends as one that was not."""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mtf.errors import InputError
from mtf.learning import actor_critic, integrated_rl, parallel, trainer
from mtf.learning.backprop import Flat
from mtf.learning.batch_rl import BatchRL, BatchRLConfig
from mtf.learning.checkpoint import Checkpoints
from mtf.learning.config import with_overrides
from mtf.learning.cql_sac import CQLSAC, CQLSACConfig
from mtf.learning.ddpg import DDPG, DDPGConfig
from mtf.learning.integrated_rl import IntegratedAgent, IntegratedRLConfig
from mtf.learning.iql import IQL, IQLConfig
from mtf.learning.problem import prepare
from mtf.learning.progress import Progress
from mtf.learning.registry import algorithm
from mtf.learning.rows import Batch, tensors
from mtf.learning.td3 import TD3, TD3Config
from mtf.learning.td3_bc import TD3BC, TD3BCConfig
from mtf.learning.trainer import Agent, Trained, TrainerConfig, descend, draw, fit
from mtf.learning.value import fit_value
from tests.evaluation.conftest import make_sessions

CONFIG = IntegratedRLConfig(steps=120, batch=64, critics=3, checkpoint_every=30)
FEW = {"steps": 120, "batch": 64, "checkpoint_every": 30, "critic_hidden": (16,), "actor_hidden": (16,)}
NOISY = {
    "td3": (TD3, TD3Config(**FEW)),
    "td3_bc": (TD3BC, TD3BCConfig(**FEW)),
    "cql_sac": (CQLSAC, CQLSACConfig(**FEW)),
    "batch_rl": (BatchRL, BatchRLConfig(**FEW)),
}
"""Learners whose updates draw noise."""
QUIET = {"ddpg": (DDPG, DDPGConfig(**FEW)), "iql": (IQL, IQLConfig(**FEW))}
"""These, and `integrated_rl`, draw their first parameters alone."""
CONFIGS = {"integrated_rl": CONFIG} | {name: config for name, (_, config) in (NOISY | QUIET).items()}


@pytest.fixture(scope="module")
def problem():
    return prepare(make_sessions(300, seed=1, slope=np.array([1.0, 0.0])), "logged")


def run(problem, config, checkpoints=None):
    agent, rows = agent_of(problem, config), tensors(problem, 1.0)
    every = torch.arange(len(rows))
    returns = torch.from_numpy(fit_value(problem).ret)[:50]
    trained = fit(
        agent, rows, every[50:], every[:50], returns, config, seed=5, name="t", progress=Progress(False), checkpoints=checkpoints
    )
    return agent, trained


def state(agent):
    tensors = {f"m.{k}": v for k, v in agent.modules.state_dict().items()}
    for name, optimiser in agent.optimisers.items():
        for place, entries in optimiser.state_dict()["state"].items():
            tensors |= {f"{name}.{place}.{k}": torch.as_tensor(v) for k, v in entries.items()}
    return tensors | {"generator": agent.generator.get_state()}


def assert_equal(a, b):
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


class Forgetful(Checkpoints):
    """Gives everything back but the state of the noise."""

    def load(self, agent):
        before = agent.generator.get_state()
        found = super().load(agent)
        agent.generator.set_state(before)
        return found


@pytest.mark.parametrize("name", CONFIGS)
def test_2n_steps_are_n_and_a_resume_and_n(problem, tmp_path, name):
    config = CONFIGS[name]
    whole, trained = run(problem, config)
    store, copy = Checkpoints(tmp_path / "a", "f"), Forgetful(tmp_path / "b", "f")
    # the same schedule, cut short: everything that decides the second half lies in the checkpoint
    run_to(problem, store, 60, config)
    assert sorted(p.name for p in store.folder.iterdir()) == ["step-000000030", "step-000000060"]
    shutil.copytree(store.folder, copy.folder)
    resumed, again = run(problem, config, store)
    assert again.resumed == 60
    assert_equal(state(whole), state(resumed))
    assert again.curve == trained.curve
    assert again.best_step == trained.best_step
    assert sorted(p.name for p in store.folder.iterdir()) == ["step-000000090", "step-000000120"]
    # and it would show if the noise began anew
    _, anew = run(problem, config, copy)
    assert (anew.curve == trained.curve) is (name not in NOISY)


def run_to(problem, store, last, config=CONFIG):
    """Stop after the step `last`, as a kill would."""

    class StoppedError(Exception):
        pass

    class Stopping(Checkpoints):
        def save(self, agent, *, step, **rest):
            super().save(agent, step=step, **rest)
            if step == last:
                raise StoppedError

    with pytest.raises(StoppedError):
        run(problem, config, Stopping(store.folder, store.fingerprint))


def test_a_checkpoint_of_another_training_is_refused(problem, tmp_path):
    run_to(problem, Checkpoints(tmp_path, "f"), 30)
    with pytest.raises(InputError, match="other data, settings or code"):
        run(problem, CONFIG, Checkpoints(tmp_path, "g"))
    damaged = tmp_path / "step-000000030" / "state.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:100])
    with pytest.raises(InputError, match=r"cannot be read.*nor can one before it; delete"):
        run(problem, CONFIG, Checkpoints(tmp_path, "f"))


def test_where_the_newest_checkpoint_is_damaged_the_one_before_is_taken(problem, tmp_path):
    """As a power cut may leave it; the end is that of an undisturbed run."""
    store = Checkpoints(tmp_path, "f")
    run_to(problem, store, 60)
    assert store.verify() == []
    newest, before = sorted(tmp_path.glob("step-*"), reverse=True)
    cut = newest / "state.safetensors"
    cut.write_bytes(cut.read_bytes()[:-1])
    (warning,) = store.verify()
    assert warning.startswith(f"checkpoint_damaged: {newest} cannot be read") and "goes on from the one before" in warning
    agent, found = run(problem, CONFIG, store)
    assert found.resumed == int(before.name.removeprefix("step-"))
    assert_equal(state(agent), state(run(problem, CONFIG)[0]))


def test_a_batch_is_a_function_of_seed_and_step():
    pool = torch.arange(100, 1100)
    a, b = draw(pool, 70, 32, 1), draw(pool, 70, 32, 1)
    assert torch.equal(a, b)
    assert not torch.equal(a, draw(pool, 71, 32, 1))
    assert not torch.equal(a, draw(pool, 70, 32, 2))
    seen = torch.cat([draw(pool, step, 64, 3) for step in range(1, 200)])
    assert seen.min() >= 100
    assert seen.max() < 1100
    assert len(seen.unique()) > 990


class Line(Agent):
    """Fits w to 1 by gradient steps, then runs away: its best is on the way."""

    def __init__(self):
        self.modules = nn.ModuleDict({"w": nn.ParameterDict({"w": nn.Parameter(torch.zeros(()))})})
        self.w = self.modules["w"]["w"]
        self.optimisers = {"w": torch.optim.SGD([self.w], lr=1.0)}
        self.generator = torch.Generator()

    def update(self, batch: Batch, step: int):
        descend(self.optimisers["w"], -0.1 * self.w, [self.w])
        return {"loss": (self.w - 1).square().detach()}

    def values(self, batch: Batch):
        return self.w.expand(len(batch))


@pytest.mark.parametrize(("keep", "expected"), [("last", 2.0), ("best", 1.0)])
def test_last_and_best_on_held_out_users_are_told_apart(problem, keep, expected):
    rows, agent = tensors(problem, 1.0), Line()
    every = torch.arange(len(rows))
    config = TrainerConfig(steps=20, batch=4, keep=keep)
    trained = fit(agent, rows, every, every[:10], torch.ones(10), config, seed=0, name="t", progress=Progress(False))
    assert trained.best_step == 10
    assert float(agent.w.detach()) == pytest.approx(expected)


def test_held_out_users_judge_by_what_was_realised_on_their_own_rows(problem, monkeypatch):
    class Exact(Line):
        def values(self, batch: Batch):
            return batch.reward[:, 0]

    monkeypatch.setattr(trainer, "HELD_OUT_ROWS", 7)
    rows, held = tensors(problem, 1.0), torch.arange(100, 130)
    returns = rows.all.reward[held, 0] + 0.5
    config = TrainerConfig(steps=1, batch=4)
    found = fit(Exact(), rows, held, held, returns, config, seed=0, name="t", progress=Progress(False))
    assert found.curve[-1]["held_out"] == pytest.approx(0.25, rel=1e-5)


@pytest.mark.parametrize("name", ["td3_bc", "unified_rl"])
def test_returns_are_those_of_the_held_out_rows_in_the_critics_units(problem, name, monkeypatch):
    """Rewards of two heads, a quarter and three quarters: Q of all groups together is what the whole return is compared with."""
    given = {}

    def seen(agent, rows, pool, held, returns, *rest, **settings):
        given.update(agent=agent, rows=rows, held=held, returns=returns)
        return fit(agent, rows, pool, held, returns, *rest, **settings)

    kind = algorithm(name)
    monkeypatch.setattr(integrated_rl if name == "unified_rl" else actor_critic, "fit", seen)
    two = replace(problem, data=replace(problem.data, reward=problem.data.reward * np.array([0.25, 0.75], np.float32)))
    value = fit_value(two)
    kind.learn(two, value, with_overrides(kind.config, {"steps": "15", "batch": "32"}), seed=0, progress=Progress(False))
    held, returns = given["held"].numpy(), given["returns"].numpy()
    assert 0.05 < len(held) / len(two.data) < 0.2
    np.testing.assert_allclose(returns, value.ret[held] / value.ret.std(), rtol=1e-5)
    some = given["rows"].take(given["held"][:5])
    with torch.no_grad():
        critics, said = given["agent"].critics, given["agent"].values(some)
        if name == "unified_rl":
            each = critics.value(some.now) + critics.logged_part(some)
            torch.testing.assert_close(said, each[:8].mean(0) + each[8:].mean(0))
        else:
            torch.testing.assert_close(said, critics(some.now, some.u).mean(0))


def test_a_curve_that_still_falls_is_not_flat():
    falling = [{"step": float(i), "held_out": 1.0 / (i + 1)} for i in range(20)]
    assert not Trained(falling, 19, 0).flat
    assert not Trained([{**p, "held_out": 1 + p["step"] / 10} for p in falling], 19, 0).flat, "nor is one that rises"
    assert Trained([{**p, "held_out": max(p["held_out"], 0.3)} for p in falling], 19, 0).flat


def test_a_step_leaves_everything_else_untouched():
    chosen, other = nn.Parameter(torch.ones(())), nn.Parameter(torch.ones(()))
    optimiser = torch.optim.SGD([chosen, other], lr=0.1)
    descend(optimiser, chosen * other, [chosen])
    assert float(chosen.detach()) == pytest.approx(0.9)
    assert (float(other.detach()), other.grad) == (1.0, None)


@pytest.mark.parametrize("name", CONFIGS)
def test_no_loss_reaches_what_another_has_stepped(problem, name, monkeypatch):
    """Each optimiser's gradients are, when all have stepped, still those that it stepped by: a later loss added nothing."""
    agent, rows = agent_of(problem, replace(CONFIGS[name], tau=0.0)), tensors(problem, 1.0)
    stepped = {}
    for optimiser in agent.optimisers.values():
        optimiser.register_step_post_hook(lambda of, *_: stepped.update({of: [p.grad.clone() for p in parameters(of)]}))
    flat_step = Flat.step
    monkeypatch.setattr(
        Flat, "step", lambda of, by: (flat_step(of, by), stepped.update({of.adam: [p.grad.clone() for p in parameters(of.adam)]}))
    )
    # an actor begins at its last layer, which has to move before those below have a slope
    for step in range(1, 31):
        agent.update(rows.take(torch.arange(step, step + 64)), step)
    assert len(stepped) == len(agent.optimisers)
    for optimiser, gradients in stepped.items():
        assert any(gradient.any() for gradient in gradients)
        for p, gradient in zip(parameters(optimiser), gradients, strict=True):
            assert torch.equal(p.grad, gradient)


@pytest.mark.parametrize(("name", "still"), [(n, s) for n in CONFIGS if n != "iql" for s in ("actor", "critics")])
def test_a_step_of_the_one_leaves_the_other_untouched(problem, name, still):
    """Without a rate of its own the actor (of batch_rl the perturbation) or the critics stay as they were, to the bit."""
    agent, rows = agent_of(problem, CONFIGS[name]), tensors(problem, 1.0)
    still = "perturb" if (name, still) == ("batch_rl", "actor") else still
    if isinstance(agent, IntegratedAgent) and still == "critics":
        agent.rates = [0.0] * len(agent.rates)
    with torch.no_grad():
        # action heads begin at zero, where an actor has nothing to go by
        for p in agent.critics.parameters():
            p += 0.1
    for group in agent.optimisers[still].param_groups:
        group["lr"] = 0.0
    before = copy.deepcopy(agent.modules.state_dict())
    for step in range(1, 31):
        agent.update(rows.take(torch.arange(step, step + 64)), step)
    moved = {key.split(".")[0] for key, value in agent.modules.state_dict().items() if not torch.equal(value, before[key])}
    assert still not in moved
    assert {"actor", "perturb", "critics"} & set(agent.optimisers) - {still} <= moved


def agent_of(problem, config):
    rows = tensors(problem, 1.0)
    if isinstance(config, IntegratedRLConfig):
        return IntegratedAgent(problem, rows.all, config, 5)
    (made_by,) = (kind for kind, of in (NOISY | QUIET).values() if type(of) is type(config))
    return made_by(problem, rows.all, config, torch.Generator().manual_seed(5))


def parameters(optimiser):
    return [p for group in optimiser.param_groups for p in group["params"]]


def test_a_gradient_of_other_strides_steps_each_parameter_by_its_own():
    """The fused optimiser reads a transposed gradient in the order of its memory."""
    start, gradient = torch.zeros(2, 3), torch.tensor([[1.0, -1.0, 1.0], [1.0, 1.0, -1.0]])
    w = nn.Parameter(start.clone())
    descend(torch.optim.Adam([w], lr=0.1, fused=True), (w.T * gradient.T.contiguous()).sum(), [w])
    torch.testing.assert_close(w.detach(), start - 0.1 * gradient.sign())


SCRIPT = """
import sys
from pathlib import Path
import numpy as np
from mtf.learning.run import train_on
from tests.evaluation.conftest import make_sessions
data = make_sessions(400, seed=1, slope=np.array([1.0, 0.0]))
settings = {"steps": "1200", "batch": "256", "checkpoint_every": "100", "critics": "4"}
found = train_on(data, None, algorithm="integrated_rl", baseline="logged", overrides=settings, progress=False,
                 checkpoints=Path(sys.argv[1]) if len(sys.argv) > 1 else None)
print(found.sha, found.report["algorithm"]["resumed_from"])
"""


def test_a_training_that_is_killed_goes_on_to_the_same_bundle(tmp_path):
    def start(*arguments):
        return subprocess.Popen([sys.executable, "-c", SCRIPT, *arguments], stdout=subprocess.PIPE, text=True, cwd=Path.cwd())

    whole = start()
    killed = start(str(tmp_path))
    while len(list(tmp_path.glob("step-*"))) < 2:
        assert killed.poll() is None, "it ended before it could be killed"
        time.sleep(0.02)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    sha, _ = whole.communicate()[0].split()
    again, resumed = start(str(tmp_path)).communicate()[0].split()
    assert again == sha
    assert 200 <= int(resumed) < 1200


def test_a_batch_that_the_processes_do_not_divide_is_refused(problem, monkeypatch):
    monkeypatch.setattr(parallel, "size", lambda: 3)
    with pytest.raises(InputError, match=r"batch=64: 3 processes share it"):
        run(problem, CONFIG)


def torchrun():
    """A command that starts two processes; its port is chosen right before it is used."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = ("--master-addr", "127.0.0.1", "--master-port", str(free.getsockname()[1]))
    return (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *where)


def test_processes_in_parallel_see_the_losses_of_one_and_end_where_it_does(tmp_path):
    script = tmp_path / "parallel.py"
    script.write_text(
        "import json, sys\n"
        "from dataclasses import replace\n"
        "import numpy as np, torch\n"
        "from mtf.learning import parallel\n"
        "from tests.learning.test_trainer import CONFIGS, run\n"
        "from mtf.learning.problem import prepare\n"
        "from tests.evaluation.conftest import make_sessions\n"
        "torch.set_num_threads(1)\n"
        "problem = prepare(make_sessions(300, seed=1, slope=np.array([1.0, 0.0])), 'logged')\n"
        "with parallel.processes():\n"
        "    runs = {name: run(problem, replace(config, steps=30)) for name, config in CONFIGS.items()}\n"
        "    found = {\n"
        "        name: (trained.curve, torch.cat([p.detach().flatten() for p in agent.modules.parameters()]).tolist())\n"
        "        for name, (agent, trained) in runs.items()\n"
        "    }\n"
        "    if parallel.rank() == 0:\n"
        "        print(json.dumps([parallel.size(), found]))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path.cwd()), "OMP_NUM_THREADS": "1"}

    def outcome(*command):
        done = subprocess.run([*command, str(script)], capture_output=True, text=True, env=environment, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    (one, alone), (two, together) = outcome(sys.executable), outcome(*torchrun())
    assert (one, two) == (1, 2)
    for name in CONFIGS:
        (curve, parameters), (other, others) = alone[name], together[name]
        for a, b in zip(curve, other, strict=True):
            assert a == pytest.approx(b, rel=1e-4), name
        np.testing.assert_allclose(parameters, others, rtol=0, atol=1e-5, err_msg=name)


def test_the_command_under_torchrun_writes_one_bundle_like_that_of_one_process(tmp_path):
    from mtf.policy import load_policy
    from tests.transitions.files import write_transitions

    rows = write_transitions(tmp_path / "rows", make_sessions(400, seed=1, slope=np.array([1.0, -1.0])))
    mtf = Path(sys.executable).parent / "mtf"
    settings = ("--set", "batch=64", "--set", "critics=2", "--set", "distil_steps=20", "--steps", "60")
    common = ("train", "--transitions", str(rows), "--algorithm", "integrated_rl", "--baseline", "logged", *settings, "--out")
    for name in ("one", "two"):
        command = (*(torchrun() if name == "two" else ()), str(mtf), *common, str(tmp_path / name))
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("policy  ") == 1
    one, two = (json.loads((tmp_path / name / "train.json").read_text())["algorithm"]["curve"] for name in ("one", "two"))
    # rounding apart, a step is the same step
    assert one[0]["td_error"] == pytest.approx(two[0]["td_error"], rel=1e-3)
    states = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    first, second = (load_policy(tmp_path / name).act(states) for name in ("one", "two"))
    np.testing.assert_allclose(first, second, atol=0.01)


def test_settings_come_back_from_json():
    from mtf.learning.config import from_dict

    config = replace(CONFIG, keep="best", critic_hidden=(8, 8))
    assert from_dict(IntegratedRLConfig, config.to_dict()) == config
