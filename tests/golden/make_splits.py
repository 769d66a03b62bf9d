"""Write tests/golden/splits.json: the tokens into which llama.cpp cuts awkward texts with each of its pre-tokenizers.

    python tests/golden/make_splits.py

exports a model for each name and asks llama.cpp (xllamacpp; the committed file: 2026.10.11549). Of each text's ids the
file keeps a digest. Takes about two minutes.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS / "helpers")]

from llama import serve  # noqa: E402
from places import GOLDEN  # noqa: E402
from split_cases import awkward_texts, pair_vocabulary, write_model  # noqa: E402

from calibration.text.pretokenizers import hash_ids  # noqa: E402
from calibration.text.splits import SPLITS  # noqa: E402
from gguf_export.writing.export import prepare, run  # noqa: E402
from quantize.recipes.ftypes import ftype  # noqa: E402
from quantize.recipes.recipe import Recipe  # noqa: E402
from quantize.sources.checkpoint import open_checkpoint  # noqa: E402

N_TEXT = 80


def main() -> None:
    texts = awkward_texts(N_TEXT)
    digests = {}
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = open_checkpoint(write_model(Path(folder) / "model", pair_vocabulary(texts)))
        for pre in sorted(SPLITS):
            job = prepare(checkpoint, [Recipe(ftype("BF16"))], Path(folder) / pre, pre=pre)
            run(job, jobs=1)
            with serve(job.files[0].path) as llama:
                ids = [llama.tokenize(text, add_special=False, parse_special=False) for text in texts]
            digests[pre] = [hash_ids(text_ids)[:8] for text_ids in ids]
    lines = [f"{json.dumps(pre)}: {json.dumps(' '.join(of_pre))}" for pre, of_pre in digests.items()]
    listed = json.dumps(texts, ensure_ascii=True)
    (GOLDEN / "splits.json").write_text(
        f'{{"texts": {listed},\n"digests": {{\n' + ",\n".join(lines) + "\n}}\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
