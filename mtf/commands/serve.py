"""`mtf serve`: the fusion server."""

from __future__ import annotations

import click


@click.command()
@click.option("--surface", default="feed", show_default=True, help="Which feed.")
@click.option("--port", default=8088, show_default=True, type=click.IntRange(0, 65535), help="On 127.0.0.1; 0 = any free one.")
@click.option("--store", "store_url", help="Where documents and bundles are: file:// or s3:// [default: MTF_STORE_URL].")
def serve(surface: str, port: int, store_url: str | None) -> None:
    """Run the fusion server of a surface, until SIGTERM.

    It ranks requests under the deployment document that it finds in the store, follows every new generation by itself,
    and writes what it showed and what users did to the spool before it answers. It needs neither Airflow nor MLflow, and
    runs in one process: for more cores start more of them on other ports, each takes its own spool file.

    \b
      mtf serve --port 8088
      curl 127.0.0.1:8088/healthz
    """
    import logging
    import signal
    import sys

    import uvicorn

    from mtf.serving.app import create_app
    from mtf.settings import Settings
    from mtf.store import open_store

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    # uvicorn drains on SIGTERM, then raises it again for the handler that was there before: a clean stop is exit code 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    settings = Settings()
    open_store(store_url, settings)  # a wrong address is said here; the server itself waits for a store that is away
    app = create_app(settings, surface, store_url)
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=port,
        loop="uvloop",
        http="httptools",
        ws="none",
        access_log=False,
        log_config=None,
        timeout_graceful_shutdown=8,
    )
