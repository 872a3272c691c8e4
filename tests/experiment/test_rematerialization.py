"""Which modules are blocks: one rule, told of paths and classes only."""

from collections.abc import Callable
from typing import Any

import pytest

from multibackend.errors import ConfigurationError
from multibackend.experiment.rematerialization import ModuleInfo, choose_modules
from multibackend.testing import assert_raises

LEAVES = ("up", "down")


def model(*blocks: str, kind: object = "block", lists: tuple[str, ...] = ()) -> list[ModuleInfo]:
    """A stem, blocks of two layers each, a head, and lists that cannot be called."""
    infos = [ModuleInfo("", "model", True), ModuleInfo("stem", "layer", True)]
    infos += [ModuleInfo(path, "list", True, container=True, callable=False) for path in lists]
    for path in blocks:
        infos.append(ModuleInfo(path, kind, True))
        infos += [ModuleInfo(f"{path}.{leaf}", "layer", True) for leaf in LEAVES]
    return [*infos, ModuleInfo("act", "activation", False), ModuleInfo("head", "layer", True)]


@pytest.mark.parametrize(
    ("paths", "lists"),
    [
        (("blocks.0", "blocks.1", "blocks.10"), ("blocks",)),
        (("blocks.0", "blocks.1"), ()),  # lists that are no module
        (("Block_0", "Block_1"), ()),
        (("layer1", "layer2"), ()),
    ],
)
def test_blocks_are_numbered_siblings_of_a_class(paths: tuple[str, ...], lists: tuple[str, ...]) -> None:
    """In a list, of linen's numbered names, or as numbered attributes: the same modules."""
    assert choose_modules(True, model(*paths, lists=lists)) == paths
    assert choose_modules(False, model(*paths, lists=lists)) == ()


def test_blocks_inside_blocks_are_not_chosen() -> None:
    """The outermost ones, so that nothing is recomputed three times."""
    infos = model("blocks.0", "blocks.1")
    inner = [ModuleInfo(f"blocks.0.inner.{i}{leaf}", leaf, True) for i in (0, 1) for leaf in ("", ".up", ".down")]
    assert choose_modules(True, [*infos, *inner]) == ("blocks.0", "blocks.1")


@pytest.mark.parametrize(
    ("infos", "expected"),
    [
        (model("body"), ("stem", "body", "head")),  # no sibling: the children that hold parameters
        (model("part1", kind=object())[:5] + model("part2", kind=object())[2:5], ("stem", "part1", "part2")),
        ([ModuleInfo("", "layer", True)], ("",)),  # no children: the model itself
    ],
)
def test_without_blocks(infos: list[ModuleInfo], expected: tuple[str, ...]) -> None:
    """Children of the model, or the model."""
    assert choose_modules(True, infos) == expected


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("blocks.*", ("blocks.0", "blocks.1")),
        ("Blocks_*", ("blocks.0", "blocks.1")),
        ("blocks.[0-0]", ("blocks.0",)),
        ("*.up", ("blocks.0.up", "blocks.1.up")),
        (("blocks.1", "head"), ("blocks.1", "head")),
        (["head", "blocks.1"], ("blocks.1", "head")),
        (lambda path: path.endswith("1"), ("blocks.1",)),
    ],
)
def test_patterns_and_functions(rule: Any, expected: tuple[str, ...]) -> None:
    """On whole paths, in the model's order, outermost only."""
    infos = model("blocks.0", "blocks.1")
    renamed = [ModuleInfo(i.path.replace("blocks.", "Blocks_"), i.kind, i.parameters) for i in infos]
    assert choose_modules(rule, infos if rule != "Blocks_*" else renamed) == tuple(
        path if rule != "Blocks_*" else path.replace("blocks.", "Blocks_") for path in expected
    )


@pytest.mark.parametrize(
    ("rule", "mentions"),
    [
        ("block.*", ("'block.*'", "did you mean 'blocks.")),
        (("blocks.*", "haed"), ("'haed'", "did you mean 'head'")),
        (lambda path: False, ("none of the model's modules", "'blocks.0'")),
    ],
)
def test_no_match_is_an_error(rule: str | Callable[[str], bool], mentions: tuple[str, ...]) -> None:
    """Every pattern must match a module; the message shows the nearest."""
    assert_raises(ConfigurationError, lambda: choose_modules(rule, model("blocks.0", "blocks.1")), *mentions)
