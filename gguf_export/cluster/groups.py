"""Items in groups of neighbours, one group for each node: work that is cheaper together, such as passes over a text.

A group has all processors of a node. A node that dies costs its group, which another one does from its beginning (see
`engine`).
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, TypeVar

from gguf_export.cluster.connection import Cluster, Node, ray_module
from gguf_export.cluster.engine import RayEngine
from quantize.telling import Note, OnProgress, Progress, discard, silent

__all__ = ["Work", "grouped", "in_groups"]

TELL_SECONDS = 1.0  # between two words of a group on its progress

Item = TypeVar("Item")
Item_contra = TypeVar("Item_contra", contravariant=True)
Result = TypeVar("Result")
Result_co = TypeVar("Result_co", covariant=True)


class Work(Protocol[Item_contra, Result_co]):
    """Does a group of items with so many processors, and gives a result for each; it is pickled."""

    def __call__(
        self, items: Sequence[Item_contra], *, n_active: int, progress: OnProgress
    ) -> Sequence[Result_co]:
        """The results in the order of the items."""
        ...


def in_groups(
    cluster: Cluster,
    work: Work[Item, Result],
    items: Sequence[Item],
    *,
    progress: OnProgress = silent,
    note: Note = discard,
) -> list[Result]:
    """The results of all items, in their order.

    Args:
        cluster: an open connection.
        work: does a group; what it makes of an item must not hang on the group that the item is in.
        items: are pickled.
        progress: told the sum over all groups.
        note: told of nodes that are gone, and of work that was done again.

    Raises:
        MoeGgufError: see `RayEngine.map`.
    """
    nodes = [node for node in cluster.nodes() if node.n_cpu]
    n_cpu = min((node.n_cpu for node in nodes), default=1)
    engine = RayEngine(cluster, n_cpu=n_cpu, note=note)
    found: dict[int, Sequence[Result]] = {}
    with _collected(progress) as reporter:
        do = partial(_do, engine.share(work), n_cpu, reporter)
        groups = grouped(items, _places_of(nodes, n_cpu))
        for group, results in engine.map(do, groups):
            found[group.first] = results
    return [result for first in sorted(found) for result in found[first]]


@dataclass(frozen=True, eq=False)
class Group:
    """Some items, the first of which is item `first`."""

    first: int
    items: Sequence[Any]


def grouped(items: Sequence[Item], n_group: int) -> list[Group]:
    """Items in at most so many groups, as even as can be.

    >>> [list(group.items) for group in grouped("abcde", 2)]
    [['a', 'b', 'c'], ['d', 'e']]
    """
    n_group = max(1, min(n_group, len(items)))
    starts = [-(-len(items) * index // n_group) for index in range(n_group + 1)]
    return [Group(start, items[start:stop]) for start, stop in itertools.pairwise(starts)]


def _places_of(nodes: Sequence[Node], n_cpu: int) -> int:
    return sum(node.n_cpu // n_cpu for node in nodes)


def _do(work: Any, n_cpu: int, reporter: _Reporter, group: Group) -> Sequence[Any]:
    """Do a group, in a process of a node."""
    results: Sequence[Any] = work.value(group.items, n_active=n_cpu, progress=partial(reporter, group.first))
    return results


class _Told:
    """What each group has told last; it lives in a process of its own, as an actor."""

    def __init__(self) -> None:
        self._last: dict[int, Progress] = {}

    def tell(self, group: int, progress: Progress) -> None:
        """Take the word of a group."""
        self._last[group] = progress

    def all(self) -> list[Progress]:
        """The last words."""
        return list(self._last.values())


@dataclass
class _Reporter:
    """Sends the progress of a group on its way, now and then."""

    told: Any
    _at: float = field(default=0.0)

    def __call__(self, group: int, progress: Progress) -> None:
        now = time.monotonic()
        if now - self._at >= TELL_SECONDS or progress.done >= progress.total:
            self._at = now
            with suppress(Exception):  # its node may be gone: nothing but the bar stands still then
                self.told.tell.remote(group, progress)


@contextmanager
def _collected(progress: OnProgress) -> Iterator[_Reporter]:
    """Pass on what groups tell as one progress, from a thread of its own, until the block ends."""
    ray = ray_module()
    told = ray.remote(num_cpus=0, max_restarts=0)(_Told).remote()
    ended = threading.Event()

    def pass_on() -> None:
        while not ended.wait(TELL_SECONDS):
            with suppress(Exception):
                last: list[Progress] = ray.get(told.all.remote(), timeout=TELL_SECONDS)
                _tell_sum(last, progress)

    thread = threading.Thread(target=pass_on, daemon=True)
    thread.start()
    try:
        yield _Reporter(told)
    finally:
        ended.set()
        thread.join()
        with suppress(Exception):
            ray.kill(told)


def _tell_sum(last: Sequence[Progress], progress: OnProgress) -> None:
    for stage in dict.fromkeys(each.stage for each in last):
        of_stage = [each for each in last if each.stage == stage]
        n_done, n_all = sum(each.done for each in of_stage), sum(each.total for each in of_stage)
        progress(Progress(stage, n_done, n_all, of_stage[0].unit))
