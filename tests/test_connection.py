"""Redis by password, ACL user, TLS and Sentinel; and a clear word when it cannot be had."""

import os
import select
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
from redis import Redis
from redis import exceptions as redis_errors

from imece.connection import address, connect, is_outage, reachable
from imece.errors import ServiceError, SettingsError
from imece.settings import load
from imece_producer.local.server import Server, program
from tests import forks
from tests.conftest import ROOT, Workbench, until

PASSWORD = "hunter2/#@:?%"
ESCAPED = "hunter2%2F%23%40%3A%3F%25"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


def answers(**settings: str) -> bool:
    """Whether the Redis that the settings name answers."""
    found = load(**settings)
    with reachable(found), connect(found, retries=0) as redis:
        return bool(redis.ping())


def refused(**settings: str) -> ServiceError:
    with pytest.raises(ServiceError) as error:
        answers(**settings)
    assert error.value.exit_code == 3
    assert "hunter2" not in str(error.value)
    return error.value


def refusal(**settings: str) -> str:
    """What a person reads when it does not."""
    return str(refused(**settings))


def imece_runs(**settings: str) -> "subprocess.CompletedProcess[str]":
    """`imece runs`, with nothing but these settings."""
    environment = {f"IMECE_{name.upper()}": value for name, value in settings.items()}
    words = [sys.executable, "-m", "imece_producer", "runs"]
    return forks.run(words, env={**os.environ, **environment}, cwd=ROOT)


# Passwords and users


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[Server]:
    """A server with a password, and a user `village` with one of its own."""
    options = {"requirepass": f'"{PASSWORD}"', "user": f"village on >{PASSWORD}-2 ~* &* +@all"}
    with Server(tmp_path / "locked", **options) as server:
        yield server


@pytest.fixture
def locked_by_port(tmp_path: Path) -> Iterator[int]:
    """The same on a TCP port, for URLs with a user and a password."""
    port = free_port()
    options = {"port": str(port), "bind": "127.0.0.1", "requirepass": f'"{PASSWORD}"'}
    with Server(tmp_path / "locked", **options):
        yield port


def test_a_password_opens_the_server(locked: Server) -> None:
    assert answers(redis_url=locked.url, redis_password=PASSWORD)


def test_a_user_and_password_open_the_server(locked: Server) -> None:
    user = {"redis_username": "village", "redis_password": PASSWORD + "-2"}
    assert answers(redis_url=locked.url, **user)


def test_a_password_in_the_url_opens_the_server(locked_by_port: int) -> None:
    assert answers(redis_url=f"redis://:{ESCAPED}@127.0.0.1:{locked_by_port}/0")
    assert answers(redis_url=f"redis://default:{ESCAPED}@127.0.0.1:{locked_by_port}")


@pytest.mark.parametrize(
    "credentials",
    [
        {},
        {"redis_password": "wrong-hunter2"},
        {"redis_username": "nobody", "redis_password": PASSWORD},
        {"redis_username": "village", "redis_password": PASSWORD},
    ],
)
def test_a_wrong_password_is_said_to_be_one(locked: Server, credentials: dict[str, str]) -> None:
    text = refusal(redis_url=locked.url, **credentials)
    assert "does not accept the user or password" in text
    assert "IMECE_REDIS_USERNAME and IMECE_REDIS_PASSWORD" in text


def test_the_command_line_says_so_with_exit_code_3(locked_by_port: int) -> None:
    url = f"redis://:wrong-hunter2@127.0.0.1:{locked_by_port}/0"
    answer = imece_runs(redis_url=url)
    assert answer.returncode == 3
    assert answer.stdout == ""
    assert answer.stderr == (
        f"imece: Redis at redis://127.0.0.1:{locked_by_port}/0 does not accept the user or "
        "password: check IMECE_REDIS_USERNAME and IMECE_REDIS_PASSWORD\n"
    )


def test_a_user_without_enough_rights_is_told_so(tmp_path: Path) -> None:
    with Server(tmp_path / "acl", user="weak on >hunter2 ~* +ping") as server:
        found = load(redis_url=server.url, redis_username="weak", redis_password="hunter2")
        with pytest.raises(ServiceError, match="forbids what imece needs"):  # noqa: SIM117
            with reachable(found), connect(found, retries=0) as redis:
                redis.set("key", "value")


# Addresses in messages


@pytest.mark.parametrize(
    ("settings", "shown"),
    [
        (
            {"redis_url": "redis://user:hunter2@redis.example:6380/3"},
            "redis://redis.example:6380/3",
        ),
        ({"redis_url": "rediss://:hunter2@redis.example"}, "rediss://redis.example"),
        ({"redis_url": "unix://:hunter2@/run/redis.sock?db=1"}, "unix:///run/redis.sock"),
        (
            {
                "redis_url": "redis://:hunter2@ignored",
                "redis_sentinels": "one:26379,two:26379",
                "redis_sentinel_master": "village",
            },
            "master village of sentinels one:26379,two:26379",
        ),
    ],
)
def test_an_address_is_shown_without_user_and_password(
    settings: dict[str, str], shown: str
) -> None:
    assert address(load(**settings)) == shown


def test_a_server_that_is_not_there_is_said_to_be_out_of_reach() -> None:
    url = f"redis://user:hunter2@127.0.0.1:{free_port()}/0"
    text = refusal(redis_url=url)
    assert "is out of reach (nothing listens there): start it, or correct IMECE_REDIS_URL" in text


def test_a_host_that_has_no_address_is_said_to_be_out_of_reach() -> None:
    text = refusal(redis_url="redis://:hunter2@no-such-host.invalid")
    assert "no-such-host.invalid is out of reach (the name of its host is not known)" in text


def test_a_socket_that_is_not_there_is_said_to_be_none(tmp_path: Path) -> None:
    text = refusal(redis_url=f"unix://{tmp_path}/none.sock")
    assert "none.sock is out of reach (there is no such socket): start it, or correct" in text


def test_a_server_that_does_not_answer_is_said_to_be_out_of_reach() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        found = load(redis_url=f"redis://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(ServiceError, match=r"out of reach \(no answer in time"):  # noqa: SIM117
            with reachable(found), connect(found, retries=0, timeout=0.2) as redis:
                redis.ping()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "is not Redis: check host and port"),
        (b"-LOADING Redis is loading the dataset in memory\r\n", "still loads its data: try again"),
        (b"-ERR max number of clients reached\r\n", "has too many clients: raise its maxclients"),
        (b"-MISCONF Redis is configured to save\r\n", "cannot save to its disk: free space"),
        (b"-OOM command not allowed\r\n", "is out of memory: raise its maxmemory"),
        (b"-MOVED 3999 127.0.0.1:6381\r\n", "is a Redis Cluster: imece needs a single server"),
        (b"-MASTERDOWN Link with MASTER is down\r\n", "has lost its master: start the master"),
        (b"-DENIED Redis is running in protected mode\r\n", "is in protected mode: give"),
        (b"-ERR something new\r\n", "refused a command: something new"),
        (b"", "closed the connection: check host and port"),
    ],
    ids=lambda part: part.decode()[:12] if isinstance(part, bytes) else "",
)
def test_what_a_server_answers_becomes_cause_and_fix(answer: bytes, words: str) -> None:
    def serve() -> None:
        while True:
            try:
                client, _ = listening.accept()
            except OSError:
                return  # closed
            with client:
                if client.recv(1000) and answer:
                    client.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            text = refusal(redis_url=f"redis://127.0.0.1:{listening.getsockname()[1]}")
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join(10)
    assert words in text


def test_a_read_only_replica_is_said_to_be_one(tmp_path: Path) -> None:
    with Server(tmp_path / "replica", replicaof=f"127.0.0.1 {free_port()}") as server:
        found = load(redis_url=server.url)
        with pytest.raises(ServiceError, match="read-only replica"):  # noqa: SIM117
            with reachable(found), connect(found, retries=0) as redis:
                redis.set("key", "value")


@pytest.mark.parametrize("query", ["?ssl_cert_reqs=whatever", "?ssl_nonsense=1", "?db=zero"])
def test_an_option_in_the_url_that_is_not_known_is_refused(query: str) -> None:
    with pytest.raises(SettingsError, match="IMECE_REDIS_URL"):
        connect(load(redis_url=f"redis://localhost{query}"))


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for localhost that has signed itself, with its key beside it."""
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=localhost"),
            *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
            *("-addext", "subjectAltName=DNS:localhost"),
            *("-addext", "keyUsage=digitalSignature,keyCertSign"),
            *("-keyout", str(folder / "tls.key"), "-out", str(folder / "tls.pem")),
        ],
        check=True,
        capture_output=True,
    )
    return folder / "tls.pem"


class TlsFront:
    """Speaks TLS on a port of localhost, and plainly with the server behind it.

    The embedded server is built without TLS, so this stands in front of it.
    """

    def __init__(self, behind: Path, certificate: Path) -> None:
        self._behind = behind
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate, certificate.with_suffix(".key"))
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                plain, _ = self._listening.accept()
            except OSError:
                return  # closed
            self._threads.append(threading.Thread(target=self._serve, args=(plain,)))
            self._threads[-1].start()

    def _serve(self, plain: socket.socket) -> None:
        """Carries bytes both ways until one side closes."""
        with plain:
            try:
                front = self._context.wrap_socket(plain, server_side=True)
            except OSError:
                return  # a client that does not trust us
            with front, socket.socket(socket.AF_UNIX) as back:
                back.connect(str(self._behind))
                try:
                    while self._carry(front, back):
                        pass
                except OSError:
                    pass  # one side was cut off

    def _carry(self, front: ssl.SSLSocket, back: socket.socket) -> bool:
        ready, _, _ = select.select([front, back], [], [])
        if front in ready:
            data = front.recv(65536)
            while front.pending():
                data += front.recv(front.pending())
            back.sendall(data)
        else:
            data = back.recv(65536)
            front.sendall(data)
        return bool(data)

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for thread in self._threads:
            thread.join(10)


@pytest.fixture
def tls_url(server: Server, certificate: Path) -> Iterator[str]:
    front = TlsFront(server.socket, certificate)
    yield f"rediss://localhost:{front.port}/0"
    front.close()


def test_tls_works_with_the_ca_that_is_named(tls_url: str, certificate: Path) -> None:
    assert answers(redis_url=tls_url, redis_ca_file=str(certificate))


def test_an_untrusted_certificate_is_said_to_be_one(tls_url: str) -> None:
    error = refused(redis_url=tls_url)
    assert "its certificate is not trusted" in str(error)
    assert "name its CA in IMECE_REDIS_CA_FILE" in str(error)
    assert not error.may_pass


def test_a_certificate_for_another_host_is_said_to_be_one(tls_url: str, certificate: Path) -> None:
    by_address = tls_url.replace("localhost", "127.0.0.1")
    error = refused(redis_url=by_address, redis_ca_file=str(certificate))
    assert "is for another name: IMECE_REDIS_URL must name the host" in str(error)
    assert not error.may_pass


def test_a_certificate_that_has_expired_is_said_to_be_one(server: Server, tmp_path: Path) -> None:
    authority = trustme.CA()
    yesterday = datetime.now(UTC) - timedelta(days=1)
    expired = authority.issue_cert("localhost", not_after=yesterday)
    expired.cert_chain_pems[0].write_to_path(tmp_path / "tls.pem")
    expired.private_key_pem.write_to_path(tmp_path / "tls.key")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    front = TlsFront(server.socket, tmp_path / "tls.pem")
    try:
        url = f"rediss://localhost:{front.port}"
        error = refused(redis_url=url, redis_ca_file=str(tmp_path / "ca.pem"))
    finally:
        front.close()
    assert "has expired, or is not valid yet: renew it" in str(error)
    assert error.may_pass


def test_a_ca_file_that_is_not_there_is_named(tls_url: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"IMECE_REDIS_CA_FILE: .*nothing.pem: No such file"):
        answers(redis_url=tls_url, redis_ca_file=str(tmp_path / "nothing.pem"))


def test_a_ca_file_that_is_no_certificate_is_refused(tls_url: str, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    with pytest.raises(SettingsError, match=r"ca.pem is no PEM file with certificates"):
        answers(redis_url=tls_url, redis_ca_file=str(tmp_path / "ca.pem"))


def test_a_run_goes_from_end_to_end_over_tls(
    workbench: Workbench, tls_url: str, certificate: Path
) -> None:
    workbench.files(20)
    workbench.settings |= {"redis_url": tls_url, "redis_ca_file": str(certificate)}
    answer = workbench.imece(
        "enqueue", str(workbench.source), str(workbench.target), "--run-id", "run"
    )
    assert answer.returncode == 0, answer.stderr
    worker = workbench.worker()
    assert workbench.ended().done == 20
    assert worker.stop() == 0
    workbench.check_books()


# Sentinel


@contextmanager
def sentinel(master_port: int, folder: Path, password: str | None = None) -> Iterator[int]:
    """A sentinel that watches the server on a port, under the name `village`; its own port."""
    port = free_port()
    lines = [
        f"port {port}",
        "bind 127.0.0.1",
        f"dir {folder}",
        f"sentinel monitor village 127.0.0.1 {master_port} 1",
    ]
    if password is not None:
        lines.append(f'sentinel auth-pass village "{password}"')
    configuration = folder / "sentinel.conf"
    configuration.write_text("\n".join(lines) + "\n")
    with subprocess.Popen(
        [program(), str(configuration), "--sentinel"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            until(lambda: _listens(port), "the sentinel")
            yield port
        finally:
            process.kill()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_the_master_is_found_by_its_sentinels(locked_by_port: int, tmp_path: Path) -> None:
    with sentinel(locked_by_port, tmp_path, PASSWORD) as port:
        by_sentinel = {
            "redis_sentinels": f"127.0.0.1:{free_port()}, 127.0.0.1:{port}",  # the first is away
            "redis_sentinel_master": "village",
        }
        in_url = {"redis_url": f"redis://:{ESCAPED}@ignored/2", **by_sentinel}
        apart = {"redis_url": "redis://ignored/2", "redis_password": PASSWORD, **by_sentinel}
        for settings in (in_url, apart):
            found = load(**settings)
            with reachable(found), connect(found) as redis:
                redis.set("key", "value")
        with Redis(port=locked_by_port, password=PASSWORD, db=2) as direct:
            assert direct.get("key") == b"value"
        wrong = {**apart, "redis_password": "wrong-hunter2"}
        assert "does not accept the user or password" in refusal(**wrong)
        unknown = {**apart, "redis_sentinel_master": "another"}
        assert "no sentinel answers, or none knows this master" in refusal(**unknown)


def test_sentinels_that_do_not_answer_are_named() -> None:
    sentinels = f"127.0.0.1:{free_port()}"
    text = refusal(redis_sentinels=sentinels, redis_sentinel_master="village")
    assert text.startswith(f"Redis at master village of sentinels {sentinels} is out of reach")
    assert len(text) < 300


@pytest.mark.parametrize("sentinels", ["localhost", "localhost:x", ":26379", "a:1,,b:2"])
def test_sentinels_that_cannot_be_read_are_named(sentinels: str) -> None:
    with pytest.raises(SettingsError, match=r"IMECE_REDIS_SENTINELS: .* is not host:port"):
        connect(load(redis_sentinels=sentinels, redis_sentinel_master="village"))


def test_sentinels_and_a_socket_do_not_go_together() -> None:
    settings = {"redis_sentinels": "localhost:1", "redis_sentinel_master": "village"}
    with pytest.raises(SettingsError, match="IMECE_REDIS_URL: takes redis:// or rediss://"):
        connect(load(redis_url="unix:///tmp/x", **settings))


# What others on the machine can see


def command_lines() -> str:
    """The arguments of all processes there are."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(file.read_bytes())
        except OSError:
            pass  # it has just ended
    return b"\n".join(found).decode("utf-8", "replace")


def test_local_mode_minds_no_other_server_and_shows_no_password_to_ps(
    tmp_path: Path, workbench: Workbench
) -> None:
    """Its settings may be those of a cluster, with password and sentinels."""
    workbench.files(1)
    environment = {
        **os.environ,
        "IMECE_REDIS_URL": "redis://:hunter2@redis.example:6379/0",
        "IMECE_REDIS_USERNAME": "village",
        "IMECE_REDIS_PASSWORD": "hunter2",
        "IMECE_REDIS_SENTINELS": "redis.example:26379",
        "IMECE_REDIS_SENTINEL_MASTER": "village",
    }
    release = tmp_path / "release"
    command = f'sh -c \'while ! test -e {release}; do sleep 0.05; done; cp "$1" "$2"\' -- '
    arguments = [
        *("local", str(workbench.source), str(workbench.target)),
        *("--command", command + "{input} {output}", "--run-id", "here", "--max-replicas", "1"),
    ]
    with subprocess.Popen(
        [sys.executable, "-m", "imece_producer", *arguments],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as local:
        try:
            seen = until(
                lambda: "/f-0000.txt" in (now := command_lines()) and now,
                "the file to be begun",
            )
        finally:
            release.touch()
            told, _ = local.communicate(timeout=60)
    assert local.returncode == 0, told.decode()
    assert "hunter2" not in seen
    assert "hunter2" not in told.decode()
    assert "hunter2" not in (tmp_path / "state" / "here" / "workers.log").read_text()


def test_a_worker_shows_no_password_to_ps_nor_in_its_log(
    locked_by_port: int, workbench: Workbench
) -> None:
    url = f"redis://:{ESCAPED}@127.0.0.1:{locked_by_port}/0"
    worker = workbench.worker(fresh=True, redis_url=url).started()
    assert "hunter2" not in command_lines()
    assert worker.stop() == 0
    assert "hunter2" not in worker.log()


def test_the_server_of_local_mode_can_be_reached_by_its_owner_alone(server: Server) -> None:
    assert server.socket.stat().st_mode & 0o077 == 0
    assert server.socket.parent.stat().st_mode & 0o077 == 0
    assert server.directory.stat().st_mode & 0o077 == 0


def test_a_server_that_does_not_start_is_a_clear_error(tmp_path: Path) -> None:
    server = Server(tmp_path / "broken", nonsense="yes")
    with pytest.raises(ServiceError, match="the embedded server does not start: see"):
        server.start()
    server.close()


def test_a_server_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    script = (
        "import os, pathlib, signal, sys; from imece_producer.local.server import Server\n"
        "server = Server(pathlib.Path(sys.argv[1])); server.start(); print(server.socket)\n"
        "sys.stdout.flush(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "orphan")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == -signal.SIGKILL
    path = Path(answer.stdout.strip())
    until(lambda: not path.exists(), "the server to be gone")
    shutil.rmtree(path.parent)


@pytest.mark.parametrize(
    "error",
    [
        redis_errors.ConnectionError("refused"),
        redis_errors.TimeoutError("no answer"),
        redis_errors.BusyLoadingError("loading the dataset"),
        redis_errors.ReadOnlyError("a replica"),
        redis_errors.OutOfMemoryError("command not allowed"),
        redis_errors.MasterDownError("link with master"),
        redis_errors.ClusterDownError("the cluster is down"),
        redis_errors.TryAgainError("in the middle of it"),
        redis_errors.InvalidResponse("Protocol Error: b'HTTP/1.1 503'"),
        redis_errors.ResponseError("MISCONF Redis is configured to save"),
        redis_errors.ResponseError("NOREPLICAS Not enough good replicas to write."),
        redis_errors.ResponseError("BUSY Redis is busy running a script."),
        redis_errors.ResponseError("UNBLOCKED force unblock from blocking operation"),
        redis_errors.ResponseError("Command # 1 (SET a) of pipeline caused error: MISCONF Redis"),
    ],
    ids=str,
)
def test_what_passes_by_itself_is_an_outage(error: Exception) -> None:
    assert is_outage(error)


@pytest.mark.parametrize(
    "error",
    [
        redis_errors.AuthenticationError("invalid username-password pair"),
        redis_errors.AuthorizationError("not allowed"),
        redis_errors.NoPermissionError("this user has no permissions"),
        redis_errors.ResponseError("WRONGTYPE Operation against a key"),
        redis_errors.ResponseError("BUSYKEY Target key name already exists"),
        redis_errors.ResponseError("user_script:12: attempt to index a nil value"),
        redis_errors.ResponseError("Command # 1 (SET BUSY) of pipeline caused error: ERR syntax"),
        redis_errors.DataError("not a number"),
        ValueError("BUSY"),
    ],
    ids=str,
)
def test_what_no_waiting_mends_is_no_outage(error: Exception) -> None:
    assert not is_outage(error)


def test_a_password_refused_in_an_event_loop_is_no_outage() -> None:
    """redis.asyncio raises it within a ConnectionError."""
    error = redis_errors.ConnectionError("while it connected")
    error.__cause__ = redis_errors.AuthenticationError("invalid password")
    assert not is_outage(error)
