"""Re-makes the schemas from the Go modules named below. Needs Go, for its client of the proxy."""

import json
import subprocess
from pathlib import Path
from typing import Any

import yaml

from tests.schemas import HERE

KEDA = "github.com/kedacore/keda/v2@v2.20.2"
COMPOSE = "github.com/compose-spec/compose-go/v2@v2.16.2"


def main() -> None:
    bases = module(KEDA) / "config" / "crd" / "bases"
    for kind in ("scaledobject", "triggerauthentication"):
        crd = yaml.safe_load((bases / f"keda.sh_{kind}s.yaml").read_text())
        (version,) = crd["spec"]["versions"]
        write(f"keda-{kind}", KEDA, closed(bare(version["schema"]["openAPIV3Schema"])))
    compose = json.loads((module(COMPOSE) / "schema" / "compose-spec.json").read_text())
    write("compose", COMPOSE, bare(compose))


def module(name: str) -> Path:
    """The directory of a Go module, downloaded if it is not there."""
    answer = subprocess.check_output(["go", "mod", "download", "-json", name], text=True)
    return Path(json.loads(answer)["Dir"])


def bare(schema: Any) -> Any:
    """The schema without its descriptions; a property may have that name, and is no text."""
    if isinstance(schema, list):
        return [bare(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: bare(value)
        for key, value in schema.items()
        if not (key == "description" and isinstance(value, str))
    }


def closed(schema: Any) -> Any:
    """The schema of a custom resource as the API server takes it: unknown fields are dropped there,
    so none is right."""
    if not isinstance(schema, dict):
        return schema
    schema = {key: closed(value) for key, value in schema.items()}
    if "properties" in schema and "x-kubernetes-preserve-unknown-fields" not in schema:
        schema["additionalProperties"] = False
    return schema


def write(name: str, source: str, schema: dict[str, Any]) -> None:
    text = json.dumps({"$comment": f"{source}, Apache-2.0", **schema}, indent=1, sort_keys=True)
    (HERE / f"{name}.json").write_text(f"{text}\n")


if __name__ == "__main__":
    main()
