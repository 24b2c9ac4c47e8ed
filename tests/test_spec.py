import msgspec
import pytest

from mtf.errors import InputError
from mtf.spec import FusionSpec
from tests.conftest import small_spec


def test_json_round_trip_keeps_the_version(spec, tmp_path):
    spec.write(tmp_path / "spec.json")
    again = FusionSpec.read(tmp_path / "spec.json")
    assert again == spec
    assert again.version == spec.version


def test_widths_follow_from_the_names(spec):
    assert (spec.n_objectives, spec.action_width, spec.state_width, spec.n_heads) == (2, 4, 3, 2)
    assert [f.name for f in spec.given_features] == ["activity", "recent:valid"]


def test_another_weight_is_another_version(spec):
    assert small_spec(gamma=0.8).version != spec.version


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("power_low", (0.0,)),
        ("power_low", (3.0, 0.0)),
        ("bias_low", (0.0, 0.01)),
        ("start", (0.0, 0.0, 0.0, 1.5)),
        ("behaviours", ("click",)),
        ("n_shown", 0),
        ("gamma", 1.0),
        ("session_gap_s", 0.0),
        ("objectives", ("click", "click")),
    ],
)
def test_an_impossible_value_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match=field):
        small_spec(**{field: value})


def test_reading_names_the_field_and_the_file(spec, tmp_path):
    raw = msgspec.json.decode(spec.to_json())
    raw["reward_heads"][0]["weights"] = {"watch": -1}
    path = tmp_path / "spec.json"
    path.write_bytes(msgspec.json.encode(raw))
    with pytest.raises(InputError, match=r"spec\.json.*reward_heads\.watch\.watch = -1"):
        FusionSpec.read(path)
    with pytest.raises(InputError, match="does not exist"):
        FusionSpec.read(tmp_path / "none.json")
