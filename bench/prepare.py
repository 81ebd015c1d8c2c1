"""
Measures the stages between units and training rows, each alone on one core.

    python bench/prepare.py [--dry]      --dry: few documents, nothing written

interleave   from units and words in memory to token ids, for documents of 40 words of tiny/stories.py
             and about 290 runs of units. Beside it the same ids made as the papers' code does: each
             document becomes a string of '<Un7><Un12>' and words, for a text tokenizer that has the
             units as added tokens. Both use tiny/tokenizer
decode       stereo FLAC of 8 s at 16 and 44.1 kHz to 16 kHz mono, by 4 threads and by 4 processes,
             in seconds of audio per second
pack         from the lengths of 50 million documents to rows of 2,048
write        a source of 2,000 shards: writing it, beside a plain file of the same bytes, and opening
             it with every check
read         rows of 2,048 from three sources, each row once; more_mb is how much the memory of the
             process grows in the second half

Writes bench/results/prepare.json.
"""
import json
import os
import re
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

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import interleave as il
from bench.common import ROOT, save
from data import Loader, Shards, ShardWriter
from files import progress
from hub.tokenizer import TextTokenizer, export_tokenizer
from speech.audio import RATE, load_audio
from speech.corpus import Batch, hash_ids
from speech.words import WordsShard, write_words_shard
from tiny.stories import stories
from vocab import Vocab

WORDS = 40 # words per document
K = 500 # units
HOP = 640 # samples per frame

# --------------------------------------------------------------------------------------------------
# interleave

def random_documents(folder, n):
    """n documents -> (units, runs, offsets, a WordsShard), with the words spread evenly over the units.

    units and runs are the arrays of all documents one after another, runs the number of frames of
    each unit; document i is units[offsets[i]:offsets[i + 1]].
    """
    rng = np.random.default_rng(0)
    sentences = (sentence for story in stories('train', 2000, 0) for sentence in story.sentences)
    text = ' '.join(sentences).split()
    n_runs = rng.integers(250, 331, n)
    offsets = np.concatenate([[0], np.cumsum(n_runs)])
    units = rng.integers(K, size=offsets[-1]).astype(np.uint16)
    runs = rng.integers(1, 3, offsets[-1]).astype(np.uint16)
    docs = []
    for i in range(n):
        begin = rng.integers(len(text) - WORDS)
        words = text[begin:begin + WORDS]
        words[1:] = [' ' + word for word in words[1:]]
        n_frames = int(runs[offsets[i]:offsets[i + 1]].sum())
        edges = np.linspace(0, n_frames * HOP, WORDS + 1).astype(np.int64)
        docs.append((f'd{i:06d}', words, edges[:-1], edges[1:]))
    write_words_shard(folder, 0, docs)
    return units, runs, offsets, WordsShard(folder / '00000')

def interleave_by_arrays(units, runs, offsets, shard, tokenizer, vocab):
    """The token ids of all documents, as interleave.py makes them."""
    keys = il.draw_keys(hash_ids(shard.ids), 0, 0)
    table = il.WordTable(shard, tokenizer, il.splits_at_spaces(tokenizer))
    parts = []
    for a, b in il.cuts(offsets):
        frames = slice(offsets[a], offsets[b])
        words = slice(shard.offsets[a], shard.offsets[b])
        batch = Batch(
            units[frames],
            runs[frames],
            offsets[a:b + 1] - offsets[a],
            shard.word[words],
            shard.start[words],
            shard.end[words],
            shard.offsets[a:b + 1] - shard.offsets[a],
            table.exact[a:b])
        spoken = il.spoken_words(keys[a:b], batch.n_words)
        ids, _ = il.interleaved_documents(batch, spoken, table, tokenizer, vocab, HOP)
        parts.append(ids)
    return np.concatenate(parts)

def interleave_by_strings(units, runs, offsets, shard, tokenizer, spoken):
    """The token ids of each document, as the papers' code makes them.

    Runs and words are put into a string one by one; the tokenizer is called once for each document.
    spoken (documents, WORDS): whether a word is given as units.
    """
    documents = []
    for i in range(len(shard)):
        words, starts, ends = shard[i]
        document = slice(offsets[i], offsets[i + 1])
        names = [f'<Un{u}>' for u in units[document]]
        run_ends = []
        end = 0 # in samples; the rounding of the papers' seconds would move some spans
        for n_frames in runs[document].tolist():
            end += n_frames * HOP
            run_ends.append(end)
        text = []
        j = 0
        while j < WORDS:
            k = j
            while k < WORDS and spoken[i, k] == spoken[i, j]:
                k += 1
            if spoken[i, j]:
                begin, end = starts[j], ends[k - 1]
                span = [name for name, t in zip(names, run_ends) if t >= begin and t <= end]
                text.append('<speech>' + ''.join(span))
            else:
                text.append('<text>' + ''.join(words[j:k]))
            j = k
        documents.append(tokenizer(''.join(text), add_special_tokens=False)['input_ids'])
    return documents

def measure_interleaving(folder, n):
    """Makes n documents by arrays, and up to 400 of them by strings; the ids must be the same."""
    tokenizer_folder = ROOT / 'tiny' / 'tokenizer'
    tokenizer = TextTokenizer(tokenizer_folder)
    vocab = Vocab('joint', tokenizer.size, K, tokenizer.hash, 'made')
    units, runs, offsets, shard = random_documents(folder, n)
    begin = time.perf_counter()
    tokens = interleave_by_arrays(units, runs, offsets, shard, tokenizer, vocab)
    rate = len(tokens) / (time.perf_counter() - begin)
    export_tokenizer(tokenizer_folder, vocab, folder)
    hf_tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    shard.ids = shard.ids[:400]
    n_strings = len(shard.ids)
    keys = il.draw_keys(hash_ids(shard.ids), 0, 0)
    spoken = il.spoken_words(keys, [WORDS] * n_strings).reshape(n_strings, WORDS)
    begin = time.perf_counter()
    documents = interleave_by_strings(units, runs, offsets, shard, hf_tokenizer, spoken)
    slow_rate = sum(map(len, documents)) / (time.perf_counter() - begin)
    expected = np.concatenate(documents)
    same = expected == tokens[:len(expected)]
    assert same.all(), "interleave.py and the strings of the papers' code give different ids"
    return {'documents': n,
            'tokens': len(tokens),
            'tok_s': round(rate),
            'by_strings_tok_s': round(slow_rate),
            'ratio': round(rate / slow_rate, 1)}

# --------------------------------------------------------------------------------------------------
# decode

def decode(path):
    """Decodes a file -> its seconds."""
    return len(load_audio(path)) / RATE

def measure_decoding(folder, n_files, repeats=3):
    """-> {rate and workers: seconds of audio per second}, medians of repeats."""
    wave = np.random.default_rng(0).normal(0, 0.1, (8 * 44100, 2)).cumsum(0)
    wave *= 0.5 / np.abs(wave).max()
    speeds = {}
    for rate in (16000, 44100):
        paths = [folder / f'{rate}-{i}.flac' for i in range(n_files)]
        for i, path in enumerate(paths):
            soundfile.write(path, np.roll(wave[:8 * rate], 997 * i, 0), rate)
        for name, pool in (('threads', ThreadPoolExecutor(4)), ('processes', ProcessPoolExecutor(4))):
            with pool:
                list(pool.map(decode, paths[:8])) # starts the workers, which is not timed
                rates = []
                for _ in range(repeats):
                    begin = time.perf_counter()
                    seconds = sum(pool.map(decode, paths))
                    rates.append(seconds / (time.perf_counter() - begin))
            speeds[f'{rate} Hz, 4 {name}'] = round(statistics.median(rates))
    return speeds

# --------------------------------------------------------------------------------------------------
# pack, write, read

PACK = """
import sys, time, resource, json
import numpy as np
from data import pack
lengths = np.random.default_rng(0).geometric(1 / 290, size=int(sys.argv[1]))
lengths = np.maximum(lengths, 2).astype(np.int32)
begin = time.perf_counter()
plan = pack(lengths, 2048)
seconds = time.perf_counter() - begin
peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({'documents': len(lengths), 's': round(seconds, 1), 'fill': float(plan.fill(2048)),
                  'cut': int(plan.cuts), 'peak_gb': round(peak_kib / 2 ** 20, 2)}))
"""

def measure_packing(n):
    """Packs n documents in a new process, so that the peak memory is that of packing."""
    done = subprocess.run([sys.executable, '-c', PACK, str(n)], cwd=ROOT,
                          env=os.environ | {'PYTHONPATH': str(ROOT)},
                          capture_output=True, text=True, check=True)
    return json.loads(done.stdout)

def measure_writing(folder, n_shards, shard_tokens):
    """Writes and opens a source of n_shards of shard_tokens each."""
    vocab = Vocab('joint', 151_665, K, 'x', 'y')
    lengths = np.full(shard_tokens // 250, 250)
    ids = np.random.default_rng(0).integers(vocab.size, size=lengths.sum()).astype(np.uint32)
    source = folder / 'many'
    begin = time.perf_counter()
    with ShardWriter(source, 'many', vocab, shard_tokens=len(ids)) as writer:
        for _ in progress(range(n_shards), desc='write'):
            writer.add(ids, lengths)
    seconds = time.perf_counter() - begin
    size = sum(path.stat().st_size for path in source.glob('*.bin'))
    begin = time.perf_counter()
    with open(folder / 'plain', 'wb') as f:
        for _ in range(n_shards):
            f.write(ids)
        f.flush()
        os.fsync(f.fileno())
    plain_rate = n_shards * ids.nbytes / (time.perf_counter() - begin)
    begin = time.perf_counter()
    Shards(source)
    open_seconds = time.perf_counter() - begin
    return {'shards': n_shards,
            'mb': round(size / 1e6),
            'mb_s': round(size / seconds / 1e6),
            'plain_file_mb_s': round(plain_rate / 1e6),
            'open_s': round(open_seconds, 3)}

def measure_reading(folder, n_tokens, T=2048):
    """Reads three sources of n_tokens each with Loader.rows, 8 rows a call, each row once."""
    vocab = Vocab('joint', 151_665, K, 'x', 'y')
    rng = np.random.default_rng(0)
    sources = []
    for name in ('text', 'speech', 'interleaved'):
        with ShardWriter(folder / name, name, vocab) as writer:
            lengths = np.maximum(rng.geometric(1 / 290, size=n_tokens // 290), 2)
            writer.add(rng.integers(vocab.size, size=lengths.sum()), lengths)
        sources.append(Shards(folder / name))
    loader = Loader(sources, None, T, 0)
    n = int(loader.n_rows.sum()) // 8 * 8
    memory = {} # after the first half of the rows (0), and after all (1)
    begin = time.perf_counter()
    for first in progress(range(0, n, 8), desc='rows'):
        loader.rows(first, 8)
        memory[2 * first // n] = anonymous_memory()
    seconds = time.perf_counter() - begin
    return {'tokens': n * T,
            'tok_s': round(n * T / seconds),
            'more_mb': round((memory[1] - memory[0]) / 1e6, 1)}

def anonymous_memory():
    """The bytes of this process that do not belong to a memory-mapped file."""
    status = Path('/proc/self/status').read_text()
    return int(re.search(r'RssAnon:\s*(\d+)', status)[1]) * 1024

def main():
    arguments = sys.argv[1:]
    if arguments not in ([], ['--dry']):
        raise SystemExit(__doc__)
    dry = bool(arguments)
    stages = {'interleave': lambda tmp: measure_interleaving(tmp, 200 if dry else 20_000),
              'decode': lambda tmp: measure_decoding(tmp, 8 if dry else 60),
              'pack': lambda tmp: measure_packing(20_000 if dry else 50_000_000),
              'write': lambda tmp: measure_writing(tmp, *((20, 2000) if dry else (2000, 250_000))),
              'read': lambda tmp: measure_reading(tmp, 100_000 if dry else 20_000_000)}
    results = {}
    for name, stage in stages.items():
        with tempfile.TemporaryDirectory() as tmp:
            results[name] = stage(Path(tmp))
        numbers = ', '.join(f'{key} {value:,}' for key, value in results[name].items())
        print(f'{name}:', numbers, flush=True)
        save('prepare', dry, **results)

if __name__ == '__main__':
    main()
