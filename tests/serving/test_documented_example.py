"""The example of docs/serving.md: its spec is valid, its request is ranked, its feedback taken."""

import json
import re
from pathlib import Path

import pytest

from mtf.rollout.document import Arms
from mtf.rollout.start import initialise
from mtf.settings import Settings
from mtf.spec import FusionSpec
from tests.serving.conftest import running

PAGE = Path(__file__).parents[2] / "docs" / "serving.md"


@pytest.fixture
def blocks():
    return re.findall(r"```json\n(.*?)```", PAGE.read_text(), re.DOTALL)


def test_the_documented_calls_are_answered(blocks, tmp_path):
    spec, request, feedback = blocks
    settings = Settings(state_dir=tmp_path / "state")
    initialise(settings, "feed", FusionSpec.from_json(spec.encode()), Arms(explore=0.5), 0.2)
    with running(settings) as client:
        status, answer = client.post("/v1/rank", json.loads(request))
        assert status == 200, answer
        assert len(answer["items"]) == 2 and set(answer["items"]) < {101, 102, 103}
        assert answer["fallback"] is None
        status, accepted = client.post("/v1/feedback", json.loads(feedback.replace("REQUEST", answer["request_id"])))
        assert (status, accepted) == (200, {"accepted": 1})


def test_the_example_has_every_field_of_the_spec(blocks):
    assert set(json.loads(blocks[0])) == set(FusionSpec.__struct_fields__)
