"""What a server tells Prometheus; one registry a server object, so that tests and embedders can have several."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class Metrics:
    """Counters and histograms by name."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        self.requests = Counter("mtf_requests", "Requests ranked and logged", ["arm"], registry=r)
        self.fallbacks = Counter("mtf_fallbacks", "Requests whose inputs had to be replaced", ["reason"], registry=r)
        self.feedback = Counter("mtf_feedback_rows", "Feedback rows logged", registry=r)
        self.refused = Counter("mtf_refused", "Calls answered with an error", ["route", "status"], registry=r)
        self.latency = Histogram("mtf_latency_seconds", "A call, commit included", ["route"], registry=r, buckets=SECONDS)
        self.commit = Histogram("mtf_spool_commit_seconds", "A commit of the spool", registry=r, buckets=SECONDS)
        self.appends = Counter("mtf_spool_appends", "Appends committed; over the commits: how many share one", registry=r)
        self.waiting = Gauge("mtf_spool_waiting", "Appends that no commit has taken up yet", registry=r)
        self.generation = Gauge("mtf_generation", "Generation of the deployment document in force", registry=r)
        self.reloads = Gauge("mtf_reloads", "Documents loaded since the start", registry=r)
        self.reload_failures = Gauge("mtf_reload_failures", "Attempts to load a document that failed", registry=r)

    def on_commit(self, seconds: float, appends: int) -> None:
        """For the spool."""
        self.commit.observe(seconds)
        self.appends.inc(appends)

    def render(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self.registry)
