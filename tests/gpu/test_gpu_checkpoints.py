"""Activation checkpoints in the networks, and memory over many forwards."""

import copy
import gc

import pytest
import torch
from gpu_pairs import CUDA, cast, images, kinds, nets, worst, wrap
from helpers import loss_of

from auxnas_layers import AuxG, AuxNAS

FORWARDS = 300


@kinds
@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["fp32", "bf16"])
def test_activation_checkpoints_change_no_gradient(kind, dtype):
    both, x = nets(kind), images()
    plain = wrap(both, x)
    wrapper = copy.deepcopy(plain)
    for net in (wrapper.primary_net, wrapper.aux_net):
        net.checkpointed = True
    for one in (plain, wrapper):
        with cast(dtype):
            out = one(x)
        loss_of(out).backward()
    assert worst(wrapper, plain) < (1e-3 if dtype is None else 1e-2)


def held() -> dict[str, int]:
    """Bytes that are in use: as the allocator of CUDA counts them, or by all tensors that Python knows."""
    gc.collect()
    if CUDA:
        torch.cuda.synchronize()
        return {"allocated": torch.cuda.memory_allocated(), "reserved": torch.cuda.memory_reserved()}
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in gc.get_objects()
        if issubclass(type(tensor), torch.Tensor) and not tensor.is_meta and tensor.layout is torch.strided
    }
    return {"tensors": sum(storages.values())}


def test_memory_that_is_kept_is_seen():
    before = held()
    kept = [torch.ones(2**20, device=images().device) for _ in range(3)]
    assert next(iter(held().values())) - next(iter(before.values())) >= 4 * 2**20 * len(kept)


@pytest.mark.parametrize(
    "kind, search",
    [("cnn", AuxNAS(aux_to_primary_start=0.5)), ("vit", AuxNAS(aux_to_primary_start=0.5)), ("vit", AuxG())],
    ids=["cnn", "vit", "one after the other"],
)
def test_many_forwards_keep_no_memory(kind, search):
    x = images(1, 8)
    wrapper = wrap(nets(kind, blocks=2, width=16), x, search)
    sizes = []
    for number in range(FORWARDS):
        with torch.set_grad_enabled(number % 10 == 0):
            out = wrapper(x)
            if number % 10 == 0:
                wrapper.zero_grad(set_to_none=False)
                loss_of(out).backward()
        del out
        if number in (FORWARDS // 10, FORWARDS - 1):
            sizes.append(held())
    assert sizes[0] == sizes[1]
