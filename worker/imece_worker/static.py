"""A static bucket: one share of a folder, without Redis; for comparison, and for clusters that have
neither Redis nor KEDA.

Runners, limits, retries, atomic outputs and skipping are those of every worker. What would be
recorded in Redis is counted and logged.
"""

import logging
import os
import socket
import time
import uuid
from typing import Any

from imece import names
from imece.errors import BY_SIGNAL, SettingsError, UsageError
from imece.files import listing
from imece.files.buckets import numbers
from imece.files.current import Comparer
from imece.run.claim import Action, Batch, Claimed, CurrentFile, Verdict
from imece.run.job import Cursor, Reference
from imece.run.parameters import SEED, Parameters, text_path
from imece.settings import Settings
from imece_worker import context, log
from imece_worker.execution import Execution
from imece_worker.interpreter import Interpreter
from imece_worker.paths import Paths
from imece_worker.statistics import WorkerStatistics

FAILED = 1
LOG_PAUSE = 10.0


def work(
    settings: Settings,
    interpreter: Interpreter,
    bucket: int,
    buckets: int,
    include: tuple[str, ...],
    suffix: str | None,
    given: dict[str, Any],
) -> int:
    """Processes one bucket; the exit code.

    Raises:
        UsageError, SettingsError, ListingError: nothing can be processed as it stands.
    """
    if not 0 <= bucket < buckets:
        raise UsageError(f"--bucket-id {bucket}: takes 0 to {buckets - 1}, for {buckets} buckets")
    parameters = parameters_of(settings, buckets, include, suffix, given)
    context.prepare(settings)
    interpreter.wait()
    statistics = WorkerStatistics()
    all_files = files_of(bucket, parameters)
    comparer = Comparer(
        os.fsencode(parameters.input),
        os.fsencode(str(parameters.output)),
        parameters.ending,
        interpreter.version,
        parameters.set,
    )
    compared = comparer.compare(all_files)
    files = sorted(compared.to_do)
    worker = context.WorkerContext(
        settings,
        interpreter,
        statistics,
        name=f"{names.plain(socket.gethostname())}-{os.getpid()}",
        alive=lambda: context.touch_heartbeat_file(settings),
    )
    skipped = len(compared.current)
    share = Share(bucket, len(files), skipped, statistics)
    log.event("bucket listed", bucket=bucket, buckets=buckets, files=len(all_files))
    for flaw in compared.flaws:
        log.event("ledger not read", logging.WARNING, reason=flaw)
    # What an earlier pod has left is of no use to anybody: `kind` says which bucket it was for.
    kind = f"bucket {bucket} of {buckets}"
    paths = Paths.of(settings, parameters, share.execution, kind)
    if blocking_reason := paths.blocking_reason():
        raise SettingsError(blocking_reason)
    claimed = Claimed(Cursor(0, len(files)), [], parameters, time.time(), files, pending=0)
    ending = Execution(worker, share, claimed, paths).run() if files else "finished"
    worker.supervisor.end()
    share.report("bucket done" if ending == "finished" else "bucket stopped")
    if ending == "finished":
        paths.compact()
        return FAILED if statistics.failed else 0
    return BY_SIGNAL + worker.wakeup.number if worker.wakeup.number else FAILED


def parameters_of(
    settings: Settings,
    buckets: int,
    include: tuple[str, ...],
    suffix: str | None,
    given: dict[str, Any],
) -> Parameters:
    if settings.input is None or settings.output is None:
        raise SettingsError("IMECE_INPUT and IMECE_OUTPUT: a static bucket needs both")
    source, target = settings.input.absolute(), settings.output.absolute()
    listing.check_directories(source, target)
    return Parameters(
        input=text_path(source),
        output=text_path(target),
        suffix=suffix,
        overwrite=False,
        source="directory",
        include=include,
        exclude=(),
        hidden=False,
        buckets=buckets,
        files_per_job=None,
        retries=settings.retries,
        retry_pause=settings.retry_pause,
        all_tries=settings.wants_all_tries,
        timeout=settings.file_timeout,
        set=given,
    )


def files_of(bucket: int, parameters: Parameters) -> list[bytes]:
    """The files of one bucket, sorted."""
    assert parameters.buckets is not None  # noqa: S101 - parameters_of has set it
    found = listing.walk(parameters.input_path, parameters.include).files
    listing.check_outputs(found, parameters.ending)
    of_each = zip(found, numbers(found, parameters.buckets, SEED), strict=True)
    return sorted(name for name, number in of_each if number == bucket)


class Share:
    """A claim without Redis: logs what would be recorded there. The execution counts it."""

    def __init__(self, bucket: int, files: int, skipped: int, statistics: WorkerStatistics) -> None:
        self.reference = Reference("static", "00000000", bucket, 0)
        self.execution = uuid.uuid4().hex  # a pod that was taken for lost may live on beside us
        self.files, self.skipped = files, skipped
        self._statistics = statistics
        self._said = time.monotonic()

    def checkpoint(
        self,
        action: Action,
        number: int = 0,
        cursor: Cursor | None = None,
        batch: Batch | None = None,
        reason: str = "",
        current: CurrentFile | None = None,
    ) -> tuple[Verdict, int]:
        for name, why in batch.failures if batch is not None else ():
            log.event(
                "file failed",
                logging.ERROR,
                file=names.shown(name),
                tries=why.tries,
                reason=why.last_line,
            )
        if time.monotonic() - self._said >= LOG_PAUSE:
            self._said = time.monotonic()
            self.report("progress")
        return "held", 0

    def trouble(self, error: Exception) -> None:
        return None  # there is no service that could be away

    def is_remembered(self) -> bool:
        return False  # nobody takes a static bucket over

    def report(self, event: str) -> None:
        total = self._statistics
        log.event(
            event,
            bucket=self.reference.bucket,
            done=total.done,
            failed=total.failed,
            skipped=self.skipped,
            left=self.files - total.done - total.failed,
        )
