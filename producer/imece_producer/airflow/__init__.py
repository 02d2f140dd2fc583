"""Airflow's side of imece: operators and the trigger they wait in. Needs the extra `airflow`.

DAG files import from here. A trigger must be installed where the triggerer runs; it may not come
from a DAG file or bundle.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from imece_producer.airflow.cluster import ImeceRolloutOperator, ImeceScaleOperator
from imece_producer.airflow.hook import ImeceHook
from imece_producer.airflow.links import ImeceRunLink
from imece_producer.airflow.preflight import ImecePreflightOperator
from imece_producer.airflow.run import ImeceRunOperator
from imece_producer.airflow.trigger import ImeceRunTrigger

if TYPE_CHECKING:
    from imece_producer.airflow.image import ImeceImageOperator
    from imece_producer.airflow.pod import ImecePodOperator, bucket_pods

__all__ = [
    "ImeceHook",
    "ImeceImageOperator",
    "ImecePodOperator",
    "ImecePreflightOperator",
    "ImeceRolloutOperator",
    "ImeceRunLink",
    "ImeceRunOperator",
    "ImeceRunTrigger",
    "ImeceScaleOperator",
    "bucket_pods",
]

_OF_PODS = {"ImeceImageOperator": "image", "ImecePodOperator": "pod", "bucket_pods": "pod"}


def __getattr__(name: str) -> Any:
    """Imports what is made of Airflow's KubernetesPodOperator when it is first used: that takes a
    third of the time in which Airflow has to import a DAG file."""
    if name not in _OF_PODS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_OF_PODS[name]}"), name)
