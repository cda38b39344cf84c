"""MiniLM for `bench gpu`: weights and inputs that every machine draws alike, and the encoder as a torch module for the rivals.

The weights take 16 values, so that the archive stays small; times do not depend on what they are.
"""

from __future__ import annotations

from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

Array = np.ndarray[Any, Any]

VOCABULARY, POSITIONS, WIDTH, HIDDEN, HEADS, LAYERS = 30522, 512, 384, 1536, 12, 6
CONFIG: dict[str, int | float] = {
    "vocab_size": VOCABULARY,
    "max_position_embeddings": POSITIONS,
    "type_vocab_size": 2,
    "hidden_size": WIDTH,
    "intermediate_size": HIDDEN,
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "layer_norm_eps": 1e-12,
}
_LEVELS = np.array([NormalDist().inv_cdf((i + 0.5) / 16) for i in range(16)], np.float32)
_DISTINCT_WORDS = 512


def drawn(shape: tuple[int, ...], seed: int) -> Array:
    """uint64 [shape]: splitmix64 of the index, the same wherever it is computed."""
    x = np.arange(1, int(np.prod(shape)) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed << 32)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Array = x ^ (x >> np.uint64(31))
    return mixed.reshape(shape)


def _normal(shape: tuple[int, ...], seed: int) -> Array:
    return _LEVELS[drawn(shape, seed) >> np.uint64(60)]


def weights() -> dict[str, Array]:
    """float32 parameters by the names of examples/minilm_model.py."""
    words = _normal((_DISTINCT_WORDS, WIDTH), 1)
    made = {
        "words.weight": words[np.arange(VOCABULARY) % _DISTINCT_WORDS],
        "positions.weight": _normal((POSITIONS, WIDTH), 2),
        "types.weight": _normal((2, WIDTH), 3),
        **_affine("norm"),
    }
    for i in range(LAYERS):
        layer = f"layers.{i}"
        shapes = {f"attention.{name}": (WIDTH, WIDTH) for name in ("query", "key", "value", "output")}
        shapes |= {"up": (HIDDEN, WIDTH), "down": (WIDTH, HIDDEN)}
        for j, (name, (rows, cols)) in enumerate(shapes.items()):
            seed = 16 * (i + 1) + 2 * j
            made[f"{layer}.{name}.weight"] = _normal((rows, cols), seed) / np.float32(np.sqrt(cols))
            made[f"{layer}.{name}.bias"] = _normal((rows,), seed + 1) / np.float32(8)
        made |= _affine(f"{layer}.attention_norm") | _affine(f"{layer}.norm")
    return made


def _affine(name: str) -> dict[str, Array]:
    return {f"{name}.weight": np.ones(WIDTH, np.float32), f"{name}.bias": np.zeros(WIDTH, np.float32)}


def inputs(batch: int, tokens: int) -> dict[str, Array]:
    """int64 [batch, tokens]: words of any kind, none of them masked."""
    ids = (drawn((batch, tokens), 4) % np.uint64(VOCABULARY)).astype(np.int64)
    return {"input_ids": ids, "attention_mask": np.ones((batch, tokens), np.int64)}


def encoder() -> torch.nn.Module:
    """The model as examples/minilm_model.py computes it, on the GPU in fp16, with torch's fused attention; the mask is fp16 too."""
    import torch
    from torch import nn
    from torch.nn.functional import gelu, scaled_dot_product_attention

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
            self.value, self.output = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

        def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            b, t, d = x.shape
            q, k, v = (m(x).view(b, t, HEADS, d // HEADS).transpose(1, 2) for m in (self.query, self.key, self.value))
            mixed = scaled_dot_product_attention(q, k, v, attn_mask=mask)
            return self.output(mixed.transpose(1, 2).reshape(b, t, d))

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.attention_norm = Attention(), nn.LayerNorm(WIDTH, CONFIG["layer_norm_eps"])
            self.up, self.down = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)
            self.norm = nn.LayerNorm(WIDTH, CONFIG["layer_norm_eps"])

        def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            x = self.attention_norm(x + self.attention(x, mask))
            return self.norm(x + self.down(gelu(self.up(x))))

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.positions = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(POSITIONS, WIDTH)
            self.types = nn.Embedding(2, WIDTH)
            self.norm = nn.LayerNorm(WIDTH, CONFIG["layer_norm_eps"])
            self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))

        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            kept = mask.to(self.types.weight.dtype)
            x = self.words(ids) + self.positions.weight[: ids.shape[1]] + self.types.weight[0]
            x, added = self.norm(x), (1 - kept)[:, None, None, :] * -1e4
            for layer in self.layers:
                x = layer(x, added.expand(-1, 1, ids.shape[1], -1))
            kept = kept[:, :, None]
            mean = (x * kept).sum(1) / kept.sum(1)
            return mean / mean.float().pow(2).sum(1, keepdim=True).sqrt()

    model = Encoder()
    model.load_state_dict({name: torch.from_numpy(array) for name, array in weights().items()})
    return model.half().eval()
