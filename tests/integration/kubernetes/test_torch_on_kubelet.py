"""torch.distributed over pods: ranks find each other by the names of their pods."""

from __future__ import annotations

import asyncio
import importlib.util
import socket
import sys
from pathlib import Path

import pytest
from support.kubernetes import objects
from support.kubernetes.client import Client
from support.kubernetes.fake_server import FakeApiServer
from support.kubernetes.kubelet import Kubelet
from support.kubernetes.resources import PODS

EXAMPLES = Path(__file__).parents[3] / "docs" / "guide" / "examples"
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="torch is not installed"
)


def test_two_pods_train_and_agree(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script = str(EXAMPLES / "ddp.py")
    settings = {
        "PET_NNODES": "2",
        "PET_NPROC_PER_NODE": "1",
        "PET_MASTER_ADDR": "train-0.train",
        "PET_MASTER_PORT": str(port),
        "DDP_SECONDS": "0.5",
    }

    async def act() -> None:
        async with FakeApiServer() as fake, Client(fake.access) as client:
            fake.create(objects.node("n1"))
            for rank in range(2):
                env = [{"name": name, "value": value} for name, value in settings.items()]
                env.append({"name": "PET_NODE_RANK", "value": str(rank)})
                fake.create(
                    objects.pod(
                        f"train-{rank}",
                        command=[sys.executable, "-m", "torch.distributed.run", script],
                        env=env,
                        subdomain="train",
                    )
                )
            async with Kubelet(fake.access, folder=tmp_path) as kubelet:
                for rank in range(2):
                    path = PODS.path("default", f"train-{rank}", "binding")
                    (await client.post(path, objects.binding(f"train-{rank}", "n1"))).ok()
                async with asyncio.timeout(150):
                    while True:
                        phases = {pod["status"]["phase"] for pod in fake.objects(PODS)}
                        if phases <= {"Succeeded", "Failed"}:
                            break
                        await asyncio.sleep(0.1)
                told = [kubelet.log(f"train-{rank}") for rank in range(2)]
        assert phases == {"Succeeded"}, told
        assert all("PARAMETERS AGREE on 2 ranks" in text for text in told)

    asyncio.run(act())
