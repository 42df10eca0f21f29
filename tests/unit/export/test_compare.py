"""Outputs are compared, and what differs is never called equal."""

import pytest
import torch
from pairs import IMAGES
from torch import nn
from zoo import Cnn

from auxnas_layers import AuxG, AuxNASWrapper, ExportError


def mlp(out=1, width=8):
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, out))


@pytest.mark.parametrize(
    "output, difference",
    [
        (lambda x, more: torch.complex(x, x + 0.5 * more), 0.5),
        (lambda x, more: (2**60 + more * torch.ones(1)).long() + more, None),
        (lambda x, more: x.double() * 0 + more * 5e-324, 5e-324),
        (lambda x, more: torch.stack([x * 0, x / (1 - more)]), float("inf")),
    ],
    ids=["complex", "large integers", "tiny", "infinite"],
)
def test_outputs_that_differ_never_pass_for_equal(output, difference):
    class Returns(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.more = nn.Linear(4, 4), 0

        def __deepcopy__(self, memo):
            copied = Returns()
            copied.load_state_dict(self.state_dict())
            copied.more = 1  # a copy that is not the network
            return copied

        def forward(self, x):
            return output((x + 0 * self.a(x))[0, 0], self.more)

    wrapper = AuxNASWrapper(Returns(), mlp(3, 4), [("a", "0")], example_inputs=torch.ones(2, 4))
    wrapper.close_aux_to_primary_()
    with pytest.raises(ExportError, match="the exported network differs from the primary network by") as caught:
        wrapper.export_primary()
    if difference is not None:
        assert str(caught.value).endswith(f"{difference:g}")


def test_export_refuses_outputs_that_differ():
    class Noisy(Cnn):
        calls = 0

        def forward(self, x):
            Noisy.calls += 1
            return super().forward(x) + Noisy.calls

    wrapper = AuxNASWrapper(Noisy(), Cnn(), taps=["layer1"])
    wrapper.close_aux_to_primary_()
    with pytest.raises(
        ExportError, match=r"primary network by \d; the network differs from itself by \d from one call to the next$"
    ):
        wrapper.export_primary(IMAGES)


class Jitters(Cnn):
    """Repeats itself but for rounding, as atomic additions on a GPU do."""

    calls, size = 0, 1e-6

    def forward(self, x):
        Jitters.calls += 1
        return super().forward(x) + self.size * Jitters.calls


def test_a_network_that_does_not_repeat_itself_by_rounding_is_exported_and_its_noise_reported():
    wrapper = AuxNASWrapper(Jitters(), Cnn(), taps=["layer1"])
    wrapper.close_aux_to_primary_()
    wrapper.export_primary(IMAGES)
    report = wrapper.export_report
    assert 0 < report.noise < 1e-5 and 0 < report.max_difference < 1e-5 and not report.exact
    assert f"noise {report.noise:g}" in str(report)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Jitters, "size", 1.0)
        with pytest.raises(ExportError, match="the network differs from itself by"):
            wrapper.export_primary(IMAGES)


def test_the_primary_must_compute_in_the_wrapper_what_it_computes_alone(monkeypatch):
    wrapper = AuxNASWrapper(Cnn(), Cnn(), taps=["layer1"], search=AuxG())
    run = AuxNASWrapper._run_with

    def wrong(self, *args):
        out = run(self, *args)
        return type(out)(out.primary * (1 + 2**-20), out.aux)

    monkeypatch.setattr(AuxNASWrapper, "_run_with", wrong)
    with pytest.raises(ExportError, match="the primary network in the wrapper differs from the same one alone by"):
        wrapper.export_primary(IMAGES)


def test_comparisons_ask_for_deterministic_kernels_and_restore_the_users_choice():
    seen = []

    class Looks(Cnn):
        def forward(self, x):
            seen.append((torch.get_deterministic_debug_mode(), torch.backends.cudnn.benchmark))
            return super().forward(x)

    wrapper = AuxNASWrapper(Looks(), Cnn(), taps=["layer1"], search=AuxG(), example_inputs=IMAGES)
    del seen[:]
    torch.backends.cudnn.benchmark = True
    try:
        wrapper.export_primary()
        assert seen[:2] == [(1, False)] * 2
        assert torch.get_deterministic_debug_mode() == 0 and torch.backends.cudnn.benchmark
        assert torch.utils.deterministic.fill_uninitialized_memory
    finally:
        torch.backends.cudnn.benchmark = False


def test_a_copy_with_another_buffer_that_no_state_has_is_refused():
    class Hidden(Cnn):
        def __init__(self):
            super().__init__()
            self.register_buffer("scale", torch.ones(1), persistent=False)

        def __deepcopy__(self, memo):
            copied = Hidden()
            copied.load_state_dict(self.state_dict())
            copied.scale.fill_(2)
            return copied

    wrapper = AuxNASWrapper(Hidden(), Cnn(), taps=["layer1"], search=AuxG())
    with pytest.raises(ExportError, match="'scale' differs"):
        wrapper.export_primary()
