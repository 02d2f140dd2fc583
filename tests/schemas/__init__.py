"""What others say the files of deploy/ have to look like: the schemas of KEDA and of Compose.

Their authors publish them as Go modules; `make schemas` (tests/schemas/__main__.py) takes from
there what is kept here: the structure, without the prose.
"""

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def read(name: str) -> dict[str, Any]:
    """The schema kept in NAME.json."""
    schema: dict[str, Any] = json.loads((HERE / f"{name}.json").read_text())
    return schema
