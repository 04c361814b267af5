"""The ladder: what plain networks have reached on handwritten digits since 1998, reproduced by one backward.

    python -m bp_torch ladder                          the table
    python -m bp_torch ladder run simard-elastic --seeds 3
    python train.py --recipe simard-elastic            the same row as a plain run
    python -m bp_torch ladder docs                     write docs/ladder.md and its picture

rows.toml holds the published results and our recipes, results.json what was measured.
"""
