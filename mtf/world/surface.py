"""The FusionSpec of the simulated feed: five objectives, ten action dimensions, two reward heads.

The weights make the four behaviours' contributions to the reward about equal at the published rates:
.5 * .38 valid, .008 * 21 s watched, 8 * .017 likes, 5 * .035 interactions: .14 to .19 each.
"""

from __future__ import annotations

import numpy as np

from mtf.fusion import normalised_action
from mtf.spec import Feature, FusionSpec, RewardHead
from mtf.world.params import BEHAVIOURS, HEADS

POWER_LOW, POWER_HIGH = (0.0,) * 5, (2.0,) * 5
# a bias matters where it is of the size of the score: from about the score's low quantiles to a few times its mean
BIAS_LOW = (0.01, 0.01, 0.5, 0.0005, 0.001)
BIAS_HIGH = (1.0, 1.0, 60.0, 0.1, 0.2)
REWARD_HEADS = (
    RewardHead(name="watch", weights={"watch": 0.008}),
    RewardHead(name="engagement", weights={"valid": 0.5, "like": 8.0, "interact": 5.0}),
)
MOMENT_DEFAULTS = {"hour_sin": "sine of the hour of the day", "hour_cos": "cosine of the hour of the day"}


def feed_spec(
    *,
    start_powers: tuple[float, ...],
    start_biases: tuple[float, ...],
    profile: dict[str, str],
    history: dict[str, float],
) -> FusionSpec:
    """The spec of a world.

    start_powers, start_biases: production's raw setting, five each, in the order of HEADS.
    profile: {name: doc} of the profile columns that the caller sends.
    history: {behaviour: default}: where the averages `recent:<behaviour>` start for an unknown user.
    """
    features = [Feature(name=name, source="caller", doc=doc) for name, doc in profile.items()]
    features += [Feature(name=name, source="caller", doc=doc) for name, doc in MOMENT_DEFAULTS.items()]
    features.append(Feature(name="request_number", source="caller", doc="log(1 + requests earlier in this session)"))
    features += [
        Feature(
            name=f"recent:{behaviour}",
            source="history",
            moved_by_action=True,
            default=history[behaviour],
            doc=f"running mean of {behaviour} an impression",
        )
        for behaviour in BEHAVIOURS
    ]
    for head in HEADS:
        features.append(Feature(name=f"score_mean:{head}", source="scores", doc="mean log score of the candidates"))
        features.append(Feature(name=f"score_sd:{head}", source="scores", doc="spread of the candidates' log scores"))
    spec = FusionSpec(
        objectives=HEADS,
        power_low=POWER_LOW,
        power_high=POWER_HIGH,
        bias_low=BIAS_LOW,
        bias_high=BIAS_HIGH,
        start=(0.0,) * 10,
        behaviours=BEHAVIOURS,
        reward_heads=REWARD_HEADS,
        features=tuple(features),
    )
    start = normalised_action(spec, np.array([*start_powers, *start_biases]))
    return FusionSpec(
        **{name: getattr(spec, name) for name in spec.__struct_fields__} | {"start": tuple(start.round(6).tolist())}
    )
