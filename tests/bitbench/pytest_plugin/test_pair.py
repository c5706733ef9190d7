import pytest

from bitbench.pytest_plugin.fixture import SideBySide, Untimed
from bitbench.pytest_plugin.pair import Pair


def once(*arguments, **options):
    return SideBySide("test_a.py::test_a", Untimed(), None)(*arguments, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": 3}, "target must be callable, got int"),
        ({"target": None}, "target must be callable, got NoneType"),
        ({"target": print, "baseline": "x"}, "baseline must be callable, got str"),
        ({"target": print, "check": 1}, "check must be callable, got int"),
        ({"target": print, "setup": ()}, "setup must be callable, got tuple"),
        ({"target": print, "extra": [1]}, "extra must be a mapping or a callable that returns one, got list"),
        ({"target": print, "extra": {"kernel": 3}}, r"extra\['kernel'\] must be a string, got 3"),
        ({"target": print, "extra": {"exact": 3}}, r"extra\['exact'\] must map names .* to numbers, got 3"),
        ({"target": print, "extra": {"x": object()}}, "extra must hold JSON values"),
        ({"target": print, "extra": lambda: {"x": float("nan")}}, "extra must hold JSON values"),
    ],
)
def test_wrong_types(options, message):
    with pytest.raises(TypeError, match=f"side_by_side: {message}"):
        once(**options)


@pytest.mark.parametrize(
    ("exact", "message"),
    [
        ({"memory.bytes": 3}, "names 'memory.bytes', which is no figure: known are .*memory.codes_bytes"),
        ({"memory.codes_bytes": float("inf")}, "must be a finite number, got inf"),
        ({"memory.codes_bytes": True}, "must be a finite number, got True"),
        ({"memory.codes_bytes": "3"}, "must be a finite number, got '3'"),
    ],
)
def test_wrong_figures(exact, message):
    with pytest.raises(ValueError, match=message):
        once(print, extra={"exact": exact})


def test_extra_is_taken_apart():
    pair = Pair(
        lambda built: built + 1,
        setup=lambda side: 3,
        extra=lambda built: {"kernel": "k", "exact": {"memory.codes_bytes": built}, "shape": [1]},
    )
    built = pair.build(pair.sides)
    facts = built.facts()
    assert (facts.kernel, facts.exact, facts.others) == ("k", {"memory.codes_bytes": 3}, {"shape": [1]})
    assert built.calls["target"]() == 4


def test_sides_are_built_in_the_order_given():
    order: list[str] = []
    pair = Pair(print, baseline=print, setup=lambda side: order.append(side) or side)
    assert list(pair.build(("baseline", "target")).calls) == order == ["baseline", "target"]


def test_extra_may_be_nothing():
    assert Pair(print, extra=lambda: None).build(("target",)).facts().others == {}
