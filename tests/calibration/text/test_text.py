"""Text, tokens and chunks, against the sentencepiece library and a real llama.cpp."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from pico import TEXT, pico_dense, write_tokenizer
from places import BENCH, needs_bench
from tokenizer_cases import token

from calibration.text.chunks import Text, make_chunks, read_prompts, read_text
from calibration.text.special_tokens import SpecialTokens
from calibration.text.spm import SpmTokenizer
from calibration.text.tokenizer import open_tokenizer
from calibration.text.vocabulary import SPM, Vocabulary
from quantize.exceptions import TextError, TokenizerError

SPECIAL_LOOKING = [
    "",
    " ",
    "  two spaces",
    "\n",
    "\n\n x",
    "tab\tand\r\nreturn",
    "<s>",
    "</s> in <s> text",
    "<unk>",
    "<0x0A> and <0x41>",
    "[PAD7]",
    "▁a▁▁b",
    "héé ünï ÷ 漢字 かな 🙂 \u200d ﬁ①",
    "\ufeffmark",
    "\x00\x01",
    "=== " * 60,
    "[INST] hello [/INST]",
    "<|im_start|>user\nhi<|im_end|>",
    "<tool>",
    "a<tool>b <tool>",
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose tokenizer has one added token of each kind."""
    folder = pico_dense(tmp_path_factory.mktemp("model") / "pico", n_vocab=324, tokenizer=False)
    write_tokenizer(folder, 320)
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    config["added_tokens_decoder"] = {
        "0": {"content": "<unk>", "special": True},
        "1": {"content": "<s>", "special": True},
        "2": {"content": "</s>", "special": True},
        "320": {"content": "<|im_end|>", "special": True},
        "321": {"content": "<tool>", "special": False},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def test_plain_text_is_cut_as_sentencepiece_cuts_it(model: Path) -> None:
    library = sentencepiece.SentencePieceProcessor(model_file=str(model / "tokenizer.model"))
    tokenizer = open_tokenizer(model)
    for (
        text
    ) in TEXT.splitlines():  # of other texts the library would normalise white space; llama.cpp does not
        assert tokenizer.encode(text).tolist() == library.encode(text)


def test_tokens_are_those_of_llama_cpp(model: Path, tmp_path: Path) -> None:
    import llama

    from gguf_export.writing.export import prepare, run
    from quantize.recipes.ftypes import ftype
    from quantize.recipes.recipe import Recipe
    from quantize.sources.checkpoint import open_checkpoint

    done = run(prepare(open_checkpoint(model), [Recipe(ftype("BF16"))], tmp_path))
    tokenizer = open_tokenizer(model)
    rng = random.Random(3)
    letters = "ab rivet<s>/0xAF[PD]▁\nié漢🙂=|_md"
    texts = SPECIAL_LOOKING + ["".join(rng.choices(letters, k=rng.randint(1, 40))) for _ in range(150)]
    with llama.serve(done.files[0].path) as server:
        for text in texts:
            for parse in (False, True):
                want = server.tokenize(text, add_special=False, parse_special=parse)
                assert tokenizer.encode(text, parse_special=parse).tolist() == want, (text, parse)
        assert server.tokenize("river", parse_special=False)[0] == tokenizer.bos_id


def test_added_tokens(model: Path) -> None:
    tokenizer = open_tokenizer(model)
    assert tokenizer.n_vocab == 324
    assert 321 in tokenizer.encode("a <tool> b")  # user-defined: always a token
    assert 320 not in tokenizer.encode("hi<|im_end|>")  # control: plain text, unless it is to be parsed
    assert 320 in tokenizer.encode("hi<|im_end|>", parse_special=True)


def test_byte_level_bpe(tmp_path: Path) -> None:
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, processors, trainers

    fast = tokenizers.Tokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    special = ["<|begin|>", "<|end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    fast.train_from_iterator([TEXT], trainer)
    fast.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", 0), ("<|end|>", 1)]
    )
    fast.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<|begin|>"}', encoding="utf-8")
    tokenizer = open_tokenizer(tmp_path)
    assert (tokenizer.bos_id, tokenizer.n_vocab) == (0, fast.get_vocab_size())
    assert tokenizer.encode(TEXT).tolist() == fast.encode(TEXT, add_special_tokens=False).ids
    assert 1 not in tokenizer.encode("x<|end|>")
    assert 1 in tokenizer.encode("x<|end|>", parse_special=True)


def test_byte_fallback_in_tokenizer_json_has_no_scores(tmp_path: Path) -> None:
    """As in llama.cpp all scores are equal, so the leftmost pair is merged first, whatever the merges say."""
    pieces = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "c", "ab", "bc"]
    fast = {
        "model": {
            "type": "BPE",
            "byte_fallback": True,
            "vocab": {p: i for i, p in enumerate(pieces)},
            "merges": ["b c", "a b"],
        },
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        "added_tokens": [token("<unk>", special=True, id=0), token("<s>", special=True, id=1)],
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(fast), encoding="utf-8")
    tokenizer = open_tokenizer(tmp_path)
    assert tokenizer.encode("abc").tolist() == [pieces.index(p) for p in ("▁", "ab", "c")]
    assert tokenizer.encode("é").tolist() == [pieces.index(p) for p in ("▁", "<0xC3>", "<0xA9>")]
    assert tokenizer.encode("<s>").tolist()[1:] == [pieces.index(f"<0x{byte:02X}>") for byte in b"<s>"]
    assert tokenizer.encode("<s>", parse_special=True).tolist() == [1]


def test_a_folder_without_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"neither tokenizer\.model nor tokenizer\.json"):
        open_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"nonsense")
    with pytest.raises(TokenizerError, match=r"tokenizer\.model: is no SentencePiece model"):
        open_tokenizer(tmp_path)


# -- chunks


def letters(adds_bos: bool = True) -> SpmTokenizer:
    """One token per letter."""
    special = SpecialTokens({"bos": 0}, {"bos": adds_bos})
    tokens = ["<s>", *"abcdefghij"]
    return SpmTokenizer(
        Vocabulary(
            "letters", SPM, tokens, [3] + [1] * 10, [0.0] * 11, special=special, add_space_prefix=False
        )
    )


def test_chunks_begin_with_bos() -> None:
    chunks = make_chunks([Text("t", "abcdefghij")], letters(), n_ctx=4)
    assert chunks.tokens.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]  # BOS once; the rest of three is dropped
    assert chunks.inputs.tolist() == [[0, 1, 2, 3], [0, 5, 6, 7]]  # and in place of each chunk's first
    assert (chunks.n_chunk, chunks.n_ctx, chunks.n_token) == (2, 4, 8)
    assert chunks.part(1).tokens.tolist() == [[4, 5, 6, 7]]
    plain = make_chunks([Text("t", "abcdefghij")], letters(adds_bos=False), n_ctx=4)
    assert plain.inputs.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert make_chunks([Text("t", "abcdefghij")], letters(), n_ctx=4, n_chunk=1).n_chunk == 1


def test_several_texts_are_one_stream() -> None:
    chunks = make_chunks([Text("a", "abc"), Text("b", "defg")], letters(), n_ctx=4)
    assert chunks.tokens.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert chunks.names == ("a", "b")


@needs_bench
def test_chunk_counts_of_the_bench() -> None:
    tokenizer = open_tokenizer(BENCH / "harmony-nano")
    chunks = make_chunks([read_text(BENCH / "texts" / "calibration.txt")], tokenizer)
    assert chunks.n_chunk == 391  # 200,186 rows and 400,384 routed ones in reference/llama-imatrix.gguf
    assert chunks.tokens.dtype == np.int32


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (b"", "the text is empty"),
        (b"\n", "the text is empty"),
        (b"good \xff bad", r"not UTF-8 at byte 5 \(0xff\)"),
        (b"cut \xe6\xbc", "not UTF-8 at byte 4"),
    ],
)
def test_texts_that_cannot_be_used(tmp_path: Path, raw: bytes, told: str) -> None:
    file = tmp_path / "text.txt"
    file.write_bytes(raw)
    with pytest.raises(TextError, match=rf"text\.txt: {told}"):
        read_text(file)


def test_text_is_read_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_bytes(b"a\r\nb\n\n")
    assert read_text(file).text == "a\r\nb\n"  # one newline less, the rest untouched
    with pytest.raises(TextError, match="file is missing"):
        read_text(tmp_path / "none.txt")


def test_too_little_text() -> None:
    with pytest.raises(TextError, match=r"a \+ b: 6 tokens are too few, one chunk needs 8"):
        make_chunks([Text("a", "abc"), Text("b", "de")], letters(), n_ctx=8)


def test_prompts_of_mergekit(tmp_path: Path) -> None:
    file = tmp_path / "mergekit_moe_config.yml"
    file.write_text(
        "experts:\n- source_model: x\n  positive_prompts: [one, 'two\\n']\n- positive_prompts:\n  - three\n"
        "- source_model: none\n",
        encoding="utf-8",
    )
    assert read_prompts(file).text == "one\ntwo\\n\nthree"
    for raw, told in (
        ("experts: 3\n", "no positive_prompts"),
        ("- a\n", "no positive_prompts"),
        ("a: [\n", "invalid YAML"),
        ("experts: !!python/object/apply:os.getcwd []\n", "invalid YAML"),
    ):
        file.write_text(raw, encoding="utf-8")
        with pytest.raises(TextError, match=told) as caught:
            read_prompts(file)
        assert "\n" not in str(caught.value)
