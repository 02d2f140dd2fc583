"""A run is enqueued whole or not at all, and its id means one run, whatever dies meanwhile."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from imece.errors import ListingError, RunError, ServiceError
from imece.run import keys, manifest, scripts
from imece.run.job import Reference
from imece.run.store import Run
from imece_producer.enqueue import Producer
from tests import forks
from tests.conftest import ROOT, Workbench, until
from tests.test_listing import ODD_NAMES

Producing = subprocess.Popen[bytes]


class Produce:
    """Starts `imece enqueue` processes; those still there are killed in the end."""

    def __init__(self, workbench: Workbench) -> None:
        self._workbench = workbench
        self._started: list[Producing] = []

    def __call__(self, *options: str, run_id: str = "run") -> Producing:
        bench = self._workbench
        directories = [str(bench.source), str(bench.target)]
        call = ["enqueue", *directories, "--run-id", run_id, *options]
        process = forks.Popen[bytes](
            [sys.executable, "-m", "imece_producer", *call],
            env={**os.environ, **bench.environment()},
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._started.append(process)
        return process

    def listing(self, run_id: str = "run") -> Producing:
        """One that has begun its run and waits for names on its standard input."""
        process = self("--from-file", "-", run_id=run_id)
        until(
            lambda: Run(self._workbench.redis, "imece", run_id).state() == "listing", "the listing"
        )
        return process

    def close(self) -> None:
        for process in self._started:
            process.kill()
            with process:  # closes its pipes
                pass


@pytest.fixture
def produce(workbench: Workbench) -> Iterator[Produce]:
    made = Produce(workbench)
    yield made
    made.close()


def result(process: Producing, names: Iterable[str] = ()) -> tuple[int, str, str]:
    """Gives a producer its names and waits for it: exit code, output, errors."""
    text = "".join(f"{name}\n" for name in names)
    output, errors = process.communicate(text.encode(), timeout=60)
    return process.returncode, output.decode(), errors.decode()


def forget_waiting(workbench: Workbench, run_id: str = "run") -> None:
    """As if the time after which a silent producer counts as dead had passed."""
    workbench.redis.delete(keys.claim(keys.run("imece", run_id)))


def files_in_queue(redis: Redis, queue: str = "imece") -> list[bytes]:
    """Every name that the queue's jobs stand for, as a worker would see them."""
    names = []
    for job_id in redis.lrange(keys.pending(queue), 0, -1):
        assert isinstance(job_id, bytes)
        reference = Reference.parse(job_id)
        key = f"imece:imece:run:{reference.run}"
        blob = redis.hget(f"{key}:manifest:{reference.part}", str(reference.bucket))
        cursor = redis.hget(f"{key}:jobs", reference.field)
        assert isinstance(blob, bytes)
        assert isinstance(cursor, bytes)
        start, stop, *_ = json.loads(cursor)
        names += manifest.decode(blob)[start:stop]
    return names


def files_to_do(workbench: Workbench, run_id: str) -> set[bytes]:
    """Every name that a job of the run stands for, be it in the queue or not."""
    run = Run(workbench.redis, "imece", run_id)
    found: set[bytes] = set()
    for (part, bucket), cursors in run.unfinished().items():
        for cursor in cursors:
            found.update(run.names(part, bucket)[cursor.next : cursor.stop])
    return found


def nothing_to_see(workbench: Workbench) -> bool:
    """No job in the queue, no run, and nothing that stays."""
    redis = workbench.redis
    assert redis.exists(keys.pending("imece"), "rq:queues") == 0
    assert workbench.immortal_keys() == []
    return True


# What is enqueued


def test_each_file_is_in_the_queue_exactly_once(workbench: Workbench) -> None:
    names = workbench.files(500)
    workbench.enqueue(buckets=7, files_per_job=10)
    assert sorted(files_in_queue(workbench.redis)) == [name.encode() for name in names]
    now = workbench.status()
    assert (now.state, now.files, now.buckets) == ("queued", 500, 7)
    assert now.jobs_left == now.backlog.pending


def test_odd_names_are_enqueued_and_processed_as_they_are(workbench: Workbench) -> None:
    for name in ODD_NAMES:
        (workbench.source / os.fsdecode(name)).write_bytes(name)
    workbench.enqueue()
    assert sorted(files_in_queue(workbench.redis)) == sorted(ODD_NAMES)
    workbench.worker()
    assert workbench.ended().done == len(ODD_NAMES)
    for name in ODD_NAMES:
        assert (workbench.target / os.fsdecode(name)).read_bytes() == name
    workbench.check_books()


def test_more_files_than_one_process_groups_are_all_there(
    workbench: Workbench, tmp_path: Path
) -> None:
    names = [f"part-{number:07d}.csv" for number in range(120_000)]
    (tmp_path / "names").write_text("\n".join(names))
    workbench.enqueue(from_file=str(tmp_path / "names"))
    assert sorted(files_in_queue(workbench.redis)) == [name.encode() for name in names]


def test_every_key_of_an_enqueued_run_has_a_ttl(workbench: Workbench) -> None:
    workbench.files(50)
    workbench.enqueue()
    assert workbench.immortal_keys() == ["rq:queue:imece"]
    for key in workbench.redis.scan_iter():
        if key != b"rq:queue:imece":
            assert workbench.redis.ttl(key) >= workbench.load().run_ttl - 60, key


# The run id


def test_the_same_id_again_attaches(workbench: Workbench) -> None:
    workbench.files(10)
    assert workbench.enqueue().how == "enqueued"
    workbench.files(20)
    assert workbench.enqueue().how == "attached"
    assert workbench.status().files == 10
    assert len(files_in_queue(workbench.redis)) == 10


def ends(workbench: Workbench, how: str) -> None:
    """Enqueues again, and works until the run has ended."""
    assert workbench.enqueue().how == how
    worker = workbench.worker()
    workbench.ended()
    assert worker.stop() == 0


def test_the_same_id_on_an_ended_run_is_its_next_round(workbench: Workbench) -> None:
    """The second night: what is new, changed, failed or missing is processed, and nothing else."""
    workbench.settings |= {"processor": "tests.processors:by_content", "retries": "0"}
    workbench.files(5)
    workbench.file("f-0004.txt", "raise no")
    ends(workbench, "enqueued")
    first = workbench.check_books()
    assert (first.state, first.done, first.failed, first.round) == ("failed", 4, 1, 1)
    moments = {name: (workbench.target / name).stat().st_mtime_ns for name in workbench.outputs()}

    workbench.file("new.txt", "new")
    workbench.file("f-0001.txt", "changed")
    (workbench.target / "f-0002.txt").unlink()
    workbench.file("f-0004.txt", "fixed")
    (workbench.source / "f-0003.txt").unlink()
    ends(workbench, "enqueued")
    second = workbench.status()
    assert (second.state, second.files, second.round) == ("done", 5, 2)
    assert (second.done, second.skipped, second.failed) == (4, 1, 0)
    assert (workbench.target / "f-0001.txt").read_text() == "changed"
    unchanged = workbench.target / "f-0000.txt"
    assert unchanged.stat().st_mtime_ns == moments["f-0000.txt"]
    assert workbench.failures() == {}


def test_the_next_round_may_have_other_options_but_not_another_place(workbench: Workbench) -> None:
    workbench.files(3)
    ends(workbench, "enqueued")
    again = workbench.enqueue(exclude=["f-0000.txt"], retries=7, timeout=5.0, overwrite=True)
    assert again.how == "enqueued"
    assert workbench.status().parameters.retries == 7
    assert workbench.status().files == 2
    Run(workbench.redis, "imece", "run").cancel(600)
    with pytest.raises(RunError, match="another suffix"):
        workbench.enqueue(suffix=".json")


def test_what_a_cancelled_run_has_done_is_not_done_again_though_nobody_can_see_it(
    workbench: Workbench,
) -> None:
    """Without an output directory there is nothing to look at."""
    workbench.files(30)
    workbench.settings["processor"] = "tests.processors:traced"
    workbench.enqueue(target="-", buckets=3, files_per_job=10)
    worker = workbench.worker()
    for done in (3, 8):
        until(lambda done=done: sum(workbench.finished().values()) >= done, "some files")  # type: ignore[misc]
        Run(workbench.redis, "imece", "run").cancel(600)
        workbench.file(f"new-{done}.txt", "new")
        assert workbench.enqueue(target="-", buckets=3, files_per_job=10).how == "resumed"
    now = workbench.ended()
    assert (now.state, now.files, now.left) == ("done", 32, 0)
    assert set(workbench.finished().values()) == {1}
    assert len(workbench.finished()) == 32
    worker.stop()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"suffix": ".json"}, "another suffix:"),
        ({"overwrite": True}, "another overwrite:"),
        ({"include": ["*.txt"], "hidden": True}, "another include, another hidden:"),
        ({"buckets": 3}, "another buckets:"),
        ({"retries": 7, "timeout": 8.0}, "another retries, another timeout:"),
        ({"from_file": "/dev/null"}, "another source:"),
    ],
)
def test_the_same_id_with_other_parameters_is_refused_by_their_names(
    workbench: Workbench, options: dict[str, Any], named: str
) -> None:
    workbench.files(3)
    workbench.enqueue()
    with pytest.raises(RunError, match="the run id run is in use with ") as error:
        workbench.enqueue(**options)
    assert error.value.exit_code == 2
    assert named in str(error.value)
    assert "--run-id" in str(error.value)
    assert workbench.status().files == 3


def test_the_same_id_with_another_output_is_exit_code_2(workbench: Workbench) -> None:
    workbench.files(3)
    workbench.enqueue()
    call = ["enqueue", str(workbench.source), str(workbench.folder / "other"), "--run-id", "run"]
    answer = workbench.imece(*call)
    assert answer.returncode == 2
    assert answer.stderr == (
        "imece: the run id run is in use with another output: "
        "take another --run-id, or call with what it was made with\n"
    )


def test_an_id_is_slugged(workbench: Workbench) -> None:
    workbench.files(1)
    answer = workbench.imece(
        *("enqueue", str(workbench.source), str(workbench.target)),
        *("--run-id", "scheduled__2026-11-23T00:00:00+00:00", "--json"),
    )
    assert json.loads(answer.stdout)["run"] == ("scheduled__2026-11-23T00-00-00-00-00-4a56ce8e4c0d")


def test_an_id_is_made_from_the_directory_where_none_is_given(workbench: Workbench) -> None:
    workbench.files(1)
    call = ["enqueue", str(workbench.source), "-", "--json"]
    made = [json.loads(workbench.imece(*call).stdout) for _ in range(2)]
    assert [one["how"] for one in made] == ["enqueued", "enqueued"]
    assert made[0]["run"] != made[1]["run"]
    assert made[0]["run"].startswith("in-20")


# Two at once


def test_two_producers_at_once_make_one_run(workbench: Workbench, produce: Produce) -> None:
    names = workbench.files(2000)
    both = [produce(), produce()]
    answers = [result(process) for process in both]
    assert [answer[0] for answer in answers] == [0, 0], answers
    assert sorted(files_in_queue(workbench.redis)) == [name.encode() for name in names]
    assert workbench.status().files == 2000
    assert workbench.status().generation == 1


def test_a_second_producer_waits_for_the_one_that_lists(
    workbench: Workbench, produce: Produce
) -> None:
    first = produce.listing()
    second = produce("--from-file", "-")
    assert second.stderr is not None
    said = second.stderr.readline().decode()
    assert said == "run run is being listed by another producer: waiting for it\n"
    code, output, _ = result(first, ["a", "b"])
    assert (code, output.splitlines()[0].split(":")[0]) == (0, "run run")
    code, output, _ = result(second, ["a", "b"])
    assert (code, output.startswith("run run is on already: queued")) == (0, True)
    assert sorted(files_in_queue(workbench.redis)) == [b"a", b"b"]


def test_a_second_producer_takes_over_from_one_that_fails(
    workbench: Workbench, produce: Produce
) -> None:
    first = produce.listing()
    second = produce("--from-file", "-")
    assert second.stderr is not None
    second.stderr.readline()
    assert result(first, ["/etc/passwd"])[0] == 2
    assert result(second, ["a"])[0] == 0
    assert files_in_queue(workbench.redis) == [b"a"]


# Producers that die


def test_a_producer_killed_while_listing_leaves_nothing(
    workbench: Workbench, produce: Produce
) -> None:
    process = produce.listing()
    process.kill()
    process.wait()
    assert nothing_to_see(workbench)
    assert 0 < workbench.redis.ttl(keys.claim(keys.run("imece", "run"))) <= 10
    forget_waiting(workbench)
    assert result(produce("--from-file", "-"), ["a", "b"])[0] == 0
    assert sorted(files_in_queue(workbench.redis)) == [b"a", b"b"]


def test_a_dead_producers_id_is_free_after_ten_seconds(
    workbench: Workbench, produce: Produce
) -> None:
    process = produce.listing()
    process.kill()
    process.wait()
    workbench.redis.expire(keys.claim(keys.run("imece", "run")), 2)  # eight of them have passed
    assert result(produce("--from-file", "-"), ["a"])[0] == 0
    assert files_in_queue(workbench.redis) == [b"a"]


def test_a_producer_that_lists_for_long_keeps_its_run(
    workbench: Workbench, produce: Produce
) -> None:
    process = produce.listing()
    workbench.redis.expire(keys.claim(keys.run("imece", "run")), 5)
    until(lambda: workbench.redis.ttl(keys.claim(keys.run("imece", "run"))) > 5, "a sign of life")
    assert result(process, ["a"])[0] == 0


def test_a_producer_killed_while_staging_leaves_nothing(
    workbench: Workbench, produce: Produce
) -> None:
    process = produce.listing()
    workbench.redis.client_pause(60_000, all=False)  # writes wait
    assert process.stdin is not None
    process.stdin.write(b"".join(b"name-%05d\n" % number for number in range(5000)))
    process.stdin.close()
    until(
        lambda: any("b" in client["flags"] for client in workbench.redis.client_list()),
        "the producer to stage",
    )
    process.kill()
    process.wait()
    workbench.redis.client_unpause()
    assert nothing_to_see(workbench)
    forget_waiting(workbench)
    assert result(produce("--from-file", "-"), ["a"])[0] == 0
    assert files_in_queue(workbench.redis) == [b"a"]


def test_an_interrupted_producer_takes_its_run_back_at_once(
    workbench: Workbench, produce: Produce
) -> None:
    process = produce.listing()
    process.send_signal(signal.SIGINT)
    code, _, errors = result(process)
    assert code == 130
    assert "Traceback" not in errors
    assert nothing_to_see(workbench)
    assert Run(workbench.redis, "imece", "run").state() is None


MOMENTS = 40

LATE = """
import json, sys, time
from imece_producer.request import list_files
from imece_producer.enqueue import Producer
from imece.connection import connect
from imece.run.parameters import Parameters
from imece.settings import load
import imece.files.listing, rq
settings = load()
redis = connect(settings)
redis.ping()
parameters = Parameters.decode(sys.argv[2].encode())
print("ready", flush=True)
sys.stdin.readline()
def names():
    return list_files(parameters, None, False)
Producer(redis, settings).enqueue(sys.argv[1], parameters, names)
print("enqueued", flush=True)
"""


class Moments:
    """Kills producers of one folder at given delays after they have begun."""

    def __init__(self, workbench: Workbench) -> None:
        self.workbench = workbench
        self.jobs = workbench.enqueue("whole", files_per_job=2, buckets=500).run.redis.llen(
            keys.pending("imece")
        )
        self.parameters = Run(workbench.redis, "imece", "whole").parameters()
        workbench.redis.flushall()

    def start(self, run_id: str) -> Producing:
        parameters = replace(self.parameters, output=f"{self.parameters.output}-of-{run_id}")
        process = subprocess.Popen(
            [sys.executable, "-c", LATE, run_id, parameters.encode()],
            env={**os.environ, **self.workbench.environment(), "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        return process

    def time(self) -> float:
        """Seconds an undisturbed one takes."""
        process = self.start("timed")
        began = time.monotonic()
        process.communicate(b"go\n", timeout=60)
        self.workbench.redis.flushall()
        return time.monotonic() - began

    def kill_after(self, run_id: str, delay: float) -> bool:
        """Whether the run was committed before the producer was killed."""
        process = self.start(run_id)
        assert process.stdin is not None
        process.stdin.write(b"go\n")
        process.stdin.flush()
        time.sleep(delay)  # the moment itself, not a wait for something
        process.kill()
        process.communicate()
        redis, key = self.workbench.redis, f"imece:imece:run:{run_id}"
        committed = redis.hget(key, "state") == b"queued"
        assert redis.llen(keys.pending("imece")) == (self.jobs if committed else 0)
        assert redis.exists(f"{key}:jobs") == committed
        left = set(self.workbench.immortal_keys()) - {keys.pending("imece")}
        assert left == set()
        redis.delete(keys.pending("imece"))
        return committed


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_producer_killed_at_any_moment_leaves_all_or_nothing(workbench: Workbench) -> None:
    """And the same id does the right thing afterwards."""
    names = workbench.files(4000)
    moments = Moments(workbench)
    longest = moments.time()
    committed = [
        moments.kill_after(f"run-{moment}", longest * moment / MOMENTS) for moment in range(MOMENTS)
    ]
    assert not all(committed)
    assert not committed[0]
    for moment in (0, MOMENTS // 3, MOMENTS // 2, MOMENTS - 1):
        process = moments.start(f"run-{moment}")
        output, _ = process.communicate(b"go\n", timeout=60)
        assert output == b"enqueued\n"
        assert files_to_do(workbench, f"run-{moment}") == {name.encode() for name in names}
        assert workbench.status(f"run-{moment}").files == 4000
        workbench.redis.delete(keys.pending("imece"))


# Cancelled or out of reach meanwhile


def test_a_run_cancelled_while_it_is_listed_never_begins(
    workbench: Workbench, produce: Produce
) -> None:
    process = produce.listing()
    assert workbench.imece("cancel", "run").returncode == 0
    code, _, errors = result(process, ["a"])
    assert code == 2
    assert errors == "imece: run run was cancelled, or taken over, while it was being enqueued\n"
    assert nothing_to_see(workbench)
    assert result(produce("--from-file", "-"), ["a"])[0] == 0


def test_a_producer_whose_run_was_taken_over_does_no_harm(
    workbench: Workbench, produce: Produce
) -> None:
    first = produce.listing()
    forget_waiting(workbench)
    assert result(produce("--from-file", "-"), ["b"])[0] == 0
    assert result(first, ["a"])[0] == 2
    assert files_in_queue(workbench.redis) == [b"b"]
    assert workbench.status().files == 1


def out_of_memory(workbench: Workbench, room: int) -> None:
    used = workbench.redis.info("memory")["used_memory"]
    workbench.redis.config_set("maxmemory", max(1, used + room))


@pytest.mark.parametrize(
    "room",
    [
        -(10**6),
        1_000_000,
        *(pytest.param(room, marks=pytest.mark.slow) for room in (200_000, 3_000_000)),
    ],
)
def test_a_full_server_is_a_clear_error_and_nothing_is_enqueued(
    workbench: Workbench, tmp_path: Path, room: int
) -> None:
    chance = random.Random(1)
    names = [chance.randbytes(40).hex() for _ in range(100_000)]
    (tmp_path / "names").write_text("\n".join(names))
    out_of_memory(workbench, room)
    call = ["enqueue", str(workbench.source), str(workbench.target), "--run-id", "run"]
    call += ["--from-file", str(tmp_path / "names"), "--files-per-job", "50"]
    answer = workbench.imece(*call)
    assert answer.returncode == 3, answer.stdout
    assert answer.stderr == (
        f"imece: Redis at unix://{workbench.server.socket} is out of memory: "
        "raise its maxmemory, or delete ended runs\n"
    )
    assert nothing_to_see(workbench)
    assert Run(workbench.redis, "imece", "run").state() is None
    workbench.redis.config_set("maxmemory", 0)
    assert workbench.imece(*call).returncode == 0
    assert workbench.status().files == 100_000


def test_a_server_that_goes_away_while_listing_is_a_clear_error(
    workbench: Workbench, produce: Produce
) -> None:
    process = produce.listing()
    workbench.server.stop(signal.SIGKILL)
    code, _, errors = result(process, ["a"])
    assert code == 3
    assert "is out of reach" in errors
    assert "Traceback" not in errors


def test_a_commit_whose_answer_is_lost_stays_committed(
    workbench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The producer hears nothing, gives up, and must not take back what workers may have begun."""
    workbench.files(10)
    commit = scripts.run

    def lose_the_answer(name: str, *arguments: object) -> object:
        answer = commit(name, *arguments)  # type: ignore[arg-type]
        if name == "commit":
            raise ServiceError("the answer was lost")
        return answer

    monkeypatch.setattr(scripts, "run", lose_the_answer)
    with pytest.raises(ServiceError):
        workbench.enqueue()
    monkeypatch.undo()
    assert len(files_in_queue(workbench.redis)) == 10
    assert workbench.enqueue().how == "attached"


def test_a_commit_that_comes_after_its_producer_gave_up_does_nothing(
    workbench: Workbench,
) -> None:
    """What was staged is taken back by then."""
    workbench.files(2)
    workbench.settings["retries"] = "0"
    workbench.settings["processor"] = "tests.processors:by_content"
    workbench.file("f-0000.txt", "raise always")
    workbench.enqueue()
    worker = workbench.worker()
    assert workbench.ended().state == "failed"
    worker.stop()
    run = Run(workbench.redis, "imece", "run")
    producer = Producer(workbench.redis, workbench.load())
    answer = producer._commit(
        run, "0a1b2c3d", run.snapshot(), set(), 1, {"files": 1, "failed": 0}, 0.0
    )
    assert answer == "withdrawn"
    assert workbench.status().state == "failed"
    assert workbench.check_books().failed == 1


# What cannot be listed


def refused(workbench: Workbench, *arguments: str, text: str = "") -> str:
    """The one line `imece` says of what it refuses, with exit code 2."""
    answer = forks.run(
        [sys.executable, "-m", "imece_producer", "enqueue", *arguments, "--run-id", "run"],
        env={**os.environ, **workbench.environment()},
        cwd=ROOT,
        input=text,
        preexec_fn=forks.without_roots_powers,
    )
    assert answer.returncode == 2, answer.stderr
    assert answer.stdout == ""
    [line] = answer.stderr.splitlines()
    assert line.startswith("imece: ")
    assert nothing_to_see(workbench)
    assert Run(workbench.redis, "imece", "run").state() is None
    return line.removeprefix("imece: ")


def test_an_empty_directory_is_a_run_of_no_files(workbench: Workbench) -> None:
    """A daily job need not fail on a quiet day."""
    call = ("enqueue", str(workbench.source), str(workbench.target), "--run-id", "run")
    answer = workbench.imece(*call)
    assert answer.stdout == f"run run: there are no files to process in {workbench.source}\n"
    assert answer.returncode == 0
    now = workbench.status()
    assert (now.state, now.files, now.exit_code, now.round) == ("done", 0, 0, 1)
    assert workbench.redis.llen("rq:queue:imece") == 0
    workbench.files(1)
    assert workbench.imece(*call).returncode == 0
    workbench.worker()
    assert workbench.ended().done == 1
    (workbench.source / "f-0000.txt").unlink()
    assert workbench.imece(*call).returncode == 0
    now = workbench.status()
    assert (now.state, now.files, now.done, now.round) == ("done", 0, 0, 3)


def test_where_files_are_required_an_empty_directory_is_refused(workbench: Workbench) -> None:
    call = [str(workbench.source), str(workbench.target), "--require-files"]
    line = refused(workbench, *call)
    assert line == f"there are no files to process in {workbench.source}"


def test_a_directory_where_all_was_left_out_says_what(workbench: Workbench) -> None:
    workbench.file(".hidden")
    workbench.file("a.txt")
    (workbench.source / "link").symlink_to("/etc/passwd")
    call = ["enqueue", str(workbench.source), str(workbench.target), "--exclude", "*.txt"]
    assert workbench.imece(*call, "--dry-run").stdout == (
        f"there are no files to process in {workbench.source}; "
        "1 link refused (it leaves the directory, or leads to one): link; "
        "1 hidden left out (--hidden takes them); 1 left out by --include and --exclude\n"
    )


def test_a_limit_takes_the_first_files_and_the_next_round_the_rest(workbench: Workbench) -> None:
    names = workbench.files(7)
    call = ("enqueue", str(workbench.source), str(workbench.target), "--run-id", "run")
    said = workbench.imece(*call, "--limit", "3", "--dry-run").stdout
    assert said.startswith("would process 3 files in ")
    assert said.endswith("\n  4 left out by --limit\n")
    workbench.imece(*call, "--limit", "3")
    workbench.worker()
    assert workbench.ended().done == 3
    assert workbench.outputs() == names[:3]
    workbench.imece(*call)
    now = workbench.ended()
    assert (now.done, now.skipped) == (4, 3)


def test_a_missing_directory_is_refused(workbench: Workbench) -> None:
    line = refused(workbench, str(workbench.folder / "nothing"), str(workbench.target))
    assert line == f"the input directory {workbench.folder}/nothing does not exist"


def test_a_file_as_input_is_refused(workbench: Workbench) -> None:
    workbench.file("a")
    line = refused(workbench, str(workbench.source / "a"), str(workbench.target))
    assert line.endswith("in/a is not a directory")


def test_a_directory_that_cannot_be_read_is_refused(workbench: Workbench) -> None:
    workbench.file("a")
    workbench.source.chmod(0)
    line = refused(workbench, str(workbench.source), str(workbench.target))
    assert line.endswith("cannot be read: check its permissions")


def test_a_directory_inside_a_directory_that_cannot_be_read_is_refused(
    workbench: Workbench,
) -> None:
    workbench.file("a")
    workbench.file("out-of-reach/in/a")
    (workbench.source / "out-of-reach").chmod(0)
    inner = workbench.source / "out-of-reach" / "in"
    line = refused(workbench, str(inner), str(workbench.target))
    assert str(inner) in line


def test_a_directory_below_that_cannot_be_read_is_named_and_can_be_left_out(
    workbench: Workbench,
) -> None:
    workbench.file("a")
    workbench.file("locked/b")
    (workbench.source / "locked").chmod(0)
    line = refused(workbench, str(workbench.source), str(workbench.target))
    assert "in/locked/ cannot be read: Permission denied" in line
    assert "--exclude" in line
    answer = workbench.imece(
        *("enqueue", str(workbench.source), str(workbench.target), "--exclude", "locked")
    )
    assert answer.returncode == 0


def test_an_output_inside_the_input_is_refused(workbench: Workbench) -> None:
    workbench.file("a")
    line = refused(workbench, str(workbench.source), str(workbench.source / "out"))
    assert "lies inside the input directory" in line


def test_an_output_inside_the_input_through_a_link_is_refused(workbench: Workbench) -> None:
    workbench.file("a")
    (workbench.folder / "link").symlink_to(workbench.source)
    line = refused(workbench, str(workbench.source), str(workbench.folder / "link" / "out"))
    assert "lies inside the input directory" in line


def test_an_input_inside_the_output_is_refused(workbench: Workbench) -> None:
    workbench.file("d/a")
    line = refused(workbench, str(workbench.source / "d"), str(workbench.source))
    assert "lies inside the output directory" in line


def test_a_file_as_output_is_refused(workbench: Workbench) -> None:
    workbench.file("a")
    workbench.target.touch()
    line = refused(workbench, str(workbench.source), str(workbench.target))
    assert line == f"the output {workbench.target} is not a directory"


def test_directories_side_by_side_with_alike_names_are_fine(workbench: Workbench) -> None:
    workbench.file("a")
    answer = workbench.imece("enqueue", str(workbench.source), str(workbench.folder / "in-out"))
    assert answer.returncode == 0, answer.stderr


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a\nb\na\n", "the name 'a' is in the list twice"),
        ("a\n./a\n", "the name 'a' is in the list twice"),
        ("d/../../a\n", "in the list has an empty, '.' or '..' part"),
        ("/etc/passwd\n", "the name '/etc/passwd' in the list is an absolute path"),
        ("a\r\nb\r\n", "every line of the list ends in a carriage return, as on Windows"),
    ],
)
def test_a_list_with_a_flaw_is_refused(
    workbench: Workbench, tmp_path: Path, text: str, says: str
) -> None:
    (tmp_path / "list").write_text(text, newline="")
    with pytest.raises(ListingError) as error:
        workbench.enqueue(from_file=str(tmp_path / "list"))
    assert says in str(error.value)
    assert error.value.exit_code == 2
    assert nothing_to_see(workbench)
    assert Run(workbench.redis, "imece", "run").state() is None


def test_a_name_that_leaves_the_input_is_refused(workbench: Workbench) -> None:
    call = [str(workbench.source), str(workbench.target), "--from-file", "-"]
    line = refused(workbench, *call, text="fine\n../a\n")
    assert line == "the name '../a' in the list has an empty, '.' or '..' part"


def test_a_list_that_is_not_there_is_refused(workbench: Workbench) -> None:
    call = [str(workbench.source), str(workbench.target), "--from-file", "/nowhere"]
    assert refused(workbench, *call) == "--from-file /nowhere: No such file or directory"


def test_two_inputs_for_one_output_are_refused(workbench: Workbench) -> None:
    workbench.file("a.csv")
    workbench.file("a.tsv")
    call = [str(workbench.source), str(workbench.target), "--suffix", ".json"]
    line = refused(workbench, *call)
    assert "would both write 'a.json'" in line
    assert "'a.csv'" in line
    assert "'a.tsv'" in line


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--suffix", "json"),
        ("--timeout", "nan"),
        ("--include", "!"),
    ],
)
def test_an_option_with_a_wrong_value_is_refused(
    workbench: Workbench, option: str, value: str
) -> None:
    workbench.file("a")
    line = refused(workbench, str(workbench.source), str(workbench.target), option, value)
    assert option.strip("-") in line or "glob" in line


def test_a_set_of_all_queues_that_another_has_spoilt_keeps_no_run_from_coming(
    workbench: Workbench,
) -> None:
    """The users of other queues may write to it, too."""
    workbench.files(3)
    workbench.redis.set(keys.QUEUES, "no set")
    workbench.enqueue()
    assert workbench.status().state == "queued"
    assert workbench.redis.llen(keys.pending("imece")) == workbench.status().jobs_left > 0
    workbench.redis.delete(keys.QUEUES)


def test_two_queues_each_have_a_run_of_the_same_id(workbench: Workbench) -> None:
    """And neither command line sees the other's."""
    workbench.files(3)
    workbench.enqueue()
    assert workbench.imece("runs", queue="another").stdout == "no runs\n"
    missing = workbench.imece("cancel", "run", queue="another")
    assert (missing.returncode, "there is no run run" in missing.stderr) == (2, True)
    folders = (str(workbench.source), str(workbench.target))
    again = workbench.imece("enqueue", *folders, "--run-id", "run", queue="another")
    assert again.returncode == 0, again.stderr
    assert Run(workbench.redis, "another", "run").state() == "queued"
    assert workbench.imece("cancel", "run", queue="another").returncode == 0
    assert workbench.status().state == "queued"
    assert workbench.redis.llen(keys.pending("another")) == 0
