"""Processes a folder the way it was: a fixed number of buckets, a pod for each."""

from airflow.sdk import DAG, Param, task
from kubernetes.client import models as k8s

from imece_producer.airflow import ImecePodOperator, bucket_pods

DOCS = """
### Process a folder in static buckets

Each pod lists the folder and processes the files of one bucket. It needs neither Redis nor KEDA.
The slowest bucket decides when the run ends, and another number of buckets means other buckets:
`process_files` does better. Same processor, same atomic outputs; current outputs
are skipped, so clearing a failed bucket processes only what is left.

Needs the connection `imece_kubernetes`, and a PersistentVolumeClaim with the files.
"""

with DAG(
    "static_buckets",
    description="The way it was: N static buckets, N pods",
    doc_md=DOCS,
    schedule=None,
    tags=["imece"],
    default_args={"retries": 2},
    params={
        "input": Param("/data/in", type="string", minLength=1, title="Input directory"),
        "output": Param("/data/out", type="string", minLength=1, title="Output directory"),
        "include": Param(
            None,
            type=["null", "array"],
            items={"type": "string"},
            title="Take only",
            description="Globs as in .gitignore, one a line. Empty: all files.",
        ),
        "suffix": Param(
            None,
            type=["null", "string"],
            pattern=r"^\.[^/]+$",
            title="Ending of the outputs",
            description="In place of the inputs': .json",
        ),
        "buckets": Param(
            8,
            type="integer",
            minimum=1,
            maximum=1000,
            title="Buckets",
            description="A pod for each.",
        ),
        "retries": Param(2, type="integer", minimum=0, maximum=100, title="Retries of a file"),
        "processor": Param(
            None,
            type=["null", "string"],
            pattern=r"^[\w.]+:[\w.]+$",
            title="Processor",
            description="package.module:function. Empty: as the image has it.",
        ),
        "image": Param("imece:latest", type="string", minLength=1, title="The workers' image"),
        "claim": Param(
            "imece-data",
            type="string",
            minLength=1,
            title="PersistentVolumeClaim",
            description="Mounted at /data.",
        ),
        "namespace": Param(
            None,
            type=["null", "string"],
            title="Namespace",
            description="Empty: the connection's.",
            section="Pods",
        ),
        "service_account": Param(
            None,
            type=["null", "string"],
            title="Service account",
            description="Empty: the namespace's default.",
            section="Pods",
        ),
        "cpu": Param("1", type="string", minLength=1, title="CPUs of each", section="Pods"),
        "memory": Param("1Gi", type="string", minLength=1, title="Memory of each", section="Pods"),
        "pull_secret": Param(None, type=["null", "string"], title="Pull secret", section="Pods"),
        "startup_timeout": Param(
            300,
            type="integer",
            minimum=10,
            title="Start-up timeout",
            description="Seconds until a pod must have started.",
            section="Pods",
        ),
    },
):
    pods = task(bucket_pods, task_id="buckets")()
    ImecePodOperator.partial(
        task_id="bucket",
        name="imece-bucket",
        image="{{ params.image }}",
        cmds=["imece-worker"],
        namespace="{{ params.namespace }}",
        service_account="{{ params.service_account }}",
        cpu="{{ params.cpu }}",
        memory="{{ params.memory }}",
        pull_secret="{{ params.pull_secret }}",
        startup_timeout="{{ params.startup_timeout }}",
        labels={"app.kubernetes.io/name": "imece", "app.kubernetes.io/component": "bucket"},
        volumes=[
            k8s.V1Volume(
                name="data",
                persistent_volume_claim=k8s.V1PersistentVolumeClaimVolumeSource(
                    claim_name="{{ params.claim }}"
                ),
            )
        ],
        volume_mounts=[k8s.V1VolumeMount(name="data", mount_path="/data")],
    ).expand_kwargs(pods)
