"""The table a budget is spent by: error, bytes and seconds of every free weight in every scheme, and what lies under their sums."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sparsec.costs import Cost, Costs
from sparsec.errors import BudgetError
from sparsec.passes import Compressed
from sparsec.passes import compress as compress_graph
from sparsec.passes.budget.choose import choose, totals
from sparsec.passes.calibrate.candidates import Candidates
from sparsec.passes.trials import chosen_recipe
from sparsec.progress import Progress
from sparsec.recipe import Recipe

__all__ = ["BYTES", "ERROR", "SECONDS", "Ledger"]

ERROR, BYTES, SECONDS = 0, 1, 2
_NAMES = {ERROR: "error", BYTES: "size", SECONDS: "time"}
_ROUNDS = 12
_USED = 0.985
"""A choice that uses so much of what is limited is not looked beyond."""

_SINGLES = 6
"""Layers that are tried alone."""
_NOTHING = 2e-3
"""Prices of all schemes together that are a smaller share of the limit do not matter."""

Choice = Sequence[int]


class Ledger:
    """Costs of choices: `choice[i]` is an index into `options[i]`, the first of which is fp32.

    Sums of the table are what a whole model costs up to what layers share (functions of the file, conversions of layouts): `real` builds
    the graph and finds out, and `fitted` corrects its limits by the difference until they hold.
    """

    def __init__(
        self,
        source: ir.Model,
        recipe: Recipe,
        found: Sequence[Candidates],
        costs: Costs,
        progress: Progress | None = None,
    ) -> None:
        self.source, self.recipe, self.found, self._costs = source, recipe, found, costs
        self.options = [["fp32", *entry.schemes] for entry in found]
        self._progress = progress
        self._known: dict[tuple[int, ...], Cost] = {}
        plain = self.cost([0] * len(found))
        self.timed = plain.seconds is not None
        self.table = [np.zeros((len(options), 3)) for options in self.options]
        for layer, entry in zip(self.table, found, strict=True):
            layer[0, BYTES] = plain.layer_nbytes.get(entry.name, 0.0)
            layer[0, SECONDS] = plain.layer_seconds.get(entry.name, 0.0)
            layer[1:, ERROR] = entry.errors
        self.rest = self._sums(plain) - totals(self.table, [0] * len(found))
        self.prices: dict[str, float] = {}
        shared = {s: self._fill(s) for s in dict.fromkeys(s for entry in found for s in entry.schemes)}
        self._share_out(shared)

    def _fill(self, scheme: str) -> NDArray[np.float64]:
        """Costs of one scheme, from a model that has it wherever it can be; returns what their sum lacks."""
        uniform = self._uniform(scheme)
        cost = self.cost(uniform)
        for layer, option, entry in zip(self.table, uniform, self.found, strict=True):
            if option:
                layer[option, BYTES] = cost.layer_nbytes.get(entry.name, 0.0)
                layer[option, SECONDS] = cost.layer_seconds.get(entry.name, 0.0)
        return self._sums(cost) - self.predicted(uniform)

    def _bytes_of(self, scheme: str) -> float:
        """Bytes of the layers that can have the scheme, over those of fp32."""
        found = [
            (layer[o, BYTES], layer[0, BYTES]) for layer, o in zip(self.table, self._uniform(scheme), strict=True) if o
        ]
        return float(np.sum([f for f, _ in found]) / np.sum([d for _, d in found])) if found else 1.0

    def _uniform(self, scheme: str) -> list[int]:
        return [options.index(scheme) if scheme in options else 0 for options in self.options]

    def _share_out(self, shared: Mapping[str, NDArray[np.float64]]) -> None:
        """What models of one scheme cost besides their weights: seconds go to the layers; of the bytes a part goes to the layers, a part
        is the price of the scheme, once. How large each is shows in models of one scheme on single layers and on halves of them."""
        first = next(iter(shared), None)
        if first is None:
            return
        whole = self._uniform(first)
        members = [i for i, option in enumerate(whole) if option]
        halves = [self._lack(whole, members[start::2]) for start in (0, 1)]
        picked = [members[int(i)] for i in np.linspace(0, len(members) - 1, min(len(members), _SINGLES))]
        single = float(np.mean([self._lack(whole, [i]) for i in picked]))
        # single = d + p, both halves = n d + 2 p, the whole = n d + p - q: d of a layer, p and q the prices of the scheme and of fp32.
        count = len(members)
        price = max(0.0, (count * single - sum(halves)) / (count - 2)) if count > 2 else 0.0
        own = max(0.0, sum(halves) - 2 * price)
        plain = max(0.0, own + price - float(shared[first][BYTES]))
        part = price / (own + price) if own + price else 0.0
        self.rest[BYTES] -= plain
        self.prices = {"fp32": plain}
        for scheme, lack in shared.items():
            total = float(lack[BYTES]) + plain
            self.prices[scheme] = max(0.0, part * total)
            members = [i for i, option in enumerate(self._uniform(scheme)) if option]
            extra = np.array([0.0, (total - self.prices[scheme]) / len(members), lack[SECONDS] / len(members)])
            for i in members:
                option = self.options[i].index(scheme)
                self.table[i][option] = np.maximum(self.table[i][option] + extra, 0.0)

    def _lack(self, whole: Choice, members: Sequence[int]) -> float:
        """Bytes of a model with the options of `whole` for some layers, fp32 for the others, less what the table says."""
        choice = [option if i in members else 0 for i, option in enumerate(whole)]
        return float(self._sums(self.cost(choice))[BYTES] - self.predicted(choice)[BYTES])

    def cost(self, choice: Choice) -> Cost:
        """What the model of a choice costs, its weights coded as they were tried."""
        key = tuple(choice)
        if key not in self._known:
            if self._progress is not None:
                self._progress("costs", len(self._known), 0, "")
            solved = {e.name: e.solved[c - 1] for e, c in zip(self.found, choice, strict=True) if c}
            self._known[key] = self._costs(compress_graph(self.source, self.recipe_of(choice), solved=solved))
        return self._known[key]

    def measured(self, compressed: Compressed) -> NDArray[np.float64]:
        """float64 [3]: 0, bytes and seconds of a compressed graph."""
        return self._sums(self._costs(compressed))

    def real(self, choice: Choice) -> NDArray[np.float64]:
        """float64 [3]: predicted error, bytes and seconds of the built model."""
        return np.array([self.predicted(choice)[ERROR], *self._sums(self.cost(choice))[1:]])

    def predicted(self, choice: Choice) -> NDArray[np.float64]:
        """float64 [3] from the table and the prices of the schemes in use."""
        used = {options[index] for options, index in zip(self.options, choice, strict=True)}
        return self.rest + totals(self.table, choice) + [0.0, sum(self.prices.get(s, 0.0) for s in used), 0.0]

    def _best(self, objective: int, room: Mapping[int, float]) -> list[int] | None:
        """The choice with the least `objective` within `room`, prices of schemes counted: schemes are added to those in use, the best
        one first, as long as that gains; where none gains alone, a smaller and a larger one may together. Without prices that matter
        all are in use from the beginning."""
        if sum(self.prices.values()) <= _NOTHING * room.get(BYTES, sum(float(layer[0, BYTES]) for layer in self.table)):
            return choose(self.table, objective, room)
        used: set[str] = set()
        best, lowest = None, (np.inf, np.inf)
        while True:
            winner = None
            # With several limits every choice is a search of its own, too slow for all pairs.
            for more in (self._others(used), self._around(used) if len(room) == 1 else []):
                for added in more:
                    choice = self._among({*used, *added}, objective, room)
                    if choice is None:
                        continue
                    sums = self.predicted(choice) - self.rest
                    over = max([0.0, *(float(sums[c] - limit) for c, limit in room.items())])
                    value = (over if over > 1e-9 * abs(over + 1) else 0.0, float(sums[objective]))
                    if value < lowest:
                        best, lowest, winner = choice, value, added
                if winner is not None:
                    break
            if winner is None:
                return best if best is not None and lowest[0] == 0.0 else None
            used.update(winner)

    def _others(self, used: set[str]) -> list[tuple[str, ...]]:
        return [(scheme,) for scheme in self.prices if scheme not in used]

    def _around(self, used: set[str]) -> list[tuple[str, ...]]:
        """Pairs of schemes not in use, one with fewer bytes than a scheme in use and one with more."""
        size = {scheme: self._bytes_of(scheme) for scheme in self.prices}
        others = [scheme for (scheme,) in self._others(used)]
        return [
            (small, large)
            for small in others
            for large in others
            if any(size[small] < size[scheme] < size[large] for scheme in used)
        ]

    def _among(self, schemes: set[str], objective: int, room: Mapping[int, float]) -> list[int] | None:
        """The best choice with these schemes, their prices paid; one with the least bytes where none fits. Weights that none of them can
        store take any."""
        kept = [
            [i for i, o in enumerate(options) if o in schemes] or [*range(len(options))] for options in self.options
        ]
        tables = [layer[indices] for layer, indices in zip(self.table, kept, strict=True)]
        price = sum(self.prices[scheme] for scheme in schemes)
        found = choose(tables, objective, {c: limit - (price if c == BYTES else 0.0) for c, limit in room.items()})
        if found is None:
            found = choose(tables, next(iter(room), objective), {})
        return None if found is None else [indices[option] for indices, option in zip(kept, found, strict=True)]

    def recipe_of(self, choice: Choice) -> Recipe:
        """The recipe that asks for a choice."""
        return chosen_recipe(self.recipe, self.schemes(choice))

    def schemes(self, choice: Choice) -> dict[str, str]:
        """Weight -> scheme."""
        return {e.name: o[c] for e, o, c in zip(self.found, self.options, choice, strict=True)}

    def bits(self, choice: Choice) -> float:
        """Stored bits per weight of the free weights, as the formats count them."""
        stored = [
            e.solved[c - 1].encoded.nbytes if c else 4 * e.elements for e, c in zip(self.found, choice, strict=True)
        ]
        return 8.0 * sum(stored) / sum(e.elements for e in self.found)

    def fitted(
        self, objective: int, limits: Mapping[int, float], margin: Mapping[int, float] | None = None
    ) -> list[int]:
        """The choice with the least `objective` whose built model keeps the limits less `margin`.

        Raises BudgetError: nothing does; says what is nearest and what binds.
        """
        wanted = {column: limit - (margin or {}).get(column, 0.0) for column, limit in limits.items()}
        offsets = np.zeros(3)
        best, lowest = None, np.inf
        seen: set[tuple[int, ...]] = set()
        for _ in range(_ROUNDS):
            room = {column: limit - self.rest[column] - offsets[column] for column, limit in wanted.items()}
            choice = self._best(objective, room)
            if choice is None:
                break
            real = self.real(choice)
            over = {column: float(real[column] - limit) for column, limit in wanted.items() if column != ERROR}
            again = tuple(choice) in seen
            seen.add(tuple(choice))
            if all(excess <= 0 for excess in over.values()):
                value = float(real[objective])
                if value < lowest:
                    best, lowest = choice, value
                used = all(real[column] >= _USED * wanted[column] for column in over) if over else True
                if used or again or not any(choice):
                    break
                gap = real - self.predicted(choice)
                # Half of the way back: the next choice shares other things.
                offsets = np.where(gap < offsets, (offsets + gap) / 2, offsets)
                continue
            for column, excess in over.items():
                if excess > 0:
                    offsets[column] += max(excess, 1e-3 * wanted[column])
                    if again:  # until the sums say of it, too, that it does not fit
                        least = wanted[column] * (1 + 1e-3) - float(self.predicted(choice)[column])
                        offsets[column] = max(offsets[column], least)
        for known in self._known:  # models that were built: one scheme for all weights is among them
            real = self.real(known)
            if real[objective] < lowest and all(real[column] <= limit for column, limit in wanted.items()):
                best, lowest = list(known), float(real[objective])
        if best is None:
            best = self._least(wanted)
        if best is None:
            raise BudgetError(self._why_not(limits))
        return best

    def _least(self, wanted: Mapping[int, float]) -> list[int] | None:
        """A choice with the least of one of the costs, if its model keeps all limits."""
        for column in wanted:
            choice = self._smallest(column, {c: w for c, w in wanted.items() if c == ERROR and c != column})
            if choice is not None and all(self.real(choice)[c] <= limit for c, limit in wanted.items()):
                return choice
        return None

    def _smallest(self, column: int, limits: Mapping[int, float]) -> list[int] | None:
        return self._best(column, {c: limit - self.rest[c] for c, limit in limits.items()})

    def _why_not(self, limits: Mapping[int, float]) -> str:
        lines = []
        for column, limit in limits.items():
            choice = self._smallest(column, {})
            assert choice is not None
            reached = self.real(choice)[column]
            if reached > limit:
                lines.append(
                    f"{_NAMES[column]}: the nearest that the candidates reach is {_words(column, reached)}, of which "
                    f"{_words(column, max(self.rest[column], 0.0))} are not theirs to change (what stays as it is: biases, "
                    "tables, weights outside of the budget, other operators)"
                )
        if not lines:
            for column in limits:
                others = {c: limit for c, limit in limits.items() if c != column}
                choice = self._smallest(column, others)
                if choice is not None:
                    kept = ", ".join(f"{_NAMES[c]} {_words(c, limit)}" for c, limit in others.items())
                    lines.append(
                        f"with {kept} the least {_NAMES[column]} is {_words(column, self.real(choice)[column])}"
                    )
            lines.append("each limit can be met by itself, not all of them together")
        listed = "; ".join(f"{_NAMES[column]} {_words(column, limit)}" for column, limit in limits.items())
        return (
            f"the budget ({listed}) cannot be met:\n  " + "\n  ".join(lines) + "\nAllow more, give other candidates "
            "(smaller: cb2-c, int2, vq2d4-c; faster: s90, s4x1@75), or let the recipe leave less alone (ignore, min_elements)."
        )

    def _sums(self, cost: Cost) -> NDArray[np.float64]:
        return np.array([0.0, cost.nbytes, cost.seconds or 0.0])


def _words(column: int, value: float) -> str:
    if column == BYTES:
        return f"{value / 1e6:.4f} MB" if value >= 1e5 else f"{value / 1e3:.2f} KB"
    return f"{1e3 * value:.4g} ms" if column == SECONDS else f"{100 * value**0.5:.3g} %"
