"""A connection to a Ray cluster, or to one that lives on this machine for as long as the block.

Ray is an extra: it is imported when somebody asks for it, and never sends word of its use to anybody.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import re
import signal
import socket
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from quantize.containers.untrusted import quoted
from quantize.engine import n_processor
from quantize.exceptions import ChoiceError

__all__ = ["LOCAL", "Cluster", "Node", "connected", "first_line", "lost", "ray_module", "refuse_unreachable"]

LOCAL = "local"
"""The address that stands for a cluster of this machine alone, made for the occasion."""

PACKAGE = "moe-gguf"
CONNECT_SECONDS = 5.0  # until an address counts as dead; Ray itself would try for minutes
PROBE_SECONDS = 120.0  # in which a node starts its first process
STORE_BYTES = 2**30  # of shared memory for objects, on this machine; it is taken as it is used

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_USAGE_STATS_PROMPT_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # or Ray warns of what it will do in the future
}


@dataclass(frozen=True)
class Node:
    """A machine of a cluster that is alive."""

    id: str
    """Ray's own, in hexadecimal digits."""
    name: str
    """Its address, as messages call it."""
    n_cpu: int
    n_gpu: int


class Cluster:
    """An open connection: which nodes there are. The work goes through `cluster.engine.RayEngine`."""

    def __init__(self, address: str, ray: ModuleType) -> None:
        """Take a connection that is open."""
        self.address, self._ray = address, ray

    @property
    def is_local(self) -> bool:
        """Whether it is this machine alone."""
        return self.address == LOCAL

    def nodes(self) -> list[Node]:
        """The nodes that are alive now, in the order of their ids.

        Raises:
            ChoiceError: the cluster does not answer any more.
        """
        try:
            told = self._ray.nodes()
        except Exception as failure:
            raise lost(self.address, failure) from None
        return sorted((_node(node) for node in told if node["Alive"]), key=lambda node: node.id)

    @property
    def n_cpu(self) -> int:
        """The processors of all nodes that are alive, at least one."""
        return max(1, sum(node.n_cpu for node in self.nodes()))


def ray_module() -> ModuleType:
    """Ray, imported quietly.

    Raises:
        ChoiceError: it is not installed.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        import ray  # noqa: PLC0415 - an extra, and slow to import
    except ImportError:
        raise ChoiceError(
            "",
            "work is spread by ray, which is not installed",
            'pip install "moe-gguf[ray]", or leave {setting} out',
            setting="ray",
        ) from None
    return ray


@contextlib.contextmanager
def connected(address: str, *, n_cpu: int | None = None) -> Iterator[Cluster]:
    """A connection to the cluster at an address, closed at the end of the block.

    A process that is connected already keeps its connection, which then outlives the block.

    Args:
        address: of the head of a cluster, such as "10.0.0.1:6379"; "auto" for the one that runs on this machine;
            "local" for one of this machine alone, which ends with the block.
        n_cpu: processors of this machine that "local" uses; by default all.

    Raises:
        ChoiceError: ray is not installed; nothing answers at the address; Python, ray or moe-gguf are of other
            versions there than here.
    """
    ray = ray_module()
    if ray.is_initialized():
        yield Cluster(address, ray)
        return
    refuse_unreachable(address)
    try:
        with _own_signals(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _init(ray, address, n_cpu)
        # Ray prints what it thinks of dead processes to standard output, which is not its own here.
        ray._private.worker._worker_logs_enabled = False
        cluster = Cluster(address, ray)
        if not cluster.is_local:
            _refuse_other_versions(cluster, ray)
        yield cluster
    finally:
        with _own_signals():
            ray.shutdown()


def lost(address: str, failure: BaseException) -> ChoiceError:
    """The error for a cluster that does not answer any more, or never did."""
    line = first_line(failure)
    remedy = "start it with ray start --head, and on each further machine ray start --address HEAD:6379"
    if "Failed to connect" in line:  # something answers there, but not to us
        remedy = "where it asks for a token, set RAY_AUTH_MODE=token; if it is none of Ray's, start one"
    return ChoiceError(
        f"ray cluster {quoted(address)}",
        f"cannot be reached: {line}",
        f"{remedy}; or give {{setting}} local",
        setting="ray",
    )


def first_line(failure: BaseException) -> str:
    """What an error of Ray's says first; pages may follow."""
    return next((line.strip() for line in str(failure).splitlines() if line.strip()), type(failure).__name__)


def _init(ray: ModuleType, address: str, n_cpu: int | None) -> None:
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if address == LOCAL:
        settings |= {
            "address": LOCAL,  # whatever RAY_ADDRESS says
            "include_dashboard": False,
            "num_cpus": n_cpu or n_processor(),
            "object_store_memory": STORE_BYTES,
        }
    else:
        settings["address"] = address
    try:
        ray.init(**settings)
    except RuntimeError as failure:
        if "ersion mismatch" not in str(failure):
            raise lost(address, failure) from None
        raise _other_version(address, " ".join(re.findall(r"\S+", str(failure)))) from None
    except (Exception, SystemExit) as failure:  # of a dozen kinds, and a signal that it sends itself
        raise lost(address, failure) from None


def refuse_unreachable(address: str) -> None:
    """Refuse an address at which nothing answers, where Ray would try for minutes; it takes a moment.

    Raises:
        ChoiceError: ray is not installed, it is no address, or nothing answers there.
    """
    host, _, port = address.rpartition(":")
    if ray_module().is_initialized() or address in (LOCAL, "auto"):
        return
    if "://" in address or not host or not port.isdecimal():
        raise ChoiceError(
            f"ray cluster {quoted(address)}",
            "is no address",
            "give {setting} HOST:PORT, such as 10.0.0.1:6379; auto for the cluster of this machine; or local",
            setting="ray",
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError, UnicodeError) as failure:
        raise lost(address, failure) from None


def _refuse_other_versions(cluster: Cluster, ray: ModuleType) -> None:
    """Refuse nodes whose programs are of other versions: a block must be the same wherever it is made."""

    def versions(package: str) -> dict[str, str]:
        # Sent by value, for the node may lack the package; it uses nothing but what Ray's own processes have.
        import importlib.metadata  # noqa: PLC0415
        import importlib.util  # noqa: PLC0415
        import platform  # noqa: PLC0415

        try:
            known = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            known = "a copy" if importlib.util.find_spec("gguf_export") else "none"
        python = ".".join(platform.python_version_tuple()[:2])
        return {"Python": python, "ray": importlib.metadata.version("ray"), package: known}

    ours = versions(PACKAGE)
    probe = ray.remote(num_cpus=0, max_retries=0)(versions)
    strategy = importlib.import_module("ray.util.scheduling_strategies").NodeAffinitySchedulingStrategy
    asked = [
        (node, probe.options(scheduling_strategy=strategy(node.id, soft=False)).remote(PACKAGE))
        for node in cluster.nodes()
    ]
    for node, answer in asked:
        try:
            told = ray.get(answer, timeout=PROBE_SECONDS)
        except Exception:  # it died meanwhile, or is too busy to start a process: the work will show
            continue
        for what, version in ours.items():
            if told[what] != version:
                raise _other_version(node.name, f"{what} is {told[what]} there and {version} here")


def _other_version(place: str, message: str) -> ChoiceError:
    return ChoiceError(
        f"ray node {quoted(place)}",
        f"has other versions: {message}",
        "install the same versions of Python, ray and moe-gguf on all nodes",
    )


def _node(told: dict[str, Any]) -> Node:
    has = told.get("Resources", {})
    return Node(told["NodeID"], told["NodeManagerAddress"], int(has.get("CPU", 0)), int(has.get("GPU", 0)))


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Keep what signals do in this process, of which Ray takes SIGTERM for itself."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, how in kept.items():
            signal.signal(number, how)
