"""Processes a folder: preflight → scale → run → report."""

from airflow.sdk import DAG, AssetAlias, Param

from imece_producer.airflow import (
    ImecePreflightOperator,
    ImeceReportOperator,
    ImeceRunOperator,
    ImeceScaleOperator,
)

DOCS = """
### Process a folder

One run, whatever the number of files. Workers in the cluster take bucket jobs from Redis, as many
at a time as **Max replicas** allows; the task waits for them without holding a worker slot. Its log
says how far the run is.

| task | does |
|---|---|
| `preflight` | looks at Redis and the cluster, and says what to fix |
| `scale` | sets the limit of replicas and the processor, where they are given |
| `run` | lists the files, enqueues them, waits |
| `report` | writes the run's figures into its log |

**Some files failed?** The log of `run` says which and why. Fix the cause and clear `run`: what is
current is skipped; what failed, is new or is newer than its output is processed. **Stop a run**:
mark `run` as failed; files in hand are finished. **Go on with it**: clear it.

Needs the connections `imece_redis` and, for limit and processor, `imece_kubernetes`.
"""

with DAG(
    "process_files",
    description="Turn a folder of files into outputs, in parallel",
    doc_md=DOCS,
    schedule=None,
    tags=["imece"],
    default_args={"retries": 2},
    params={
        "input": Param(
            "/data/in",
            type="string",
            minLength=1,
            title="Input directory",
            description="As Airflow and the workers see it.",
        ),
        "output": Param(
            "/data/out",
            type="string",
            minLength=1,
            title="Output directory",
            description="Files get their inputs' relative paths. "
            "- if the processor keeps what it makes elsewhere: then a task that is cleared after "
            "success processes all files again.",
        ),
        "include": Param(
            None,
            type=["null", "array"],
            items={"type": "string"},
            title="Take only",
            description="Globs as in .gitignore, one a line: *.csv or /2026/**. Empty: all files.",
        ),
        "suffix": Param(
            None,
            type=["null", "string"],
            pattern=r"^\.[^/]+$",
            title="Ending of the outputs",
            description="In place of the inputs': .json",
        ),
        "max_replicas": Param(
            None,
            type=["null", "integer"],
            minimum=1,
            maximum=10000,
            title="Max replicas",
            description="Most workers at a time; may be changed while the run is on. "
            "Empty: as it is.",
        ),
        "processor": Param(
            None,
            type=["null", "string"],
            pattern=r"^[\w.]+:[\w.]+$",
            title="Processor",
            description="package.module:function in the workers' image. Another one than now "
            "restarts the workers. Empty: as it is.",
        ),
        "retries": Param(
            2,
            type="integer",
            minimum=0,
            maximum=100,
            title="Retries of a file",
            description="Tries after the first, before a file is given up.",
        ),
        "allow_failed": Param(
            "0",
            type="string",
            pattern=r"^\d+(\.\d+)?%?$",
            title="Files that may fail",
            description="A number, or a share: 0.01 or 1%. With more, the task fails.",
        ),
        "buckets": Param(
            None,
            type=["null", "integer"],
            minimum=1,
            maximum=65536,
            title="Buckets",
            description="Empty: chosen from the number of files. Does not limit the parallelism.",
            section="More",
        ),
        "overwrite": Param(
            False,
            type="boolean",
            title="Overwrite",
            description="Process files whose output is as new as they are, too.",
            section="More",
        ),
    },
):
    preflight = ImecePreflightOperator(
        task_id="preflight",
        max_replicas="{{ params.max_replicas }}",
        processor="{{ params.processor }}",
    )
    scale = ImeceScaleOperator(
        task_id="scale",
        max_replicas="{{ params.max_replicas }}",
        processor="{{ params.processor }}",
    )
    run = ImeceRunOperator(
        task_id="run",
        input_dir="{{ params.input }}",
        output_dir="{{ params.output }}",
        include="{{ (params.include or []) | join('\n') }}",
        suffix="{{ params.suffix }}",
        overwrite="{{ params.overwrite }}",
        buckets="{{ params.buckets }}",
        file_retries="{{ params.retries }}",
        allow_failed="{{ params.allow_failed }}",
        outlets=[AssetAlias("imece-output")],
    )
    report = ImeceReportOperator(
        task_id="report", imece_run="{{ ti.xcom_pull(task_ids='run')['run'] }}"
    )

    preflight >> scale >> run >> report
