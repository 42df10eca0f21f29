"""DistributedDataParallel and FSDP2 in one process: NCCL on a GPU, gloo on the CPU."""

import copy
import os
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from gpu_pairs import CUDA, DEVICE, IN_CHILD, images, kinds, needs_cuda, nets, worst, wrap
from helpers import loss_of
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from auxnas_layers import MTLNAS, AuxNASWrapper

pytestmark = pytest.mark.child(together=True)
PROGRESS = (0.05, 0.25, 0.5)  # open; closing; closed


@pytest.fixture(autouse=True)
def group() -> Iterator[None]:
    if IN_CHILD not in os.environ:  # the parent only looks at how its child has ended
        yield
        return
    if CUDA:
        torch.cuda.set_device(DEVICE)
    dist.init_process_group("nccl" if CUDA else "gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def compare(wrapper: AuxNASWrapper, call: nn.Module, plain: AuxNASWrapper, most: float) -> None:
    """The same gradients over the closing of the edges."""
    for progress in PROGRESS:
        for one, forward in ((wrapper, call), (plain, plain)):
            one.zero_grad()
            torch.manual_seed(4)
            (loss_of(forward(images())) + one.search_penalty(progress)).backward()
        assert worst_of_whole(wrapper, plain) < most


def worst_of_whole(found: nn.Module, wanted: nn.Module) -> float:
    """As `worst`, of parameters that may be sharded."""
    whole = copy.deepcopy(wanted)
    for parameter, other in zip(whole.parameters(), found.parameters(), strict=True):
        gradient = other.grad.full_tensor() if isinstance(other.grad, DTensor) else other.grad
        parameter.grad = gradient
    return worst(whole, wanted)


@kinds
def test_gradients_are_those_without_data_parallelism(kind):
    wrapper = wrap(nets(kind), images())
    plain = copy.deepcopy(wrapper)
    compare(wrapper, DistributedDataParallel(wrapper, find_unused_parameters=True), plain, 1e-3)


def test_gates_that_are_drawn_are_those_without_data_parallelism():
    wrapper = wrap(nets("vit"), images(), MTLNAS())
    plain = copy.deepcopy(wrapper)
    compare(wrapper, DistributedDataParallel(wrapper, find_unused_parameters=True), plain, 1e-3)


@needs_cuda
def test_batch_norms_of_both_networks_may_be_synchronised():
    both = [nn.SyncBatchNorm.convert_sync_batchnorm(net) for net in nets("cnn")]
    wrapper, plain = wrap(both, images()), wrap(nets("cnn"), images())
    compare(wrapper, DistributedDataParallel(wrapper, find_unused_parameters=True), plain, 1e-3)


@kinds
def test_sharded_networks_have_the_gradients_of_whole_ones(kind):
    wrapper = wrap(nets(kind), images())
    plain = copy.deepcopy(wrapper)
    mesh = init_device_mesh(DEVICE.type, (1,))
    for net in (wrapper.primary_net, wrapper.aux_net):
        for module in (*net.blocks, net):
            fully_shard(module, mesh=mesh)
    fully_shard(wrapper, mesh=mesh, ignored_params=set(wrapper.arch_parameters()))
    assert sum(isinstance(p, DTensor) for p in wrapper.parameters()) == len(list(wrapper.weight_parameters()))
    compare(wrapper, wrapper, plain, 1e-3)
