"""Losses over the samples whose labels are known, and batches in parts."""

import copy
from functools import partial

import pytest
import torch
import torch.distributed as dist
from helpers import assert_same, gradients, loss_of, refuses
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import binary_cross_entropy, cosine_similarity, cross_entropy, l1_loss, mse_loss
from torch.nn.parallel import DistributedDataParallel
from zoo import Cnn, Hidden, Pair, Record

from auxnas_layers import AuxG, AuxNASWrapper, LabelError, known, split_batch

MISSING = {"float": float("nan"), "integer": -100}


def gradient(loss, *outputs):
    loss.backward()
    return [output.grad for output in outputs]


def leaf(*shape, dtype=torch.float32):
    return torch.randn(*shape).to(dtype).requires_grad_()


# Whole samples


@given(where=st.lists(st.booleans(), min_size=1, max_size=8), given_as=st.sampled_from(["float", "integer", "where"]))
def test_of_whole_samples_it_is_the_loss_of_a_slice_bit_for_bit(where, given_as):
    torch.manual_seed(0)
    mask = torch.tensor(where)
    outputs = leaf(len(where), 3)
    loss = cross_entropy if given_as == "integer" else mse_loss
    targets = torch.randint(3, mask.shape) if given_as == "integer" else torch.randn(len(where), 3)
    if given_as == "where":
        found = known(loss, outputs, targets, where=mask)
    else:
        found = known(
            loss, outputs, targets.masked_fill(~mask if targets.dim() == 1 else ~mask[:, None], MISSING[given_as])
        )
    sliced = outputs.detach().clone().requires_grad_()
    if mask.any():
        expected = loss(sliced[mask], targets[mask])
        assert torch.equal(found, expected)
        assert torch.equal(*gradient(found, outputs), *gradient(expected, sliced))
    else:
        assert found.shape == () and found == 0
        assert torch.equal(*gradient(found, outputs), torch.zeros_like(outputs))


def test_any_loss_of_whole_samples_will_do():
    """One that is no mean of elements, over a dense map."""
    outputs, targets = leaf(4, 3, 5, 5), torch.randn(4, 3, 5, 5)
    targets[1] = float("nan")
    rows = torch.tensor([0, 2, 3])

    def angle(outputs, targets):
        return 1 - cosine_similarity(outputs, targets, dim=1).mean()

    assert torch.equal(known(angle, outputs, targets), angle(outputs[rows], targets[rows]))


def test_where_overrides_what_the_labels_say():
    outputs, targets = leaf(3), torch.tensor([1.0, float("nan"), 3.0])
    found = known(l1_loss, outputs, targets, where=torch.tensor([True, False, False]))
    assert torch.equal(found, l1_loss(outputs[:1], targets[:1]))
    assert known(l1_loss, outputs, targets, where=torch.tensor([True, True, False])).isnan()


def test_where_may_have_the_shape_of_the_labels():
    outputs, targets = leaf(2, 3), torch.randn(2, 3)
    where = torch.tensor([[True, False, True], [False, False, False]])
    assert torch.equal(known(l1_loss, outputs, targets, where=where), l1_loss(outputs[where], targets[where]))


def test_labels_of_another_integer_type_or_marked_otherwise():
    outputs = leaf(3, 4)
    targets = torch.tensor([1, 255, 2])
    rows = torch.tensor([0, 2])
    assert torch.equal(
        known(cross_entropy, outputs, targets, ignore_index=255), cross_entropy(outputs[rows], targets[rows])
    )
    bytes_ = torch.tensor([156, 1, 2], dtype=torch.uint8)  # 156 is -100 there, which no label means
    assert known(lambda outputs, targets: targets.sum(), outputs, bytes_) == 159
    flags = torch.tensor([True, False, True])
    assert known(lambda outputs, targets: targets.sum(), outputs, flags) == 2


@pytest.mark.parametrize(
    "pack",
    [
        lambda x: (x, 7),
        lambda x: Pair(x, 7),
        lambda x: Record(x),
        lambda x: Hidden(feature=x, mask=torch.ones(1)),
        lambda x: {"logits": [x], "anchors": torch.ones(9, 4), "scale": torch.ones(())},
    ],
)
def test_outputs_may_be_nested(pack):
    x, targets = leaf(4, 3), torch.tensor([0, -100, 2, -100])
    seen = []
    known(lambda outputs, targets: seen.append((outputs, targets)), pack(x), targets)
    ((outputs, labels),) = seen
    assert_same(outputs, pack(x[[0, 2]]))
    assert labels.tolist() == [0, 2]
    nothing = known(loss_of, pack(x), torch.full((4,), -100))
    assert nothing == 0 and torch.equal(*gradient(nothing, x), torch.zeros_like(x))


def test_labels_may_be_nested_if_it_says_where():
    outputs, boxes, classes = leaf(3, 4), torch.randn(3, 4), torch.tensor([1, 0, 2])
    where = torch.tensor([False, True, True])
    found = known(
        lambda o, t: l1_loss(o, t["boxes"]) + t["classes"].sum(),
        outputs,
        {"boxes": boxes, "classes": classes},
        where=where,
    )
    assert torch.equal(found, l1_loss(outputs[1:], boxes[1:]) + 2)


def test_where_all_is_known_the_loss_gets_what_was_given():
    outputs, targets, seen = leaf(3), torch.randn(3), []
    known(lambda *found: seen.extend(found), outputs, targets)
    assert seen[0] is outputs and seen[1] is targets


# Holes within samples


def test_elements_are_selected_from_outputs_of_the_shape_of_the_labels():
    outputs, targets = leaf(2, 4, 4), torch.rand(2, 4, 4)
    there = torch.rand(2, 4, 4) < 0.5
    found = known(l1_loss, outputs, targets.masked_fill(~there, float("nan")))
    assert torch.equal(found, l1_loss(outputs[there], targets[there]))
    assert torch.equal(*gradient(found, outputs), torch.where(there, (outputs - targets).sign() / there.sum(), 0.0))


def test_integers_of_the_shape_of_the_outputs_are_selected_too():
    """Here no loss of torch's would skip -100."""
    outputs, targets = torch.rand(2, 3, requires_grad=True), torch.tensor([[1, 0, -100], [0, -100, 1]])
    there = targets >= 0
    found = known(lambda o, t: binary_cross_entropy(o, t.float()), outputs, targets)
    assert torch.equal(found, binary_cross_entropy(outputs[there], targets[there].float()))


@pytest.mark.parametrize("ignore_index", [-100, 255])
def test_of_classes_the_loss_gets_all_samples_with_a_label_and_skips_the_rest(ignore_index):
    outputs, targets = leaf(3, 5, 4), torch.randint(5, (3, 4))
    targets[0, 1], targets[1] = ignore_index, ignore_index
    loss = partial(cross_entropy, ignore_index=ignore_index)
    found = known(loss, outputs, targets, ignore_index=ignore_index)
    rows, there = outputs.movedim(1, -1)[targets != ignore_index], targets[targets != ignore_index]
    torch.testing.assert_close(found, cross_entropy(rows, there))
    (gradients,) = gradient(found, outputs)
    assert not gradients[1].any() and not gradients[0, :, 1].any() and gradients[0, :, 0].all()


def test_classes_that_where_leaves_out_are_marked_for_the_loss():
    outputs, targets = leaf(2, 5, 3), torch.randint(5, (2, 3))
    where = torch.tensor([[True, False, True], [True, True, True]])
    before = targets.clone()
    found = known(cross_entropy, outputs, targets, where=where)
    torch.testing.assert_close(found, cross_entropy(outputs.movedim(1, -1)[where], targets[where]))
    assert torch.equal(targets, before)


# Nothing known, other precisions


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_nothing_known_is_a_zero_that_depends_on_the_outputs_even_on_infinite_ones(dtype):
    net = nn.Linear(2, 3).to(dtype)
    net.bias.data[0] = float("inf")
    outputs = net(torch.ones(4, 2, dtype=dtype))
    found = known(mse_loss, outputs, torch.full((4, 3), float("nan")))
    assert found == 0 and found.dtype == dtype
    found.backward()
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in net.parameters())


@pytest.mark.parametrize("all_parameters", [True, False])
def test_a_step_with_nothing_known_uses_all_parameters_as_distributed_training_needs(all_parameters):
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        wrapper = AuxNASWrapper(Cnn(), Cnn(), ["layer1"], search=AuxG(), example_inputs=torch.ones(2, 3, 8, 8))
        ddp, labels = DistributedDataParallel(wrapper), torch.full((2, 4, 4), -100)
        for _ in range(2):
            out = ddp(torch.randn(2, 3, 8, 8))
            primary_loss = known(cross_entropy, out.primary, labels) if all_parameters else 0
            (primary_loss + out.aux.square().mean()).backward()
        assert all_parameters and all(p.grad is not None for p in wrapper.weight_parameters())
    except RuntimeError as error:
        assert not all_parameters and "did not receive" in str(error)
    finally:
        dist.destroy_process_group()


def test_nothing_known_of_complex_outputs_is_a_real_zero():
    found = known(mse_loss, leaf(2, dtype=torch.complex64), torch.full((2,), float("nan")))
    assert found == 0 and found.dtype == torch.float32 and found.requires_grad


@pytest.mark.parametrize("shape", [(0,), (0, 3), (0, 3, 4)])
def test_an_empty_batch_has_nothing_known(shape):
    outputs = leaf(*shape)
    for targets in (torch.zeros(shape), torch.zeros(shape, dtype=torch.long)):
        assert known(mse_loss, outputs, targets) == 0
        assert known(mse_loss, outputs, targets, where=torch.zeros(0, dtype=torch.bool)) == 0
    assert known(mse_loss, outputs, torch.zeros(shape)).requires_grad


def test_samples_without_any_place_for_a_label_are_not_known():
    assert known(mse_loss, leaf(2, 0), torch.zeros(2, 0)) == 0


def test_under_autocast_it_is_the_loss_of_a_slice():
    net, x, targets = nn.Linear(4, 3), torch.randn(5, 4), torch.tensor([0, -100, 2, 1, -100])
    rows = [0, 2, 3]
    with torch.autocast("cpu", torch.bfloat16):
        outputs = net(x)
        found, expected = known(cross_entropy, outputs, targets), cross_entropy(outputs[rows], targets[rows])
        nothing = known(cross_entropy, outputs, torch.full((5,), -100))
    assert outputs.dtype == torch.bfloat16 and torch.equal(found, expected)
    assert (found + nothing).dtype == found.dtype


def test_each_of_several_auxiliaries_has_its_own_known_samples():
    wrapper = AuxNASWrapper(
        Cnn(),
        {"depth": Cnn(), "parts": Cnn()},
        {"depth": ["layer1"], "parts": ["layer2"]},
        example_inputs=torch.ones(2, 3, 8, 8),
    )
    out = wrapper(torch.randn(4, 3, 8, 8))
    labels = {"depth": torch.randn(4, 2, 4, 4), "parts": torch.randint(2, (4, 4, 4))}
    labels["depth"][:2], labels["parts"][3] = float("nan"), -100
    found = known(l1_loss, out.aux["depth"], labels["depth"]) + known(cross_entropy, out.aux["parts"], labels["parts"])
    expected = l1_loss(out.aux["depth"][2:], labels["depth"][2:]) + cross_entropy(
        out.aux["parts"][:3], labels["parts"][:3]
    )
    assert torch.equal(found, expected)


# Parts of a batch, each with a forward of its own


def test_a_batch_is_split_into_its_labelled_samples_and_the_others():
    where = torch.tensor([False, True, True, False, False])
    images, labels = torch.arange(10.0).view(5, 2), Hidden(depth=torch.arange(5), classes=(torch.arange(5), "kept"))
    (a, b), (c, d) = split_batch(where, images, labels)
    assert_same([a, b], [images[1:3], Hidden(depth=torch.tensor([1, 2]), classes=(torch.tensor([1, 2]), "kept"))])
    assert_same(
        [c, d], [images[[0, 3, 4]], Hidden(depth=torch.tensor([0, 3, 4]), classes=(torch.tensor([0, 3, 4]), "kept"))]
    )


@pytest.mark.parametrize("labelled", [True, False])
def test_an_empty_part_is_left_out(labelled):
    images = torch.randn(3, 2)
    ((found,),) = split_batch(torch.full((3,), labelled), images)
    assert found is images
    assert split_batch(torch.zeros(0, dtype=torch.bool), images[:0]) == []


@given(where=st.lists(st.booleans(), min_size=1, max_size=6))
def test_both_ways_have_the_same_mean(where):
    """A joined batch, or a forward for each part: the losses and gradients of networks without batch norm."""
    torch.manual_seed(0)
    mask = torch.tensor(where)
    nets = [nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)) for _ in range(2)]
    joined = AuxNASWrapper(*nets, ["0"], example_inputs=torch.ones(2, 3)).double()
    parts = copy.deepcopy(joined)
    inputs, labels, depths = torch.randn(3, len(where), 3, dtype=torch.double).unbind()
    labels, depths = labels[:, :2].masked_fill(~mask[:, None], float("nan")), depths[:, :2]
    out = joined(inputs)
    (known(mse_loss, out.primary, labels) + 3 * mse_loss(out.aux, depths)).backward()
    for some_inputs, some_labels, some_depths in split_batch(mask, inputs, labels, depths):
        out = parts(some_inputs)
        share = len(some_inputs) / len(inputs)
        (known(mse_loss, out.primary, some_labels) + 3 * share * mse_loss(out.aux, some_depths)).backward()
    found = gradients(parts)
    for name, expected in gradients(joined).items():
        assert (expected is None) == (found[name] is None), name
        if expected is not None:
            torch.testing.assert_close(found[name], expected)


# Errors


def refuses_known(message, *args, **kwargs):
    refuses(LabelError, message, known, l1_loss, *args, **kwargs)


def test_what_is_wrong_with_labels_is_said_with_what_to_type():
    outputs, holes = torch.randn(2, 1, 3), torch.tensor([[1.0, float("nan"), 2.0], [1.0, 2.0, 3.0]])
    refuses_known(
        "some samples have labels for some places only, and outputs of shape (2, 1, 3) have no element for each label "
        "of targets of shape (2, 3); give outputs of that shape, such as outputs.squeeze(1), or where=, a boolean mask "
        "of shape (2,), if the loss itself skips what is missing",
        outputs,
        holes,
    )
    refuses_known(
        "some samples have labels for some places only, and outputs of type dict have no element for each label of "
        "targets of shape (2, 3); give outputs of that shape, such as outputs.squeeze(1), or where=, a boolean mask "
        "of shape (2,), if the loss itself skips what is missing",
        {"x": outputs},
        holes,
    )
    for where in (torch.ones(3, dtype=torch.bool), torch.ones(2, 1, dtype=torch.bool), torch.ones(2), [True, False]):
        found = f"{where.dtype} of shape {tuple(where.shape)}" if isinstance(where, torch.Tensor) else "list"
        refuses_known(
            "where is a boolean tensor of shape (2,), one for each sample, or of shape (2, 3), as the targets; "
            f"found {found}",
            torch.randn(2, 3),
            holes,
            where=where,
        )
    refuses_known(
        "nested targets do not tell which samples are known; give where=, a boolean mask of shape (samples,)",
        outputs,
        {"depth": holes},
    )
    refuses_known("targets are (samples, ...); found a tensor without dimensions", outputs, torch.ones(()))
    refuses_known(
        "outputs have no tensor with 2 samples in dimension 0; found shapes [(3, 2)]",
        torch.randn(3, 2),
        torch.tensor([1.0, float("nan")]),
    )
    refuses_known(
        "outputs have no floating-point tensor, on which a loss could depend; found shapes [(2,)]",
        torch.ones(2, dtype=torch.long),
        torch.full((2,), float("nan")),
    )
    with pytest.raises(
        LabelError, match=r"^targets of torch.uint8 cannot hold ignore_index=-100; .* targets.long\(\)$"
    ):
        known(cross_entropy, leaf(1, 3, 2), torch.zeros(1, 2, dtype=torch.uint8), where=torch.tensor([[True, False]]))


def test_what_is_wrong_with_a_split_is_said_with_what_to_type():
    where = torch.tensor([True, False])
    refuses(
        LabelError,
        "all tensors to split have 2 samples in dimension 0, as where has; found shapes [(2, 3), (3,)]",
        split_batch,
        where,
        torch.ones(2, 3),
        (torch.ones(3),),
    )
    refuses(
        LabelError,
        "where is a boolean tensor of shape (samples,); found torch.int64 of shape (2,)",
        split_batch,
        torch.tensor([0, 1]),
        torch.ones(2, 3),
    )
    refuses(
        LabelError,
        "values have no tensor with 2 samples in dimension 0; found shapes []",
        split_batch,
        where,
        torch.ones(2, 3),
        ["a.png", "b.png"],
    )
