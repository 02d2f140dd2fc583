"""Airflow's side of imece: operators and the trigger they wait in. Needs the extra `airflow`.

DAG files import from here. A trigger must be installed where the triggerer runs; it may not come
from a DAG file or bundle.
"""

from producer.airflow.run import ImeceRunOperator
from producer.airflow.trigger import ImeceRunTrigger

__all__ = ["ImeceRunOperator", "ImeceRunTrigger"]
