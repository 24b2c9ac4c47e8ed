"""The tables of a simulated world, and their folder: one form, filled by presets or by a fit to a real log.

    spec.json           the FusionSpec of the surface
    world.json          every scalar, and for every scalar and array its label and source
    world.safetensors   the arrays

A label says what a figure rests on: `learned` (fitted to a log), `borrowed` (a published figure), `assumed` (our choice).

Three things are kept apart. The *truth* (`true_*`) is what users would do. The *scores* (`score_*`) are another model's
view of it, the only thing that fusion sees. *Feedback* is one draw from the truth.

Linear predictors, for user u, item v with tag t(v) and duration bucket d(v), head h of HEADS:
    eta[u, v, h] = intercept[h] + user[u, h] + item[v, h] + user_tag[u, t(v), h] + user_duration[u, d(v), h]
The truth adds a same-day effect, normal with sd `day_sd[h]`, drawn a user and day. Its heads mean
    click     logit of a click
    valid     logit of watching more than 10 s *given a click* (without a click there is none)
    watch     shift of the logit of the quantile of the watch time, within the response's class
    like      logit of a like, plus `like_class[class]`
    interact  logit of any other interaction, plus `interact_class[class]`
with the classes 0 = no click, 1 = click and at most 10 s, 2 = valid. The watch time in seconds is
`watch_quantiles[class, duration bucket]`, read at sigmoid(logit(uniform) + eta_watch).
The scores add `score_noise[h]` times a fixed normal of the pair (user, item), and are sigmoid(eta) for click, valid
(unconditional here), like and interact, and expm1(eta) seconds for watch.

Leaving: after each request a user leaves with probability
    leave_base * exp(user_leave[u] + leave_elasticity * (leave_offset - leave_satisfaction * satisfaction
                     + leave_repetition * repetition + leave_disappointment * disappointment)), kept within [.005, .8],
satisfaction = mean over the shown items of P(valid) + 4 P(like) + 2 P(interact), all by the truth;
repetition = share of the shown items whose tag was shown higher up in the same request;
disappointment = share of the shown items that were clicked and then watched for 10 s or less.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from mtf.errors import InputError
from mtf.fileio import folder_atomic
from mtf.spec import FusionSpec

FORMAT = 2
MARK = "world.json"
HEADS = ("click", "valid", "watch", "like", "interact")
BEHAVIOURS = ("watch", "click", "valid", "like", "interact")
CLASSES = ("no click", "click, at most 10 s", "valid")
VALID_S = 10.0

Label = Literal["learned", "borrowed", "assumed"]
Five = tuple[float, float, float, float, float]
Three = tuple[float, float, float]


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """What a scalar or an array rests on. `text` names the key, paper or reason."""

    label: Label
    text: str


class Scalars(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Every number of a world that is not a table. Five numbers are in the order of HEADS, three in that of CLASSES."""

    true_intercept: Five
    like_class: Three
    interact_class: Three
    day_sd: Five = (0.0, 0.0, 0.0, 0.0, 0.0)
    score_intercept: Five
    score_noise: Five = (0.0, 0.0, 0.0, 0.0, 0.0)
    n_candidates: int = 40
    leave_base: float = 1 / 13.55
    leave_elasticity: float = 1.0
    leave_offset: float = 0.0
    leave_satisfaction: float = 3.0
    leave_repetition: float = 0.8
    leave_disappointment: float = 3.0
    history_rate: float = 0.15
    start_hour_low: float = 0.0
    start_hour_high: float = 19.0
    pause_low_s: float = 8.0
    pause_high_s: float = 24.0


@dataclass(frozen=True, eq=False)
class WorldParams:
    """A world's tables. U users, V items, T tags, D duration buckets, P profile columns, Q quantiles; H = K = 5 heads.

    Floats may be float16 or float32. Every scalar's and array's name must be a key of `sources`.

    user_key int64 [U], item_key int64 [V]: ids; a user is called f"u{key}".
    user_weight [U]: chance to come on a day, up to a factor. user_leave [U]: log factor on the hazard.
    user_group int [U]: 0..G-1; for reports alone, its effects are inside the tables.
    user_circle int64 [U]: users of one circle share each day's effect; each user is his own where nobody shares.
    profile [U, P]: what a caller sends about a user; columns `profile_names` (features of source caller).
    history [U, 5]: where the averages `recent:<behaviour>` start each day, per impression, in the order of BEHAVIOURS.
    item_tag int [V], item_bucket int [V]: indices. item_duration_s [V]: NaN where unknown.
    item_exposure [V]: chance to be a candidate, up to a factor.
    watch_quantiles [3, D, Q]: seconds at the quantiles 0, 1/(Q-1), ..., 1; class 2 above 10 s, the others at most 10 s.
    """

    name: str
    kind: Literal["parametric", "fitted"]
    spec: FusionSpec
    scalars: Scalars
    user_key: np.ndarray
    user_weight: np.ndarray
    user_leave: np.ndarray
    user_group: np.ndarray
    user_circle: np.ndarray
    profile: np.ndarray
    history: np.ndarray
    item_key: np.ndarray
    item_tag: np.ndarray
    item_bucket: np.ndarray
    item_duration_s: np.ndarray
    item_exposure: np.ndarray
    true_user: np.ndarray
    true_item: np.ndarray
    true_user_tag: np.ndarray
    true_user_duration: np.ndarray
    score_user: np.ndarray
    score_item: np.ndarray
    score_user_tag: np.ndarray
    score_user_duration: np.ndarray
    watch_quantiles: np.ndarray
    profile_names: tuple[str, ...] = ()
    group_names: tuple[str, ...] = ("all",)
    sources: dict[str, Source] = field(default_factory=dict)
    targets: dict[str, Any] = field(default_factory=dict)
    """Published figures that `mtf world describe` compares with: {metric: {value, tolerance, source}}."""

    def __post_init__(self) -> None:
        u, v, h = len(self.user_key), len(self.item_key), len(HEADS)
        t, d = self.true_user_tag.shape[1], self.true_user_duration.shape[1]
        shapes = {
            "user_weight": (u,),
            "user_leave": (u,),
            "user_group": (u,),
            "user_circle": (u,),
            "profile": (u, len(self.profile_names)),
            "history": (u, len(BEHAVIOURS)),
            "item_tag": (v,),
            "item_bucket": (v,),
            "item_duration_s": (v,),
            "item_exposure": (v,),
            "watch_quantiles": (len(CLASSES), d, self.watch_quantiles.shape[-1]),
        }
        for side in ("true", "score"):
            shapes |= {f"{side}_user": (u, h), f"{side}_item": (v, h)}
            shapes |= {f"{side}_user_tag": (u, t, h), f"{side}_user_duration": (u, d, h)}
        for name, shape in shapes.items():
            array = getattr(self, name)
            _need(array.shape == shape, name, f"has shape {array.shape}, needs {shape}")
            if name != "item_duration_s":
                _need(bool(np.isfinite(array).all()), name, "holds a value that is not finite")
        _need(self.spec.objectives == HEADS, "spec.objectives", f"is {self.spec.objectives}, needs {HEADS}")
        _need(self.spec.behaviours == BEHAVIOURS, "spec.behaviours", f"is {self.spec.behaviours}, needs {BEHAVIOURS}")
        _need(v >= 2 * self.scalars.n_candidates, "item_key", f"has {v} items, needs two for each of the candidates")
        _need(self.item_tag.min() >= 0 and self.item_tag.max() < t, "item_tag", f"must lie in 0..{t - 1}")
        _need(self.item_bucket.min() >= 0 and self.item_bucket.max() < d, "item_bucket", f"must lie in 0..{d - 1}")
        _need(bool((self.item_exposure >= 0).all()) and self.item_exposure.sum() > 0, "item_exposure", "must be >= 0, not all 0")
        _need(bool((np.diff(self.watch_quantiles, axis=-1) >= 0).all()), "watch_quantiles", "must not fall along the quantiles")
        _need(bool((self.watch_quantiles[:2] <= VALID_S).all()), "watch_quantiles", "of the classes 0 and 1 must be <= 10 s")
        _need(bool((self.watch_quantiles[2] > VALID_S).all()), "watch_quantiles", "of the class 2 must be > 10 s")
        missing = [n for n in (*Scalars.__struct_fields__, *ARRAYS) if n not in self.sources]
        _need(not missing, "sources", f"says nothing about {', '.join(missing)}")

    def with_scalars(self, **changes: Any) -> WorldParams:
        """The same world with other scalars."""
        return replace(self, scalars=msgspec.structs.replace(self.scalars, **changes))

    def save(self, folder: Path) -> None:
        """Write the world's folder, whole or not at all."""
        document = _Document(
            name=self.name,
            kind=self.kind,
            scalars=self.scalars,
            profile_names=self.profile_names,
            group_names=self.group_names,
            sources=self.sources,
            targets=self.targets,
        )
        with folder_atomic(Path(folder), MARK) as scratch:
            self.spec.write(scratch / "spec.json")
            (scratch / MARK).write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")
            arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in ARRAYS}
            (scratch / "world.safetensors").write_bytes(save(arrays))

    @staticmethod
    def load(folder: Path) -> WorldParams:
        """Read and check a world's folder. Raises InputError naming what is missing or damaged."""
        folder = Path(folder)
        try:
            document = msgspec.json.decode((folder / MARK).read_bytes(), type=_Document)
            arrays = load_file(folder / "world.safetensors")
        except FileNotFoundError as error:
            raise InputError(f"world: {error.filename} does not exist; make one with `mtf world make --out {folder}`") from None
        except (msgspec.MsgspecError, SafetensorError) as error:
            raise InputError(f"world: {folder} is damaged: {error}") from error
        if document.format != FORMAT:
            raise InputError(f"world: {folder} has format {document.format}; this release reads {FORMAT}")
        missing = sorted(set(ARRAYS) - set(arrays))
        if missing:
            raise InputError(f"world: {folder}/world.safetensors lacks {', '.join(missing)}; make the world again")
        return WorldParams(
            name=document.name,
            kind=document.kind,
            spec=FusionSpec.read(folder / "spec.json"),
            scalars=document.scalars,
            profile_names=document.profile_names,
            group_names=document.group_names,
            sources=document.sources,
            targets=document.targets,
            **{name: arrays[name] for name in ARRAYS},
        )


ARRAYS = (
    "user_key",
    "user_weight",
    "user_leave",
    "user_group",
    "user_circle",
    "profile",
    "history",
    "item_key",
    "item_tag",
    "item_bucket",
    "item_duration_s",
    "item_exposure",
    "true_user",
    "true_item",
    "true_user_tag",
    "true_user_duration",
    "score_user",
    "score_item",
    "score_user_tag",
    "score_user_duration",
    "watch_quantiles",
)


class _Document(msgspec.Struct, frozen=True, kw_only=True):
    """world.json."""

    format: int = FORMAT
    name: str
    kind: Literal["parametric", "fitted"]
    scalars: Scalars
    profile_names: tuple[str, ...]
    group_names: tuple[str, ...]
    sources: dict[str, Source]
    targets: dict[str, Any]


def _need(condition: bool, field_name: str, problem: str) -> None:
    if not condition:
        raise InputError(f"world: `{field_name}` {problem}")
