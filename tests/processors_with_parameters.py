"""Processors that take more than two paths."""

import json
from pathlib import Path
from typing import Any


def copy(source: str, target: str, **given: Any) -> None:
    Path(target).write_bytes(Path(source).read_bytes())


def show(source: str, target: str, size: int, mode: Any = "slow") -> None:
    """Writes what it got."""
    Path(target).write_text(json.dumps([size, mode]))


def show_all(source: str, target: str, **given: Any) -> None:
    Path(target).write_text(json.dumps(given))


def change_what_it_got(source: str, target: str, names: list[str]) -> None:
    names.append(Path(source).name)
    Path(target).write_text(json.dumps(names))
