"""An engine (`quantize.engine.Engine`) whose units are tasks of a Ray cluster.

A node that dies costs the units that it had in work: they are given out again, counted, and remarked.
"""

from __future__ import annotations

import pickle
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar, cast

from gguf_export.cluster.connection import Cluster, Node, first_line, lost, ray_module
from quantize.exceptions import ChoiceError, MoeGgufError
from quantize.telling import Note, Remark, discard

__all__ = ["RayEngine", "Shared", "this_node"]

MAX_TRIES = 10
"""How often a unit may be lost with its process or node before it is taken to be what ends them."""

LOOK_SECONDS = 2.0  # between two looks at the nodes
GRACE_SECONDS = 3.0  # in which units that have begun may end, when their results are not wanted any more
UNITS_PER_CPU = 2  # handed out: one in work, one waiting beside it
MOST_KEPT = 16  # shared values that a process keeps

Item = TypeVar("Item")
Result = TypeVar("Result")
Value = TypeVar("Value")


class Shared(Generic[Value]):
    """A value that is sent once to each process that asks for it, and not with each unit; made by `RayEngine.share`.

    It can be pickled within units, and costs a few bytes there.
    """

    def __init__(self, reference: Any) -> None:
        """Take Ray's reference to the pickled value."""
        self._reference = reference
        self._key = uuid.uuid4().hex

    @property
    def value(self) -> Value:
        """The value, in whatever process this is; the last ones that were used are kept.

        Raises:
            What unpickling raises, such as `CheckpointError` for a model that cannot be opened on this node.
        """
        if self._key in _kept:
            _kept.move_to_end(self._key)
        else:
            _kept[self._key] = pickle.loads(ray_module().get(self._reference))
            while len(_kept) > MOST_KEPT:
                _kept.popitem(last=False)
        return cast(Value, _kept[self._key])


_kept: OrderedDict[str, Any] = OrderedDict()
"""The shared values of this process by their keys, the one used last at the end."""


class _Answer(NamedTuple):
    """What comes back of a unit: its result, or the error that it raised, and from which node."""

    result: Any
    error: MoeGgufError | None
    node: str


class _Pending(NamedTuple):
    """A unit that was given out, and how often it was lost before."""

    item: Any
    n_lost: int


class RayEngine:
    """Does units of work on the nodes of a cluster; it takes in nodes that join, and does without those that go."""

    def __init__(
        self, cluster: Cluster, *, jobs: int | None = None, n_cpu: float = 1, note: Note = discard
    ) -> None:
        """Use an open connection.

        Args:
            cluster: the connection.
            jobs: units in work at once; by default as many as there are processors.
            n_cpu: processors that one unit uses.
            note: told which nodes are gone, and how many units were done again.
        """
        self.cluster = cluster
        self.n_again = 0
        """Units that were lost with their processes or nodes and given out again."""

        self._ray = ray_module()
        self._jobs, self._n_cpu, self._note = jobs, n_cpu, note
        self._nodes: dict[str, Node] = {}
        self._room = 1
        self._looked_at = -LOOK_SECONDS
        self._waiter = ThreadPoolExecutor(1)

    def share(self, value: Value) -> Shared[Value]:
        """Put a value where all units can have it; it goes when nobody holds it any more.

        Raises:
            ChoiceError: the cluster does not answer any more.
        """
        try:
            return Shared(self._ray.put(pickle.dumps(value, pickle.HIGHEST_PROTOCOL)))
        except self._ray.exceptions.RayError as failure:
            raise lost(self.cluster.address, failure) from None

    def map(
        self, function: Callable[[Item], Result], items: Iterable[Item]
    ) -> Generator[tuple[Item, Result], None, None]:
        """See `Engine.map`; function and items are pickled, and so are results on their way back.

        Raises:
            MoeGgufError: a unit raised it; its message then names the node.
            ChoiceError: the cluster does not answer any more, or a unit was lost `MAX_TRIES` times.
        """
        task = self._ray.remote(num_cpus=self._n_cpu, max_retries=0, scheduling_strategy="SPREAD")(_done)
        pending: dict[Any, _Pending] = {}
        n_again = self.n_again
        try:
            for item in items:
                while len(pending) >= self._most():
                    yield from self._ended(task, function, pending)
                pending[task.remote(function, item)] = _Pending(item, 0)
            while pending:
                yield from self._ended(task, function, pending)
        finally:
            self._drop(pending)
            if self.n_again > n_again:
                message = (
                    f"{self.n_again - n_again} units of work were lost with processes or nodes that ended"
                )
                self._note(Remark(self._place, f"{message}, and were done again"))

    @property
    def _place(self) -> str:
        return f"ray cluster {self.cluster.address}"

    def _most(self) -> int:
        """Units that may be given out, by the nodes that are there now."""
        now = time.monotonic()
        if now - self._looked_at >= LOOK_SECONDS:
            self._looked_at = now
            nodes = {node.id: node for node in self.cluster.nodes()}
            gone = [node for key, node in self._nodes.items() if key not in nodes]
            for node in gone:
                self._note(Remark(f"ray node {node.name}", "is gone; the others do its work"))
            n_cpu = sum(node.n_cpu for node in nodes.values())
            if not n_cpu and (gone or not self._nodes):
                self._note(Remark(self._place, "has no node that works; waiting for one"))
            self._nodes = nodes
            self._room = max(1, int(n_cpu / self._n_cpu) * UNITS_PER_CPU)
        return self._jobs or self._room

    def _ended(
        self, task: Any, function: Callable[[Any], Any], pending: dict[Any, _Pending]
    ) -> Iterator[tuple[Any, Any]]:
        """The units that have ended, taken out of `pending`; those that were lost are given out again."""
        try:
            ready, _ = self._waited(pending, 1, LOOK_SECONDS)
            if ready:  # all that have ended come by one call: to look through thousands for each takes long
                ready, _ = self._waited(pending, len(pending), 0)
        except self._ray.exceptions.RayError as failure:
            raise lost(self.cluster.address, failure) from None
        self._most()
        for reference in ready:
            item, n_lost = pending.pop(reference)
            try:
                answer: _Answer = self._ray.get(reference)
            except self._ray.exceptions.RayError as failure:
                self._refuse(failure, n_lost)
                self.n_again += 1
                pending[task.remote(function, item)] = _Pending(item, n_lost + 1)
                continue
            if answer.error is not None:
                raise self._with_node(answer.error, answer.node)
            yield item, answer.result

    def _waited(self, pending: Iterable[Any], n: int, seconds: float) -> tuple[list[Any], list[Any]]:
        """Ray's wait, in a thread: in the main one it would make every signal's exception a `KeyboardInterrupt`."""
        wait = partial(self._ray.wait, num_returns=n, timeout=seconds, fetch_local=False)
        waited: tuple[list[Any], list[Any]] = self._waiter.submit(wait, list(pending)).result()
        return waited

    def _refuse(self, failure: Any, n_lost: int) -> None:
        """Raise what a unit ended with, unless it was lost and may be given out again."""
        cause = getattr(failure, "cause", None)  # what was raised within the unit, if it got so far
        if isinstance(cause, ImportError):
            message = f"a node lacks what the work needs: {cause}"
            raise ChoiceError(self._place, message, "install the same moe-gguf on all nodes") from None
        if cause is not None and not isinstance(cause, self._ray.exceptions.RayError):
            raise RuntimeError(f"a unit of work failed on a node:\n{failure}") from None
        if n_lost + 1 >= MAX_TRIES:
            message = f"the same unit of work was lost {MAX_TRIES} times: {first_line(failure)}"
            raise ChoiceError(self._place, message, "see to the memory and the logs of its nodes") from None

    def _with_node(self, error: MoeGgufError, node: str) -> MoeGgufError:
        """The error of a unit, whose line says where it happened."""
        if not self.cluster.is_local and node in self._nodes:
            error.message += f" (on ray node {self._nodes[node].name})"
        return error

    def _drop(self, pending: dict[Any, _Pending]) -> None:
        """Call off units whose results are not wanted, and give those in work a moment to end."""
        if not pending:
            return
        with suppress(Exception):  # nobody is interested in how they end
            for reference in pending:
                self._ray.cancel(reference)
            self._waited(pending, len(pending), GRACE_SECONDS)


def this_node() -> str:
    """The id of the node that this process belongs to, as in `Node.id`."""
    return str(ray_module().get_runtime_context().get_node_id())


def _done(function: Callable[[Any], Any], item: Any) -> _Answer:
    """Do a unit in a process of a node; errors with fields come back as they are."""
    try:
        return _Answer(function(item), None, this_node())
    except MoeGgufError as error:
        return _Answer(None, error, this_node())
