"""Processors for the tests. Each takes the input path and the output path."""

import ctypes
import hashlib
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from imece.files import segment


def home(source: str) -> Path:
    """The folder with the input directory, of an input that lies directly in it."""
    return Path(source).resolve().parent.parent


def copy(source: str, target: str) -> None:
    Path(target).write_bytes(Path(source).read_bytes())


def copy_after_many_reads(source: str, target: str) -> None:
    """Copies the first content that differs from the files of test_directory_attacks.py."""
    for _ in range(200):
        if (data := Path(source).read_bytes()) != b"fine":
            break
    Path(target).write_bytes(data)


def digest(source: str, target: str) -> None:
    Path(target).write_text(hashlib.sha256(Path(source).read_bytes()).hexdigest())


def nothing(source: str, target: str | None) -> None:
    pass


def slow(source: str, target: str) -> None:
    """Takes 50 ms, half of it with a half-written output."""
    data = Path(source).read_bytes()
    with Path(target).open("wb") as stream:
        stream.write(data[: len(data) // 2])
        stream.flush()
        time.sleep(0.05)
        stream.write(data[len(data) // 2 :])


def slow_until_a_word(source: str, target: str) -> None:
    """As `slow`, until there is a file `hurry` beside the input directory."""
    if (home(source) / "hurry").exists():
        copy(source, target)
    else:
        slow(source, target)


def traced(source: str, target: str | None) -> None:
    """Takes 20 ms and notes, in the folder `trace` beside the input directory, when it begins and
    when it has finished: whoever reads it knows how often each file was worked on."""
    trace = home(source) / "trace"
    trace.mkdir(exist_ok=True)
    data = Path(source).read_bytes()
    with (trace / Path(source).name).open("ab", buffering=0) as log:  # append: O_APPEND
        log.write(b"begun by %d\n" % os.getpid())
        if target is None:
            time.sleep(0.02)
        else:
            with Path(target).open("wb") as stream:
                stream.write(data[: len(data) // 2])
                stream.flush()
                time.sleep(0.02)
                stream.write(data[len(data) // 2 :])
        log.write(b"finished by %d\n" % os.getpid())


def stop_at(function: str, act: Callable[[], None], calls: int = 1) -> None:
    """Does something at the moment the runner's own code calls a function the given time."""
    left = calls

    def watch(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal left
        name = frame.f_code.co_name if event == "call" else getattr(argument, "__name__", "")
        ours = frame.f_globals.get("__name__", "").startswith("imece_worker.")
        if ours and event in ("call", "c_call") and name == function:
            left -= 1
            if left == 0:
                act()

    sys.setprofile(watch)


def die_at(function: str, victim: int, calls: int = 1) -> None:
    """Kills a process at such a moment."""

    def kill() -> None:
        os.kill(victim, signal.SIGKILL)
        time.sleep(60)

    stop_at(function, kill, calls)


def wait_for_signal(number: signal.Signals) -> Callable[[], None]:
    """A wait that ends when a signal comes."""
    came: list[int] = []
    signal.signal(number, lambda number, frame: came.append(number))

    def wait() -> None:
        while not came:
            time.sleep(0.005)

    return wait


def half_and_die(number: int, data: bytes) -> None:
    os.write(number, data[: len(data) // 2])
    os.kill(os.getpid(), signal.SIGKILL)


def by_content(source: str, target: str) -> None:
    """Does what the file's first line says, then copies it."""
    data = Path(source).read_bytes()
    word, _, argument = data.partition(b"\n")[0].decode("utf-8", "replace").partition(" ")
    if word == "raise":
        print("about to raise")
        raise ValueError(argument or "no reason")
    if word == "segfault":
        ctypes.string_at(0)
    if word == "exit":
        os._exit(int(argument or 0))
    if word == "orphan-and-exit":
        if os.fork() == 0:  # and its own child: the orphan
            os.setsid()
            os._exit(77 if os.fork() else 78)
        os._exit(int(argument))
    if word == "sysexit":
        sys.exit(argument)
    if word == "kill-runner":
        Path(target).write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    if word == "kill-worker":
        Path(target).write_bytes(b"half")
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)
    if word == "hang":
        time.sleep(3600)
    if word == "hang-in-c":
        # The C library's sleep, called with the GIL held: no Python code, no signal handler runs.
        ctypes.PyDLL(None).sleep(3600)
    if word == "fill-memory":
        hoard = []
        while True:
            hoard.append(bytearray(2**24))
    if word == "print-and-segfault":
        print("about to crash")
        ctypes.string_at(0)
    if word == "fail-and-die-once":
        # Killed after the failed try is on record, before the runner goes on.
        if not Path(argument).exists():
            Path(argument).touch()
            die_at("end", os.getpid())
        raise ValueError("failed before it was killed")
    if word == "fail-and-die-while-it-is-recorded":
        # Killed with half a row written, the first time.
        if not Path(argument).exists():
            Path(argument).touch()
            segment._write = half_and_die
        raise ValueError("failed before it was killed")
    if word == "finish-and-die-once" and not Path(argument).exists():
        # Killed after the output is in its place, before that is on record.
        Path(argument).touch()
        die_at("end", os.getpid())
    if word in ("die-before-it-is-in-place", "die-after-it-is-in-place"):
        victim, _, died = argument.partition(" ")
        if not Path(died).exists():
            Path(died).touch()
            process = os.getpid() if victim == "runner" else os.getppid()
            if word == "die-before-it-is-in-place":
                die_at("rename", process)
            else:
                die_at("end", process)
    if word == "move-the-directory-and-die" and not Path(argument).exists():
        # Killed after the output was in its place, and its directory was moved away.
        root = Path(target).parent.resolve().parent.parent

        def move_and_die() -> None:
            root.rename(argument)
            os.kill(os.getpid(), signal.SIGKILL)

        stop_at("end", move_and_die)
    if word == "move-the-directory-later" and not Path(argument).exists():
        # When the place of the hundredth file from here is looked at.
        move = partial(os.rename, Path(target).parent.resolve().parent.parent, argument)
        stop_at("existing", move, calls=99)
    if word == "end-at-the-limit":
        # Its time is up just when its output is being put in its place.
        stop_at("commit", wait_for_signal(signal.SIGUSR2))
    if word == "end-when-asked":
        wait_for_signal(signal.SIGUSR2)()
    if word == "remove-the-directory":
        shutil.rmtree(Path(target).parent.resolve().parent)
    if word == "wait-for":
        while not Path(argument).exists():
            time.sleep(0.02)
    if word == "pages":
        path = Path(target)
        for number in range(20):
            path.with_name(f"{number}{path.suffix}").write_text("a page")
            path.with_stem(f"{path.stem}{number}").write_text("a page")
    if word == "sleep-and-die-of-sigterm":
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        (Path(source).resolve().parent.parent / "began").touch()
        time.sleep(60)
    if word == "no-output":
        return
    if word == "once":
        marker = Path(argument)
        if not marker.exists():
            marker.touch()
            raise RuntimeError("the first try fails")
    if word == "sleep":
        time.sleep(float(argument))
    Path(target).write_bytes(data)


def copy_and_close_everything(source: str, target: str) -> None:
    copy(source, target)
    os.closerange(0, 256)


def copy_and_close_directories(source: str, target: str) -> None:
    """Closes what leads to directories, among it the one it has written to."""
    copy(source, target)
    for number in map(int, os.listdir("/proc/self/fd")):  # noqa: PTH208
        with suppress(OSError):
            if stat.S_ISDIR(os.fstat(number).st_mode):
                os.close(number)


def copy_and_close_all_but_standard(source: str, target: str) -> None:
    copy(source, target)
    os.closerange(3, 256)


def write_and_take_its_numbers(
    source: str, target: str, numbers: Iterable[int], first: int, last: int
) -> None:
    """Copies; then these descriptors are closed, and all from `first` to `last` are files of its
    own, in which there must be nothing else at the next file."""
    own = home(source) / "own"
    assert not own.exists() or own.read_bytes() == b"mine", own.read_bytes()
    own.write_bytes(b"mine")
    copy(source, target)
    for number in numbers:
        with suppress(OSError):
            os.close(number)
    opened = os.open(own, os.O_RDWR | os.O_APPEND)
    for number in range(first, last):
        os.dup2(opened, number)


def copy_and_take_small_numbers(source: str, target: str) -> None:
    write_and_take_its_numbers(source, target, range(3, 256), 3, 256)


def copy_and_take_all_numbers(source: str, target: str) -> None:
    write_and_take_its_numbers(source, target, range(3, 4096), 3, 1000)


def take_all_numbers_and_fail(source: str, target: str) -> None:
    copy_and_take_all_numbers(source, target)
    raise ValueError("as asked")


class Unspeakable(OSError):
    """Cannot be put into words."""

    def __str__(self) -> str:
        raise ValueError("not to be said")

    __repr__ = __str__

    @property
    def errno(self) -> int:  # type: ignore[override]
        raise ValueError("not to be told")


def raise_the_unspeakable(source: str, target: str) -> None:
    raise Unspeakable


def copy_and_leave_a_writer(source: str, target: str) -> None:
    """A program that goes on writing beside the output."""
    copy(source, target)
    writer = "import sys\nfor n in range(10**5): open(sys.argv[1] + str(n), 'w').close()"
    subprocess.Popen([sys.executable, "-c", writer, target], stderr=subprocess.DEVNULL)
    time.sleep(0.1)


def directory(source: str, target: str) -> None:
    """An output that is a directory, with nothing in it if the input is empty."""
    Path(target).mkdir()
    if data := Path(source).read_bytes():
        (Path(target) / "part-1").write_bytes(data)


def directory_and_die_once(source: str, target: str) -> None:
    """An output that is a directory; its worker is killed between the two renames that put it in
    the place of an older one."""
    directory(source, target)
    marker = home(source) / "died"
    if not marker.exists():
        marker.touch()
        die_at("rename", os.getppid(), calls=3)


def copy_and_die_once_while_it_is_carried(source: str, target: str) -> None:
    """The whole worker is killed after the output was copied to another file system."""
    copy(source, target)
    marker = Path(source).resolve().parents[2] / "died"
    if not marker.exists():
        marker.touch()
        die_at("rename", os.getppid(), calls=2)


def consume(source: str, target: str) -> None:
    """Moves its input away."""
    Path(source).resolve().rename(target)


def touch_input(source: str, target: str) -> None:
    """While it works somebody else writes to its input, the first time."""
    Path(target).write_bytes(Path(source).read_bytes())
    with Path(source).open("ab") as stream:
        stream.write(b"+")


def chatter(source: str, target: str) -> None:
    """Prints in every way there is, and then fails if its input says so."""
    print("printed", Path(source).name)
    print("to standard error", file=sys.stderr)
    os.write(1, b"to the descriptor\n")
    sys.stdout.write("no newline at the end")
    if Path(source).read_text() == "fail":
        raise ValueError("after many words")
    copy(source, target)


def timed(source: str, target: str) -> None:
    """Notes in the file `times` beside the input directory when which file was begun; fails
    if the input says so."""
    with (home(source) / "times").open("a") as stream:
        stream.write(f"{Path(source).name} {time.time()}\n")
    if Path(source).read_text() == "fail":
        raise ValueError("as asked")
    copy(source, target)


def fork_and_forget(source: str, target: str) -> None:
    """Forks a child that is not ended and comes back from here like its parent."""
    with Path(source).resolve().with_suffix(".ran").open("a") as log:
        log.write("x")
    os.fork()
    copy(source, target)


def write_target(source: str, target: str) -> None:
    """The path of the output, and where it really is."""
    Path(target).write_text(f"{target}\n{Path(target).resolve()}")


def leave_names_of_others(source: str, target: str) -> None:
    """Writes beside its output what other files make; its own place must be empty."""
    assert os.listdir(Path(target).parent) == []  # noqa: PTH208
    for name in ("a", "b", "c"):
        (Path(target).parent / name).write_text(f"by {Path(source).name}")
    (Path(target).parent / "folder" / "in").mkdir(parents=True)


def remove_what_is_around(source: str, target: str) -> None:
    """Removes the directory of its output if the input says so."""
    if Path(source).read_text() == "remove":
        shutil.rmtree(Path(target).parent.resolve())
    else:
        copy(source, target)


def write_pid(source: str, target: str) -> None:
    Path(target).write_text(str(os.getpid()))


def write_replicas(source: str, target: str) -> None:
    """How many workers its worker takes for its neighbours, and itself."""
    Path(target).write_text(os.environ["IMECE_REPLICAS_HERE"])


KEPT: list[bytes] = []


def write_pid_and_keep_memory(source: str, target: str) -> None:
    KEPT.append(b"x" * (60 * 2**20))
    write_pid(source, target)


def write_pid_and_die_after_the_job(source: str, target: str) -> None:
    write_pid(source, target)
    die_at("receive", os.getpid())


def by_content_traced(source: str, target: str) -> None:
    """As `by_content`, and notes what was begun, as `traced` does."""
    trace = home(source) / "trace"
    trace.mkdir(exist_ok=True)
    with (trace / Path(source).name).open("a") as log:
        log.write("begun\n")
    by_content(source, target)


def fail(source: str, target: str) -> None:
    raise ValueError("no good")


def write_source(source: str, target: str) -> None:
    Path(target).write_text(source)
