"""Tokens whose type llama.cpp decides by their text when it loads a file, whatever the file says.

Source: src/llama-vocab.cpp, llama_vocab::impl::load. A control token is found in a text only where special tokens are
parsed, a user-defined one always, a normal one never.
"""

from __future__ import annotations

from gguf import TokenType

from calibration.text.vocabulary import Vocabulary

__all__ = ["types_as_loaded"]

_ENDS = (  # of a text, a turn, a message
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
    "[e~[",
)
_INFILL = {
    "fim_pre": (
        "<|fim_prefix|>",
        "<fim-prefix>",
        "<fim_prefix>",
        "<\uff5cfim\u2581begin\uff5c>",
        "<PRE>",
        "\u2581<PRE>",
        "<|code_prefix|>",
        "<|prefix|>",
    ),
    "fim_suf": (
        "<|fim_suffix|>",
        "<fim-suffix>",
        "<fim_suffix>",
        "<\uff5cfim\u2581hole\uff5c>",
        "<SUF>",
        "\u2581<SUF>",
        "<|code_suffix|>",
        "<|suffix|>",
    ),
    "fim_mid": (
        "<|fim_middle|>",
        "<fim-middle>",
        "<fim_middle>",
        "<\uff5cfim\u2581end\uff5c>",
        "<MID>",
        "\u2581<MID>",
        "<|code_middle|>",
        "<|middle|>",
    ),
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}
"""Purpose -> texts that are looked for only where `tokenizer.ggml.PURPOSE_token_id` names no token."""

_HARMONY = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")
_CALLS, _OTHER_ENDS = {"<|call|>", "<|calls|>"}, {"<|return|>", "<|flush|>"}


def types_as_loaded(vocabulary: Vocabulary) -> list[int]:
    """The `gguf.TokenType` of each token as llama.cpp has it in use.

    Of several texts for one purpose of infilling llama.cpp takes the one that its hash table yields first; here all
    are taken. Files that have two of them mark both as control tokens anyway.
    """
    ids = vocabulary.ids
    types = [int(kind) for kind in vocabulary.types]
    sought = [kind for kind in _INFILL if kind not in vocabulary.special.ids]
    for text in (*_ENDS, *(text for kind in sought for text in _INFILL[kind])):
        if text in ids:
            types[ids[text]] = TokenType.CONTROL
    for text in _HARMONY:
        if text in ids:
            types[ids[text]] = TokenType.USER_DEFINED
    if "<|end|>" in ids and _CALLS & ids.keys() and _OTHER_ENDS & ids.keys():
        types[ids["<|end|>"]] = TokenType.USER_DEFINED  # it does not end an answer there
    if "</s>" in ids and "<|tool_response>" in ids:
        types[ids["</s>"]] = TokenType.NORMAL  # in Gemma 4
    return types
