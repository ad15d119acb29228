"""A real control plane for tests and benchmarks: etcd and kube-apiserver on loopback.

Programs are found as controller-runtime's envtest finds them: `TEST_ASSET_ETCD` and
`TEST_ASSET_KUBE_APISERVER`, else the folder `KUBEBUILDER_ASSETS`, else
/usr/local/kubebuilder/bin; `KUBEBUILDER_CONTROLPLANE_START_TIMEOUT` limits the start. Nothing is
synced to disk and everything lies in a throw-away folder. There is no kubelet, and without
`controllers` no garbage collector.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from support.folders import quick_folder
from support.kubernetes.containers import die_with_parent

from scheduler.execution.kubernetes.access import Access

ADMIN = "admin"
OPERATOR = "operator"
"""May do what the administrator may: daemons run as this one, as they fence their own user."""
SERVICE_ACCOUNT = "system:serviceaccount:haversack-system:haversack"
_DEFAULT_FOLDER = Path("/usr/local/kubebuilder/bin")
_START_LIMIT_S = 60.0
_STOP_LIMIT_S = 10.0
_EARLIER_LIFE = 200
_POLL_S = 0.1
_WATCHED = ("api/v1/pods", "api/v1/nodes", "api/v1/namespaces")
_LOOPBACK = "127.0.0.1"
_DENIED = re.compile(
    r'^apiserver_validating_admission_policy_check_total\{.*enforcement_action="deny".*\} (\S+)$',
    re.MULTILINE,
)


class NoControlPlaneError(Exception):
    """There is none to test with; the message says why."""


def program(name: str) -> Path:
    """Where a program of the control plane is.

    Args:
        name: `etcd`, `kube-apiserver`, `kube-scheduler`, `kube-controller-manager`, `kubectl`.

    Raises:
        NoControlPlaneError: nowhere.
    """
    own = os.environ.get("TEST_ASSET_" + name.upper().replace("-", "_"))
    folder = os.environ.get("KUBEBUILDER_ASSETS")
    found = Path(own) if own else (Path(folder) if folder else _DEFAULT_FOLDER) / name
    if not os.access(found, os.X_OK):
        raise NoControlPlaneError(f"no {name} at {found}; KUBEBUILDER_ASSETS names its folder")
    return found


@dataclass(slots=True)
class ControlPlane:
    """A running one.

    Attributes:
        url: of the API server.
        folder: its files and logs; gone when it stops.
        pids: of its processes, by program.
    """

    url: str
    folder: Path
    pids: dict[str, int] = field(default_factory=dict)
    _etcd_url: str = ""
    _tokens: Mapping[str, str] = field(default_factory=dict)
    _running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def access(self) -> Access:
        """Its address and an administrator's token."""
        return self.access_as(ADMIN)

    def access_as(self, user: str) -> Access:
        """Its address and the token of one of the users it was started with."""
        context = ssl.create_default_context(cafile=str(self.authority))
        # The self-signed certificate lacks extensions that Python 3.13 and later insist on.
        context.verify_flags &= ~getattr(ssl, "VERIFY_X509_STRICT", 0)
        return Access(self.url, ssl_context=context, token=self._tokens[user])

    def kubeconfig(self, user: str = ADMIN) -> Path:
        """A kubeconfig file of one of its users."""
        path = self.folder / f"kubeconfig-{re.sub('[^a-z0-9]+', '-', user)}.yaml"
        cluster = {"server": self.url, "certificate-authority": str(self.authority)}
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": "test", "user": {"token": self._tokens[user]}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "current-context": "test",
        }
        path.write_text(yaml.safe_dump(document))
        return path

    def compact(self) -> None:
        """Have etcd forget the past, as it does by itself every five minutes."""
        revision = int(self._etcd("kv/range", {"key": "AA=="})["header"]["revision"])
        self._etcd("kv/compaction", {"revision": str(revision), "physical": True})

    def denials(self) -> int:
        """How many writes validating admission policies have refused, as the server counts them."""
        request = urllib.request.Request(f"{self.url}/metrics", headers=self.access.headers())
        context = self.access.ssl_context
        with urllib.request.urlopen(request, timeout=10, context=context) as response:
            text = response.read().decode()
        return sum(int(float(found)) for found in _DENIED.findall(text))

    def start(self, name: str, arguments: Sequence[str]) -> None:
        """Start a program; its output goes to `<name>.log`.

        Raises:
            NoControlPlaneError: there is no such program.
        """
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [program(name), *arguments],
                cwd=self.folder,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent,  # noqa: PLW1509 - one call, its library loaded before
            )
        self._running[name] = process
        self.pids[name] = process.pid

    def stop(self, name: str) -> None:
        """Stop a program that runs, and wait for it."""
        process = self._running.pop(name)
        del self.pids[name]
        process.terminate()
        try:
            process.wait(_STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def start_scheduler(self, config: Mapping[str, Any] | None = None) -> None:
        """Start kube-scheduler.

        Args:
            config: fields of a KubeSchedulerConfiguration beside the defaults.
        """
        kubeconfig = str(self.kubeconfig())
        document = {
            "apiVersion": "kubescheduler.config.k8s.io/v1",
            "kind": "KubeSchedulerConfiguration",
            "leaderElection": {"leaderElect": False},
            "clientConnection": {"kubeconfig": kubeconfig, "qps": 5000, "burst": 5000},
            **(config or {}),
        }
        path = self.folder / "kube-scheduler.yaml"
        path.write_text(yaml.safe_dump(document))
        self.start("kube-scheduler", [f"--config={path}", "--secure-port=0"])

    def start_controllers(self, controllers: Sequence[str] = ("*",)) -> None:
        """Start kube-controller-manager with some controllers."""
        self.start(
            "kube-controller-manager",
            [
                f"--kubeconfig={self.kubeconfig()}",
                f"--controllers={','.join(controllers)}",
                f"--service-account-private-key-file={self.folder / 'account.key'}",
                "--leader-elect=false",
                "--secure-port=0",
            ],
        )

    def log(self, name: str, characters: int = 1500) -> str:
        """The end of a program's output."""
        return (self.folder / f"{name}.log").read_text(errors="replace")[-characters:]

    @property
    def authority(self) -> Path:
        return self.folder / "certificates" / "apiserver.crt"

    def _start_etcd(self) -> None:
        port, peer_port = _free_port(), _free_port()
        self._etcd_url = f"http://{_LOOPBACK}:{port}"
        peer_url = f"http://{_LOOPBACK}:{peer_port}"
        self.start(
            "etcd",
            [
                f"--data-dir={self.folder / 'etcd'}",
                f"--listen-client-urls={self._etcd_url}",
                f"--advertise-client-urls={self._etcd_url}",
                f"--listen-peer-urls={peer_url}",
                f"--initial-advertise-peer-urls={peer_url}",
                f"--initial-cluster=default={peer_url}",
                "--unsafe-no-fsync",
                "--quota-backend-bytes=8589934592",
                "--log-level=warn",
            ],
        )
        self._wait("etcd", f"{self._etcd_url}/health")
        # A cluster that has lived before, so that resourceVersion 1 is too old for every type.
        for _ in range(_EARLIER_LIFE):
            self._etcd("kv/put", {"key": "YQ==", "value": "YQ=="})

    def _start_api_server(self, options: Sequence[str]) -> None:
        port = int(self.url.rpartition(":")[2])
        lines = [
            f'{token},{user},{user}-uid,"{_groups(user)}"' for user, token in self._tokens.items()
        ]
        (self.folder / "tokens.csv").write_text("\n".join(lines) + "\n")
        private, public = self.folder / "account.key", self.folder / "account.pub"
        _openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(private))
        _openssl("ec", "-in", str(private), "-pubout", "-out", str(public))
        issuer = "https://kubernetes.default.svc"
        self.start(
            "kube-apiserver",
            [
                f"--etcd-servers={self._etcd_url}",
                f"--cert-dir={self.authority.parent}",
                f"--bind-address={_LOOPBACK}",
                f"--secure-port={port}",
                "--service-cluster-ip-range=10.0.0.0/24",
                f"--service-account-issuer={issuer}",
                f"--api-audiences={issuer}",
                f"--service-account-key-file={public}",
                f"--service-account-signing-key-file={private}",
                f"--token-auth-file={self.folder / 'tokens.csv'}",
                "--authorization-mode=RBAC",
                "--allow-privileged=true",
                "--disable-admission-plugins=ServiceAccount,TaintNodesByCondition",
                "--endpoint-reconciler-type=none",
                *options,
            ],
        )
        self._wait("kube-apiserver", f"{self.url}/readyz")
        # Ready it says before its caches are: till then a watch is answered by 429.
        for kind in _WATCHED:
            self._wait("kube-apiserver", f"{self.url}/{kind}?watch=1&timeoutSeconds=1")

    def _wait(self, name: str, url: str) -> None:
        limit = time.monotonic() + _start_limit_s()
        while not self._answers(url):
            if self._running[name].poll() is not None or time.monotonic() > limit:
                raise NoControlPlaneError(f"{name} did not start: {self.log(name)}")
            time.sleep(_POLL_S)

    def _answers(self, url: str) -> bool:
        headers, context = {}, None
        if url.startswith(self.url):
            if not self.authority.exists():
                return False
            headers, context = self.access.headers(), self.access.ssl_context
        request = urllib.request.Request(url, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=5, context=context) as response:
                return bool(response.status == 200)
        except OSError:
            return False

    def _etcd(self, path: str, body: Mapping[str, object]) -> Any:
        request = urllib.request.Request(
            f"{self._etcd_url}/v3/{path}", data=json.dumps(body).encode(), method="POST"
        )
        with urllib.request.urlopen(request, timeout=10) as response:
            return json.load(response)


@contextlib.contextmanager
def control_plane(
    *,
    users: Sequence[str] = (SERVICE_ACCOUNT,),
    options: Sequence[str] = (),
    scheduler: bool = False,
    controllers: bool = False,
) -> Iterator[ControlPlane]:
    """A control plane, ready, and stopped afterwards.

    Args:
        users: who has a token beside the administrator; what they may do is left to RBAC.
        options: further options of kube-apiserver (`--feature-gates=...`).
        scheduler: start kube-scheduler too.
        controllers: start kube-controller-manager too.

    Raises:
        NoControlPlaneError: there is none and none can be started.
    """
    for name in ("etcd", "kube-apiserver"):
        program(name)
    tokens = {
        user: f"token-{place}-{os.getpid()}" for place, user in enumerate((ADMIN, OPERATOR, *users))
    }
    with quick_folder() as folder:
        plane = ControlPlane(f"https://{_LOOPBACK}:{_free_port()}", folder, _tokens=tokens)
        try:
            plane._start_etcd()
            plane._start_api_server(options)
            if scheduler:
                plane.start_scheduler()
            if controllers:
                plane.start_controllers()
            yield plane
        finally:
            for name in reversed(tuple(plane.pids)):
                plane.stop(name)


def _groups(user: str) -> str:
    if user in (ADMIN, OPERATOR):
        return "system:masters"
    match user.split(":"):
        case ["system", "serviceaccount", namespace, _]:
            return f"system:serviceaccounts,system:serviceaccounts:{namespace}"
        case _:
            return ""


def _start_limit_s() -> float:
    told = re.fullmatch(r"(\d+)s?", os.environ.get("KUBEBUILDER_CONTROLPLANE_START_TIMEOUT", ""))
    return float(told[1]) if told else _START_LIMIT_S


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_LOOPBACK, 0))
        return int(probe.getsockname()[1])


def _openssl(*arguments: str) -> None:
    try:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True)
    except FileNotFoundError as error:
        raise NoControlPlaneError("openssl, which makes the signing key, is not here") from error
