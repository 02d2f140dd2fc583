"""Whether a task waits in the triggerer, and how it waits elsewhere."""

import asyncio
import os
from typing import Any

from airflow.providers.common.compat.sdk import conf
from airflow.triggers.base import BaseTrigger

VARIABLE = "AIRFLOW__OPERATORS__DEFAULT_DEFERRABLE"


def is_deferrable(given: bool | None) -> bool:
    """What the operator says; else `default_deferrable`, where the environment sets it; else yes,
    because a run may take hours. airflow.cfg does not count: Airflow writes its own default, no,
    into each new one, so that nobody can tell whether it is meant."""
    if given is not None:
        return given
    return VARIABLE not in os.environ or conf.getboolean("operators", "default_deferrable")


def wait_here(trigger: BaseTrigger) -> Any:
    """Waits for a trigger's first event in this process, and takes its worker slot."""

    async def first() -> Any:
        async for event in trigger.run():
            return event.payload

    return asyncio.run(first())
