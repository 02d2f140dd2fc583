"""Processes a folder: preflight → scale → run."""

from airflow.sdk import DAG, AssetAlias, Param

from imece_producer.airflow import ImecePreflightOperator, ImeceRunOperator, ImeceScaleOperator

DOCS = """
### Process a folder

One run, whatever the number of files. Workers in the cluster take bucket jobs from Redis, as many
at a time as **Max replicas** allows; the task waits for them without holding a worker slot. Its log
says how far the run is.

| task | does |
|---|---|
| `preflight` | looks at Redis, the directories and the cluster, and says what to fix |
| `scale` | sets the limit of replicas and the processor, where they are given |
| `run` | lists the files, enqueues them, waits, and writes the run's figures into its log |

**Some files failed?** The log of `run` says which and why. Fix the cause and clear `run`: what is
current is skipped; what failed, is new or has changed is processed. **Stop a run**:
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
            description="Outputs get the relative paths of their inputs. If the processor keeps "
            "what it makes elsewhere, enter a single dash (-): then a task that is cleared after "
            "success processes all files again.",
        ),
        "include": Param(
            None,
            type=["null", "array"],
            items={"type": "string"},
            title="Take only",
            description="Globs as in .gitignore, one a line: *.csv or /2026/**. Empty: all files.",
        ),
        "exclude": Param(
            None,
            type=["null", "array"],
            items={"type": "string"},
            title="Leave out",
            description="Globs as above. Of what is taken, these files are left out.",
        ),
        "suffix": Param(
            None,
            type=["null", "string"],
            title="Ending of the outputs",
            description="In place of the ending of the inputs, with its dot: .json. "
            "Empty: outputs have the names of their inputs.",
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
            title="Processor",
            description="package.module:function in the workers' image. A change restarts the "
            "workers; it is refused while a run is on. Empty: as it is.",
        ),
        "set": Param(
            None,
            type=["null", "array"],
            items={"type": "string"},
            title="Parameters of the processor",
            description="NAME=VALUE, one a line: size=32 or mode=fast. The value is JSON, or text.",
        ),
        "retries": Param(
            2,
            type="integer",
            minimum=0,
            maximum=100,
            title="Retries of a file",
            description="Tries after the first, before a file is given up.",
        ),
        "timeout": Param(
            None,
            type=["null", "number"],
            exclusiveMinimum=0,
            title="Time limit of a file",
            description="Seconds one try of one file may take. Empty: as the setting "
            "IMECE_FILE_TIMEOUT has it.",
        ),
        "allow_failed": Param(
            "0",
            type="string",
            title="Files that may fail",
            description="A number, or a share: 0.01 or 1%. With more, the task fails.",
        ),
        "max_failed": Param(
            "",
            type="string",
            title="Files that may fail before the run is held",
            description="A number, or a percentage: 100 or 5%. With more, no other file is begun. "
            "Empty: as the setting IMECE_MAX_FAILED has it.",
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
        "hidden": Param(
            False,
            type="boolean",
            title="Hidden files",
            description="Process also files whose name, or whose directory's, begins with a dot.",
            section="More",
        ),
        "queue": Param(
            None,
            type=["null", "string"],
            title="Queue",
            description="The RQ queue of the workers. Empty: as the setting IMECE_QUEUE has it.",
            section="More",
        ),
        "overwrite": Param(
            False,
            type="boolean",
            title="Overwrite",
            description="Process all files, also those whose output is current.",
            section="More",
        ),
    },
):
    preflight = ImecePreflightOperator(
        task_id="preflight",
        input_dir="{{ params.input }}",
        output_dir="{{ params.output }}",
        run_queue="{{ params.queue }}",
        max_replicas="{{ params.max_replicas }}",
        processor="{{ params.processor }}",
    )
    scale = ImeceScaleOperator(
        task_id="scale",
        max_replicas="{{ params.max_replicas }}",
        processor="{{ params.processor }}",
        run_queue="{{ params.queue }}",
    )
    run = ImeceRunOperator(
        task_id="run",
        input_dir="{{ params.input }}",
        output_dir="{{ params.output }}",
        include="{{ (params.include or []) | join('\n') }}",
        exclude="{{ (params.exclude or []) | join('\n') }}",
        hidden="{{ params.hidden }}",
        suffix="{{ params.suffix }}",
        set="{{ (params.set or []) | join('\n') }}",
        overwrite="{{ params.overwrite }}",
        buckets="{{ params.buckets }}",
        file_retries="{{ params.retries }}",
        file_timeout="{{ params.timeout }}",
        run_queue="{{ params.queue }}",
        allow_failed="{{ params.allow_failed }}",
        max_failed="{{ params.max_failed }}",
        outlets=[AssetAlias("imece-output")],
    )

    preflight >> scale >> run
