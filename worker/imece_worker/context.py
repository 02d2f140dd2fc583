"""What all executions of one worker share."""

from collections.abc import Callable
from dataclasses import dataclass, field

from imece.settings import Settings
from imece_worker.outage import Outage
from imece_worker.statistics import WorkerStatistics
from imece_worker.supervisor import Supervisor
from imece_worker.wakeup import Wakeup


@dataclass(frozen=True)
class WorkerContext:
    """One worker's.

    Attributes:
        name: the worker's.
        alive: shows that the worker lives; called at every sign of life.
        statistics: told of what Redis has recorded.
        outage: what the worker knows of Redis being away.
    """

    name: str
    settings: Settings
    supervisor: Supervisor
    wakeup: Wakeup
    alive: Callable[[], None]
    statistics: WorkerStatistics
    outage: Outage = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "outage", Outage(self.settings.lease))  # it is frozen
