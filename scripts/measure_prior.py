#!/usr/bin/env python3
"""How much should an expert with few tokens borrow from its layer? A measurement of `--prior`.

    scripts/measure_prior.py MODEL --text calibration.txt --eval wiki.txt --eval code.txt [-t Q4_K_S -t Q3_K_S]

Calibrates on short pieces of text, from several places of the file, and on nothing but the first --eval text of each in
turn ("one kind": experts of other kinds starve). Each importance matrix is used with every prior; the quantized models
are compared with the original on held-out text of all kinds, all in one pass. Printed are ratios of the mean KL
divergence to that with prior 0 (llama.cpp's behaviour): geometric means over the places, with their standard errors.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from calibration.importance.imatrix import Imatrix
from calibration.importance.observers import collect_imatrix
from calibration.judging.round_trip import RoundTrip
from calibration.judging.side_by_side import Model, compare
from calibration.text.chunks import Chunks, make_chunks, read_text
from calibration.text.tokenizer import Tokenizer, open_tokenizer
from quantize.recipes.ftypes import ftype
from quantize.recipes.layout import Plan
from quantize.recipes.recipe import Recipe, RecipeFacts, make_plan
from quantize.sources.checkpoint import Checkpoint, open_checkpoint

PRIORS = (0.0, 1.0, 8.0, 32.0, 128.0, 512.0, 1e12)
N_CTX = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--text", required=True, help="calibration text of all kinds")
    parser.add_argument("--eval", action="append", required=True, help="held-out text, one file per kind")
    parser.add_argument("-t", "--type", action="append", help="file types (default Q4_K_S)")
    parser.add_argument("--tokens", type=int, nargs="+", default=[64, 128, 256, 512, 1024, 4096, 16384])
    parser.add_argument("--places", type=int, default=6, help="pieces of text of each size")
    parser.add_argument("--chunks", type=int, default=8, help="held-out chunks of each kind")
    args = parser.parse_args()

    source, tokenizer = open_checkpoint(args.model), open_tokenizer(args.model)
    stream = chunks_of(tokenizer, args.text)
    kinds = [chunks_of(tokenizer, path) for path in args.eval]
    held_out = [kind.part(0, args.chunks) for kind in kinds]
    for type_name in args.type or ["Q4_K_S"]:
        file_plan = make_plan(
            source.specs(), RecipeFacts.of(source.hparams), Recipe(ftype(type_name)), has_imatrix=True
        )
        print(f"\n{type_name}: mean KLD, relative to prior 0\n")
        print("| text | tokens | least tokens of an expert | KLD, prior 0 | " + header() + " |")
        print("|" + "---|" * (4 + len(PRIORS[1:]) + 1))
        for n_token in args.tokens:
            pieces = [piece(stream, n_token, place, args.places) for place in range(args.places)]
            report("all kinds", n_token, source, file_plan, held_out, pieces)
        for n_token in args.tokens[-2:]:
            pieces = [piece(kind.part(args.chunks), n_token, 0, 1) for kind in kinds]
            report("one kind", n_token, source, file_plan, held_out, pieces)


def chunks_of(tokenizer: Tokenizer, path: str) -> Chunks:
    return make_chunks([read_text(path)], tokenizer, n_ctx=N_CTX)


def piece(chunks: Chunks, n_token: int, place: int, n_place: int) -> Chunks:
    """`n_token` tokens from one of several places, in chunks of at most N_CTX."""
    tokens = chunks.tokens.reshape(-1)
    n_token = min(n_token, len(tokens))
    start = (len(tokens) - n_token) * place // max(1, n_place - 1)
    n_ctx = min(n_token, N_CTX)
    kept = tokens[start : start + n_token // n_ctx * n_ctx]
    return Chunks(chunks.names, kept.reshape(-1, n_ctx), chunks.bos_id)


def header() -> str:
    return " | ".join(["no imatrix", *(f"{prior:g}" for prior in PRIORS[1:-1]), "mean only"])


def report(
    label: str,
    n_token: int,
    source: Checkpoint,
    file_plan: Plan,
    held_out: Sequence[Chunks],
    pieces: Sequence[Chunks],
) -> None:
    klds, least = [], []
    for chunks in pieces:
        found = collect_imatrix(source, chunks)
        least.append(int(found.load.tokens.min()))
        klds.append(measure(source, file_plan, found.imatrix, held_out))
    table = np.array(klds)  # [places, 1 + priors]
    logs = np.log(table / table[:, 1:2])
    means = np.exp(logs.mean(axis=0))
    errors = means * logs.std(axis=0, ddof=1) / np.sqrt(len(logs))
    cells = [f"{mean:.3f} ± {error:.3f}" for mean, error in zip(means, errors, strict=True)]
    del cells[1]
    middle = f"{int(np.median(least))} | {table[:, 1].mean():.4f}"
    print(f"| {label} | {n_token} | {middle} | " + " | ".join(cells) + " |")
    sys.stdout.flush()


def measure(source: Checkpoint, file_plan: Plan, imatrix: Imatrix, held_out: Sequence[Chunks]) -> list[float]:
    """Mean KLD over all kinds: without importances, then with every prior."""
    trips = [RoundTrip(source, file_plan)]
    trips += [RoundTrip(source, file_plan, replace(imatrix, prior=prior)) for prior in PRIORS]
    models = [Model(str(index), trip, 0, 0.0) for index, trip in enumerate(trips)]
    found = compare(Model("base", source, 0, 0.0), models, held_out)
    return [float(np.mean([text.statistics.kld.value for text in row])) for row in found.results]


if __name__ == "__main__":
    main()
