"""What imece doctor looks at in Redis."""

import secrets
import time
from collections.abc import Iterator
from typing import Any

from redis import Redis
from redis.exceptions import NoPermissionError

from imece import connection
from imece.errors import ImeceError
from imece.settings import Settings
from imece_producer.checks import Check, clock, failed
from imece_producer.cluster.rights import PROBES
from imece_producer.cluster.scaling import numbers
from imece_producer.display import seconds

OLDEST_REDIS = (7, 0)


LUA = "return(1)"


def of_redis(settings: Settings) -> Iterator[Check]:
    try:
        with connection.reachable(settings):
            redis = connection.connect(settings, retries=1, timeout=3.0)
            try:
                began = time.time()
                redis.ping()
                took = time.time() - began
                where = connection.address(settings)
                yield Check("redis", "ok", f"{where} answers in {seconds(took)}")
                forbidden = _forbidden(redis)
                yield _redis_rights(forbidden)
                if "INFO" not in forbidden:
                    yield from _redis_server(redis.info())
                if "TIME" not in forbidden:
                    yield _redis_clock(redis)
            finally:
                redis.close()
    except ImeceError as error:
        yield failed("redis", error)


def _forbidden(redis: Redis) -> list[str]:
    """The commands that the ACL does not grant, on the keys they are needed for."""
    token = secrets.token_hex(8)
    digest = str(redis.register_script(LUA).sha)
    places = {
        "lua": LUA,
        "digest": digest,
        "channel": f"rq:pubsub:doctor-{token}",
        "run": f"imece:run:doctor-{token}",
        "list": f"rq:queue:doctor-{token}",
        "sorted": f"rq:wip:doctor-{token}",
        "set": f"rq:workers:doctor-{token}",
        "job": f"rq:job:doctor-{token}",
    }
    forbidden = []
    with redis.client() as one:  # type: ignore[no-untyped-call]  # MULTI and EXEC belong together
        for probe in PROBES:
            words = probe.format(**places).split()
            try:
                if words[0] == "SUBSCRIBE":
                    _subscribe(redis, words[1])
                else:
                    one.execute_command(*words)
            except NoPermissionError:
                forbidden.append(words[0])
            except connection.OUTAGES:
                raise
            except Exception:  # noqa: S110
                pass  # EXEC without the MULTI that was forbidden: the right is there
    return sorted(set(forbidden))


def _subscribe(redis: Redis, channel: str) -> None:
    """On a connection of its own: one that has subscribed takes no other commands."""
    with redis.pubsub() as listener:  # type: ignore[no-untyped-call]
        listener.subscribe(channel)
        listener.parse_response(timeout=3.0)


def _redis_rights(forbidden: list[str]) -> Check:
    name = "redis rights"
    if not forbidden:
        return Check(name, "ok", "the user may do what imece needs")
    return Check(
        name,
        "fail",
        f"the user may not {', '.join(forbidden)} on the keys imece:* and rq:*, or on the "
        "channels rq:pubsub:*",
        "grant it in the server's ACL; deploy/redis has one that is enough",
        3,
    )


def _redis_server(info: dict[str, Any]) -> Iterator[Check]:
    version = str(info.get("valkey_version") or info.get("redis_version", "0"))
    kind = "Valkey" if "valkey_version" in info else "Redis"
    if numbers(version) < OLDEST_REDIS:
        yield Check("redis version", "fail", f"{kind} {version}", "imece needs Redis 7 or later", 3)
    else:
        yield Check("redis version", "ok", f"{kind} {version}")
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction" and info.get("maxmemory"):
        yield Check(
            "redis memory",
            "fail",
            f"maxmemory-policy is {policy}: a full server would drop parts of a run",
            "CONFIG SET maxmemory-policy noeviction",
            3,
        )
    else:
        limit = f"{info['maxmemory'] // 2**20} MiB" if info.get("maxmemory") else "no limit"
        yield Check("redis memory", "ok", f"{policy}, {limit}")
    if info.get("aof_last_write_status", "ok") != "ok":
        yield Check("redis persistence", "fail", "the last write failed", "see its disk and log", 3)
    elif info.get("aof_enabled"):
        yield Check("redis persistence", "ok", "append-only file")
    else:
        yield Check(
            "redis persistence",
            "warn",
            "no append-only file: a restart of the server loses the runs",
            "CONFIG SET appendonly yes",
        )


def _redis_clock(redis: Redis) -> Check:
    before = time.time()
    whole, microseconds = redis.time()
    return clock("redis clock", "Redis", whole + microseconds / 1e6, (before + time.time()) / 2)
