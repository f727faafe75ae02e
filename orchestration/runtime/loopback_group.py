"""The process group of trainers that are all on this machine, with a store that other machines cannot reach.

By default torch's store listens on all interfaces and requires no password. The store here gets a socket on loopback.
"""

import os
import socket
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import psutil
import ray
import ray.train
import torch.distributed
from ray.train.backend import Backend
from ray.train.torch import TorchConfig
from torch.distributed import TCPStore

LOOPBACK = "127.0.0.1"
BACKLOG = 128
"""Connections that wait to be accepted: all trainers of a machine can connect at once."""

_stores: list[TCPStore] = []
"""The store of this process's group. It is closed with its last reference."""


@dataclass
class LoopbackConfig(TorchConfig):
    """Like `TorchConfig`, for trainers on one machine."""

    @property
    def backend_cls(self) -> type[Backend]:
        """The backend that Ray Train uses."""
        return LoopbackBackend


class LoopbackBackend(Backend):
    """Like Ray Train's own backend for torch, with a store on loopback."""

    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """Open the store on rank 0 and let all ranks join the group."""
        port = worker_group.execute_single(0, open_store)
        gpus = worker_group.get_resources_per_worker().get("GPU", 0)
        settings = (port, len(worker_group), backend_config.backend or ("nccl" if gpus else "gloo"))
        ray.get(
            [
                worker_group.execute_single_async(rank, join, rank, *settings, backend_config.timeout_s)
                for rank in range(len(worker_group))
            ]
        )

    def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
        """Let the ranks that still run leave the group."""
        ray.wait(worker_group.execute_async(leave), num_returns=len(worker_group), timeout=30)


def open_store() -> int:
    """Open the store in this process; returns its port."""
    listener = socket.create_server((LOOPBACK, 0), backlog=BACKLOG)
    port: int = listener.getsockname()[1]
    _stores[:] = [TCPStore(LOOPBACK, port, is_master=True, master_listen_fd=listener.detach(), wait_for_workers=False)]
    return port


def join(rank: int, port: int, world_size: int, backend: str, timeout_seconds: int) -> None:
    """Join the group with this process, and set the environment variables that Ray Train sets for torch."""
    context = ray.train.get_context()
    os.environ |= {
        "LOCAL_RANK": str(context.get_local_rank()),
        "LOCAL_WORLD_SIZE": str(context.get_local_world_size()),
        "NODE_RANK": str(context.get_node_rank()),
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
    }
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(name, interface())
    timeout = timedelta(seconds=timeout_seconds)
    if rank:
        _stores[:] = [TCPStore(LOOPBACK, port, is_master=False, timeout=timeout)]
    torch.distributed.init_process_group(backend, store=_stores[0], rank=rank, world_size=world_size, timeout=timeout)


def leave() -> None:
    """Leave the group with this process."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    _stores.clear()


def interface() -> str:
    """Name of the loopback interface: `lo`, or `lo0` on macOS."""
    return next(
        name for name, found in psutil.net_if_addrs().items() if any(each.address == LOOPBACK for each in found)
    )
