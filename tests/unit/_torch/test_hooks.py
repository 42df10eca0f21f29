"""Forward hooks: ours last as long as a with block, and the user's stay."""

import pytest
from helpers import PLAIN, assert_same
from mlps import X, wrap
from torch import nn

from auxnas_layers._torch.hooks import hooked


def test_user_hooks_run_before_ours_and_stay():
    wrapper = wrap(search=PLAIN)
    handle = wrapper.primary_net.a.register_forward_hook(lambda module, args, output: output + 1)
    assert_same(wrapper(X).primary, wrapper.primary_net(X))
    assert len(wrapper.primary_net.a._forward_hooks) == 1
    handle.remove()


def test_hooks_go_at_the_end_of_their_block_however_it_ends():
    first, second, seen = nn.Identity(), nn.Identity(), []

    def note(module, args, output):
        seen.append(module)

    first.register_forward_hook(note)  # the user's own
    with hooked([(first, note), (second, note)]):
        second(first(X))
    assert seen == [first, first, second]
    with pytest.raises(KeyError), hooked([(first, note), (second, note)]):
        raise KeyError
    with pytest.raises(AttributeError), hooked([(second, note), (None, note)]):
        pass  # the second one cannot be registered, and the first one goes
    assert len(first._forward_hooks) == 1 and not second._forward_hooks
