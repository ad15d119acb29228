"""Where the API server is, and by what right we speak to it.

The only importer of the official client: exec plugins and whatever else is not plain
(`kubeconfig.py`) is read by it, once at start and again when the server refuses us (a token or
certificate was rotated). Requests themselves go another way (`server.py`).
"""

from __future__ import annotations

import os
import ssl
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import (  # type: ignore[attr-defined] # not in the type stubs
    proxy_bypass_environment,
)

import yaml

from scheduler.errors import ConfigurationError
from scheduler.execution.kubernetes import kubeconfig as plainly
from scheduler.execution.kubernetes.kubeconfig import Source

if TYPE_CHECKING:
    from kubernetes.client import Configuration

Renew = Callable[[bool], str]
"""Gives the value of the Authorization header; True when the server refused the last one."""

_UNREADABLE = (
    OSError,  # a file that is missing or may not be read
    yaml.YAMLError,
    ValueError,  # base64, PEM and URL faults
    TypeError,  # a list where the format wants a map
    KeyError,
    AttributeError,
)


class Access:
    """An address, TLS settings, and credentials that can be renewed.

    Args:
        base_url: scheme, host and port, perhaps a path; no slash at its end.
        ssl_context: for https; None takes the machine's certificate authorities.
        token: bearer token; "" for none (client certificate, or an open test server).
        renew: gives a new Authorization header; blocks. None when the credentials never change.
        server_name: name the server's certificate is checked against, if not the URL's host.
        proxy: URL of an HTTP proxy.
    """

    def __init__(
        self,
        base_url: str,
        *,
        ssl_context: ssl.SSLContext | None = None,
        token: str = "",
        renew: Renew | None = None,
        server_name: str | None = None,
        proxy: str | None = None,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self.ssl_context = ssl_context
        self.server_name = server_name
        self.proxy = proxy
        self._renew = renew
        self._authorization = f"Bearer {token}" if token else ""
        if renew is not None:
            self._authorization = renew(False)

    def headers(self) -> dict[str, str]:
        """What every request carries; never blocks."""
        return {"Authorization": self._authorization} if self._authorization else {}

    def renew(self, *, refused: bool) -> bool:
        """Read the credentials again. Blocks: it reads files and may run an exec plugin.

        Args:
            refused: the server does not honour the present ones; read everything afresh.

        Returns:
            Whether there was anything to read, so that asking again makes sense.

        Raises:
            ConfigurationError: they cannot be read any more; the old ones stay.
        """
        if self._renew is None:
            return False
        self._authorization = self._renew(refused)
        return True


def load_access(kubeconfig: Path | None = None) -> Access:
    """Access from a kubeconfig, or from the pod we run in.

    Args:
        kubeconfig: its path; None looks for a pod's service account, then for the file that
            KUBECONFIG names or `~/.kube/config`.

    Raises:
        ConfigurationError: neither is there, or what is there is broken; says where and why.
    """
    source = _Credentials(kubeconfig)
    return Access(
        source.settings.host,
        ssl_context=source.context,
        renew=source.authorization,
        server_name=source.settings.server_name,
        proxy=source.proxy,
    )


class _Credentials:
    """Reads one kubeconfig or service account, as often as needed, into one TLS context.

    Attributes:
        proxy: URL of an HTTP proxy.
    """

    def __init__(self, kubeconfig: Path | None) -> None:
        self._kubeconfig = kubeconfig
        self._in_pod = kubeconfig is None and "KUBERNETES_SERVICE_HOST" in os.environ
        self._official: Configuration | None = None
        self.context: ssl.SSLContext | None = None
        self.proxy: str | None = None
        self.settings = self._read()

    def authorization(self, refused: bool) -> str:  # noqa: FBT001 - the shape of `Renew`
        """The Authorization header as of now; rereads all when the last one was refused."""
        if refused:
            self.settings = self._read()
        try:
            if self._official is None:
                return self.settings.authorization()
            # The official client's hook runs inside: exec plugins are asked again when what they
            # gave has expired.
            value = self._official.get_api_key_with_prefix("BearerToken")
        except _UNREADABLE as error:
            raise self._broken(error) from error
        return " ".join(value.split()) if value else ""

    def _read(self) -> Source:
        # Keys inlined in a kubeconfig pass through files, which must not outlive this.
        with tempfile.TemporaryDirectory(prefix="haversack-tls-") as folder:
            try:
                settings = self._plain(Path(folder)) or self._by_official_client(folder)
                self.context = _tls(settings, self.context)
            except _UNREADABLE as error:
                raise self._broken(error) from error
        return settings

    def _plain(self, folder: Path) -> Source | None:
        self._official = None
        if self._in_pod:
            return plainly.in_pod()
        path = Path(self._kubeconfig or _default_path()).expanduser()
        return plainly.plain(path, folder) if path.is_file() else None

    def _by_official_client(self, folder: str) -> Source:
        # Imported only here: it takes a while, and plain credentials do without (ADR-0010).
        from kubernetes.client import Configuration  # noqa: PLC0415
        from kubernetes.config import (  # noqa: PLC0415
            ConfigException,
            load_incluster_config,
            load_kube_config,
        )

        settings = Configuration(host="")
        try:
            if self._in_pod:
                load_incluster_config(settings)  # type: ignore[no-untyped-call]
            else:
                file = str(self._kubeconfig) if self._kubeconfig else None
                load_kube_config(  # type: ignore[no-untyped-call]
                    file, client_configuration=settings, temp_file_path=folder
                )
        except ConfigException as error:
            raise ValueError(str(error)) from error
        self._prove(settings)
        self._official = settings
        self.proxy = _proxy(settings)
        return Source(
            settings.host,
            ca_file=settings.ssl_ca_cert,
            ca_data=settings.ca_cert_data,
            certificate=settings.cert_file or "",
            key=settings.key_file or "",
            verify=settings.verify_ssl,
            server_name=settings.tls_server_name,
        )

    def _prove(self, settings: Configuration) -> None:
        """Refuse what the official client lets pass: no server, or a plugin that failed."""
        if not urlsplit(settings.host).hostname:
            raise ValueError("the current context's cluster has no `server`")
        if self._in_pod or settings.api_key.get("BearerToken") or settings.cert_file:
            return
        if self._names_plugin():
            raise ValueError("the exec plugin gave no credentials; the log has its complaint")

    def _names_plugin(self) -> bool:
        """Whether the current user of the kubeconfig gets credentials from an exec plugin."""
        for name in str(self._kubeconfig or _default_path()).split(os.pathsep):
            path = Path(name).expanduser()
            if not path.is_file():
                continue
            document = yaml.safe_load(path.read_text())
            if any("exec" in (user.get("user") or {}) for user in document.get("users") or ()):
                return True
        return False

    def _broken(self, error: Exception) -> ConfigurationError:
        if self._in_pod:
            return ConfigurationError(
                f"the pod's service account: {error}",
                hint="mount the service account token, or name a file with --kubeconfig",
            )
        where = self._kubeconfig or _default_path()
        if self._kubeconfig is None and not Path(where).expanduser().exists():
            return ConfigurationError(
                f"no Kubernetes cluster is known: not in a pod, and {where} is not there",
                hint="name a kubeconfig with --kubeconfig, or set KUBECONFIG",
            )
        return ConfigurationError(
            f"kubeconfig {where}: {error}",
            hint=f"`kubectl --kubeconfig {where} get nodes` shows whether the file works",
        )


def _default_path() -> str:
    return os.environ.get("KUBECONFIG", "~/.kube/config")


def _tls(settings: Source, known: ssl.SSLContext | None) -> ssl.SSLContext | None:
    """The TLS context of a configuration; the known one, renewed, if there is one.

    The same object again, because connections are made from it: a new client certificate then
    serves every connection made from now on.
    """
    if not settings.host.startswith("https"):
        return None
    context = known
    if context is None:
        context = ssl.create_default_context(cafile=settings.ca_file, cadata=settings.ca_data)
    elif settings.ca_file or settings.ca_data:
        context.load_verify_locations(cafile=settings.ca_file, cadata=settings.ca_data)
    if not settings.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if settings.certificate:
        context.load_cert_chain(settings.certificate, settings.key)
    return context


def _proxy(settings: Configuration) -> str | None:
    """The proxy to go through, unless `no_proxy` exempts the server."""
    if not settings.proxy:
        return None
    host = urlsplit(settings.host).netloc
    exempt = proxy_bypass_environment(host, {"no": settings.no_proxy or ""})
    return None if exempt else settings.proxy
