"""Finds by the specialists that read them."""

from __future__ import annotations

import pytest

from coarse2fine.region import Region
from coarse2fine.results.routes import route_nodes
from coarse2fine.specialists.naming import commonest


def region(label: str, *route: int) -> Region:
    return Region(label, 0.5, (0.0, 0.0, 8.0, 8.0), route=route)


def test_every_node_counts_the_finds_that_passed_it() -> None:
    finds = [region("a", 2), region("b", 1, 4), region("a", 1, 3), region("c"), region("b", 1), region("b", 1, 4)]
    nodes = route_nodes(finds)
    assert [node.route for node in nodes] == [(1,), (1, 3), (1, 4), (2,)]
    assert [len(node.passed) for node in nodes] == [4, 1, 2, 1]
    assert [len(node.ended) for node in nodes] == [1, 1, 2, 1]
    assert [node.number for node in nodes] == [1, 3, 4, 2]
    assert nodes[0].classes == ["b 75%", "a 25%"]
    # Each find ends at one node at most.
    assert sum(len(node.ended) for node in nodes) == sum(bool(each.route) for each in finds)


def test_nothing_routed_has_no_nodes() -> None:
    assert route_nodes([]) == route_nodes([region("a")]) == []


@pytest.mark.parametrize(
    ("weights", "named"),
    [
        ({"Greek alpha": 6, "Greek beta": 2, "Latin a": 2}, ["Greek 80%", "Latin 20%"]),
        ({"kind 1": 3, "kind 22": 9}, ["kind 22 75%", "kind 1 25%"]),
        ({"only": 0.2}, ["only 100%"]),
        ({f"{n}": 1 + (n == 40) for n in range(60)}, ["40", "0", "1"]),
        ({}, []),
        ({"a": 0.0}, ["a"]),
    ],
)
def test_kinds_are_named_by_their_commonest_classes(weights: dict[str, float], named: list[str]) -> None:
    assert commonest(weights) == named
