import dataclasses
import re

import pytest

from mtf.errors import InputError
from mtf.learning.config import explained, from_dict, with_overrides
from mtf.learning.integrated_rl import IntegratedRLConfig
from mtf.learning.registry import ALGORITHMS, algorithm


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_has_settings_that_come_back_from_json(name):
    kind = algorithm(name).config
    assert from_dict(kind, kind().to_dict()) == kind()
    # a report names every setting, also those that nobody gave
    assert with_overrides(kind, {}).to_dict() == kind().to_dict()
    assert set(kind().to_dict()) == {f.name for f in dataclasses.fields(kind)}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_number_is_explained_with_its_usual_range(name):
    """`a, b: text (1 to 10, .1 to .5)`: the text that follows a setting's name holds a range."""
    kind = algorithm(name).config
    fields = {f.name: f.default for f in dataclasses.fields(kind)}
    text = " ".join(explained(kind).split("\n\n", 1)[1].split())
    parts = re.split(rf"((?:\b(?:{'|'.join(fields)})\b,? ?)+): ", text)
    said = {one: after for names, after in zip(parts[1::2], parts[2::2], strict=True) for one in re.findall(r"\w+", names)}
    assert set(said) == set(fields) | ({"needs_exploration"} & set(said))
    for field, default in fields.items():
        if not isinstance(default, bool | str):
            assert re.search(r"\d\S* to \S*\d", said[field]), f"{field}: no range in {said[field]!r}"


def test_text_is_read_as_the_settings_type():
    found = with_overrides(
        IntegratedRLConfig, {"critics": "24", "lam": "1", "critic_hidden": "64,32", "target": "subtract", "bootstrap": "true"}
    )
    assert (found.critics, found.lam, found.critic_hidden) == (24, 1.0, (64, 32))
    assert (found.target, found.bootstrap, found.beta) == ("subtract", True, 0.3)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("critcs", "2", "--set critcs: no such setting; there are .*critics"),
        ("critics", "two", r"--set critics=two: Expected `int`"),
        ("critic_hidden", "32,x", r"--set critic_hidden=32,x: Expected `int`"),
        ("critics", "0", "--set critics=0: keep it at least 1"),
        ("beta", "0", "--set beta=0: keep it at least 0.001"),
        ("tau", "40", "--set tau=40: keep it from 0 to 1"),
        ("margin", "0.6", "--set margin=0.6: keep it from 0 to 0.06"),
        ("max_rms_step", "0", "--set max_rms_step=0: keep it at least 0.001"),
        ("batch", "-5", "--set batch=-5: keep it from 1 to"),
        ("critic_hidden", "32,0", "--set critic_hidden=0: keep it at least 1"),
        ("lam", "-0.1", "--set lam=-0.1: keep it at least 0"),
        ("beta", "nan", "--set beta=nan: keep it finite and at least 0.001"),
        ("beta", "inf", "--set beta=inf: keep it finite and at least 0.001"),
        ("target", "other", "--set target=other: Invalid enum value 'other'; there are phi, subtract"),
        ("bootstrap", "perhaps", "bootstrap"),
    ],
)
def test_what_cannot_be_used_is_named(name, text, says):
    with pytest.raises(InputError, match=says):
        with_overrides(IntegratedRLConfig, {name: text})


def test_the_defaults_of_the_paper_are_the_defaults():
    config = IntegratedRLConfig()
    assert (config.lam, config.beta, config.alpha, config.eta, config.tau, config.delay) == (0.2, 0.3, 1.2, 1.2, 0.08, 15)
