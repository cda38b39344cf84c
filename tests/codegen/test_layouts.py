"""The plan of layouts: the cut against brute force, conversions of networks of inverted residuals."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper

from sparsec import ops
from sparsec.codegen.context import Lowering
from sparsec.codegen.kernels.table import choice_of
from sparsec.codegen.layouts import Choice, move_time, plan_layouts
from sparsec.codegen.lower import lower
from sparsec.codegen.mincut import MinCut
from sparsec.codegen.program import Program
from sparsec.op_view import view
from sparsec.target import NAMED, host_target
from tests.kernels.programs import reference, run_program


def test_cut_is_minimal() -> None:
    rng = np.random.default_rng()
    for _ in range(30):
        n = int(rng.integers(2, 8))
        edges = [(*rng.integers(0, n, 2).tolist(), int(rng.integers(0, 20))) for _ in range(3 * n)]

        def cost(side: set[int], edges: list[tuple[int, int, int]] = edges) -> int:
            return sum(c for a, b, c in edges if a not in side and b in side)

        net = MinCut(0, n - 1)
        for a, b, c in edges:
            net.edge(a, b, c)
        middle = range(1, n - 1)
        sides = [{n - 1, *s} for size in range(n - 1) for s in itertools.combinations(middle, size)]
        best = min(map(cost, sides))
        found = net.sink_side()
        assert 0 not in found
        assert cost(found) == best  # type: ignore[arg-type]
        assert found == set.intersection(*(s for s in sides if cost(s) == best))  # the smallest of all minimal ones


def _elementwise_graph(nodes: int) -> ir.Model:
    """A random graph of binary nodes on (1, 4, 3, 3)."""
    rng = np.random.default_rng()
    names, built = ["x0", "x1"], []
    for index in range(nodes):
        left, right = rng.choice(names, 2)
        built.append(helper.make_node("Add", [left, right], [f"v{index}"], name=f"n{index}"))
        names.append(f"v{index}")
    kind = 1
    info = [helper.make_tensor_value_info(n, kind, (1, 4, 3, 3)) for n in names]
    graph = helper.make_graph(built, "g", info[:2], [info[-1]], value_info=info[2:-1])
    return ir.from_proto(helper.make_model(graph))


def _is_cheapest(model: ir.Model) -> bool:
    """Whether the plan for random costs is as cheap as the best of all labellings."""
    low = Lowering(model, host_target(), "test")
    rng = np.random.default_rng()
    nodes = list(model.graph)
    table: dict[str | None, Choice] = {}
    for node in nodes:
        cost = {"row": float(rng.integers(0, 900)), "cl": float(rng.integers(0, 900))}
        if rng.random() < 0.3:
            del cost["cl" if rng.random() < 0.5 else "row"]
        table[node.name] = Choice(cost)  # type: ignore[arg-type]

    def total(labels: dict[str | None, str]) -> float:
        result = sum(table[n.name].cost.get(labels[n.name], np.inf) for n in nodes)  # type: ignore[call-overload]
        for value in [*low.graph.inputs, *(n.outputs[0] for n in nodes)]:
            producer = value.producer()
            made = "row" if producer is None else labels[producer.name]
            readers = {labels[user.name] for user, _ in value.uses()} | ({"row"} if value.is_graph_output() else set())
            result += round(move_time(low, value)) * bool(readers - {made})
        return float(result)

    plan = plan_layouts(low, lambda node, _: table[node.name])
    names = [n.name for n in nodes]
    every = (dict(zip(names, c, strict=True)) for c in itertools.product(("row", "cl"), repeat=len(nodes)))
    return total({n.name: str(plan.get(n, "row")) for n in nodes}) == min(map(total, every))


def test_plan_is_the_cheapest_of_all() -> None:
    assert all(_is_cheapest(_elementwise_graph(7)) for _ in range(20))


def test_plan_lists_what_could_be_channels_last() -> None:
    low = Lowering(_elementwise_graph(3), host_target(), "test")
    choice = Choice({"row": 1.0, "cl": 2.0})
    assert plan_layouts(low, lambda node, _: choice) == dict.fromkeys(
        low.graph, "row"
    )  # not left to each rule's default


def _network(blocks: int = 3) -> tuple[ir.Model, dict[str, np.ndarray]]:
    """A stem, inverted residuals (1x1, depthwise, 1x1, Add) and a pool: MobileNetV2 in small."""
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 20}, name="net")
    model = ir.Model(graph, ir_version=10)

    def conv(x: ir.Value, filters: int, kernel: int, stride: int = 1, group: int = 1) -> ir.Value:
        assert x.shape is not None
        columns = int(x.shape[1]) // group * kernel * kernel  # type: ignore[arg-type]
        name = f"conv{len(graph)}"
        weight = (np.random.default_rng().normal(size=(filters, columns)) / np.sqrt(columns)).astype(np.float32)
        built = ops.conv(
            x, ops.weight_inputs(weight, f"{name}.w"), kernel_shape=(kernel, kernel), name=name, group=group,
            strides=(stride, stride), pads=[kernel // 2] * 4, activation="relu",
        )  # fmt: skip
        graph.append(built.node)
        built.register(model)
        built.output.name = f"{name}.y"
        return built.output

    x = ir.Value(name="x", shape=ir.Shape((1, 3, 33, 33)), type=ir.TensorType(ir.DataType.FLOAT))
    graph.inputs.append(x)
    y = conv(x, 8, 3, 2)
    for index in range(blocks):
        wide = conv(y, 24, 1)
        deep = conv(wide, 24, 3, 1, group=24)
        narrow = conv(deep, 8, 1)
        add = ir.Node("", "Add", [y, narrow], name=f"add{index}")
        add.outputs[0].name, add.outputs[0].shape, add.outputs[0].type = f"add{index}.y", narrow.shape, narrow.type
        graph.append(add)
        y = add.outputs[0]
    pool = ir.Node("", "GlobalAveragePool", [y], name="pool")
    pool.outputs[0].name, pool.outputs[0].type = "y", y.type
    pool.outputs[0].shape = ir.Shape((1, 8, 1, 1))
    graph.append(pool)
    graph.outputs.append(pool.outputs[0])
    return model, {"x": np.random.default_rng().normal(size=(1, 3, 33, 33)).astype(np.float32)}


def _pointwise_in_row(which: Callable[[str], bool]) -> Callable[[ir.Node, Lowering], Choice | None]:
    """The table's choices, but the 1x1 convolutions named by `which` want row order, as sparse ones do."""

    def choose(node: ir.Node, low: Lowering) -> Choice | None:
        if node.op_type == "Conv" and view(node).kernel_shape == (1, 1) and which(str(node.name)):
            return Choice({"row": 0.0})
        return choice_of(node, low)

    return choose


def _conversions(program: Program) -> int:
    return sum(step.op == "Layout" for step in program.steps)


def _plan(model: ir.Model, which: Callable[[str], bool]) -> dict[str, str]:
    low = Lowering(model, host_target(), "test")
    return {str(n.name): layout for n, layout in plan_layouts(low, _pointwise_in_row(which)).items()}


def test_dense_network_is_channels_last_throughout() -> None:
    model, feed = _network()
    program = lower(model, host_target(), "net")
    assert _conversions(program) <= 1  # the model's input
    assert {s.spec.params["layout"] for s in program.steps if s.spec.family == "depthwise"} == {"cl"}
    np.testing.assert_allclose(run_program(program, feed)[0], reference(model, feed)[0], rtol=1e-4, atol=1e-5)


def test_sparse_network_is_in_row_order_throughout() -> None:
    model, _ = _network()
    plan = _plan(model, lambda name: True)
    others = {name: layout for name, layout in plan.items() if name != "conv0"}  # the stem has no choice here
    assert others
    assert set(others.values()) == {"row"}


def test_mixed_network_converts_where_it_is_cheapest() -> None:
    model, _ = _network()
    plan = _plan(model, lambda name: name == "conv1")  # the first expansion alone
    assert plan["conv2"] == "cl"
    assert plan["add0"] == plan["add1"] == "cl"
    assert set(_plan(model, lambda name: name in ("conv1", "conv3")).values()) == {"row", "cl"}
    assert (
        _plan(model, lambda name: name in ("conv1", "conv3"))["conv2"] == "row"
    )  # the depthwise between two in row order


@pytest.mark.parametrize("layout", ["row", "cl"])
@pytest.mark.parametrize("target", ["cpu", "x86-avx2", "arm"])
def test_plan_is_followed(layout: str, target: str) -> None:
    model, feed = _network(2)
    machine = host_target() if target == "cpu" else NAMED[target]
    program = lower(model, machine, "net", dict.fromkeys(model.graph, layout))  # type: ignore[arg-type]
    ways = {s.spec.params["layout"] for s in program.steps if "layout" in s.spec.params and s.op != "GlobalAveragePool"}
    assert ways == {layout}
    if set(machine.features) <= set(host_target().features):
        np.testing.assert_allclose(run_program(program, feed)[0], reference(model, feed)[0], rtol=1e-4, atol=1e-5)
