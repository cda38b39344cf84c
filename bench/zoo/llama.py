"""stories260K, a Llama of llama2.c, as torch modules: a prefill without cache and a decode step with one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

M = TypeVar("M", bound="Llama")


@dataclass(frozen=True)
class Config:
    """The seven int32 of a llama2.c header."""

    dim: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    context: int

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.dim // self.heads


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last axis (eps 1e-5)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * self.weight


class Block(nn.Module):
    """The weights of one Llama layer and its two halves around the attention."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        kv = c.kv_heads * c.head_dim
        self.attention_norm, self.ffn_norm = RMSNorm(c.dim), RMSNorm(c.dim)
        self.wq, self.wk = nn.Linear(c.dim, c.dim, bias=False), nn.Linear(c.dim, kv, bias=False)
        self.wv, self.wo = nn.Linear(c.dim, kv, bias=False), nn.Linear(c.dim, c.dim, bias=False)
        self.w1, self.w3 = nn.Linear(c.dim, c.hidden, bias=False), nn.Linear(c.dim, c.hidden, bias=False)
        self.w2 = nn.Linear(c.hidden, c.dim, bias=False)
        self.c = c

    def qkv(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated q [B, H, T, hd] and k [B, KV, T, hd], and v [B, KV, T, hd], of x [B, T, D]."""
        x = self.attention_norm(x)
        b, t, _ = x.shape
        q = self.wq(x).view(b, t, self.c.heads, -1).transpose(1, 2)
        k = self.wk(x).view(b, t, self.c.kv_heads, -1).transpose(1, 2)
        v = self.wv(x).view(b, t, self.c.kv_heads, -1).transpose(1, 2)
        return rotate(q, cos, sin), rotate(k, cos, sin), v

    def attend(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """Attention of q over k, v [B, KV, S, hd] with an additive mask [T, S], output projection, residual."""
        b, h, t, hd = q.shape
        groups = h // self.c.kv_heads
        q = q.reshape(b, self.c.kv_heads, groups * t, hd)  # the query heads of one kv head share its matmul
        scores = (q @ k.transpose(2, 3)).view(b, self.c.kv_heads, groups, t, -1) * hd**-0.5 + mask
        weights = scores.softmax(-1).view(b, self.c.kv_heads, groups * t, -1)
        out = (weights @ v).view(b, h, t, hd).transpose(1, 2).reshape(b, t, h * hd)
        return x + self.wo(out)

    def feed_forward(self, x: Tensor) -> Tensor:
        """SwiGLU with residual."""
        y = self.ffn_norm(x)
        return x + self.w2(F.silu(self.w1(y)) * self.w3(y))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of neighbouring pairs; x [B, H, T, hd], cos and sin [T, hd/2]."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(3)


class Llama(nn.Module):
    """Weights of the model, tied head. Subclasses say how it is run."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.c = c
        self.embedding = nn.Embedding(c.vocab, c.dim)
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.layers))
        self.norm = RMSNorm(c.dim)
        angle = torch.outer(torch.arange(c.context), 10000.0 ** (-torch.arange(0, c.head_dim, 2) / c.head_dim))
        self.register_buffer("cos", angle.cos().float(), persistent=False)
        self.register_buffer("sin", angle.sin().float(), persistent=False)

    def head(self, x: Tensor) -> Tensor:
        """Logits of the tied head."""
        return F.linear(self.norm(x), self.embedding.weight)


class Prefill(Llama):
    """tokens [B, T] int64 -> logits [B, T, vocab], causal, no cache."""

    def forward(self, tokens: Tensor) -> Tensor:
        t = tokens.shape[1]
        mask = torch.full((t, t), -1e9).triu(1)
        x = self.embedding(tokens)
        for block in self.blocks:
            q, k, v = block.qkv(x, self.cos[:t], self.sin[:t])
            x = block.feed_forward(block.attend(x, q, k, v, mask))
        return self.head(x)


class Decode(Llama):
    """One step with a cache of S slots.

    token [1, 1] and position [1] int64, caches (k and v of layer 0, of layer 1 ...) [1, KV, S, hd] with the keys
    and values of earlier tokens -> logits [1, vocab] and the caches with this token's row written at `position`.
    """

    def forward(self, token: Tensor, position: Tensor, *caches: Tensor) -> tuple[Tensor, ...]:
        slots = torch.arange(caches[0].shape[2])
        here = (slots == position)[:, None]
        mask = torch.where(slots <= position, 0.0, -1e9)[None]
        cos, sin = self.cos.index_select(0, position), self.sin.index_select(0, position)
        x = self.embedding(token)
        updated: list[Tensor] = []
        for i, block in enumerate(self.blocks):
            q, k, v = block.qkv(x, cos, sin)
            k, v = torch.where(here, k, caches[2 * i]), torch.where(here, v, caches[2 * i + 1])
            updated += [k, v]
            x = block.feed_forward(block.attend(x, q, k, v, mask))
        return self.head(x)[:, 0], *updated


def load(kind: type[M], path: Path) -> M:
    """Read a llama2.c checkpoint (7 int32 header, then float32 tensors) into a Prefill or Decode module."""
    raw = path.read_bytes()
    header = np.frombuffer(raw, "<i4", 7)
    c = Config(*(int(v) for v in header))
    values = np.frombuffer(raw, "<f4", offset=28)
    model = kind(c)
    used = 0

    def take(*parameters: nn.Parameter) -> None:
        nonlocal used
        for p in parameters:
            p.data = torch.from_numpy(values[used : used + p.numel()].reshape(p.shape).copy())
            used += p.numel()

    blocks = list(model.blocks)
    take(model.embedding.weight)
    take(*(b.attention_norm.weight for b in blocks))
    for name in ("wq", "wk", "wv", "wo"):
        take(*(getattr(b, name).weight for b in blocks))
    take(*(b.ffn_norm.weight for b in blocks))
    for name in ("w1", "w2", "w3"):
        take(*(getattr(b, name).weight for b in blocks))
    take(model.norm.weight)
    tables = c.context * c.head_dim  # llama2.c stores the rotary tables too
    if c.vocab < 0 or values.size != used + tables:
        raise ValueError(f"{path}: {values.size} floats, expected {used + tables} of a tied checkpoint {c}")
    return model.eval()
