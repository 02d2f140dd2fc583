"""A DAG of one run, with the fields its configuration names."""

from airflow.sdk import DAG, Asset, Param

from producer.airflow import ImeceRunOperator

with DAG(
    "one_run",
    schedule=None,
    params={
        "input": Param("", type="string"),
        "output": Param("", type="string"),
        "run_id": Param("run", type="string"),
        "include": Param(None, type=["null", "string"]),
        "buckets": Param(None, type=["null", "integer"]),
        "file_retries": Param(0, type="integer"),
        "allow_failed": Param("0", type="string"),
    },
):
    ImeceRunOperator(
        task_id="run",
        run_id="{{ params.run_id }}",
        input_dir="{{ params.input }}",
        output_dir="{{ params.output }}",
        include="{{ params.include or '' }}",
        buckets="{{ params.buckets }}",
        file_retries="{{ params.file_retries }}",
        allow_failed="{{ params.allow_failed }}",
        suffix="{{ none }}",
        overwrite="{{ false }}",
        poll_interval=0.2,
        outlets=[Asset("imece-one-run")],
    )
