"""The promises, whatever happens: nothing is lost, nothing is said done that is not, each file is
done once. Random sequences of everything that can happen to a small run, against a plain model."""

import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, Verbosity, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from redis import Redis
from typer.testing import CliRunner

from imece.errors import ImeceError, RunError
from imece.run.job import Cursor, Reference
from imece.run.status import Status
from imece.run.store import Run
from imece_producer.cli import app
from imece_producer.local.server import Server
from tests.conftest import Workbench, WorkerProcess, until
from tests.key_lifetimes import flaws
from tests.lost_second import log_size, put_back
from tests.processors_that_stamp import FAILS, stamp

RUN = "run"
MOST_WORKERS = 3
ON = ("queued", "running")
ENDED = ("done", "failed", "cancelled")
PATIENCE = 30.0

QUICK_EXAMPLES = 8
QUICK_STEPS = 12
PARTS = 10
"""Tests that share the examples of the slow suite, so that they can run beside each other."""

EXAMPLES = int(os.environ.get("PROMISES_EXAMPLES", "1000"))
STEPS = int(os.environ.get("PROMISES_STEPS", "12"))

WHICH = st.integers(0, 99)
"""Stands for one of what is there: modulo its number."""


T = TypeVar("T")


class Worker(WorkerProcess):
    """A worker, and the process group it leads."""

    def __init__(self, settings: dict[str, str], log: Path) -> None:
        super().__init__(settings, log, leads=True)
        self.is_frozen = False
        self.is_leaving = False

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None

    def signal(self, number: signal.Signals, whole_group: bool = False) -> None:
        with suppress(ProcessLookupError):
            (os.killpg if whole_group else os.kill)(self.pid, number)


class Promises(RuleBasedStateMachine):
    """One run, and a model of what must come of it.

    Which step comes next must not hang on how far the processes have got: a step that is not
    possible at that moment does nothing.

    Attributes:
        inputs: the files that are there, and what is in them.
        listed: the files of the round that is on, or was last; None if that is not known.
        spoilt: outputs that were removed or replaced since that round began.
        rounds: how many have begun.
        is_calm: whether nothing has happened that could make a file be begun again.
    """

    def __init__(self) -> None:
        super().__init__()
        self.story: list[str] = []
        self.folder = Path(tempfile.mkdtemp(prefix="imece-promises-"))
        self.server = Server(self.folder / "redis")
        self.server.start()
        self.redis = Redis(unix_socket_path=str(self.server.socket))
        self.bench = Workbench(self.server, self.redis, self.folder)
        self.bench.settings |= {
            "processor": "tests.processors_that_stamp:stamped",
            "retry_pause": "0.01",
            "lease": "3",
            "heartbeat": "0.1",
            "checkpoint": "0.05",
            "state_dir": str(self.folder / "state"),
        }
        self.workers: list[Worker] = []
        self.inputs: dict[str, bytes] = {}
        self.rewritten: set[str] = set()
        self.listed: set[str] | None = None
        self.kept: set[str] = set()
        self.spoilt: set[str] = set()
        self.rounds = self.cancels = self.versions = self.contents = 0
        self.is_calm = True
        self.log_mark: int | None = None
        self.listed_since_mark = False
        self.options: list[str] = []

    # What is used below

    @contextmanager
    def told(self) -> Iterator[None]:
        """What goes wrong here comes with all that went before."""
        try:
            yield
        except Exception as error:
            error.add_note("\n".join(["What happened:", *self.story]))
            for worker in self.workers:
                lines = worker.log().splitlines()[-15:]
                error.add_note("\n".join([f"worker {worker.pid}:", *lines]))
            error.add_note(f"trace: {dict(self.bench.begun())}")
            raise

    def say(self, text: str) -> None:
        self.story.append(f"  {time.strftime('%H:%M:%S')} {text}")

    def imece(self, *arguments: str) -> tuple[int, str]:
        """Exit code and output of a command; in this process, which is faster."""
        answer = CliRunner().invoke(app, arguments, env=self.bench.environment())
        error = answer.exception
        if isinstance(error, ImeceError):
            self.say(f"imece {arguments[0]}: {error}")
            return error.exit_code, ""
        if error is not None and not isinstance(error, SystemExit):
            raise error
        return answer.exit_code, answer.stdout

    def status(self) -> Status | None:
        try:
            return self.bench.status(RUN)
        except RunError:
            return None

    def state(self) -> str | None:
        now = self.status()
        return now.state if now else None

    def alive(self) -> list[Worker]:
        return [worker for worker in self.workers if worker.is_alive]

    def one_of(self, which: int, among: list[T]) -> list[T]:
        """A list of one; of none, if there is none."""
        return [among[which % len(among)]] if among else []

    def write(self, name: str, fails: bool) -> None:
        """New content, in one step. Its time is a little ahead: an output that was made from the
        old content is older, however coarse the clock of the file system is."""
        self.contents += 1
        content = (FAILS if fails else b"good") + b" content %d of %s" % (
            self.contents,
            name.encode(),
        )
        new = self.folder / "new"
        new.write_bytes(content)
        now = time.time_ns()
        os.utime(new, ns=(now, now + 5_000_000))
        new.rename(self.bench.source / name)
        self.inputs[name] = content

    def new_version(self) -> None:
        self.versions += 1
        new = self.folder / "version.new"
        new.write_text(f"v{self.versions}")
        new.rename(self.folder / "version")

    def start_worker(self) -> None:
        log = self.folder / f"worker-{len(self.workers)}.log"
        self.workers.append(Worker(self.bench.environment(), log))

    def fails(self, name: str) -> bool:
        return self.inputs[name].startswith(FAILS)

    def begin_round(self, names: set[str]) -> None:
        self.listed, self.spoilt = names, set()
        self.listed_since_mark = True
        self.rounds += 1

    # What can happen

    @initialize(
        files=st.integers(5, 30),
        bad=st.integers(0, 2),
        buckets=st.integers(1, 4),
        per_job=st.sampled_from([3, 100]),
        overwrite=st.sampled_from([False, False, True]),
        workers=st.integers(0, 2),
    )
    def begin(
        self, files: int, bad: int, buckets: int, per_job: int, overwrite: bool, workers: int
    ) -> None:
        self.say(f"{files} files, {bad} bad, {buckets=}, {per_job=}, {overwrite=}, {workers=}")
        self.new_version()
        for number in range(files):
            self.write(f"f-{number:02d}.txt", fails=number < bad)
        self.options = ["--buckets", str(buckets), "--files-per-job", str(per_job)]
        self.options += ["--overwrite"] if overwrite else []
        self.overwrite = overwrite
        for _ in range(workers):
            self.start_worker()
        self.enqueue()

    @rule()
    def enqueue(self) -> None:
        with self.told():
            source, target = str(self.bench.source), str(self.bench.target)
            kept = self.in_hand()
            code, output = self.imece(
                "enqueue", source, target, "--run-id", RUN, "--json", *self.options
            )
            assert code == 0
            how = json.loads(output)["how"]
            self.say(f"enqueue: {how}")
            if how != "attached":
                self.kept = kept
                self.begin_round(set(self.inputs))

    @rule()
    def a_worker_comes(self) -> None:
        if len(self.alive()) < MOST_WORKERS:
            self.start_worker()
            self.say(f"worker {self.workers[-1].pid} comes")

    @rule(files=st.integers(1, 10))
    def some_files_are_done(self, files: int) -> None:
        self.let_work(files)

    @rule(files=st.integers(5, 30))
    def many_files_are_done(self, files: int) -> None:
        self.let_work(files)

    def let_work(self, files: int) -> None:
        """Waits for so many files, not for long: there may be nobody who works."""

        def through() -> int:
            now = self.status()
            return now.done + now.failed + now.skipped if now and not now.has_ended else 10**9

        goal, end = through() + files, time.monotonic() + 0.5
        while through() < goal and time.monotonic() < end:
            time.sleep(0.01)
        self.say(f"some work is done: {self.state()}")

    @rule(which=WHICH, whole_group=st.booleans())
    def a_worker_is_killed(self, which: int, whole_group: bool) -> None:
        for worker in self.one_of(which, self.alive()):
            self.say(f"kill -9 of {worker.pid}, {whole_group=}")
            worker.signal(signal.SIGKILL, whole_group)
            worker.wait()
            self.is_calm = False

    @rule(which=WHICH)
    def a_runner_is_killed(self, which: int) -> None:
        runners = [runner for worker in self.alive() for runner in worker.children()]
        for runner in self.one_of(which, runners):
            self.say(f"kill -9 of the runner {runner}")
            with suppress(ProcessLookupError):
                os.kill(runner, signal.SIGKILL)
            self.is_calm = False

    @rule(which=WHICH, whole_group=st.booleans())
    def a_worker_is_asked_to_stop(self, which: int, whole_group: bool) -> None:
        for worker in self.one_of(which, self.alive()):
            self.say(f"SIGTERM to {worker.pid}, {whole_group=}")
            worker.is_leaving = True
            worker.signal(signal.SIGTERM, whole_group)

    @rule(which=WHICH, whole_group=st.booleans())
    def a_worker_is_frozen(self, which: int, whole_group: bool) -> None:
        for worker in self.one_of(which, self.alive()):
            self.say(f"SIGSTOP to {worker.pid}, {whole_group=}")
            worker.is_frozen = True
            worker.signal(signal.SIGSTOP, whole_group)
            self.is_calm = False

    @rule()
    def who_is_frozen_goes_on(self) -> None:
        for worker in self.alive():
            if worker.is_frozen:
                self.say(f"SIGCONT to {worker.pid}")
                worker.is_frozen = False
                worker.signal(signal.SIGCONT, whole_group=True)

    @rule()
    def cancel(self) -> None:
        if self.state() not in ON:
            return
        with self.told():
            code, _ = self.imece("cancel", RUN)
            self.cancels += 1
            now = self.state()
            self.say(f"cancel: {now}")
            if now != "cancelled":
                # It ended by itself just before; or after, with the files that were in hand.
                assert now in ("done", "failed")
                assert code != 0 or self.bench.status(RUN).left == 0

    @rule()
    def retry(self) -> None:
        if self.state() != "failed":
            return
        with self.told():
            code, _ = self.imece("retry", RUN)
            self.say("retry")
            assert code == 0
            self.rounds += 1
            self.listed_since_mark = True

    @rule()
    def forget_the_run(self) -> None:
        if self.state() not in ENDED:
            return
        with self.told():
            code, _ = self.imece("delete", RUN)
            self.say("delete")
            assert code == 0
            assert self.state() is None
            self.listed, self.listed_since_mark = None, True

    @rule(which=WHICH, count=st.integers(1, 5))
    def outputs_are_removed(self, which: int, count: int) -> None:
        names = self.bench.outputs()
        first = which % max(1, len(names))
        for name in names[first : first + count]:
            self.say(f"the output {name} is removed")
            (self.bench.target / name).unlink(missing_ok=True)
            self.spoilt.add(name)
            self.is_calm = False

    @rule()
    def all_outputs_are_removed(self) -> None:
        self.say("OUT is removed")
        self.spoilt |= set(self.bench.outputs()) | set(self.inputs)
        shutil.rmtree(self.bench.target, ignore_errors=True)
        self.is_calm = False

    @rule(which=WHICH)
    def an_older_output_is_put_there(self, which: int) -> None:
        """As a backup would put it back: it is older than its input."""
        [name] = self.one_of(which, sorted(self.inputs))
        self.say(f"an older output of {name} is put there")
        self.bench.target.mkdir(exist_ok=True)
        new = self.folder / "older"
        new.write_bytes(b"by an older version, from older content")
        os.utime(new, (1, 1))
        new.rename(self.bench.target / name)
        self.spoilt.add(name)
        self.is_calm = False

    @rule()
    def outputs_get_other_rights(self) -> None:
        """Which changes no content, and no time but that of the change (st_ctime)."""
        self.say("chmod of all outputs")
        for name in self.bench.outputs():
            with suppress(FileNotFoundError):
                (self.bench.target / name).chmod(0o640)

    @rule(which=WHICH, fails=st.sampled_from([False, False, True]))
    def an_input_is_rewritten(self, which: int, fails: bool) -> None:
        [name] = self.one_of(which, sorted(self.inputs))
        self.say(f"{name} is rewritten, {fails=}")
        self.write(name, fails)
        self.is_calm = False

    @rule(which=WHICH)
    def an_input_is_touched(self, which: int) -> None:
        [name] = self.one_of(which, sorted(self.inputs))
        self.say(f"{name} is touched")
        os.utime(self.bench.source / name)
        self.is_calm = False

    @rule(fails=st.sampled_from([False, False, True]))
    def an_input_comes(self, fails: bool) -> None:
        name = f"new-{self.contents}.txt"
        self.say(f"{name} comes, {fails=}")
        self.write(name, fails)

    @precondition(lambda self: len(self.inputs) > 1)
    @rule(which=WHICH)
    def an_input_goes(self, which: int) -> None:
        [name] = self.one_of(which, sorted(self.inputs))
        self.say(f"{name} is removed")
        (self.bench.source / name).unlink()
        del self.inputs[name]
        self.spoilt.add(name)
        self.is_calm = False

    @rule(how=st.sampled_from([signal.SIGTERM, signal.SIGKILL]))
    def redis_restarts(self, how: signal.Signals) -> None:
        self.say(f"Redis restarts after {how.name}")
        self.server.stop(how)
        self.server.start()

    @rule()
    def the_log_is_looked_at(self) -> None:
        self.log_mark, self.listed_since_mark = log_size(self.server), False

    @precondition(lambda self: self.log_mark is not None)
    @rule()
    def redis_is_put_back(self) -> None:
        """To what it was when somebody looked at its log."""
        assert self.log_mark is not None
        self.say("Redis is put back")
        put_back(self.server, self.log_mark)
        self.log_mark = None
        self.is_calm = False
        if self.listed_since_mark:
            self.listed = None

    # What must be true at any time

    @invariant()
    def the_books_say_no_more_than_is_there(self) -> None:
        with self.told():
            now = self.status()
            if now is None:
                return
            assert now.left >= 0, now.summary()
            assert min(now.done, now.failed, now.skipped) >= 0, now.summary()
            assert now.state != "held", now.summary()
            if now.state in ("done", "failed"):
                assert now.left == 0, now.summary()
                assert (now.state == "done") == (now.failed == 0), now.summary()
            if self.listed is not None and not self.spoilt:
                names = self.listed | self.kept
                there = [name for name in names if (self.bench.target / name).exists()]
                assert now.done + now.skipped <= len(there), now.summary()
            if self.listed is not None and now.state == "done":
                missing = self.listed - self.spoilt - set(self.bench.outputs())
                assert missing == set(), now.summary()

    # What must be true in the end

    def teardown(self) -> None:
        try:
            if self.options:
                with self.told():
                    self.settle()
        finally:
            for worker in self.workers:
                worker.signal(signal.SIGKILL, whole_group=True)
                worker.wait()
            self.redis.close()
            self.server.close()
            shutil.rmtree(self.folder, ignore_errors=True)

    def until(self, condition: Callable[[], Any], what: str) -> None:
        until(condition, what, PATIENCE)

    def settle(self) -> None:
        """What was held up goes on, and the run has one more round."""
        self.who_is_frozen_goes_on()
        self.say(f"the end: {self.state()}")
        if self.state() is not None:
            self.until(self.has_ended, "the run to end")
        self.the_books_say_no_more_than_is_there()
        self.new_version()
        before = self.rounds
        in_hand = self.in_hand()
        self.enqueue()
        assert self.rounds == before + 1, "it has not begun another round"
        self.until(self.has_ended, "the last round to end")
        self.everything_is_as_the_model_says(in_hand)
        self.nothing_is_left_behind()

    def has_ended(self) -> bool:
        """As a Deployment does, it starts a worker where none is left: one ends when the process
        that imports its processor is killed."""
        if all(worker.is_leaving for worker in self.alive()):
            self.start_worker()
        return self.bench.status(RUN).has_ended

    def in_hand(self) -> set[str]:
        """The files of jobs that a worker has, or died with: the next round keeps these jobs, also
        with --overwrite."""
        run = Run(self.redis, "imece", RUN)
        names: set[str] = set()
        for field, cursor in run.snapshot().held.items():
            job = Reference.of_field(RUN, field)
            files = run.names(job.part, job.bucket)[job.start : Cursor.decode(cursor).stop]
            names.update(map(os.fsdecode, files))
        return names

    def everything_is_as_the_model_says(self, in_hand: set[str]) -> None:
        now = self.bench.status(RUN)
        # Of a job in hand, but gone: done before that, or failed because of it.
        gone = in_hand - set(self.inputs)
        bad = {name for name in self.inputs if self.fails(name)}
        bad |= gone & set(self.bench.failures(RUN))
        assert len(self.inputs) <= now.files <= len(self.inputs) + len(gone), now.summary()
        assert set(self.bench.failures(RUN)) == bad
        assert now.failed == len(bad), now.summary()
        assert now.done + now.skipped == now.files - len(bad), now.summary()
        assert now.left == 0, now.summary()
        assert now.state == ("failed" if bad else "done"), now.summary()
        code, _ = self.imece("wait", RUN, "--json")
        assert code == (1 if bad else 0)
        for name, content in self.inputs.items():
            if name not in bad:
                output = self.bench.target / name
                assert output.exists(), f"{name} has no output: {now.summary()}"
                kept = not self.overwrite or name in in_hand
                versions = range(1 if kept else self.versions, self.versions + 1)
                possible = [stamp(f"v{version}", content) for version in versions]
                assert output.read_bytes() in possible, f"the output of {name} is stale"
        if self.is_calm:
            self.no_file_was_begun_again(bad)

    def no_file_was_begun_again(self, bad: set[str]) -> None:
        """Where a run is cancelled and goes on, each worker may still have had a file in hand."""
        most = self.rounds if self.overwrite else 1
        again = {
            name: times - most
            for name, times in self.bench.begun().items()
            if name not in bad and times > most
        }
        assert sum(again.values()) <= self.cancels * MOST_WORKERS, again

    def nothing_is_left_behind(self) -> None:
        def waiting() -> list[str]:
            keys = ("rq:queue:imece", "rq:queue:imece:intermediate")
            left = [key for key in keys if self.redis.llen(key)]
            return left + (["rq:wip:imece"] if self.redis.zcard("rq:wip:imece") else [])

        self.until(lambda: not waiting(), "the queue to be empty")
        self.until(lambda: self.bench.temporaries() == [], "the temporary outputs to be gone")
        assert flaws(self.redis, self.bench.load()) == []
        for worker in self.alive():
            worker.signal(signal.SIGTERM)
        for worker in self.workers:
            worker.wait()


def hold(examples: int, steps: int, number: int, derandomize: bool = False) -> None:
    """Runs so many sequences; the number makes them others than those of another test."""
    machine: type[Promises] = type("Promises", (Promises,), {})
    run_state_machine_as_test(
        machine if derandomize else seed(number)(machine),
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            derandomize=derandomize,
            # To find a shorter sequence takes long, and what depends on chance may not fail
            # again: what happened comes with the error.
            phases=[Phase.generate],
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
            verbosity=Verbosity.normal,
        ),
    )


def test_the_promises_hold_in_some_sequences() -> None:
    hold(QUICK_EXAMPLES, QUICK_STEPS, 0, derandomize=True)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("number", range(PARTS))
def test_the_promises_hold_in_a_thousand_sequences(number: int) -> None:
    hold(EXAMPLES // PARTS, STEPS, number)
