"""Processes that start in some ms: `Popen` and `run` as in subprocess, for `python -m imece_worker`
and `python -m imece_producer`.

A template, one for each of the two, has imported what they import, and forks. There is a third for
commands where KUBECONFIG names a file: the client of Kubernetes takes longer than all else. The
fork is what the process would be that was started: a child of ours, with the files, environment,
directory, arguments and module path it was given. It differs in three things. /proc shows the
template's arguments and environment; `sys.flags` does not show `-P`; and a worker is not started
anew without its secrets (imece_worker/handover.py), for that would be as slow as any start. Where
the start itself is what is tested, take `subprocess`.

`imece local` starts its workers the same way, and a worker the interpreter that imports its
processor: each such fork has a template of its own for them.

As a program (`python -m tests.forks NAME`) this is a template. It has no thread, and opens nothing
but the line to the tests.
"""

import atexit
import ctypes
import gc
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, AnyStr, ClassVar, NamedTuple

from imece.process import follow_parent, name_process
from imece_producer.local import scaling
from imece_worker import interpreter

WORKER, PRODUCER, LOADER = "imece_worker", "imece_producer", "imece_worker.loader"
WITH_CLUSTER = "imece_producer with a cluster"
_OF_WORKERS = (
    *("imece_worker.command", "imece_worker.static", "imece_worker.worker"),
    *("imece_worker.deletioncost", "imece_worker.loader", "imece.settings"),
)
_OF_PRODUCERS = (
    *("imece_producer.cli", "imece_producer.enqueue", "imece_producer.local.run"),
    *("imece_producer.cluster.commands", "imece_producer.doctor.report"),
    *("imece.run.dead_workers", "rich.live", "rich.table"),
)
IMPORTED = {
    WORKER: _OF_WORKERS,
    PRODUCER: _OF_PRODUCERS + _OF_WORKERS,
    WITH_CLUSTER: (
        *_OF_PRODUCERS,
        *("kubernetes.config", "kubernetes.client.api.core_v1_api"),
        "kubernetes.client.api.custom_objects_api",
    ),
}
"""What a template has imported: what the command does, and most of what it imports later."""

BEFORE_MAIN = ("PYTHON", "LC_", "LANG", "TZ", "LD_", "RQ_")
"""How the names of variables begin that Python, or a library, reads when it starts. A process for
which they are others than for its template is started."""

ENCODING = "PYTHONIOENCODING"
"""The exception: a fork opens its streams itself."""

LONGEST_ORDER = 1 << 17
TEMPLATE = "template"
"""What `ps` and /proc call the one that `imece local` or a worker has."""

SUBREAPER, IS_SUBREAPER = 36, 37  # linux/prctl.h, PR_SET_CHILD_SUBREAPER
PR_CAPBSET_DROP = 24
CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 1, 2  # linux/capability.h


class Popen(subprocess.Popen[AnyStr]):
    """A fork where there is a template for it, else a process that is started."""

    def _execute_child(  # type: ignore[no-untyped-def]
        self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, startupinfo,
        creationflags, shell, p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite,
        restore_signals, gid, gids, uid, umask, start_new_session, process_group,
    ):  # fmt: skip
        """The one step of subprocess.Popen that makes the process: the rest is as it is there."""
        environment = dict(os.environ if env is None else env)
        call = Call.of(args, preexec_fn)
        template = Template.of(call.name, environment) if call is not None else None
        if call is None or template is None:
            super()._execute_child(  # type: ignore[misc]
                args, executable, preexec_fn, close_fds, pass_fds, cwd, env, startupinfo,
                creationflags, shell, p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite,
                restore_signals, gid, gids, uid, umask, start_new_session, process_group,
            )  # fmt: skip
            return
        files = [
            number if given == -1 else given
            for number, given in enumerate((p2cread, c2pwrite, errwrite))
        ]
        self.pid = template.fork(call, environment, cwd or Path.cwd(), files, start_new_session)
        self._child_created = True
        self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)  # type: ignore[attr-defined]


def run(
    words: Sequence[str | bytes],
    *,
    input: str | None = None,
    timeout: float = 60.0,
    **options: Any,
) -> "subprocess.CompletedProcess[str]":
    """As subprocess.run with text that is captured; with nothing to read, unless told else."""
    options.setdefault("stdin", subprocess.DEVNULL if input is None else subprocess.PIPE)
    pipe = subprocess.PIPE
    with Popen(words, stdout=pipe, stderr=pipe, text=True, **options) as process:
        try:
            output, errors = process.communicate(input, timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(words, process.returncode, output, errors)


def children(pid: int) -> set[int]:
    """The process ids of what a process has started: its template is none of them."""
    found = set()
    for there in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in there.read_text().split():
            with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
                if Path(f"/proc/{child}/comm").read_text().strip() != TEMPLATE:
                    found.add(int(child))
    return found


def without_roots_powers() -> None:
    """In a new process: permissions then hold for root, too, in it and in what it starts. Anybody
    else has no such powers to begin with."""
    libc = ctypes.CDLL(None)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # linux/capability.h: the version, and ourselves
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; the same of higher numbers
    libc.capget(header, sets)
    for power in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
        libc.prctl(PR_CAPBSET_DROP, power, 0, 0, 0)
        for number in range(3):
            sets[number] &= ~(1 << power)
    libc.capset(header, sets)


class Call(NamedTuple):
    """What is to be started, as far as it is in the arguments."""

    name: str
    words: list[str]
    safely: bool
    """-P: without this directory on the module path."""
    follows: int = 0
    """The signal that it gets when its parent ends, or 0."""
    powerless: bool = False
    """`without_roots_powers`."""

    @classmethod
    def of(cls, args: Sequence[str | bytes], before: Callable[[], None] | None) -> "Call | None":
        """None where no fork can be what is asked for."""
        words = [os.fsdecode(word) for word in args]
        safely = words[1:2] == ["-P"]
        options = [sys.executable, "-P", "-m"] if safely else [sys.executable, "-m"]
        if words[: len(options)] != options:
            return None
        name, *rest = words[len(options) :]
        if before is None or before is without_roots_powers:
            return cls(name, rest, safely, powerless=before is not None)
        if isinstance(before, partial) and before.func is follow_parent:
            return cls(name, rest, safely, int(before.args[1]))
        return None


class Template:
    """Our end of the line to one. It ends when this end is closed."""

    _made: ClassVar[dict[str, "Template"]] = {}
    _lock: ClassVar[threading.Lock] = threading.Lock()
    """One call at a time: some tests make them in threads."""

    def __init__(self, line: socket.socket, environment: Mapping[str, str]) -> None:
        self._line = line
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None

    @classmethod
    def start(cls, name: str, environment: dict[str, str]) -> "Template":
        line, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        made = cls(line, environment)
        with far:
            made._process = subprocess.Popen(
                [sys.executable, "-m", "tests.forks", name, str(far.fileno())],
                cwd=Path(__file__).parent.parent,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[far.fileno()],
            )
        return made

    @classmethod
    def split_off(cls, name: str, files: list[int]) -> Callable[[], None] | None:
        """Forks a template for this process alone, which does not hold these files. Comes back in
        the template, too, with what that has to do."""
        line, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        name_process(TEMPLATE)  # so it bears this name from its first moment on
        if os.fork() == 0:
            for number in (line.detach(), *files):
                os.close(number)
            return serve(name, far)
        far.close()
        cls._made[name] = cls(line, dict(os.environ))
        return None

    @classmethod
    def of(cls, name: str, environment: Mapping[str, str]) -> "Template | None":
        """The one for a module, made when it is first needed; None if there can be none."""
        if name not in (WORKER, PRODUCER, *cls._made):
            return None
        if name == PRODUCER and Path(environment.get("KUBECONFIG", "")).is_file():
            name = WITH_CLUSTER
        with cls._lock:
            if name not in cls._made:
                cls._made[name] = cls.start(name, _without_path(os.environ))
            made = cls._made[name]
        same = _before_main(made._environment) == _before_main(_without_path(environment))
        return made if same else None

    @classmethod
    def close_all(cls) -> None:
        while cls._made:
            _, made = cls._made.popitem()
            made._line.close()
            if made._process is not None:
                made._process.wait()

    def fork(
        self,
        call: Call,
        environment: dict[str, str],
        folder: str | bytes | os.PathLike[str],
        files: list[int],
        as_leader: bool,
    ) -> int:
        """The process id of a new child of this process."""
        order = {
            **call._asdict(),
            "parent": os.getpid(),
            "environment": environment,
            "folder": os.fsdecode(folder),
            "as_leader": as_leader,
        }
        prctl, before = ctypes.CDLL(None).prctl, ctypes.c_int()
        with self._lock:
            prctl(IS_SUBREAPER, ctypes.byref(before), 0, 0, 0)
            prctl(SUBREAPER, 1, 0, 0, 0)  # whose parent ends is ours now
            try:
                socket.send_fds(self._line, [json.dumps(order).encode()], files)
                answer = self._line.recv(20)
            finally:
                prctl(SUBREAPER, before.value, 0, 0, 0)
        assert answer, "the template has ended"
        return int(answer)


def _without_path(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name != "PYTHONPATH"}


def _before_main(environment: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value
        for name, value in environment.items()
        if name.startswith(BEFORE_MAIN) and name != ENCODING
    }


def serve(name: str, line: socket.socket) -> Callable[[], None]:
    """Forks until nobody is there who asks. Comes back in each fork, with what that has to do."""
    for module in IMPORTED.get(name, ()):
        importlib.import_module(module)
    assert len(list(Path("/proc/self/task").iterdir())) == 1, "a fork beside a thread may hang"
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: it is for the tests
    gc.freeze()  # forks share what has been imported
    while True:
        message, files, _, _ = socket.recv_fds(line, LONGEST_ORDER, 3)
        if not message:
            return lambda: os._exit(0)
        ours, theirs = os.pipe()
        adopted, not_yet = os.pipe()
        if (between := os.fork()) == 0:
            if os.fork() == 0:
                order = json.loads(message)
                if order["as_leader"]:  # before anybody knows it, and sends a signal to its group
                    os.setsid()
                os.write(theirs, b"%d" % os.getpid())
                for number in (line.detach(), ours, theirs, not_yet):
                    os.close(number)
                os.read(adopted, 1)  # comes back when it is closed
                os.close(adopted)
                return _become(order, files)
            os._exit(0)  # so the fork becomes a child of who has asked
        os.waitpid(between, 0)
        os.close(not_yet)
        line.send(os.read(ours, 20))
        for number in (adopted, ours, theirs, *files):
            os.close(number)


def _become(order: dict[str, Any], files: list[int]) -> Callable[[], None]:
    """Makes this process what `python -m NAME` is when it begins."""
    name = order["name"]
    if name == PRODUCER and order["words"][:1] == ["local"]:
        if (serving := Template.split_off(WORKER, files)) is not None:
            return serving
        vars(scaling)["subprocess"] = SimpleNamespace(Popen=Popen, DEVNULL=subprocess.DEVNULL)
    if name == WORKER and not order["powerless"]:
        if (serving := Template.split_off(LOADER, files)) is not None:
            return serving
        vars(interpreter)["subprocess"] = SimpleNamespace(**{**vars(subprocess), "Popen": Popen})
    name_process(Path(sys.executable).name)
    if order["follows"]:
        follow_parent(order["parent"], signal.Signals(order["follows"]))
    if order["powerless"]:
        without_roots_powers()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, given in enumerate(files):
        os.dup2(given, number)
        os.close(given)
    encoding = order["environment"].get(ENCODING)
    # The streams there are have looked at the template's files.
    sys.stdin, sys.stdout, sys.stderr = (
        open(  # noqa: SIM115 - open for as long as the process
            number,
            "w" if number else "r",
            buffering=1 if number == 2 else -1,
            encoding=encoding or stream.encoding,
            errors="strict" if encoding and number < 2 else stream.errors,
            closefd=False,
        )
        for number, stream in enumerate((sys.stdin, sys.stdout, sys.stderr))
    )
    made_at_start = _before_main(os.environ)  # Python sets LC_CTYPE where no locale is set
    os.environ.clear()
    os.environ.update(made_at_start | order["environment"])
    tempfile.tempdir = None  # what the template was told
    found = importlib.util.find_spec(LOADER if name == LOADER else f"{name}.__main__")
    assert found is not None
    os.chdir(order["folder"])
    path = os.environ.get("PYTHONPATH")
    sys.path[:1] = [
        *(() if order["safely"] else [str(Path.cwd())]),
        *(path.split(os.pathsep) if path else ()),
    ]
    sys.argv = [str(found.origin), *order["words"]]
    sys.orig_argv = [
        *(sys.executable, *(["-P"] if order["safely"] else []), "-m", name),
        *order["words"],
    ]
    main: Callable[..., Any]
    if name == LOADER:
        from imece_worker.loader import main

        return lambda: _leave(main)
    if name == WORKER:
        from imece_worker.__main__ import main

        return lambda: _leave(lambda: main(sys.argv[1:]))
    from imece_producer.__main__ import main

    return lambda: _leave(main)


def _leave(main: Callable[[], Any]) -> None:
    """Ends as Python does, but takes no module to pieces: of a fork, that is the larger part."""
    try:
        code = main()
    except SystemExit as end:
        code = end.code
    if code is not None and not isinstance(code, int):
        sys.exit(code)
    for thread in threading.enumerate():
        if thread is not threading.main_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):  # Python has something to say of it
        sys.exit(code)
    os._exit(code or 0)


if __name__ == "__main__":
    serve(sys.argv[1], socket.socket(fileno=int(sys.argv[2])))()
