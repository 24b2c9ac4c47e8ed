import numpy as np

from mtf.rollout.document import Arms, DeploymentDocument, Exploration, PolicyRef, Salts
from mtf.serving.arms import assign, bucket

REF = PolicyRef(sha="a", version="1", uri="")
USERS = [f"user-{i}" for i in range(20_000)]


def document(arms, canary=True, explore_salt="e"):
    return DeploymentDocument(
        surface="feed",
        generation=1,
        at="",
        spec_version="s",
        champion=REF,
        bootstrap=REF,
        canary=REF if canary else None,
        exploration=Exploration(sha="x", half_width=(0.2,)),
        arms=arms,
        salts=Salts(explore=explore_salt, rollout="r", holdback="h"),
    )


def shares(names):
    return {arm: np.mean(names == arm) for arm in ("explore", "canary", "control", "champion", "holdback")}


def test_shares_are_as_asked_and_buckets_are_the_hashes():
    names, buckets = assign(document(Arms(explore=0.25, canary=0.3, control=0.3, holdback=0.05)), USERS)
    found = shares(names)
    # holdback is taken first, so the others are of what remains
    for arm, share in {"holdback": 0.05, "explore": 0.25 * 0.95, "canary": 0.3 * 0.95, "control": 0.3 * 0.95}.items():
        assert abs(found[arm] - share) < 0.01
    i = int(np.flatnonzero(names == "canary")[0])
    assert buckets[i] == bucket("r", USERS[i])


def test_without_a_canary_nobody_is_compared():
    names, _ = assign(document(Arms(explore=0.25, canary=0.3, control=0.3), canary=False), USERS)
    assert set(names) == {"explore", "champion"}


def test_ramping_moves_users_out_of_champion_only():
    before, _ = assign(document(Arms(canary=0.1, control=0.1)), USERS)
    after, _ = assign(document(Arms(canary=0.4, control=0.4)), USERS)
    assert (after[before != "champion"] == before[before != "champion"]).all()


def test_a_new_explore_salt_moves_explorers_and_not_the_holdback():
    arms = Arms(explore=0.3, holdback=0.05)
    first, _ = assign(document(arms, explore_salt="one"), USERS)
    second, _ = assign(document(arms, explore_salt="two"), USERS)
    assert ((first == "holdback") == (second == "holdback")).all()
    both = np.mean((first == "explore") & (second == "explore")) / np.mean(first == "explore")
    assert abs(both - 0.3) < 0.02
