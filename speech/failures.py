"""
The files of a units folder that could not be used: each shard lists its own in failures.jsonl.
"""
import os
from collections import Counter
from pathlib import Path

from configurator import Refused, ranks
from files import atomically, read_lines, write_lines


def complete(out):
    """The numbers of the shards that are there."""
    return sorted(int(name) for name in os.listdir(out) if name.isdecimal() and len(name) >= 5)

class Failures:
    """The failures of all complete shards, each shard's read once."""
    def __init__(self, cfg, n_utterances):
        self.cfg = cfg
        self.n_utterances = n_utterances
        self.by_shard = {}

    def check(self, shard=None, failed=()):
        """All failures; with `failed`, those of `shard`, if it is about to be written.

        Raises Refused, with DIR/failures.jsonl written, if they exceed max_fail_frac.
        """
        cfg = self.cfg
        limit = cfg.max_fail_frac * self.n_utterances
        for s in complete(cfg.out):
            if s not in self.by_shard:
                lines = read_lines(Path(cfg.out, f'{s:05d}', 'failures.jsonl'))
                self.by_shard[s] = [failure for _, failure in lines]
        by_shard = self.by_shard if shard is None else {**self.by_shard, shard: failed}
        failures = [failure for s in sorted(by_shard) for failure in by_shard[s]]
        if len(failures) <= limit:
            return failures
        self.write(failures)
        counts = Counter(failure['class'] for failure in failures)
        kinds = ', '.join(f'{n} {kind}' for kind, n in sorted(counts.items()))
        # Shards that ranks complete at the same time may exceed the limit together.
        in_complete = sum(map(len, self.by_shard.values())) > limit
        remedy = "; when mended, delete the shards that list them and run again" if in_complete else ''
        raise Refused(f"{cfg.audio}: {len(failures)} of {self.n_utterances} files cannot be used ({kinds}), "
                      f"max_fail_frac is {cfg.max_fail_frac:g}; see {cfg.out}/failures.jsonl{remedy}")

    def write(self, failures):
        """Writes DIR/failures.jsonl."""
        with atomically(Path(self.cfg.out) / 'failures.jsonl', f'.{ranks()[0]}') as tmp:
            write_lines(tmp, failures)
