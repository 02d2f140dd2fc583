"""The promise: neither a processor nor its program gets the password of Redis, or a connection."""

import json
import os
from pathlib import Path

import pytest

from imece.errors import SettingsError
from imece.settings import load
from imece_worker import handover
from tests.conftest import Workbench

PASSWORD = "hunter2"

TELL = """
import json, os, pathlib, socket
HELD = open(__file__)
PAIR = socket.socketpair()
def f(source, target):
    links = {}
    for number in os.listdir("/proc/self/fd"):
        try:
            links[number] = os.readlink(f"/proc/self/fd/{number}")
        except FileNotFoundError:
            pass
    HELD.seek(0)
    PAIR[0].send(b"x")
    told = {
        "environ": dict(os.environ),
        "proc": pathlib.Path("/proc/self/environ").read_text(),
        "links": links,
        "held": HELD.read(10),
        "pair": PAIR[1].recv(1).decode(),
        "sockets": [os.fstat(part.fileno()).st_ino for part in PAIR],
        "parent": pathlib.Path(f"/proc/{os.getppid()}/environ").read_text(),
    }
    pathlib.Path(target).write_text(json.dumps(told))
"""


def by_password(workbench: Workbench) -> None:
    """From here on the server wants it. `workbench.redis` is connected already."""
    workbench.redis.acl_setuser(
        "somebody", enabled=True, passwords=[f"+{PASSWORD}"], commands=["+@all"], keys=["*"],
        channels=["*"],
    )  # fmt: skip
    workbench.redis.acl_setuser("default", enabled=True, passwords=[f"+{PASSWORD}"])
    workbench.redis.connection_pool.connection_kwargs["password"] = PASSWORD


def one_file_done(workbench: Workbench, **settings: str) -> str:
    """Its output."""
    workbench.files(1)
    workbench.settings |= {"redis_username": "somebody", "redis_password": PASSWORD}
    workbench.enqueue(retries=0)
    workbench.worker(fresh=True, **settings)
    assert workbench.ended().state == "done", workbench.failures()
    return (workbench.target / "f-0000.txt").read_text()


def test_a_function_sees_no_password_and_no_connection(
    workbench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it opened itself when it was imported stays open."""
    by_password(workbench)
    (workbench.folder / "tell.py").write_text(TELL)
    monkeypatch.setenv("PYTHONPATH", str(workbench.folder))
    monkeypatch.setenv("imece_redis_password", PASSWORD)  # small letters are read, too
    monkeypatch.setenv("MINE", "kept")
    told = json.loads(one_file_done(workbench, processor="tell:f"))
    for where in ("environ", "proc", "parent"):
        shown = json.dumps(told[where])
        for secret in (PASSWORD, "somebody", str(workbench.server.socket), "REDIS_"):
            assert secret not in shown, where
    assert told["environ"]["MINE"] == "kept"
    assert told["environ"]["IMECE_LEASE"] == "5"
    assert (told["held"], told["pair"]) == ("\nimport js", "x")
    sockets = {link for link in told["links"].values() if link.startswith("socket:")}
    own = {f"socket:[{inode}]" for inode in told["sockets"]}
    assert own < sockets
    assert len(sockets - own) == 1  # the line to its parent
    memories = {link for link in told["links"].values() if "memfd" in link}
    assert memories == {"/memfd:shared (deleted)"}  # what worker and runner share, and no secrets


def test_a_program_sees_no_password_and_no_connection(workbench: Workbench) -> None:
    by_password(workbench)
    program = workbench.folder / "program"
    program.write_text('#!/bin/sh\n(env; ls -l /proc/self/fd; cat /proc/$PPID/environ) > "$2"\n')
    program.chmod(0o755)
    del workbench.settings["processor"]
    output = one_file_done(workbench, command=f"{program} {{input}} {{output}}")
    assert "IMECE_LEASE" in output
    for secret in (PASSWORD, "somebody", str(workbench.server.socket), "REDIS_", "socket:"):
        assert secret not in output


def test_the_settings_are_read_as_if_nothing_had_been_hidden(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("IMECE_REDIS_URL", "redis://elsewhere:1234/5")
    monkeypatch.setenv("IMECE_REDIS_PASSWORD", PASSWORD)
    with handover.in_environment():
        found = load()
    assert found.redis_url.get_secret_value() == "redis://elsewhere:1234/5"
    assert found.redis_password is not None
    assert found.redis_password.get_secret_value() == PASSWORD
    assert not [name for name in os.environ if "REDIS" in name]


def test_they_are_gone_even_if_the_settings_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMECE_REDIS_URL", "nowhere")
    with pytest.raises(SettingsError), handover.in_environment():
        load()
    assert "IMECE_REDIS_URL" not in os.environ


def test_a_worker_keeps_its_process_id_and_its_arguments(workbench: Workbench) -> None:
    workbench.files(2)
    workbench.enqueue()
    worker = workbench.worker(fresh=True).started()
    command = Path(f"/proc/{worker.pid}/cmdline").read_bytes().split(b"\0")
    assert command[1:3] == [b"-m", b"imece_worker"]
    assert workbench.ended().done == 2
