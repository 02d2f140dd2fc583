"""A run's progress as it comes: a bar on a terminal, plain lines elsewhere; and why files fail."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

from imece import names
from imece.run.status import Status
from imece_producer import display

if TYPE_CHECKING:
    from rich.live import Live

PLAIN_INTERVAL = 2.0
"""Seconds between two plain lines."""

SHORTEST_BAR, LONGEST_BAR = 10, 40

MOST_TOLD = 10
"""How many causes get a line of their own; `imece failures RUN --by-cause` shows all."""


class Follower:
    """Shows how far a run is.

    Args:
        live: the terminal's last line; None where there is no terminal.
        quiet: not a word.
    """

    def __init__(self, live: "Live | None", quiet: bool = False) -> None:
        self._quiet = quiet
        self._live = live
        self._told: set[int] = set()
        self._last = ("", float("-inf"))

    def show(self, status: Status, extra: str = "") -> None:
        if self._quiet:
            return
        if self._live is not None:
            self._live.update(Lines(status, extra), refresh=True)
            return
        for text in self._new_causes(status):
            display.put(text)
        text = display.line(status, extra)
        now = time.monotonic()
        if text != self._last[0] and (now - self._last[1] >= PLAIN_INTERVAL or status.has_stopped):
            stamp = datetime.now().strftime("%H:%M:%S")
            display.put(f"{stamp} {text}")
            self._last = (text, now)

    def _new_causes(self, status: Status) -> Iterator[str]:
        for cause in status.causes:
            if cause.count and cause.number not in self._told and len(self._told) < MOST_TOLD:
                self._told.add(cause.number)
                yield f"failed: {display.cause(cause)}"
                if len(self._told) == MOST_TOLD:
                    yield f"`imece failures {status.id} --by-cause` shows all causes"


class Lines:
    """What a terminal shows: how far the run is, the files that take long, and the commonest causes
    of failures."""

    def __init__(self, status: Status, extra: str) -> None:
        self._status = status
        self._line = Line(status, extra)
        self._causes = list(display.causes(status.causes))

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from rich.text import Text

        yield self._line
        for text in display.current_files(self._status, options.max_width - 2):
            yield Text(f"  {text}", no_wrap=True, overflow="ellipsis")
        for text in self._causes:
            yield Text(text, no_wrap=True, overflow="ellipsis")


class Line:
    """The line on a terminal: as much of it as there is room for, the count before all else."""

    def __init__(self, status: Status, extra: str) -> None:
        self._done, self._files = status.files - status.left, status.files
        self.count = f"{self._done:,}/{self._files:,}"
        failed = f"{status.failed:,} failed"
        if status.has_stopped:
            self._details = [status.state, failed]
        else:
            left = status.time_left
            self._details = [failed, display.rate(status.rate)]
            self._details += [f"{display.seconds(left)} left"] if left is not None else []
        self._details += [extra] if extra else []

    def fit(self, width: int) -> tuple[int, str]:
        """How long the bar is, and what stands behind it, on a terminal of `width` columns."""
        details = list(map(names.printable, self._details))
        while True:
            text = " · ".join(details)
            room = width - len(self.count) - 1 - (len(text) + 1 if text else 0)
            if room >= SHORTEST_BAR:
                return min(room, LONGEST_BAR), text
            if not details:
                return 0, ""
            details.pop()

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        bar, text = self.fit(options.max_width - 1)
        table = Table.grid(padding=(0, 1, 0, 0))
        row: list[Any] = [Text(self.count, no_wrap=True)]
        if bar:
            row.append(ProgressBar(self._files or 1, self._done if self._files else 1, width=bar))
        if text:
            row.append(Text(text, no_wrap=True))
        table.add_row(*row)
        yield table


@contextmanager
def following(quiet: bool = False) -> Iterator[Follower]:
    """A follower for what standard output is."""
    if quiet or not sys.stdout.isatty():
        yield Follower(None, quiet)
        return
    from rich.live import Live

    with Live(auto_refresh=False) as live:
        yield Follower(live)


def follow(read_status: Callable[[], Status], quiet: bool = False) -> Status:
    """Shows a run's progress until it ends or is held; its last status."""
    with following(quiet) as follower:
        while True:
            status = read_status()
            follower.show(status)
            if status.has_stopped:
                return status
            time.sleep(0.5)
