"""Share of the roof: how near a time is to what the machine's memory and arithmetic allow at best."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bench.contests import Product
from bench.interleave import Series

_PRIVATE = ("L1", "L2")  # caches of one core: with more threads there is more of them


@dataclass(frozen=True)
class Roof:
    """What `bench roof` measured; rates are pairs (one thread, all threads) a second."""

    levels: tuple[tuple[str, int, tuple[float, float]], ...]
    """Name, size in bytes (0: main memory), bytes read, from the nearest on."""
    fma: tuple[float, float]
    int8: tuple[float, float]
    threads: int

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Roof:
        """From the JSON file of `bench roof`. Raises KeyError when it is none."""
        roof = data["roof"]

        def pair(rate: Mapping[str, float]) -> tuple[float, float]:
            return rate["one"], rate["all"]

        levels = tuple((level["name"], level["size"], pair(level["read"])) for level in roof["levels"])
        return cls(levels, pair(roof["fma"]), pair(roof["int8"]), roof["threads"])

    def read_s(self, stored: float, working_set: float, threads: int) -> float:
        """Least seconds to read `stored` bytes out of a working set."""
        for name, size, rate in self.levels:
            if size == 0 or working_set <= size * (self.threads if threads > 1 and name in _PRIVATE else 1):
                return stored / rate[threads > 1]
        return stored / self.levels[-1][2][threads > 1]

    def memory_share(self, series: Series, threads: int) -> float:
        """Share of main memory's read bandwidth that the stored bytes reach."""
        return self.read_s(series.stored, float("inf"), threads) / (series.median * 1e-6)

    def share(self, product: Product, scheme: str, series: Series, layers: int, threads: int) -> float:
        """Least time for reading the stored bytes and for the arithmetic, whichever is longer, over the measured time."""
        is_float = re.fullmatch(r"(fp\d+|s[^-]*(-fp\d+)?)", scheme) is not None
        operations = 2 * product.macs * kept(scheme) / (self.fma if is_float else self.int8)[threads > 1]
        reading = self.read_s(series.stored, series.stored * layers, threads)
        return max(operations, reading) / (series.median * 1e-6)


def kept(scheme: str) -> float:
    """Share of the weights that a scheme stores: "s90", "s16x1@50-...", "s2:4-..."."""
    structure = scheme.partition("-")[0]
    if match := re.fullmatch(r"s(?:\d+x\d+@)?(\d+(?:\.\d+)?)", structure):
        return 1 - float(match[1]) / 100
    if match := re.fullmatch(r"s(\d+):(\d+)", structure):
        return int(match[1]) / int(match[2])
    return 1.0
