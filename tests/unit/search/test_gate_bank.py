"""The gates of a wrapper together."""

import copy
import pickle
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.distributed as dist
from helpers import workers
from pairs import IMAGES, make
from torch.optim.swa_utils import AveragedModel
from torch.utils._python_dispatch import TorchDispatchMode
from zoo import Cnn

from auxnas_layers import MTLNAS, Architecture, AuxG, AuxNAS, AuxNASWrapper, FixedArchitecture, SearchError
from auxnas_layers.features.outputs import features
from auxnas_layers.search import ClampedGate, FixedGate, Gate, RelaxedBernoulliGate, host_copy


def test_gates_that_are_nan_are_named():
    wrapper = AuxNASWrapper(Cnn(), Cnn(), taps=["layer1", "layer2"], example_inputs=IMAGES)
    with torch.no_grad():
        wrapper.gates["aux_to_primary"].alpha[1] = torch.nan
    wrapper.search_penalty(0.3)  # reads no gate, and leaves it to the next forward
    for use in (lambda: wrapper(IMAGES), wrapper.architecture, wrapper.export_primary):
        with pytest.raises(
            SearchError, match="NaN: aux_to_primary 'layer1' -> 'layer2'. .*load_state_dict an earlier state"
        ):
            use()
    assert not workers()


@pytest.mark.parametrize("evaluation", ["soft", "hard", "stochastic"])
@pytest.mark.parametrize("training", [True, False])
def test_a_gate_that_is_nan_is_never_taken_for_closed(evaluation, training):
    gate = RelaxedBernoulliGate(2, evaluation=evaluation).train(training)
    gate.alpha.data[0] = torch.nan
    assert gate()[0].isnan() and not gate()[1].isnan()
    wrapper = make(MTLNAS(gate=partial(RelaxedBernoulliGate, evaluation=evaluation))).train(training)
    wrapper.gates["primary_to_aux"].alpha.data[1] = torch.nan
    for use in (lambda: wrapper(IMAGES), wrapper.discretize_, wrapper.export_multitask, wrapper.architecture):
        with pytest.raises(SearchError, match="gates are NaN: primary_to_aux 'layer1' -> 'layer2'"):
            use()


# Reads of a device: on a GPU each one waits for all work before it


class Reads(TorchDispatchMode):
    """Counts the operations that wait for a device: copies to the host, and numbers that are no part of such a copy."""

    WAITING = "_local_scalar_dense", "equal", "is_nonzero", "nonzero", "masked_select"

    def __init__(self):
        super().__init__()
        self.count, self.host = 0, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        if name == "_to_copy" and str((kwargs or {}).get("device", "")) == "cpu":
            self.count += 1
            self.host.add(result.untyped_storage().data_ptr())
        elif name in self.WAITING and args[0].untyped_storage().data_ptr() not in self.host:
            self.count += 1
        return result


def reads_of_a_step(wrapper, progress):
    optimiser = torch.optim.SGD(wrapper.parameters(), lr=1e-3)
    with Reads() as reads:
        out = wrapper(IMAGES)
        loss = sum(t.square().mean() for _, t in features(tuple(out))) + wrapper.search_penalty(progress)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return reads.count


@pytest.mark.parametrize(
    "search, expected",
    [(AuxNAS(), (1, 1, 0)), (AuxG(), (0, 0, 0)), (MTLNAS(), (1, 1, 1)), (FixedArchitecture(), (0, 0, 0))],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("auxes", [1, 2])
def test_a_step_reads_gates_once_while_they_are_searched_and_never_afterwards(search, expected, auxes):
    nets = {name: Cnn() for name in "ab"[:auxes]}
    taps = {name: ["layer1", "layer2"] for name in nets}
    wrapper = AuxNASWrapper(Cnn(), nets, taps, search=search, example_inputs=IMAGES)
    reads_of_a_step(wrapper, 0.0)
    first, during = reads_of_a_step(wrapper, 0.0), reads_of_a_step(wrapper, 0.3)
    reads_of_a_step(wrapper, 0.4)
    assert (first, during, reads_of_a_step(wrapper, 0.5)) == expected


def test_kept_and_closed_gates_are_read_once_more_and_never_again():
    wrapper = make(MTLNAS())
    wrapper.discretize_()
    assert [reads_of_a_step(wrapper, 1.0) for _ in range(3)] == [1, 0, 0]


CHANGES = {
    "load": lambda wrapper, state: wrapper.load_state_dict(state),
    "assign": lambda wrapper, state: wrapper.load_state_dict(state, assign=True),
    "in place": lambda wrapper, state: [
        buffer.copy_(state[f"gates.{name}"]) for name, buffer in wrapper.gates.named_buffers() if "costs" not in name
    ],
}
COPIES = {
    "itself": lambda wrapper: wrapper,
    "copy": copy.deepcopy,
    "pickle": lambda wrapper: pickle.loads(pickle.dumps(wrapper)),
    "average": lambda wrapper: AveragedModel(wrapper).module,
    "half": lambda wrapper: wrapper.half(),
}


@pytest.mark.parametrize("search", [FixedArchitecture(), MTLNAS()], ids=repr)
@pytest.mark.parametrize("then", COPIES)
@pytest.mark.parametrize("change", CHANGES)
def test_whoever_changes_settled_gates_makes_them_be_read_again(change, then, search):
    """The host's copy of closed gates is of no use once they are open; also in copies, whose versions begin anew."""
    wrapper = make(search)
    state = copy.deepcopy(wrapper.state_dict())
    closed = (replace(edge, gate=0.0, open=False) for edge in wrapper.architecture())
    wrapper.load_architecture(Architecture(tuple(closed)))
    assert not wrapper.gates.now() and all(gate.settled() for gate in wrapper.gates.values())
    CHANGES[change](wrapper, state)
    assert all(edge.open for edge in COPIES[then](wrapper).architecture())


def test_gates_are_where_the_network_that_receives_is():
    """Nets on the meta device stand in for networks on a GPU; gates have values, so they never follow there."""
    wrapper = make(example_inputs=None)
    assert {gate.alpha.device.type for gate in wrapper.gates.values()} == {"cpu"}
    with torch.device("meta"):
        nets = [Cnn() for _ in range(2)]
    wrapper = AuxNASWrapper(*nets, ["layer1"], search=MTLNAS())
    assert {gate.alpha.device.type for gate in wrapper.gates.values()} == {"cpu"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("auxnas_layers.search.gate_bank.floating_parameter", lambda net: OnGpu())
        wrapper = make(example_inputs=None)
    assert {gate.alpha.device.type for gate in wrapper.gates.values()} == {"meta"}


class OnGpu:
    """A parameter on a GPU, as far as anybody asks: the meta device stands in for it."""

    is_meta, device = False, torch.device("meta")


# What the host may not believe


def closed_and_forwarded(search=None):
    wrapper = make(search or MTLNAS())
    wrapper.load_architecture(Architecture(tuple(replace(e, gate=0.0, open=False) for e in wrapper.architecture())))
    wrapper(IMAGES)
    return wrapper


@pytest.mark.parametrize("search", [FixedArchitecture(), MTLNAS()], ids=repr)
def test_changes_that_torch_does_not_count_are_seen_on_a_cpu(search):
    """As averages by hand and broadcasts of buffers make them."""
    wrapper, open_ = closed_and_forwarded(search), make(search)
    for gate, other in zip(wrapper.gates.values(), open_.gates.values(), strict=True):
        for name in ("alpha", "closed", "kept"):
            getattr(gate, name).data.copy_(getattr(other, name).data)
    assert all(edge.open for edge in wrapper.architecture()) and len(wrapper.gates.now()) == 6


@pytest.mark.parametrize("joined", [False, True])
def test_on_a_gpu_values_are_believed_unless_processes_exchange_buffers(joined, monkeypatch):
    class OnGpu:
        is_meta, device = False, torch.device("cuda")

    monkeypatch.setattr(dist, "is_initialized", lambda: joined)
    monkeypatch.setattr(host_copy, "type", lambda _: torch.Tensor, raising=False)
    assert host_copy._agrees(OnGpu(), [1.0, 1.0]) is not joined


def test_random_gates_draw_the_same_numbers_whatever_the_host_knows():
    first = make(MTLNAS())
    first.close_aux_to_primary_()
    first(IMAGES)
    second = copy.deepcopy(first)  # which knows nothing of its gates yet
    outputs = []
    for wrapper in (first, second):
        torch.manual_seed(1)
        outputs.append(wrapper(IMAGES).aux)
    assert outputs[0].equal(outputs[1])


def test_gates_that_nobody_searches_may_still_be_drawn():
    class Dropped(FixedGate):
        def draw(self, alpha):
            return torch.bernoulli(0.5 * alpha)

    wrapper = make(AuxG(primary_to_aux=Dropped))
    assert len({frozenset(wrapper.gates.now()) for _ in range(40)}) > 3
    assert wrapper.gates["primary_to_aux"].values() == [1.0] * 3


def test_values_that_somebody_changes_are_a_copy():
    gate = FixedGate(3, 0.3)
    gate.values().clear()
    assert gate.values() == gate.alpha.tolist() == pytest.approx([0.3] * 3)


class PerEdge(ClampedGate):
    """A parameter of its own scale for each edge."""

    scale = torch.tensor([1.0, 2.0, 4.0])

    def squash(self, alpha):
        return (alpha / self.scale).clamp(0, 1)

    def unsquash(self, value):
        return value * self.scale

    highest = Gate.highest


def test_a_ceiling_may_be_another_parameter_for_each_edge():
    gate = PerEdge(3, 0.5)
    gate.settle_(0.25)
    assert gate.alpha.tolist() == [0.25, 0.5, 1.0] and gate.values() == [0.25] * 3


def test_costs_survive_a_wrapper_that_gets_its_numbers_from_a_state():
    with torch.device("meta"):
        nets, images = (Cnn(), Cnn()), IMAGES.to("meta")
        empty = AuxNASWrapper(*nets, ["layer1", "layer2"], search=MTLNAS(l1=1.0), example_inputs=images)
    trained = AuxNASWrapper(Cnn(), Cnn(), ["layer1", "layer2"], search=MTLNAS(l1=1.0), example_inputs=IMAGES)
    empty.search_penalty(0.0)
    filled = empty.to_empty(device="cpu")
    filled.load_state_dict(trained.state_dict())
    assert filled.search_penalty(0.0) == trained.search_penalty(0.0) > 0


def test_names_of_auxiliaries_do_not_meet_in_the_bank():
    nets = {"depth": Cnn(), "depth_costs": Cnn()}
    AuxNASWrapper(Cnn(), nets, {name: ["layer1"] for name in nets}, search=MTLNAS(), example_inputs=IMAGES)(IMAGES)
