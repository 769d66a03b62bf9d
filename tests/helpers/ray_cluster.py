"""A Ray cluster whose nodes are processes of this machine; one in each module that needs it, for it starts slowly."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from gguf_export.cluster.connection import connected, ray_module


class Nodes:
    """The nodes of a cluster beside its head, which does no work."""

    def __init__(self, cluster: Any) -> None:
        self._cluster = cluster
        self._alive: list[Any] = []

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def set(self, n_node: int) -> None:
        """As many nodes of one processor as this."""
        while len(self._alive) < n_node:
            self._alive.append(self._cluster.add_node(num_cpus=1, object_store_memory=80 << 20))
        while len(self._alive) > n_node:
            self.kill()
        self._cluster.wait_for_nodes()

    def kill(self) -> None:
        """End a node with all its processes, as a machine that is switched off."""
        self._cluster.remove_node(self._alive.pop(), allow_graceful=False)


@contextmanager
def nodes() -> Iterator[Nodes]:
    """A cluster without nodes, to which this process is connected for as long as the block."""
    ray_module()
    from ray.cluster_utils import Cluster

    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)  # nodes shall find what tests define
    head = {"num_cpus": 0, "object_store_memory": 80 << 20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, connect=False, head_node_args=head)
    try:
        with connected(cluster.address):
            yield Nodes(cluster)
    finally:
        with suppress(Exception):
            cluster.shutdown()  # type: ignore[no-untyped-call]
