"""What imece may have to ask of a cluster, in RBAC's own words, and of Redis, in its ACL's."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Right:
    """A verb on a resource: what RBAC grants."""

    verb: str
    resource: str
    group: str = ""
    subresource: str = ""

    def __str__(self) -> str:
        group = f".{self.group}" if self.group else ""
        return f"{self.verb} {self.resource}{group}" + (
            f"/{self.subresource}" if self.subresource else ""
        )


READ_SCALED_OBJECT = Right("get", "scaledobjects", "keda.sh")
LIST_SCALED_OBJECTS = Right("list", "scaledobjects", "keda.sh")
CHANGE_SCALED_OBJECT = Right("patch", "scaledobjects", "keda.sh")
READ_DEPLOYMENT = Right("get", "deployments", "apps")
CHANGE_DEPLOYMENT = Right("patch", "deployments", "apps")
"""For a rollout only, so not in `RIGHTS`."""

CHANGE_SCALE = Right("patch", "deployments", "apps", "scale")
LIST_PODS = Right("list", "pods")
READ_LOG = Right("get", "pods", "", "log")
LIST_EVENTS = Right("list", "events")
READ_CLAIM = Right("get", "persistentvolumeclaims")
READ_HPA = Right("get", "horizontalpodautoscalers", "autoscaling")

RIGHTS = (
    READ_SCALED_OBJECT,
    LIST_SCALED_OBJECTS,
    CHANGE_SCALED_OBJECT,
    READ_DEPLOYMENT,
    CHANGE_SCALE,
    LIST_PODS,
    READ_LOG,
    LIST_EVENTS,
    READ_CLAIM,
    READ_HPA,
)
"""What all of imece's commands need in the workers' namespace."""

VERSIONS = {"keda.sh": "v1alpha1", "apps": "v1", "autoscaling": "v2", "authorization.k8s.io": "v1"}


# Redis

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
    ZREVRANGE {sorted} 0 -1 | ZREM {sorted} a | ZREMRANGEBYRANK {sorted} 0 0
    HSET {job} f 1 | EXPIRE {job} 1 | DEL {job}
    """.replace("\n", "|").split("|")
    if probe.strip()
)
"""A harmless use of each command that imece and RQ send, on keys and a channel of the kinds they
use. `ACL DRYRUN` would need a right that no user of imece should have. A test holds them against
what a server has recorded."""

CONTAINERS = ("CLIENT", "PUBSUB", "SCRIPT")
"""Commands whose subcommands an ACL grants one by one."""


def commands() -> frozenset[str]:
    """The commands, as an ACL and `INFO commandstats` name them: hget, script|load."""
    found = set()
    for probe in PROBES:
        command, *words = probe.split()
        found.add(f"{command}|{words[0]}" if command in CONTAINERS else command)
    return frozenset(command.lower() for command in found)


def acl() -> list[str]:
    """The rules of a user that may do what imece needs, and nothing else."""
    return [
        "~imece:*",
        "~rq:*",
        "&rq:pubsub:*",
        "-@all",
        *(f"+{name}" for name in sorted(commands())),
    ]
