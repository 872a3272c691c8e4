"""Matching parameters without running a model: layouts, assignment, names, groups, and the file of a matching."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multibackend.errors import ParameterMatchError
from multibackend.matching import Link, Matching, Part, Rearrangement, Side, match_parameters, propose
from multibackend.matching.assignment import assign
from multibackend.matching.layouts import rearrangements
from multibackend.matching.stacks import unstack

Shapes = dict[str, tuple[int, ...]]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.integers(0, 3), st.integers(0, 2**31))
def test_the_assignment_costs_no_more_than_any_other(rows: int, more: int, seed: int) -> None:
    """Against all permutations."""
    cost = np.random.default_rng(seed).normal(size=(rows, rows + more))
    taken = assign(cost)
    best = min(
        sum(cost[i, j] for i, j in enumerate(columns)) for columns in itertools.permutations(range(rows + more), rows)
    )
    assert len(set(taken.tolist())) == rows
    assert cost[np.arange(rows), taken].sum() == pytest.approx(best, abs=1e-12)
    assert sorted(assign(cost.T)[assign(cost.T) >= 0].tolist()) == list(range(rows))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([1, 2, 3, 4]), min_size=1, max_size=4), st.integers(0, 2**31), st.data())
def test_the_change_that_was_made_is_among_the_possible_ones(shape: list[int], seed: int, data: st.DataObject) -> None:
    """Axes permuted, then neighbours joined; and each change is undone by its inverse and by its reverse."""
    array = np.random.default_rng(seed).normal(size=shape)
    permuted = array.transpose(data.draw(st.permutations(range(len(shape)))))
    cut = data.draw(st.integers(0, len(shape) - 1))
    other = permuted.reshape(*permuted.shape[:cut], -1)
    changes = rearrangements(array.shape, other.shape)
    assert any(np.array_equal(change(array), other) for change in changes)
    for change in changes:
        assert np.array_equal(change.inverse(change(array), array.shape), array)
        assert np.array_equal(change.reversed(array.shape)(change(array)), array)


# the words of a block as two people may write them
STYLES = (
    ("h", "ln_1", "attn", ("q_proj", "k_proj", "v_proj", "out_proj"), "ln_2", "mlp", ("fc_in", "fc_out"), "gamma"),
    ("layers", "norm1", "attention", ("query", "key", "value", "output"), "norm2", "ffn", ("up", "down"), "scale"),
)


def block_names(style: int, layers: int, first: int = 0, prefix: str = "") -> list[str]:
    """The names of a transformer's arrays in one of two idioms."""
    block, norm1, attention, projections, norm2, mlp, (up, down), gain = STYLES[style]
    bias = ("bias", "beta")[style]
    weight = ("weight", "kernel")[style]
    names = []
    for layer in range(first, first + layers):
        at = f"{prefix}{block}.{layer}" if style == 0 else f"{prefix}{block}_{layer}"
        names += [f"{at}.{norm1}.{gain}", f"{at}.{norm1}.{bias}"]
        for projection in projections:
            names += [f"{at}.{attention}.{projection}.{weight}", f"{at}.{attention}.{projection}.{bias}"]
        names += [f"{at}.{norm2}.{gain}", f"{at}.{norm2}.{bias}"]
        for linear in (up, down):
            names += [f"{at}.{mlp}.{linear}.{weight}", f"{at}.{mlp}.{linear}.{bias}"]
    return names


def block_shapes(layers: int, width: int = 8) -> list[tuple[int, ...]]:
    """Shapes that belong to `block_names`, weights [out, in]."""
    square, vector, wide = (width, width), (width,), (4 * width,)
    one = [vector] * 2 + [square, vector] * 4 + [vector] * 2 + [(4 * width, width), wide, (width, 4 * width), vector]
    return one * layers


def test_other_words_another_numbering_and_a_prefix_are_understood() -> None:
    """12 layers with other words throughout, numbered from 1, below a prefix in one model: each array finds its own."""
    ours, theirs = block_names(0, 12, prefix="transformer."), block_names(1, 12, first=1)
    shapes = block_shapes(12)
    found = match_parameters(Side(dict(zip(ours, shapes, strict=True))), Side(dict(zip(theirs, shapes, strict=True))))
    assert {link.other: link.reference for link in found.links} == dict(zip(theirs, ours, strict=True))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.booleans(), st.integers(0, 2**31), st.sampled_from(["", "model.", "backbone.encoder."]))
def test_random_renamings_are_recovered_or_refused(layers: int, shuffled: bool, seed: int, prefix: str) -> None:
    """Shuffled order, other words, transposed rectangles; never a wrong pair without an error."""
    rng = np.random.default_rng(seed)
    ours, theirs, shapes = block_names(0, layers), block_names(1, layers, prefix=prefix), block_shapes(layers)
    order = rng.permutation(len(ours)) if shuffled else np.arange(len(ours))
    turned = [
        shape[::-1] if len(shape) == 2 and shape[0] != shape[1] and rng.random() < 0.5 else shape for shape in shapes
    ]
    other = {theirs[i]: turned[i] for i in order}
    kinds = {name: "" if turned[i] != shapes[i] else "canonical" for i, name in enumerate(theirs)}
    try:
        found = match_parameters(Side(dict(zip(ours, shapes, strict=True))), Side(other, kinds))
    except ParameterMatchError:
        return
    assert {link.other: link.reference for link in found.links} == dict(zip(theirs, ours, strict=True))
    for link in found.links:
        square = len(set(link.reference_shape)) == 1
        assert square or link.rearrangement.moves == (link.other_shape != link.reference_shape)


def test_a_square_matrix_of_unknown_layout_is_not_guessed() -> None:
    """Whether it is transposed only the models could tell; the error says what to do."""
    sides = (
        Side({"c_proj.weight": (4, 4)}, {"c_proj.weight": ""}),
        Side({"c_proj.kernel": (4, 4)}, {"c_proj.kernel": ""}),
    )
    with pytest.raises(ParameterMatchError, match="compare"):
        match_parameters(*sides)
    settled = match_parameters(*sides, transform={"c_proj.kernel": (1, 0)})
    assert settled.links[0].change == "transposed"
    also = match_parameters(*sides, transform={"c_proj.kernel": lambda array: array.T})
    assert also.links[0].rearrangement == settled.links[0].rearrangement


def test_arrays_without_telling_names_are_not_guessed() -> None:
    shapes = (3, 5)
    sides = Side({"a": shapes, "b": shapes}), Side({"x": shapes, "y": shapes})
    with pytest.raises(ParameterMatchError, match="exchanged"):
        match_parameters(*sides)
    found = match_parameters(*sides, rename={"x": "b", "y": "a"})
    assert {link.other: link.reference for link in found.links} == {"x": "b", "y": "a"}


def test_what_has_no_partner_is_named_with_the_nearest_and_its_shape() -> None:
    sides = (
        Side({"fc.weight": (4, 3)}, parameters=frozenset({"fc.weight"})),
        Side({"fc.weight": (4, 3), "fc.bias": (4,)}, parameters=frozenset({"fc.weight", "fc.bias"})),
    )
    with pytest.raises(ParameterMatchError, match=r"fc\.bias \(4,\) has no partner \(nearest: fc\.weight \(4, 3\)\)"):
        match_parameters(*sides)


@pytest.mark.parametrize("transform", [lambda a: a + 1.5, lambda a: a[:2], (0, 2), lambda a: np.sort(a)[::-1]])
def test_a_transform_that_is_no_change_of_layout_is_refused(transform: object) -> None:
    sides = Side({"w": (4, 4)}), Side({"w": (4, 4)})
    with pytest.raises(ParameterMatchError, match="w"):
        match_parameters(*sides, transform={"w": transform})  # type: ignore[dict-item]


def test_numbers_that_run_in_steps_are_not_taken_for_equal_names() -> None:
    """A Sequential with activations, 0, 2, 4, against one without, 0, 1, 2: the second is the second."""
    square = (4, 4)
    sides = Side({f"{i}.weight": square for i in (0, 2, 4)}), Side({f"{i}.weight": square for i in (0, 1, 2)})
    found = match_parameters(*sides)
    assert {link.other: link.reference for link in found.links} == {
        "0.weight": "0.weight",
        "1.weight": "2.weight",
        "2.weight": "4.weight",
    }


def test_names_of_numbers_alone_are_matched() -> None:
    """A list of parameters has no words to compare; shapes tell."""
    sides = Side({"0": (2, 3), "1": (4,)}), Side({"1": (2, 3), "2": (4,)})
    found = match_parameters(*sides)
    assert {link.other: link.reference for link in found.links} == {"1": "0", "2": "1"}


def stacked_sides(layers: int) -> tuple[Side, Side]:
    names = [
        f"layers.{i}.{part}" for i in range(layers) for part in ("up.weight", "up.bias", "down.weight", "down.bias")
    ]
    shapes = [(8, 3), (8,), (3, 8), (3,)] * layers
    stack = {"blocks.up.kernel": (layers, 3, 8), "blocks.up.bias": (layers, 8)}
    stack |= {"blocks.down.kernel": (layers, 8, 3), "blocks.down.bias": (layers, 3)}
    return Side(dict(zip(names, shapes, strict=True))), Side(stack, dict.fromkeys(stack, ""))


def test_layers_in_a_stack_are_found_and_nothing_is_lost() -> None:
    """[layers, in, out] against one [out, in] per layer: there and back gives the same bits."""
    sides = stacked_sides(5)
    for ours, theirs in (sides, sides[::-1]):
        found = match_parameters(ours, theirs)
        found.check(ours.shapes, theirs.shapes)
        rng = np.random.default_rng(0)
        arrays = {name: rng.normal(size=shape) for name, shape in ours.shapes.items()}
        back = found.to_reference(found.to_other(arrays))
        assert all(np.array_equal(back[name], array) for name, array in arrays.items())
    found = match_parameters(*sides)
    arrays = {name: rng.normal(size=shape) for name, shape in sides[0].shapes.items()}
    other = found.to_other(arrays)
    assert np.array_equal(other["blocks.up.kernel"][3], arrays["layers.3.up.weight"].T)
    assert unstack(sides[0], sides[1]) is sides[0]


def test_fused_projections_of_known_layout_are_cut_in_order() -> None:
    """[3 * d, in] against query, key and value of torch's layout: three parts; their order stays open."""
    ours = Side({"attn.in_proj_weight": (12, 4)})
    theirs = Side({f"attention.{n}.weight": (4, 4) for n in ("value", "key", "query")})
    proposal = propose(ours, theirs)
    assert proposal.open
    assert proposal.groups[0].parts == ("attention.query.weight", "attention.key.weight", "attention.value.weight")
    with pytest.raises(ParameterMatchError, match="ways"):
        match_parameters(ours, theirs)


def matching_with_everything() -> Matching:
    part = Part((6, 4), (3, 2, 4), 0, 1, (2, 4))
    return Matching(
        (
            Link("a", "x", Rearrangement((2, 3), (1, 0), (3, 2)), (2, 3), evidence="name"),
            Link("qkv", "k", Rearrangement.identity((2, 4)), (6, 4), reference_part=part),
            Link("b", "y", Rearrangement.identity((2, 4)), (2, 4), other_part=part),
        ),
        {"steps": "model state"},
        {},
    )


def test_a_matching_comes_back_from_its_file(tmp_path: object) -> None:
    matching = matching_with_everything()
    matching.save(f"{tmp_path}/m.json")
    assert Matching.load(f"{tmp_path}/m.json") == matching
    assert matching.reversed().reversed() == matching


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "other"}', '{"format": "multibackend-matching-1"}'])
def test_a_file_that_holds_no_matching_is_refused(text: str) -> None:
    with pytest.raises(ParameterMatchError, match="no matching"):
        Matching.from_json(text)


def test_a_matching_that_does_not_fit_is_refused() -> None:
    """A wrong shape, a missing array, and one that is left over are all named."""
    matching = matching_with_everything()
    ours: Shapes = {"a": (2, 3), "qkv": (6, 4), "b": (2, 4), "steps": ()}
    theirs: Shapes = {"x": (3, 2), "k": (2, 4), "y": (6, 4)}
    matching.check(ours, theirs)
    with pytest.raises(ParameterMatchError, match=r"(?s)qkv.*\(9, 4\).*z \(1,\)"):
        matching.check({**ours, "qkv": (9, 4)}, {**theirs, "z": (1,)})
    with pytest.raises(ParameterMatchError, match="k "):
        matching.check(ours, {name: shape for name, shape in theirs.items() if name != "k"})
    torn = Link(
        "qkv", "k", Rearrangement.identity((2, 4)), (6, 4), reference_part=Part((6, 4), (3, 2, 4), 9, 1, (2, 4))
    )
    with pytest.raises(ParameterMatchError, match="do not fit each other"):
        replace(matching, links=(matching.links[0], torn, matching.links[2])).check(ours, theirs)


def test_changes_are_told_in_words() -> None:
    words = [link.change for link in matching_with_everything().links]
    assert words == ["transposed", "part 2 of 3 along axis 0 of the reference", "becomes part 2 of 3 along axis 0"]


def test_a_tied_array_gets_the_sum_of_its_gradients() -> None:
    """Values come from the first of several copies, gradients add up."""
    same = Rearrangement.identity((2,))
    matching = Matching((Link("w", "first", same, (2,)), Link("w", "second", same, (2,))))
    arrays = {"first": np.ones(2), "second": np.full(2, 3.0)}
    assert matching.to_reference(arrays)["w"].tolist() == [1, 1]
    assert matching.to_reference(arrays, gradients=True)["w"].tolist() == [4, 4]
    assert set(matching.to_other({"w": np.ones(2)})) == {"first", "second"}


def test_hundreds_of_arrays_of_one_shape_take_seconds() -> None:
    """24 layers, 384 arrays, 96 squares and 192 vectors of one shape, all named differently: a second or so."""
    ours, theirs, shapes = block_names(0, 24), block_names(1, 24, first=1), block_shapes(24)
    started = time.perf_counter()
    found = match_parameters(Side(dict(zip(ours, shapes, strict=True))), Side(dict(zip(theirs, shapes, strict=True))))
    assert time.perf_counter() - started < 10
    assert {link.other: link.reference for link in found.links} == dict(zip(theirs, ours, strict=True))
