"""Ports: the default where it is free, else the next one."""

from __future__ import annotations

import socket

import pytest

from mtf.platform.ports import TRIES, choose, is_free


@pytest.fixture
def taken():
    """A port that somebody listens on."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


def test_a_listened_port_is_taken(taken):
    assert not is_free(taken)


def test_a_port_that_is_taken_on_every_interface_is_taken():
    with socket.socket() as server:
        server.bind(("0.0.0.0", 0))
        server.listen()
        assert not is_free(server.getsockname()[1])


def test_a_free_default_is_kept_and_a_taken_one_moves_up(taken):
    found = choose({"a": taken})
    assert taken < found["a"] < taken + TRIES
    assert choose(found) == found


def test_no_port_is_given_twice():
    free = choose({"probe": 23900})["probe"]
    found = choose({"a": free, "b": free, "c": free})
    assert len(set(found.values())) == 3
