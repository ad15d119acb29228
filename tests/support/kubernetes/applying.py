"""What deploy/ ships, put on a real control plane as `kubectl apply --server-side` does."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path
from typing import Any

import yaml
from support.kubernetes.client import Client
from support.kubernetes.real_server import ControlPlane, program
from support.tree import ROOT

Json = dict[str, Any]

DEPLOY = ROOT / "deploy"
BASE = DEPLOY / "kubernetes" / "base"
COMPONENTS = sorted((DEPLOY / "kubernetes" / "components").iterdir())
OVERLAYS = sorted((DEPLOY / "kubernetes" / "overlays").iterdir())


def documents(path: Path) -> list[Json]:
    """The objects of a file."""
    return [each for each in yaml.safe_load_all(path.read_text()) if each]


def rendered(folder: Path) -> list[Json]:
    """What kustomize makes of a folder."""
    done = subprocess.run(
        [program("kubectl"), "kustomize", str(folder)], capture_output=True, check=True, timeout=60
    )
    return [each for each in yaml.safe_load_all(done.stdout) if each]


def component(folder: Path) -> list[Json]:
    """The objects of a component, as they stand in its files."""
    (kustomization,) = documents(folder / "kustomization.yaml")
    return [each for name in kustomization["resources"] for each in documents(folder / name)]


def apply(plane: ControlPlane, document: Json, **query: str) -> Json:
    """Apply on the server's side; a field that it does not know is an error."""
    kind = "application/apply-patch+yaml"
    strict = {"fieldManager": "test", "fieldValidation": "Strict", "force": "true", **query}

    async def applying() -> Json:
        async with Client(plane.access) as client:
            path = await _path(client, document)
            return (await client.ask("PATCH", path, document, kind=kind, **strict)).ok()

    return asyncio.run(applying())


def remove(plane: ControlPlane, document: Json) -> None:
    """Take an applied object away."""

    async def deleting() -> None:
        async with Client(plane.access) as client:
            (await client.delete(await _path(client, document))).ok()

    asyncio.run(deleting())


async def _path(client: Client, document: Json) -> str:
    version, metadata = document["apiVersion"], document["metadata"]
    root = f"/apis/{version}" if "/" in version else f"/api/{version}"
    resources = (await client.get(root)).ok()["resources"]
    (found,) = [
        each for each in resources if each["kind"] == document["kind"] and "/" not in each["name"]
    ]
    within = f"/namespaces/{metadata['namespace']}" if found["namespaced"] else ""
    return f"{root}{within}/{found['name']}/{metadata['name']}"
