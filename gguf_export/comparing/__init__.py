"""What is measured on which models by which texts, as one library call each: `compare` and `errors`.

The figures come from `calibration.judging`. Nothing here draws or prints: pages and tables are `reports`.
"""
