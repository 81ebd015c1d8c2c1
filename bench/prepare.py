"""
The stages between units and rows, each measured alone on one core.

    python bench/prepare.py [--dry]      --dry: few documents, nothing written

interleave   units and words in memory -> token ids, documents of 40 words (tiny/stories.py) and about 290 runs of units; and
             the same ids the way the papers' code makes them: a string of '<Un7><Un12>' and words a document, to the text
             tokenizer with the units as added tokens. tiny/tokenizer for both
decode       FLAC of 8 s at 16 and 44.1 kHz, stereo -> 16 kHz mono, by 4 threads and by 4 processes: seconds of audio a second
pack         lengths of 50 million documents -> rows of 2,048
write, open  a source of 2,000 shards, written, then opened with every check; a plain file of the same bytes beside it
read         rows of 2,048 of three sources, each row once, and how much memory that holds more at the end than halfway

Writes bench/results/prepare.json.
"""
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import soundfile
import transformers

import interleave as il
from bench.common import ROOT, save
from data import Loader, Shards, ShardWriter
from files import progress
from hub.tokenizer import TextTokenizer, export_tokenizer
from speech.audio import RATE, load_audio
from speech.words import WordsShard, write_words_shard
from tiny.stories import stories
from vocab import Vocab

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

WORDS, K, HOP = 40, 500, 640

def made_documents(folder, n):
    """n documents: (units, runs, offsets) and a shard of words that lie evenly over them."""
    rng, text = np.random.default_rng(0), ' '.join(s for story in stories('train', 2000, 0) for s in story.sentences).split()
    lengths = rng.integers(250, 331, n) # runs
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    units, runs = rng.integers(K, size=offsets[-1]).astype(np.uint16), rng.integers(1, 3, offsets[-1]).astype(np.uint16)
    docs = []
    for i in range(n):
        begin = rng.integers(len(text) - WORDS)
        words = [' ' * (j > 0) + word for j, word in enumerate(text[begin:begin + WORDS])]
        edges = np.linspace(0, int(runs[offsets[i]:offsets[i + 1]].sum()) * HOP, WORDS + 1).astype(np.int64)
        docs.append((f'd{i:06d}', words, edges[:-1], edges[1:]))
    write_words_shard(folder, 0, docs)
    return units, runs, offsets, WordsShard(folder / '00000')

def ours(units, runs, offsets, shard, tokenizer, vocab):
    keys, parts = il.draw_keys(il.hash_ids(shard.ids), 0, 0), []
    table = il.WordTable(shard, tokenizer, il.splits_at_spaces(tokenizer))
    for a, b in il.cuts(offsets):
        own, words = slice(offsets[a], offsets[b]), slice(shard.offsets[a], shard.offsets[b])
        batch = il.Batch(units[own], runs[own], offsets[a:b + 1] - offsets[a], shard.word[words], shard.start[words],
                      shard.end[words], shard.offsets[a:b + 1] - shard.offsets[a], table.exact[a:b])
        parts.append(il.interleaved_documents(batch, keys[a:b], table, tokenizer, vocab, HOP)[0])
    return np.concatenate(parts)

def by_strings(units, runs, offsets, shard, tokenizer, spoken):
    """The papers' way: run by run and word by word to strings, then one call of the tokenizer a document."""
    parts = []
    for i in range(len(shard)):
        words, starts, ends = shard[i]
        own = slice(offsets[i], offsets[i + 1])
        names, clock, at, text = [f'<Un{u}>' for u in units[own]], [], 0, []
        for frames in runs[own].tolist():
            at += frames * HOP # samples, not the papers' seconds, whose rounding would move some spans
            clock.append(at)
        j = 0
        while j < WORDS:
            k = j
            while k < WORDS and spoken[i, k] == spoken[i, j]:
                k += 1
            if spoken[i, j]:
                start, end = starts[j], ends[k - 1]
                text.append('<speech>' + ''.join(name for name, t in zip(names, clock) if t >= start and t <= end))
            else:
                text.append('<text>' + ''.join(words[j:k]))
            j = k
        parts.append(tokenizer(''.join(text), add_special_tokens=False)['input_ids'])
    return parts

def interleaving(folder, n):
    tokenizer = TextTokenizer(ROOT / 'tiny' / 'tokenizer')
    vocab = Vocab('joint', tokenizer.size, K, tokenizer.hash, 'made')
    made = made_documents(folder, n)
    begin = time.perf_counter()
    tokens = ours(*made, tokenizer, vocab)
    rate = len(tokens) / (time.perf_counter() - begin)
    few, offsets = min(n, 400), made[2]
    export_tokenizer(ROOT / 'tiny' / 'tokenizer', vocab, folder)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    shard = made[3]
    spoken = il.spoken_words(il.draw_keys(il.hash_ids(shard.ids[:few]), 0, 0), [WORDS] * few).reshape(few, WORDS)
    shard.ids = shard.ids[:few]
    begin = time.perf_counter()
    lists = by_strings(*made[:2], offsets, shard, theirs, spoken)
    slow = sum(map(len, lists)) / (time.perf_counter() - begin)
    same = np.concatenate(lists)
    assert (same == tokens[:len(same)]).all(), "the two ways differ"
    return {'documents': n, 'tokens': len(tokens), 'tok_s': round(rate), 'by_strings_tok_s': round(slow), 'ratio': round(rate / slow, 1)}

def decode(path):
    return len(load_audio(path)) / RATE

def decoding(folder, files, repeats=3):
    """x real time, medians of repeats; processes are there before the clock runs."""
    found, wave = {}, np.random.default_rng(0).normal(0, 0.1, (8 * 44100, 2)).cumsum(0)
    wave *= 0.5 / np.abs(wave).max()
    for rate in (16000, 44100):
        paths = [folder / f'{rate}-{i}.flac' for i in range(files)]
        for i, path in enumerate(paths):
            soundfile.write(path, np.roll(wave[:8 * rate], 997 * i, 0), rate)
        for name, pool in (('threads', ThreadPoolExecutor(4)), ('processes', ProcessPoolExecutor(4))):
            with pool:
                list(pool.map(decode, paths[:8]))
                rates = []
                for _ in range(repeats):
                    begin = time.perf_counter()
                    rates.append(sum(pool.map(decode, paths)) / (time.perf_counter() - begin))
            found[f'{rate} Hz, 4 {name}'] = round(statistics.median(rates))
    return found

PACK = """
import sys, time, resource, json
import numpy as np
from data import pack
lengths = np.maximum(np.random.default_rng(0).geometric(1 / 290, size=int(sys.argv[1])), 2).astype(np.int32)
before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
plan = pack(lengths, 2048)
print(json.dumps({'documents': len(lengths), 's': round(time.perf_counter() - begin, 1), 'fill': float(plan.fill(2048)),
                  'cut': int(plan.cuts), 'peak_gb': round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** 20, 2)}))
"""

def packing(n):
    """In a process of its own, so that the peak is its own."""
    said = subprocess.run([sys.executable, '-c', PACK, str(n)], cwd=ROOT, env=os.environ | {'PYTHONPATH': str(ROOT)},
                          capture_output=True, text=True, check=True).stdout
    return json.loads(said)

def writing(folder, shards, tokens):
    """A source of so many shards of so many tokens."""
    vocab, rng = Vocab('joint', 151_665, K, 'x', 'y'), np.random.default_rng(0)
    lengths = np.full(tokens // 250, 250)
    ids = rng.integers(vocab.size, size=lengths.sum()).astype(np.uint32)
    begin = time.perf_counter()
    with ShardWriter(folder / 'many', 'many', vocab, shard_tokens=len(ids)) as writer:
        for _ in progress(range(shards), desc='write'):
            writer.add(ids, lengths)
    seconds = time.perf_counter() - begin
    size = sum(path.stat().st_size for path in (folder / 'many').glob('*.bin'))
    begin = time.perf_counter()
    with open(folder / 'plain', 'wb') as f:
        for _ in range(shards):
            f.write(ids)
        f.flush()
        os.fsync(f.fileno())
    plain = shards * ids.nbytes / (time.perf_counter() - begin)
    begin = time.perf_counter()
    Shards(folder / 'many')
    return {'shards': shards, 'mb': round(size / 1e6), 'mb_s': round(size / seconds / 1e6), 'plain_file_mb_s': round(plain / 1e6),
            'open_s': round(time.perf_counter() - begin, 3)}

def reading(folder, tokens, T=2048):
    """How many tokens a second Loader.rows makes, each row for the first time."""
    vocab, rng = Vocab('joint', 151_665, K, 'x', 'y'), np.random.default_rng(0)
    for name in ('text', 'speech', 'interleaved'):
        with ShardWriter(folder / name, name, vocab) as writer:
            lengths = np.maximum(rng.geometric(1 / 290, size=tokens // 290), 2)
            writer.add(rng.integers(vocab.size, size=lengths.sum()), lengths)
    loader = Loader([Shards(folder / name) for name in ('text', 'speech', 'interleaved')], None, T, 0)
    n, held = int(loader.n_rows.sum()) // 8 * 8, {}
    begin = time.perf_counter()
    for first in progress(range(0, n, 8), desc='rows'):
        loader.rows(first, 8)
        held[2 * first // n] = anonymous()
    return {'tokens': n * T, 'tok_s': round(n * T / (time.perf_counter() - begin)), 'more_mb': round((held[1] - held[0]) / 1e6, 1)}

def anonymous():
    """Bytes of this process that are no mapped file."""
    return next(int(line.split()[1]) * 1024 for line in Path('/proc/self/status').read_text().splitlines()
                if line.startswith('RssAnon'))

def main():
    if sys.argv[1:] not in ([], ['--dry']):
        raise SystemExit(__doc__)
    dry, found = bool(sys.argv[1:]), {}
    for name, stage in {'interleave': lambda tmp: interleaving(tmp, 200 if dry else 20_000),
                        'decode': lambda tmp: decoding(tmp, 8 if dry else 60),
                        'pack': lambda tmp: packing(20_000 if dry else 50_000_000),
                        'write': lambda tmp: writing(tmp, 20 if dry else 2000, 2000 if dry else 250_000),
                        'read': lambda tmp: reading(tmp, 100_000 if dry else 20_000_000)}.items():
        with tempfile.TemporaryDirectory() as tmp:
            found[name] = stage(Path(tmp))
        print(f'{name}:', ', '.join(f'{key} {value:,}' for key, value in found[name].items()), flush=True)
        save('prepare', dry, **found)

if __name__ == '__main__':
    main()
