"""Rooms go downward only, and there are no circles: read from the imports of every file, lazy ones among them."""

from __future__ import annotations

import grimp
import networkx as nx
import pytest

LAYERS = (
    ("__main__",),
    ("cli",),
    ("metrics",),
    ("serving",),
    ("evaluation",),
    ("training",),
    ("export",),
    ("pipeline",),
    ("interop",),
    ("folders",),
    ("data",),
    ("family",),
    ("measure",),
    ("restoration",),
    ("sampling",),
    ("networks",),
    ("batching",),
    ("protocol",),
    ("nn",),
    ("noise", "conditioning", "prior", "fitted"),
    ("sphere",),
    ("drawing", "external", "pixels"),
    ("hub", "progress", "files", "lock", "devices", "distributed", "tensors", "classes", "texts"),
    ("errors",),
)
"""From the top down; what stands on one line may know each other, without circles."""


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("spheregen", exclude_type_checking_imports=True)


def test_every_room_has_its_place(graph: grimp.ImportGraph) -> None:
    rooms = {name.split(".")[1] for name in graph.modules if "." in name} - {"recipes", "assets"}
    assert rooms == {room for layer in LAYERS for room in layer}


def test_imports_go_down(graph: grimp.ImportGraph) -> None:
    layers = [grimp.Layer(*layer, independent=False) for layer in LAYERS]
    broken = graph.find_illegal_dependencies_for_layers(layers=layers, containers={"spheregen"})
    assert not broken, "\n".join(f"{each.importer} -> {each.imported}" for each in broken)


def test_there_are_no_circles(graph: grimp.ImportGraph) -> None:
    arrows = [(one, other) for one in graph.modules for other in graph.find_modules_directly_imported_by(one)]
    circles = [sorted(part) for part in nx.strongly_connected_components(nx.DiGraph(arrows)) if len(part) > 1]
    assert not circles
