"""What is left of a local run when its server is gone: how far it has come, and its failures.

It stands in the run's state directory, with what the next call needs to go on.
"""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from imece import names
from imece.errors import RunError
from imece.run.causes import Cause
from imece.run.failure import Failure
from imece.run.parameters import Parameters
from imece.run.status import Backlog, Status
from imece_producer.local.state import FAILURES, RECORD, is_locked

NO_CURRENT_FILES: dict[str, Any] = {"current_files": [], "current_files_count": 0}
"""No worker of the call is left."""


@dataclass(frozen=True)
class Record:
    """A local run, as its last call has left it.

    Attributes:
        status: "stopped" where that call has not come to the run's end.
        call: the words of that call's command line.
        exit_code: None if the call was killed.
    """

    directory: Path
    status: Status
    call: list[str]
    exit_code: int | None

    def failures(self) -> Iterator[tuple[bytes, Failure]]:
        """The files that failed and why, by name."""
        try:
            with (self.directory / FAILURES).open(encoding="utf-8") as stream:
                for line in stream:
                    entry = json.loads(line)
                    yield os.fsencode(entry.pop("file")), Failure(**entry)
        except FileNotFoundError:
            return

    def causes(self) -> list[Cause]:
        return self.status.causes

    def delete(self) -> None:
        shutil.rmtree(self.directory)


def write(directory: Path, status: Status, call: Sequence[str], exit_code: int | None) -> None:
    """Whoever reads meanwhile sees the record of before."""
    fields = {
        **asdict(status),
        "parameters": status.parameters.encode(),
        "slowest": [(os.fsdecode(name), seconds) for name, seconds in status.slowest],
        "causes": [cause.entry() for cause in status.causes],
        **NO_CURRENT_FILES,
    }
    text = names.json_line({"status": fields, "call": list(call), "exit_code": exit_code})
    unfinished = directory / "record.new"
    unfinished.write_text(text, "ascii")
    unfinished.rename(directory / RECORD)


def forget(directory: Path) -> None:
    """For the run's next round. Before it is enqueued nothing is lost: it may be refused."""
    for name in (RECORD, FAILURES):
        (directory / name).unlink(missing_ok=True)


def read(directory: Path) -> Record | None:
    """None if there is no such run, or nobody has come to enqueue it.

    Raises:
        RunError: what is there was not made by this version of imece.
    """
    try:
        found = json.loads((directory / RECORD).read_text("ascii"))
        status = _status(found["status"])
        call, exit_code = list(map(str, found["call"])), found["exit_code"]
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        raise RunError(
            f"the record of the local run {directory.name} cannot be read", f"rm -r {directory}"
        ) from None
    if not status.has_stopped:
        status = replace(status, state="stopped")
    return Record(directory, status, call, exit_code)


def _status(fields: dict[str, Any]) -> Status:
    numbers = {name: _by_number(fields[name]) for name in ("durations", "timeline")}
    parts = {
        "parameters": Parameters.decode(fields["parameters"]),
        "slowest": [(os.fsencode(name), float(seconds)) for name, seconds in fields["slowest"]],
        "causes": [Cause.of_entry(entry) for entry in fields["causes"]],
        "backlog": Backlog(0, 0, 0),
    }
    return Status(**{**fields, **numbers, **parts, **NO_CURRENT_FILES})


def _by_number(counts: dict[str, int]) -> dict[int, int]:
    return {int(number): int(count) for number, count in counts.items()}


def ended(state_dir: Path) -> list[Record]:
    """The local runs that no call processes now."""
    found = (read(file.parent) for file in sorted(state_dir.glob(f"*/{RECORD}")))
    return [one for one in found if one is not None and not is_locked(one.directory)]
