"""Which models are compared by which texts, in one pass; the figures come from `calibration.judging`.

Nothing here draws: pages and tables are `reports`.
"""
