"""The processes and the device of a run."""

import os
from dataclasses import dataclass

import torch
from torch import distributed


@dataclass(frozen=True)
class Place:
    """Which of the processes this is, and where it computes."""

    rank: int
    world: int
    device: torch.device


def start_processes() -> Place:
    """As torchrun says; one process without it."""
    cuda = torch.cuda.is_available()
    device = torch.device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if cuda else "cpu")
    if "RANK" not in os.environ:
        return Place(0, 1, device)
    if not distributed.is_initialized():
        distributed.init_process_group("nccl" if cuda else "gloo")
    if cuda:
        torch.cuda.set_device(device)
    return Place(distributed.get_rank(), distributed.get_world_size(), device)
