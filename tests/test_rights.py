"""The promise: what `imece doctor` looks for in Redis's ACL is what imece sends, and nothing else.

A whole life of runs, by the command line and workers of a user of the ACL; then what the server has
recorded is held against imece_producer/doctor/redis.py.
"""

import pytest
from redis import Redis
from redis.exceptions import ResponseError

from imece.run import keys
from imece_producer.doctor.redis import PROBES
from tests.conftest import Workbench, until

ONLY_AFTER_A_WHILE = {"ping"}
"""By redis-py, on a connection that has been silent for 30 seconds."""

ALL = ["~*", "&*", "+@all"]
NO_RIGHT_NEEDED = {"auth", "hello", "quit", "unsubscribe"}
"""What a user may always send, or is sent by a connection that ends. UNSUBSCRIBE: by RQ."""


CONTAINERS = ("CLIENT", "PUBSUB", "SCRIPT")
"""Commands whose subcommands an ACL grants one by one."""


def probed() -> frozenset[str]:
    """The commands, as an ACL and `INFO commandstats` name them: hget, script|load."""
    found = set()
    for probe in PROBES:
        command, *words = probe.split()
        found.add(f"{command}|{words[0]}" if command in CONTAINERS else command)
    return frozenset(command.lower() for command in found)


def acl() -> list[str]:
    """The rules of a user that may do what imece needs, and nothing else."""
    granted = (f"+{name}" for name in sorted(probed()))
    return [*keys.rights("imece"), "-@all", *granted]


@pytest.fixture
def admin(workbench: Workbench) -> Redis:
    """The server's first user; the workbench goes on as another one."""
    return workbench.redis


def become(workbench: Workbench, admin: Redis, rules: list[str]) -> None:
    """From here on everything is done by a user with these rules."""
    rule = ("ACL", "SETUSER", "ada", "on", ">secret", "resetkeys", "resetchannels", *rules)
    admin.execute_command(*rule)  # type: ignore[no-untyped-call]
    workbench.settings |= {"redis_username": "ada", "redis_password": "secret"}
    workbench.redis = Redis(
        unix_socket_path=str(workbench.server.socket), username="ada", password="secret"
    )
    admin.execute_command("CONFIG", "RESETSTAT")  # type: ignore[no-untyped-call]


def whole_life(workbench: Workbench, admin: Redis) -> None:
    """Every command of imece that uses Redis, workers, a death, an outage, a sweep."""

    def imece(*words: str, code: int = 0) -> str:
        answer = workbench.imece(*words)
        assert answer.returncode == code, (words, answer.stdout + answer.stderr)
        return answer.stdout

    workbench.settings |= {"processor": "tests.processors:by_content", "lease": "3"}
    workbench.files(10)
    workbench.file("bad.txt", "raise bad")
    workbench.file("deadly.txt", "kill-worker")
    folders = (str(workbench.source), str(workbench.target))
    enqueue = ("enqueue", *folders, "--run-id", "run", "--buckets", "3", "--retries", "1")
    imece(*enqueue)
    imece(*enqueue)
    admin.hset("rq:job:malformed", "data", "garbage")
    workbench.redis.lpush("rq:queue:imece", "malformed")
    until(lambda: ended(workbench), "the run to end", 90)
    worker = workbench.workers[-1]

    def has_noticed() -> bool:
        """Between two commands it would connect again, and notice nothing."""
        if "redis out of reach" not in worker.log():
            admin.client_kill_filter(_type="normal")
        return "redis is back" in worker.log()

    until(has_noticed, "the worker to notice that it was cut off")
    until(lambda: workbench.redis.exists(keys.sweeper("imece")), "a sweep")
    assert "bad.txt" in imece("failures", "run", "--full")
    imece("retry", "run")
    imece("cancel", "run")
    imece(*enqueue)
    until(lambda: ended(workbench), "the run to end again", 90)
    imece("wait", "run", code=1)
    imece("status")
    imece("status", "run", "--watch")
    imece("runs")
    imece("delete", "run")
    assert workbench.workers[-1].stop() == 0


def ended(workbench: Workbench) -> bool:
    """Whether the run has; a worker that died of the deadly file is replaced."""
    if all(worker.process.poll() is not None for worker in workbench.workers):
        workbench.worker(log_format="json")
    return workbench.status().has_ended


def known(admin: Redis, command: str) -> bool:
    """Redis before 7.2 has no CLIENT SETINFO, and redis-py minds no refusal of it."""
    try:
        admin.execute_command("ACL", "SETUSER", "nobody", f"+{command}")  # type: ignore[no-untyped-call]
    except ResponseError:
        return False
    return True


def recorded(admin: Redis) -> set[str]:
    """The commands that have been sent, also by scripts."""
    sent = {name.removeprefix("cmdstat_") for name in admin.info("commandstats")}
    ours = {"config|resetstat", "client|kill", "acl|setuser"}
    return sent - NO_RIGHT_NEEDED - ours


@pytest.mark.slow
def test_what_is_recorded_is_what_the_rights_name(workbench: Workbench, admin: Redis) -> None:
    become(workbench, admin, ALL)
    whole_life(workbench, admin)
    sent = recorded(admin)
    named = {command for command in probed() if known(admin, command)}
    missing, superfluous = sorted(sent - named), sorted(named - sent - ONLY_AFTER_A_WHILE)
    assert not missing, f"imece_producer/doctor/redis.py has no probe for {missing}"
    assert not superfluous, (
        f"imece_producer/doctor/redis.py has probes for what is not sent: {superfluous}"
    )


def test_a_user_with_these_rights_alone_is_never_refused(
    workbench: Workbench, admin: Redis
) -> None:
    rules = [rule for rule in acl() if rule[0] != "+" or known(admin, rule[1:])]
    become(workbench, admin, rules)
    whole_life(workbench, admin)
    log = admin.execute_command("ACL", "LOG")  # type: ignore[no-untyped-call]
    assert log == []
