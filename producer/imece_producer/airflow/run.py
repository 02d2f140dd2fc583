"""One task for one run, whatever the number of files."""

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import (
    AirflowException,
    AirflowFailException,
    AirflowSkipException,
    TaskDeferred,
)

from imece import names
from imece.connection import connect
from imece.errors import RunError
from imece.files.current import Rules
from imece.names import TEMPORARY_PREFIX
from imece.run import status
from imece.run.parameters import Parameters
from imece.run.status import Status
from imece.run.store import Run
from imece.settings import Settings
from imece_producer import display
from imece_producer.airflow import assets, fields
from imece_producer.airflow.cluster import ImeceOperator, connected
from imece_producer.airflow.connection import airflow_errors
from imece_producer.airflow.deferring import is_deferrable, wait_here
from imece_producer.airflow.links import ImeceRunLink
from imece_producer.airflow.trigger import ImeceRunTrigger
from imece_producer.cluster import scaling
from imece_producer.enqueue import Producer
from imece_producer.request import list_files, parameters_of

if TYPE_CHECKING:
    from airflow.sdk import Context
    from redis import Redis

    from imece.files.listing import Listing

RUN_ID = (
    "{{ dag.dag_id }}/{{ run_id }}/{{ task.task_id }}"
    "{% if ti.map_index >= 0 %}/{{ ti.map_index }}{% endif %}"
)
"""The same for each try of a task, so that a later one finds what an earlier one has begun. The ids
of Airflow have no slash in them: with a dash between them those of two tasks could become one."""

EMPTY = ("succeed", "skip", "fail")
"""What a task may do if there are no files."""

TIMED_OUT = "Trigger timeout"
"""What Airflow resumes a task with that has waited for too long (TriggerFailureReason)."""

NOTHING_TO_CANCEL = "0"
"""The generation of no run: for a trigger whose run has ended."""

FAILURES_DIR = TEMPORARY_PREFIX.decode() + "failures"
"""Where in the output directory lists of failed files go; imece never lists it as input."""


class ImeceRunOperator(ImeceOperator):
    """Processes a folder: enqueues a run, or attaches to one, and waits in the triggerer.

    A try that finds its run on attaches to it; if it has ended, this is its next round: what is
    current is skipped, what is new, changed, failed or missing is processed. Killing the task
    (clear, mark as failed, a timeout of the DAG run) cancels the run. A cleared task goes on with
    it, and begins no file a second time; with `overwrite`, none of those in hand.

    The XCom is `{"run", "output", "files", "done", "failed", "skipped"}`, and each of these by
    itself: `task.output["output"]` is the next task's input. An AssetAlias among the outlets gets
    the Asset of the output directory; each event has the run's figures as extra.

    Args:
        input_dir, output_dir: as the workers see them too (or map them by IMECE_INPUT and
            IMECE_OUTPUT). The input directory is listed here. "-" for the output: the processor
            keeps what it makes elsewhere; then the next round of a done run processes all again.
        run_id: by default made of the ids of DAG, DAG run and task.
        include, exclude, hidden, from_file, null, suffix, overwrite, buckets, files_per_job,
            max_failed, redo, by: as `imece enqueue` takes them. Globs are a list, or one a line.
        hashes: its --hash.
        processor: one of the processors that the workers have by a name; None: the one without.
        set: parameters for the processor: a mapping, or text with NAME=VALUE one a line. Text in
            the mapping is read as `--set` reads it: "32" is a number.
        file_retries, file_timeout: its --retries and --timeout, for each file; `retries` are the
            task's own.
        run_queue: the RQ queue; None: IMECE_QUEUE. (`queue` is that of the Airflow executor.)
        max_replicas: the limit of replicas to set before; None: as it is.
        empty: what to do if there are no files: "succeed", "skip" or "fail".
        allow_failed: how many files of an ended run may have failed before the task fails: a
            number, or a share of all files below 1 (0.01, or "1%").
        failures_file: where the list of failed files goes, as JSON lines; None: below the output
            directory.
        redis_conn_id, kubernetes_conn_id: see `ImeceOperator`; the second for `max_replicas` only.
        poll_interval: seconds; see `ImeceRunTrigger`.
        deferrable: wait in the triggerer; see `is_deferrable`.
    """

    template_fields: Sequence[str] = (
        "input_dir", "output_dir", "run_id", "include", "exclude", "hidden", "from_file", "null",
        "suffix", "overwrite", "redo", "by", "hashes", "buckets", "files_per_job", "max_failed",
        "processor", "set", "file_retries", "file_timeout", "run_queue", "max_replicas", "empty",
        "allow_failed", "failures_file", "redis_conn_id", "kubernetes_conn_id",
    )  # fmt: skip
    operator_extra_links = (ImeceRunLink(),)
    ui_color = "#f4e3c1"

    def __init__(
        self,
        *,
        input_dir: str,
        output_dir: str,
        run_id: str = RUN_ID,
        include: Sequence[str] | str | None = None,
        exclude: Sequence[str] | str | None = None,
        hidden: bool | str = False,
        from_file: str | None = None,
        null: bool | str = False,
        suffix: str | None = None,
        overwrite: bool | str = False,
        redo: str | None = None,
        by: str = "time",
        hashes: bool | str = False,
        buckets: int | str | None = None,
        files_per_job: int | str | None = None,
        max_failed: int | str | None = None,
        processor: str | None = None,
        set: Mapping[str, Any] | str | None = None,
        file_retries: int | str | None = None,
        file_timeout: float | str | None = None,
        run_queue: str | None = None,
        max_replicas: int | str | None = None,
        empty: str = "succeed",
        allow_failed: float | str = 0,
        failures_file: str | None = None,
        poll_interval: float = 2.0,
        deferrable: bool | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**{"multiple_outputs": True, **kwargs})
        self.input_dir = input_dir
        self.output_dir = output_dir
        self.run_id = run_id
        self.include = include
        self.exclude = exclude
        self.hidden = hidden
        self.from_file = from_file
        self.null = null
        self.suffix = suffix
        self.overwrite = overwrite
        self.redo = redo
        self.by = by
        self.hashes = hashes
        self.buckets = buckets
        self.files_per_job = files_per_job
        self.max_failed = max_failed
        self.processor = processor
        self.set = set
        self.file_retries = file_retries
        self.file_timeout = file_timeout
        self.run_queue = run_queue
        self.max_replicas = max_replicas
        self.empty = empty
        self.allow_failed = allow_failed
        self.failures_file = failures_file
        self.poll_interval = poll_interval
        self.deferrable = is_deferrable(deferrable)
        self._held: tuple[Settings, str] | None = None
        self._here: ImeceRunTrigger | None = None

    def execute(self, context: "Context") -> dict[str, Any]:
        """Enqueues or attaches, and defers; returns at once if the run has ended already."""
        started_in = _age(context)
        settings = self._settings(queue=fields.words(self.run_queue))
        with airflow_errors():
            parameters = self._parameters(settings)
            limit = fields.whole(self.max_replicas, "max_replicas")
            fields.allowed_failures(self.allow_failed, 0)  # a wrong one is said before, not after
            fields.one_of(self.empty, "empty", EMPTY)
            rules = self._rules()
            if limit is not None:  # one that cannot be set is said before, too
                self._scale(settings, limit)
        with airflow_errors(settings, self.redis_conn_id), closing(connect(settings)) as redis:
            generation = self._enqueue(redis, settings, parameters, rules)
            if generation is None:
                return self._finish(redis, settings, context)
            self._held = (settings, generation)
            if limit is not None:
                self._start(settings, limit, redis)
        return self._wait(context, settings, generation, started_in)

    def _wait(
        self, context: "Context", settings: Settings, generation: str, shortest: float
    ) -> dict[str, Any]:
        """In the triggerer, for at least so many seconds; here, if the task is not deferrable."""
        trigger = ImeceRunTrigger(
            run_id=self._id,
            queue=settings.queue,
            redis_conn_id=self.redis_conn_id,
            kubernetes_conn_id=self.kubernetes_conn_id,
            generation=generation,
            poll_interval=self.poll_interval,
            shortest_wait=shortest,
        )
        if not self.deferrable:
            self._here = trigger
            trigger._settings = settings
            return self.resume(context, wait_here(trigger))
        timeout = self.execution_timeout
        if timeout is not None:  # Airflow counts it from here; the task may have waited before
            timeout = max(timedelta(0), timeout - timedelta(seconds=_age(context)))
        raise TaskDeferred(trigger=trigger, method_name=self.resume.__name__, timeout=timeout)

    def resume(self, context: "Context", event: dict[str, Any]) -> dict[str, Any]:
        """The run has ended, or cannot be waited for."""
        if "error" in event:
            kind = AirflowException if event.get("may_pass", True) else AirflowFailException
            raise kind(event["error"])
        settings = self._settings(queue=fields.words(self.run_queue))
        try:
            with airflow_errors(settings, self.redis_conn_id), closing(connect(settings)) as redis:
                return self._finish(redis, settings, context)
        except AirflowFailException:
            raise
        except AirflowException as error:  # Redis has just gone; the trigger waits until it is back
            self.log.warning("%s", f"{error}. Waiting for it: the run has ended")
        return self._wait(context, settings, NOTHING_TO_CANCEL, _age(context))

    def resume_execution(
        self, next_method: str, next_kwargs: dict[str, Any] | None, context: "Context"
    ) -> Any:
        """As the base class's. A task that waited for too long takes its run with it."""
        if (next_kwargs or {}).get("error") == TIMED_OUT:
            settings = self._settings(queue=fields.words(self.run_queue))
            self._cancel(settings)
        return super().resume_execution(next_method, next_kwargs, context)

    def on_kill(self) -> None:
        """The process is told to end before it waits in the triggerer: as `ImeceRunTrigger`'s."""
        if self._held is None:
            return
        settings, generation = self._held
        if self._here is not None:  # it has attached once more
            generation = self._here.generation
        self._cancel(settings, generation)

    def _cancel(self, settings: Settings, generation: str = "") -> None:
        with airflow_errors(settings, self.redis_conn_id), closing(connect(settings)) as redis:
            try:
                Run(redis, settings.queue, self._id).cancel(settings.result_ttl, generation)
            except RunError as error:  # it has ended, or somebody else waits for it
                self.log.info("%s", error)

    @property
    def _id(self) -> str:
        return names.slug(str(self.run_id))

    def _parameters(self, settings: Settings) -> Parameters:
        return parameters_of(
            settings,
            Path(str(self.input_dir)),
            str(self.output_dir),
            suffix=fields.words(self.suffix),
            overwrite=fields.switch(self.overwrite, "overwrite"),
            hashes=fields.switch(self.hashes, "hashes"),
            from_file=fields.words(self.from_file),
            include=fields.globs(self.include),
            exclude=fields.globs(self.exclude),
            hidden=fields.switch(self.hidden, "hidden"),
            buckets=fields.whole(self.buckets, "buckets"),
            files_per_job=fields.whole(self.files_per_job, "files_per_job"),
            max_failed=fields.words(self.max_failed),
            processor=fields.words(self.processor),
            set=fields.assignments(self.set),
            retries=fields.whole(self.file_retries, "file_retries", least=0),
            timeout=fields.number(self.file_timeout, "file_timeout"),
        )

    def _rules(self) -> Rules:
        redo = fields.words(self.redo)
        if redo is not None:
            fields.one_of(redo, "redo", ("code",))
        fields.one_of(self.by, "by", ("time", "content"))
        return Rules(redo is not None, self.by == "content")

    def _enqueue(
        self, redis: "Redis", settings: Settings, parameters: Parameters, rules: Rules
    ) -> str | None:
        """Makes the run, or attaches to it; the generation that is ours, None if it has ended."""
        producer = Producer(redis, settings, self.log.info)
        while True:
            enqueued = producer.enqueue(
                self._id, parameters, lambda: self._list_files(parameters), rules
            )
            self.log.info("%s", display.enqueued(enqueued))
            if (generation := enqueued.run.attach()) is not None:
                return generation
            if enqueued.run.state() in ("done", "failed", "held"):
                return None
            # Cancelled just now, or expired: once more.

    def _list_files(self, parameters: Parameters) -> "Listing":
        null = fields.switch(self.null, "null")
        found = list_files(parameters, fields.words(self.from_file), null)
        if not found.files and self.empty != "succeed":
            end = AirflowSkipException if self.empty == "skip" else AirflowFailException
            raise end(found.nothing(parameters.input_path))
        return found

    def _scale(self, settings: Settings, limit: int) -> None:
        with connected(self.kubernetes_conn_id, settings) as cluster:
            before, after = scaling.change(cluster, limit)
        self.log.info("at most %d replicas (it was %d)", after.limit, before.limit)

    def _start(self, settings: Settings, limit: int, redis: "Redis") -> None:
        """Starts at once what the queue needs. If that fails, KEDA does so in a moment."""
        backlog = status.backlog(redis, settings.queue)
        try:
            with connected(self.kubernetes_conn_id, settings) as cluster:
                scaling.change(cluster, limit, backlog=backlog)
        except AirflowException as error:
            self.log.warning("%s", f"that workers start is left to KEDA: {error}")

    def _finish(self, redis: "Redis", settings: Settings, context: "Context") -> dict[str, Any]:
        """What the task says of an ended run."""
        run = Run(redis, settings.queue, self._id)
        last = status.read(run)
        self.log.info("%s", "\n".join(display.summary(last, last.seconds, [])))
        if last.is_held:
            says = (
                f"run {run.id} is held: {last.blocking_reason}. When that is fixed, clear this "
                "task: it goes on where it was"
            )
            raise AirflowFailException("\n".join([says, *display.causes(last.causes)]))
        if last.state == "cancelled":
            raise AirflowFailException(
                f"run {run.id} was cancelled with {display.count(last.left, 'file')} left: "
                "clear this task to go on where it was"
            )
        told = list(self._list_failures(run, last))
        if last.failed > fields.allowed_failures(self.allow_failed, last.files):
            raise AirflowFailException(
                "\n".join(
                    [
                        f"{last.failed:,} of {display.count(last.files, 'file')} failed",
                        "  correct the cause, then clear this task: they are processed again",
                        *told,
                    ]
                )
            )
        if told:
            self.log.warning("%s", "\n".join(["these failed, which is allowed", *told]))
        figures = last.summary()
        assets.announce(self.outlets, context["outlet_events"], figures)
        return {
            name: figures[name] for name in ("run", "output", "files", "done", "failed", "skipped")
        }

    def _list_failures(self, run: Run, last: Status) -> list[str]:
        """Why files failed, line by line. All failures go to a file, where one can be written."""
        output = last.parameters.output_path
        file = Path(str(self.failures_file)) if self.failures_file else None
        if file is None and output is not None:
            file = output / FAILURES_DIR / f"{run.id}.jsonl"
        if not last.failed and not (file and file.exists()):
            return []
        where = ""
        if file is not None:
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                return list(display.failures(run, last, file))
            except OSError as error:
                where = f" ({file} cannot be written: {error.strerror})"
        told = ["  failed", *display.causes(last.causes)]
        return [*told, f"  all failures: imece failures {run.id}{where}"]


def _age(context: "Context") -> float:
    """Seconds since Airflow has called the task running."""
    began = getattr(context.get("ti"), "start_date", None)
    return max(0.0, time.time() - began.timestamp()) if began is not None else 0.0
