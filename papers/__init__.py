"""
What the two papers say, beside what is measured here.

    papers/claims.sh                 the papers' claims, rerun on the embedded corpus
    papers/turn.sh                   from which compute on interleaved models beat textless ones
    python -m papers.tables          the papers' tables with our rows
    python -m papers.slamkit         units folders and token shards from what the papers' own code prepared

May import: any room.
"""
