"""What imece doctor looks at in Redis."""

import secrets
import time
from collections.abc import Iterator
from typing import Any

from redis import Redis
from redis.exceptions import NoPermissionError
from rq import Worker

from imece import connection
from imece.errors import ImeceError
from imece.run import keys
from imece.settings import Settings
from imece_producer.cluster.scaling import numbers
from imece_producer.display import seconds
from imece_producer.doctor.check import Check, clock, fail, failed, ok, warn

OLDEST_REDIS = (7, 0)

LUA = "return(1)"

PROBES = tuple(
    probe.strip()
    for probe in """
    PING | TIME | INFO server | MULTI | EXEC | SCRIPT LOAD {lua}
    EVALSHA {digest} 0 | PUBSUB NUMSUB {channel}
    CLIENT SETINFO LIB-NAME imece | SUBSCRIBE {channel} | SET {run} 1 EX 1 | GET {run} | DEL {run}
    EXISTS {run} | TYPE {run} | RENAME {run} {run}
    EXPIRE {run} 1 | TTL {run} | DEL {run} | UNLINK {run}
    HSET {run} f 1 | HSETNX {run} f 1 | HGET {run} f | HEXISTS {run} f | HMGET {run} f
    HGETALL {run} | HINCRBY {run} f 1 | HKEYS {run} | HLEN {run} | HSCAN {run} 0 | HDEL {run} f
    RPUSH {list} a | LPUSH {list} a | LPOP {list} | LLEN {list} | LRANGE {list} 0 0
    LTRIM {list} 0 9 | LREM {list} 0 b | BLMOVE {list} {list} LEFT LEFT 1 | DEL {list}
    SADD {set} a | SMEMBERS {set} | SREM {set} a
    ZADD {sorted} 1 a | ZCARD {sorted} | ZSCORE {sorted} a | ZRANGE {sorted} 0 -1
    ZRANGEBYSCORE {sorted} 0 1 | ZCOUNT {sorted} 0 1
    ZREVRANGE {sorted} 0 -1 | ZREM {sorted} a | ZREMRANGEBYRANK {sorted} 0 0
    HSET {worker} f 1 | EXPIRE {worker} 1 | DEL {worker}
    LREM {pending} 1 {nothing} | LREM {moving} 1 {nothing} | ZREM {leases} {nothing}
    SREM {workers} {nothing} | SREM {all_workers} {nothing} | SREM {queues} {nothing}
    """.replace("\n", "|").split("|")
    if probe.strip()
)
"""A harmless use of each command that imece and RQ send, and of each key that they share. `ACL
DRYRUN` would need a right that no user of imece should have. A test holds them against what a
server has recorded."""


def of_redis(settings: Settings) -> Iterator[Check]:
    try:
        with (
            connection.reachable(settings),
            connection.connect(settings, retries=1, timeout=3.0) as redis,
        ):
            began = time.time()
            redis.ping()
            took = time.time() - began
            yield ok("redis", f"{connection.address(settings)} answers in {seconds(took)}")
            forbidden = _forbidden(redis, settings.queue)
            yield _redis_rights(forbidden, settings.queue)
            if "INFO" not in forbidden:
                yield from _redis_server(redis.info())
            if "TIME" not in forbidden:
                yield _redis_clock(redis)
    except ImeceError as error:
        yield failed("redis", error)


def _forbidden(redis: Redis, queue: str) -> list[str]:
    """The commands that the ACL does not grant, on the keys they are needed for."""
    nothing = f"doctor-{secrets.token_hex(8)}"
    name, run = f"{queue}.{nothing}", keys.run(queue, nothing)
    places = {
        "lua": LUA,
        "digest": str(redis.register_script(LUA).sha),
        "channel": keys.channel(name),
        "worker": keys.worker(name),
        **{"run": run, "list": f"{run}:list", "sorted": f"{run}:sorted", "set": f"{run}:set"},
        "nothing": nothing,
        "pending": keys.pending(queue),
        "moving": keys.moving(queue),
        "leases": keys.leases(queue),
        "workers": keys.workers(queue),
        "all_workers": Worker.redis_workers_keys,
        "queues": keys.QUEUES,
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


def _redis_rights(forbidden: list[str], queue: str) -> Check:
    if not forbidden:
        return ok("redis rights", "the user may do what imece needs")
    return fail(
        "redis rights",
        f"the user may not {', '.join(forbidden)} on the keys and channels of the queue {queue}",
        f"grant it in the server's ACL: {' '.join(keys.rights(queue))}",
    )


def _redis_server(info: dict[str, Any]) -> Iterator[Check]:
    number = str(info.get("valkey_version") or info.get("redis_version", "0"))
    version = f"{'Valkey' if 'valkey_version' in info else 'Redis'} {number}"
    if numbers(number) < OLDEST_REDIS:
        yield fail("redis version", version, "imece needs Redis 7 or later")
    else:
        yield ok("redis version", version)
    policy, limit = info.get("maxmemory_policy", "noeviction"), info.get("maxmemory")
    if policy != "noeviction" and limit:
        says = f"maxmemory-policy is {policy}: a full server would drop parts of a run"
        yield fail("redis memory", says, "CONFIG SET maxmemory-policy noeviction")
    else:
        yield ok("redis memory", f"{policy}, {f'{limit // 2**20} MiB' if limit else 'no limit'}")
    if info.get("aof_last_write_status", "ok") != "ok":
        yield fail("redis persistence", "the last write failed", "see its disk and log")
    elif info.get("aof_enabled"):
        yield ok("redis persistence", "append-only file")
    else:
        says = "no append-only file: a restart of the server loses the runs"
        yield warn("redis persistence", says, "CONFIG SET appendonly yes")


def _redis_clock(redis: Redis) -> Check:
    before = time.time()
    whole, microseconds = redis.time()
    return clock("redis clock", "Redis", whole + microseconds / 1e6, (before + time.time()) / 2)
