"""More than one process: what two processes with half of the batch each do is what one does with the whole batch."""

import io
import os
import runpy
import socket
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stdout
from datetime import timedelta
from functools import partial
from inspect import signature
from itertools import product
from multiprocessing.connection import Connection, wait
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from helpers import PLAIN, ROOT, loss_of, stir_
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from zoo import UNet, Vit

from auxnas_layers import MTLNAS, AuxG, AuxNAS, AuxNASWrapper, ExportError, NDDRFusion, StopRule
from auxnas_layers.search import ClampedGate, RelaxedBernoulliGate, SigmoidGate

RANKS = 2
DEAD, APART = "one of the processes has died", "no meeting "
LIMIT, PATIENCE, START = 30, 3, 180  # seconds to wait for an answer; for the other's once one has failed; at the start
MEETINGS = 3  # gloo's first connection fails now and then on a busy machine (pytorch/pytorch#53270): meet again
IMAGES = torch.randn(8, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
PROGRESS = (0.0, 0.3, 0.6)  # all edges open; closing; closed
TAPS = [("down", "blocks.0"), ("middle", "blocks.1")]


# Two processes, which run one function after the other, each in a process group of its own


def serve(rank: int, pipe: Connection) -> None:
    """Run what comes through the pipe, and answer with what went wrong."""
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    pipe.send("ready")
    while True:
        function, meeting = pipe.recv()
        failure, place = None, f"{APART}in process {rank}"
        try:
            timeout = timedelta(seconds=LIMIT)
            dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=RANKS, timeout=timeout)
            place = f"in process {rank}"
            torch.manual_seed(0)
            function(rank)
            if dist.is_initialized():
                dist.barrier()  # nobody leaves while the other may still ask for something
        except Exception:
            failure = f"{place}: {traceback.format_exc()}"
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
        pipe.send(failure)


class Processes:
    """Two processes, started at the first call; ended where one of them does not answer."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls = folder, 0
        self.workers: list[mp.Process] = []
        self.pipes: list[Connection] = []

    def start(self) -> None:
        context = mp.get_context("spawn")
        for rank in range(RANKS):
            pipe, other = context.Pipe()
            self.workers.append(context.Process(target=serve, args=(rank, other), daemon=True))
            self.workers[-1].start()
            other.close()
            self.pipes.append(pipe)
        for pipe in self.pipes:  # each has to import torch first
            assert pipe.poll(START) and pipe.recv() == "ready"

    def run(self, function: Callable[[int], None]) -> None:
        """Call the function with 0 in one and 1 in the other; what one raises fails the test."""
        for _ in range(MEETINGS):
            failures = self.failures(function)
            if not any(failure.startswith(APART) for failure in failures):
                break
        if failures:
            raise AssertionError("\n".join(failures))

    def failures(self, function: Callable[[int], None]) -> list[str]:
        if not self.workers:
            self.start()
        self.calls += 1
        for pipe in self.pipes:
            pipe.send((function, f"file://{self.folder}/{self.calls}"))
        return [failure for failure in self.answers() if failure]

    def answers(self) -> list[str | None]:
        """What each of them says, in the order in which they say it; once one has failed, the other may hang."""
        found: list[str | None] = []
        waiting, end = list(self.pipes), monotonic() + LIMIT
        while waiting and (ready := wait(waiting, max(0.0, end - monotonic()))):
            for pipe in ready:
                found.append(self.answer(pipe))
                waiting.remove(pipe)
            if any(found):
                end = min(end, monotonic() + PATIENCE)
        if waiting or DEAD in found:
            self.stop()
        return [*found, *[f"no answer after {LIMIT} seconds"] * len(waiting)]

    def answer(self, pipe: Connection) -> str | None:
        try:
            failure: str | None = pipe.recv()
        except (EOFError, ConnectionError):
            failure = DEAD
        return failure

    def stop(self) -> None:
        for worker in self.workers:
            worker.kill()
            worker.join()
        for pipe in self.pipes:
            pipe.close()
        self.workers, self.pipes = [], []


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    both = Processes(tmp_path_factory.mktemp("processes"))
    yield both
    both.stop()


def test_processes_that_did_not_meet_meet_again(processes):
    (processes.folder / str(processes.calls + 1)).mkdir()  # no file, so that nobody can meet there
    calls = processes.calls
    processes.run(assert_two)
    assert processes.calls == calls + 2


def assert_two(rank: int) -> None:
    assert dist.get_world_size() == RANKS and dist.get_rank() == rank


# Networks without batch norm, in double precision, so that sums in another order are the same to seven digits

Make = Callable[[], AuxNASWrapper]


def pair(**options: Any) -> AuxNASWrapper:
    torch.manual_seed(0)
    wrapper = AuxNASWrapper(UNet().double(), Vit().double(), TAPS, example_inputs=IMAGES[:2], **options)
    stir_(wrapper)
    return wrapper


def three(**options: Any) -> AuxNASWrapper:
    """Two auxiliary networks."""
    torch.manual_seed(0)
    auxes, taps = {"parts": Vit().double(), "depth": UNet().double()}, {"parts": TAPS, "depth": ["down", "middle"]}
    wrapper = AuxNASWrapper(UNet().double(), auxes, taps, example_inputs=IMAGES[:2], **options)
    stir_(wrapper)
    return wrapper


def close_(wrapper: AuxNASWrapper, closed: str) -> None:
    """Close none, half or all of the edges into the primary."""
    for direction, gate in wrapper.gates.items():
        if direction.endswith("to_primary") and closed != "none":
            values = gate.values()
            gate.set_([0.0 if closed == "all" or i % 2 else value for i, value in enumerate(values)])


nddr = partial(NDDRFusion, norm=nn.LayerNorm)  # its batch norm would see other batches in two processes than in one
MAKES: dict[str, Make] = {
    "AuxNAS": pair,
    "AuxNAS with all gates searched": partial(pair, search=AuxNAS(primary_to_aux=ClampedGate)),
    "AuxNAS with sigmoids": partial(pair, search=AuxNAS(aux_to_primary=SigmoidGate)),
    "AuxNAS that changes nothing": partial(pair, search=PLAIN),
    "AuxG": partial(pair, search=AuxG()),
    "MTLNAS": partial(pair, search=MTLNAS(), fusion=nddr),
    "MTLNAS with sigmoids": partial(pair, search=MTLNAS(gate=SigmoidGate), fusion=nddr),
    "two auxiliaries": three,
    "two auxiliaries, two searches": partial(three, search={"parts": AuxG(), "depth": AuxNAS()}),
}
CLOSING = {"AuxNAS": pair, "two auxiliaries": three}


class Losses(nn.Module):
    """The losses of a step, the penalty among them, as one forward."""

    def __init__(self, wrapper: AuxNASWrapper) -> None:
        super().__init__()
        self.wrapper = wrapper

    def forward(self, images: Tensor, progress: float) -> Tensor:
        return task_losses(self.wrapper(images)) + self.wrapper.search_penalty(progress)


def task_losses(output: Any) -> Tensor:
    auxes = output.aux.values() if isinstance(output.aux, dict) else [output.aux]
    return torch.stack([out.square().mean() for out in (output.primary, *auxes)]).sum()


Step = Callable[[Tensor, float], Tensor]


def penalty_outside(wrapper: AuxNASWrapper, **options: Any) -> Step:
    """The loop as in one process: the penalty is added to what comes out of DistributedDataParallel."""
    ddp = DistributedDataParallel(wrapper, **options)
    return lambda images, progress: task_losses(ddp(images)) + ddp.module.search_penalty(progress)


def penalty_inside(wrapper: AuxNASWrapper, **options: Any) -> Step:
    """All losses are computed in the module that DistributedDataParallel wraps."""
    return DistributedDataParallel(Losses(wrapper), **options)


WAYS = {"penalty outside": penalty_outside, "penalty inside": penalty_inside}


def share(rank: int) -> Tensor:
    """This process's part of the batch."""
    return IMAGES.chunk(RANKS)[rank]


def seeded(step: Step, images: Tensor, progress: float, seed: int = 5) -> Tensor:
    """The loss, with the same draws of the gates in every process, if they are drawn."""
    torch.manual_seed(seed)
    return step(images, progress)


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def assert_same_gradients(found: nn.Module, wanted: nn.Module) -> None:
    """Close to seven digits; what has no part in the loss has no gradient, or one of zeros."""
    for (name, a), b in zip(found.named_parameters(), wanted.parameters(), strict=True):
        zeros = torch.zeros_like(b)
        a_grad, b_grad = (zeros if p.grad is None else whole(p.grad) for p in (a, b))
        torch.testing.assert_close(a_grad, b_grad, msg=lambda text, name=name: f"gradient of {name}: {text}")
    assert sum(p.grad is not None and bool((whole(p.grad) != 0).any()) for p in found.parameters()) > 20


def assert_same_states(found: nn.Module, wanted: nn.Module) -> None:
    for (name, a), b in zip(found.named_parameters(), wanted.parameters(), strict=True):
        torch.testing.assert_close(whole(a), b, msg=lambda text, name=name: f"{name}: {text}")
    for (name, a), b in zip(found.named_buffers(), wanted.buffers(), strict=True):
        assert torch.equal(a, b), name


def assert_equal_everywhere(state: dict[str, Any]) -> None:
    """All processes hold the same tensors, bit for bit."""
    states: list[Any] = [None] * RANKS
    dist.all_gather_object(states, state)
    assert states[0].keys() == states[1].keys()
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key]), key


# DistributedDataParallel: gradients


def check_gradients(rank: int, make: Make, way: Callable[..., Step], closed: str, **options: Any) -> None:
    alone, wrapper = make(), make()
    close_(alone, closed)
    close_(wrapper, closed)
    step = way(wrapper, **options)
    for progress in (0.05, 0.2):  # a second step also shows whether the first has left anything undone
        seeded(Losses(alone), IMAGES, progress).backward()
        seeded(step, share(rank), progress).backward()
        assert_same_gradients(wrapper, alone)
        alone.zero_grad()
        wrapper.zero_grad()


def in_turn(*columns: Iterable[Any]) -> list[Any]:
    """All combinations, every second one of them slow: each value is in others that are not."""
    numbered = product(*map(enumerate, columns))
    rows = [tuple(zip(*row, strict=True)) for row in numbered]
    return [pytest.param(*values, marks=[pytest.mark.slow] * (sum(numbers) % 2)) for numbers, values in rows]


@pytest.mark.parametrize("make, way", in_turn(MAKES, WAYS))
def test_gradients_are_those_of_one_process_while_every_edge_is_open(processes, make, way):
    """No option is needed."""
    processes.run(partial(check_gradients, make=MAKES[make], way=WAYS[way], closed="none"))


@pytest.mark.parametrize("make, closed, way", in_turn(CLOSING, ["half", "all"], WAYS))
def test_closed_edges_need_find_unused_parameters(processes, make, closed, way):
    check = partial(check_gradients, make=CLOSING[make], way=WAYS[way], closed=closed)
    processes.run(partial(check, find_unused_parameters=True))


@pytest.mark.parametrize("closed", ["half", "all"])
def test_a_static_graph_is_right_for_edges_that_stay_as_they_are(processes, closed):
    processes.run(partial(check_gradients, make=pair, way=penalty_outside, closed=closed, static_graph=True))


def check_without_the_option(rank: int) -> None:
    wrapper = pair()
    step = penalty_outside(wrapper)
    step(share(rank), 0.0).backward()
    wrapper.close_aux_to_primary_()
    step(share(rank), 0.0).backward()
    with pytest.raises(RuntimeError, match="find_unused_parameters=True"):
        step(share(rank), 0.0)


def test_without_the_option_torch_refuses_the_second_step_after_an_edge_has_closed(processes):
    processes.run(check_without_the_option)


def check_resumed_with_the_penalty_first(rank: int) -> None:
    closed = pair()
    closed.close_aux_to_primary_()
    wrapper = pair()
    wrapper.load_state_dict(closed.state_dict())  # so that no forward has told yet that the gates are closed
    ddp = DistributedDataParallel(wrapper, find_unused_parameters=True)
    for _ in range(2):
        penalty = wrapper.search_penalty(0.2)
        (task_losses(ddp(share(rank))) + penalty).backward()


def check_loaded_by_one_process(rank: int) -> None:
    wrapper = pair(search=AuxG())
    wrapper(share(rank))
    if rank == 0:
        for gate in wrapper.gates.values():
            gate.set_([0.5] + [0.0] * (len(gate.closed) - 1))
    DistributedDataParallel(wrapper)  # hands the buffers of the first process to the others, which torch does not count
    assert [edge.open for edge in wrapper.architecture()].count(True) == 1
    assert len(wrapper.gates.now()) == 1


@pytest.mark.parametrize("check", [check_resumed_with_the_penalty_first, check_loaded_by_one_process])
def test_gates_that_a_state_has_set_are_known_in_every_process(processes, check):
    processes.run(check)


def check_lazy(rank: int) -> None:
    wrapper = AuxNASWrapper(UNet(), Vit(), TAPS)
    with pytest.raises(RuntimeError, match="uninitialized"):
        DistributedDataParallel(wrapper)
    wrapper(IMAGES.float()[:2])
    penalty_outside(wrapper)(share(rank).float(), 0.0).backward()


def test_edges_must_have_been_sized_before(processes):
    processes.run(check_lazy)


# DistributedDataParallel: training


def optimisers(wrapper: AuxNASWrapper) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    """The two of the README; the weights' one without a root, under which small differences grow."""
    weights = torch.optim.SGD(wrapper.weight_parameters(), lr=1e-2, momentum=0.9)
    return weights, torch.optim.SGD([{"params": wrapper.arch_parameters()}], lr=1e-2)


def train(wrapper: AuxNASWrapper, step: Step, images: Tensor, seed: int = 5) -> Iterator[None]:
    pair_of_optimisers = optimisers(wrapper)
    for progress in PROGRESS:
        loss = seeded(step, images, progress, seed)
        for optimiser in pair_of_optimisers:
            optimiser.zero_grad()
        loss.backward()
        for optimiser in pair_of_optimisers:
            optimiser.step()
        yield


def check_training(rank: int, make: Make, way: Callable[..., Step], export: bool, **options: Any) -> None:
    alone, wrapper = make(), make()
    step = way(wrapper, **options)
    for _ in zip(train(alone, Losses(alone), IMAGES), train(wrapper, step, share(rank)), strict=True):
        assert_same_states(wrapper, alone)
        assert_equal_everywhere(wrapper.gates.state_dict())
    assert_equal_everywhere(wrapper.state_dict())
    if export:
        net = wrapper.eval().export_primary(IMAGES)
        assert wrapper.export_report.exact
        assert_equal_everywhere(net.state_dict())
        assert torch.equal(net(IMAGES), wrapper(IMAGES).primary)


TRAINING = {
    "AuxNAS": (pair, True),
    "AuxNAS with all gates searched": (MAKES["AuxNAS with all gates searched"], True),
    "two auxiliaries": (three, True),
    "AuxG": (MAKES["AuxG"], True),
    "MTLNAS": (MAKES["MTLNAS"], False),
}


@pytest.mark.parametrize(
    "make", [pytest.param(make, marks=[pytest.mark.slow] * (make in ("AuxNAS", "AuxG"))) for make in TRAINING]
)
def test_training_over_the_closing_is_that_of_one_process(processes, make):
    wrapper, export = TRAINING[make]
    check = partial(check_training, make=wrapper, way=penalty_inside, export=export)
    processes.run(partial(check, find_unused_parameters=True))


def test_gates_stay_equal_where_buffers_are_not_broadcast(processes):
    """The flags of closed gates follow from the gates, which are equal, since their gradients are."""
    names = signature(DistributedDataParallel).parameters
    option = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"  # its newer name first
    check = partial(check_training, make=pair, way=penalty_inside, export=True)
    processes.run(partial(check, find_unused_parameters=True, **{option: False}))


def test_training_with_the_penalty_outside_is_that_of_one_process(processes):
    check = partial(check_training, make=pair, way=penalty_outside, export=True)
    processes.run(partial(check, find_unused_parameters=True))


def check_other_draws(rank: int) -> None:
    wrapper = pair(search=MTLNAS(gate=RelaxedBernoulliGate), fusion=nddr)
    for _ in train(wrapper, penalty_outside(wrapper), share(rank), seed=rank):
        assert_equal_everywhere(wrapper.state_dict())
    wrapper.discretize_()
    assert_equal_everywhere(wrapper.export_multitask(IMAGES).state_dict())


def test_gates_stay_equal_where_each_process_draws_its_own(processes):
    processes.run(check_other_draws)


# DistributedDataParallel: weights and gates in turn


def gate_step_whole(wrapper: AuxNASWrapper, ddp: DistributedDataParallel, loss_of_step: Step, images: Tensor) -> None:
    """Through the whole backward; what the weights got is thrown away at the next zero_grad."""
    loss_of_step(images, 0.05).backward()


def gate_step_alone(wrapper: AuxNASWrapper, ddp: DistributedDataParallel, loss_of_step: Step, images: Tensor) -> None:
    """No gradients of weights; the few ones of the gates are averaged by hand, since the weights' would be missed."""
    gates = list(wrapper.arch_parameters())
    with ddp.no_sync():
        loss_of_step(images, 0.05).backward(inputs=gates)
    for gate in gates:
        dist.all_reduce(gate.grad)
        gate.grad /= RANKS


def take_turns(wrapper: AuxNASWrapper, weight_step: Step, gate_step: Callable[[Tensor], None], images: Tensor) -> None:
    weights, gates = optimisers(wrapper)
    for turn in range(4):
        wrapper.zero_grad()
        part = images.flip(-1) if turn % 2 else images  # other data in the two steps
        if turn % 2:
            gate_step(part)
            gates.step()
        else:
            weight_step(part, 0.05).backward()
            weights.step()


def check_turns(rank: int, gate_step: Callable[..., None], **options: Any) -> None:
    alone, wrapper = pair(), pair()
    ddp = DistributedDataParallel(wrapper, **options)

    def step(images: Tensor, progress: float) -> Tensor:
        return task_losses(ddp(images)) + wrapper.search_penalty(progress)

    def step_alone(images: Tensor) -> None:
        Losses(alone)(images, 0.05).backward(inputs=list(alone.arch_parameters()))

    take_turns(alone, Losses(alone), step_alone, IMAGES)
    take_turns(wrapper, step, partial(gate_step, wrapper, ddp, step), share(rank))
    assert_same_states(wrapper, alone)
    assert_equal_everywhere(wrapper.state_dict())


@pytest.mark.parametrize(
    "gate_step, options", in_turn([gate_step_whole, gate_step_alone], [{}, {"find_unused_parameters": True}])
)
def test_weights_and_gates_can_be_trained_in_turn(processes, gate_step, options):
    processes.run(partial(check_turns, gate_step=gate_step, **options))


def check_inputs(rank: int) -> None:
    wrapper = pair()
    ddp = DistributedDataParallel(wrapper)
    loss_of(ddp(share(rank)).primary).backward(inputs=list(wrapper.arch_parameters()))
    gradients: list[Any] = [None] * RANKS
    dist.all_gather_object(gradients, wrapper.gates["aux_to_primary"].alpha.grad)
    assert not torch.equal(*gradients)
    with pytest.raises(RuntimeError, match="finished reduction"):
        ddp(share(rank))


def test_backward_to_the_gates_alone_needs_no_sync(processes):
    """Otherwise torch waits for the weights' gradients, and leaves the gates' of each process as they are."""
    processes.run(check_inputs)


# DistributedDataParallel: the stop rule


def check_rule(rank: int) -> None:
    """Other samples, and not as many held-out batches, in each process."""
    wrapper, sign = three(), torch.ones(4, dtype=torch.float64)
    ddp = DistributedDataParallel(Losses(wrapper), find_unused_parameters=True)

    def loss(output: Tensor, batch: Any) -> Tensor:
        return (output.flatten(1).square().mean(1) * batch[1]).mean()

    held_out = [(IMAGES[i : i + 4], sign) for i in range(1 + 2 * rank)]
    losses = {"parts": loss, "depth": loss}
    rule = StopRule(wrapper, held_out, primary_loss=loss, aux_loss=losses, explains=None)
    optimiser = torch.optim.SGD(wrapper.parameters(), lr=1e-3)
    for step in range(40):
        rule.step(step / 40, (share(rank), sign))
        optimiser.zero_grad()
        ddp(share(rank), 0.1).backward()
        optimiser.step()
        states: list[Any] = [None] * RANKS
        dist.all_gather_object(states, rule.state_dict())
        assert states[0] == states[1]
    assert {len(found) for found in rule.alignment.cosines.values()} == {20}
    assert_equal_everywhere(wrapper.state_dict())


def test_the_stop_rule_measures_the_same_in_every_process(processes):
    processes.run(check_rule)


def check_verdicts(rank: int) -> None:
    """The first process alone would let the auxiliary go on; the primary then goes on in a DDP of its own."""
    wrapper = pair()
    x, labels = share(rank), torch.tensor([0.0, 1.0, 2.0, 3.0], dtype=torch.float64)

    def aux_loss(output: Tensor, batch: Any) -> Tensor:  # a share of 0.3 in the first process, of -0.2 in the other
        own = torch.equal(batch[1], labels)
        return output.mean() * 0 + (((0.7, 1.2)[rank] if own else 1.0) if not output.requires_grad else output.mean())

    options: dict[str, Any] = {"primary_loss": lambda output, batch: output.square().mean(), "aux_loss": aux_loss}
    rule = StopRule(wrapper, [(x, labels)], explains=0.1, **options)
    net: nn.Module = DistributedDataParallel(wrapper, find_unused_parameters=True)
    for step in range(12):
        if not rule.step(step / 40, (x, labels)) and net.module is wrapper:
            net = DistributedDataParallel(wrapper.primary_net)
        wrapper.zero_grad()
        loss_of(net(x)).backward()
        assert_equal_everywhere({n: p.grad for n, p in wrapper.primary_net.named_parameters() if p.grad is not None})
    assert rule.verdicts["aux"].stopped_at == 0.2 and rule.explained["aux"] == [pytest.approx(0.05)] * 4
    assert net.module is wrapper.primary_net
    assert wrapper.eval().export_primary(IMAGES) is not None


def test_the_stop_rule_decides_by_what_all_processes_have_measured(processes):
    processes.run(check_verdicts)


# Sharded networks (FSDP2): the gates stay whole, since the search looks at them and sets them outside any forward


def shard_net_(net: nn.Module) -> None:
    """Its blocks, and the rest of it."""
    blocks = net.blocks if isinstance(net, Vit) else [net.down, net.middle, net.up]
    for module in (*blocks, net):
        fully_shard(module, mesh=init_device_mesh("cpu", (RANKS,)))


def shard_nets_(wrapper: AuxNASWrapper) -> None:
    auxes = wrapper.aux_net.values() if isinstance(wrapper.aux_net, nn.ModuleDict) else [wrapper.aux_net]
    for net in (wrapper.primary_net, *auxes):
        shard_net_(net)


def shard_(wrapper: AuxNASWrapper) -> None:
    """The networks, and the wrapper with the weights of its edges, but not its gates."""
    shard_nets_(wrapper)
    fully_shard(wrapper, mesh=init_device_mesh("cpu", (RANKS,)), ignored_params=set(wrapper.arch_parameters()))
    assert sum(isinstance(p, DTensor) for p in wrapper.parameters()) == len(list(wrapper.weight_parameters()))


def average_whole_gradients_(wrapper: AuxNASWrapper) -> None:
    """Of what is not sharded."""
    for parameter in wrapper.parameters():
        if parameter.grad is not None and not isinstance(parameter, DTensor):
            dist.all_reduce(parameter.grad)
            parameter.grad /= RANKS


def assert_sharded_training(rank: int, wrapper: AuxNASWrapper, alone: AuxNASWrapper) -> None:
    """Over all of the closing, one step after the other as in one process, and the same primary comes out."""
    pairs = optimisers(wrapper), optimisers(alone)
    for progress in PROGRESS:
        wrapper.zero_grad()
        alone.zero_grad()
        Losses(alone)(IMAGES, progress).backward()
        (task_losses(wrapper(share(rank))) + wrapper.search_penalty(progress)).backward()
        average_whole_gradients_(wrapper)
        assert_same_gradients(wrapper, alone)
        for optimiser in (optimiser for both in pairs for optimiser in both):
            optimiser.step()
        assert_same_states(wrapper, alone)
        assert_equal_everywhere(wrapper.gates.state_dict())
    state = get_model_state_dict(wrapper.primary_net, options=StateDictOptions(full_state_dict=True))
    assert_takes_out(rank, wrapper.eval(), state)


def assert_takes_out(rank: int, wrapper: AuxNASWrapper, state: dict[str, Any]) -> None:
    with pytest.raises(ExportError, match="is sharded over several processes"):
        wrapper.export_primary()
    served = wrapper(IMAGES).primary  # all processes take part
    if rank == 0:  # which alone gets the whole state
        net = UNet().double()
        net.load_state_dict(state)
        assert torch.equal(net(IMAGES), served)


def check_sharded_after(rank: int) -> None:
    alone, wrapper = pair(), pair()
    shard_(wrapper)
    assert_sharded_training(rank, wrapper, alone)


def check_sharded_before(rank: int) -> None:
    alone = pair()
    torch.manual_seed(0)
    primary, aux = UNet().double(), Vit().double()
    shard_net_(primary), shard_net_(aux)
    wrapper = AuxNASWrapper(primary, aux, TAPS, example_inputs=IMAGES[:2])
    primary.reshard(), aux.reshard()  # the trial call has gathered their parameters, and optimisers want the shards
    wrapper.fusions.load_state_dict(alone.fusions.state_dict())
    assert not any(isinstance(p, DTensor) for p in wrapper.fusion_parameters())
    assert_sharded_training(rank, wrapper, alone)


@pytest.mark.parametrize("check", [check_sharded_after, check_sharded_before])
def test_training_of_sharded_networks_is_that_of_one_process(processes, check):
    processes.run(check)


def check_sharded_gradients(rank: int, make: Make, closed: str) -> None:
    alone, wrapper = make(), make()
    close_(alone, closed)
    close_(wrapper, closed)
    shard_(wrapper)
    for progress in (0.05, 0.2):
        seeded(Losses(alone), IMAGES, progress).backward()
        torch.manual_seed(5)
        (task_losses(wrapper(share(rank))) + wrapper.search_penalty(progress)).backward()
        average_whole_gradients_(wrapper)
        assert_same_gradients(wrapper, alone)
        alone.zero_grad()
        wrapper.zero_grad()


@pytest.mark.parametrize(
    ("make", "closed"),
    [
        ("AuxNAS", "half"),
        ("MTLNAS", "none"),
        *(pytest.param(*row, marks=pytest.mark.slow) for row in [("AuxNAS", "all"), ("AuxG", "none")]),
        pytest.param("two auxiliaries", "half", marks=pytest.mark.slow),
    ],
)
def test_gradients_of_sharded_networks_are_those_of_one_process(processes, make, closed):
    processes.run(partial(check_sharded_gradients, make=MAKES[make], closed=closed))


def check_sharded_gates(rank: int) -> None:
    wrapper = pair()
    shard_nets_(wrapper)
    fully_shard(wrapper, mesh=init_device_mesh("cpu", (RANKS,)))
    with pytest.raises(RuntimeError, match="mixed torch.Tensor and DTensor"):
        wrapper.search_penalty(0.0)


def test_gates_that_are_sharded_too_are_refused_by_torch(processes):
    processes.run(check_sharded_gates)


# The example


EXAMPLE = str(ROOT / "examples" / "torchrun.py")


def run_example(rank: int, port: int) -> None:
    """As `torch.distributed.run` does, but in a process that has imported torch."""
    dist.destroy_process_group()
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": RANKS, "LOCAL_WORLD_SIZE": RANKS}
    os.environ.update({name: str(number) for name, number in ranks.items()}, MASTER_ADDR="localhost", MASTER_PORT=port)
    sys.argv = [EXAMPLE, "--fast"]
    with redirect_stdout(io.StringIO()) as printed, pytest.raises(SystemExit) as end:
        runpy.run_path(EXAMPLE, run_name="__main__")
    assert not end.value.code
    assert_proofs(printed.getvalue()) if rank == 0 else None


def assert_proofs(printed: str) -> None:
    assert printed.count(": True") == 3 and printed.count("closed\n") == 3


def test_the_example_runs(processes):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    processes.run(partial(run_example, port=port))


@pytest.mark.slow
def test_the_example_runs_by_its_command():
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(RANKS)]
    command += [EXAMPLE, "--fast"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=2 * LIMIT)
    assert done.returncode == 0, done.stderr
    assert_proofs(done.stdout)
