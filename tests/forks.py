"""Processes that start in some ms: `Popen` and `run` as in subprocess, for `python -m imece_worker`
and `python -m imece_producer`.

A template, one for each of the two, has imported what they import, and forks. The fork is what the
process would be that was started: a child of ours, with the files, environment, directory,
arguments and module path it was given. It differs in two things. /proc shows the template's
arguments and environment; and a worker is not started anew without its secrets
(imece_worker/handover.py), for that would be as slow as any start. Where the start itself is what
is tested, take `subprocess`.

As a program (`python -m tests.forks NAME`) this is a template. It has no thread, and opens nothing
but the line to the tests.
"""

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
from pathlib import Path
from typing import Any, AnyStr, ClassVar

IMPORTED = {
    "imece_worker": (
        *("imece_worker.command", "imece_worker.static", "imece_worker.worker"),
        *("imece_worker.deletioncost", "imece.settings"),
    ),
    "imece_producer": (
        *(
            "imece_producer.cli",
            "imece_producer.enqueue",
            "imece_producer.local.run",
            "imece_producer.cluster.commands",
        ),
        *("imece_producer.doctor", "imece.run.dead_workers", "rich.live", "rich.table"),
    ),
}
"""What a template has imported: what the command does, and most of what it imports later."""

BEFORE_MAIN = ("PYTHON", "LC_", "LANG", "TZ", "LD_", "RQ_")
"""How the names of variables begin that Python, or a library, reads when it starts. A process for
which they are others than for its template is started."""

LONGEST_ORDER = 1 << 17
SUBREAPER = 36  # linux/prctl.h, PR_SET_CHILD_SUBREAPER


class Popen(subprocess.Popen[AnyStr]):
    """A fork where there is a template for it, else a process that is started."""

    def _execute_child(  # type: ignore[no-untyped-def]
        self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, startupinfo,
        creationflags, shell, p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite,
        restore_signals, gid, gids, uid, umask, start_new_session, process_group,
    ):  # fmt: skip
        """The one step of subprocess.Popen that makes the process: the rest is as it is there."""
        environment = dict(os.environ if env is None else env)
        template = None
        if preexec_fn is None and list(args[:2]) == [sys.executable, "-m"]:
            template = Template.of(args[2], environment)
        if template is None:
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
        words = [os.fsdecode(word) for word in args[3:]]
        self.pid = template.fork(words, environment, cwd or Path.cwd(), files, start_new_session)
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


class Template:
    """Our end of the line to one. It ends when this end is closed."""

    _made: ClassVar[dict[str, "Template"]] = {}
    _lock: ClassVar[threading.Lock] = threading.Lock()
    """One call at a time: some tests make them in threads."""

    def __init__(self, name: str, environment: dict[str, str]) -> None:
        self._environment = environment
        self._line, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with far:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.forks", name, str(far.fileno())],
                cwd=Path(__file__).parent.parent,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[far.fileno()],
            )

    @classmethod
    def of(cls, name: str, environment: Mapping[str, str]) -> "Template | None":
        """The one for a module, made when it is first needed; None if there can be none."""
        if name not in IMPORTED:
            return None
        with cls._lock:
            if name not in cls._made:
                cls._made[name] = cls(name, _without_path(os.environ))
            made = cls._made[name]
        same = _before_main(made._environment) == _before_main(_without_path(environment))
        return made if same else None

    @classmethod
    def close_all(cls) -> None:
        while cls._made:
            _, made = cls._made.popitem()
            made._line.close()
            made._process.wait()

    def fork(
        self,
        words: list[str],
        environment: dict[str, str],
        folder: str | bytes | os.PathLike[str],
        files: list[int],
        as_leader: bool,
    ) -> int:
        """The process id of a new child of this process."""
        order = {
            "words": words,
            "environment": environment,
            "folder": os.fsdecode(folder),
            "as_leader": as_leader,
        }
        prctl = ctypes.CDLL(None).prctl
        with self._lock:
            prctl(SUBREAPER, 1, 0, 0, 0)  # whose parent ends is ours now
            try:
                socket.send_fds(self._line, [json.dumps(order).encode()], files)
                answer = self._line.recv(20)
            finally:
                prctl(SUBREAPER, 0, 0, 0, 0)
        assert answer, "the template has ended"
        return int(answer)


def _without_path(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name != "PYTHONPATH"}


def _before_main(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(BEFORE_MAIN)}


def serve(name: str, line: socket.socket) -> Callable[[], None]:
    """Forks until nobody is there who asks. Comes back in each fork, with what that has to do."""
    for module in IMPORTED[name]:
        importlib.import_module(module)
    assert len(list(Path("/proc/self/task").iterdir())) == 1, "a fork beside a thread may hang"
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: it is for the tests
    gc.freeze()  # forks share what has been imported
    while True:
        message, files, _, _ = socket.recv_fds(line, LONGEST_ORDER, 3)
        if not message:
            return lambda: None
        ours, theirs = os.pipe()
        if (between := os.fork()) == 0:
            if (pid := os.fork()) == 0:
                line.close()
                os.close(ours)
                os.close(theirs)
                return _become(name, json.loads(message), files)
            os.write(theirs, b"%d" % pid)
            os._exit(0)  # so the fork becomes a child of the tests
        os.waitpid(between, 0)
        line.send(os.read(ours, 20))
        for number in (ours, theirs, *files):
            os.close(number)


def _become(name: str, order: dict[str, Any], files: list[int]) -> Callable[[], None]:
    """Makes this process what `python -m NAME` is when it begins."""
    if order["as_leader"]:
        os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, given in enumerate(files):
        os.dup2(given, number)
        os.close(given)
    # The streams there are have looked at the template's files.
    sys.stdin, sys.stdout, sys.stderr = (
        open(  # noqa: SIM115 - open for as long as the process
            number,
            "w" if number else "r",
            buffering=1 if number == 2 else -1,
            encoding=stream.encoding,
            errors=stream.errors,
            closefd=False,
        )
        for number, stream in enumerate((sys.stdin, sys.stdout, sys.stderr))
    )
    made_at_start = _before_main(os.environ)  # Python sets LC_CTYPE where no locale is set
    os.environ.clear()
    os.environ.update(made_at_start | order["environment"])
    tempfile.tempdir = None  # what the template was told
    found = importlib.util.find_spec(f"{name}.__main__")
    assert found is not None
    os.chdir(order["folder"])
    path = os.environ.get("PYTHONPATH")
    sys.path[:1] = [str(Path.cwd()), *(path.split(os.pathsep) if path else ())]
    sys.argv = [str(found.origin), *order["words"]]
    sys.orig_argv = [sys.executable, "-m", name, *order["words"]]
    main: Callable[..., Any]
    if name == "imece_worker":
        from imece_worker.__main__ import main

        return lambda: main(sys.argv[1:])
    from imece_producer.__main__ import main

    return main


if __name__ == "__main__":
    serve(sys.argv[1], socket.socket(fileno=int(sys.argv[2])))()
