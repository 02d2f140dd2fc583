"""A real API server, as one test has it."""

import copy
import json
from contextlib import suppress
from urllib.parse import urlsplit

from tests.api_server import GRANTED, KEDA_VERSION, SCALED_OBJECTS, ApiServer, Object
from tests.control_plane import CRD, ControlPlane

ADMISSION = "/apis/admissionregistration.k8s.io/v1"


class RealServer(ApiServer):
    """The server of a control plane. `close` takes away what the test has put there."""

    def __init__(self, plane: ControlPlane) -> None:
        super().__init__()
        self._plane = plane
        plane.serves = self
        self.ca, self.port, self.token = plane.ca, plane.port, plane.token
        self._paths: list[str] = []
        self._policies: list[str] = []
        self._heard = 0
        self.forget()

    def close(self) -> None:
        self._plane.grant(GRANTED)
        for path in self._policies:
            self._plane.delete(path)
        self._plane.wait(lambda: not self._policies or self._denial() is None, "to forget a policy")
        for path in dict.fromkeys(self._paths):
            self._plane.delete(path)
        if not self._plane.asks(CRD):
            self._plane.make_crd()
        self.set_keda_version(KEDA_VERSION)

    def put(self, path: str, body: Object) -> None:
        self._paths.append(path)
        body = copy.deepcopy(body)
        status = body.pop("status", None)
        self._plane.delete(path)
        self._plane.request("POST", f"{path.rpartition('/')[0]}?fieldValidation=Strict", body)
        if status:
            self.change(path, {"status": status})

    def change(self, path: str, changes: Object) -> None:
        if others := {name: value for name, value in changes.items() if name != "status"}:
            self._plane.request("PATCH", path, others)
        if "status" in changes:
            self._plane.request("PATCH", f"{path}/status", {"status": changes["status"]})

    def delete(self, path: str) -> None:
        self._plane.request("DELETE", path)

    def read(self, path: str) -> Object:
        return self._plane.request("GET", path)

    def forbid(self, *rights: str) -> None:
        assert GRANTED.issuperset(rights)
        self._plane.grant(GRANTED.difference(rights))

    def deny_changes(self, status: int, why: str) -> None:
        """By a policy, which the server itself goes by: no webhook is needed."""
        name = f"tests-{status}"
        reason = {403: "Forbidden", 422: "Invalid"}[status]
        rule = {
            "apiGroups": ["keda.sh"],
            "apiVersions": ["*"],
            "operations": ["UPDATE"],
            "resources": ["scaledobjects"],
        }
        policy = {
            "metadata": {"name": name},
            "spec": {
                "matchConstraints": {"resourceRules": [rule]},
                "validations": [{"expression": "false", "message": why, "reason": reason}],
            },
        }
        binding = {
            "metadata": {"name": name},
            "spec": {"policyName": name, "validationActions": ["Deny"]},
        }
        for kind, body in (("policies", policy), ("policybindings", binding)):
            path = f"{ADMISSION}/validatingadmission{kind}"
            self._plane.create(path, body)
            self._policies.append(f"{path}/{name}")
        self._plane.wait(lambda: self._denial() == status, "to deny changes")

    def _denial(self) -> int | None:
        """The status with which a change is refused; None if it is not."""
        try:
            self.annotate({"tests": "is it denied?"})
        except LookupError as error:
            return int(error.args[0])
        return None

    def remove_keda(self) -> None:
        self._plane.delete(CRD)
        self._plane.wait(lambda: not self._plane.asks(SCALED_OBJECTS), "to forget KEDA")

    def set_keda_version(self, version: str) -> None:
        labels = {"app.kubernetes.io/version": version}
        self._plane.request("PATCH", CRD, {"metadata": {"labels": labels}})

    @property
    def asked(self) -> list[tuple[str, str]]:
        with self._plane.audit.open() as log:
            log.seek(self._heard)
            events = [json.loads(line) for line in log]
        once = {event["auditID"]: event for event in events}.values()
        return [(event["verb"], urlsplit(event["requestURI"]).path) for event in once]

    def forget(self) -> None:
        with suppress(FileNotFoundError):
            self._heard = self._plane.audit.stat().st_size
