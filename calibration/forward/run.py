"""The forward pass, streamed layer by layer and expert by expert: each weight is read once for the whole text.

In memory are the hidden states of the text (or, on request, in scratch files), the matrices of one attention or one
expert, and the activations of one block of tokens. Several models ("streams": a checkpoint and quantized files of it)
can walk side by side, each with hidden states of its own.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from calibration.forward.hidden import Storage
from calibration.forward.layers import Arithmetic
from calibration.forward.saved_state import Keeper
from calibration.forward.streams import Observer, OnLogits, OnWeights, Stream, Timings
from calibration.forward.walk import Walk
from calibration.text.tokenizer import Tokens
from quantize.telling import OnProgress, silent

__all__ = ["Observer", "OnLogits", "OnWeights", "Stream", "Timings", "forward"]


def forward(
    streams: Sequence[Stream],
    tokens: Tokens,
    *,
    arithmetic: Arithmetic | None = None,
    storage: Storage | None = None,
    observers: Sequence[Observer] = (),
    observe_output: bool = False,
    on_weights: OnWeights | None = None,
    hold_down: bool = False,
    on_logits: OnLogits | None = None,
    first_logit: int = 0,
    follow_first: bool = False,
    keeper: Keeper | None = None,
    progress: OnProgress = silent,
) -> Timings:
    """Run chunks of tokens [C, P] through one or several models of the same shape.

    Args:
        streams: the models; hidden states take n_token x n_embd x (4 + bytes of the arithmetic's type) each.
        tokens: what is fed, BOS included; a chunk sees nothing of the others.
        arithmetic: device and type of the matrix products, default exact float32 on the CPU.
        storage: type and place of the hidden states, default float32 in memory.
        observers: are shown the inputs of every matrix in a layer, and the routing.
        observe_output: show the inputs of the output matrix too (a tied token_embd never is).
        on_weights: is given every matrix of the first stream once, as it was read, as soon as all its inputs have been
            shown to the observers; whatever is called may keep the array.
        hold_down: pass on no weights of an expert before the inputs of all experts of the layer have been seen, because
            their mean is wanted. The inputs of gate and up are then shown as soon as the tokens are routed, and down
            projections are kept until the layer is done; that costs their bytes (E x n_ff x n_embd x 2 in bfloat16).
        on_logits: is given a chunk's index and the logits f32 [P - first_logit, V] of each stream.
        first_logit: the first position of a chunk whose logits are computed.
        follow_first: all streams send tokens to the experts that the first stream chose, with their own weights.
        keeper: is shown the state of the pass behind each layer, and may bring it back to that of an earlier pass with
            the same arguments, whose layers are then not passed again; their weights are handed out at the end.
        progress: is told how much of the work is done, in tokens that have passed the whole model.

    Raises:
        ActivationError: a layer or expert gave a value that is not finite.
        CheckpointError: a tensor is missing, or one is there that this pass does not know.
        TokenizerError: a token has no row in the embedding.
    """
    arithmetic = arithmetic or Arithmetic()
    storage = storage or Storage()
    start, earlier = time.perf_counter(), 0.0
    with storage.open(arithmetic.device) as shelf, torch.inference_mode():
        walk = Walk(streams, tokens, arithmetic, storage, shelf, observers, on_weights, progress)
        if keeper is not None:
            keeper.recall(walk.state)
            earlier = walk.timings.total
        walk.embed(keep_tied=on_logits is not None or observe_output)
        for bid in range(walk.state.n_done, walk.state.n_layer):
            for lane in walk.lanes:
                walk.attention(lane, bid)
            walk.feed_forward(bid, follow_first=follow_first, hold_down=hold_down)
            walk.state.n_done = bid + 1
            if keeper is not None:
                walk.timings.total = earlier + time.perf_counter() - start
                keeper.keep(walk.state)
        walk.output(on_logits, first_logit, observe=observe_output)
        walk.finish()
    walk.timings.total = earlier + time.perf_counter() - start
    return walk.timings
