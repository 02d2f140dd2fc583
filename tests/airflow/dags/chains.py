"""DAGs of several runs: one after another, mapped, and by `@task.imece`."""

from airflow.sdk import DAG, Asset, AssetAlias, Param, task

from imece_producer.airflow import ImeceRunOperator

PARAMS = {
    "input": Param("", type="string"),
    "inputs": Param([], type="array"),
    "output": Param("", type="string"),
    "second": Param("", type="string"),
    "empty": Param("succeed", type="string"),
}

with DAG("chain", schedule=None, params=PARAMS):
    first = ImeceRunOperator(
        task_id="first",
        input_dir="{{ params.input }}",
        output_dir="{{ params.output }}",
        empty="{{ params.empty }}",
        poll_interval=0.2,
        outlets=[AssetAlias("imece-output"), Asset("chain")],
    )
    ImeceRunOperator(
        task_id="second",
        input_dir=first.output["output"],
        output_dir="{{ params.second }}",
        suffix=".again",
        poll_interval=0.2,
        outlets=[AssetAlias("imece-output")],
    )

with DAG("mapped_folders", schedule=None, params=PARAMS):

    @task
    def folders(params: dict[str, list[str]]) -> list[str]:
        return params["inputs"]

    ImeceRunOperator.partial(
        task_id="run", output_dir="{{ params.output }}", poll_interval=0.2
    ).expand(input_dir=folders())

with DAG("decorated", schedule=None, params=PARAMS):

    @task.imece(output_dir="{{ params.output }}", poll_interval=0.2, run_id="decorated")
    def run(params: dict[str, str], again: str = "") -> dict[str, str]:
        return {"input_dir": params["input"], "suffix": ".made", "failures_file": again}

    @task.imece(poll_interval=0.2, task_id="wrong")
    def wrong(params: dict[str, str]) -> dict[str, str]:
        return {"input_dir": params["input"], "output_dir": params["second"], "run_id": "mine"}

    @task.imece(output_dir="{{ params.second }}", poll_interval=0.2)
    def folder(made: str) -> str:
        return made

    made = run()
    wrong()
    folder(made["output"])
