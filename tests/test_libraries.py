"""The promise: a processor may use numpy, polars and pyarrow as it likes. They have threads and
locks of their own, which no fork survives."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Workbench

pytestmark = pytest.mark.libraries

USES = {
    "numpy with OpenBLAS, at import too": (
        "import numpy\nA = numpy.random.rand(400, 400)\nB = A @ A",
        "(A @ A).sum()",
    ),
    "numpy in the function alone": (
        "",
        "import numpy; numpy.linalg.inv(numpy.random.rand(300, 300))",
    ),
    "polars read at import": (
        "import polars\npolars.DataFrame({'a': range(10_000)}).write_parquet(HERE + '/some')\n"
        "FRAME = polars.read_parquet(HERE + '/some')",
        "assert FRAME.lazy().group_by('a').len().collect().height == 10_000; "
        "polars.read_parquet(HERE + '/some')",
    ),
    "polars in the function alone": (
        "import polars",
        "polars.DataFrame({'a': range(10_000)}).lazy().group_by('a').len().collect()",
    ),
    "pyarrow read at import": (
        "import pyarrow.csv\npathlib.Path(HERE, 'c').write_text('a,b\\n' + '1,2\\n' * 100_000)\n"
        "TABLE = pyarrow.csv.read_csv(HERE + '/c')",
        "assert pyarrow.csv.read_csv(HERE + '/c').num_rows == TABLE.num_rows",
    ),
    "pyarrow's data sets in the function": (
        "import pyarrow as pa, pyarrow.dataset as ds, pyarrow.parquet as pq\n"
        "pq.write_table(pa.table({'a': range(100_000)}), HERE + '/data')",
        "assert ds.dataset(HERE + '/data').to_table(filter=ds.field('a') > 9).num_rows == 99_990",
    ),
}
TOP = "import os, pathlib\nHERE = os.path.dirname(__file__)\n"


@pytest.mark.parametrize("replicas", ["1", "100"], ids=["its threads", "one thread"])
@pytest.mark.parametrize("what", USES)
def test_a_library_does_not_hang(
    workbench: Workbench, monkeypatch: pytest.MonkeyPatch, what: str, replicas: str
) -> None:
    """Nor after a crash. With one thread for each library it may be a template that forks."""
    top, use = USES[what]
    (workbench.folder / "made.py").write_text(
        f"{TOP}{top}\n"
        "def f(source, target):\n"
        f"    {use}\n"
        "    died = pathlib.Path(HERE, 'died')\n"
        "    if os.path.basename(source) == 'f-0003.txt' and not died.exists():\n"
        "        died.touch(); os._exit(3)\n"
        "    pathlib.Path(target).write_text('made')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(workbench.folder))
    workbench.files(6)
    workbench.settings["replicas_here"] = replicas
    workbench.enqueue(buckets=2, files_per_job=3, retries=1, timeout=30)
    workbench.worker(processor="made:f")
    now = workbench.ended(timeout=100)
    assert (now.done, now.retried) == (6, 1), workbench.failures()


def test_this_machine_can_show_it(tmp_path: Path) -> None:
    """What imece did before: a fork of the process that has read something at import."""
    top, _ = USES["polars read at import"]
    (tmp_path / "made.py").write_text(
        f"{TOP}{top}\n"
        "if os.fork() == 0:\n"
        "    __import__('signal').alarm(15)\n"  # nobody else would end it
        "    polars.read_parquet(HERE + '/some')\n"
        "    os._exit(0)\n"
        "os.wait()\n"
    )
    with pytest.raises(subprocess.TimeoutExpired):
        subprocess.run([sys.executable, "made.py"], cwd=tmp_path, timeout=10, check=True)
