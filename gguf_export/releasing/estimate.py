"""How long a release would take here, and what it needs of the disk: rules of thumb, named so where they are shown.

Encoding and matrix products are tried for a moment, the fastest try counting, so that the time is that of a machine
with nothing else to do; the rest is counted. Held against the processor time of a release that was timed step by
step, the steps were within a factor of two.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from calibration.forward.settings import best_dtype
from calibration.text.chunks import N_CTX
from calibration.text.text_settings import cut_text
from gguf_export.checking.llama_process import is_installed
from gguf_export.comparing.texts import cut_choice
from gguf_export.files.opening import status_of
from gguf_export.releasing.expert_errors import N_CHUNK, N_JUDGED, calibration_text
from gguf_export.releasing.job import ReleaseJob
from gguf_export.writing.export import ExportPlan
from quantize.families.roles import is_layer_matrix
from quantize.tensors import TensorSpec

__all__ = ["Estimate", "estimate"]

BESIDE_PRODUCTS = 1.5
"""Time of a pass over a text by that of its products: attention, routing, decoding, and comparing come on top."""
SMOKE_SECONDS, SMOKE_BYTES = 5.0, 2**29
"""To start llama.cpp and write 32 tokens; bytes that it loads in a second."""


@dataclass(frozen=True)
class Estimate:
    """Seconds of each step in its order, None where one is not known; bytes that are still to be written.

    state: bytes beside the files while texts pass through the model.
    """

    seconds: tuple[tuple[str, float | None], ...]
    files: int
    state: int

    @property
    def total(self) -> float | None:
        """Seconds of all steps; None where one is not known."""
        known = [seconds for _, seconds in self.seconds if seconds is not None]
        return sum(known) if len(known) == len(self.seconds) else None


def estimate(job: ReleaseJob, planned: ExportPlan) -> Estimate:
    """Estimate the steps of a release from the start, whatever is there already; of the disk what is still lacking.

    Args:
        job: the release.
        planned: its files, with the time that encoding takes.

    Raises:
        TextError: a text is too short, or no dialogues that the template writes.
    """
    settings, specs = job.settings, job.checkpoint.specs()
    n_fit = cut_text(job.checkpoint, calibration_text(job, settings.n_chunk)).n_token
    n_judged = sum(text.n_token for text in cut_choice(job.checkpoint, job.held_out))
    n_files = len(planned.files)
    narrow, exact = _seconds_per_product(best_dtype()), _seconds_per_product(torch.float32)
    active = _active(job, specs)
    output = job.checkpoint.hparams.n_vocab * job.checkpoint.hparams.n_embd
    n_sampled = min(n_fit, N_CHUNK * N_CTX) + min(n_judged, N_CHUNK * N_CTX)
    matrices = sum(spec.n_elements for spec in specs if is_layer_matrix(spec))
    errors = BESIDE_PRODUCTS * n_sampled * active + min(N_JUDGED, n_sampled) * (1 + n_files) * matrices
    smoke = [SMOKE_SECONDS + file.n_bytes / SMOKE_BYTES for file in planned.files]
    streams = max(n_fit, (1 + n_files) * n_judged)
    return Estimate(
        (
            ("calibrating", BESIDE_PRODUCTS * n_fit * active * narrow),
            ("encoding", planned.seconds),
            ("verifying", planned.seconds),  # each block is encoded anew
            ("comparing", BESIDE_PRODUCTS * (1 + n_files) * n_judged * (active + output / 2) * exact),
            ("errors", errors * narrow),
            ("smoke test", sum(smoke) if is_installed() else 0.0),
        ),
        _lacking(planned),
        4 * streams * job.checkpoint.hparams.n_embd,
    )


def _active(job: ReleaseJob, specs: Sequence[TensorSpec]) -> float:
    """Weights of the layers that a token is multiplied with."""
    hparams = job.checkpoint.hparams
    used = hparams.n_expert_used / hparams.n_expert if hparams.n_expert else 1.0
    matrices = [spec for spec in specs if is_layer_matrix(spec)]
    return sum(spec.n_elements * (used if spec.has_experts else 1.0) for spec in matrices)


def _seconds_per_product(dtype: torch.dtype) -> float:
    """Seconds of one product of a token with a weight, the fastest of some tries."""
    x, weights = torch.ones(N_CTX, 1024, dtype=dtype), torch.ones(1024, 1024, dtype=dtype)
    tries = []
    with torch.inference_mode():
        for _ in range(4):
            started = time.perf_counter()
            functional.linear(x, weights)
            tries.append(time.perf_counter() - started)
    return min(tries) / (N_CTX * weights.numel())


def _lacking(planned: ExportPlan) -> int:
    """Bytes of the files that are not there yet."""
    files = [(part.path, part.n_bytes) for file in planned.files for part in file.parts]
    files += [] if planned.imatrix is None else [planned.imatrix]
    return sum(n_bytes for path, n_bytes in files if status_of(path) is None)
