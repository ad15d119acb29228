"""Plain kubeconfigs and service accounts, read without the official client.

Importing that one costs as much as binding some hundred pods, and a daemon that comes up after a
failure has those to bind. So what is plain is read here: a token, a token's file, a client
certificate. Whatever is not (plugins, several files, proxies), and whatever is broken, is left to
the official client, which knows all of it and says what is wrong.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where a pod finds its token and the cluster's certificate authority."""
_PROXIES = ("HTTPS_PROXY", "HTTP_PROXY")
_CLUSTER = {
    "server",
    "certificate-authority",
    "certificate-authority-data",
    "insecure-skip-tls-verify",
    "tls-server-name",
    "extensions",
}
_USERS: tuple[set[str], ...] = (
    set(),
    {"token"},
    {"tokenFile"},
    {"client-certificate", "client-key"},
    {"client-certificate-data", "client-key-data"},
)


@dataclass(frozen=True, slots=True)
class Source:
    """How to reach a cluster, as far as it is written down.

    Attributes:
        host: URL of the API server.
        ca_file, ca_data: whom to believe, as a path or as PEM; without both, the machine's own.
        certificate, key: paths of the client's, PEM; "" without.
        token: bearer token; "" for none.
        token_file: where it is read instead, each time.
        server_name: name the server's certificate is checked against, if not the URL's host.
    """

    host: str
    ca_file: str | None = None
    ca_data: str | bytes | None = None
    certificate: str = ""
    key: str = ""
    token: str = ""
    token_file: str = ""
    verify: bool = True
    server_name: str | None = None

    def authorization(self) -> str:
        """The Authorization header as of now; "" for none. Raises OSError or ValueError."""
        token = self.token
        if self.token_file:
            token = Path(self.token_file).read_text().strip()
            if not token:
                raise ValueError(f"{self.token_file} is empty")
        return f"Bearer {token}" if token else ""


def in_pod() -> Source | None:
    """The service account of the pod we run in; None if that is for the official client."""
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ.get("KUBERNETES_SERVICE_PORT")
    token, authority = SERVICE_ACCOUNT / "token", SERVICE_ACCOUNT / "ca.crt"
    if not host or not port or _proxied() or not (token.is_file() and authority.is_file()):
        return None
    shown = f"[{host}]" if ":" in host else host
    return Source(f"https://{shown}:{port}", ca_file=str(authority), token_file=str(token))


def plain(path: Path, folder: Path) -> Source | None:
    """The current context of a kubeconfig, if it is plain; else None.

    Args:
        path: the kubeconfig.
        folder: where keys that are written in it are put down, for OpenSSL to read.

    Raises:
        OSError: the file, or one that it names, cannot be read.
        ValueError: what it holds is damaged.
        yaml.YAMLError: it is no YAML.
    """
    document = yaml.safe_load(path.read_text())
    if not isinstance(document, Mapping) or _proxied():
        return None
    context = _named(document.get("contexts"), document.get("current-context"), "context")
    cluster = _named(document.get("clusters"), context.get("cluster"), "cluster")
    user = _named(document.get("users"), context.get("user"), "user")
    server = str(cluster.get("server") or "")
    if not urlsplit(server).hostname or not cluster.keys() <= _CLUSTER:
        return None
    if user.keys() not in _USERS:
        return None
    authority = cluster.get("certificate-authority-data")
    return Source(
        server.rstrip("/"),
        ca_file=_beside(path, cluster.get("certificate-authority")) if not authority else None,
        ca_data=base64.b64decode(authority, validate=True).decode() if authority else None,
        certificate=_pem(path, user, "client-certificate", folder),
        key=_pem(path, user, "client-key", folder),
        token=str(user.get("token") or ""),
        token_file=_beside(path, user.get("tokenFile")) or "",
        verify=not cluster.get("insecure-skip-tls-verify"),
        server_name=cluster.get("tls-server-name"),
    )


def _proxied() -> bool:
    return any(os.environ.get(name) or os.environ.get(name.lower()) for name in _PROXIES)


def _named(entries: object, name: object, kind: str) -> Mapping[str, Any]:
    """What the one entry of that name holds; empty if there is none such."""
    if not isinstance(entries, Sequence):
        return {}
    found = [each for each in entries if isinstance(each, Mapping) and each.get("name") == name]
    held = found[0].get(kind) if len(found) == 1 else None
    return held if isinstance(held, Mapping) else {}


def _beside(path: Path, name: object) -> str | None:
    """A file that a kubeconfig names, seen from where that is."""
    return str(path.parent / str(name)) if name else None


def _pem(path: Path, user: Mapping[str, Any], name: str, folder: Path) -> str:
    """The path of a key or certificate; "" if there is none."""
    written = user.get(f"{name}-data")
    if not written:
        return _beside(path, user.get(name)) or ""
    file = folder / name
    file.touch(mode=0o600, exist_ok=False)
    file.write_bytes(base64.b64decode(written, validate=True))
    return str(file)
