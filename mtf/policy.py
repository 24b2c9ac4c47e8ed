"""The policy bundle: an immutable folder, addressed by its content hash, that runs in NumPy.

    policy.json          spec (null for data of other makers), architecture, lineage
    policy.safetensors   float32 arrays: scaler and weights
    policy.onnx          the same function for other runtimes, scaler inside
    golden.safetensors   states and the actions that they must give; checked at every load

Loading reads JSON and arrays; it never runs code from the bundle. The server and every evaluator run `Policy.act`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from mtf.errors import InputError, IntegrityError
from mtf.fileio import folder_atomic
from mtf.spec import FusionSpec

FORMAT = 1
FILES = ("policy.json", "policy.safetensors", "policy.onnx", "golden.safetensors")
GOLDEN_TOLERANCE = 1e-5


class Lineage(msgspec.Struct, frozen=True, kw_only=True):
    """What a policy was made from. The registry's run id is a tag of the version, not in here: same training, same hash."""

    algorithm: str
    config: dict[str, object] = {}
    seed: int | None = None
    dataset_md5: str | None = None
    dataset_revision: str | None = None
    code_sha: str | None = None
    parent: str | None = None


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """policy.json."""

    format: int = FORMAT
    state_width: int
    action_width: int
    hidden: tuple[int, ...]
    scaler_clip: float
    spec: FusionSpec | None
    lineage: Lineage


class Policy:
    """A deterministic policy: state -> normalised action.

    `z = clip((s - mean) / scale, +-scaler_clip)`; `a = clip(skip z + W_n relu(... relu(W_0 z + b_0)) + b_n, -1, 1)`.

    arrays: `mean`, `scale` [S]; `skip` [S, A]; `weight_i` [in, out] and `bias_i` [out] for i = 0..len(hidden).
    """

    def __init__(
        self, arrays: dict[str, np.ndarray], *, spec: FusionSpec | None, lineage: Lineage, scaler_clip: float = 5.0
    ) -> None:
        self.arrays = {name: np.ascontiguousarray(a, np.float32) for name, a in sorted(arrays.items())}
        n_layers = sum(name.startswith("weight_") for name in self.arrays)
        weights = [self.arrays[f"weight_{i}"] for i in range(n_layers)]
        self.state_width = len(self.arrays["mean"])
        self.action_width = int(weights[-1].shape[1])
        self.hidden = tuple(int(w.shape[1]) for w in weights[:-1])
        self.spec = spec
        self.lineage = lineage
        self.scaler_clip = scaler_clip
        self._layers = [(w, self.arrays[f"bias_{i}"]) for i, w in enumerate(weights)]
        for name, array in self.arrays.items():
            if not np.isfinite(array).all():
                raise InputError(f"policy: array `{name}` holds a value that is not finite; the training diverged")
        if spec is not None and (spec.state_width, spec.action_width) != (self.state_width, self.action_width):
            raise InputError(
                f"policy: maps {self.state_width} -> {self.action_width}, "
                f"its spec {spec.state_width} -> {spec.action_width}; train with the spec of the data"
            )

    def act(self, states: np.ndarray) -> np.ndarray:
        """Raw states float32 [n, S] -> actions float32 [n, A] in [-1, 1]. Raises InputError on another width or a NaN."""
        states = np.asarray(states, np.float32)
        if states.ndim != 2 or states.shape[1] != self.state_width:
            raise InputError(f"states: shape {states.shape}; this policy takes [n, {self.state_width}]")
        if not np.isfinite(states).all():
            row, column = np.argwhere(~np.isfinite(states))[0]
            raise InputError(f"states: row {row}, column {column} is {states[row, column]}; fill missing values first")
        z = np.clip((states - self.arrays["mean"]) / self.arrays["scale"], -self.scaler_clip, self.scaler_clip)
        h = z
        for weight, bias in self._layers[:-1]:
            h = np.maximum(h @ weight + bias, 0)
        weight, bias = self._layers[-1]
        return np.clip(z @ self.arrays["skip"] + h @ weight + bias, -1, 1).astype(np.float32)

    @property
    def sha(self) -> str:
        """Content hash (hex SHA-256) of the bundle."""
        if not hasattr(self, "_sha"):
            self._sha = hash_files(self.to_files())
        return self._sha

    def to_files(self) -> dict[str, bytes]:
        """The bundle as {file name: bytes}; equal policies give equal bytes."""
        document = Document(
            state_width=self.state_width,
            action_width=self.action_width,
            hidden=self.hidden,
            scaler_clip=self.scaler_clip,
            spec=self.spec,
            lineage=self.lineage,
        )
        z = np.random.default_rng(0).standard_normal((7, self.state_width)).astype(np.float32)
        states = self.arrays["mean"] + z * self.arrays["scale"]
        return {
            "policy.json": msgspec.json.format(msgspec.json.encode(document, order="sorted"), indent=2) + b"\n",
            "policy.safetensors": save_arrays(self.arrays),
            "policy.onnx": self._to_onnx(),
            "golden.safetensors": save_arrays({"states": states, "actions": self.act(states)}),
        }

    def write(self, folder: Path) -> str:
        """Write the bundle at `folder` (replacing an earlier one) and return its hash. Raises InputError for another folder."""
        files = self.to_files()
        with folder_atomic(Path(folder), "policy.json") as scratch:
            for name, data in files.items():
                (scratch / name).write_bytes(data)
        return hash_files(files)

    def _to_onnx(self) -> bytes:
        from onnx import TensorProto, helper, numpy_helper

        arrays = dict(self.arrays)
        clip = np.array(self.scaler_clip, np.float32)
        arrays |= {"z_low": -clip, "z_high": clip, "a_low": np.array(-1, np.float32), "a_high": np.array(1, np.float32)}
        nodes = [
            helper.make_node("Sub", ["states", "mean"], ["centred"]),
            helper.make_node("Div", ["centred", "scale"], ["scaled"]),
            helper.make_node("Clip", ["scaled", "z_low", "z_high"], ["z"]),
            helper.make_node("MatMul", ["z", "skip"], ["skipped"]),
        ]
        h = "z"
        for i in range(len(self._layers)):
            nodes.append(helper.make_node("Gemm", [h, f"weight_{i}", f"bias_{i}"], [f"layer_{i}"]))
            h = f"layer_{i}"
            if i < len(self.hidden):
                nodes.append(helper.make_node("Relu", [h], [f"relu_{i}"]))
                h = f"relu_{i}"
        nodes.append(helper.make_node("Add", ["skipped", h], ["sum"]))
        nodes.append(helper.make_node("Clip", ["sum", "a_low", "a_high"], ["actions"]))
        graph = helper.make_graph(
            nodes,
            "policy",
            [helper.make_tensor_value_info("states", TensorProto.FLOAT, ["n", self.state_width])],
            [helper.make_tensor_value_info("actions", TensorProto.FLOAT, ["n", self.action_width])],
            [numpy_helper.from_array(np.ascontiguousarray(a), name) for name, a in arrays.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="mtf")
        return bytes(model.SerializeToString(deterministic=True))


def load_policy(path: str | Path, expect_sha: str | None = None) -> Policy:
    """Load a bundle, verify it and check its golden outputs.

    Raises InputError where the folder is no bundle, IntegrityError where its hash is not `expect_sha` or its golden
    states no longer give their actions.
    """
    folder = Path(path)
    files = {}
    for name in FILES:
        try:
            files[name] = (folder / name).read_bytes()
        except OSError:
            raise InputError(f"policy: {folder} holds no {name}; give the folder that `mtf train --out` wrote") from None
    return policy_from_files(files, str(folder), expect_sha)


def policy_from_files(files: dict[str, bytes], where: str, expect_sha: str | None = None) -> Policy:
    """`load_policy` for a bundle that is already in memory."""
    sha = hash_files(files)
    if expect_sha is not None and sha != expect_sha:
        raise IntegrityError(f"policy: {where} has hash {sha}, expected {expect_sha}; fetch the bundle again")
    try:
        document = msgspec.json.decode(files["policy.json"], type=Document)
        arrays = load_arrays(files["policy.safetensors"])
        golden = load_arrays(files["golden.safetensors"])
    except (msgspec.MsgspecError, SafetensorError) as error:
        raise InputError(f"policy: {where} is damaged: {error}") from error
    if document.format != FORMAT:
        raise InputError(f"policy: {where} has format {document.format}; this release reads {FORMAT}")
    _require_shapes(arrays, golden, document, where)
    policy = Policy(arrays, spec=document.spec, lineage=document.lineage, scaler_clip=document.scaler_clip)
    worst = float(np.abs(policy.act(golden["states"]) - golden["actions"]).max(initial=0))
    if not worst <= GOLDEN_TOLERANCE:  # no number is not small
        raise IntegrityError(f"policy: {where} misses its golden actions by {worst:.2g} (allowed {GOLDEN_TOLERANCE})")
    policy._sha = sha
    return policy


def _require_shapes(arrays: dict[str, np.ndarray], golden: dict[str, np.ndarray], document: Document, where: str) -> None:
    """Raises InputError where the arrays are not those of the document's widths."""
    state, action, widths = document.state_width, document.action_width, (*document.hidden, document.action_width)
    wanted = {"mean": (state,), "scale": (state,), "skip": (state, action)}
    for i, (fan_in, fan_out) in enumerate(zip((state, *document.hidden), widths, strict=True)):
        wanted |= {f"weight_{i}": (fan_in, fan_out), f"bias_{i}": (fan_out,)}
    n = len(golden["states"]) if "states" in golden else 0
    for of, shapes in ((arrays, wanted), (golden, {"states": (n, state), "actions": (n, action)})):
        found = {name: array.shape for name, array in of.items()}
        for name in sorted(set(found) ^ set(shapes)) or [name for name in shapes if found[name] != shapes[name]]:
            raise InputError(
                f"policy: {where} is damaged: array `{name}` has shape {found.get(name)}, its document says {shapes.get(name)}; "
                "fetch the bundle again"
            )


def constant_policy(
    action: Sequence[float] | np.ndarray, state_width: int, *, spec: FusionSpec | None, lineage: Lineage
) -> Policy:
    """The policy that answers `action` [A] to every state."""
    action = np.asarray(action, np.float32)
    arrays = {
        "mean": np.zeros(state_width),
        "scale": np.ones(state_width),
        "skip": np.zeros((state_width, len(action))),
        "weight_0": np.zeros((state_width, len(action))),
        "bias_0": action,
    }
    return Policy(arrays, spec=spec, lineage=lineage)


def bootstrap_policy(spec: FusionSpec) -> Policy:
    """Production before any learning: the spec's start, for everybody."""
    return constant_policy(spec.start, spec.state_width, spec=spec, lineage=Lineage(algorithm="bootstrap"))


def hash_files(files: dict[str, bytes]) -> str:
    """Hex SHA-256 over the sorted (name, SHA-256 of the bytes) of a bundle's files."""
    lines = [f"{name} {hashlib.sha256(data).hexdigest()}\n" for name, data in sorted(files.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
