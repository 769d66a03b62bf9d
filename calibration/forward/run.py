"""The forward pass, streamed layer by layer and expert by expert: each weight is read once for the whole text.

In memory are the hidden states of the text (or, on request, in scratch files), the matrices of one attention or one
expert, and the activations of one group of tokens. Several models ("streams": a checkpoint and quantized files of it)
can go side by side, each with hidden states of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

from calibration.forward.forward_pass import ForwardPass
from calibration.forward.hidden import Storage
from calibration.forward.saved_state import Keeper
from calibration.forward.settings import ForwardSettings
from calibration.forward.streams import Observer, OnLogits, OnWeights, Stream
from calibration.forward.timings import Timings
from calibration.text.tokenizer import Tokens
from quantize.telling import OnProgress, silent

__all__ = ["ForwardSettings", "Observer", "OnLogits", "OnWeights", "Stream", "Timings", "forward"]


def forward(
    streams: Sequence[Stream],
    tokens: Tokens,
    *,
    settings: ForwardSettings | None = None,
    observers: Sequence[Observer] = (),
    observe_output: bool = False,
    on_weights: OnWeights | None = None,
    hold_down: bool = False,
    on_logits: OnLogits | None = None,
    first_logit: int = 0,
    keeper: Keeper | None = None,
    progress: OnProgress = silent,
) -> Timings:
    """Run chunks of tokens [C, P] through one or several models of the same shape.

    Args:
        streams: the models; hidden states take n_token x n_embd x (bytes of `hidden_dtype` + of `dtype`) each.
        tokens: the text, BOS included; a chunk sees nothing of the others.
        settings: device, types, and the place of the hidden states; default exact float32 in memory on the CPU.
        observers: are shown the inputs of every matrix in a layer, and the routing.
        observe_output: show the inputs of the output matrix too (a tied token_embd never is).
        on_weights: is given every matrix of the first stream once, as it was read, as soon as all its inputs have been
            shown to the observers, with what these give away of it; it may keep the array.
        hold_down: hand out no down projection before the inputs of those of all experts of the layer have been shown,
            because their mean is wanted. That costs their bytes (E x n_ff x n_embd x 2 in bfloat16), and those of
            what the observers give away of them.
        on_logits: is given a chunk's index and the logits f32 [P - first_logit, V] of each stream.
        first_logit: the first position of a chunk whose logits are computed.
        keeper: is shown the state of the pass behind each layer, and may bring it back to that of an earlier pass with
            the same arguments, whose layers are then not passed again; their weights are handed out at the end.
        progress: is told how much of the work is done, in tokens that have passed the whole model.

    Raises:
        ActivationError: a layer or expert gave a value that is not finite.
        CheckpointError: a tensor is missing, or one is there that this pass does not know.
        OutputError: the scratch folder cannot hold the hidden states.
        TokenizerError: a token has no row in the embedding.
        TypeError: there is a keeper, and an observer that cannot go on behind a layer.
    """
    settings = settings or ForwardSettings()
    forward_pass = ForwardPass(
        streams,
        tokens,
        settings,
        Storage(settings),
        observers=observers,
        on_weights=on_weights,
        hold_down=hold_down,
        progress=progress,
    )
    forward_pass.run(
        on_logits=on_logits, first_logit=first_logit, observe_output=observe_output, keeper=keeper
    )
    return forward_pass.timings
