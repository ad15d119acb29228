"""Distributed data-parallel training, small enough for a laptop: what `ddp.yaml` runs.

Haversack starts one process per GPU (or per task) and tells each its place by environment:
RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT. This program

1. forms a process group and proves it with an all-reduce,
2. trains a model on synthetic data for DDP_SECONDS seconds (default 5),
3. proves that every rank ended with the same parameters,
4. stops early and cleanly when asked to (SIGTERM), on the same step in every rank.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

SECONDS = float(os.environ.get("DDP_SECONDS", "5"))
BATCH, FEATURES, REPORT_EVERY = 64, 32, 20

RANK = int(os.environ["RANK"])
WORLD_SIZE = int(os.environ["WORLD_SIZE"])
LOCAL_RANK = int(os.environ["LOCAL_RANK"])


def say(text: str) -> None:
    """Print one line now, so that `haversack logs -f` shows it now."""
    print(f"[rank {RANK}] {text}", flush=True)  # noqa: T201 - the log is the output


def pick_device() -> torch.device:
    """Our own GPU when we were given one, else the CPU."""
    if torch.cuda.is_available():
        torch.cuda.set_device(LOCAL_RANK)
        return torch.device("cuda", LOCAL_RANK)
    torch.set_num_threads(1)
    return torch.device("cpu")


def check_group(device: torch.device) -> None:
    """All ranks must meet: the sum of their numbers is known beforehand."""
    total = torch.tensor([float(RANK)], device=device)
    dist.all_reduce(total)
    wanted = WORLD_SIZE * (WORLD_SIZE - 1) / 2
    say(f"all-reduce of ranks: {total.item():g}, expected {wanted:g}")
    if total.item() != wanted:
        raise SystemExit("ALL-REDUCE WRONG")


def train(model: nn.Module, device: torch.device, asked_to_stop: list[int]) -> bool:
    """Fit y = sin(sum(x)) until the time is up; False when the job was asked to stop before."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    noise = torch.Generator().manual_seed(1000 + RANK)  # every rank sees data of its own
    deadline = time.monotonic() + SECONDS
    step = 0
    while True:
        x = torch.randn(BATCH, FEATURES, generator=noise).to(device)
        y = torch.sin(x.sum(dim=1, keepdim=True) / FEATURES**0.5)
        loss = nn.functional.mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % REPORT_EVERY == 0 and RANK == 0:
            say(f"step {step:5d}  loss {loss.item():.4f}")
        # One rank deciding alone would leave the others waiting for it: they decide together.
        votes = torch.tensor([float(time.monotonic() > deadline), float(bool(asked_to_stop))])
        votes = votes.to(device)
        dist.all_reduce(votes, op=dist.ReduceOp.MAX)
        if votes.any():
            say(f"done after {step + 1} steps, loss {loss.item():.4f}")
            return not bool(votes[1])
        step += 1


def check_agreement(model: nn.Module, device: torch.device) -> None:
    """Every rank must hold the same parameters, to the bit."""
    flat = torch.cat([p.detach().reshape(-1).double() for p in model.parameters()])
    own = torch.stack([flat.sum(), flat.square().sum(), flat.abs().max()]).to(device)
    everyone = [torch.empty_like(own) for _ in range(WORLD_SIZE)]
    dist.all_gather(everyone, own)
    if not all(torch.equal(other, own) for other in everyone):
        raise SystemExit("PARAMETERS DIFFER")
    say(f"PARAMETERS AGREE on {WORLD_SIZE} ranks, checksum {own[0].item():.9f}")


def main() -> int:
    """Run one rank."""
    asked_to_stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: asked_to_stop.append(number))
    device = pick_device()
    backend = "nccl" if device.type == "cuda" else "gloo"
    # nccl is told its GPU here, or it would have to guess it at the first barrier.
    own_gpu = device if backend == "nccl" else None
    dist.init_process_group(backend, timeout=timedelta(seconds=120), device_id=own_gpu)
    say(f"world size {dist.get_world_size()}, backend {backend}, device {device}")
    try:
        check_group(device)
        torch.manual_seed(0)  # the same start everywhere
        net = nn.Sequential(nn.Linear(FEATURES, 64), nn.Tanh(), nn.Linear(64, 1)).to(device)
        model = DistributedDataParallel(net)
        finished = train(model, device, asked_to_stop)
        check_agreement(model, device)
        dist.barrier()  # nobody closes a connection that another rank still needs
    finally:
        dist.destroy_process_group()
    if not finished:
        say("asked to stop: ended early and cleanly")
    return 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    # Without the interpreter's own farewell: gloo's threads may still be letting go of the last
    # collective's tensors, and torch aborts when that meets an interpreter that is being torn down
    # (https://github.com/pytorch/pytorch/issues/190489).
    os._exit(status)
