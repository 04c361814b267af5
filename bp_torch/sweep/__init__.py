"""A sweep: networks of several settings and seeds, trained many at a time as one (K, P) matrix.

python -m bp_torch sweep --learning-rate 0.3 1 3 10 --seeds 16
"""
