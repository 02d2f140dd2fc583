"""The worker's page for Prometheus. docs/reference/metrics.md explains each metric.

Imported only where it is wanted. A thread of the worker serves it. No processor runs in a fork of
the worker, so none finds a lock that this thread has held.
"""

import os
import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Metric, core, start_http_server

from imece.errors import SettingsError
from imece.run.durations import least
from imece_worker.statistics import WorkerStatistics

NAMED_FROM = 60.0
"""Seconds from which on the current file is named: each name is a series of its own."""

EXPONENTS = range(10, 33, 2)
"""Of the histogram's limits, 2^e microseconds: from a millisecond to 71 minutes."""


class Page:
    """A collector: makes the metrics from the statistics whenever Prometheus asks."""

    def __init__(self, statistics: WorkerStatistics) -> None:
        self._statistics = statistics

    def collect(self) -> Iterator[Metric]:
        def counter(name: str, text: str, label: str, values: dict[str, int]) -> Metric:
            family = core.CounterMetricFamily(name, text, labels=[label])
            for value, count in values.items():
                family.add_metric([value], count)
            return family

        now = self._statistics
        outcomes = {"done": now.done, "failed": now.failed}
        yield counter("imece_files", "Files ended, by outcome", "outcome", outcomes)
        yield core.CounterMetricFamily(
            "imece_file_retries", "Failed tries of files that get another one", value=now.retried
        )
        moved = {"in": now.bytes_in, "out": now.bytes_out}
        yield counter("imece_bytes", "Bytes of files done", "direction", moved)
        yield core.HistogramMetricFamily(
            "imece_file_seconds",
            "Seconds a file took that was done",
            buckets=self._buckets(),
            sum_value=now.microseconds / 1e6,
        )
        yield counter("imece_jobs", "Bucket jobs taken, by ending", "ending", now.jobs)
        yield core.CounterMetricFamily(
            "imece_redis_errors", "Calls to Redis that failed", value=now.redis_errors
        )
        lag = now.lag()
        yield core.GaugeMetricFamily(
            "imece_worker_busy", "1 while the worker has a bucket job", value=lag is not None
        )
        yield core.GaugeMetricFamily(
            "imece_checkpoint_lag_seconds",
            "Seconds since the last recorded checkpoint of the worker's job",
            value=lag or 0.0,
        )
        name, seconds = now.current or ("", 0.0)
        seconds = time.monotonic() - seconds if name else 0.0
        yield core.GaugeMetricFamily(
            "imece_current_file_seconds",
            "Seconds the worker has been at its current file, if more than one",
            value=seconds,
        )
        named = core.GaugeMetricFamily(
            "imece_slow_file_seconds",
            f"The same, with the file's name, from {NAMED_FROM:g} seconds on",
            labels=["file"],
        )
        if seconds >= NAMED_FROM:
            named.add_metric([name], seconds)
        yield named

    def _buckets(self) -> list[tuple[str, float]]:
        counts = self._statistics.durations.copy()  # the main thread writes to it
        below = []
        for bound in EXPONENTS:
            files = sum(count for step, count in counts.items() if least(step) < 2**bound)
            below.append((repr(2**bound / 1e6), files))
        return [*below, ("+Inf", sum(counts.values()))]


def serve(statistics: WorkerStatistics, port: int) -> None:
    """Starts to serve the page.

    Raises:
        SettingsError: the port cannot be listened on.
    """
    registry = CollectorRegistry()
    registry.register(Page(statistics))
    try:
        server, _ = start_http_server(port, registry=registry)
    except OSError as error:
        raise SettingsError(
            f"IMECE_METRICS_PORT: port {port} cannot be listened on: "
            f"{error.strerror}; workers on one host need a port each"
        ) from None
    # No other process of the worker is to hold the port.
    os.register_at_fork(after_in_child=server.socket.close)
