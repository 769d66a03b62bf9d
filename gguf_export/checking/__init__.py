"""Whether something is as it should be: `doctor` before the work, `verify` after it, `inspect` at any time.

Nothing here changes a model; `verify` can add a line to the SHA256SUMS beside it.

    doctor     a checkpoint: config, shard_checks, tokenizer_checks, weight_checks
    verify     a file: structure, stored_numbers, checksums, file_hashes; beside its checkpoint key_checks and against,
               which goes through file_check (one slab), deviations, verdicts (one tensor) and origins
    inspect    the figures of either
    fit        what files take on a graphics card, and which one fits
    findings   what doctor and verify say
"""
