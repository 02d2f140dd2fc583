"""Builds the workers' image from a repository, and gives it to the workers."""

from airflow.sdk import DAG, Param

from imece_producer.airflow import ImeceImageOperator, ImeceRolloutOperator

DOCS = """
### Build the workers' image

`build` clones the processor's repository in a pod, builds its Dockerfile with BuildKit, without
root, and pushes the image. `roll_out` gives it to the workers' Deployment by its digest, and waits
until all of them run it. A worker that is replaced finishes its file and hands back the rest, so a
run may be on meanwhile.

Needs the connection `imece_kubernetes`, and a namespace that lets BuildKit work: `deploy/build` has
one. Credentials are Secrets of that namespace; none is a param.
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
        "commit": Param(
            None,
            type=["null", "string"],
            pattern="^[0-9a-f]{40,64}$",
            title="Commit",
            description="All digits of it. Empty: the newest of the branch or tag.",
        ),
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
            description="With a tag. Workers get the image by its digest.",
        ),
        "digest": Param(
            None,
            type=["null", "string"],
            pattern="^sha256:[0-9a-f]{64}$",
            title="Digest",
            description="Of an image that is there: it is rolled out, and nothing is built. "
            "Empty: build.",
        ),
        "build_arguments": Param(
            None,
            type=["null", "array"],
            items={"type": "string", "pattern": "^[A-Za-z_][A-Za-z0-9_]*="},
            title="Build arguments",
            description="NAME=VALUE, one a line. They can be read from the image: no passwords.",
            section="Build",
        ),
        "cache": Param(
            None,
            type=["null", "string"],
            title="Cache",
            description="An image name to keep layers in for the next build, such as "
            "registry.example.com/team/imece-worker:cache. Empty: none.",
            section="Build",
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
            description="A ConfigMap with ca.crt, the CA of git host or registry. Public ones are "
            "trusted, too. Empty: none.",
        ),
        "namespace": Param(
            "imece-build",
            type=["null", "string"],
            title="Namespace",
            description="Where the pod runs and the Secrets are. Empty: the connection's.",
            section="Pod",
        ),
        "service_account": Param(
            "imece-build",
            type=["null", "string"],
            title="Service account",
            description="The pod's. Empty: the namespace's default.",
            section="Pod",
        ),
        "cpu": Param("2", type="string", minLength=1, title="CPUs", section="Pod"),
        "memory": Param("4Gi", type="string", minLength=1, title="Memory", section="Pod"),
        "storage": Param(
            None,
            type=["null", "string"],
            title="Storage",
            description="On the node's disk, such as 20Gi. Empty: not limited.",
            section="Pod",
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
        commit="{{ params.commit }}",
        directory="{{ params.directory }}",
        dockerfile="{{ params.dockerfile }}",
        target_image="{{ params.image }}",
        digest="{{ params.digest }}",
        build_arguments="{{ (params.build_arguments or []) | join('\n') }}",
        cache="{{ params.cache }}",
        registry_secret="{{ params.registry_secret }}",
        git_secret="{{ params.git_secret }}",
        ca_config_map="{{ params.ca_config_map }}",
        namespace="{{ params.namespace }}",
        service_account="{{ params.service_account }}",
        cpu="{{ params.cpu }}",
        memory="{{ params.memory }}",
        storage="{{ params.storage }}",
        pull_secret="{{ params.pull_secret }}",
        startup_timeout="{{ params.startup_timeout }}",
    )
    ImeceRolloutOperator(
        task_id="roll_out",
        image=build.output,
        rollout_timeout="{{ params.rollout_timeout }}",
    )
