from __future__ import annotations

import asyncio
import base64
import ssl
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web

from scheduler.errors import ConfigurationError
from scheduler.execution.kubernetes.access import Access, load_access
from scheduler.execution.kubernetes.server import ApiServer

HOST = "https://127.0.0.1:6443"


@pytest.fixture(autouse=True)
def _nothing_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT", "HTTPS_PROXY", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "absent"))


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `crt` and `key`: authority, server and client in one."""
    folder = tmp_path_factory.mktemp("keys")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=test"),
            *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
            *("-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(folder / "key"), "-out", str(folder / "crt")),
        ],
        check=True,
        capture_output=True,
    )
    return folder


def written(
    folder: Path, user: dict[str, Any] | None = None, cluster: dict[str, Any] | None = None
) -> Path:
    """A kubeconfig of one user."""
    path = folder / "config"
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": HOST, **(cluster or {})}}],
        "users": [{"name": "u", "user": user or {}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    path.write_text(yaml.safe_dump(document))
    return path


def inline(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def test_a_token_in_the_file(tmp_path: Path) -> None:
    access = load_access(written(tmp_path, {"token": "secret"}))
    assert access.base_url == HOST
    assert access.headers() == {"Authorization": "Bearer secret"}
    assert access.ssl_context is not None
    assert access.ssl_context.verify_mode is ssl.CERT_REQUIRED


@pytest.mark.parametrize("kind", ["none", "token", "tokenFile", "files", "data", "pod"])
def test_plain_credentials_do_without_the_official_client(
    tmp_path: Path, keys: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setitem(sys.modules, "kubernetes.config", None)  # importing it fails
    (tmp_path / "token").write_text("t")
    (tmp_path / "ca.crt").write_bytes((keys / "crt").read_bytes())
    users = {
        "none": {},
        "token": {"token": "t"},
        "tokenFile": {"tokenFile": "token"},
        "files": {"client-certificate": str(keys / "crt"), "client-key": str(keys / "key")},
        "data": {
            "client-certificate-data": inline(keys / "crt"),
            "client-key-data": inline(keys / "key"),
        },
    }
    if kind == "pod":
        monkeypatch.setattr("scheduler.execution.kubernetes.kubeconfig.SERVICE_ACCOUNT", tmp_path)
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
        access = load_access()
        assert access.base_url == "https://[fd00::1]:443"
    else:
        authority = {"certificate-authority": "ca.crt", "tls-server-name": "kubernetes"}
        access = load_access(written(tmp_path, users[kind], authority))
        assert access.server_name == "kubernetes"
    told = {"Authorization": "Bearer t"} if kind in ("token", "tokenFile", "pod") else {}
    assert access.headers() == told


def test_a_fixed_access_has_nothing_to_renew() -> None:
    access = Access("http://x/", token="t")
    assert access.base_url == "http://x"
    assert not access.renew(refused=True)
    assert Access("http://x").headers() == {}


def test_refused_tokens_are_read_again_from_their_file(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("old\n")
    access = load_access(written(tmp_path, {"tokenFile": "token"}))
    assert access.headers() == {"Authorization": "Bearer old"}
    token.write_text("new\n")
    assert access.renew(refused=True)
    assert access.headers() == {"Authorization": "Bearer new"}


def test_old_credentials_stay_when_new_ones_cannot_be_read(tmp_path: Path) -> None:
    path = written(tmp_path, {"token": "secret"})
    access = load_access(path)
    path.write_text("{")
    with pytest.raises(ConfigurationError):
        access.renew(refused=True)
    assert access.headers() == {"Authorization": "Bearer secret"}


def plugin(folder: Path, body: str) -> dict[str, Any]:
    script = folder / "plugin.py"
    script.write_text(body)
    return {
        "exec": {
            "apiVersion": "client.authentication.k8s.io/v1",
            "command": sys.executable,
            "args": [str(script)],
            "interactiveMode": "Never",
        }
    }


def test_an_exec_plugin_gives_tokens_as_they_are_needed(tmp_path: Path) -> None:
    counter = tmp_path / "calls"
    user = plugin(
        tmp_path,
        f"""
import json, pathlib
calls = pathlib.Path({str(counter)!r})
calls.write_text((calls.read_text() if calls.exists() else "") + "x")
status = {{"token": calls.read_text()}}
answer = {{"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential"}}
print(json.dumps(answer | {{"status": status}}))
""",
    )
    access = load_access(written(tmp_path, user))
    assert access.headers() == {"Authorization": "Bearer x"}
    access.renew(refused=False)
    assert counter.read_text() == "x", "it has no expiry, so it is not asked again"
    access.renew(refused=True)
    assert access.headers() == {"Authorization": "Bearer xx"}


def test_an_exec_plugin_that_fails_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, plugin(tmp_path, "raise SystemExit('no login')"))
    with pytest.raises(ConfigurationError, match="exec plugin gave no credentials"):
        load_access(path)


@pytest.mark.parametrize("inlined", [True, False])
def test_a_client_certificate_opens_a_server_that_asks_for_one(
    tmp_path: Path, keys: Path, *, inlined: bool
) -> None:
    if inlined:
        cluster = {"certificate-authority-data": inline(keys / "crt")}
        user = {
            "client-certificate-data": inline(keys / "crt"),
            "client-key-data": inline(keys / "key"),
        }
    else:
        cluster = {"certificate-authority": str(keys / "crt")}
        user = {"client-certificate": str(keys / "crt"), "client-key": str(keys / "key")}

    async def answer(request: web.Request) -> web.Response:
        assert request.transport is not None
        return web.json_response({"seen": bool(request.transport.get_extra_info("peercert"))})

    async def play() -> None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(keys / "crt"))
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_cert_chain(keys / "crt", keys / "key")
        app = web.Application()
        app.router.add_get("/x", answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
        host, port = runner.addresses[0][:2]
        access = load_access(
            written(tmp_path, user, {**cluster, "server": f"https://{host}:{port}"})
        )
        try:
            async with ApiServer(access) as server:
                assert await server.get("/x") == {"seen": True}
                access.renew(refused=True)
                assert await server.get("/x") == {"seen": True}
        finally:
            await runner.cleanup()

    asyncio.run(play())


def test_inlined_keys_do_not_stay_on_disk(
    tmp_path: Path, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    user = {
        "client-certificate-data": inline(keys / "crt"),
        "client-key-data": inline(keys / "key"),
    }
    access = load_access(written(tmp_path, user))
    assert list((tmp_path / "tmp").iterdir()) == []
    access.renew(refused=True)
    assert list((tmp_path / "tmp").iterdir()) == []


def test_tls_checks_can_be_turned_off_by_who_insists(tmp_path: Path) -> None:
    access = load_access(written(tmp_path, cluster={"insecure-skip-tls-verify": True}))
    assert access.ssl_context is not None
    assert access.ssl_context.verify_mode is ssl.CERT_NONE


def test_proxy_and_server_name_come_from_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = {"proxy-url": "http://proxy:3128", "tls-server-name": "kubernetes"}
    access = load_access(written(tmp_path, cluster=cluster))
    assert access.proxy == "http://proxy:3128"
    assert access.server_name == "kubernetes"
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert load_access(written(tmp_path, cluster=cluster)).proxy is None


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "kubeconfig"),
        ("{", "kubeconfig"),
        ("[]", "kubeconfig"),
        ("apiVersion: v1\nkind: Config\n", "current-context"),
        ("current-context: x\ncontexts: []\nclusters: []\n", "x"),
    ],
)
def test_a_broken_file_is_named_with_what_is_wrong(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "config"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=why) as broken:
        load_access(path)
    assert str(path) in str(broken.value)
    assert str(path) in broken.value.hint


@pytest.mark.parametrize(
    ("user", "cluster"),
    [
        ({"client-certificate": "absent.crt", "client-key": "absent.key"}, {}),
        ({"client-certificate-data": "bm8=", "client-key-data": "bm8="}, {}),
        ({"client-certificate-data": "%%%", "client-key-data": "bm8="}, {}),
        ({}, {"certificate-authority-data": "bm8="}),
        ({}, {"certificate-authority": "absent.crt"}),
        ({}, {"server": None}),
        ({}, {"server": ""}),
        ({"tokenFile": "absent"}, {}),
    ],
)
def test_what_a_file_points_to_must_be_there(
    tmp_path: Path, user: dict[str, Any], cluster: dict[str, Any]
) -> None:
    path = written(tmp_path, user, cluster)
    with pytest.raises(ConfigurationError) as broken:
        load_access(path)
    assert str(path) in str(broken.value)


def test_a_file_that_may_not_be_read_or_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="nowhere"):
        load_access(tmp_path / "nowhere")
    with pytest.raises(ConfigurationError, match=str(tmp_path)):
        load_access(tmp_path)  # a folder


def test_without_any_cluster_the_message_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="not in a pod") as unknown:
        load_access()
    assert "--kubeconfig" in unknown.value.hint


def test_in_a_pod_the_service_account_counts_and_its_token_is_read_again(
    tmp_path: Path, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = tmp_path / "token"
    token.write_text("first\n")
    (tmp_path / "ca.crt").write_bytes((keys / "crt").read_bytes())
    monkeypatch.setattr("scheduler.execution.kubernetes.kubeconfig.SERVICE_ACCOUNT", tmp_path)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    access = load_access()
    assert access.base_url == "https://10.0.0.1:443"
    assert access.headers() == {"Authorization": "Bearer first"}
    token.write_text("second\n")
    access.renew(refused=True)
    assert access.headers() == {"Authorization": "Bearer second"}
    token.unlink()
    with pytest.raises(ConfigurationError, match="service account"):
        access.renew(refused=True)


def test_private_keys_pass_only_through_files_of_our_own(
    tmp_path: Path, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The official client writes inlined keys to files; nobody else may read those."""
    seen: list[int] = []
    load = ssl.SSLContext.load_cert_chain

    def looked(self: ssl.SSLContext, crt: str, key: str) -> None:
        seen.extend(stat.S_IMODE(Path(one).stat().st_mode) for one in (crt, key))
        load(self, crt, key)

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", looked)
    load_access(
        written(
            tmp_path,
            {
                "client-certificate-data": inline(keys / "crt"),
                "client-key-data": inline(keys / "key"),
            },
        )
    )
    assert seen == [0o600, 0o600]
