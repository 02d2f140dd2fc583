"""What the files of the benchmark go through: by imece, and by the pool beside it."""

import hashlib
import os


def digest(source: str, target: str) -> None:
    """The quickest way there is in Python, for both."""
    with open(source, "rb") as stream:  # noqa: PTH123
        data = stream.read()
    with open(target, "w") as stream:  # noqa: PTH123
        stream.write(hashlib.sha256(data).hexdigest())


def nothing(source: str, target: str | None) -> None:
    pass


def digest_and_rename(paths: tuple[str, str]) -> None:
    """What a careful person gives to a pool: no output is ever seen half-written."""
    source, target = paths
    directory, name = os.path.split(target)
    temporary = f"{directory}/.pool-{name}"
    digest(source, temporary)
    os.rename(temporary, target)  # noqa: PTH104
