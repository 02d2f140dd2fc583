"""Why a cluster cannot be had, in one sentence: the cause and the fix."""

import json
import re
import socket
import ssl
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from imece.errors import ServiceError
from imece_producer.cluster.kubeconfig import Access, token_flaw
from imece_producer.cluster.rights import Right

BUSY = (429, 502, 503, 504)
"""The statuses of a server that may answer in a moment."""

REFUSALS = (401, 403, 404)
"""The statuses of a server that will not do what was asked, however often."""

ANONYMOUS = "system:anonymous"
"""Who comes without a token, at an API server that lets such in."""

NO_SUCH_PATH = "404 page not found"
"""What an API server says of a kind of object it does not know, in plain text."""


class ClusterError(ServiceError):
    """The cluster is out of reach, or refuses us.

    Args:
        status: the HTTP status it answered with; 0 if it did not answer.
        known: whether the API server knows this kind of object at all.
    """

    def __init__(self, what: str, hint: str, status: int = 0, known: bool = True) -> None:
        super().__init__(what, hint)
        self.status = status
        self.may_pass = status not in REFUSALS
        self.known = known


def unreachable(address: str, error: BaseException) -> ClusterError:
    """What went wrong below HTTP."""
    from urllib3.exceptions import ConnectTimeoutError, ProxyError, ReadTimeoutError

    where = f"the cluster at {address}"
    causes = list(_causes(error))

    def found(*kinds: type[BaseException]) -> Any:
        return next((cause for cause in causes if isinstance(cause, kinds)), None)

    if (cause := found(ssl.SSLCertVerificationError)) is not None:
        return _distrusted(where, cause)
    if found(ProxyError):
        return ClusterError(
            f"{where} is out of reach: the proxy does not let us through",
            "check HTTPS_PROXY, and put the API server into NO_PROXY if it needs none",
        )
    if (cause := found(ssl.SSLError)) is not None:
        return ClusterError(
            f"{where} does not speak TLS as it should ({_reason(cause)})",
            "check scheme and port of the kubeconfig's server, and the client certificate",
        )
    if found(socket.gaierror) or "NameResolution" in type(error).__name__:
        return ClusterError(
            f"{where} is out of reach: the name {urlsplit(address).hostname} is not known here",
            "check the kubeconfig's server, DNS and VPN",
        )
    if found(ConnectionRefusedError):
        return ClusterError(
            f"{where} refuses the connection",
            "check that the cluster runs and that the kubeconfig's server has the right port",
        )
    if found(ConnectTimeoutError, ReadTimeoutError, TimeoutError):
        return ClusterError(
            f"{where} does not answer in time",
            "check VPN, firewall and proxy, and that the kubeconfig's server is the right one",
        )
    return ClusterError(
        f"{where} is out of reach ({_reason(causes[-1])})", "check VPN, firewall and proxy"
    )


def _distrusted(where: str, cause: ssl.SSLCertVerificationError) -> ClusterError:
    why = getattr(cause, "verify_message", "") or _reason(cause)
    if "expired" in why or "not yet valid" in why:
        hint = "check this machine's clock; else the certificate must be renewed"
    elif "ostname mismatch" in why or "IP address mismatch" in why:
        hint = (
            "the kubeconfig's server must be a name that is in the certificate, "
            "or tls-server-name must say one"
        )
    else:
        hint = "name the file with its CA in IMECE_KUBE_CA_FILE"
    return ClusterError(f"{where}: certificate verify failed ({why})", hint)


def refused(
    address: str, access: Access, right: Right, name: str, status: int, body: Any
) -> ClusterError:
    """What went wrong, by the status the API server answered with."""
    where = f"the cluster at {address}"
    said, is_kubernetes = _message(body)
    user = re.search(r'User "([^"]+)" cannot', said)
    if status == 401 or (user and user[1] == ANONYMOUS):
        return _not_logged_in(where, access, status)
    if not is_kubernetes and status < 500:
        return other_service(address)
    if status == 403 and user:  # without, a quota, a policy or a webhook denies the change
        return ClusterError(
            f"no right to {right} in namespace {access.namespace} for {user[1]}",
            "check the namespace, or have the Role imece-producer of deploy/producer bound in it",
            status,
        )
    if status == 404 and said == NO_SUCH_PATH:
        return ClusterError(
            f"{where} knows no {right.resource}: KEDA is not installed",
            "install KEDA 2.20 or later",
            status,
            known=False,
        )
    if status in BUSY:
        return ClusterError(
            f"{where} is not able to answer now ({status}{': ' if said else ''}{said})",
            "try again in a moment",
            status,
        )
    return ClusterError(
        f"{where} refused to {right} {name} ({status}: {said})", "fix what it says", status
    )


def other_service(address: str) -> ClusterError:
    return ClusterError(
        f"{address} does not answer as Kubernetes does",
        "a proxy or a login page may stand before it; the kubeconfig's server must be the API "
        "server",
    )


def _not_logged_in(where: str, access: Access, status: int) -> ClusterError:
    flaw = token_flaw(access.token)
    if access.in_pod:
        hint = "check that its ServiceAccount is still there, then delete the pod"
    elif access.token is None:
        flaw = "there is no token; a client certificate, if there is one, may have expired"
        hint = "get a new kubeconfig from your cluster"
    else:
        hint = "log in again, as you did when you got the kubeconfig"
    return ClusterError(
        f"{where} does not accept {access.how}: "
        f"{flaw or 'its token is not valid, or no longer'} ({status})",
        hint,
        401,
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what led to it, to the bottom."""
    seen: set[int] = set()
    waiting: list[Any] = [error]
    while waiting:
        one = waiting.pop(0)
        if not isinstance(one, BaseException) or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        waiting += [getattr(one, "reason", None), one.__cause__, one.__context__, *one.args]


def _reason(error: BaseException) -> str:
    return str(getattr(error, "reason", None) or error)[:200]


def _message(body: Any) -> tuple[str, bool]:
    """The message in an error's body, and whether it is Kubernetes that speaks."""
    text = body.decode("utf-8", "replace") if isinstance(body, bytes) else str(body or "")
    try:
        return " ".join(str(json.loads(text)["message"]).split())[:500], True
    except (ValueError, TypeError, KeyError):
        said = " ".join(text.split())[:200]
        return said, said == NO_SUCH_PATH
