"""The connection to Redis, and its troubles in words."""

import re
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import redis.asyncio.retry
import redis.asyncio.sentinel
import redis.connection
import redis.sentinel
from redis import Redis
from redis import exceptions as redis_errors
from redis.backoff import ExponentialWithJitterBackoff, NoBackoff
from redis.retry import Retry
from redis.sentinel import MasterNotFoundError

from imece.errors import ImeceError, ServiceError, SettingsError, TrustError
from imece.run.records import RecordError
from imece.settings import Settings

OUTAGES = (redis_errors.ConnectionError, redis_errors.TimeoutError)
"""What redis-py raises while the server is away. `AuthenticationError` is one of them too."""

NOT_OUTAGES = (
    redis_errors.AuthenticationError,
    redis_errors.AuthorizationError,
    redis_errors.ExternalAuthProviderError,
)
"""Connection errors that no waiting fixes."""

CODES: dict[type[Exception], str] = {
    redis_errors.AskError: "MOVED",  # and the error of MOVED itself
    redis_errors.BusyLoadingError: "LOADING",
    redis_errors.MasterDownError: "MASTERDOWN",
    redis_errors.ClusterDownError: "CLUSTERDOWN",
    redis_errors.OutOfMemoryError: "OOM",
    redis_errors.ReadOnlyError: "READONLY",
    redis_errors.TryAgainError: "TRYAGAIN",
}
"""The first words of answers that redis-py leaves out, by the class that it has for them."""

PASSING_CODES = {
    *("BUSY", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "MISCONF", "NOREPLICAS", "OOM", "READONLY"),
    *("TRYAGAIN", "UNBLOCKED"),
}
"""First words of answers by which a server says that it cannot now, and may be able to later."""


def is_outage(error: Exception) -> bool:
    """Whether the same command may succeed later, without anything being changed in it."""
    if isinstance(error, NOT_OUTAGES) or isinstance(error.__cause__, NOT_OUTAGES):
        return False
    # InvalidResponse: what answers is no Redis, for example a proxy without one behind it.
    if isinstance(error, (*OUTAGES, redis_errors.InvalidResponse)):
        return True
    return isinstance(error, redis_errors.ResponseError) and _code(error) in PASSING_CODES


def _code(error: Exception) -> str:
    """The first word of what Redis has answered: it says what kind of answer that is."""
    of_class = (code for kind, code in CODES.items() if isinstance(error, kind))
    answer = _answer(error).rpartition(" because of: ")[2]  # of a transaction's end
    return next(of_class, answer.partition(" ")[0])


def is_wrong_type(error: Exception) -> bool:
    """Whether a key holds another type of value than the command, or the script, takes."""
    return _answer(error).startswith("WRONGTYPE ")


def _answer(error: Exception) -> str:
    """What Redis has answered, without the words of a pipeline."""
    return str(error).rpartition(" caused error: ")[2]


_CODE = re.compile(r"[A-Z]+ (?=.)")
_PLACE = re.compile(r"\s*script: .*on @user_script:\d+\.?$")


def said(error: Exception) -> str:
    """What Redis has answered, for people: without its code, the command, and the place in a
    script."""
    if is_wrong_type(error):
        return "a key holds another type of value than imece keeps there"
    return _PLACE.sub("", _CODE.sub("", _answer(error), count=1))


def connect(settings: Settings, *, retries: int = 3, timeout: float = 5.0) -> Redis:
    """A client for the Redis the settings name. Connects on first use.

    Args:
        retries: how often a command is sent again after a lost connection.
        timeout: seconds until a silent server counts as away.
    """
    client: Redis = _client(redis.sentinel.Sentinel, Redis, Retry, settings, retries, timeout)
    return client


def connect_async(
    settings: Settings, *, retries: int = 3, timeout: float = 5.0
) -> redis.asyncio.Redis:
    """As `connect`, for an event loop."""
    kinds = (redis.asyncio.sentinel.Sentinel, redis.asyncio.Redis, redis.asyncio.retry.Retry)
    client: redis.asyncio.Redis = _client(*kinds, settings, retries, timeout)
    return client


def _client(
    sentinel_kind: Any,
    redis_kind: Any,
    retry_kind: Any,
    settings: Settings,
    retries: int,
    timeout: float,
) -> Any:
    options: dict[str, Any] = {
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        "socket_keepalive": True,
        "health_check_interval": 30,
        "retry": retry_kind(ExponentialWithJitterBackoff(base=0.1, cap=1), retries),
    }
    url = settings.redis_url.get_secret_value()
    scheme = urlsplit(url).scheme
    if scheme == "unix":
        del options["socket_keepalive"]
    if settings.redis_username:
        options["username"] = settings.redis_username
    if settings.redis_password:
        options["password"] = settings.redis_password.get_secret_value()
    if scheme == "rediss" and settings.redis_ca_file:
        options["ssl_ca_certs"] = _ca_file(settings.redis_ca_file)
    if settings.redis_sentinels and settings.redis_sentinel_master:
        asking = {key: options[key] for key in ("socket_timeout", "socket_connect_timeout")}
        asking["retry"] = retry_kind(NoBackoff(), 0)  # the next sentinel is asked instead
        sentinel = sentinel_kind(_sentinels(settings.redis_sentinels), sentinel_kwargs=asking)
        return sentinel.master_for(settings.redis_sentinel_master, **_parts(url, options))
    try:
        client = redis_kind.from_url(url, **options)
        pool = client.connection_pool
        pool.connection_class(**pool.connection_kwargs)  # says now what it does not take
    except (TypeError, ValueError, redis_errors.RedisError):
        raise SettingsError(
            "IMECE_REDIS_URL: an option after ? has a name or value unknown"
        ) from None
    return client


def _ca_file(file: Path) -> str:
    try:
        ssl.create_default_context(cafile=file)
    except ssl.SSLError:
        raise SettingsError(
            f"IMECE_REDIS_CA_FILE: {file} is no PEM file with certificates"
        ) from None
    except OSError as error:
        raise SettingsError(f"IMECE_REDIS_CA_FILE: {file}: {error.strerror}") from None
    return str(file)


def _sentinels(addresses: str) -> list[tuple[str, int]]:
    sentinels = []
    for address in addresses.split(","):
        host, _, port = address.strip().rpartition(":")
        if not host or not port.isdigit():
            raise SettingsError(f"IMECE_REDIS_SENTINELS: {address.strip()!r} is not host:port")
        sentinels.append((host, int(port)))
    return sentinels


def _parts(url: str, options: dict[str, Any]) -> dict[str, Any]:
    """The options of a connection to the master, with what the URL says."""
    told: dict[str, Any] = redis.connection.parse_url(url)  # type: ignore[no-untyped-call]
    if "path" in told:
        raise SettingsError("IMECE_REDIS_URL: takes redis:// or rediss:// with sentinels")
    ssl_class = told.pop("connection_class", None)
    of_master = {name: value for name, value in told.items() if name not in ("host", "port")}
    return {**of_master, **options, "ssl": ssl_class is not None}


def address(settings: Settings) -> str:
    """Where Redis is, fit for a message: no user, no password."""
    if settings.redis_sentinels:
        return f"master {settings.redis_sentinel_master} of sentinels {settings.redis_sentinels}"
    parts = urlsplit(settings.redis_url.get_secret_value())
    if parts.scheme == "unix":
        return f"unix://{parts.path}"
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname or 'localhost'}{port}{parts.path}"


@contextmanager
def reachable(settings: Settings) -> Iterator[None]:
    """Turns what redis-py raises inside into an error that names cause and fix."""
    try:
        yield
    except redis_errors.RedisError as error:
        raise in_words(error, settings) from None


def in_words(error: redis_errors.RedisError, settings: Settings) -> ImeceError:
    """What happened, and what to do; the library's own text only if the cause is unknown."""
    where = f"Redis at {address(settings)}"
    causes = list(_causes(error))
    if any(isinstance(cause, redis_errors.AuthenticationError) for cause in causes):
        return TrustError(
            f"{where} does not accept the user or password",
            "check IMECE_REDIS_USERNAME and IMECE_REDIS_PASSWORD",
        )
    if isinstance(error, redis_errors.NoPermissionError):
        return TrustError(
            f"{where} forbids what imece needs ({said(error)})",
            "give the user this right in the server's ACL; `imece doctor` names all it needs",
        )
    if isinstance(error, MasterNotFoundError):
        return ServiceError(
            f"{where} is out of reach: no sentinel answers, or none knows this master",
            "check IMECE_REDIS_SENTINELS and IMECE_REDIS_SENTINEL_MASTER",
        )
    if isinstance(error, redis_errors.InvalidResponse):
        return ServiceError(f"what answers at {address(settings)} is not Redis", CHECK_URL)
    code = next((word for word in TEXTS if word in str(error)), _code(error))
    if code in REFUSALS:
        what, hint = REFUSALS[code]
        return ServiceError(f"{where} {what}", hint)
    if isinstance(error, redis_errors.ResponseError):
        if _answer(error).startswith(("WRONGTYPE ", "BROKEN ")):
            return RecordError(f"what {where} holds was not made by imece: {said(error)}")
        return ServiceError(f"{where} refused a command: {said(error)}")
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return _certificate_flaw(where, cause)
        for kind, what, hint in CAUSES:
            if isinstance(cause, kind):
                return ServiceError(f"{where} is out of reach ({what})", hint)
    return ServiceError(f"{where} is out of reach ({error})", CHECK_URL)


CHECK_URL = "check host and port in IMECE_REDIS_URL, and rediss:// if the server wants TLS"

REFUSALS = {
    "READONLY": ("is a read-only replica", "IMECE_REDIS_URL must name the master"),
    "OOM": ("is out of memory", "raise its maxmemory, or delete ended runs"),
    "LOADING": ("still loads its data", "try again in a moment"),
    "BUSY": ("is busy with another script", "try again in a moment"),
    "MASTERDOWN": ("is a replica that has lost its master", "start the master, and name it"),
    "MISCONF": ("cannot save to its disk", "free space on it; the server's log says more"),
    "NOREPLICAS": ("has too few replicas to write", "start its replicas"),
    "DENIED": ("is in protected mode", "give the server a password (requirepass)"),
    "MOVED": ("is a Redis Cluster", "imece needs a single server, or one with sentinels"),
    "CLUSTERDOWN": ("is a Redis Cluster", "imece needs a single server, or one with sentinels"),
    "max number of clients": ("has too many clients", "raise its maxclients"),
    "Connection closed by server": ("closed the connection", CHECK_URL),
}
"""What it means for a person that a server answers with this code or text, and what to do."""

TEXTS = ("max number of clients", "Connection closed by server")

CAUSES: tuple[tuple[type[Exception], str, str], ...] = (
    (socket.gaierror, "the name of its host is not known", "check IMECE_REDIS_URL and DNS"),
    (ConnectionRefusedError, "nothing listens there", "start it, or correct IMECE_REDIS_URL"),
    (FileNotFoundError, "there is no such socket", "start it, or correct IMECE_REDIS_URL"),
    (PermissionError, "this user may not open the socket", "check the socket's permissions"),
    (ssl.SSLError, "it does not speak TLS as it should", CHECK_URL),
    (TimeoutError, "no answer in time", f"{CHECK_URL}; check firewalls"),
    (redis_errors.TimeoutError, "no answer in time", f"{CHECK_URL}; check firewalls"),
    (ConnectionError, "the connection was cut", f"{CHECK_URL}; see the server's log"),
)
"""What the system says of a connection that could not be made, or was lost; the same."""


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error, and what it was made from: redis-py keeps the system's own there."""
    following: BaseException | None = error
    while following is not None:
        yield following
        following = following.__cause__ or following.__context__


def _certificate_flaw(where: str, error: ssl.SSLCertVerificationError) -> ServiceError:
    why = str(error)
    if "expired" in why or "not yet valid" in why:
        return ServiceError(
            f"the certificate of {where} has expired, or is not valid yet",
            "renew it; check the clock of this machine, too",
        )
    if "mismatch" in why:
        return TrustError(
            f"the certificate of {where} is for another name",
            "IMECE_REDIS_URL must name the host as the certificate does",
        )
    return TrustError(
        f"{where}: its certificate is not trusted", "name its CA in IMECE_REDIS_CA_FILE"
    )


def text(answer: Any) -> str:
    """An answer of Redis as text, whatever somebody has put there. redis-py types answers
    `bytes | str`; ours are always bytes."""
    decoded: str = answer.decode("utf-8", "backslashreplace")
    return decoded


def raw(answer: Any) -> bytes:
    """An answer of Redis as the bytes it is; see `text`."""
    assert isinstance(answer, bytes)  # noqa: S101 - the client does not decode responses
    return answer
