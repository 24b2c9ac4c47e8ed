"""`mtf data ...` where there is nothing, and what it refuses; publishing and checking out are in tests/datasets and test_tour."""

import pytest

from tests.commands.conftest import said


def test_nothing_published_yet(mtf):
    said(mtf("data", "log"), 0, "no version was published yet; `mtf data version` publishes one")


def test_a_version_that_does_not_exist_is_named_and_writes_nothing(mtf, tmp_path):
    said(
        mtf("data", "checkout", "2026-03-02.r1", "--out", tmp_path / "out"),
        1,
        "'2026-03-02.r1' does not exist; there are: none yet",
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("dt", "says"), [("monday", "dt = 'monday': not a day"), ("2026-3-2", "not a day"), ("2026-03-02", "holds no built day")]
)
def test_what_cannot_be_published_is_named(mtf, state, tmp_path, dt, says):
    said(mtf("data", "version", "--dt", dt, "--transitions", tmp_path), 1, says)
    assert not (state / "datasets").exists()
