"""The settings of producer and worker: one class, read once at start.

Sources, the first that has a value wins: environment (`IMECE_...`), a `.env` file in the working
directory, a directory of secrets (one file a setting, named like the variable).
`python -m imece.settings` prints the reference that stands in docs/reference/settings.md.
"""

import difflib
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl, urlsplit

from dotenv import dotenv_values
from pydantic import (
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from imece import processing
from imece.errors import SettingsError
from imece.run.parameters import SET_PREFIX, max_failed_flaw

PREFIX = "IMECE_"
SECRETS_DIR = os.environ.get(f"{PREFIX}SECRETS_DIR", "/run/secrets/imece")

_NO_SETTINGS = (f"{PREFIX}SECRETS_DIR", f"{PREFIX}HANDED_OVER")
_SERVICE_LINK = re.compile(
    r"_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)$"
)
"""What Kubernetes tells every pod of a Service, if its name begins with `imece`."""

PROCESSING = ("processor", "command", "shell", "command_stdout", "batch")
"""The settings that say what processes a file."""

Seconds = Annotated[float, Field(gt=0, le=10 * 365 * 86400, allow_inf_nan=False)]
QUEUE = r"[A-Za-z0-9_-]{1,64}"
KUBE_NAME = r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$"
PIPELINE = r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?"
"""The name of a pipeline: that of its queue, and the end of names in Kubernetes. So it is short."""


def workers_of(queue: str) -> str:
    """The name of a pipeline's Deployment and ScaledObject, as `imece new pipeline` makes them."""
    is_first = queue == "imece" or not re.fullmatch(PIPELINE, queue)
    return "imece-worker" if is_first else f"imece-worker-{queue}"


class Settings(BaseSettings):
    """All settings of imece."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_file=".env",
        extra="ignore",
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
        frozen=True,
    )

    redis_url: SecretStr = SecretStr("redis://localhost:6379/0")
    """Where Redis is: `redis://host:port/db`, `rediss://` for TLS, `unix:///path` for a socket.
    Redis 7 or later, or Valkey."""

    redis_username: str | None = None
    """The ACL user, if the URL does not name one."""

    redis_password: SecretStr | None = None
    """The password, if the URL does not have it. Best: a file in the secrets directory."""

    redis_ca_file: Path | None = None
    """A PEM file with the CA of the server's certificate, for `rediss://` with a private CA."""

    redis_sentinels: str | None = None
    """Sentinels as `host:port,host:port`. Needs `IMECE_REDIS_SENTINEL_MASTER`; the URL then gives
    only scheme and database."""

    redis_sentinel_master: str | None = None
    """The name under which the sentinels know the master."""

    queue: Annotated[str, Field(pattern=f"^{QUEUE}$")] = "imece"
    """The RQ queue that bucket jobs go through: the name of the pipeline. Letters, digits, dash and
    underscore."""

    input: Path | None = None
    """Worker: where it sees the run's input directory, if not at the path the producer saw."""

    output: Path | None = None
    """Worker: where it sees the run's output directory, if not at the path the producer saw."""

    processor: str | None = None
    """Worker: `package.module:function`, called with the input path and the output path; or
    `package.module:Class`, whose instance is called so."""

    processors: str | None = None
    """Worker: names for several functions or classes, as a JSON object:
    `{"thumb": "package.module:thumb"}`. A run asks for one by `imece enqueue --processor thumb`.
    Installed packages may name theirs by entry points in the group `imece.processors`."""

    command: str | None = None
    """Worker: a program to run in place of a function: `tool --in {input} --out {output}`.
    imece splits it as a shell does, but starts no shell. `{name}`, `{stem}` and `{dir}` stand for
    the input's name, the name without its ending, and its directory in the input directory."""

    shell: str | None = None
    """Worker: a text for `sh -c` in place of a function. It gets the path of the input as `$1` and
    that of the output as `$2`: `sort "$1" > "$2"`."""

    command_stdout: bool = False
    """Worker: what `IMECE_COMMAND` or `IMECE_SHELL` writes to its standard output is the output."""

    image: str = ""
    """Worker, producer: the name of the image that they run in, with its tag or digest. It is kept
    with each output; another image counts as other code (docs/explanation/what-is-current.md)."""

    batch: Annotated[int, Field(ge=2, le=100)] | None = None
    """Worker: how many files a class with `process_batch` gets at a time. Unset: one by one."""

    retries: Annotated[int, Field(ge=0, le=100)] = 2
    """How often a failed file is tried again before it is quarantined. Unset: 2 times; but an error
    in a Python function that comes twice in a row from the same line is not tried again. An
    `OSError` (files, network) is."""

    max_failed: str | None = None
    """Producer: how many files of a round may fail: a number (`100`), or a percentage of the files
    of the round (`5%`), which counts after 20 files have ended. If more fail, the run is held.
    Unset: any number may fail."""

    retry_pause: Annotated[float, Field(ge=0, le=3600)] = 1.0
    """Seconds before the first retry of a file; doubled each time, at most 60."""

    file_timeout: Seconds = 3600.0
    """Seconds one try of one file may take. A longer try is killed and counts as failed."""

    memory_limit: Annotated[int, Field(ge=64)] | None = None
    """Worker: MiB of address space one processor may use. Unset: no limit but the container's."""

    runner_max_files: Annotated[int, Field(ge=1)] | None = None
    """Worker: after so many files a new process takes the place of the one that processes them.
    Unset: never."""

    runner_max_memory: Annotated[int, Field(ge=1)] | None = None
    """Worker: MiB of resident memory. A process that has as much after a file is replaced by a new
    one. Unset: never."""

    replicas_here: Annotated[int, Field(ge=1)] = 1
    """Worker: how many workers share this machine or container. The threads of libraries are
    divided by it. `imece local` sets it."""

    lease: Annotated[float, Field(ge=3, le=3600)] = 15.0
    """Seconds a worker's claim on a bucket job lasts without a sign of life; the same
    for all workers."""

    heartbeat: Annotated[float, Field(ge=0.1, le=60)] = 1.0
    """Seconds between two signs of life of a worker, and between two looks for dead ones."""

    sync: Literal["off", "checkpoint"] = "off"
    """Worker: `checkpoint` puts outputs and ledger on stable storage before Redis is told of them.
    A loss of power then undoes nothing that counts as done. Linux only."""

    checkpoint: Annotated[float, Field(ge=0.05, le=60)] = 1.0
    """Seconds between two checkpoints of a bucket job. After a crash, work since the last is
    done again."""

    files_per_job: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Producer: the most files one bucket job holds. Unset: chosen from the count of files."""

    result_ttl: Annotated[int, Field(ge=60)] = 7 * 86400
    """Seconds an ended run stays readable in Redis."""

    run_ttl: Annotated[int, Field(ge=3600)] = 30 * 86400
    """Seconds without any progress after which an unfinished run is dropped from Redis."""

    log_format: Literal["human", "json"] = "human"
    """Worker: one line an event, for people or as JSON."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Worker: the least level that is logged."""

    heartbeat_file: Path | None = None
    """Worker: a file touched at every sign of life, for a liveness probe. It does not exist before
    the processor is loaded."""

    metrics_port: Annotated[int, Field(ge=0, le=65535)] = 0
    """Worker: the port on which Prometheus finds `/metrics`, on all addresses. 0: none."""

    pod_name: str | None = None
    """Worker: its pod, from the downward API. With it, the worker tells the cluster when it is
    idle, so that idle pods are removed first."""

    pod_namespace: str | None = None
    """Worker: the namespace of its pod, from the downward API."""

    idle_after: Annotated[float, Field(ge=0, le=3600)] = 5.0
    """Worker: seconds without a bucket job after which it calls itself idle to the cluster."""

    service_account_dir: Path = Path("/var/run/secrets/kubernetes.io/serviceaccount")
    """Where a pod finds its token and the CA of its cluster."""

    kubeconfig: str | None = None
    """The kubeconfig to go by. Unset: the service account, in a pod; else what `KUBECONFIG` names,
    or `~/.kube/config`."""

    kube_context: str | None = None
    """The context of the kubeconfig to use. Unset: the service account, in a pod; else the
    kubeconfig's current context."""

    kube_namespace: Annotated[str, Field(pattern=KUBE_NAME)] | None = None
    """The namespace of the workers. Unset: the pod's, or the context's."""

    kube_ca_file: Path | None = None
    """A PEM file with the CA of the cluster's API server, in place of the kubeconfig's."""

    deployment: Annotated[str, Field(pattern=KUBE_NAME)] = "imece-worker"
    """The name of the workers' Deployment. Unset: for a queue other than `imece`, the name that
    `imece new pipeline QUEUE` gives it: `imece-worker-QUEUE`."""

    scaled_object: Annotated[str, Field(pattern=KUBE_NAME)] = "imece-worker"
    """The name of KEDA's ScaledObject for it. Unset: the same name."""

    state_dir: Path = Path(os.environ.get("XDG_STATE_HOME", "~/.local/state")) / "imece"
    """Local mode: where the embedded server keeps its data between two calls."""

    @model_validator(mode="before")
    @classmethod
    def _pipeline(cls, given: dict[str, Any]) -> dict[str, Any]:
        workers = workers_of(str(given.get("queue", "imece")))
        return {"deployment": workers, "scaled_object": workers, **given}

    @model_validator(mode="before")
    @classmethod
    def _named(cls, given: dict[str, Any]) -> dict[str, Any]:
        """`processor` may be a name."""
        name, names = given.get("processor"), given.get("processors")
        if (
            not isinstance(name, str)
            or ":" in name
            or (names and processing.processors_flaw(names))
        ):
            return given
        return {**given, "processor": processing.named(names or None).get(name, name)}

    @field_validator("max_failed")
    @classmethod
    def _max_failed(cls, given: str | None) -> str | None:
        if given is not None and (flaw := max_failed_flaw(given)):
            raise ValueError(flaw)
        return given

    @field_validator(*processing.FLAWS)
    @classmethod
    def _processing(cls, given: str | None, about: ValidationInfo) -> str | None:
        if given is not None and (flaw := processing.FLAWS[str(about.field_name)](given)):
            raise ValueError(flaw)
        return given

    @field_validator("redis_url")
    @classmethod
    def _sound_url(cls, url: SecretStr) -> SecretStr:
        """Says what is wrong, and nothing of the URL: a password could be anywhere in it."""
        text = url.get_secret_value()
        if not text.startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("takes a URL that starts with redis://, rediss:// or unix://")
        escape = "a / ? # @ : or % within user or password is written as %2F %3F %23 %40 %3A %25"
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError:
            raise ValueError(f"its host and port cannot be read; {escape}") from None
        if port == 0 or parts.fragment or "@" in parts.query:
            raise ValueError(f"its host and port cannot be read; {escape}")
        if parts.scheme != "unix" and not re.fullmatch(r"(/[0-9]*)?", parts.path):
            raise ValueError(f"takes a number as database: redis://host:port/0; {escape}")
        names = {name for name, _ in parse_qsl(parts.query, keep_blank_values=True)}
        if not all(name == "db" or name.startswith("ssl_") for name in names):
            raise ValueError("takes no options after ? but db and those that start with ssl_")
        return url

    @property
    def processing(self) -> dict[str, str]:
        """What processes a file: the settings of `PROCESSING` that are set."""
        if not any(getattr(self, name) for name in processing.KINDS):
            return {}
        given = {name: getattr(self, name) for name in PROCESSING}
        return {name: str(value) for name, value in given.items() if value}

    def processing_by(self, name: str | None) -> dict[str, str] | None:
        """As `processing`, for a run that asks for this processor; None if there is none."""
        if name is None:
            return self.processing or None
        place = processing.named(self.processors).get(name)
        batch = {"batch": str(self.batch)} if self.batch else {}
        return {"processor": place, **batch} if place is not None else None

    @property
    def wants_all_tries(self) -> bool:
        """Whether somebody has said how often a failed file is tried again."""
        return "retries" in self.model_fields_set

    @property
    def names_redis(self) -> bool:
        """Whether somebody has said where Redis is."""
        return "redis_url" in self.model_fields_set or bool(self.redis_sentinels)

    @model_validator(mode="after")
    def _consistent(self) -> "Settings":
        given = [PREFIX + name.upper() for name in processing.KINDS if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} exclude each other: set one")
        if self.command_stdout and not (self.command or self.shell):
            raise ValueError("IMECE_COMMAND_STDOUT needs IMECE_COMMAND or IMECE_SHELL")
        if self.batch and (self.command or self.shell):
            raise ValueError("IMECE_BATCH needs a class as IMECE_PROCESSOR, with process_batch")
        if self.command_stdout and "{output}" in (self.command or ""):
            raise ValueError(
                "IMECE_COMMAND_STDOUT: the standard output is the output, so IMECE_COMMAND takes "
                "no {output}"
            )
        if bool(self.redis_sentinels) != bool(self.redis_sentinel_master):
            raise ValueError("IMECE_REDIS_SENTINELS and IMECE_REDIS_SENTINEL_MASTER go together")
        if self.lease < 3 * self.heartbeat:
            raise ValueError("IMECE_LEASE must be at least three times IMECE_HEARTBEAT")
        return self


def load(**overrides: Any) -> Settings:
    """The settings of this process; `overrides` (from the command line) win over every source.

    Raises:
        SettingsError: names each setting that is wrong and what it takes, never a secret's value.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    secrets = SECRETS_DIR if Path(SECRETS_DIR).is_dir() else None
    try:
        return Settings(_secrets_dir=secrets, **given)
    except ValidationError as error:
        wrong = []
        for detail in error.errors(include_url=False, include_input=False):
            message = detail["msg"].removeprefix("Value error, ")
            place = PREFIX + str(detail["loc"][0]).upper() + ": " if detail["loc"] else ""
            wrong.append(f"{place}{message}")
        raise SettingsError("; ".join(wrong)) from None
    except (OSError, ValueError) as error:  # what pydantic-settings lets pass, or makes of it
        reason = error.strerror if isinstance(error, OSError) else "it has to be UTF-8 text"
        place = f".env or a file in {SECRETS_DIR}"
        raise SettingsError(f"{place} cannot be read: {reason}") from None


def unknown() -> list[str]:
    """A sentence for each variable that looks like a setting, and is none."""
    known = [PREFIX + name.upper() for name in Settings.model_fields]
    given = set(os.environ)
    with suppress(OSError, ValueError):  # `load` says so
        given |= set(dotenv_values(".env"))
    with suppress(OSError):
        given |= set(os.listdir(SECRETS_DIR))
    sentences = []
    for name in sorted(given):
        wanted = name.upper()
        if not wanted.startswith(PREFIX) or wanted in known or wanted in _NO_SETTINGS:
            continue
        if wanted.startswith(SET_PREFIX):  # a program may call imece
            continue
        if _SERVICE_LINK.search(wanted):
            continue
        close = difflib.get_close_matches(wanted, known, 1, 0.75)
        hint = f"do you mean {close[0]}?" if close else "docs/reference/settings.md has all"
        sentences.append(f"{name} is not a setting of imece: {hint}")
    return sentences


def reference() -> str:
    """The settings as a Markdown table, made from the class above."""
    lines = [
        "# Settings",
        "",
        "Made by `python -m imece.settings`; a test keeps it true. Each setting is read from the",
        "environment, from `.env`, or from a file of that name in the secrets directory",
        "(`IMECE_SECRETS_DIR`, `/run/secrets/imece` if unset). The first that names it wins.",
        "",
        "| variable | default | meaning |",
        "|---|---|---|",
    ]
    for name, field in Settings.model_fields.items():
        default = field.default
        if isinstance(default, SecretStr):
            default = default.get_secret_value()
        if name == "state_dir":
            default = "~/.local/state/imece"
        shown = "" if default is None else f"`{default}`"
        meaning = " ".join((field.description or "").split())
        lines.append(f"| `{PREFIX}{name.upper()}` | {shown} | {meaning} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(reference(), end="")
