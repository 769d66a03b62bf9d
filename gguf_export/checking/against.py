"""A GGUF file held against its source: names each tensor and expert that is not what it should be.

Every expert of every tensor is decoded and compared with its weights. Four measures tell faults apart:

* the squared error of an expert, relative to its weights: each type stays below a limit, and foreign weights do not;
* the distances of some rows of each expert to the rows of all experts: experts of a frankenMoE are often fine-tunes of
  one model, so near to each other that a permuted one passes the first measure, and still each is nearest to itself;
* the largest error within a block, relative to its largest weight: a block that was damaged stands out;
* the codes of a block, which follow from its scales and the weights in most types: a changed bit of them shows.

An encoding is compared byte for byte where the importances with which it was made are known, or where its type takes
none. Other builds, for instance with fused multiply-add, round some blocks differently. Such differences occur in all
experts; damage is local.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing
from functools import partial

from calibration.importance.imatrix import Imatrix
from gguf_export.checking.deviations import Deviation, EncoderDifferences
from gguf_export.checking.file_check import FileCheck, Level, have_same_rows, measure
from gguf_export.checking.findings import Finding, error, info
from gguf_export.checking.verdicts import verdicts
from gguf_export.writing.slabs import slabs_of
from quantize.compiling import compile_kernels
from quantize.decoding import can_decode
from quantize.engine import Engine
from quantize.sources.gguf_file import GGUFFile
from quantize.sources.model_source import ModelFile
from quantize.telling import OnProgress, Progress, silent
from quantize.tensors import TensorSpec
from quantize.tracing import span

__all__ = ["check_against"]


def check_against(
    file: GGUFFile,
    source: ModelFile,
    engine: Engine,
    *,
    level: Level = "auto",
    imatrix: Imatrix | None = None,
    left_out: Collection[str] = (),
    progress: OnProgress = silent,
) -> Iterator[Finding]:
    """Hold all tensors of a file against its source.

    Args:
        file: the file.
        source: the checkpoint, or the GGUF file, that it was made from.
        engine: compares the slabs.
        level: how strictly quantized tensors are compared, see `FileCheck.level`.
        imatrix: the importances with which the file was made.
        left_out: names of tensors of the source that the file shall not have.
        progress: called with the progress in tensors.

    Raises:
        CheckpointError, GGUFError: the source or the file cannot be read any more.
        ImatrixError: the importance matrix is one of another model.
    """
    specs = {spec.name: spec for spec in source.specs()}
    if imatrix is not None:
        yield from (info(remark.place, remark.message) for remark in imatrix.check(specs.values()))
    check = FileCheck(file, source, level, imatrix)
    yield from _same_tensors(check, {name: spec for name, spec in specs.items() if name not in left_out})
    if any(check.is_comparable(spec) and check.is_moved(spec) for spec in specs.values()):
        text = "error feedback chose its codes: compared by errors, and by codes that stand out"
        yield info(str(file.path), text)
    yield from _same_weights(check, engine, progress)


def _same_tensors(check: FileCheck, specs: Mapping[str, TensorSpec]) -> Iterator[Finding]:
    """Whether file and source have the same tensors, in the same shapes."""
    file, word = check.file, check.word
    if not file.tensors:
        yield error(str(file.path), f"holds none of the {len(specs)} tensors of the {word}", check.again)
        return
    for name, spec in specs.items():
        stored = file.tensors.get(name)
        if stored is None:
            yield error(name, f"is in the {word} and not in the file", check.again)
        elif not have_same_rows(stored.spec, spec):
            yield error(
                name,
                f"has shape {list(stored.spec.shape)}, in the {word} {list(spec.shape)}",
                f"the file was made from another {word}",
            )
        elif not check.is_comparable(spec):
            qtype = spec.qtype if can_decode(stored.spec.qtype) else stored.spec.qtype
            yield info(name, f"{qtype.name} cannot be decoded here: it is not compared")
    for name in file.tensors:
        if name not in specs:
            yield error(name, f"is in the file and not in the {word}", check.again)


def _same_weights(check: FileCheck, engine: Engine, progress: OnProgress) -> Iterator[Finding]:
    """Whether each matrix of the file holds the weights of the source; slabs are compared in any order."""
    slabs = [slab for slab in slabs_of(check.source) if check.is_comparable(slab.spec)]
    n_left = Counter(slab.spec.name for slab in slabs)
    n_tensors = len(n_left)
    encoders = {check.encoder(slab.spec) for slab in slabs if check.is_encoded(slab.spec)}
    if encoders:  # a first run says what it is doing while it does it
        with span("kernels"):
            compile_kernels(sorted(encoders, key=str), progress)
    deviations: dict[str, dict[int, Deviation]] = {}
    differences = EncoderDifferences()
    with closing(engine.map(partial(measure, check), slabs)) as measured:
        for slab, deviation in measured:
            name = slab.spec.name
            by_expert = deviations.setdefault(name, {})
            by_expert[slab.xid] = by_expert.get(slab.xid, Deviation()) + deviation
            n_left[name] -= 1
            if not n_left[name]:
                yield from verdicts(check, slab.spec, deviations.pop(name), differences)
                del n_left[name]
                progress(
                    Progress(
                        f"comparing with the {check.word}", n_tensors - len(n_left), n_tensors, "tensors"
                    )
                )
    yield from differences.findings(check.file.path)
