import json

import pytest

from mtf.errors import InputError
from mtf.quality.history import Parameter, parameters_of, threshold
from mtf.quality.rules import read_suite
from tests.quality import rows

KNOWN = ("requests", "users")


def expectation(**parameters):
    kwargs = {"column": "requests", "min_value": {"$PARAMETER": "low"}, "max_value": 7}
    return {"kwargs": kwargs, "meta": {"parameters": parameters}}


def test_a_threshold_is_a_multiple_of_the_median_of_the_last_days():
    history = [{"requests": v} for v in (1000.0, 3.0, 5.0, 4.0)]
    p = Parameter(figure="requests", times=0.5, plus=1, days=3)
    assert threshold(p, history, KNOWN, "here") == 3.0
    assert threshold(p, [*history, {"requests": None}], KNOWN, "here") == "needs 3 earlier days to compare with, there are 2"
    assert threshold(Parameter(figure="rate_share"), [], KNOWN, "here") == "needs 3 earlier days to compare with, there are 0"


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({}, "parameter 'low' is not defined"),
        ({"low": {"figure": "requests", "factor": 2}}, "meta.parameters: .*factor"),
        ({"low": {"times": 2}}, "meta.parameters: .*figure"),
        ({"low": {"figure": "requests"}, "high": {"figure": "requests"}}, "defines 'high', which no bound names"),
    ],
)
def test_a_parameter_that_is_wrong_is_named(parameters, says):
    with pytest.raises(InputError, match=says):
        parameters_of(expectation(**parameters), "day.json, expectation 3")


def test_an_unknown_figure_is_named():
    with pytest.raises(InputError, match=r"figure = 'reqests' in meta\.parameters; there are requests, users"):
        threshold(Parameter(figure="reqests"), [], KNOWN, "here")


def test_every_parameter_of_the_repository_is_defined():
    found = [parameters_of(e, name) for name in ("day", "sessions") for e in read_suite(rows.EXPECTATIONS, name)]
    assert sum(map(len, found)) > 10
    assert "requests_low" in {name for parameters in found for name in parameters}
    assert json.loads((rows.EXPECTATIONS / "day.json").read_text())["notes"].count("$PARAMETER") == 1
