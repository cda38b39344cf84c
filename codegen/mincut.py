"""Minimum s-t cut by maximum flow: Dinic, "Algorithm for solution of a problem of maximum flow in networks" (1970)."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable

UNBOUNDED = 1 << 60


class MinCut:
    """A directed network with integer capacities; vertices are any hashable values. Deterministic: edges keep their order."""

    def __init__(self, source: Hashable, sink: Hashable) -> None:
        self._index: dict[Hashable, int] = {}
        self._out: list[list[int]] = []  # vertex -> numbers of its edges; edge e and its reverse e ^ 1
        self._end: list[int] = []
        self._left: list[int] = []  # capacity that is not used
        self._source, self._sink = self._vertex(source), self._vertex(sink)

    def _vertex(self, name: Hashable) -> int:
        if name not in self._index:
            self._index[name] = len(self._out)
            self._out.append([])
        return self._index[name]

    def edge(self, start: Hashable, end: Hashable, capacity: int) -> None:
        """Cutting `start` (on the source's side) from `end` (on the sink's) costs `capacity`."""
        a, b = self._vertex(start), self._vertex(end)
        for at, to, room in ((a, b, capacity), (b, a, 0)):
            self._out[at].append(len(self._end))
            self._end.append(to)
            self._left.append(room)

    def sink_side(self) -> set[Hashable]:
        """The smallest set of vertices on the sink's side of a minimum cut."""
        while (level := self._levels()) is not None:
            following = [0] * len(self._out)
            while self._augment(level, following):
                pass
        found, waiting = {self._sink}, [self._sink]
        while waiting:  # everything that can still reach the sink
            for e in self._out[waiting.pop()]:
                start = self._end[e]
                if start not in found and self._left[e ^ 1]:
                    found.add(start)
                    waiting.append(start)
        return {name for name, index in self._index.items() if index in found}

    def _levels(self) -> list[int] | None:
        """Distance of every vertex from the source over edges with room, None if the sink is out of reach."""
        level = [-1] * len(self._out)
        level[self._source] = 0
        queue = deque([self._source])
        while queue:
            at = queue.popleft()
            for e in self._out[at]:
                if self._left[e] and level[self._end[e]] < 0:
                    level[self._end[e]] = level[at] + 1
                    queue.append(self._end[e])
        return None if level[self._sink] < 0 else level

    def _augment(self, level: list[int], following: list[int]) -> bool:
        """Send flow along one shortest path; `following` counts the edges of each vertex that lead nowhere any more."""
        path: list[int] = []
        at = self._source
        while at != self._sink:
            edges = self._out[at]
            while following[at] < len(edges):
                e = edges[following[at]]
                if self._left[e] and level[self._end[e]] == level[at] + 1:
                    break
                following[at] += 1
            if following[at] < len(edges):
                path.append(e)
                at = self._end[e]
            elif path:  # a dead end
                at = self._end[path.pop() ^ 1]
                following[at] += 1
            else:
                return False
        flow = min(self._left[e] for e in path)
        for e in path:
            self._left[e] -= flow
            self._left[e ^ 1] += flow
        return True
