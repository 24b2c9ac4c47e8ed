"""The rollout page on hand-made documents: before, during and after a canary."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import msgspec
import pytest

from mtf.airflow_plugin.page import empty_page, rollout_page
from mtf.rollout.document import Arms, Change, DeploymentDocument, Exploration, PolicyRef, Rollout, Salts

MLFLOW = "http://127.0.0.1:5000"
START = PolicyRef(sha="a" * 64, version="1", uri="s3://store/a")
CANDIDATE = PolicyRef(sha="b" * 64, version="2", uri="s3://store/b")
COMPARISON = {
    "n_canary": 5120,
    "n_control": 5033,
    "watermark_us": 1_772_496_000_000_000,  # 2026-03-03 00:00:00 UTC
    "metrics": {
        "reward": {"lift": 0.03, "low": -0.01, "high": 0.07},
        "valid": {"lift": 0.015, "low": -0.02, "high": 0.05},
        "duration": {"lift": -0.02, "low": -0.05, "high": 0.01},
    },
}


def change(generation, what, reason):
    return Change(generation=generation, at="2026-03-02T10:00:00.123456+00:00", what=what, reason=reason)


@pytest.fixture
def idle():
    return DeploymentDocument(
        surface="feed",
        generation=1,
        at="2026-03-02T10:00:00.123456+00:00",
        spec_version="8a2e0d9b72ff",
        champion=START,
        bootstrap=START,
        exploration=Exploration(sha="e" * 64, half_width=(0.3, 0.3, 0.3)),
        arms=Arms(explore=0.9),
        salts=Salts(explore="x", rollout="y", holdback="z"),
        history=(change(1, "initialised", "first start of the surface"),),
    )


@pytest.fixture
def running(idle):
    return msgspec.structs.replace(
        idle,
        canary=CANDIDATE,
        arms=Arms(explore=0.25, canary=0.35, control=0.35, holdback=0.02),
        rollout=Rollout(id="0001-start", phase="running", started_ts="2026-03-02T22:00:01+00:00"),
        history=(*idle.history, change(2, "canary of version 2 started", "the gate passed")),
    )


@pytest.fixture
def ended(running):
    rollout = msgspec.structs.replace(
        running.rollout, phase="idle", outcome="rolled_back", reason="inconclusive", statistics={"comparison": COMPARISON}
    )
    return msgspec.structs.replace(running, canary=None, rollout=rollout)


def look(comparison=COMPARISON, reason="not shown to be better yet"):
    return json.dumps({"decision": "wait", "reason": reason, "comparison": comparison}).encode()


class Parsed(HTMLParser):
    """The text of a page, the widths of its bar (%) and its links."""

    def __init__(self, page):
        super().__init__()
        self.pieces, self.widths, self.links = [], [], []
        self._silent = False
        self.feed(page)
        self.text = " ".join(" ".join(self.pieces).split())

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self._silent = tag in ("style", "script")
        if tag == "span" and (width := re.match(r"width:([\d.]+)%", found.get("style", ""))):
            self.widths.append(float(width[1]))
        if tag == "a":
            self.links.append(found["href"])

    def handle_endtag(self, tag):
        self._silent = False

    def handle_data(self, data):
        if not self._silent:
            self.pieces.append(data)


def test_before_any_canary(idle):
    page = Parsed(rollout_page(idle, None, MLFLOW))
    assert "Generation 1 of 2026-03-02 10:00:00 UTC" in page.text
    assert "explore 90.0%, champion 10.0%." in page.text
    assert "within ±0.3 in each of 3 dimensions" in page.text
    assert "None yet" in page.text
    # as champion and as bootstrap
    assert page.links == [f"{MLFLOW}/#/models/mtf-feed/versions/1?workflowType=machine_learning"] * 2
    assert "initialised first start of the surface" in page.text


def test_without_a_box_nobody_explores_and_the_champion_gets_their_share(idle):
    page = Parsed(rollout_page(msgspec.structs.replace(idle, exploration=None), None, MLFLOW))
    assert "Nothing is explored." in page.text
    assert page.widths == [100.0]


def test_a_box_of_several_widths_is_written_out(idle):
    box = Exploration(sha="e" * 64, half_width=(0.3, 0.25, 0.125))
    page = Parsed(rollout_page(msgspec.structs.replace(idle, exploration=box), None, MLFLOW))
    assert "within ±[0.3, 0.25, 0.125]" in page.text


@pytest.mark.parametrize("document", ["idle", "running", "ended"])
def test_the_arms_add_to_the_whole_traffic(document, request):
    found = Parsed(rollout_page(request.getfixturevalue(document), None, MLFLOW))
    assert sum(found.widths) == pytest.approx(100, abs=0.011 * len(found.widths))  # two decimals each


def test_a_canary_is_compared_with_control(running):
    page = Parsed(rollout_page(running, look(), MLFLOW))
    assert "explore 25.0%, canary 35.0%, control 35.0%, holdback 2.0%, champion 3.0%." in page.text
    assert "Running , version 2: not shown to be better yet" in page.text
    assert "5,120 users in the canary, 5,033 in control." in page.text
    assert "reward +3.00% -1.00% +7.00% valid +1.50% -2.00% +5.00% duration -2.00% -5.00% +1.00%" in page.text
    assert "last looked at 2026-03-03 00:00:00 ." in page.text
    assert f"{MLFLOW}/#/models/mtf-feed/versions/2?workflowType=machine_learning" in page.links


def test_the_intervals_are_drawn_to_one_scale(running):
    page = rollout_page(running, look(), MLFLOW)
    drawn = [tuple(map(float, found)) for found in re.findall(r'class="interval" x1="([-\d.]+)" x2="([-\d.]+)"', page)]
    # the widest bound, 7 %, is 100 units from 0
    assert drawn == [(-14.3, 100.0), (-28.6, 71.4), (-71.4, 14.3)]


def test_a_canary_before_its_first_look(running):
    assert "No users compared yet." in rollout_page(running, None, MLFLOW)


def test_a_look_at_too_few_users_has_counts_alone(running):
    page = Parsed(rollout_page(running, look(COMPARISON | {"metrics": {}, "n_canary": 1}), MLFLOW))
    assert "1 users in the canary" in page.text
    assert "canary against control" not in page.text


def test_an_interval_without_bounds_is_shown_as_unknown(running):
    """The controller's infinities are null in JSON: a control arm without any reward has no ratio."""
    unknown = {"reward": {"lift": 0.0, "low": None, "high": None}, "valid": {"lift": 0.01, "low": -0.01, "high": 0.03}}
    page = Parsed(rollout_page(running, look(COMPARISON | {"metrics": unknown}), MLFLOW))
    assert "reward +0.00% - - valid +1.00%" in page.text


def test_after_the_canary_its_last_statistics_stay(ended):
    # a look left over from the rollout says nothing any more
    page = Parsed(rollout_page(ended, look(reason="an old look"), MLFLOW))
    assert "Rolled back : inconclusive" in page.text
    assert "an old look" not in page.text
    assert "5,120 users in the canary" in page.text
    assert "explore 25.0%, holdback 2.0%, champion 73.0%." in page.text


def test_the_newest_change_comes_first(running):
    page = Parsed(rollout_page(running, None, MLFLOW)).text
    assert page.index("canary of version 2 started") < page.index("initialised")


def test_whatever_was_written_by_others_is_escaped(running):
    evil = "<script>alert(1)</script>&"
    document = msgspec.structs.replace(
        running,
        surface=evil,
        spec_version=evil,
        champion=PolicyRef(sha="<b>" + "c" * 61, version=evil, uri="x"),
        rollout=msgspec.structs.replace(running.rollout, id=evil, started_ts=evil),
        history=(change(1, evil, evil),),
    )
    metrics = {evil: {"lift": 0.0, "low": -1.0, "high": 1.0}}
    page = rollout_page(document, look(COMPARISON | {"metrics": metrics}, reason=evil), 'http://x/"><script>alert(2)</script>')
    assert "<script>alert" not in page
    assert "<b>" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;&amp;") >= 8


def test_only_a_registry_version_links_to_mlflow(idle):
    assert Parsed(rollout_page(idle, None, None)).links == []
    bootstrap = msgspec.structs.replace(START, version="bootstrap")
    document = msgspec.structs.replace(idle, champion=bootstrap, bootstrap=bootstrap)
    assert Parsed(rollout_page(document, None, MLFLOW)).links == []


def test_a_page_of_nothing_says_so():
    page = empty_page("Data <Docs>", "No day & no page.")
    assert "Data &lt;Docs&gt;" in page
    assert "<p>No day &amp; no page.</p>" in page
