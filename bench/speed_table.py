"""
Writes the table at the head of docs/speed.md from what the other scripts of bench/ measured.

    python bench/speed_table.py

Each row names its file of bench/results/, which has the machine, the commit and the command. A row is
what we do, what stands beside it in the same run, and how many times as fast we are.
"""
import re
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from configurator import Refused
from files import atomically, read_json

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / 'bench' / 'results'
PAGE = ROOT / 'docs' / 'speed.md'
BEGIN = '<!-- written by bench/speed_table.py -->'
END = '<!-- end -->'
HEAD = '| what | here | beside it | times as fast | result, machine, commit |'

@dataclass(frozen=True)
class Row:
    """A row of the table, from one file of bench/results/."""
    what: str
    here: str
    beside: str
    times: float | None
    result: str # name of the file, without .json

def rate(number, unit):
    """'16.9 M tokens/s', '9,340 tokens/s', '41.7 x real time': a number in three digits, and its unit."""
    if number >= 1e6:
        return f'{number / 1e6:.3g} M {unit}'
    if number >= 100:
        number = float(f'{number:.3g}')
    return f'{number:,.0f} {unit}' if number >= 100 else f'{number:.3g} {unit}'

def find(rows, **values):
    """The one row with these values."""
    [row] = [row for row in rows if all(row.get(key) == value for key, value in values.items())]
    return row

def compared(what, result, unit, here, peers):
    """A Row from rates: `here` beside {name: rate}. Its ratio is to the first of them."""
    beside = ', '.join(f"{name} {rate(number, '').strip()}" for name, number in peers.items())
    first = next(iter(peers.values()))
    return Row(what, rate(here, unit), beside, here / first, result)

def preparing(load):
    """Rows of interleaving, decoding of audio, packing and the loader, from prepare.json."""
    results = load('prepare')
    interleave = results['interleave']
    yield compared('units + words -> interleaved tokens, one core', 'prepare', 'tokens/s', interleave['tok_s'],
                   {"the papers' way (1)": interleave['by_strings_tok_s']})
    pack = results['pack']
    yield Row(f"packing {pack['documents'] / 1e6:.0f} million documents into rows of 2,048",
              f"{pack['s']:.0f} s, {pack['peak_gb']:.1f} GB, {pack['fill']:.1%} full", '', None, 'prepare')
    write = results['write']
    yield compared(f"writing {write['shards']:,} shards", 'prepare', 'MB/s', write['mb_s'],
                   {'one plain file': write['plain_file_mb_s']})
    yield Row('rows for training, one core', rate(results['read']['tok_s'], 'tokens/s'), '', None, 'prepare')
    for hertz in (16000, 44100):
        name = f'{hertz} Hz, 4'
        yield compared(f'FLAC of {hertz / 1000:g} kHz to 16 kHz mono, 4 threads on two cores', 'prepare',
                       'x real time', results['decode'][f'{name} threads'],
                       {'4 processes': results['decode'][f'{name} processes']})

def encoding(load):
    """Rows of HuBERT-base's shape up to layer 9, from encoder-hubert-base.json and its --cores."""
    rows = load('encoder-hubert-base')['rows']
    for dtype in ('float32', 'bfloat16'):
        for clip in ('10 s', 'files'):
            label = 'clips of 10 s' if clip == '10 s' else 'three files'
            peer = find(rows, clip=clip, way='transformers')
            here = find(rows, clip=clip, way=dtype)
            yield compared(f'HuBERT-base to layer 9, one core, {label}: {dtype}', 'encoder-hubert-base', 'x real time',
                           here['x real time'], {'transformers, float32': peer['x real time']})
    name = 'encoder-hubert-base-cores'
    rows = load(name)['rows']
    here = find(rows, way='the same, decoding too')
    yield compared('the same on two cores, a thread each, with decoding of FLAC: bfloat16', name, 'x real time',
                   here['x real time'], {'without decoding': find(rows, way='threads of one core each')['x real time'],
                                         'processes': find(rows, way='processes')['x real time']})

def training(load):
    """Rows of a training step, from train-cpu.json and train-cpu-qwen3.json."""
    shapes = (('Qwen-shaped, two threads (2)', 'train-cpu'), ('Qwen3-shaped, one thread (3)', 'train-cpu-qwen3'))
    for shape, name in shapes:
        rows = load(name)['rows']
        for tokens, label in ((128, 'packed documents of 128'), (512, 'rows of one document')):
            for dtype in ('bfloat16', 'float32'):
                of_kind = [row for row in rows if row['what'] == f'{dtype}, documents of {tokens}']
                rates = {row['of']: row['tok_s'] for row in of_kind}
                peers = {of: rates[of] for of in ('transformers', "nanoGPT's way") if of in rates}
                yield compared(f'a training step, {shape}, {label}: {dtype}', name, 'tokens/s', rates['nanoSLM'], peers)

def scoring(load):
    """Rows of StoryCloze items in four directions, from eval.json."""
    labels = {'likelihood': 'likelihoods in four directions', 'S': 'likelihoods in speech alone',
              'first run': 'from audio files', 'second run': 'a second run'}
    for stage, label in labels.items():
        row = find(load('eval')['rows'], stage=stage)
        yield compared(f'sSC and tSC, one core: {label} (4)', 'eval', 'items/s', row['ours, items/s'],
                       {"the papers' way": row['papers, items/s']})

def decoding(load):
    """Rows of cached decoding, from sample.json."""
    rows = load('sample')['rows']
    for ids, label in (('all, greedy', 'greedy'), ('units, top-k 25', 'units alone, temperature 0.8, top-k 25')):
        for batch in (1, 32):
            for of, note in (('nanoSLM', ''), ('nanoSLM, compiled', ', compiled')):
                peers = {'transformers': find(rows, batch=batch, ids=ids, of='transformers, dynamic cache'),
                         'static cache': find(rows, batch=batch, ids=ids, of='transformers, static cache'),
                         'floor (5)': find(rows, batch=batch, ids=ids, of='floor')}
                yield compared(f'cached decoding, batch {batch}, {label}{note}', 'sample', 'tokens/s',
                               find(rows, batch=batch, ids=ids, of=of)['tokens/s'],
                               {name: row['tokens/s'] for name, row in peers.items()})

PARTS = (preparing, encoding, training, scoring, decoding)

def table(load):
    """The lines of the table; load(NAME) -> what NAME.json holds."""
    lines = [HEAD, '|---' * HEAD.count(' |') + '|']
    for part in PARTS:
        for row in part(load):
            results = load(row.result)
            times = '' if row.times is None else f'{row.times:.3g}'
            processor = re.sub(r'\(R\)| Processor', '', results['machine'])
            lines.append(f"| {row.what} | {row.here} | {row.beside} | {times} "
                         f"| `{row.result}`, {processor}, {results['commit']} |")
    return lines

def load_result(name):
    return read_json(RESULTS, f'{name}.json', 'the other scripts of bench/')

def with_table(page, lines):
    """The page with these lines between its marks."""
    pattern = re.compile(f'{re.escape(BEGIN)}\n.*?{re.escape(END)}', re.DOTALL)
    if len(pattern.findall(page)) != 1:
        raise Refused(f"{PAGE}: expected one '{BEGIN}', and '{END}' after it")
    return pattern.sub(lambda _: '\n'.join([BEGIN, *lines, END]), page)

def main():
    page = PAGE.read_text(encoding='utf-8')
    lines = table(load_result)
    with atomically(PAGE) as tmp:
        tmp.write_text(with_table(page, lines), encoding='utf-8')
    print(f"{PAGE}: {len(lines) - 2} rows")

if __name__ == '__main__':
    main()
