"""A task's outlets: an Asset for each output directory."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from airflow.sdk import Asset, AssetAlias


def announce(outlets: Iterable[Any], events: Any, figures: dict[str, Any]) -> None:
    """Gives each Asset among the outlets the run's figures, and each AssetAlias the Asset of the
    run's output directory, with the figures. No output directory: the alias gets no Asset.

    Args:
        events: the task's `outlet_events`.
        figures: as `Status.summary` has them.
    """
    for outlet in outlets:
        if isinstance(outlet, Asset):
            events[outlet].extra.update(figures)
        elif isinstance(outlet, AssetAlias) and figures["output"] is not None:
            events[outlet].add(Asset(Path(figures["output"]).as_uri()), extra=figures)
