"""Each benchmark runs and prints its figures. How large they are is for `make bench` to say."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("bench", "figures"),
    [
        pytest.param(
            *("process", ["ratio of the two", "a processor that does nothing"]),
            marks=pytest.mark.slow,  # the same command, and seconds of processing
        ),
        pytest.param(
            "enqueue",
            ["ratio of the two", "memory in Redis a file", "peak memory of the producer"],
            marks=pytest.mark.slow,
        ),
        ("status", ["`imece status`, 10,000 files", "`imece status`, 100 files", "`rq info`"]),
    ],
)
def test_a_benchmark_prints_its_figures(bench: str, figures: list[str], tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "bench", bench, "--quick", "--folder", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    cells = [line.split("|") for line in ended.stdout.splitlines() if line.startswith("| ")]
    measured = {what.strip(): figure.strip() for _, what, figure, *_ in cells}
    for wanted in figures:
        (figure,) = [value for what, value in measured.items() if wanted in what]
        assert float(figure.split()[0].replace(",", "")) > 0
    assert not list(tmp_path.iterdir())
