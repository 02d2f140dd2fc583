"""Every key in Redis, and nothing else. RQ's keys come from RQ's own classes, so that `rq info`, an
autoscaler and imece mean the same ones, also with `RQ_KEY_PREFIX`.

imece:runs                        sorted set: run id by the time of its last enqueuing
imece:run:<id>                    hash: state, generation, round, parameters, counters, times
imece:run:<id>:claim              hash: the producer that is listing for this id
imece:run:<id>:jobs               hash: unfinished bucket job -> cursor
imece:run:<id>:waiting            list: bucket jobs that are not in the queue yet
imece:run:<id>:holders            hash: bucket job -> executions that held it; with ":seq" its last
                                  batch number, with ":worker" the worker
imece:run:<id>:manifest:<part>    hash: bucket -> manifest; a part for each enqueuing
imece:run:<id>:failures, :outputs hashes: quarantined file -> record, what it printed
imece:run:<id>:durations          hash: step -> files that took so long (imece/run/durations.py)
imece:run:<id>:timeline           hash: seconds since start -> files ended in that slot; those in
                                  which no worker had a job of the run are missing
imece:run:<id>:slowest            sorted set: the ten slowest files seen at checkpoints
imece:run:<id>:staged:<token>     hash: cursors of an enqueuing that is not committed yet
imece:run:<id>:order:<token>      list: its bucket jobs in their order
imece:refused:<queue>             list: what was taken out of the queue because it is no bucket job
imece:sweeper:<queue>             string: the worker that looks for dead workers and lost jobs
"""

from rq import Queue, Worker
from rq.command import PUBSUB_CHANNEL_TEMPLATE
from rq.intermediate_queue import IntermediateQueue
from rq.registry import StartedJobRegistry
from rq.worker_registration import WORKERS_BY_QUEUE_KEY

RUNS = "imece:runs"
RUN_PREFIX = "imece:run:"
QUEUES = Queue.redis_queues_keys
"""RQ's set of queues."""


def run(run_id: str) -> str:
    return RUN_PREFIX + run_id


def claim(run_id: str) -> str:
    return f"{RUN_PREFIX}{run_id}:claim"


def manifest(run_id: str, part: str) -> str:
    return f"{RUN_PREFIX}{run_id}:manifest:{part}"


def staged(run_id: str, token: str) -> str:
    return f"{RUN_PREFIX}{run_id}:staged:{token}"


def order(run_id: str, token: str) -> str:
    return f"{RUN_PREFIX}{run_id}:order:{token}"


def refused(queue: str) -> str:
    return f"imece:refused:{queue}"


def sweeper(queue: str) -> str:
    return f"imece:sweeper:{queue}"


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
        RUNS: "zset",
        sweeper(queue): "string",
        workers(queue): "set",
        Worker.redis_workers_keys: "set",
    }


def channel(worker_name: str) -> str:
    """The channel a worker listens to for as long as it is connected."""
    return PUBSUB_CHANNEL_TEMPLATE % worker_name
