"""A server that has lost its last second: its append-only file is cut, or a late replica takes its
place."""

import signal
import socket
import tempfile
from pathlib import Path

from redis import Redis

from imece_producer.local.server import Server
from tests.conftest import until


def log_file(server: Server) -> Path:
    """The part of the append-only file that grows."""
    [found] = (server.directory / "appendonlydir").glob("*.incr.aof")
    return found


def log_size(server: Server) -> int:
    """How long the append-only file is: a server writes to it before it answers."""
    return log_file(server).stat().st_size


def put_back(server: Server, size: int) -> None:
    """Kills the server, cuts its append-only file to a size it had before, and starts it again.

    A command or transaction that is cut in two is left out by the server itself
    (`aof-load-truncated`).
    """
    server.stop(signal.SIGKILL)
    log = log_file(server)
    with log.open("r+b") as stream:
        stream.truncate(min(size, log.stat().st_size))
    server.start()


class Pair:
    """A primary and its replica, behind one address: a link to the socket of the one in charge."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.primary = Server(folder / "primary", port=str(port), bind="127.0.0.1")
        self.replica = Server(folder / "replica", replicaof=f"127.0.0.1 {port}")
        self._links = tempfile.TemporaryDirectory(prefix="imece-")  # a socket's path is short
        self.socket = Path(self._links.name) / "redis.sock"

    def __enter__(self) -> "Pair":
        self.primary.start()
        self.replica.start()
        self._lead_to(self.primary)
        self._stale = Redis(unix_socket_path=str(self.replica.socket))
        until(self._is_in_step, "the replica to be in step")
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stale.close()
        self.replica.close()
        self.primary.close()
        self._links.cleanup()

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    def _lead_to(self, server: Server) -> None:
        link = self.socket.with_suffix(".new")
        link.symlink_to(server.socket)
        link.rename(self.socket)

    def _is_in_step(self) -> bool:
        return bool(self._stale.info("replication")["master_link_status"] == "up")

    def hold_back(self) -> None:
        """From here on the replica hears nothing new."""
        self._stale.replicaof("127.0.0.1", 1)

    def promote(self) -> None:
        """The primary dies, and the replica takes its place."""
        self.primary.stop(signal.SIGKILL)
        self._stale.replicaof("NO", "ONE")
        self._lead_to(self.replica)
