"""The Lua scripts beside this module: everything that changes a run in more than one place."""

from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from redis import Redis

if TYPE_CHECKING:
    from redis.asyncio import Redis as AsyncRedis


Arguments = list[str | bytes | int | float]


@cache
def source(name: str) -> str:
    """The text of `lua/<name>.lua`, common.lua before it (after its shebang, if it has one)."""
    folder = files("imece.run") / "lua"
    text = (folder / f"{name}.lua").read_text("utf-8")
    shebang, text = text.split("\n", 1) if text.startswith("#!") else ("", text)
    common = (folder / "common.lua").read_text("utf-8")
    return f"{shebang}\n{common}\n{text}".lstrip()


def run(
    name: str,
    redis: "Redis | AsyncRedis",
    keys: Sequence[str | bytes],
    arguments: Arguments,
) -> Any:
    """Runs one script; with a client for event loops, an awaitable that does. redis-py sends its
    digest, and the text where the server has not got it."""
    return redis.register_script(source(name))(keys=list(keys), args=arguments)
