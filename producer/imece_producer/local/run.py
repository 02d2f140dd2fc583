"""Local mode: an embedded server, the producer, and workers on this machine."""

import contextlib
import hashlib
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from imece import names
from imece.connection import OUTAGES, connect, reachable, text
from imece.errors import BY_SIGNAL, ImeceError, RunError
from imece.files import occupancy
from imece.files.current import Rules
from imece.files.listing import Listing
from imece.run import status
from imece.run.parameters import Parameters
from imece.run.status import Status
from imece.run.store import ON, Run
from imece.settings import PROCESSING, Settings
from imece_producer import display
from imece_producer.enqueue import Producer
from imece_producer.follow import following
from imece_producer.local import record
from imece_producer.local.scaling import (
    Replicas,
    read_limit,
    set_limit,
    wanted,
    worker_settings,
)
from imece_producer.local.server import Server
from imece_producer.local.state import (
    FAILURES,
    QUEUE,
    OccupiedError,
    announce,
    announced,
    at,
    is_locked,
    locked,
)

CALL_KEY = "imece:local:call"
"""What processes the files of the run that is on; set once it is enqueued."""

TURN = 0.1
"""Seconds between two looks at the queue."""

RECORD_INTERVAL = 2.0

LONG_IMPORT = 30.0
"""Seconds after which we say that no worker has imported the processor yet."""

MOST_WAITS_TOLD = 10
"""So many files that stopping workers wait for are named."""

SAMPLE = 0.5
"""Seconds between two counts of replicas for the summary."""


class Interrupts:
    """Counts Ctrl-C, SIGTERM and SIGHUP, so that none of them interrupts us at any place."""

    def __init__(self) -> None:
        self.count = 0
        self.number = 0  # of the last one

    def __enter__(self) -> "Interrupts":
        self._before = {
            number: signal.signal(number, self._note)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
            if signal.getsignal(number) != signal.SIG_IGN  # nohup
        }
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        self.count += 1
        self.number = number


class Waits:
    """Says which files workers that stop have still to finish; each once, the longest first."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._told: set[bytes] = set()
        self._look_at = 0.0

    def tell(self) -> None:
        if time.monotonic() < self._look_at:
            return
        self._look_at = time.monotonic() + SAMPLE
        with contextlib.suppress(ImeceError, *OUTAGES):
            now = status.read(self._run)
            for name, took in now.current_files:
                if name not in self._told and len(self._told) < MOST_WAITS_TOLD:
                    self._told.add(name)
                    left = max(0.0, now.parameters.timeout - took)
                    display.say(
                        f"waiting for {names.shown(name)}: {display.seconds(took)} so far, "
                        f"{display.seconds(left)} more at most"
                    )


def process(
    run: Run,
    replicas: Replicas,
    interrupts: Interrupts,
    show: Callable[[Status, str], None],
) -> tuple[Status, list[int]]:
    """Runs workers until the run has ended or Ctrl-C was pressed; then none is left.

    Returns:
        The run's last status, and how many replicas there were, every SAMPLE seconds.
    """
    samples: list[int] = []
    sample_at = time.monotonic()
    tell_at = sample_at + LONG_IMPORT
    try:
        while True:
            now = status.read(run)
            limit = read_limit(run.redis)
            is_over = now.has_ended and wanted(now.backlog, 1) == 0
            if is_over or now.is_held or interrupts.count:
                break
            replicas.adjust(wanted(now.backlog, limit), limit)
            if time.monotonic() >= sample_at:
                samples.append(len(replicas))
                sample_at += SAMPLE
            if now.backlog.workers:
                tell_at = float("inf")
            elif time.monotonic() >= tell_at:
                tell_at = float("inf")
                display.say(f"no worker has imported the processor yet: see {replicas.log}")
            show(now, f"{len(replicas)} of at most {limit} replicas")
            time.sleep(TURN)
        if interrupts.count:
            display.say(
                "stopping: the workers finish their current files, for "
                f"{display.seconds(now.parameters.timeout)} at most (Ctrl-C again kills them)"
            )
    finally:
        replicas.stop(lambda: interrupts.count < 2, Waits(run).tell)
    last = status.read(run)
    show(last, "")
    return last, samples


def _recorded(directory: Path, show: Callable[[Status, str], None]) -> Callable[..., None]:
    """Shows a status, and now and then leaves it for who asks after this call was killed."""
    written = float("-inf")

    def noted(now: Status, extra: str) -> None:
        nonlocal written
        show(now, extra)
        if time.monotonic() - written > RECORD_INTERVAL:
            written = time.monotonic()
            record.write(directory, now, sys.argv[1:], None)

    return noted


def derived_run_id(parameters: Parameters, settings: Settings) -> str:
    """The same for the same call, so that a second one continues where the first was stopped."""
    same = replace(parameters, max_failed=None)  # it may be raised to go on
    what = f"{same.encode()} {settings.processing}"
    digest = hashlib.sha256(what.encode("utf-8", "surrogatepass")).hexdigest()[: names.DIGEST]
    name = names.plain(parameters.input_path.resolve().name[:40])
    return names.slug(f"{name}-{digest}".lstrip("-"))


def run_here(
    settings: Settings,
    run_id: str,
    parameters: Parameters,
    list_files: Callable[[], Listing],
    rules: Rules,
    limit: int,
    as_json: bool,
) -> int:
    """The whole of `imece local`; its exit code."""
    directory = settings.state_dir.expanduser() / run_id
    try:
        return _process_here(settings, directory, parameters, list_files, rules, limit, as_json)
    except OccupiedError:
        return attach(settings, directory, parameters, as_json)


def attach(settings: Settings, directory: Path, parameters: Parameters, as_json: bool) -> int:
    """Shows how far the call is that processes the run, until it ends; its exit code.

    Raises:
        RunError: it processes the run with other options, or was killed.
    """
    run_id = directory.name
    display.say(f"run {run_id} is on already: this shows how far it is")
    before = record.read(directory)
    try:
        with following(quiet=as_json) as follower:
            while is_locked(directory):
                url = announced(directory)
                if url is not None:
                    with (
                        contextlib.suppress(*OUTAGES),
                        connect(at(settings, url), retries=0) as redis,
                    ):
                        run = Run(redis, QUEUE, run_id)
                        if (call := redis.get(CALL_KEY)) is not None:
                            _check_same(run, text(call), parameters, settings)
                            follower.show(status.read(run))
                time.sleep(TURN)
    except KeyboardInterrupt:
        display.say(f"run {run_id} continues: `imece status {run_id}` shows how far it is")
        return BY_SIGNAL + signal.SIGINT
    left = record.read(directory)
    if left is None or left.exit_code is None or left == before:
        raise RunError(
            f"the call that processed run {run_id} was killed", "call the same again to continue"
        )
    if as_json:
        display.put_json(left.status.summary())
    else:
        display.put(display.block(left.status))
    return left.exit_code


def _check_same(run: Run, call: str, parameters: Parameters, settings: Settings) -> None:
    there, ours = json.loads(call), settings.processing
    different = [name for name in PROCESSING if there.get(name) != ours.get(name)]
    different += run.parameters().differences(parameters)
    if different:
        raise RunError(
            f"run {run.id} is on with another {', another '.join(different)}",
            "wait until it has ended, or take another --run-id",
        )


def _process_here(
    settings: Settings,
    directory: Path,
    parameters: Parameters,
    list_files: Callable[[], Listing],
    rules: Rules,
    limit: int,
    as_json: bool,
) -> int:
    run_id = directory.name
    began = time.monotonic()
    with (
        locked(directory),
        Server(directory) as server,
        Interrupts() as interrupts,
        contextlib.ExitStack() as held,
    ):

        def listed() -> Listing:
            found = list_files()
            if found.files and parameters.output is not None:
                output = os.fsencode(parameters.output)
                held.enter_context(occupancy.alone(output, run_id, server.url))
            return found

        announce(directory, server.url)
        inner = at(settings, server.url)
        with reachable(inner):
            redis = connect(inner)
            set_limit(redis, limit)
            redis.delete(CALL_KEY)
            run = Run(redis, QUEUE, run_id)
            # Nobody works on what an earlier call has left: this call is its next round.
            with contextlib.suppress(RunError):
                if run.state() in ON:
                    run.cancel(inner.result_ttl)
            producer = Producer(redis, inner, display.say)
            enqueued = producer.enqueue(run_id, parameters, listed, rules)
            record.forget(directory)
            redis.set(CALL_KEY, json.dumps(settings.processing))
            if not as_json:
                display.put(display.enqueued(enqueued))
            log = directory / "workers.log"
            log.write_bytes(b"")
            environment = worker_settings(
                server.url, **settings.processing, log_format=settings.log_format
            )
            replicas = Replicas(redis, environment, log)
            with following(quiet=as_json) as follower:
                show = _recorded(directory, follower.show)
                last, samples = process(run, replicas, interrupts, show)
            told = list(display.summary(last, time.monotonic() - began, samples))
            told += display.failures(run, last, directory / FAILURES)
            if as_json:
                display.put_json({**last.summary(), "replicas": samples})
            else:
                display.put("\n".join(told))
            stopped = interrupts.count and not last.has_ended
            code = BY_SIGNAL + interrupts.number if stopped else last.exit_code
            record.write(directory, last, sys.argv[1:], code)
            if last.state == "done":
                run.forget_names()
            server.shrink(redis)
    call = shlex.join(["imece", *sys.argv[1:]])
    if last.is_held:
        display.say(f"held; to go on when that is fixed, call the same again:\n  {call}")
    if stopped:
        again = " (with --overwrite that processes all files again)" if parameters.overwrite else ""
        display.say(f"stopped; to continue, call the same again{again}:\n  {call}")
    return code
