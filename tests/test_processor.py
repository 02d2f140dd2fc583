"""The promise: a function or a program turns a file into its output; what it prints is kept where
it failed, and no shell ever reads a file's name."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from imece.run.failure import LONGEST_OUTPUT, LONGEST_REASON
from tests.conftest import ROOT, Workbench, WorkerProcess


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder workers import from."""
    folder = tmp_path / "modules"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return folder


def program(workbench: Workbench, body: str) -> str:
    """A shell script of ours, called with input and output; the command for it."""
    path = workbench.folder / "program"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return f"{path} {{input}} {{output}}"


def run_command(
    workbench: Workbench,
    command: str | None = None,
    suffix: str | None = None,
    target: str | None = None,
    **settings: str,
) -> WorkerProcess:
    """A run with this command, or what these settings say, and no retries, to its end."""
    del workbench.settings["processor"]
    workbench.enqueue(retries=0, suffix=suffix, target=target or str(workbench.target))
    given = {"command": command} if command is not None else {}
    worker = workbench.worker(log_format="json", **given, **settings)
    workbench.ended()
    return worker


def run_shell(workbench: Workbench, text: str, **settings: str) -> None:
    """As `run_command`, with a text for a shell."""
    run_command(workbench, **{"shell": text}, **settings)


def test_an_exception_that_cannot_be_printed_is_named(workbench: Workbench) -> None:
    workbench.files(3)
    workbench.settings["processor"] = "tests.processors:raise_the_unspeakable"
    workbench.enqueue(buckets=1, retries=0)
    worker = workbench.worker()
    assert workbench.ended().failed == 3
    assert all("Unspeakable" in failure.reason for failure in workbench.failures().values())
    assert "killed its process" not in worker.log()
    workbench.check_books()


def test_a_command_makes_outputs(workbench: Workbench) -> None:
    names = workbench.files(10)
    run_command(workbench, "cp {input} {output}")
    assert workbench.outputs() == names
    assert workbench.check_books().done == 10


def test_a_command_may_have_both_places_within_a_word_and_twice(workbench: Workbench) -> None:
    workbench.file("f", "content")
    run_command(workbench, "dd status=none if={input} of={output}")
    assert (workbench.target / "f").read_text() == "content"
    workbench.check_books()


def test_a_commands_words_are_never_read_by_a_shell(workbench: Workbench) -> None:
    """Neither the file's name nor the command itself."""
    name = "; touch canary; $(touch canary) `touch canary` > canary"
    workbench.file(name, "content")
    command = program(workbench, 'printf "%s" "$3" > "$2"') + " '$(touch canary); {input}'"
    run_command(workbench, command)
    assert not list(workbench.folder.rglob("canary"))
    assert not Path("canary").exists()
    written = (workbench.target / name).read_text()
    assert written.startswith("$(touch canary); /")
    assert written.endswith(f"/{name}")
    assert workbench.check_books().done == 1


def test_places_in_a_files_name_are_not_filled_in(workbench: Workbench) -> None:
    workbench.file("{output}{input}", "content")
    run_command(workbench, "cp {input} {output}")
    assert workbench.outputs() == ["{output}{input}"]
    workbench.check_books()


def test_a_command_may_have_the_parts_of_a_name(workbench: Workbench) -> None:
    name = "deep/er/an archive.tar.gz"
    workbench.file(name)
    workbench.file("top")
    body = 'printf "%s\\n" "$@" > "$2"'
    places = " {name} {stem} {dir}/x {{name}} {other}"
    run_command(workbench, program(workbench, body) + places)
    _, _, *words = (workbench.target / name).read_text().splitlines()
    wanted = ["an archive.tar.gz", "an archive.tar", "deep/er/x", "{name}", "{other}"]
    assert words == wanted
    _, _, *words = (workbench.target / "top").read_text().splitlines()
    assert words == ["top", "top", "./x", "{name}", "{other}"]
    workbench.check_books()


def test_standard_output_may_be_the_output(workbench: Workbench) -> None:
    workbench.file("f", "b\na\n")
    run_command(workbench, "sort {input}", suffix=".sorted", command_stdout="true")
    assert (workbench.target / "f.sorted").read_text() == "a\nb\n"
    workbench.check_books()


def test_half_of_a_standard_output_is_no_output(workbench: Workbench) -> None:
    workbench.file("f")
    command = program(workbench, "echo half; echo why >&2; exit 3").replace("{output}", "")
    run_command(workbench, command, command_stdout="true")
    assert workbench.outputs() == []
    assert workbench.failures()["f"].last_line == "program ended with exit code 3: why"
    workbench.check_books()


def test_a_text_for_a_shell_gets_the_paths_as_arguments(workbench: Workbench) -> None:
    """A name is never read as a part of it."""
    names = ["; touch canary; $(touch canary) `touch canary`", '"$2" > canary', "plain"]
    for name in names:
        workbench.file(name, "b\na\nb\n")
    run_shell(workbench, 'sort "$1" | uniq > "$2"; test $# = 2')
    assert workbench.outputs() == sorted(names)
    assert {(workbench.target / name).read_text() for name in names} == {"a\nb\n"}
    assert not list(workbench.folder.rglob("canary"))
    assert not Path("canary").exists()
    workbench.check_books()


def test_a_shell_may_write_to_its_standard_output(workbench: Workbench) -> None:
    workbench.file("f", "b\na\n")
    run_shell(workbench, 'sort "$1" | head -n 1', command_stdout="true")
    assert (workbench.target / "f").read_text() == "a\n"


@pytest.mark.parametrize("has_pipefail", [True, False])
def test_a_pipe_fails_where_the_shell_can_do_that(
    workbench: Workbench, monkeypatch: pytest.MonkeyPatch, has_pipefail: bool
) -> None:
    folder = workbench.folder / "bin"
    folder.mkdir()
    shell = "bash" if has_pipefail else "dash"
    if (found := shutil.which(shell)) is None:
        pytest.skip(f"there is no {shell} here")
    (folder / "sh").symlink_to(found)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    has_it = subprocess.run(["sh", "-o", "pipefail", "-c", ":"], check=False).returncode == 0
    workbench.file("f")
    run_shell(workbench, 'cat "$1" no-such-file | cat > "$2"')
    assert workbench.status().failed == int(has_it)
    assert has_it or not has_pipefail


def test_the_tail_of_standard_error_is_the_reason_and_standard_output_is_kept(
    workbench: Workbench,
) -> None:
    workbench.file("f")
    body = "echo to standard output; echo first >&2; echo the last word >&2; exit 7"
    worker = run_command(workbench, program(workbench, body))
    failure = workbench.failures()["f"]
    assert failure.reason == ("first\nthe last word\nprogram ended with exit code 7: the last word")
    assert failure.last_line == "program ended with exit code 7: the last word"
    assert failure.output == "to standard output"
    assert "last word" not in worker.log()
    assert workbench.check_books().failed == 1


def test_a_flood_on_standard_error_leaves_its_tail(workbench: Workbench) -> None:
    workbench.file("f")
    body = "i=0; while [ $i -lt 20000 ]; do echo line $i >&2; i=$((i+1)); done; exit 1"
    run_command(workbench, program(workbench, body))
    reason = workbench.failures()["f"].reason
    assert reason.endswith("line 19999")
    assert len(reason) < LONGEST_REASON + 100
    workbench.check_books()


def test_a_program_that_fails_in_silence_or_by_a_signal_has_a_reason(workbench: Workbench) -> None:
    workbench.file("quiet")
    workbench.file("killed")
    body = "case $1 in *killed) kill -9 $$;; esac; exit 3"
    run_command(workbench, program(workbench, body))
    reasons = {name: failure.reason for name, failure in workbench.failures().items()}
    assert reasons == {
        "quiet": "program ended with exit code 3",
        "killed": "program was killed by signal 9",
    }
    workbench.check_books()


def test_a_program_that_writes_no_output_has_failed(workbench: Workbench) -> None:
    workbench.file("f")
    run_command(workbench, "true {input} {output}")
    assert (
        workbench.failures()["f"].last_line == "the processor returned without writing its output"
    )
    workbench.check_books()


def test_a_program_that_fails_half_way_leaves_no_output(workbench: Workbench) -> None:
    workbench.file("f")
    run_command(workbench, program(workbench, 'echo half > "$2"; exit 1'))
    assert workbench.outputs() == []
    assert workbench.check_books().failed == 1


def test_a_program_has_no_standard_input_to_wait_for(workbench: Workbench) -> None:
    workbench.file("f")
    run_command(workbench, program(workbench, 'cat > "$2"'))
    assert (workbench.target / "f").read_bytes() == b""
    assert workbench.check_books().done == 1


def test_the_path_of_an_output_ends_in_its_real_name(workbench: Workbench) -> None:
    """Many a tool chooses the format by it, or writes it into the output."""
    names = ["a.jpg", "deep/er/a.jpg", "o" * 251 + ".jpg", "two words.jpg", "no ending"]
    for name in names:
        workbench.file(name)
    workbench.settings["processor"] = "tests.processors:write_target"
    workbench.enqueue(buckets=1, suffix=".png", retries=0)
    workbench.worker()
    assert workbench.ended().done == len(names)
    directories = set()
    for name in workbench.outputs():
        path, real = (workbench.target / name).read_text().splitlines()
        assert Path(path).name == Path(real).name == Path(name).name
        directories.add(Path(real).parent)
    assert len(directories) == 1, "it is made once"
    workbench.check_books()


def test_what_is_left_beside_an_output_is_no_other_output(workbench: Workbench) -> None:
    names = ["a", "b", "c"]
    for name in names:
        workbench.file(name)
    workbench.settings["processor"] = "tests.processors:leave_names_of_others"
    workbench.enqueue(buckets=1, retries=0)
    workbench.worker()
    assert workbench.ended().done == 3, workbench.failures()
    assert {name: (workbench.target / name).read_text() for name in names} == {
        name: f"by {name}" for name in names
    }
    workbench.check_books()


def test_a_processor_that_removes_the_directory_of_its_output_harms_no_other_file(
    workbench: Workbench,
) -> None:
    for name, content in (("a", "fine"), ("b", "remove"), ("c", "fine")):
        workbench.file(name, content)
    workbench.settings["processor"] = "tests.processors:remove_what_is_around"
    workbench.enqueue(buckets=1, retries=0)
    workbench.worker()
    assert workbench.ended().done == 2
    assert workbench.failures()["b"].last_line == (
        "the processor returned without writing its output"
    )
    assert workbench.outputs() == ["a", "c"]
    workbench.check_books()


def test_a_command_without_outputs_is_called_with_the_input_alone(workbench: Workbench) -> None:
    workbench.files(5)
    kept = workbench.folder / "kept"
    kept.mkdir()
    run_command(workbench, f"cp -t {kept} {{input}}", target="-")
    assert workbench.status().done == 5
    assert len(list(kept.iterdir())) == 5
    assert not workbench.target.exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"command": "no-such-program {input}"}, "there is no program no-such-program here"),
        ({"command": "cp 'unbalanced {input}"}, "IMECE_COMMAND: a quotation is not closed"),
        ({"command": "cp a b"}, "{input}"),
        ({"processor": "no_such_module:f"}, "No module named 'no_such_module'"),
        ({"processor": "tests.processors:no_such"}, "no_such"),
        ({"processor": "tests.processors:signal"}, "that is not a function"),
        ({"processor": "tests.processors"}, "IMECE_PROCESSOR"),
        ({"processor": "exits:f"}, "SystemExit: 5"),
        ({"processor": "breaks:f"}, "ZeroDivisionError"),
        ({}, "no processor: set IMECE_PROCESSOR"),
        ({"processor": "tests.processors:copy", "command": "cp {input}"}, "exclude each other"),
        ({"shell": "cat", "command": "cp {input}"}, "exclude each other"),
        ({"shell": "wc {input} > $2"}, "takes no {input}: a name could be read as a command. The"),
        ({"processor": "tests.processors:copy", "command_stdout": "true"}, "IMECE_SHELL"),
        ({"command": "cp {input} {output}", "command_stdout": "true"}, "takes no {output}"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_processor_that_cannot_be_had_is_told_at_the_start_with_exit_code_2(
    workbench: Workbench,
    settings: dict[str, str],
    message: str,
    modules: Path,
) -> None:
    (modules / "exits.py").write_text("raise SystemExit(5)")
    (modules / "breaks.py").write_text("1 / 0")
    workbench.files(1)
    workbench.enqueue()
    del workbench.settings["processor"]
    worker = workbench.worker(**settings)
    assert worker.wait() == 2
    assert message in worker.log()
    assert worker.log().startswith("imece-worker: ")
    assert "Traceback" not in worker.log()
    assert workbench.check_books().backlog.pending == 1


def test_what_a_function_prints_is_kept_for_failures_and_never_in_the_workers_log(
    workbench: Workbench,
) -> None:
    workbench.files(5, b"fine")
    workbench.file("f-0002.txt", "fail")
    workbench.enqueue(buckets=1, retries=1)
    worker = workbench.worker(processor="tests.processors:chatter", log_format="json")
    assert workbench.ended().state == "failed"
    [(name, failure)] = workbench.failures().items()
    assert name == "f-0002.txt"
    assert failure.last_line == "ValueError: after many words"
    lines = failure.output.splitlines()
    assert sorted(lines) == [
        "no newline at the end",
        "printed f-0002.txt",  # once: of its last try, and of no other file
        "to standard error",
        "to the descriptor",
    ]
    assert worker.stop() == 0
    assert {entry["event"] for entry in worker.events()} == {
        "worker started",
        "job taken",
        "job finished",
        "worker stopped",
    }
    for word in ("printed", "standard error", "descriptor", "many words"):
        assert word not in worker.log()
    assert workbench.check_books().done == 4


def test_a_flood_of_prints_leaves_its_tail(modules: Path, workbench: Workbench) -> None:
    (modules / "flood.py").write_text(
        "def f(source, target):\n"
        "    for number in range(200_000):\n"
        "        print('line', number)\n"
        "    raise ValueError('enough')\n"
    )
    workbench.files(1)
    workbench.enqueue(retries=0)
    workbench.worker(processor="flood:f")
    assert workbench.ended().state == "failed"
    output = workbench.failures()["f-0000.txt"].output
    assert output.endswith("line 199999")
    assert len(output) <= LONGEST_OUTPUT + 1
    workbench.check_books()


def test_the_reason_is_the_tail_of_the_traceback_without_our_own_frames(
    workbench: Workbench,
) -> None:
    workbench.file("f", "raise a reason")
    workbench.enqueue(retries=0)
    workbench.worker(processor="tests.processors:by_content")
    assert workbench.ended().state == "failed"
    reason = workbench.failures()["f"].reason
    assert reason.startswith("Traceback (most recent call last):")
    assert "in by_content" in reason
    assert reason.endswith("ValueError: a reason")
    assert "imece_worker" not in reason
    workbench.check_books()


def test_a_reason_that_is_not_text_for_everyone_is_kept(
    modules: Path, workbench: Workbench
) -> None:
    """Lone surrogates, as they come from names that are not UTF-8, must not hurt the worker."""
    name = b"\xff\xfe".decode("utf-8", "surrogateescape")
    workbench.file(name, "raise \N{SNOWMAN}")
    workbench.file("fine")
    workbench.enqueue(buckets=1, retries=0)
    (modules / "shows.py").write_text(
        "def f(source, target):\n    print(ascii(source)); raise ValueError(source)\n"
    )
    worker = workbench.worker(processor="shows:f", log_format="json")
    assert workbench.ended().state == "failed"
    assert sorted(workbench.failures()) == sorted([name, "fine"])
    assert worker.process.poll() is None
    answer = workbench.imece("failures", "run", "--json")
    assert answer.returncode == 0, answer.stderr
    assert len([json.loads(line) for line in answer.stdout.splitlines()]) == 2
    workbench.check_books()


def test_an_import_may_print_without_spoiling_the_log(modules: Path, workbench: Workbench) -> None:
    """It prints into the container's output, like the log; each on lines of its own."""
    (modules / "loud.py").write_text(
        "import shutil\nprint('loud import', flush=True)\nf = shutil.copyfile\n"
    )
    workbench.files(2)
    workbench.enqueue()
    worker = workbench.worker(processor="loud:f")
    assert workbench.ended().state == "done"
    assert worker.log().startswith("loud import\n")
    workbench.check_books()


def test_a_child_the_processor_forked_does_not_go_on_with_the_files(workbench: Workbench) -> None:
    names = workbench.files(5)
    workbench.enqueue(include=["*.txt"], buckets=1, files_per_job=10)
    workbench.worker(processor="tests.processors:fork_and_forget")
    assert workbench.ended().done == 5
    for name in names:
        assert (workbench.source / name).with_suffix(".ran").read_text() == "x"


def test_a_check_leaves_the_worker_beside_it_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its heartbeat file stays, and its port, which is taken, is not asked for."""
    heartbeat = tmp_path / "heartbeat"
    heartbeat.touch()
    monkeypatch.setenv("IMECE_HEARTBEAT_FILE", str(heartbeat))
    with socket.create_server(("", 0)) as taken:
        monkeypatch.setenv("IMECE_METRICS_PORT", str(taken.getsockname()[1]))
        check = [
            sys.executable,
            "-m",
            "imece_worker",
            "--check",
            "--processor",
            "tests.processors:copy",
        ]
        ended = subprocess.run(check, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert heartbeat.exists()
