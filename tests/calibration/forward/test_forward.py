"""The streamed forward pass against transformers, and what it promises to those who watch it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from pico import pico_dense, pico_mixtral, read_checkpoint, write_shard
from places import BENCH, needs_bench

from calibration.forward.rope import make_rope
from calibration.forward.routing import Router, Routing
from calibration.forward.run import forward
from calibration.forward.settings import ForwardSettings
from calibration.forward.streams import Given, Observer, Stream
from calibration.importance.observers import collect_imatrix
from calibration.judging.perplexity import Estimate, NllScores, first_scored, measure_perplexity, perplexity
from calibration.text.chunks import Chunks, make_chunks, read_text
from calibration.text.tokenizer import open_tokenizer
from quantize.containers.keys import KeyValue
from quantize.exceptions import ActivationError, CheckpointError, OutputError, TokenizerError
from quantize.hparams import Hparams, RopeScaling
from quantize.sources.checkpoint import Checkpoint, open_checkpoint
from quantize.sources.model_source import ModelSource
from quantize.telling import Progress
from quantize.tensors import Array, QType, Rows, TensorSpec

pytestmark = pytest.mark.numeric

N_CHUNK, N_CTX, N_VOCAB = 3, 48, 320


@pytest.fixture(scope="module")
def tokens() -> np.ndarray:
    return np.random.default_rng(5).integers(0, N_VOCAB, (N_CHUNK, N_CTX)).astype(np.int32)


@pytest.fixture(scope="module")
def pico(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pico")
    return pico_mixtral(folder / "m", n_layer=3, n_expert=5, tokenizer=False)


def logits_of(*sources: ModelSource, tokens: np.ndarray, **options: Any) -> list[torch.Tensor]:
    """[C, P, V] of each stream."""
    found: list[list[torch.Tensor]] = [[] for _ in sources]

    def keep(chunk: int, logits: Sequence[torch.Tensor]) -> None:
        for per_stream, one in zip(found, logits, strict=True):
            assert len(per_stream) == chunk
            per_stream.append(one.clone())

    forward([Stream(source) for source in sources], tokens, on_logits=keep, **options)
    return [torch.stack(per_stream) for per_stream in found]


def reference_logits(folder: Path, tokens: np.ndarray) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        logits: torch.Tensor = model(torch.from_numpy(tokens).long()).logits
    return logits


def worst(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Largest difference as a share of the range."""
    return float((found - wanted).abs().max() / (wanted.max() - wanted.min()))


# -- numbers

SHAPES: dict[str, tuple[Any, dict[str, Any]]] = {
    "mixtral": (pico_mixtral, {}),
    "six experts, three used": (pico_mixtral, {"n_expert": 6, "n_expert_used": 3}),
    "fused, tied": (pico_mixtral, {"layout": "fused", "tied": True}),
    "mistral with wide heads": (pico_dense, {"head_dim": 32}),
    "llama, f16": (pico_dense, {"architecture": "LlamaForCausalLM", "dtype": "F16"}),
    "linear": (
        pico_dense,
        {"architecture": "LlamaForCausalLM", "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    ),
    "yarn": (
        pico_dense,
        {
            "architecture": "LlamaForCausalLM",
            "max_position_embeddings": 64,
            "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
        },
    ),
    "llama3": (
        pico_dense,
        {
            "architecture": "LlamaForCausalLM",
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        },
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_logits_are_those_of_transformers(shape: str, tokens: np.ndarray, tmp_path: Path) -> None:
    make, options = SHAPES[shape]
    folder = make(tmp_path / "m", tokenizer=False, **options)
    (found,) = logits_of(open_checkpoint(folder), tokens=tokens)
    assert worst(found, reference_logits(folder, tokens)) < 1e-5


@pytest.mark.slow
@needs_bench
def test_logits_of_the_bench() -> None:
    model = BENCH / "harmony-nano"
    chunks = make_chunks([read_text(BENCH / "texts" / "wiki.txt")], open_tokenizer(model), n_chunk=2)
    (found,) = logits_of(open_checkpoint(model), tokens=chunks.inputs)
    assert worst(found, reference_logits(model, chunks.inputs)) < 1e-3  # router ties; without them 1e-6


def test_bfloat16_products_stay_close(pico: Path, tokens: np.ndarray) -> None:
    source = open_checkpoint(pico)
    (exact,) = logits_of(source, tokens=tokens)
    (narrow,) = logits_of(source, tokens=tokens, settings=ForwardSettings(dtype=torch.bfloat16))
    rms = float(((narrow - exact).square().mean() / exact.var()).sqrt())
    assert 1e-4 < rms < 0.1  # the largest differences are tokens whose experts changed


def test_neighbouring_and_half_split_pairs_agree(tokens: np.ndarray, tmp_path: Path) -> None:
    """Rows of q and k in Hugging Face's order and `rope_neox`: the same model."""
    folder = pico_dense(tmp_path / "m", tokenizer=False)
    source = open_checkpoint(folder)
    (wanted,) = logits_of(source, tokens=tokens)
    stored = read_checkpoint(folder)

    class Unpermuted(Changed):
        def changed(self, spec: TensorSpec, xid: int, weights: Array) -> Array:
            kind = spec.name.split(".")[2] if spec.name.startswith("blk.") else ""
            if kind in ("attn_q", "attn_k"):
                bid = spec.name.split(".")[1]
                return stored[f"model.layers.{bid}.self_attn.{kind[-1]}_proj.weight"].copy()
            return weights

    neox = Unpermuted(source, replace(source.hparams, rope_neox=True))
    (found,) = logits_of(neox, tokens=tokens)
    assert worst(found, wanted) < 1e-6


def test_router_renormalises() -> None:
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    router = torch.tensor([[2.0, 0.0], [1.0, 1.0], [0.0, 3.0]])
    free = Router(router, 2)(x)
    assert free.ids.tolist() == [[0, 1], [2, 1]]
    e = np.exp
    np.testing.assert_allclose(free.weights[0], [e(2) / (e(2) + e(1)), e(1) / (e(2) + e(1))], rtol=1e-6)
    np.testing.assert_allclose(free.probs.sum(-1), 1, rtol=1e-6)


def test_yarn_without_extrapolation_is_linear_with_a_magnitude() -> None:
    scaling = RopeScaling(kind="yarn", factor=4.0, n_ctx_orig=16, ext_factor=0.0, attn_factor=1.5)
    hparams = some_hparams(rope_scaling=scaling)
    rope = make_rope(hparams, 32)
    linear = make_rope(replace(hparams, rope_scaling=RopeScaling("linear", factor=4.0)), 32)
    torch.testing.assert_close(rope.cos, 1.5 * linear.cos)
    torch.testing.assert_close(rope.sin, 1.5 * linear.sin)


def some_hparams(**changes: Any) -> Hparams:
    fields: dict[str, Any] = {
        "arch": "llama",
        "n_layer": 1,
        "n_ctx_train": 64,
        "n_embd": 32,
        "n_ff": 32,
        "n_head": 2,
        "n_head_kv": 2,
        "n_vocab": 8,
        "head_dim": 16,
        "rms_norm_eps": 1e-5,
        "rope_freq_base": 10000.0,
    }
    return Hparams(**fields | changes)


# -- streams


class Changed:
    """A source that hands out other weights than the one behind it, and counts what it reads."""

    label = ""
    kind: Literal["checkpoint"] = "checkpoint"

    def __init__(self, source: Checkpoint, hparams: Hparams | None = None) -> None:
        self.source = source
        self._hparams = hparams or source.hparams
        self.reads: dict[tuple[str, int], int] = {}

    @property
    def hparams(self) -> Hparams:
        return self._hparams

    def specs(self) -> Sequence[TensorSpec]:
        return self.source.specs()

    @property
    def bytes_read(self) -> int:
        return self.source.bytes_read

    def arch_keys(self) -> Sequence[KeyValue]:
        return self.source.arch_keys()

    def fingerprint(self) -> str:
        return self.source.fingerprint()

    def refuse_changed(self) -> None:
        self.source.refuse_changed()

    def row_step(self, spec: TensorSpec) -> int:
        return self.source.row_step(spec)

    def read_blocks(self, spec: TensorSpec, xid: int = 0, rows: Rows | None = None) -> Array:
        return self.read(spec, xid, rows).view(np.uint8)

    def read(self, spec: TensorSpec, xid: int = 0, rows: Rows | None = None) -> Array:
        self.reads[spec.name, xid] = self.reads.get((spec.name, xid), 0) + 1
        return self.changed(spec, xid, self.source.read(spec, xid, rows))

    def changed(self, spec: TensorSpec, xid: int, weights: Array) -> Array:
        return weights


class Noisy(Changed):
    """Coarse weights: bfloat16 with three bits of mantissa, norms and router as they are."""

    def changed(self, spec: TensorSpec, xid: int, weights: Array) -> Array:
        return weights & 0xFFF0 if weights.dtype == np.uint16 else weights


class Watcher(Observer):
    """Remembers routes, inputs and the order of events."""

    def __init__(self) -> None:
        self.ids: dict[tuple[int, int], list[torch.Tensor]] = {}
        self.seen: dict[tuple[str, int], list[int]] = {}
        self.events: list[tuple[str, str, int]] = []

    def inputs(
        self, stream: int, specs: Sequence[TensorSpec], xid: int, tokens: torch.Tensor, x: torch.Tensor
    ) -> None:
        for spec in specs:
            assert x.shape == (len(tokens), spec.n_per_row)
            if stream == 0:
                self.seen.setdefault((spec.name, xid), []).extend(tokens.tolist())
                self.events.append(("input", spec.name, xid))

    def routed(self, stream: int, bid: int, tokens: torch.Tensor, routing: Routing) -> None:
        self.ids.setdefault((stream, bid), []).append(routing.ids.clone())

    def on_weights(self, spec: TensorSpec, xid: int, weights: Array, given: Given) -> None:
        self.events.append(("weights", spec.name, xid))


def test_streams_walk_side_by_side(pico: Path, tokens: np.ndarray) -> None:
    exact, coarse = open_checkpoint(pico), Noisy(open_checkpoint(pico))
    alone = [*logits_of(exact, tokens=tokens), *logits_of(coarse, tokens=tokens)]
    together = logits_of(exact, coarse, tokens=tokens)
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(*together)


def test_inputs_can_be_rounded(pico: Path, tokens: np.ndarray) -> None:
    """`round_inputs` sees every product once with its spec; the identity changes nothing, zeros make zeros."""
    source = open_checkpoint(pico)
    (plain,) = logits_of(source, tokens=tokens)
    names = set()

    def identity(spec: TensorSpec, x: torch.Tensor) -> torch.Tensor:
        names.add(spec.name)
        return x

    found: list[torch.Tensor] = []
    forward([Stream(source, identity)], tokens, on_logits=lambda _, logits: found.append(logits[0]))
    assert torch.equal(torch.stack(found), plain)
    expected = {s.name for s in source.specs() if len(s.shape) > 1 and "token_embd" not in s.name}
    assert names == {name for name in expected if "ffn_gate_inp" not in name}  # the router stays float32
    found.clear()
    forward(
        [Stream(source, lambda _, x: torch.zeros_like(x))],
        tokens,
        on_logits=lambda _, logits: found.append(logits[0]),
    )
    assert not torch.stack(found).any()


# -- weights and observers


@pytest.mark.parametrize("with_logits", [False, True])
@pytest.mark.parametrize("hold_down", [False, True])
def test_every_matrix_is_read_once_and_handed_over_after_its_inputs(
    pico: Path, tokens: np.ndarray, with_logits: bool, hold_down: bool
) -> None:
    source = Changed(open_checkpoint(pico))
    watcher, given = Watcher(), {}

    def on_weights(spec: TensorSpec, xid: int, weights: Array, gifts: Given) -> None:
        watcher.on_weights(spec, xid, weights, gifts)
        given[spec.name, xid] = weights

    reports: list[Progress] = []
    forward(
        [Stream(source)],
        tokens,
        observers=[watcher],
        on_weights=on_weights,
        hold_down=hold_down,
        on_logits=(lambda _, __: None) if with_logits else None,
        progress=reports.append,
    )
    units = {(spec.name, xid) for spec in source.specs() for xid in range(spec.n_matrix)}
    assert source.reads == dict.fromkeys(units, 1)
    assert set(given) == units
    for spec in source.specs():
        for xid in range(spec.n_matrix):
            assert np.array_equal(given[spec.name, xid], source.source.read(spec, xid))
    for at, (kind, name, xid) in enumerate(watcher.events):
        if kind == "weights":
            assert ("input", name, xid) not in watcher.events[at:]
    for name in ("gate", "up", "down"):
        kinds = [kind for kind, spec, _ in watcher.events if spec == f"blk.1.ffn_{name}_exps.weight"]
        all_seen_first = kinds == sorted(kinds)  # "input" before "weights"
        assert all_seen_first == (name != "down" or hold_down)
    done = [report.done for report in reports]
    assert done == sorted(done)
    assert (reports[-1].done, reports[-1].total) == (tokens.size, tokens.size)


def test_observers_see_every_token_where_it_belongs(pico: Path, tokens: np.ndarray) -> None:
    watcher = Watcher()
    forward([Stream(open_checkpoint(pico))], tokens, observers=[watcher])
    everywhere = list(range(tokens.size))
    names = {name for name, _ in watcher.seen}
    assert not names & {"output.weight", "token_embd.weight"}  # as llama-imatrix: only on request
    for bid in range(3):
        ids = torch.cat(watcher.ids[0, bid])
        for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate_inp"):
            assert watcher.seen[f"blk.{bid}.{name}.weight", 0] == everywhere
        for name in ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"):
            for xid in range(5):
                routed = (ids == xid).any(-1).nonzero()[:, 0].tolist()
                assert watcher.seen.get((f"blk.{bid}.{name}.weight", xid), []) == routed
    asked = Watcher()
    forward([Stream(open_checkpoint(pico))], tokens, observers=[asked], observe_output=True)
    assert asked.seen["output.weight", 0] == everywhere


def test_hidden_states_may_live_in_scratch_files(pico: Path, tokens: np.ndarray, tmp_path: Path) -> None:
    source = open_checkpoint(pico)
    (wanted,) = logits_of(source, tokens=tokens)
    (scratch,) = logits_of(source, tokens=tokens, settings=ForwardSettings(scratch=tmp_path))
    assert torch.equal(scratch, wanted)
    assert list(tmp_path.iterdir()) == []
    (narrow,) = logits_of(
        source, tokens=tokens, settings=ForwardSettings(hidden_dtype=torch.bfloat16, scratch=tmp_path)
    )
    rms = float(((narrow - wanted).square().mean() / wanted.var()).sqrt())
    assert 1e-4 < rms < 0.1
    with pytest.raises(OutputError, match="no scratch file"):
        logits_of(source, tokens=tokens, settings=ForwardSettings(scratch=tmp_path / "none"))


def test_groups_of_tokens_make_no_difference(
    pico: Path, tokens: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_checkpoint(pico)
    (wanted,) = logits_of(source, tokens=tokens)
    monkeypatch.setattr("calibration.forward.stream_state.TOKEN_GROUP", 7)
    monkeypatch.setattr("calibration.forward.stream_state.VOCAB_BLOCK", 50)
    (found,) = logits_of(source, tokens=tokens)
    assert worst(found, wanted) < 1e-6


# -- refusals


class Damaged(Changed):
    """Everything is fine but for one matrix."""

    def __init__(self, source: Checkpoint, name: str, xid: int) -> None:
        super().__init__(source)
        self.name, self.xid = name, xid

    def changed(self, spec: TensorSpec, xid: int, weights: Array) -> Array:
        if (spec.name, xid) == (self.name, self.xid):
            weights.reshape(-1)[4] = 0x7FC0 if weights.dtype == np.uint16 else np.nan
        return weights


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("name", "xid", "told"),
    [
        ("blk.1.ffn_up_exps.weight", 3, "expert 3 of layer 1"),
        ("blk.2.ffn_down_exps.weight", 0, "expert 0 of layer 2"),
        ("blk.0.attn_v.weight", 0, "the attention of layer 0"),
        ("blk.1.attn_norm.weight", 0, "the attention of layer 1"),
        ("blk.2.ffn_gate_inp.weight", 0, "the router of layer 2"),
        ("blk.1.ffn_norm.weight", 0, "the router of layer 1"),
        ("output_norm.weight", 0, "the output of the model"),
        ("output.weight", 0, "the output of the model"),
    ],
)
def test_values_that_are_not_finite_are_placed(
    pico: Path, tokens: np.ndarray, name: str, xid: int, told: str, dtype: torch.dtype
) -> None:
    source = Damaged(open_checkpoint(pico), name, xid)
    wanted = (
        rf"^{told}: a value is not finite \(NaN or infinity\); {re.escape(name)} holds such values; fetch"
    )
    with pytest.raises(ActivationError, match=wanted):
        forward(
            [Stream(source)],
            tokens,
            settings=ForwardSettings(dtype=dtype),
            on_logits=lambda *_: None,
            first_logit=N_CTX - 1,
        )


def test_a_pass_without_logits_sees_damage_too(tokens: np.ndarray, pico: Path, tmp_path: Path) -> None:
    """The router of the last layer decides nothing that a later product would show to be wrong."""
    chunks = Chunks(("t",), tokens, bos_id=1)
    source = Damaged(open_checkpoint(pico), "blk.2.ffn_gate_inp.weight", 0)
    with pytest.raises(ActivationError, match=r"^the router of layer 2: .*blk\.2\.ffn_gate_inp\.weight"):
        collect_imatrix(source, chunks)
    dense = Damaged(open_checkpoint(pico_dense(tmp_path / "m", tokenizer=False)), "blk.1.ffn_norm.weight", 0)
    with pytest.raises(
        ActivationError, match=r"^the feed-forward of layer 1: .*blk\.1\.ffn_norm\.weight holds"
    ):
        collect_imatrix(dense, chunks)
    embedding = Damaged(open_checkpoint(pico), "token_embd.weight", 0)
    with pytest.raises(ActivationError, match=r"^the embedding: .*token_embd\.weight holds"):
        collect_imatrix(embedding, Chunks(("t",), np.zeros_like(tokens), bos_id=0))


def test_the_message_names_the_checkpoint_and_what_helps(tokens: np.ndarray, tmp_path: Path) -> None:
    folder = pico_mixtral(tmp_path / "m", tokenizer=False, n_shards=1)
    stored = read_checkpoint(folder)
    (name,) = (name for name in stored if "layers.1." in name and name.endswith("gate.weight"))
    stored[name][0, 0] = 0x7FC0
    write_shard(folder / "model.safetensors", stored)
    wanted = rf"^{re.escape(str(folder))}: the router of layer 1: .*ffn_gate_inp.* holds such values; fetch or make"
    with pytest.raises(ActivationError, match=wanted) as found:
        collect_imatrix(open_checkpoint(folder), Chunks(("t",), tokens, bos_id=1))
    assert "\n" not in str(found.value)
    assert found.value.model == str(folder)  # for whoever knows how to look for the damage


def test_finite_weights_that_are_too_large_are_told_apart(pico: Path, tokens: np.ndarray) -> None:
    class Huge(Changed):
        def changed(self, spec: TensorSpec, xid: int, weights: Array) -> Array:
            return np.full_like(weights, 0x7F7F) if spec.name == "blk.0.attn_output.weight" else weights

    with pytest.raises(ActivationError, match=r"^the attention of layer 0: .*finite, but far too large"):
        forward([Stream(Huge(open_checkpoint(pico)))], tokens)


def test_what_it_does_not_know_is_refused(pico: Path, tokens: np.ndarray, tmp_path: Path) -> None:
    source = open_checkpoint(pico)

    class Reshaped(Changed):
        def __init__(self, specs: Sequence[TensorSpec], hparams: Hparams | None = None) -> None:
            super().__init__(source, hparams)
            self._specs = specs

        def specs(self) -> Sequence[TensorSpec]:
            return self._specs

    specs = list(source.specs())
    extra = TensorSpec("blk.0.attn_sinks.weight", (4,), QType.F32)
    with pytest.raises(CheckpointError, match=r"does not know tensor blk\.0\.attn_sinks\.weight"):
        forward([Stream(Reshaped([*specs, extra]))], tokens)
    beyond = TensorSpec("blk.3.attn_q.weight", (64, 64), QType.BF16)  # there are three layers
    with pytest.raises(CheckpointError, match=r"does not know tensor blk\.3\.attn_q\.weight"):
        forward([Stream(Reshaped([*specs, beyond]))], tokens)
    with pytest.raises(CheckpointError, match=r"does not know arch .rwkv7.; known: .*llama"):
        forward([Stream(Reshaped(specs, replace(source.hparams, arch="rwkv7")))], tokens)
    fewer = [spec for spec in specs if spec.name != "blk.1.attn_k.weight"]
    with pytest.raises(CheckpointError, match=r"tensor blk\.1\.attn_k\.weight is missing"):
        forward([Stream(Reshaped(fewer))], tokens)
    longrope = replace(source.hparams, rope_scaling=RopeScaling("spiral"))
    with pytest.raises(
        CheckpointError, match=r"llama\.rope\.scaling\.type: rope scaling 'spiral' is not known"
    ):
        forward([Stream(Reshaped(specs, longrope))], tokens)
    other = open_checkpoint(pico_mixtral(tmp_path / "m", n_layer=3, n_expert=4, tokenizer=False))
    with pytest.raises(CheckpointError, match=r"has shape .* in one model"):
        forward([Stream(source), Stream(other)], tokens)


def test_tokens_need_a_row(pico: Path, tokens: np.ndarray) -> None:
    with pytest.raises(TokenizerError, match="token 320 has no row"):
        forward([Stream(open_checkpoint(pico))], np.where(tokens == tokens[0, 0], N_VOCAB, tokens))


# -- perplexity


def test_perplexity_by_its_definition(pico: Path, tokens: np.ndarray) -> None:
    chunks = Chunks(("t",), tokens, bos_id=1)
    (logits,) = logits_of(open_checkpoint(pico), tokens=chunks.inputs)
    first = first_scored(N_CTX)
    assert first == N_CTX // 2
    nll = []
    for chunk in range(N_CHUNK):
        for position in range(first, N_CTX - 1):
            log_probs = logits[chunk, position].double().log_softmax(-1)
            nll.append(-float(log_probs[tokens[chunk, position + 1]]))
    found = measure_perplexity(open_checkpoint(pico), chunks)
    assert found.n == len(nll) == N_CHUNK * (N_CTX - 1 - first)
    ppl = np.exp(np.mean(nll))
    assert found.value == pytest.approx(ppl, rel=1e-5)
    assert found.error == pytest.approx(ppl * np.std(nll) / np.sqrt(len(nll) - 1), rel=1e-4)
    assert perplexity([1.0]) == Estimate(np.e, 0.0, 1)
    scores = NllScores(chunks)
    scores(0, [logits[0, first:], 2 * logits[0, first:]])
    np.testing.assert_allclose(scores.streams[0][0], nll[: N_CTX - 1 - first], rtol=1e-5)


@pytest.mark.slow
@needs_bench
def test_perplexity_of_the_bench_is_llama_cpp_s() -> None:
    """The running perplexity that llama-perplexity prints for the first chunks of wiki.txt, BF16 file, 1 thread."""
    printed = [98.3731, 87.3286, 97.5068, 88.2605, 93.4088, 94.4952, 95.6035, 94.4623]
    model = BENCH / "harmony-nano"
    text = read_text(BENCH / "texts" / "wiki.txt")
    chunks = make_chunks([text], open_tokenizer(model), n_chunk=len(printed))
    scores = NllScores(chunks)
    source = [Stream(open_checkpoint(model))]
    forward(source, chunks.inputs, on_logits=scores, first_logit=first_scored(chunks.n_ctx))
    for n, wanted in enumerate(printed, start=1):
        found = perplexity(np.concatenate(scores.streams[0][:n]))
        assert found.value == pytest.approx(wanted, rel=1e-3)
    assert found.error == pytest.approx(5.88845, rel=1e-3)


def test_a_weight_written_by_hand(tmp_path: Path) -> None:
    """One layer whose blocks are all zero: the logits are norm(embedding) @ output, nothing else."""
    folder = pico_dense(tmp_path / "m", n_layer=1, tokenizer=False)
    stored = read_checkpoint(folder)
    for name in stored:
        if "o_proj" in name or "down_proj" in name:
            stored[name] = np.zeros_like(stored[name])
    write_shard(folder / "model.safetensors", stored)
    (found,) = logits_of(open_checkpoint(folder), tokens=np.array([[7, 9]], np.int32))

    def wide(name: str) -> np.ndarray:
        return (stored[name].astype(np.uint32) << 16).view(np.float32).astype(np.float64)

    rows = wide("model.embed_tokens.weight")[[7, 9]]
    normed = rows / np.sqrt((rows**2).mean(-1, keepdims=True) + 1e-5) * wide("model.norm.weight")
    np.testing.assert_allclose(found[0], normed @ wide("lm_head.weight").T, atol=1e-4)
