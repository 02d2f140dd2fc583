"""Builds the workers' image from a repository, and gives it to the workers."""

from airflow.sdk import DAG, Param

from imece_producer.airflow import ImeceImageOperator, ImeceRolloutOperator

DOCS = """
### Build the workers' image

`build` clones the processor's repository in a pod, builds its Dockerfile with BuildKit, without
root, and pushes the image. `roll_out` gives it to the workers' Deployment and waits until all of
them run it. A worker that is replaced finishes its file and hands back the rest, so a run may be on
meanwhile.

Needs the connection `imece_kubernetes`. Credentials are Secrets of the cluster; none is a param.
"""

with DAG(
    "build_worker_image",
    description="Clone, build, push; then set the image of the workers",
    doc_md=DOCS,
    schedule=None,
    tags=["imece"],
    max_active_runs=1,
    params={
        "repository": Param(
            "https://git.example.com/team/processor.git",
            type="string",
            pattern="^https://",
            title="Repository",
            description="An HTTPS address.",
        ),
        "ref": Param("main", type="string", pattern="^[^-]", title="Branch or tag"),
        "directory": Param(
            ".",
            type="string",
            title="Directory",
            description="The build context in the repository.",
        ),
        "dockerfile": Param("Dockerfile", type="string", minLength=1, title="Dockerfile"),
        "image": Param(
            "registry.example.com/team/imece-worker:latest",
            type="string",
            minLength=1,
            title="Image",
            description="With a tag. Take a new one each time: it is what makes workers change.",
        ),
        "registry_secret": Param(
            "registry-credentials",
            type=["null", "string"],
            title="Registry credentials",
            description="A Secret of type kubernetes.io/dockerconfigjson. Empty: none.",
        ),
        "git_secret": Param(
            None,
            type=["null", "string"],
            title="Git credentials",
            description="A Secret of type kubernetes.io/basic-auth. Empty: none.",
        ),
        "ca_config_map": Param(
            None,
            type=["null", "string"],
            title="Private CA",
            description="A ConfigMap with ca.crt, the CA of git host and registry. Empty: none.",
        ),
        "pull_secret": Param(
            None,
            type=["null", "string"],
            title="Pull secret",
            description="For the images of git and BuildKit.",
            section="Pod",
        ),
        "startup_timeout": Param(
            600,
            type="integer",
            minimum=10,
            title="Start-up timeout",
            description="Seconds until the pod must have started, cloning included.",
            section="Pod",
        ),
        "rollout_timeout": Param(
            1800,
            type="integer",
            minimum=10,
            title="Rollout timeout",
            description="Seconds; workers finish the file in hand first.",
            section="Pod",
        ),
    },
):
    build = ImeceImageOperator(
        task_id="build",
        name="imece-build",
        repository="{{ params.repository }}",
        ref="{{ params.ref }}",
        directory="{{ params.directory }}",
        dockerfile="{{ params.dockerfile }}",
        target_image="{{ params.image }}",
        registry_secret="{{ params.registry_secret }}",
        git_secret="{{ params.git_secret }}",
        ca_config_map="{{ params.ca_config_map }}",
        pull_secret="{{ params.pull_secret }}",
        startup_timeout="{{ params.startup_timeout }}",
    )
    roll_out = ImeceRolloutOperator(
        task_id="roll_out",
        image="{{ params.image }}",
        rollout_timeout="{{ params.rollout_timeout }}",
    )

    build >> roll_out
