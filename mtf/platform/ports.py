"""Ports on loopback: the default where it is free, else the next free one."""

from __future__ import annotations

import socket

DEFAULTS = {
    "airflow": 8080,
    "mlflow": 5000,
    "serve": 8088,
    "s3": 8333,
    "s3_grpc": 18333,
    "filer": 8888,
    "filer_grpc": 18888,
    "master": 9333,
    "master_grpc": 19333,
    "volume": 9340,
    "volume_grpc": 19340,
    "admin": 23646,
    "admin_grpc": 33646,
}
TRIES = 500


def is_free(port: int) -> bool:
    """Can a server listen on 127.0.0.1:port? (SO_REUSEADDR: a closed connection in TIME_WAIT does not count.)"""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def choose(wanted: dict[str, int]) -> dict[str, int]:
    """A free port for each name: the wanted one, or the next above it that is free and not chosen already."""
    chosen: dict[str, int] = {}
    for name, first in wanted.items():
        candidates = (port for port in range(first, first + TRIES) if port not in chosen.values() and is_free(port))
        try:
            chosen[name] = next(candidates)
        except StopIteration:
            raise OSError(f"no free port from {first} to {first + TRIES - 1} for {name}") from None
    return chosen
