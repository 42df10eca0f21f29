"""The auxiliary's thread takes over the stream of the call, and wakes no other GPU."""

import copy

import pytest
import torch
from gpu_pairs import GPUS, images, needs_cuda, needs_two, nets, worst, wrap
from helpers import loss_of

pytestmark = needs_cuda


def test_the_auxiliary_runs_on_the_stream_of_the_call():
    both, x, side, seen = nets("vit"), images(), torch.cuda.Stream(), []
    wrapper = wrap(both, x)
    reference = copy.deepcopy(wrapper)
    loss_of(reference(x)).backward()
    both[1].blocks[1].register_forward_hook(lambda *_: seen.append(torch.cuda.current_stream()))
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        late = x * 1.0  # on another stream it would not be there yet
        loss_of(wrapper(late)).backward()
    side.synchronize()
    assert seen == [side]
    assert worst(wrapper, reference) < 1e-3
    wrapper(x)
    assert seen[-1] == torch.cuda.current_stream()


@pytest.mark.parametrize("switches", [0, 1])
def test_a_network_may_switch_streams_around_its_taps(switches):
    both, x = nets("vit"), images()
    wrapper = wrap(both, x)
    reference = copy.deepcopy(wrapper)
    both[switches].side = torch.cuda.Stream()
    for _ in range(10):
        with torch.no_grad():
            out = wrapper(x)
            torch.cuda.synchronize()
            wanted = reference(x)
        torch.testing.assert_close(tuple(out), tuple(wanted), rtol=1e-4, atol=1e-4)
    loss_of(wrapper(x)).backward()
    torch.cuda.synchronize()
    loss_of(reference(x)).backward()
    assert worst(wrapper, reference) < 1e-3


@needs_two
@pytest.mark.child
def test_gpus_that_are_not_in_use_get_no_context():
    both, x = nets(), images()
    loss_of([net(x) for net in both]).backward()
    before = [torch._C._cuda_hasPrimaryContext(i) for i in range(GPUS)]
    wrapper = wrap(both, x)
    loss_of(wrapper(x)).backward()
    assert [torch._C._cuda_hasPrimaryContext(i) for i in range(GPUS)] == before
    assert sum(before) == 1
