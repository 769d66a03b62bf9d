"""A Ray cluster on this machine whose nodes come and go: processes that stand for machines."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gguf_export.cluster.connection import Cluster, connected, ray_module

__all__ = ["Machines", "machines"]

STORE_BYTES = 80 * 2**20  # Ray wants no less


class Machines:
    """A head without processors for work, and nodes of one processor each, made when they are asked for."""

    def __init__(self) -> None:
        ray_module()  # sets what it must know before it is imported
        from ray.cluster_utils import Cluster as RayCluster

        head = {"num_cpus": 0, "object_store_memory": STORE_BYTES, "include_dashboard": False}
        self._made: Any = RayCluster(initialize_head=True, head_node_args=head)
        self.nodes: list[Any] = []

    @property
    def address(self) -> str:
        return str(self._made.address)

    def have(self, n_node: int) -> None:
        """Start or end nodes until there are so many."""
        while len(self.nodes) < n_node:
            self.join()
        while len(self.nodes) > n_node:
            self.kill(-1)
        self._made.wait_for_nodes()

    def join(self) -> None:
        """Start one more node, and do not wait for it."""
        self.nodes.append(self._made.add_node(num_cpus=1, object_store_memory=STORE_BYTES, wait=False))

    def wait_for(self, n_alive: int, seconds: float = 120) -> None:
        """Wait until so many nodes are alive, the head among them, whoever started them."""
        end = time.monotonic() + seconds
        while sum(node["Alive"] for node in ray_module().nodes()) < n_alive:
            assert time.monotonic() < end, "a node does not start"
            time.sleep(0.2)

    def kill(self, index: int | None = None) -> None:
        """End a node as a power cut would, by default one at random."""
        at = random.randrange(len(self.nodes)) if index is None else index
        self._made.remove_node(self.nodes.pop(at), allow_graceful=False)

    def end(self) -> None:
        self._made.shutdown()


@contextmanager
def machines(n_node: int) -> Iterator[tuple[Machines, Cluster]]:
    """A cluster to which this process is connected for as long as the block."""
    made = Machines()
    try:
        made.have(n_node)
        with connected(made.address) as cluster:
            yield made, cluster
    finally:
        made.end()
