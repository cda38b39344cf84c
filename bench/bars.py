"""What `bench accuracy` asks of compression: a row for each model, scheme and score, its bar, and the rivals that offer the same bits."""

from __future__ import annotations

from dataclasses import dataclass

from bench.contests import Candidate, of


def kept(found: float, dense: float, limit: float) -> bool:
    """Whether a score is at most `limit` below the dense one's; as much counts as met, whatever binary fractions make of it."""
    return found >= dense - limit - 1e-9


@dataclass(frozen=True)
class Bar:
    """One row: a scheme for some of a model's weights and the score it must reach; `how` compares score, dense and limit."""

    model: str
    scheme: str
    score: str
    how: str
    limit: float
    targets: str = "*"
    activations: str = "auto"
    scope: str = "layer"
    """Who gets the zeros (`sparsify.scope`); their share of all weights is the scheme's either way."""
    reorder: bool = False
    """Rows in an order in which blocks lose less (`sparsify.reorder`)."""
    depthwise: str = ""
    """Scheme of depthwise convolutions, where they have their own."""
    budget: str = ""
    """In place of a scheme: what the whole model may cost."""
    program: bool = False
    """The budget counts weights.bin of a compiled program, which is scored; else the portable ONNX."""

    @property
    def lower_is_better(self) -> bool:
        return self.how == "at most times"

    @property
    def recipe(self) -> str:
        """Scheme of weights, and of activations where they are rounded; what else was asked of the zeros."""
        if self.budget:
            return f"{self.budget} of {'weights.bin' if self.program else 'ONNX'}"
        asked = [f"scope {self.scope}"] * (self.scope != "layer") + ["rows reordered"] * self.reorder
        asked += [f"depthwise {self.depthwise}"] * bool(self.depthwise)
        if asked:
            return ", ".join([self.scheme, *asked])
        return self.scheme if self.activations == "auto" else f"{self.scheme} x {self.activations}"

    @property
    def rivals(self) -> tuple[Candidate, ...]:
        """Those with as many bits for the same kind of layer."""
        return RIVALS.get((self.recipe, self.targets), ())

    def met(self, found: float, dense: float) -> bool:
        """Whether the calibrated score is good enough."""
        match self.how:
            case "at least":
                return found >= self.limit
            case "lose at most":
                return kept(found, dense, self.limit)
            case _:
                return found <= dense * self.limit

    def words(self) -> str:
        """The bar as the table shows it."""
        return {"at least": f">= {self.limit}", "lose at most": f"-{self.limit}"}.get(
            self.how, f"<= {self.limit} x dense"
        )


def _minilm(
    scheme: str, cosine: float, spearman: float | None = None, scope: str = "layer", reorder: bool = False
) -> list[Bar]:
    rows = [Bar("minilm", scheme, "cosine", "at least", cosine, "MatMul", scope=scope, reorder=reorder)]
    if spearman is not None:
        rows.append(Bar("minilm", scheme, "Spearman", "lose at most", spearman, "MatMul", scope=scope, reorder=reorder))
    return rows


def _stories(scheme: str, limit: float) -> list[Bar]:
    return [Bar("stories_prefill", scheme, "perplexity", "at most times", limit, "MatMul")]


def _top1(model: str, scheme: str, limit: float) -> list[Bar]:
    return [Bar(model, scheme, "top-1 %", "lose at most", limit)]


BARS = [
    *_minilm("int4-g32", 0.994, 0.002),
    *_minilm("uint4-g32", 0.994, 0.002),
    *_minilm("cb4-g32", 0.994, 0.002),
    *_minilm("int3-g32", 0.973),
    *_minilm("uint3-g32", 0.973),
    *_minilm("cb3-c", 0.955),
    *_minilm("int2-g32", 0.90),
    *_minilm("uint2-g32", 0.90),
    *_minilm("vq2d4-c", 0.89),
    *_minilm("s50", 0.935, 0.003),
    *_minilm("s2:4", 0.89, 0.004),
    *_minilm("s16x1@50-cb4-g32", 0.82, 0.015),
    *_minilm("s16x1@50-cb4-g32", 0.82, 0.015, scope="output"),
    *_minilm("s16x1@50-cb4-g32", 0.82, 0.015, scope="output", reorder=True),
    *_stories("int4-g32", 1.03),
    *_stories("uint4-g32", 1.03),
    *_stories("cb4-g32", 1.03),
    *_stories("pg4-g32", 1.03),
    *_stories("int3-g32", 1.20),
    *_stories("uint3-g32", 1.20),
    *_stories("cb3-g32", 1.20),
    *_stories("uint2-g32", 2.8),
    *_stories("vq2d4-c", 2.8),
    *_stories("s50", 2.4),
    *_stories("s2:4", 3.5),
    *_top1("resnet20", "int4", 0.2),
    *_top1("resnet20", "cb4", 0.2),
    *_top1("resnet20", "int3", 0.4),
    *_top1("resnet20", "cb3", 0.4),
    *_top1("resnet20", "int2-g32", 1.6),
    *_top1("resnet20", "uint2-g32", 1.6),
    *_top1("resnet20", "s50", 0.9),
    *_top1("resnet20", "s2:4", 1.9),
    *_top1("resnet20", "s16x1@50-cb4-g32", 5.0),
    *_top1("mobilenet_v2", "cb4", 1.0),
    *_top1("mobilenet_v2", "cb4-c", 1.0),
    Bar("mobilenet_v2", "cb4", "top-1 %", "lose at most", 1.0, depthwise="int8"),
    Bar("mobilenet_v2", "cb4-c", "top-1 %", "lose at most", 1.0, depthwise="int8"),
    Bar("mobilenet_v2", "int8", "top-1 %", "lose at most", 0.7, activations="int8-static"),
    Bar("mobilenet_v2", "", "top-1 %", "lose at most", 2.5, budget="1.45MB"),
    Bar("minilm", "", "cosine", "at least", 0.985, budget="11.5MB"),
    Bar("minilm", "", "cosine", "at least", 0.955, budget="9MB"),
    Bar("kws", "", "top-1 %", "lose at most", 1.0, budget="20KB", program=True),
]
"""What post-training compression without labels must keep."""


def _ort(*variants: str) -> tuple[Candidate, ...]:
    return of("ort_quantiser", *variants)


def _nncf(*variants: str) -> tuple[Candidate, ...]:
    return of("openvino", *variants)


_FOUR = (
    *_ort("rtn4-g32", "rtn4_asym-g32", "kquant4-g32", "hqq4-g32", "gptq4-g32"),
    *_nncf("int4_sym-g32", "int4_asym-g32", "nf4-g32", "cb4-g32", "int4_sym-g32-tuned", "int4_sym-g32-gptq"),
)
_THREE = _nncf("int3_sym-g32", "int3_sym-g32-tuned", "int3_sym-g32-gptq")
_TWO = (*_ort("rtn2-g32", "rtn2_asym-g32"), *_nncf("int2_sym-g32", "int2_sym-g32-tuned"))

RIVALS = {
    **{(scheme, "MatMul"): _FOUR for scheme in ("int4-g32", "uint4-g32", "cb4-g32", "pg4-g32")},
    **{(scheme, "MatMul"): _THREE for scheme in ("int3-g32", "uint3-g32", "cb3-g32")},
    **{(scheme, "MatMul"): _TWO for scheme in ("int2-g32", "uint2-g32")},
    ("cb3-c", "MatMul"): _nncf("int3_sym-row", "int3_sym-row-tuned"),
    ("vq2d4-c", "MatMul"): (*_ort("rtn2_asym-g128"), *_nncf("int2_sym-row", "int2_sym-row-tuned")),
    **{(recipe, "*"): _ort("static4") for recipe in ("int4", "cb4", "cb4-c", "1.45MB of ONNX", "20KB of weights.bin")},
    ("int8 x int8-static", "*"): (*_ort("static", "static-percentile", "static-entropy", "dynamic"), *_nncf("ptq")),
}
"""By recipe and targets: what others offer in as many bits. Nobody else has less than 8 bits for convolutions with one scale a row or
group but onnxruntime's QDQ format (`static4`, activations of 16 bits), nor zeros in a pattern of blocks: those rows meet
magnitude pruning only."""
