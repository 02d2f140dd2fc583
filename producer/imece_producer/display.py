"""Runs and their numbers as text: for a terminal, for a log, for a summary."""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imece import names
from imece.files.current import Reason
from imece.run.causes import SHOWN, Cause, commonest
from imece.run.durations import quantile
from imece.run.failure import Failure
from imece.run.status import Status, read
from imece.run.store import Run

if TYPE_CHECKING:
    from imece_producer.enqueue import Enqueued
    from imece_producer.plan import Plan

SPARKS = " ▁▂▃▄▅▆▇█"
LONGEST_REASON = 300
CURRENT_SHOWN = 3
"""How many current files are shown, the longest first."""

WIDTH = 80
LONGEST_IN_LINE = 60
STEPS = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800)
SHORTEST_FILE = 20
"""Columns of a table of causes that are left for the names of files."""


def put(text: str) -> None:
    """Prints a result. All that imece prints goes through this, `put_json` or `say`: names, paths
    and reasons come from elsewhere, and a terminal obeys control characters."""
    print(names.printable_lines(text), flush=True)


def put_json(value: Any) -> None:
    """Prints a result for programs: a line of JSON."""
    print(names.json_line(value), flush=True)


def say(text: str) -> None:
    """Prints a note, on standard error."""
    print(names.printable_lines(text), file=sys.stderr, flush=True)


def seconds(value: float | None) -> str:
    """`850 ms`, `4.2 s`, `3 min 12 s`, `2 h 05 min`."""
    if value is None:
        return "unknown"
    if value < 0.9995:
        return f"{value * 1000:.0f} ms"
    if value < 59.95:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def more_than(value: float) -> str:
    """A text that is the same for a while, as a log needs it: `more than 5 min`."""
    step = next((step for step in reversed(STEPS) if step <= value), 0)
    hours = int(value // 3600)
    if hours:
        return f"more than {hours} h"
    return f"more than {step} s" if step < 60 else f"more than {step // 60} min"


def size(value: int) -> str:
    """`512 B`, `3.1 MB`."""
    if value < 1000:
        return f"{value} B"
    number = value / 1000
    for unit in ("kB", "MB", "GB"):
        if number < 999.95:
            return f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"


def rate(value: float) -> str:
    return f"{value:,.0f} files/s" if value >= 10 else f"{value:.2g} files/s"


def count(value: int, noun: str) -> str:
    return f"{value:,} {noun}{'' if value == 1 else 's'}"


def plan(made: "Plan") -> str:
    """What is enqueued, or would be, and why; then what is not."""
    if not made.listing.files:
        return made.listing.nothing(made.parameters.input_path)
    text = "no file to process"
    if made.files:
        text = (
            f"{count(made.files, 'file')} in {count(made.shape.buckets, 'bucket')}, "
            f"{count(made.jobs, 'bucket job')} of at most {count(made.shape.files_per_job, 'file')}"
        )
    return "\n  ".join([text, *_reasons(made), *made.listing.omissions()])


def _reasons(made: "Plan") -> Iterator[str]:
    found = made.comparison
    if made.through or len(found.reasons) > 1 or Reason.NEW not in found.reasons:
        yield from (f"{found.reasons[one]:,} {one}" for one in Reason if found.reasons[one])
    if made.through:
        yield f"{made.through:,} done already"
    if found.other_code:
        yield f"{found.other_code:,} of these made by other code: --redo code makes them again"
    if made.in_hand:
        yield f"{made.in_hand:,} in a worker"
    for flaw in found.flaws:
        yield f"a part of the ledger cannot be read: {flaw}"


def enqueued(how: "Enqueued") -> str:
    """What an enqueuing has done."""
    if how.plan is not None:
        again = " continues" if how.how == "resumed" else ""
        return f"run {how.run.id}{again}: {plan(how.plan)}"
    return f"run {how.run.id} is on already: {line(read(how.run))}"


def failure(name: bytes, why: Failure) -> str:
    tries = "1 try" if why.tries == 1 else f"{why.tries} tries"
    reason = names.printable(shortened(why.last_line, LONGEST_REASON))
    return f"{names.shown(name)} ({tries}): {reason}"


def cause(found: Cause) -> str:
    """`ValueError in convert.py:12 read_header, as a.csv: ValueError: no header`"""
    text = names.printable(found.text)
    if found.file:
        text += f", as {names.shown(found.file)}"
    if found.message not in ("", found.text):
        text += f": {names.printable(shortened(found.message, LONGEST_REASON))}"
    return text


def causes(found: list[Cause]) -> Iterator[str]:
    """The commonest causes of a run's failures, line by line."""
    ranked = commonest(found)
    for one in ranked[:SHOWN]:
        yield f"{one.count:>9,}  {cause(one)}"
    if others := ranked[SHOWN:]:
        files = count(sum(one.count for one in others), "file")
        yield f"           {count(len(others), 'more cause')} ({files})"


def table_of_causes(ranked: list[Cause], width: int) -> Iterator[str]:
    """Causes, line by line, in so many columns if there is room for all parts."""
    rows = [("CAUSE", "FILES", "WHY", "AN EXAMPLE")]
    for one in ranked:
        numbers = str(one.number), f"{one.count:,}"
        rows.append((*numbers, names.printable(one.text), names.shown(one.file)))
    first, second, why, file = (max(len(row[column]) for row in rows) for column in range(4))
    room = width - first - second - 6
    third = min(why, max(room - min(file, SHORTEST_FILE), SHORTEST_FILE))
    for number, files, text, name in rows:
        left = f"{number:>{first}}  {files:>{second}}  {shortened(text, third):<{third}}  "
        yield f"{left}{shortened(name, max(room - third, SHORTEST_FILE), at_end=True)}".rstrip()


def shortened(text: str, longest: int, at_end: bool = False) -> str:
    """A text of at most so many characters: its beginning, or its end."""
    if len(text) <= longest:
        return text
    return "…" + text[1 - longest :] if at_end else text[: longest - 1] + "…"


def line(status: Status, workers: str = "") -> str:
    """How far a run is, in one line.

    Args:
        workers: how many there are, in words; else those that Redis knows are counted.
    """
    parts = [
        f"{status.state}: {status.done:,} done",
        f"{status.failed:,} failed",
        f"{status.skipped:,} skipped",
        f"{status.left:,} left of {status.files:,}",
    ]
    if not status.has_stopped:
        parts.append(rate(status.rate))
        if status.time_left is not None:
            parts.append(f"{seconds(status.time_left)} left")
        parts.append(workers or count(status.backlog.workers, "worker"))
        for name, took in status.current_files[:1]:
            file = shortened(names.shown(name), LONGEST_IN_LINE, at_end=True)
            parts.append(f"{more_than(took)} at {file}")
    return ", ".join(parts)


def block(status: Status) -> str:
    """All of a run's numbers, for `imece status`."""
    backlog = status.backlog
    lines = [
        f"run {status.id}: {status.state}",
        f"  files    {status.done:,} done, {status.failed:,} failed, {status.skipped:,} skipped, "
        f"{status.left:,} left of {status.files:,}",
        f"  speed    {rate(status.rate)}, {seconds(status.seconds)} so far"
        + (f", {seconds(status.time_left)} left" if status.time_left is not None else ""),
        f"  workers  {backlog.workers:,}; bucket jobs in the queue {status.queue}: "
        f"{backlog.pending:,} pending, {backlog.in_flight:,} in flight",
        f"  from     {names.printable(status.parameters.input)}",
        f"  to       {names.printable(status.parameters.output or '(no output)')}",
    ]
    for number, text in enumerate(current_files(status, WIDTH - 11)):
        lines.append(f"  {'' if number else 'current':<9}{text}")
    if status.parameters.processor is not None:
        lines.append(f"  by       the processor {status.parameters.processor}")
    if given := status.parameters.set:
        shown = ", ".join(f"{name}={json.dumps(value)}" for name, value in given.items())
        lines.append(f"  set      {shown[:200]}")
    if status.retried:
        lines.append(f"  retries  {status.retried:,}")
    if status.links_refused:
        lines.append(f"  links    {status.links_refused:,} refused")
    if status.blocking_reason:
        lines.append(f"  reason   {names.printable(status.blocking_reason)}")
    says_what_helps = "`imece " in (status.blocking_reason or "")
    if status.is_held and not says_what_helps:
        lines.append(f"  imece resume {status.id} continues it when that is fixed")
    if status.failed:
        lines += ["  failed", *causes(status.causes)]
        lines.append(f"  imece failures {status.id} says which failed and why")
    return "\n".join(lines)


def current_files(status: Status, width: int) -> Iterator[str]:
    """The files that workers have been at for longest, line by line, in so many columns."""
    shown = status.current_files[:CURRENT_SHOWN]
    for name, took in shown:
        file = shortened(names.shown(name), max(width - 14, SHORTEST_FILE), at_end=True)
        yield f"{seconds(took):<12}  {file}"
    if (others := status.current_files_count - len(shown)) > 0:
        yield f"{count(others, 'more file')} for longer than a second"


def workers(found: dict[str, Any] | None) -> Iterator[str]:
    """The lines about a cluster's workers, for `imece status`."""
    if found is None:
        return
    if "error" in found:
        yield f"  cluster  {names.printable(found['error'])}"
        return
    yield f"  cluster  {replicas(found)}"
    yield f"           {found['where']}"
    for reason in found["reasons"]:
        yield f"  held up  {names.printable(reason)}"


def replicas(found: dict[str, Any]) -> str:
    """`3 workers ready, 5 wanted, limit 20`"""
    parts = [
        f"{count(found['ready'], 'worker')} ready",
        f"{found['wanted']:,} wanted",
        f"limit {found['limit']:,}",
    ]
    if found["minimum"]:
        parts.append(f"minimum {found['minimum']:,}")
    if found["paused"]:
        parts.append(f"paused: {found['paused']}")
    return ", ".join(parts)


def age(value: float) -> str:
    """Seconds, short as a column is: `45 s`, `3 min`, `2 h`, `6 d`."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if value >= size:
            return f"{int(value / size):,} {unit}"
    return f"{max(int(value), 0)} s"


def sparkline(values: list[int], width: int = 60) -> str:
    """Values as bars, at most `width` of them: each the largest of its stretch."""
    if not values:
        return ""
    stretch = max(1, -(-len(values) // width))
    columns = [max(values[at : at + stretch]) for at in range(0, len(values), stretch)]
    top = max(columns) or 1
    return "".join(SPARKS[-(-value * (len(SPARKS) - 1) // top)] for value in columns)


def summary(status: Status, elapsed: float, replicas: list[int]) -> Iterator[str]:
    """The summary of a local run, line by line.

    Args:
        elapsed: seconds of this call.
        replicas: how many workers there were, at even intervals.
    """
    tried = status.done + status.failed
    yield f"run {status.id}: {status.state if status.has_stopped else 'stopped'}"
    if status.blocking_reason:
        yield f"  reason    {names.printable(status.blocking_reason)}"
    yield (
        f"  files     {status.done:,} done, {status.failed:,} failed, {status.skipped:,} skipped"
        + (f", {status.left:,} left" if status.left else "")
    )
    yield f"  bytes     {size(status.bytes_in)} in, {size(status.bytes_out)} out"
    yield f"  time      {seconds(elapsed)}, {rate(tried / max(elapsed, 1e-3))}"
    longest = status.slowest[0][1] if status.slowest else float("inf")
    median, most = (
        quantile(status.durations, share, status.shortest, longest) for share in (0.5, 0.99)
    )
    if median is not None and most is not None:
        yield f"  a file    half take about {seconds(median)}, 99 % less than {seconds(most)}"
    if replicas:
        yield f"  replicas  {sparkline(replicas)} (most: {max(replicas)})"
    if status.slowest:
        yield "  slowest"
        for name, took in status.slowest[:5]:
            yield f"    {seconds(took):>8}  {names.shown(name)}"


def failures(run: Run, last: Status, file: Path) -> Iterator[str]:
    """Why files of a run have failed, line by line; all failures go to `file`, as JSON lines."""
    file.unlink(missing_ok=True)
    if not last.failed:
        return
    found = sorted(run.failures(), key=lambda item: item[0])
    with file.open("w", encoding="utf-8") as stream:
        for name, why in found:
            stream.write(names.json_line(failure_entry(name, why)) + "\n")
    yield "  failed"
    yield from causes(last.causes)
    yield f"  all failures, with what was printed: {file}"


def failure_entry(name: bytes, why: Failure) -> dict[str, object]:
    """A failure for programs; bytes of the name that are not UTF-8 come as lone surrogates."""
    return {"file": name.decode("utf-8", "surrogateescape"), **asdict(why)}
