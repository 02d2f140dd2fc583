"""Processors that are classes. They note what becomes of them in a file: the variable LIFE names
it."""

import ctypes
import os
import sys
import time
from pathlib import Path
from typing import Any


def note(word: str) -> None:
    with Path(os.environ["LIFE"]).open("a") as log:
        log.write(f"{word}\n")


class Model:
    """Writes which instance it is, and what it got."""

    def __init__(self, size: int = 1, **given: Any) -> None:
        print("making", size)
        note(f"made {size}")
        self.size, self.files = size, 0

    def __call__(self, source: str, target: str) -> None:
        self.files += 1
        Path(target).write_text(f"{os.getpid()} {self.size} {self.files}")
        if Path(source).read_text() == "fail":
            raise ValueError("as asked")

    def close(self) -> None:
        note(f"closed {self.size}")


class Unclosed(Model):
    def close(self) -> None:
        super().close()
        raise RuntimeError("cannot close")


class Slow(Model):
    """Takes half a second to be made."""

    def __init__(self) -> None:
        super().__init__()
        time.sleep(0.5)


class Hanging(Model):
    def __init__(self) -> None:
        super().__init__()
        time.sleep(3600)


class Broken(Model):
    """Cannot be made, as the file WHY beside the log says."""

    def __init__(self) -> None:
        super().__init__()
        why = Path(os.environ["LIFE"]).with_name("why")
        word = why.read_text() if why.exists() else "fine"
        if word == "raise":
            raise ValueError("no model\nof this name")
        if word == "away":
            raise ConnectionError("the model is not there yet")
        if word == "exit":
            sys.exit(7)
        if word == "segfault":
            ctypes.string_at(0)


class NoCall:
    pass


class WrongCall:
    def __call__(self, source: str) -> None: ...


class Batched:
    """Copies several files at a time, or does what one of them says. It notes how many there were,
    and by which process."""

    def process_batch(self, pairs: list[tuple[str, str]]) -> None:
        note(f"{len(pairs)}")
        print("a batch of", len(pairs))
        words = [Path(source).read_text() for source, _ in pairs]
        for (_, target), word in zip(pairs, words, strict=True):
            if word != "no-output":
                Path(target).write_text(word)
        if "fail" in words:
            raise ValueError("as asked")
        if "segfault" in words:
            ctypes.string_at(0)
        if "hang" in words:
            time.sleep(3600)
        for word in words:
            if word.startswith("sleep"):
                time.sleep(float(word.split()[1]))
        if "touch" in words:
            source, _ = pairs[words.index("touch")]
            Path(source).resolve().write_text("touched")


class BatchedAndClosing(Batched):
    """Closes whatever is open, if a file says so."""

    def process_batch(self, pairs: list[tuple[str, str]]) -> None:
        super().process_batch(pairs)
        if "close" in [Path(source).read_text() for source, _ in pairs]:
            os.closerange(3, 2000)


class Notes:
    """Keeps nothing but how many there were."""

    def process_batch(self, pairs: list[tuple[str, None]]) -> None:
        assert all(target is None for _, target in pairs)
        note(f"{len(pairs)}")
