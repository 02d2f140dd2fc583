"""What Airflow shows of imece, and finds in it. Imports nothing of Airflow: each of its processes
loads this when it starts, also where imece is installed without the extra `airflow`."""

from typing import Any

PACKAGE = "imece_producer.airflow"


def get_provider_info() -> dict[str, Any]:
    """The entry point `apache_airflow_provider`."""

    def modules(*names: str) -> list[dict[str, Any]]:
        found = [f"{PACKAGE}.{name}" for name in names]
        return [{"integration-name": "imece", "python-modules": found}]

    return {
        "package-name": "imece",
        "name": "imece",
        "description": "Turns a folder of files into outputs, in parallel.",
        "integrations": [{"integration-name": "imece", "tags": ["software"]}],
        "operators": modules("run", "preflight", "cluster", "pod", "image"),
        "hooks": modules("hook"),
        "triggers": modules("trigger"),
        "extra-links": [f"{PACKAGE}.links.ImeceRunLink"],
        "task-decorators": [{"name": "imece", "class-name": f"{PACKAGE}.decorator.imece_task"}],
    }
