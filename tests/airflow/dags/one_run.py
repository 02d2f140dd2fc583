"""DAGs of one run each, with the fields their configuration names."""

import os
import signal
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, Asset, AssetAlias, BaseOperator, Param

from imece_producer.airflow import ImeceRunOperator

PARAMS = {
    "input": Param("", type="string"),
    "output": Param("", type="string"),
    "run_id": Param("run", type="string"),
    "include": Param(None, type=["null", "string"]),
    "buckets": Param(None, type=["null", "integer"]),
    "file_retries": Param(0, type="integer"),
    "allow_failed": Param("0", type="string"),
    "max_failed": Param("", type="string"),
}


class DiesOnce(ImeceRunOperator):
    """Is killed between enqueuing and waiting, the first time."""

    def _enqueue(self, *arguments: Any) -> str | None:
        generation = super()._enqueue(*arguments)
        died = Path(self.output_dir).with_name("died")
        if not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return generation


def run_in(kind: type[ImeceRunOperator], **fields: Any) -> None:
    kind(
        task_id="run",
        input_dir="{{ params.input }}",
        output_dir="{{ params.output }}",
        include="{{ params.include or '' }}",
        buckets="{{ params.buckets }}",
        file_retries="{{ params.file_retries }}",
        allow_failed="{{ params.allow_failed }}",
        max_failed="{{ params.max_failed }}",
        suffix="{{ none }}",
        overwrite="{{ false }}",
        poll_interval=0.2,
        retries=1,
        retry_delay=timedelta(seconds=1),
        outlets=[Asset("imece-one-run")],
        **fields,
    )


with DAG("one_run", schedule=None, params=PARAMS):
    run_in(ImeceRunOperator, run_id="{{ params.run_id }}")

with DAG("dies_once", schedule=None, params=PARAMS):
    run_in(DiesOnce)

with DAG("times_out", schedule=None, params=PARAMS, dagrun_timeout=timedelta(seconds=8)):
    run_in(ImeceRunOperator, run_id="{{ params.run_id }}")

with DAG("mapped", schedule=None, params=PARAMS):
    # Ten runs that have nothing to do: each is over before its task waits.
    ImeceRunOperator.partial(
        task_id="run",
        input_dir="{{ params.input }}",
        output_dir="{{ params.output }}",
        poll_interval=0.2,
        retries=0,
    ).expand(run_id=[f"mapped-{number}" for number in range(10)])


class Follow(BaseOperator):
    """Gives back the run of the event it follows."""

    def execute(self, context: Any) -> Any:
        first, *_ = context["triggering_asset_events"].values()  # by the Asset, by its alias
        return first[0].extra["run"]


with DAG("follow_up", schedule=[AssetAlias("imece-output")]):
    Follow(task_id="follow")
