"""A real server on loopback, in a thread of the test's process."""

import contextlib
import threading
import time
import urllib.error
import urllib.request

import msgspec
import pyarrow as pa
import pytest
import uvicorn

from mtf.rollout.document import Arms
from mtf.rollout.start import initialise
from mtf.serving.app import create_app
from mtf.settings import Settings
from tests.conftest import small_spec

SPEC = small_spec()
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Client:
    """Calls and decodes; answers (status, body)."""

    def __init__(self, url):
        self.url = url

    def get(self, path):
        return self._call(urllib.request.Request(self.url + path))

    def post(self, path, body):
        data = body if isinstance(body, bytes) else msgspec.json.encode(body)
        return self._call(urllib.request.Request(self.url + path, data, {"content-type": "application/json"}))

    def _call(self, request):
        try:
            with _OPENER.open(request, timeout=20) as answer:
                status, body = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            status, body = error.code, error.read()
        with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
            return status, msgspec.json.decode(body)
        return status, body


@contextlib.contextmanager
def running(settings):
    """The server of `settings` until the block ends; a Client of it."""
    config = uvicorn.Config(create_app(settings, "feed"), host="127.0.0.1", port=0, log_config=None, ws="none", access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        yield Client(f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}")
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture
def simulated(tmp_path):
    """Settings with a first document, callers keeping the clock."""
    settings = Settings(state_dir=tmp_path / "state", clock="simulated")
    initialise(settings, "feed", SPEC, Arms(explore=0.5), 0.2)
    return settings


def to_stream(columns):
    table = pa.table(columns)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return sink.getvalue().to_pybytes()


def from_stream(body):
    return pa.ipc.open_stream(body).read_all()
