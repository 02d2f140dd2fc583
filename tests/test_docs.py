"""The docs are true: each command on a page runs, each link leads somewhere, each output is as it
is printed, each schema fits."""

import json
import os
import re
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from imece import settings
from tests.api_server import ApiServer
from tests.conftest import ROOT, Workbench
from tests.pages import DOCS, IN_BACKGROUND, NOT_RUN, Block, anchors, blocks, links, llms, pages

SERVER = "redis://localhost:6379/0"
"""The server that the docs name; the test puts its own in its place."""

LANGUAGES = {"sh", "text", "python", "toml", "yaml"}
SCHEMA = json.loads((DOCS / "reference" / "imece.schema.json").read_text("utf-8"))
SLOW = {
    "choose-files.md",
    "from-failure-to-fix.md",
    "gnu-parallel.md",
    "limit-time-and-memory.md",
    "many-to-one.md",
    "nightly-run.md",
    "process-again.md",
    "retry-after-a-fix.md",
    "run-a-program.md",
    "use-in-a-script.md",
    "workers-on-machines.md",
    "first-run.md",
    "local-settings.md",
}
"""Pages with many runs, or many starts, and little that other pages do not show."""
RUNNABLE = [
    pytest.param(page, marks=[pytest.mark.slow] if page.name in SLOW else [], id=str(page.name))
    for page in pages()
    if any(block.runs for block in blocks(page))
]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


each_page = pytest.mark.parametrize("page", pages(), ids=name_of)


@pytest.mark.parametrize("page", RUNNABLE)
def test_the_commands_of_a_page_do_what_it_says(
    page: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """In the order of the page, in one shell and one empty folder."""
    found = blocks(page)
    if any(SERVER in block.text for block in found if block.runs):
        url = request.getfixturevalue("server").url
    else:
        url = SERVER
    folder = tmp_path / "reader"
    folder.mkdir()
    for block in found:
        if block.title:
            (folder / block.title).write_text(block.text)
    script = folder.parent / "page.sh"
    script.write_text(script_of(found, tmp_path).replace(SERVER, url))
    environment = {**os.environ, "HOME": str(tmp_path), "PATH": path_with_imece()}
    with (tmp_path / "log").open("wb") as log:
        shell = subprocess.Popen(
            ["bash", str(script)],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            code = shell.wait(60)
        finally:
            end(shell.pid)
    assert code == 0, (tmp_path / "log").read_text()
    for before, after in pairwise(found):
        if before.runs and after.language == "text":
            printed = (tmp_path / f"{before.line}.out").read_text()
            assert re.fullmatch(pattern_of(after.text), printed, re.DOTALL), (
                f"{name_of(page)}, line {after.line}: it printed\n{printed}"
            )


def script_of(found: list[Block], folder: Path) -> str:
    """The blocks that run as one script. Each prints into a file of its own."""
    lines = ["set -eu"]
    for block in found:
        if not block.runs:
            continue
        printed = f"{folder}/{block.line}.out"
        if block.word == IN_BACKGROUND:
            lines.append(f"{{\n{block.text}}} > {printed} 2>&1 &")
        elif block.exit_code:
            lines += ["code=0", f"( {block.text}) > {printed} 2>&1 || code=$?"]
            lines.append(f"[ $code = {block.exit_code} ] || {{ cat {printed}; exit 99; }}")
        else:
            # A group, and neither a condition nor a subshell: `set -e`, `cd` and `export` count.
            lines.append(f"trap 'cat {printed}' ERR")
            lines.append(f"{{\n{block.text}}} > {printed} 2>&1")
    return "\n".join(lines) + "\n"


def path_with_imece() -> str:
    return f"{Path(sys.executable).parent}:{os.environ['PATH']}"


def end(session: int) -> None:
    """Kills what a page has left running."""
    try:
        os.killpg(session, signal.SIGKILL)
    except ProcessLookupError:
        return


MEASURED = re.compile(
    r"[\d.,]+ (?:h \d+ min|min|ms|s|files/s|kB|MB)\b"  # how long, how fast, how large
    r"|\d\d:\d\d:\d\d"
)


def pattern_of(text: str) -> str:
    """What a page shows as printed, as a pattern: … is anything, and so is what was measured."""
    plain = MEASURED.sub("\0", text)
    escaped = re.escape(plain).replace(re.escape("\0"), r"[\d.,:hmin ]+ ?[\w/]*")
    return escaped.replace("…\\\n", "…").replace("…", ".*?")


@each_page
def test_each_block_of_code_is_run_or_says_why_not(page: Path) -> None:
    for block in blocks(page):
        where = f"{name_of(page)}, line {block.line}"
        assert block.language in LANGUAGES, f"{where}: which language?"
        if block.is_command and not block.runs:
            assert len(block.word) > len(NOT_RUN) + 10, f"{where}: why is it not run?"


@each_page
def test_the_text_names_the_file_of_a_block(page: Path) -> None:
    """Not everything that shows Markdown shows a block's title."""
    text = page.read_text("utf-8")
    for block in blocks(page):
        if block.title:
            before = text.partition(f'title="{block.title}"')[0].split("\n\n")[-2]
            assert f"`{block.title}`" in before, f"{name_of(page)}: {block.title}"


@each_page
def test_commands_are_in_blocks_that_the_test_sees(page: Path) -> None:
    text = page.read_text("utf-8")
    fences = len(re.findall(r"^ *```", text, re.MULTILINE))
    assert fences == 2 * len(blocks(page))
    outside = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    assert not re.search(r"^ {4,}(imece|make|kubectl|docker|oc|pip|export) ", outside, re.MULTILINE)


@each_page
def test_links_lead_to_what_is_there(page: Path) -> None:
    for link in links(page):
        if link.startswith(("https://", "mailto:")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name_of(page)}: {link}"
        assert not anchor or anchor in anchors(target), f"{name_of(page)}: {link}"


@each_page
def test_tests_that_a_page_names_are_there(page: Path) -> None:
    there = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    named = re.findall(r"`(?:[\w/]+/)?(test_\w+\.py)`", page.read_text("utf-8"))
    assert set(named) <= there


def test_the_list_of_pages_is_true() -> None:
    """To fix: make llms"""
    text = (DOCS / "llms.txt").read_text("utf-8")
    assert text == llms()
    assert set(re.findall(r"\]\(([^)]+)\)", text)) == {
        str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")
    }


def test_paths_of_pages_in_code_and_manifests_exist() -> None:
    places = ("imece", "producer", "worker", "deploy", "dags", "bench", "examples")
    for place in places:
        for file in (ROOT / place).rglob("*"):
            if file.suffix in {".py", ".yaml", ".json", ".lua", ".env"}:
                for path in re.findall(r"docs/[\w/-]+\.md", file.read_text("utf-8")):
                    assert (ROOT / path).exists(), f"{file}: {path}"


def test_the_settings_for_local_use_are_settings() -> None:
    text = (DOCS / "reference" / "local-settings.md").read_text("utf-8")
    named = re.findall(r"^\| `IMECE_(\w+)`", text, re.MULTILINE)
    assert len(named) == 8
    assert {name.lower() for name in named} <= set(settings.Settings.model_fields)


def test_every_command_is_in_the_reference() -> None:
    from imece_producer.cli import app

    text = (DOCS / "reference" / "commands.md").read_text("utf-8")
    for command in app.registered_commands:
        assert command.callback is not None
        name = command.name or command.callback.__name__
        assert re.search(rf"\bimece {name}\b", text), name


def test_words_of_the_glossary_stand_in_order() -> None:
    rows = re.findall(r"^\| ([\w ,()-]+?) \|", (DOCS / "glossary.md").read_text("utf-8"), re.M)
    words = [row.partition(" (")[0].lower() for row in rows[1:]]
    assert words == sorted(words)


def check(definition: str, value: Any) -> None:
    """Holds an output against the schema that the docs have for it."""
    assert definition in SCHEMA["$defs"]
    schema = {**SCHEMA, "$ref": f"#/$defs/{definition}"}
    Draft202012Validator(schema).validate(value)


def test_the_schemas_are_schemas() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    text = (DOCS / "reference" / "json.md").read_text("utf-8")
    named = set(re.findall(r"^\| [^|]+\| `([\w-]+)` \|", text, re.MULTILINE))
    assert named == set(SCHEMA["$defs"]) - {"run", "cluster", "scaling"}


def test_output_of_a_run_fits_the_schemas(workbench: Workbench) -> None:
    workbench.files(3)
    workbench.file("bad.txt", "raise")
    workbench.settings["processor"] = "tests.processors:by_content"
    paths = (str(workbench.source), str(workbench.target))

    def told(*arguments: str) -> Any:
        return json.loads(workbench.imece(*arguments, "--json").stdout)

    check("enqueue-dry-run", told("enqueue", *paths, "--dry-run"))
    check("enqueue", told("enqueue", *paths, "--run-id", "run"))
    check("cancel", told("cancel", "run"))
    check("retry", told("resume", "run"))
    workbench.worker()
    check("wait", told("wait", "run"))
    check("status", told("status", "run"))
    check("runs", told("runs"))
    lines = workbench.imece("failures", "run", "--json").stdout.splitlines()
    assert len(lines) == 1
    check("failures", json.loads(lines[0]))
    check(
        "failures-by-cause",
        json.loads(workbench.imece("failures", "run", "--by-cause", "--json").stdout),
    )
    check("retry", told("retry", "run"))


def test_output_of_a_local_run_fits_the_schemas(workbench: Workbench) -> None:
    workbench.files(2)
    del workbench.settings["redis_url"]
    paths = (str(workbench.source), str(workbench.target))
    done = workbench.imece("local", *paths, "--processor", "tests.processors:copy", "--json")
    check("local", json.loads(done.stdout))


def test_output_about_a_cluster_fits_the_schemas(workbench: Workbench, cluster: ApiServer) -> None:
    workbench.files(1)
    workbench.enqueue()
    for arguments in (["scale", "5"], ["pause"], ["resume"]):
        done = workbench.imece(*arguments, "--namespace", "imece", "--json")
        check("scale", json.loads(done.stdout))
    done = workbench.imece("status", "run", "--namespace", "imece", "--json")
    check("status", json.loads(done.stdout))
    for line in workbench.imece("doctor", "--namespace", "imece", "--json").stdout.splitlines():
        check("doctor", json.loads(line))


def test_every_page_is_in_the_navigation() -> None:
    text = json.dumps(yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))["nav"])
    for page in DOCS.rglob("*.md"):
        assert f'"{page.relative_to(DOCS)}"' in text, page
