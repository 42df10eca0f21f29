"""Alignment, against nested loops over plain numbers."""

import itertools
import math
import re
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from auxnas_layers import LayoutError
from auxnas_layers.features import Layout, align
from auxnas_layers.features.align import check_alignable

B, C = ("b",), ("c",)

# The loops to compare with


@dataclass(frozen=True)
class Shaped:
    """A layout as data, with the size of every axis."""

    dims: tuple[tuple[str, ...], ...]
    sizes: dict[str, int]
    extra: int = 0

    @property
    def text(self):
        words = [" ".join(group) for group in self.dims]
        grouped = [len(group) > 1 or (self.extra and group not in (B, C)) for group in self.dims]
        plus = f"{self.extra}+" if self.extra else ""
        return " ".join(f"{plus}({word})" if is_group else word for word, is_group in zip(words, grouped, strict=True))

    @property
    def places(self):
        return [axis for group in self.dims for axis in group if axis not in ("b", "c")]

    @property
    def shape(self):
        extras = [0 if group in (B, C) else self.extra for group in self.dims]
        sizes = [math.prod(self.sizes[axis] for axis in group) for group in self.dims]
        return tuple(size + extra for size, extra in zip(sizes, extras, strict=True))

    def at(self, index):
        """Where in the tensor the entry with these indices of the axes is."""
        position = []
        for group in self.dims:
            flat = 0
            for axis in group:
                flat = flat * self.sizes[axis] + index[axis]
            position.append(flat if group in (B, C) else flat + self.extra)
        return tuple(position)

    def token(self, b, c, number):
        """Where an extra token is."""
        return tuple(b if group == B else c if group == C else number for group in self.dims)


def weights(old, new):
    """For each new place of an axis, which old places it is made of, and with what weights."""
    if old == new:
        return [[(i, 1.0)] for i in range(new)]
    rows = []
    for i in range(new):
        if new < old:
            first, last = i * old // new, -(-(i + 1) * old // new)
            rows.append([(j, 1 / (last - first)) for j in range(first, last)])
        else:
            at = max((i + 0.5) * old / new - 0.5, 0.0)
            j = min(int(at), old - 1)
            rows.append([(j, 1 - (at - j)), (min(j + 1, old - 1), at - j)])
    return rows


def partners(source, target):
    """The target's name of each of the source's places."""
    left = [a for a in source.places if a not in target.places], [a for a in target.places if a not in source.places]
    pairs = {axis: axis for axis in source.places if axis in target.places}
    return {**pairs, **(dict(zip(*left, strict=True)) if len(left[0]) == len(left[1]) else {})}


def oracle(x, source, target):
    """What align ought to give, entry by entry; extra tokens too, as far as the documentation fixes them."""
    pairs = partners(source, target)
    out = torch.full(replace(target, sizes={**target.sizes, "c": source.sizes["c"]}).shape, torch.nan, dtype=x.dtype)
    array, result = x.numpy(), out.numpy()
    table = {a: weights(source.sizes[a], target.sizes[pairs[a]]) for a in pairs}
    everywhere = {a: [(i, 1 / n) for i in range(n)] for a, n in source.sizes.items() if a not in "bc"}
    for b, c in itertools.product(range(source.sizes["b"]), range(source.sizes["c"])):

        def gather(choices):
            total = 0.0
            for combination in itertools.product(*(choices[a] for a in source.places)):
                index = {a: i for a, (i, _) in zip(source.places, combination, strict=True)}
                total += math.prod(w for _, w in combination) * array[source.at({**index, "b": b, "c": c})]
            return total

        for place in itertools.product(*(range(target.sizes[a]) for a in target.places)):
            index = dict(zip(target.places, place, strict=True))
            choices = {a: table[a][index[pairs[a]]] if a in pairs else everywhere[a] for a in source.places}
            result[target.at({**index, "b": b, "c": c})] = gather(choices)
        for number in range(target.extra):
            own = source.extra == target.extra
            value = array[source.token(b, c, number)] if own else gather(everywhere)
            result[target.token(b, c, number)] = value
    return out


def aligned(x, source, shape, target):
    return align(x, Layout(source), shape, Layout(target))


def check(source, target, x=None):
    """Compare align with the oracle; give what it gave."""
    x = torch.randn(source.shape, dtype=torch.float64) if x is None else x
    target_shape = target.shape
    out = aligned(x, source.text, target_shape, target.text)
    torch.testing.assert_close(out, oracle(x, source, target), rtol=1e-9, atol=1e-9)
    return out


def shaped(text, extra=0, **sizes):
    groups = re.findall(r"\(([^)]*)\)|(\S+)", text)
    return Shaped(tuple(tuple((group or name).split()) for group, name in groups), sizes, extra)


def split_groups(draw, places, grouped):
    """Arrange batch, channels and places in some order, some places flattened into one dimension."""
    if not grouped:
        return tuple(draw(st.permutations([B, C, *((axis,) for axis in places)])))
    return tuple(draw(st.permutations([B, C, tuple(places)])))


@st.composite
def features(draw, largest=4):
    """Two features that can be aligned, with the sizes of all axes."""
    names = st.lists(st.sampled_from("hwdy"), unique=True, max_size=3)
    places = draw(names), draw(names)
    grouped = [len(p) > 0 and draw(st.booleans()) for p in places]
    dims = [split_groups(draw, p, g) for p, g in zip(places, grouped, strict=True)]
    extras = [draw(st.integers(0, 2)) if g else 0 for g in grouped]
    size = st.integers(1, largest)
    batch = draw(st.integers(1, 2))
    sides = [Shaped(d, {"b": batch, "c": draw(st.integers(1, 3))}, e) for d, e in zip(dims, extras, strict=True)]
    back = {new: old for old, new in partners(*sides).items()}
    names_there = partners(*sides), back
    for side, group in zip(sides, grouped, strict=True):
        if not group:
            side.sizes.update({axis: draw(size) for axis in side.places})
    for i, side in enumerate(sides):
        if grouped[i]:
            there = [names_there[i].get(axis) for axis in side.places]
            if len(side.places) == 1:
                side.sizes[side.places[0]] = draw(size)
            elif not grouped[1 - i] and None not in there:  # a multiple of the other's proportions
                like = [sides[1 - i].sizes[axis] for axis in there]
                divisor = math.gcd(*like) if draw(st.booleans()) else 1
                factor = draw(st.integers(1, 2 if max(like) // divisor < 3 else 1))
                side.sizes.update({a: n // divisor * factor for a, n in zip(side.places, like, strict=True)})
            else:
                side.sizes.update(dict.fromkeys(side.places, draw(st.integers(1, 3))))
    assume(back or not sides[1].extra)  # see test_extra_tokens_of_a_target_that_shares_no_place_get_the_mean_too
    return tuple(sides)


@given(features())
def test_align_is_what_the_loops_say(pair):
    source, target = pair
    x = torch.randn(source.shape, dtype=torch.float64)
    out = aligned(x, source.text, target.shape, target.text)
    expected = oracle(x, source, target)
    pairs = partners(source, target)
    small_and_large = [sorted((source.sizes[a], target.sizes[pairs[a]])) for a in pairs]
    if target.extra and source.extra != target.extra and any(n % m for m, n in small_and_large):
        dim = target.dims.index(tuple(target.places))  # the mean after an uneven resize differs a little
        out, expected = (t.movedim(dim, 0)[target.extra :] for t in (out, expected))
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-9)


@given(features(largest=9), st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
def test_shape_is_the_targets_with_the_sources_channels_and_constants_stay(pair, dtype):
    source, target = pair
    x = torch.full(source.shape, 3.25, dtype=dtype, requires_grad=True)
    out = aligned(x, source.text, target.shape, target.text)
    expected = list(target.shape)
    expected[target.dims.index(C)] = source.sizes["c"]
    assert out.shape == torch.Size(expected) and out.dtype == dtype
    torch.testing.assert_close(out, torch.full_like(out, 3.25))
    check_alignable(source.shape, Layout(source.text), target.shape, Layout(target.text))


@given(features())
def test_gradients_are_finite_and_share_out_exactly_what_came_in(pair):
    source, target = pair
    x = torch.randn(source.shape, dtype=torch.float64, requires_grad=True)
    out = aligned(x, source.text, target.shape, target.text)
    out.sum().backward()
    assert x.grad.shape == x.shape and x.grad.isfinite().all() and (x.grad >= 0).all()
    torch.testing.assert_close(x.grad.sum(), torch.tensor(float(out.numel()), dtype=torch.float64))
    torch.testing.assert_close((x.grad * x).sum(), out.sum())  # it is linear


# Each rule alone


@pytest.mark.parametrize("text", ["b c", "b c h w", "b h w c", "b n c", "b (h w) c", "b 1+(h w) c"])
def test_a_feature_that_fits_comes_back_itself(text):
    shape = {"b c": (2, 3), "b n c": (2, 12, 3), "b (h w) c": (2, 12, 3), "b 1+(h w) c": (2, 13, 3)}
    x = torch.randn(shape.get(text, (2, 3, 3, 3)))
    layout, other = Layout(text), list(x.shape)
    other[layout.channel_dim] = 7  # the target's own channels do not matter
    assert align(x, layout, other, layout) is x


GRIDS = [
    shaped("b c h w", b=2, c=3, h=4, w=4),
    shaped("b h w c", b=2, c=3, h=4, w=4),
    shaped("b (h w) c", b=2, c=3, h=4, w=4),
    shaped("b (h w) c", extra=1, b=2, c=3, h=4, w=4),
    shaped("b c (h w)", b=2, c=3, h=4, w=4),
    shaped("w b h c", b=2, c=3, h=4, w=4),
]


@pytest.mark.parametrize("target", GRIDS, ids=lambda grid: grid.text)
@pytest.mark.parametrize("source", GRIDS, ids=lambda grid: grid.text)
def test_a_change_of_layout_moves_entries_and_changes_none(source, target):
    x = torch.randn(source.shape, dtype=torch.float64)
    out = check(source, target, x)
    if source.extra == target.extra:
        assert torch.equal(aligned(out, target.text, source.shape, source.text), x)
    for b, c, h, w in itertools.product(range(2), range(3), range(4), range(4)):
        index = {"b": b, "c": c, "h": h, "w": w}
        assert out[target.at(index)] == x[source.at(index)]


def test_an_axis_that_only_the_source_has_is_averaged():
    source, target = shaped("b t c w", b=2, c=3, t=5, w=4), shaped("b c w", b=2, c=3, w=4)
    out = check(source, target)
    x = torch.randn(source.shape)
    assert aligned(x, "b t c w", (2, 3), "b c").shape == (2, 3)
    torch.testing.assert_close(aligned(x, "b t c w", (2, 3), "b c"), x.mean((1, 3)))
    assert out.shape == (2, 3, 4)


def test_an_axis_that_only_the_target_has_is_repeated():
    check(shaped("b c w", b=2, c=3, w=4), shaped("t w b c", b=2, c=3, t=5, w=4))
    x = torch.randn(2, 3)
    out = aligned(x, "b c", (2, 4, 5, 9), "b h w c")
    assert out.shape == (2, 4, 5, 3)
    for h, w in itertools.product(range(4), range(5)):
        assert torch.equal(out[:, h, w], x)


@pytest.mark.parametrize("factors", [(2, 1), (1, 3), (2, 3), (6, 6)])
def test_pooling_by_whole_factors_averages_blocks(factors):
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    h, w = 6 // factors[0], 6 // factors[1]
    out = aligned(x, "b c h w", (2, h, w, 5), "b h w c")
    for i, j in itertools.product(range(h), range(w)):
        block = x[:, :, i * factors[0] : (i + 1) * factors[0], j * factors[1] : (j + 1) * factors[1]]
        torch.testing.assert_close(out[:, i, j], block.mean((2, 3)))


def test_one_axis_may_shrink_while_another_grows():
    check(shaped("b c h w", b=1, c=2, h=6, w=2), shaped("b w h c", b=1, c=2, h=2, w=6))
    check(shaped("b c h w", b=1, c=2, h=5, w=3), shaped("b c h w", b=1, c=2, h=3, w=7))


def test_places_pair_by_name_and_then_in_order():
    x = torch.randn(1, 2, 3, 4)
    assert torch.equal(aligned(x, "b c h w", (1, 4, 3, 2), "b w h c"), x.permute(0, 3, 2, 1))
    assert torch.equal(aligned(x, "b c h w", (1, 3, 4, 2), "b y x c"), x.permute(0, 2, 3, 1))
    assert torch.equal(aligned(x, "b c h w", (1, 4, 3, 2), "b w y c"), x.permute(0, 3, 2, 1))
    assert torch.equal(aligned(x[..., 0], "b c n", (1, 3, 2), "b t c"), x[..., 0].mT)


SIZES = [(1, 1), (4, 4), (7, 7), (3, 6)]
ROWS, MAPS = ["b c", "b c t", "b n c"], ["b c h w", "b h w c", "b w h c", "b c y x", "b d h w c"]
FLAT = ["b (h w) c", "b c (h w)", "b 1+(h w) c", "b 2+(h w) c"]
PAIRS = [(source, target) for source in ROWS + MAPS + FLAT for target in ROWS + MAPS + FLAT]
PAIRS = [pair for pair in PAIRS if not (pair[0] in ROWS[:2] and "+" in pair[1])]  # these share no place


def shape_of(layout, h, w, channels):
    sizes = {"b": 2, "c": channels, "h": h, "w": w, "y": h, "x": w, "d": 2, "t": h * w, "n": h * w}
    found = [math.prod(sizes[axis] for axis in group) for group in layout.dimensions]
    return tuple(n + layout.extra * (dim in layout.place_dims) for dim, n in enumerate(found))


@pytest.mark.parametrize("source, target", PAIRS)
def test_constant_features_stay_constant_under_any_resize(source, target):
    told = {source, target} & set(FLAT) and {source, target} & set(MAPS[:4])  # the map tells the grid's proportions
    for (h, w), (y, x) in itertools.product(SIZES, SIZES):
        if {source, target} & set(FLAT) and (h * x != w * y or not (told or h == w)):
            continue  # cannot be unfolded
        feature = torch.full(shape_of(Layout(source), h, w, 3), -1.5)
        out = aligned(feature, source, shape_of(Layout(target), y, x, 5), target)
        assert out.shape == shape_of(Layout(target), y, x, 3)
        torch.testing.assert_close(out, torch.full_like(out, -1.5))


# Extra tokens


def test_extra_tokens_get_the_mean_of_a_source_that_has_none():
    x = torch.randn(2, 3, 4, 4)
    out = aligned(x, "b c h w", (2, 18, 7), "b 2+(h w) c")
    torch.testing.assert_close(out[:, :2], x.mean((2, 3))[:, None].expand(2, 2, 3))
    assert torch.equal(out[:, 2:].mT, x.flatten(2))


def test_extra_tokens_get_the_sources_own_if_it_has_as_many():
    x = torch.randn(2, 3, 2 + 16)
    out = aligned(x, "b c 2+(h w)", (2, 2 + 4, 7), "b 2+(h w) c")
    assert torch.equal(out[:, :2], x[:, :, :2].mT)
    torch.testing.assert_close(out[:, 2:].mean(1), x[:, :, 2:].mean(2))


@pytest.mark.parametrize("extras", [(1, 2), (2, 1), (0, 1), (1, 0)])
def test_extra_tokens_of_another_number_are_left_out_and_the_grids_mean_stands_in(extras):
    x = torch.randn(2, extras[0] + 16, 3)
    layouts = [f"b {n}+(h w) c".replace("0+", "") for n in extras]
    out = aligned(x, layouts[0], (2, extras[1] + 16, 7), layouts[1])
    torch.testing.assert_close(out[:, : extras[1]], x[:, extras[0] :].mean(1, keepdim=True).expand(2, extras[1], 3))
    assert torch.equal(out[:, extras[1] :], x[:, extras[0] :])


def test_gradients_reach_the_sources_own_extra_tokens_only_where_they_are_handed_on():
    for target, expected in [("b 1+(h w) c", 1.0), ("b 2+(h w) c", 0.0), ("b (h w) c", 0.0)]:
        x = torch.randn(1, 5, 1, requires_grad=True)
        extra = Layout(target).extra
        aligned(x, "b 1+(h w) c", (1, extra + 16, 1), target).sum().backward()
        assert x.grad[0, 0, 0] == expected
        torch.testing.assert_close(x.grad[0, 1:].sum(), torch.tensor(16.0 + extra - expected))


@pytest.mark.parametrize(
    "source, shape, places", [("b c", (2, 3), ()), ("b c t", (2, 3, 5), 2), ("b n c", (2, 15, 3), 1)]
)
def test_extra_tokens_of_a_target_that_shares_no_place_get_the_mean_too(source, shape, places):
    x = torch.randn(shape)  # no grid fits 15 tokens
    out = aligned(x, source, (2, 1 + 16, 7), "b 1+(h w) c")
    mean = x.mean(places) if places else x
    torch.testing.assert_close(out, mean[:, None].expand(2, 17, 3))


# Tokens that may be a grid


@pytest.mark.parametrize("length, extra", [(196, 0), (197, 1), (198, 2), (201, 5)])
def test_tokens_are_read_as_the_grid_of_the_other_feature(length, extra):
    x = torch.randn(2, length, 3)
    out = aligned(x, "b p c", (2, 6, 14, 14), "b c h w")
    assert out.shape == (2, 3, 14, 14)
    for i, j in itertools.product(range(14), range(14)):
        assert torch.equal(out[:, :, i, j], x[:, extra + 14 * i + j])
    y = torch.randn(2, 3, 14, 14)
    back = aligned(y, "b c h w", (2, length, 6), "b p c")
    assert back.shape == (2, length, 3)
    assert torch.equal(back[:, extra:].mT, y.flatten(2))
    torch.testing.assert_close(back[:, :extra], y.mean((2, 3))[:, None].expand(2, extra, 3))


@pytest.mark.parametrize("length", [196, 197, 198, 201, 202, 15, 49])
def test_a_text_is_never_read_as_a_grid_whatever_its_length(length):
    """What an edge means must not hang on how long the longest text of a batch is."""
    x, y = torch.randn(2, length, 3), torch.randn(2, 3, 14, 14)
    mean = x.mean(1)[:, :, None, None].expand(2, 3, 14, 14)
    torch.testing.assert_close(aligned(x, "b n c", (2, 6, 14, 14), "b c h w"), mean)
    mean = y.mean((2, 3))[:, None].expand(2, length, 3)
    torch.testing.assert_close(aligned(y, "b c h w", (2, length, 6), "b n c"), mean)


def test_tokens_take_as_few_extra_ones_as_their_length_allows():
    x = torch.arange(5.0).view(1, 5, 1)  # 1 + 2 x 2, not 4 + 1 x 1
    assert aligned(x, "b p c", (1, 1, 2, 2), "b c h w").flatten().tolist() == [1, 2, 3, 4]


def test_tokens_that_fit_no_grid_are_averaged_or_get_the_mean():
    for length in (15, 202):  # 6 more than 3 x 3, than 14 x 14
        x = torch.randn(2, length, 3)
        out = aligned(x, "b p c", (2, 6, 14, 14), "b c h w")
        torch.testing.assert_close(out, x.mean(1)[:, :, None, None].expand(2, 3, 14, 14))
        y = torch.randn(2, 3, 14, 14)
        torch.testing.assert_close(
            aligned(y, "b c h w", (2, length, 6), "b p c"), y.mean((2, 3))[:, None].expand(2, length, 3)
        )


@pytest.mark.parametrize("shape", [(4, 4), (2, 8), (1, 1)])
def test_a_sequence_is_never_read_as_a_grid(shape):
    x = torch.randn(2, 3, 16)
    out = aligned(x, "b c t", (2, *shape, 5), "b h w c")
    torch.testing.assert_close(out, x.mean(2)[:, None, None].expand(2, *shape, 3))
    y = torch.randn(2, *shape, 3)
    torch.testing.assert_close(aligned(y, "b h w c", (2, 16, 3), "b t c"), y.mean((1, 2))[:, None].expand(2, 16, 3))


@pytest.mark.parametrize("length, grid, extra", [(15, (3, 5), 0), (16, (3, 5), 1), (60, (6, 10), 0), (64, (6, 10), 4)])
def test_proportions_that_are_not_square_come_from_the_other_feature(length, grid, extra):
    source = shaped("b (h w) c", extra, b=1, c=2, h=grid[0], w=grid[1])
    target = shaped("b c h w", b=1, c=2, h=3, w=5)
    x = torch.randn(1, length, 2, dtype=torch.float64)
    expected = check(source, target, x)
    torch.testing.assert_close(aligned(x, "b p c", target.shape, "b c h w"), expected)
    renamed = aligned(x, source.text.replace("h w", "y x"), target.shape, "b c h w")
    torch.testing.assert_close(renamed, expected)
    check(target, source)
    upright = aligned(x, "b p c", (1, 2, 5, 3), "b c w h")  # h = 3 and w = 5 again, in another order
    if not extra:
        source_upright = shaped("b (w h) c", b=1, c=2, w=grid[1], h=grid[0])
        torch.testing.assert_close(upright, oracle(x, source_upright, shaped("b c w h", b=1, c=2, w=5, h=3)))


def test_no_grid_is_missed_by_rounding():
    for h, w in itertools.combinations_with_replacement(range(1, 33), 2):
        for y, x in ((h, w), (2 * h, 2 * w), (7 * h, 7 * w)):
            check_alignable((1, h * w, 1), Layout("b (h w) c"), (1, y, x, 1), Layout("b h w c"))
            check_alignable((1, y * x, 1), Layout("b (h w) c"), (1, h, w, 1), Layout("b h w c"))
    for n in range(1, 33):
        check_alignable((1, n**2, 1), Layout("b (h w) c"), (1, n, 1), Layout("b t c"))
        check_alignable((1, n**3, 1), Layout("b (d h w) c"), (1, n, 1), Layout("b t c"))
        check_alignable((1, 6 * n**3, 1), Layout("b (d h w) c"), (1, 1, 2, 3, 1), Layout("b d h w c"))


def test_tokens_pair_with_other_rows_in_order():
    x = torch.randn(2, 8, 3, dtype=torch.float64)
    torch.testing.assert_close(aligned(x, "b n c", (2, 3, 4), "b c t"), x.unflatten(1, (4, 2)).mean(2).mT)
    torch.testing.assert_close(aligned(x, "b n c", (2, 4, 3), "b n c"), x.unflatten(1, (4, 2)).mean(2))


@pytest.mark.parametrize("text, length", [("b 1+(p) c", 197), ("b (p) c", 196)])
def test_tokens_in_brackets_may_meet_a_grid(text, length):
    assert aligned(torch.randn(2, length, 3), text, (2, 6, 14, 14), "b c h w").shape == (2, 3, 14, 14)


# Gradients


def test_gradients_of_a_repeat_count_and_those_of_a_mean_divide():
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    aligned(x, "b c", (2, 4, 5, 7), "b h w c").sum().backward()
    assert torch.equal(x.grad, torch.full_like(x, 20.0))
    x = torch.randn(2, 4, 5, 3, dtype=torch.float64, requires_grad=True)
    aligned(x, "b h w c", (2, 7), "b c").sum().backward()
    torch.testing.assert_close(x.grad, torch.full_like(x, 1 / 20))
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    aligned(x, "b c h w", (2, 5, 7), "b 1+(h w) c")[:, 0].sum().backward()
    torch.testing.assert_close(x.grad, torch.full_like(x, 1 / 16))


@pytest.mark.parametrize("shape", [(1, 2, 2, 1), (1, 5, 3, 1)])
def test_gradients_of_resizing_are_right(shape):
    x = torch.randn(1, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: aligned(x, "b c h w", shape, "b h w c"), (x,))


def test_strides_do_not_matter():
    x = torch.randn(2, 3, 4, 4)
    expected = aligned(x, "b c h w", (2, 4, 1), "b (h w) c")
    for same in (x.contiguous(memory_format=torch.channels_last), x.mT.contiguous().mT, x.flip(0).contiguous().flip(0)):
        torch.testing.assert_close(aligned(same, "b c h w", (2, 4, 1), "b (h w) c"), expected)
    assert aligned(torch.ones(1, 1, 1).expand(2, 3, 4), "b c t", (2, 8, 1), "b t c").eq(1).all()


def test_an_empty_batch_aligns():
    assert aligned(torch.zeros(0, 3, 4, 4), "b c h w", (0, 1 + 64, 5), "b 1+(h w) c").shape == (0, 65, 3)


# Errors


def both_ways(error, source, shape, target, target_shape):
    """align and check_alignable raise the same error."""
    with pytest.raises(LayoutError, match=f"^{re.escape(error)}$"):
        aligned(torch.zeros(shape), source, target_shape, target)
    with pytest.raises(LayoutError, match=f"^{re.escape(error)}$"):
        check_alignable(shape, Layout(source), target_shape, Layout(target))


def test_different_batches_are_an_error():
    todo = "; give both networks the same samples, or Tap(...) the primary_layout or aux_layout"
    found = "2 samples cannot meet 3, (2, 3, 4, 4) read as 'b c h w' and (3, 3, 4, 4) as 'b c h w'"
    both_ways(found + todo, "b c h w", (2, 3, 4, 4), "b c h w", (3, 3, 4, 4))
    found = "2 samples cannot meet 3, (3, 2) read as 'c b' and (3, 4, 2) as 'b n c'"
    both_ways(found + todo, "c b", (3, 2), "b n c", (3, 4, 2))


@pytest.mark.parametrize(
    "source, shape, target, target_shape, length, culprit, like",
    [
        ("b (h w) c", (2, 12, 3), "b (h w) c", (2, 16, 3), 12, 0, "a square"),
        ("b (h w) c", (2, 17, 3), "b c h w", (2, 3, 4, 4), 17, 0, "{'h': 4, 'w': 4}"),
        ("b (y x) c", (2, 16, 3), "b c h w", (2, 3, 2, 4), 16, 0, "{'h': 2, 'w': 4}"),
        ("b 1+(h w) c", (2, 16, 3), "b c h w", (2, 3, 4, 4), 15, 0, "{'h': 4, 'w': 4}"),
        ("b c h w", (2, 3, 4, 4), "b (h w) c", (2, 17, 3), 17, 1, "{'h': 4, 'w': 4}"),
        ("b c h w", (2, 3, 4, 4), "b 3+(h w) c", (2, 2, 3), -1, 1, "{'h': 4, 'w': 4}"),
        ("b (d h w) c", (2, 9, 3), "b (d h w) c", (2, 8, 3), 9, 0, "a square"),
    ],
)
def test_a_grid_that_cannot_be_unfolded_is_an_error_that_says_what_to_type(
    source, shape, target, target_shape, length, culprit, like
):
    text, found = ((source, shape), (target, target_shape))[culprit]
    axes = re.search(r"\((.*)\)", text)[1].replace("y", "h").replace("x", "w")  # paired in order
    text = text.replace("y x", "h w")
    both_ways(
        f"{length} tokens of a feature {found} of layout {text!r} do not fill a grid ({axes}) like {like}; name extra "
        "tokens as in 'b 1+(h w) c', or say 'b t c' to take them as a sequence",
        source,
        shape,
        target,
        target_shape,
    )
    taken = "b t c"  # what the message says to type
    layouts = [taken, target] if culprit == 0 else [source, taken]
    aligned(torch.zeros(shape), layouts[0], target_shape, layouts[1])


@pytest.mark.pairwise
@pytest.mark.parametrize("extra, named", [(0, True), (1, True), (5, True), (0, False), (1, False)])
@pytest.mark.parametrize("stride, up", [(4, True), (8, False), (32, True), (32, False), (16, True)])
def test_tokens_beside_a_map_of_another_stride_are_read_as_their_grid_or_refused(extra, named, stride, up):
    """Patches of 16, images of sides from 64 to 256; a grid that may be another one is refused, or a sequence."""
    right = 0
    sides = range(64, 257, 16)
    for height, width in itertools.product(sides, sides):
        grid = torch.randn(1, 2, height // 16, width // 16)
        shape = (1, 2, *((-(-side // stride) if up else side // stride) for side in (height, width)))
        tokens = torch.cat([torch.randn(1, extra, 2), grid.flatten(2).mT], 1)
        layout = Layout(f"b {f'{extra}+' if extra else ''}(h w) c" if named else "b p c")
        wanted = align(grid, Layout("b c h w"), shape, Layout("b c h w"))
        try:
            found = torch.allclose(align(tokens, layout, shape, Layout("b c h w")), wanted, atol=1e-5)
        except LayoutError:
            found = False
            assert named
        else:
            assert found or not named
        right += found
    assert right >= 0.85 * len(sides) ** 2


def test_a_grid_that_needs_no_unfolding_stays_flat():
    x = torch.randn(2, 12, 3)
    assert torch.equal(aligned(x, "b (h w) c", (2, 3, 12), "b c (h w)"), x.mT)
    torch.testing.assert_close(aligned(x, "b (h w) c", (2, 3), "b c"), x.mean(1))
    assert torch.equal(aligned(x[:, 0], "b c", (2, 12, 3), "b (h w) c"), x[:, :1].expand(2, 12, 3))
    torch.testing.assert_close(aligned(x, "b 1+(h w) c", (2, 3), "b c"), x[:, 1:].mean(1))


def test_four_places_at_once_are_an_error():
    message = (
        "at most 3 place axes can be resized at once, here 4: d e h w; tap layers whose sizes agree in all of them"
    )
    both_ways(message, "b c d e h w", (1, 2, 3, 3, 3, 3), "b d e h w c", (1, 3, 3, 3, 4, 2))
    x = torch.randn(1, 2, 3, 3, 3, 3)
    assert torch.equal(aligned(x, "b c d e h w", (1, 3, 3, 3, 3, 2), "b d e h w c"), x.movedim(1, -1))
    assert aligned(x, "b c d e h w", x.shape, "b c d e h w") is x
    torch.testing.assert_close(aligned(x, "b c d e h w", (1, 3, 3, 3, 2), "b d e h c"), x.mean(5).movedim(1, -1))


@pytest.mark.parametrize("length", [2, 3])
def test_a_row_that_is_shorter_than_its_extra_tokens_is_an_error(length):
    with pytest.raises(LayoutError):
        aligned(torch.zeros(2, length, 3), "b 3+(t) c", (2, 3, 4), "b c t")


@pytest.mark.parametrize("now, sizes", [((8, 12), (4, 3)), ((14, 14), (7, 7)), ((12, 10), (3, 4)), ((9, 8), (3, 1))])
def test_pooling_averages_as_adaptive_pooling_does(now, sizes):
    source = torch.randn(2, 3, *now, dtype=torch.float64)
    pooled = align(source, Layout("b c h w"), (2, 5, *sizes), Layout("b c h w"))
    torch.testing.assert_close(pooled, torch.nn.functional.adaptive_avg_pool2d(source, sizes))
