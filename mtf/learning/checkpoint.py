"""Checkpoints of a training: parameters, targets, optimisers, noise, step. Tensors in safetensors, the rest in JSON.

    FOLDER/step-000001000/state.safetensors, state.json

A checkpoint appears whole, by a rename; the last two are kept, and where the newest is damaged the one before is taken. Reading
one never runs code from it.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from mtf.errors import InputError
from mtf.fileio import folder_atomic

if TYPE_CHECKING:
    from mtf.learning.trainer import Agent

KEPT = 2
Best = tuple[float, int, dict[str, torch.Tensor]]


class DamagedError(Exception):
    """A checkpoint of which a file is not whole."""


@dataclass(frozen=True)
class Checkpoint:
    """What the loop itself needs to go on; the agent has been set back to the step already."""

    step: int
    curve: list[dict[str, float]]
    best: Best


@dataclass(frozen=True)
class Checkpoints:
    """A folder of checkpoints of one training. fingerprint: of its data, settings, seed and code."""

    folder: Path
    fingerprint: str

    def verify(self) -> list[str]:
        """A warning for each damaged checkpoint that is newer than the one to go on from.

        Raises InputError where that is of another training, or where all are damaged, before time is spent on this one.
        """
        found = self._newest()
        return [f"checkpoint_damaged: {what}; it goes on from the one before" for what in (found[2] if found else ())]

    def save(self, agent: Agent, *, step: int, curve: list[dict[str, float]], best: Best) -> None:
        """Write the checkpoint of `step` and delete the oldest ones."""
        tensors = {f"module.{name}": value for name, value in agent.modules.state_dict().items()}
        tensors |= {f"best.{name}": value for name, value in best[2].items()}
        tensors["generator"] = agent.generator.get_state()
        for name, optimiser in agent.optimisers.items():
            for place, entries in optimiser.state_dict()["state"].items():
                tensors |= {f"optimiser.{name}.{place}.{key}": torch.as_tensor(value) for key, value in entries.items()}
        state = {"step": step, "curve": curve, "best_loss": best[0], "best_step": best[1], "fingerprint": self.fingerprint}
        with folder_atomic(self.folder / f"step-{step:09d}") as scratch:
            save_file({name: value.contiguous().clone() for name, value in tensors.items()}, scratch / "state.safetensors")
            (scratch / "state.json").write_text(json.dumps(state))
        for old in self._steps()[:-KEPT]:
            shutil.rmtree(old)

    def load(self, agent: Agent) -> Checkpoint | None:
        """Set `agent` to the newest checkpoint that is whole; None where there is none.

        Raises InputError where it was made of other data or settings or does not fit, or where all are damaged.
        """
        found = self._newest()
        if found is None:
            return None
        newest, state, _ = found
        try:
            tensors = load_file(newest / "state.safetensors")
            agent.modules.load_state_dict(_part(tensors, "module."))
            agent.generator.set_state(tensors["generator"])
            for name, optimiser in agent.optimisers.items():
                _load_optimiser(optimiser, _part(tensors, f"optimiser.{name}."))
            best = (float(state["best_loss"]), int(state["best_step"]), _part(tensors, "best."))
            return Checkpoint(int(state["step"]), state["curve"], best)
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise InputError(f"checkpoint: {newest} cannot be read: {error}; delete it to go on from the one before") from error

    def _newest(self) -> tuple[Path, dict[str, Any], list[str]] | None:
        """The newest one that is whole, its state, and what is wrong with those after it; None where there are none."""
        damaged: list[str] = []
        for folder in reversed(self._steps()):
            try:
                return folder, self._state(folder), damaged
            except DamagedError as error:
                damaged.append(str(error))
        if damaged:
            raise InputError(f"checkpoint: {damaged[0]}, nor can one before it; delete {self.folder} to begin anew")
        return None

    def _state(self, folder: Path) -> dict[str, Any]:
        """What state.json holds. Raises InputError where that is of another training, DamagedError where a file is not whole."""
        try:
            found: dict[str, Any] = json.loads((folder / "state.json").read_text())
            state = {key: found[key] for key in ("step", "curve", "best_loss", "best_step", "fingerprint")}
            with safe_open(folder / "state.safetensors", "pt"):  # its header says how long the file is
                pass
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise DamagedError(f"{folder} cannot be read: {error}") from error
        if state["fingerprint"] != self.fingerprint:
            raise InputError(
                f"checkpoint: {folder} is of other data, settings or code; give another folder, or delete this one to begin anew"
            )
        return state

    def _steps(self) -> list[Path]:
        return sorted(p for p in self.folder.glob("step-*") if (p / "state.json").exists())


def _load_optimiser(optimiser: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    entries: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        place, key = name.split(".", 1)
        entries.setdefault(int(place), {})[key] = value
    optimiser.load_state_dict({"state": entries, "param_groups": optimiser.state_dict()["param_groups"]})


def _part(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
