"""How long every key in Redis may live and has to live: one table, for all tests."""

import re
from dataclasses import dataclass

from redis import Redis

from imece.settings import Settings

CLAIM = 10.0
STAGED = 3600.0
RQ_FAREWELL = 60.0
"""Seconds RQ keeps the record of a worker that has said goodbye (rq/worker, `register_death`)."""

SLACK = 300.0
"""Seconds a test may take between the end of a run and a look at its keys."""

LOOK = """
local found = {}
for _, key in ipairs(redis.call('KEYS', '*')) do
  local state = ''
  if redis.call('TYPE', key).ok == 'hash' then
    state = redis.call('HGET', key, 'state') or ''
  end
  found[#found + 1] = {key, redis.call('PTTL', key), state}
end
return found
"""
"""All keys at one moment: no run ends between the look at its state and the look at its keys."""

ENDED = ("done", "failed", "cancelled")


@dataclass(frozen=True)
class Range:
    """Seconds a key has left, from the least to the most; or none, if it may be there for ever."""

    least: float
    most: float
    or_none: bool = False

    def flaw(self, left: float | None) -> str | None:
        if left is None:
            return None if self.or_none else "it has no TTL"
        if left < self.least:
            return f"{left:.1f} s are left, and {self.least:.0f} s are the least"
        if left > self.most:
            return f"{left:.1f} s are left, and {self.most:.0f} s are the most"
        return None


def table(settings: Settings) -> list[tuple[str, Range]]:
    """Which keys live how long. The first pattern that fits counts.

    The keys of a run are not here: `of_a_run` says how long they live.
    """
    lasting = Range(settings.run_ttl / 2, settings.run_ttl + 1)
    registration = Range(0, max(settings.lease + 2, RQ_FAREWELL))
    return [
        # The queue itself.
        (r"rq:queue:[^:]+(:intermediate)?|rq:wip:[^:]+|rq:queues", lasting_or_none(settings)),
        # A run is not off the list before its hash is gone.
        (r"imece:[^:]+:runs", lasting),
        # What a worker is known by: it runs out with the lease.
        (r"rq:workers?(:.+)?", registration),
        # Who sweeps for the dead: a key that elects one worker for a while.
        (r"imece:[^:]+:sweeper", Range(0, max(settings.lease, CLAIM) + 1)),
        (r"imece:[^:]+:refused", Range(settings.result_ttl - SLACK, settings.result_ttl + 1)),
        (r"imece:local:.+", lasting_or_none(settings)),
        # Anything else has an end within the life of a run.
        (r".*", Range(0, settings.run_ttl + 1)),
    ]


def lasting_or_none(settings: Settings) -> Range:
    return Range(settings.run_ttl / 2, settings.run_ttl + 1, or_none=True)


def of_a_run(suffix: str, state: str, claimed: bool, settings: Settings) -> Range:
    """The key `imece:<queue>:run:<id>` + suffix.

    Args:
        state: of the run; "" if there is no run's hash.
        claimed: whether a producer is listing for this id.
    """
    if suffix == ":claim":
        return Range(0, CLAIM)
    if suffix.startswith((":staged", ":order", ":kept-")):
        return Range(0, STAGED)
    being_listed = claimed or state == "listing"
    if suffix.startswith(":manifest:") and being_listed:
        return Range(0, settings.run_ttl + 1)  # of this enqueuing, or of an earlier round
    if state == "listing":
        return Range(0, CLAIM)
    if state in ENDED:
        return Range(settings.result_ttl - SLACK, settings.result_ttl + 1)
    return Range(settings.run_ttl / 2, settings.run_ttl + 1)


def flaws(redis: Redis, settings: Settings) -> list[str]:
    """Every key that has no TTL though it needs one, or one too short or too long; sorted."""
    found = [
        (key.decode(), None if left == -1 else left / 1000, state.decode())
        for key, left, state in redis.eval(LOOK, 0)
    ]
    states = {key: state for key, _, state in found}
    rows = table(settings)
    said = []
    for key, left, _ in found:
        if of_run := re.fullmatch(r"(imece:[^:]+:run:[^:]+)(.*)", key):
            base, suffix = of_run.groups()
            claimed = f"{base}:claim" in states
            wanted = of_a_run(suffix, states.get(base, ""), claimed, settings)
        else:
            wanted = next(row for pattern, row in rows if re.fullmatch(pattern, key))
        if flaw := wanted.flaw(left):
            said.append(f"{key}: {flaw}")
    return sorted(said)
