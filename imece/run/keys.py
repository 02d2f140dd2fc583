"""Every key in Redis, and nothing else. RQ's keys come from RQ's own classes, so that `rq info`, an
autoscaler and imece mean the same ones, also with `RQ_KEY_PREFIX`.

Every key of imece's own begins with the queue, in which no colon is: so the rights of an ACL can
keep the user of one queue from the runs of another.

imece:<queue>:runs                sorted set: run id by the time of its last enqueuing
imece:<queue>:refused             list: what was taken out of the queue because it is no bucket job
imece:<queue>:sweeper             string: the worker that looks for dead workers and lost jobs
imece:<queue>:versions            hash: name of a processor -> its version, as a worker said it last
imece:<queue>:run:<id>            hash: state, generation, round, parameters, counters, times

With <run> for the last one:

<run>:claim                       hash: the producer that is listing for this id
<run>:jobs                        hash: unfinished bucket job -> cursor
<run>:waiting                     list: bucket jobs that are not in the queue yet
<run>:holders                     hash: bucket job -> executions that held it; with ":seq" its last
                                  batch number, with ":worker" the worker, with ":current" the
                                  current file if that is in the next set
<run>:current                     sorted set: bucket job, ":" and its worker's current file, by the
                                  time when it was begun; only files that take long
<run>:manifest:<part>             hash: bucket -> manifest; a part for each enqueuing
<run>:failures, :outputs          hashes: quarantined file -> record, what it printed
<run>:causes                      hash: "N:text", "N:count", "N:file", "N:message" of the Nth cause
                                  of failures; "=" and a cause's text -> N; "last" -> the largest N
<run>:durations                   hash: step -> files that took so long (imece/run/durations.py)
<run>:timeline                    hash: seconds since start -> files ended in that slot; those in
                                  which no worker had a job of the run are missing
<run>:slowest                     sorted set: the ten slowest files seen at checkpoints
<run>:staged:<token>              hash: cursors of an enqueuing that is not committed yet
<run>:order:<token>               list: its bucket jobs in their order
<run>:kept-failures:<token>, :kept-outputs:<token>, :kept-causes:<token>
                                  hashes: the failures that stay as they are in its round
"""

from rq import Queue, Worker
from rq.command import PUBSUB_CHANNEL_TEMPLATE
from rq.intermediate_queue import IntermediateQueue
from rq.registry import StartedJobRegistry
from rq.worker_registration import WORKERS_BY_QUEUE_KEY

QUEUES = Queue.redis_queues_keys
"""RQ's set of queues."""


def runs(queue: str) -> str:
    return f"imece:{queue}:runs"


def refused(queue: str) -> str:
    return f"imece:{queue}:refused"


def sweeper(queue: str) -> str:
    return f"imece:{queue}:sweeper"


def versions(queue: str) -> str:
    return f"imece:{queue}:versions"


def run(queue: str, run_id: str) -> str:
    return f"imece:{queue}:run:{run_id}"


def claim(run: str) -> str:
    return f"{run}:claim"


def manifest(run: str, part: str) -> str:
    return f"{run}:manifest:{part}"


def staged(run: str, token: str) -> str:
    return f"{run}:staged:{token}"


def order(run: str, token: str) -> str:
    return f"{run}:order:{token}"


def kept(run: str, token: str) -> list[str]:
    """In place of `:failures`, `:outputs` and `:causes`, for an enqueuing that is not committed."""
    return [f"{run}:kept-{what}:{token}" for what in ("failures", "outputs", "causes")]


def pending(queue: str) -> str:
    """RQ's list of waiting jobs. What KEDA counts, with the two below."""
    return Queue.redis_queue_namespace_prefix + queue


def moving(queue: str) -> str:
    """RQ's list of jobs between the queue and a lease."""
    return IntermediateQueue.get_intermediate_queue_key(pending(queue))


def leases(queue: str) -> str:
    """RQ's sorted set of `job:execution` by expiry: the jobs in flight."""
    return StartedJobRegistry.key_template.format(queue)


def workers(queue: str) -> str:
    """RQ's set of the keys of the workers that listen to a queue, dead ones among them."""
    return WORKERS_BY_QUEUE_KEY % queue


def worker(name: str) -> str:
    """RQ's hash of one worker; gone soon after it."""
    return Worker.redis_worker_namespace_prefix + name


def shared(queue: str) -> dict[str, str]:
    """The keys that all runs of a queue share -> the type of value that each has to hold."""
    return {
        pending(queue): "list",
        moving(queue): "list",
        leases(queue): "zset",
        runs(queue): "zset",
        sweeper(queue): "string",
        workers(queue): "set",
        Worker.redis_workers_keys: "set",
    }


def channel(worker_name: str) -> str:
    """The channel a worker listens to for as long as it is connected."""
    return PUBSUB_CHANNEL_TEMPLATE % worker_name


def rights(queue: str) -> list[str]:
    """The rules of an ACL for the keys and channels of one queue, and no other's; deploy/redis has
    them too. A worker's name begins with its queue. The last two sets have names of all queues in
    them, and nothing else."""
    return [
        f"~imece:{queue}:*",
        *(f"~{key}" for key in (pending(queue), moving(queue), leases(queue), workers(queue))),
        f"~{worker(f'{queue}.*')}",
        f"&{channel(f'{queue}.*')}",
        *(f"~{key}" for key in (Worker.redis_workers_keys, QUEUES)),
    ]
