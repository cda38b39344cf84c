"""Train the two small models of the tests and write them as ONNX: python -m tests.models.make_digits

The ONNX graphs are written node by node, so that BatchNormalization, GlobalAveragePool, Gemm and MatMul stay the
operators they are in files met in the wild (torch's exporter folds or rewrites them).
"""

from __future__ import annotations

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from tests.models import DIGITS, DIGITS_MLP, accuracy, digits

EPOCHS = 40
BATCH = 64


class Cnn(nn.Module):
    """Stem, depthwise separable block with stride 2, residual block, pooling, classifier (11 k parameters)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_bn = nn.Conv2d(1, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 16, 3, 2, 1, groups=16, bias=False)
        self.depthwise_bn = nn.BatchNorm2d(16)
        self.pointwise, self.pointwise_bn = nn.Conv2d(16, 32, 1, bias=False), nn.BatchNorm2d(32)
        self.residual, self.residual_bn = nn.Conv2d(32, 32, 3, 1, 1, bias=False), nn.BatchNorm2d(32)
        self.classifier = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem_bn(self.stem(x)))
        x = F.relu6(self.depthwise_bn(self.depthwise(x)))
        x = F.relu(self.pointwise_bn(self.pointwise(x)))
        x = F.relu(x + self.residual_bn(self.residual(x)))
        return self.classifier(x.mean((2, 3)))


class Mlp(nn.Module):
    """64 -> 48 -> 10 (4 k parameters)."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.classifier = nn.Linear(64, 48), nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(F.relu(self.hidden(x.flatten(1))))


def train(model: nn.Module, images: Tensor, labels: Tensor) -> nn.Module:
    """Adam with a one-cycle learning rate; the order of the batches is seeded."""
    generator = torch.Generator().manual_seed(0)
    optimiser = torch.optim.Adam(model.parameters())
    steps = EPOCHS * (len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.01, steps)
    model.train()
    for _ in range(EPOCHS):
        order = torch.randperm(len(images), generator=generator)
        for batch in order[: len(order) // BATCH * BATCH].view(-1, BATCH):
            optimiser.zero_grad()
            F.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimiser.step()
            schedule.step()
    return model.eval()


class Graph:
    """Collects nodes and weights of one ONNX graph."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[TensorProto] = []

    def weight(self, name: str, value: Tensor | NDArray[np.float32]) -> str:
        """Add an initialiser; returns its name."""
        array = value.detach().numpy() if isinstance(value, Tensor) else value
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def node(self, op: str, inputs: list[str], output: str, **attributes: object) -> str:
        """Add a node named after its output; returns the output."""
        self.nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def conv(self, x: str, name: str, conv: nn.Conv2d, bn: nn.BatchNorm2d) -> str:
        """Conv without bias, then BatchNormalization."""
        (kernel, _), (stride, _), pad = conv.kernel_size, conv.stride, int(conv.padding[0])
        y = self.node(
            "Conv",
            [x, self.weight(f"{name}.weight", conv.weight)],
            f"{name}_conv",
            kernel_shape=[kernel] * 2,
            strides=[stride] * 2,
            pads=[pad] * 4,
            group=conv.groups,
        )
        statistics = {"scale": bn.weight, "bias": bn.bias, "mean": bn.running_mean, "var": bn.running_var}
        inputs = [self.weight(f"{name}_bn.{key}", value) for key, value in statistics.items()]  # type: ignore[arg-type]
        return self.node("BatchNormalization", [y, *inputs], f"{name}_bn", epsilon=bn.eps)

    def model(self, name: str, shape: list[int | str]) -> onnx.ModelProto:
        """The checked model with input "x" of that shape and output "logits" [N, 10]."""
        graph = helper.make_graph(
            self.nodes,
            name,
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 10])],
            self.weights,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model, full_check=True)
        return model


def cnn_to_onnx(m: Cnn) -> onnx.ModelProto:
    """The trained convolutional network as ONNX."""
    g = Graph()
    x = g.node("Relu", [g.conv("x", "stem", m.stem, m.stem_bn)], "stem_relu")
    x = g.conv(x, "depthwise", m.depthwise, m.depthwise_bn)
    bounds = [g.weight("zero", np.zeros((), np.float32)), g.weight("six", np.full((), 6, np.float32))]
    x = g.node("Clip", [x, *bounds], "depthwise_relu6")
    x = g.node("Relu", [g.conv(x, "pointwise", m.pointwise, m.pointwise_bn)], "pointwise_relu")
    y = g.conv(x, "residual", m.residual, m.residual_bn)
    x = g.node("Relu", [g.node("Add", [x, y], "residual_add")], "residual_relu")
    x = g.node("Flatten", [g.node("GlobalAveragePool", [x], "pool")], "flat")
    weights = [g.weight("classifier.weight", m.classifier.weight), g.weight("classifier.bias", m.classifier.bias)]
    g.node("Gemm", [x, *weights], "logits", transB=1)
    return g.model("digits", ["N", 1, 8, 8])


def mlp_to_onnx(m: Mlp) -> onnx.ModelProto:
    """The trained perceptron as ONNX: MatMul with weights [K, N], then Add."""
    g = Graph()
    x = g.node("MatMul", ["x", g.weight("hidden.weight", m.hidden.weight.T)], "hidden_matmul")
    x = g.node("Add", [x, g.weight("hidden.bias", m.hidden.bias)], "hidden_add")
    x = g.node("Relu", [x], "hidden_relu")
    x = g.node("MatMul", [x, g.weight("classifier.weight", m.classifier.weight.T)], "classifier_matmul")
    g.node("Add", [x, g.weight("classifier.bias", m.classifier.bias)], "logits")
    return g.model("digits_mlp", ["N", 64])


def main() -> None:
    """Train both models, print their held-out accuracy, write the files."""
    torch.set_num_threads(1)  # the same sums in the same order, so the same weights
    torch.use_deterministic_algorithms(True)
    (images, labels), (test_images, test_labels) = digits()
    for kind, convert, path in ((Cnn, cnn_to_onnx, DIGITS), (Mlp, mlp_to_onnx, DIGITS_MLP)):
        torch.manual_seed(0)
        model = train(kind(), torch.from_numpy(images), torch.from_numpy(labels))
        with torch.no_grad():
            logits = model(torch.from_numpy(test_images)).numpy()
        onnx.save(convert(model), path)  # type: ignore[operator]
        print(f"{path.name}: {100 * accuracy(logits, test_labels):.1f} % held out, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
