"""The connection to Redis, and its troubles in words."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote, urlsplit

import redis.asyncio.retry
import redis.asyncio.sentinel
import redis.sentinel
from redis import Redis
from redis import exceptions as redis_errors
from redis.backoff import ExponentialWithJitterBackoff, NoBackoff
from redis.retry import Retry
from redis.sentinel import MasterNotFoundError

from imece.errors import LoginError, ServiceError, SettingsError
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

PASSING = (
    *OUTAGES,
    redis_errors.InvalidResponse,  # what answers is no Redis: a proxy without one behind it
    redis_errors.ReadOnlyError,
    redis_errors.OutOfMemoryError,
    redis_errors.ClusterDownError,
    redis_errors.TryAgainError,
)
PASSING_CODES = {
    "BUSY",
    "CLUSTERDOWN",
    "LOADING",
    "MASTERDOWN",
    "MISCONF",
    "NOREPLICAS",
    "OOM",
    "READONLY",
    "TRYAGAIN",
    "UNBLOCKED",
}
"""First words of answers by which a server says that it cannot now, and may be able to later."""


def is_outage(error: Exception) -> bool:
    """Whether the same command may succeed later, without anything being changed in it."""
    if isinstance(error, NOT_OUTAGES) or isinstance(error.__cause__, NOT_OUTAGES):
        return False
    if isinstance(error, PASSING):
        return True
    if not isinstance(error, redis_errors.ResponseError):
        return False
    return _answer(error).partition(" ")[0] in PASSING_CODES


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
        if not settings.redis_ca_file.is_file():
            raise SettingsError(f"IMECE_REDIS_CA_FILE: there is no file {settings.redis_ca_file}")
        options["ssl_ca_certs"] = str(settings.redis_ca_file)
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
    parts = urlsplit(url)
    if parts.scheme == "unix":
        raise SettingsError("IMECE_REDIS_URL: takes redis:// or rediss:// with sentinels")
    options["ssl"] = parts.scheme == "rediss"
    options["db"] = int(parts.path.strip("/") or 0)
    if parts.username and "username" not in options:
        options["username"] = unquote(parts.username)
    if parts.password and "password" not in options:
        options["password"] = unquote(parts.password)
    return options


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
    """Turns what redis-py raises inside into a ServiceError that names cause and fix."""
    where = address(settings)
    try:
        yield
    except redis_errors.AuthenticationError:
        raise _not_accepted(where) from None
    except MasterNotFoundError:
        raise ServiceError(
            f"Redis at {where} is out of reach: no sentinel answers, or none knows this master",
            "check IMECE_REDIS_SENTINELS and IMECE_REDIS_SENTINEL_MASTER",
        ) from None
    except OUTAGES as error:
        if isinstance(error.__cause__, redis_errors.AuthenticationError):  # from redis.asyncio
            raise _not_accepted(where) from None
        if "certificate" in str(error).lower():
            raise ServiceError(
                f"Redis at {where}: its certificate is not trusted ({error})",
                "name its CA in IMECE_REDIS_CA_FILE",
            ) from None
        raise ServiceError(
            f"Redis at {where} is out of reach ({error})",
            "check IMECE_REDIS_URL, and that the server runs and can be reached from here",
        ) from None
    except redis_errors.NoPermissionError as error:
        raise LoginError(
            f"Redis at {where} forbids what imece needs ({error})", "see its ACL"
        ) from None
    except redis_errors.ReadOnlyError:
        raise ServiceError(
            f"Redis at {where} is a read-only replica", "IMECE_REDIS_URL must name the master"
        ) from None
    except redis_errors.ResponseError as error:
        at_once = isinstance(error, redis_errors.OutOfMemoryError)
        if at_once or "OOM " in str(error):  # or at the end of a transaction
            raise ServiceError(
                f"Redis at {where} is out of memory", "raise its maxmemory, or delete ended runs"
            ) from None
        if _answer(error).startswith(("WRONGTYPE ", "BROKEN ")):
            raise RecordError(
                f"what Redis at {where} holds was not made by imece: {said(error)}"
            ) from None
        raise ServiceError(f"Redis at {where} refused a command: {said(error)}") from None


def _not_accepted(where: str) -> LoginError:
    return LoginError(
        f"Redis at {where} does not accept the user or password",
        "check IMECE_REDIS_USERNAME and IMECE_REDIS_PASSWORD",
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
