"""Airflow's side of imece: operators and the trigger they wait in. Needs the extra `airflow`.

DAG files import from here. A trigger must be installed where the triggerer runs; it may not come
from a DAG file or bundle.
"""

from imece_producer.airflow.cluster import (
    ImecePreflightOperator,
    ImeceReportOperator,
    ImeceRolloutOperator,
    ImeceScaleOperator,
)
from imece_producer.airflow.hook import ImeceHook
from imece_producer.airflow.image import ImeceImageOperator
from imece_producer.airflow.links import ImeceRunLink
from imece_producer.airflow.pod import ImecePodOperator, bucket_pods
from imece_producer.airflow.run import ImeceRunOperator
from imece_producer.airflow.trigger import ImeceRunTrigger

__all__ = [
    "ImeceHook",
    "ImeceImageOperator",
    "ImecePodOperator",
    "ImecePreflightOperator",
    "ImeceReportOperator",
    "ImeceRolloutOperator",
    "ImeceRunLink",
    "ImeceRunOperator",
    "ImeceRunTrigger",
    "ImeceScaleOperator",
    "bucket_pods",
]
