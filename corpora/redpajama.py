"""
RedPajama V2 (https://huggingface.co/datasets/togethercomputer/RedPajama-Data-V2), or any other text: filtered.

    python -m corpora.redpajama --root=data/rp2 --out=out/text/rp2
    python interleave.py --text=out/text/rp2/2023-14 --sources='("text",)' --out=...

    ROOT/documents/2023-14/0000/en_head.json.gz                a line {"raw_content", "url", ...} a document
    ROOT/quality_signals/2023-14/0000/en_head.signals.json.gz  a line {"id", "quality_signals": {NAME: [[a, b, value]]}}

Also read: .jsonl(.gz) whose lines carry quality_signals themselves (what the hub's loader yields) or none, with the
text in 'raw_content' or 'text', and .txt with a document a line. There is no audio, so this is a script: for each file
below ROOT one OUT/NAME.jsonl with {"id", "text"} a line, which is what interleave.py --text and corpora/spoken.py take.

A document is kept if it passes Gopher's rules (2112.11446) as SIMS has them, bounds included. Signals that are not
published are computed here: w the words after lower-casing and dropping ASCII punctuation, l the lines

    words       50 <= |w| <= 100,000                                rps_doc_word_count
    word_length 3 <= mean length of w <= 10                         rps_doc_mean_word_length
    symbols     '#', '...', '…' / words as written <= 0.1           rps_doc_symbol_to_word_ratio
    bullets     l that begin with a bullet / |l| <= 0.9             rps_lines_start_with_bulletpoint, ccnet_nlines
    top_2gram   characters in the most frequent pair of words, if it comes twice, / those of w <= 0.2
                                                                    rps_doc_frac_chars_top_2gram
"""
import json
import os
import string
from collections import Counter
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from configurator import Refused, run
from corpora.tree import documents
from files import atomically, progress, read_lines, record, write_json

RULES = {'words': (50, 100_000), 'word_length': (3, 10), 'symbols': (0, 0.1), 'bullets': (0, 0.9),
         'top_2gram': (0, 0.2)}
BULLETS = tuple('\u2022\u2023\u25b6\u25c0\u25e6\u25a0\u25a1\u25aa\u25ab\u2013')
NO_PUNCTUATION = str.maketrans('', '', string.punctuation)
TEXTS = ('.txt', '.jsonl', '.jsonl.gz', '.json.gz')

@dataclass(frozen=True)
class Config:
    root: str = '' # folder of text, or one file
    out: str = '' # folder to fill; files that are there already are not made again

    def __post_init__(self):
        if not self.root or not self.out:
            raise Refused("expected --root=DIR and --out=DIR")

def utterances(root):
    raise Refused(f"{root}: text without audio; python -m corpora.redpajama filters it, corpora/spoken.py reads it out")

def signals(text):
    """{rule: value} of a text."""
    words = text.lower().translate(NO_PUNCTUATION).split()
    lines, characters = text.split('\n'), sum(map(len, words))
    top, count = max(Counter(zip(words, words[1:])).items(), key=lambda item: item[1], default=((), 0))
    return {'words': len(words), 'word_length': characters / max(1, len(words)),
            'symbols': sum(map(text.count, ('#', '...', '…'))) / max(1, len(text.split())),
            'bullets': sum(line.lstrip().startswith(BULLETS) for line in lines) / len(lines),
            'top_2gram': sum(map(len, top)) * count / characters if count > 1 else 0.0}

def published(quality, where):
    """The same of a document's quality_signals, a dict or its JSON."""
    try:
        quality = json.loads(quality) if isinstance(quality, str) else quality
        value = lambda name: quality[name][0][2] or 0 # None where there are no words
        bullets = sum(line[2] for line in quality['rps_lines_start_with_bulletpoint'])
        return {'words': value('rps_doc_word_count'), 'word_length': value('rps_doc_mean_word_length'),
                'symbols': value('rps_doc_symbol_to_word_ratio'), 'bullets': bullets / max(1, value('ccnet_nlines')),
                'top_2gram': value('rps_doc_frac_chars_top_2gram')}
    except (KeyError, IndexError, TypeError, ValueError) as e:
        raise Refused(f"{where}: not the quality_signals of RedPajama V2 ({e!r})") from None

def broken_rule(values):
    """The first rule that a document breaks, or None."""
    return next((name for name, (low, high) in RULES.items() if not low <= values[name] <= high), None)

def judged(path):
    """(id, text, rule that it breaks or None, whether its signals are published) of each document of a file."""
    above, found, name = os.path.abspath(path).rpartition('/documents/')
    beside = f"{above}/quality_signals/{name.removesuffix('.json.gz')}.signals.json.gz"
    if not found or not os.path.exists(beside):
        for id, text, line in documents(path):
            quality = line.get('quality_signals')
            values = published(quality, f'{path}: {id}') if quality else signals(text)
            yield id, text, broken_rule(values), bool(quality)
        return
    for document, signal in zip_longest(documents(path), read_lines(beside)):
        if document is None or signal is None or not isinstance(signal[1].get('id'), str):
            raise Refused(f"{beside}: not one line with an id for each of {path}; download both again")
        yield signal[1]['id'], document[1], broken_rule(published(signal[1].get('quality_signals'), signal[0])), True

def main(cfg):
    top = os.path.join(cfg.root, 'documents') if os.path.isdir(os.path.join(cfg.root, 'documents')) else cfg.root
    paths = sorted(str(path) for path in Path(top).rglob('*')
                   if path.name.endswith(TEXTS) and not path.name.endswith('.signals.json.gz'))
    paths = [cfg.root] if os.path.isfile(cfg.root) else paths
    if not paths:
        raise Refused(f"{cfg.root}: no text in it; expected {' '.join(TEXTS)} files")
    total, names = Counter(), {}
    for path in paths:
        name = os.path.basename(path) if path == cfg.root else os.path.relpath(path, top)
        name = name.removesuffix('.gz').rpartition('.')[0]
        if name in names:
            raise Refused(f"{path}: {names[name]} would be {cfg.out}/{name}.jsonl too; rename one, or filter them apart")
        names[name] = path
    for name, path in progress(names.items(), unit='file'):
        counted = Path(cfg.out, name + '.counts.json') # comes last: the file is whole
        if not counted.exists():
            counts = Counter()
            with atomically(Path(cfg.out, name + '.jsonl')) as tmp, open(tmp, 'w', encoding='ascii') as f:
                for id, text, rule, known in judged(path):
                    counts.update(documents=1, signals_published=int(known), **{rule or 'kept': 1})
                    if rule is None:
                        f.write(json.dumps({'id': id, 'text': text}) + '\n')
            write_json(counted, {'from': path, **counts})
        if (was := json.loads(counted.read_text())['from']) != path:
            raise Refused(f"{counted}: was made from {was}, not from {path}; take another --out, or delete it")
        total.update({key: n for key, n in json.loads(counted.read_text()).items() if key != 'from'})
    write_json(Path(cfg.out, 'info.json'), {'files': len(paths), **total, **record(cfg)})
    print(f"{cfg.out}: {total['kept']:,} of {total['documents']:,} documents; "
          + ', '.join(f'{total[rule]:,} {rule}' for rule in RULES)
          + f"; {total['signals_published']:,} had published signals")

if __name__ == '__main__':
    run(main, Config)
