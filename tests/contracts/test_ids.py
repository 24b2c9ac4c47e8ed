import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtf.contracts import ids
from mtf.errors import InputError


@given(st.lists(st.integers(0, 2**47 * 1000), max_size=20), st.integers(0, 5))
def test_an_id_tells_its_time(times, offset):
    made = pa.array(ids.uuid7(np.array(times, np.int64), np.random.default_rng(0)), pa.string())
    assert ids.milliseconds(made.slice(offset)).tolist() == [t // 1000 for t in times[offset:]]
    assert ids.milliseconds(pa.chunked_array([made, made])).tolist() == [t // 1000 for t in times] * 2


def test_an_id_sorts_by_time_and_tells_its_day():
    us = np.array([1_767_225_599_999_999, 1_767_225_600_000_000])
    made = ids.uuid7(us, np.random.default_rng(1))
    assert made == sorted(made) and ids.days(pa.array(made)) == ["2025-12-31", "2026-01-01"]
    # RFC 9562, appendix A.6: 2022-02-22 19:22:22 UTC
    assert ids.milliseconds(pa.array(["017f22e2-79b0-7cc3-98c4-dc0c0c07398f"])).tolist() == [0x017F22E279B0]
    assert ids.days(pa.array(["017f22e2-79b0-7cc3-98c4-dc0c0c07398f"])) == ["2022-02-22"]


@pytest.mark.parametrize("wrong", ["", "x", "017f22e2-79b0-4cc3-98c4-dc0c0c07398f", "017F22E2-79B0-7CC3-98C4-DC0C0C07398F", None])
def test_what_is_no_uuid7_is_refused(wrong):
    good = "017f22e2-79b0-7cc3-98c4-dc0c0c07398f"
    with pytest.raises(InputError, match="not a UUIDv7"):
        ids.milliseconds(pa.array([good, wrong], pa.string()))
