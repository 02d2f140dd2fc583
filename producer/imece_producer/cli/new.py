"""`imece new`: what is written into a checkout of imece."""

import os
import re
import secrets
import shlex
from pathlib import Path
from typing import Annotated

import typer

from imece import commandline
from imece.errors import UsageError
from imece.settings import KUBE_NAME, PIPELINE, load
from imece_producer.cli.app import Namespace, app
from imece_producer.display import put

new = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Write what a further pipeline needs."
)
app.add_typer(new, name="new")

TAKEN = {
    "imece": "it is the name of the first pipeline",
    "redis": "its network policy would get the name imece-redis, which Redis has",
}

OVERLAY = """\
# The pipeline {name}: workers, a producer and a queue of its own, on the Redis of this namespace.
# `imece new pipeline` has written it, and it is yours: docs/how-to/pipelines.md.
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization

namespace: {namespace}
nameSuffix: "-{name}"

resources:
  - ../{platform}

components:
  - ../../pipeline

images:
  # 1. The image with your processor in it.
  - name: imece
{image}
configMapGenerator:
  - name: values
    behavior: merge
    literals:
      # 2. The volume claim, which is there already.
      - CLAIM={claim}
      # 3. The input path, as runs name it, and the claim's folder that is there.
      - INPUT=/data/{source}
      - INPUT_FOLDER={source}
      # 4. The output path, the same way.
      - OUTPUT=/data/{target}
      - OUTPUT_FOLDER={target}
      - MAX_REPLICAS={limit}
  - name: imece
    behavior: merge
    literals:
      - IMECE_QUEUE={name}
      - IMECE_REDIS_URL=redis://imece-redis.{namespace}.svc:6379/0
      # 5. The processor. Any other setting of docs/reference/settings.md may stand here, too.
      - IMECE_PROCESSOR={processor}

transformers:
  - ../../pipeline/wiring
  - ../../wiring
"""

PASSWORDS = """\
# For the Secret imece-redis, by kubectl patch. Git ignores this file: do not commit it.
stringData:
  IMECE_REDIS_PASSWORD_{name}: {worker}
  KEDA_REDIS_PASSWORD_{name}: {scaler}
"""

NEXT = """\
{directory} is written: kustomization.yaml, and passwords.yaml, which git ignores

Give Redis the two users of the pipeline. Workers of other pipelines go on while it restarts:
  kubectl -n {namespace} patch secret imece-redis --patch-file {directory}/passwords.yaml
  kubectl -n {namespace} rollout restart statefulset/imece-redis
  kubectl -n {namespace} rollout status statefulset/imece-redis
Start the pipeline, and check it:
  kubectl apply -k {directory}
  imece doctor -n {namespace} --pipeline {name}
Make a run, and change the limit:
  kubectl -n {namespace} exec deploy/imece-producer-{name} -- \\
    imece enqueue /data/{source} /data/{target} --run-id first
  imece scale 20 -n {namespace} --pipeline {name}"""


@new.command(
    epilog=commandline.examples(
        "imece new pipeline scans --image registry.example.com/scans:1.0 \\",
        "  --processor scans:measure",
    )
)
def pipeline(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Its name, which is that of its queue, too.")
    ],
    image: Annotated[str, typer.Option(help="The image with the processor in it.")],
    processor: Annotated[str, typer.Option(help="package.module:function")],
    claim: Annotated[str, typer.Option(help="The volume claim.")] = "imece-data",
    source: Annotated[
        str | None,
        typer.Option(
            "--input",
            metavar="FOLDER",
            help="The claim's folder with the inputs. [default: NAME/in]",
            show_default=False,
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            "--output",
            metavar="FOLDER",
            help="The claim's folder for the outputs. [default: NAME/out]",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most workers at a time.")] = 10,
    namespace: Namespace = None,
    openshift: Annotated[
        bool, typer.Option("--openshift", help="The cluster is an OpenShift.")
    ] = False,
    directory: Annotated[
        Path | None,
        typer.Option(
            help="The folder to write. [default: deploy/overlays/NAME]", show_default=False
        ),
    ] = None,
) -> None:
    """Write an overlay for one more pipeline in a namespace.

    It has an image, a queue, paths, a limit and passwords of its own, and shares the Redis. Call it
    in a checkout of imece; `kubectl apply -k` takes what it writes.
    """
    if not re.fullmatch(PIPELINE, name):
        raise UsageError(
            f"a pipeline cannot have the name {name}",
            "take small letters, digits and dashes, 40 at most: a letter first, no dash at the end",
        )
    if name in TAKEN:
        raise UsageError(f"a pipeline cannot have the name {name}: {TAKEN[name]}")
    if not re.fullmatch(KUBE_NAME, claim):
        raise UsageError(f"--claim: {claim} is not the name of a volume claim")
    settings = load(processor=processor, kube_namespace=namespace)
    values = {
        "name": name,
        "namespace": settings.kube_namespace or "imece",
        "platform": "openshift" if openshift else "plain",
        "image": _image(image),
        "claim": claim,
        "source": _folder("--input", f"{name}/in" if source is None else source),
        "target": _folder("--output", f"{name}/out" if target is None else target),
        "limit": limit,
        "processor": settings.processor,
    }
    directory = directory or Path("deploy", "overlays", name)
    overlays = directory.parent
    if not all((overlays / one).is_dir() for one in ("plain", "../pipeline/wiring")):
        raise UsageError(
            f"{overlays} is not the folder deploy/overlays of imece's repository, which is no part "
            "of the package",
            f"call this in a checkout, or name one: --directory PATH/deploy/overlays/{name}",
        )
    passwords = {"name": name, "worker": secrets.token_hex(32), "scaler": secrets.token_hex(32)}
    try:
        directory.mkdir()
        (directory / "kustomization.yaml").write_text(OVERLAY.format(**values), "utf-8")
        file = os.open(directory / "passwords.yaml", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(file, "w", encoding="utf-8") as stream:
            stream.write(PASSWORDS.format(**passwords))
    except FileExistsError:
        raise UsageError(f"{directory} is there already: take another name") from None
    except OSError as error:
        raise UsageError(f"{directory} cannot be written: {error.strerror}") from None
    put(NEXT.format(directory=shlex.quote(str(directory)), **values))


def _image(given: str) -> str:
    """The lines of kustomize that name an image."""
    name, _, digest = given.partition("@")
    name, tag = re.fullmatch(r"(.*?)(?::([^:/]+))?", name, re.DOTALL).groups("")  # type: ignore[union-attr]
    if not re.fullmatch(r"[\w.:/-]+", name) or not re.fullmatch(r"[\w.-]*", tag):
        raise UsageError(f"--image: {given} is not the name of an image")
    if digest and re.fullmatch(r"[a-z0-9]+:[a-f0-9]+", digest):
        return f"    newName: {name}\n    digest: {digest}\n"
    if digest or not tag:
        raise UsageError(
            f"--image: {given} has no tag, and no digest", "write it, as registry/name:1.0"
        )
    return f'    newName: {name}\n    newTag: "{tag}"\n'


def _folder(option: str, given: str) -> str:
    """A folder of the claim."""
    folder = given.strip("/") if not given.startswith("/") else ""
    if not re.fullmatch(r"[\w./-]+", folder) or {"", ".", ".."} & set(folder.split("/")):
        raise UsageError(
            f"{option}: {given} is not a folder of the claim",
            "name it from the claim's top, in letters, digits, dots, dashes and slashes: scans/in",
        )
    return folder
