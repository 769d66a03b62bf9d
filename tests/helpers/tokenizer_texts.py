"""Texts on which tokenizers disagree: scripts, white space, digits, signs, decomposed letters, control tokens."""

# ruff: noqa: RUF001 - characters that look like others are meant

from __future__ import annotations

import random
from collections.abc import Sequence

WORDS = (
    "The quick brown fox jumps over the lazy dog.",
    "CamelCase PascalCase ALLCAPS mIxEd iPhone McDonald's O'Neill X-ray",
    "I've I'VE we'll WE'LL he'd HE'D it's IT'S don't DON'T 'tis 'TWAS y'all're ſie'ſ o'\u212a",
    "naïve café résumé Ångström Straße STRASSE ǅamija İstanbul ısı",
    "nai\u0308ve cafe\u0301 re\u0301sume\u0301 A\u030angstro\u0308m e\u0301\u0302\u0303\u0304x \u0301x x\u0301",
    "ẛ\u0323 \u2126 \u212b ﬁn ﬃ ½ ① ㎡ ＡＢｃ １２ K\u030a",
    "Привет, мир! Йога И\u0306ога чёрный че\u0308рный",
    "Ελληνικά Άθλος α\u0301 ἐν \u1fbdΑρχῇ",
    "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd \u05e9\u05c1\u05b8\u05dc\u05d5\u05b9\u05dd",
    "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645",
    "\u0645\u064e\u0631\u0652\u062d\u064e\u0628\u064b\u0627",
    "\u0661\u0662\u0663\u060c \u0664\u061f ۱۲۳\u06d4",
    "नमस\u094dत\u0947 द\u0941न\u093fय\u093e। ह\u093fन\u094dद\u0940 म\u0947\u0902 १२३ क\u094dष\u093f \u0958 क\u093c",
    "ব\u09be\u0982ল\u09be ভ\u09beষ\u09be ১২৩ ড\u09bc \u09dc",
    "தம\u0bbfழ\u0bcd ம\u0bcaழ\u0bbf త\u0c46ల\u0c41గ\u0c41 ಕನ\u0ccdನಡ മലയ\u0d3eള\u0d02",
    "สว\u0e31สด\u0e35ชาวโลก ท\u0e35\u0e48น\u0e35\u0e48 ๑๒๓ ສະບາຍດ\u0eb5",
    "မ\u103cန\u103aမ\u102cစ\u102c ក\u17b6ន\u17cbត\u17c2ព\u17b7ស\u17c1ស བ\u0f7cད་ས\u0f90ད།",
    "你好，世界！我想在apple工作1314151天～ 㐀䶿 𠀀𪛖 \uf900",
    "こんにちは世界。カタカナ\u30fc ｶ\uff9e か\u3099 ハ\u309a \u3005〆",
    "안녕하세요 세계 한국 ㄱㄴ",
    "ქართული Հայերեն አማርኛ ᏣᎳᎩ",
    "tiếng Việt tie\u0302\u0301ng Vie\u0323\u0302t Đồng",
)
SPACES = (
    " ",
    "  ",
    "   a",
    "a   ",
    "a  b   c    d     e",
    "\t",
    "\t\tx \t y",
    "\n",
    "\n\n",
    "a\nb\n\nc\n\n\nd",
    " \n \n  \n",
    "a \n b\r\nc\r\rd \r\n \r\n",
    "x\n   y\n\tz",
    "a\u00a0b\u00a0\u00a0c\u2003d\u2009\u2009e\u3000f\u3000\u3000g\u1680h",
    "a\u2028b\u2029c\u0085d\x0be\x0cf\x1cg\x1fh",
    "a\u200bb\u200cc\u200dd\u2060e\ufefff\u00adg",
    "    indented\n        twice\n\n    back",
    "ends in spaces   \n",
    " leading and trailing ",
    "\u2581a \u2581\u2581b c\u2581",
)
DIGITS = (
    "1 12 123 1234 12345 123456 1234567 12345678",
    "3.14159 -2.5e-10 1,000,000 0x1F 1_000 1st 2nd 10th 50% $9.99 \u20ac5",
    "a1b22c333d4444 2024-01-31T12:34:56Z v1.2.3-rc4",
    "²³¹ ⁵ ⅠⅡⅣ ¼½ \u0660\u0661\u0662\u0663\u0664 ४५६७ 一二三 ０１２３",
    "1१\u0663²Ⅴ 12\u0301 1 2 3 4  5",
)
SIGNS = (
    "!!! ??? ... --- === *** ### $$$ %%% &&& @@@ ~~~ ^^^ ||| ``` ''' \"\"\"",
    "(a) [b] {c} <d> /e/ \\f\\ 'g' \"h\" `i` \u00abj\u00bb \u201ck\u201d \u2018l\u2019",
    "for (int i = 0; i < n; ++i) { a[i] += b->c * (*d)[e]; } // done",
    "def f(x: int) -> str:\n    return f'{x!r:>{width}}'  # →\n",
    '<p class="a">x &amp; y</p>\n<!-- z -->\n',
    "https://example.com/a/b?c=d&e=%20f#g user@example.org C:\\a\\b",
    "\u2014 \u2013 … 。，；：！？\u3010\u3011 ¡¿ ।॥ \u061f",
    "√2 ≈ 1.41 ≤ x ∈ ℝ ∫ f ± × ÷ → ⇒ © ® ™ °",
    "a/b/c\n/d//e\r\n/f .\n,\n;\n\n!\n",
    "'s 't 're 've 'm 'll 'd 'S 'RE 'ſ s' ' ' '' 'x",
)
EMOJI = (
    "\ua7cb\ua7cbx \U0001cc00\U0001cc01 a\u0897b \U00010d40\U00010d41 \u1b4e! \U0002ebf0",  # since Unicode 15.1
    "😀 🚀🚀 👍\U0001f3fd ❤\ufe0f ✅",
    "👨\u200d👩\u200d👧\u200d👦 😶\u200d🌫\ufe0f 🇩🇪🇫🇷 1\ufe0f\u20e3",
    "a😀b 😀\n😀  😀",
    "𝕏𝕗 𝟘𝟙 𐐀𐐨 🅰 \U000e0001 \ue000 \U000f0000 \u0378 \uffff \U0010ffff",
)
LIKE_TOKENS = (
    "<|im_start|>user\nhi<|im_end|>\n",
    "<|endoftext|>",
    "a</s>b <s> </s>",
    "<|fim_prefix|>def f():<|fim_suffix|>\n<|fim_middle|>return 1",
    "<PRE> <SUF> <MID> <EOT> [PAD] [EOS] <eos> <bos> <pad> <unk> <mask>",
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>",
    "<|start|>system<|message|>x<|end|><|start|>assistant<|channel|>final<|message|>y<|return|><|call|>",
    "<\uff5cbegin\u2581of\u2581sentence\uff5c><\uff5cUser\uff5c>hi<\uff5cAssistant\uff5c>x<\uff5cend\u2581of\u2581sentence\uff5c>",
    "<think>\nx\n</think>\n<tool_call>{}</tool_call> [INST] y [/INST] [gMASK]<sop><|user|>\nz<|assistant|>",
    "<|repo_name|>a<|file_sep|>b <|fim_pad|> <reponame> <end_of_turn> <|end_of_text|>",
    "<|im_start <|im_end| |> im_end|> <|im_end|>>",
)
PIECES = (
    *(piece for text in (*WORDS, *DIGITS, *SIGNS[:2], *EMOJI) for piece in text.split(" ") if piece),
    *(" ", "  ", "   ", "\n", "\n\n", "\t", "\r\n", "'s", "'LL", "/", ".", "-", "_", "a", "B", "\u0301", "7"),
)


def hard_texts(own: Sequence[str] = (), n_text: int = 220, seed: int = 3) -> list[str]:
    """So many texts: those above, the texts of some tokens in context, and random mixtures of all pieces.

    Args:
        own: texts of tokens of the vocabulary that are not normal.
        n_text: number of texts.
        seed: of the mixtures.
    """
    choose = random.Random(seed)
    texts = [*WORDS, *SPACES, *DIGITS, *SIGNS, *EMOJI, *LIKE_TOKENS]
    some = choose.sample(list(own), min(len(own), 30))
    texts += [
        choose.choice(("{}", " {} ", "a{}b", "{0}{0}", "x\n{}\n", "1{}2")).format(text) for text in some
    ]
    while len(texts) < n_text:
        pieces = choose.choices((*PIECES, *some), k=choose.randint(2, 16))
        texts.append(choose.choice(("", " ")).join(pieces))
    return texts[:n_text]
