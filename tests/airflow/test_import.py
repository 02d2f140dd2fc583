"""What importing the package takes: Airflow imports each DAG file again and again."""

import json
import subprocess
import sys

import imece_producer.airflow

SLOW = ("kubernetes", "kubernetes_asyncio", "airflow.providers.cncf.kubernetes.operators.pod")


def test_importing_the_package_does_not_import_the_pod_operator() -> None:
    code = f"""
import json, sys
import imece_producer.airflow
from imece_producer.airflow import ImeceRunOperator, ImecePreflightOperator
print(json.dumps([name for name in {SLOW!r} if name in sys.modules]))
"""
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout.splitlines()[-1]) == []


def test_each_name_can_be_imported() -> None:
    for name in imece_producer.airflow.__all__:
        assert getattr(imece_producer.airflow, name).__name__ == name
