"""
Filters RedPajama V2 (https://huggingface.co/datasets/togethercomputer/RedPajama-Data-V2), or any other text.

    python -m corpora.redpajama --root=data/rp2 --out=out/text/rp2
    python interleave.py --text=out/text/rp2/2023-14 --sources=text --out=...

    ROOT/documents/2023-14/0000/en_head.json.gz                per document a line {"raw_content", "url", ...}
    ROOT/quality_signals/2023-14/0000/en_head.signals.json.gz  a line {"id", "quality_signals": {NAME: [[a, b, value]]}}

It also reads .jsonl(.gz) whose lines have their own quality_signals (as the hub's loader yields
them) or none, with the text in 'raw_content' or 'text', and .txt with a document per line. There is
no audio, so this is a script: for each file below ROOT it writes OUT/NAME.jsonl with {"id", "text"}
per line, which interleave.py --text and corpora/spoken.py read.

A document is kept if it passes Gopher's rules (arXiv 2112.11446) as SIMS has them, bounds included.
Signals that are not published are computed here, from the words w after lower-casing and dropping
ASCII punctuation, and the lines l:

    words       50 <= |w| <= 100,000                                rps_doc_word_count
    word_length 3 <= mean length of w <= 10                         rps_doc_mean_word_length
    symbols     '#', '...', '…' / words as written <= 0.1           rps_doc_symbol_to_word_ratio
    bullets     l that begin with a bullet / |l| <= 0.9             rps_lines_start_with_bulletpoint, ccnet_nlines
    top_2gram   characters in all copies of the most frequent pair of words / characters of w <= 0.2;
                0 if no pair is repeated                            rps_doc_frac_chars_top_2gram
"""
import json
import os
import string
from collections import Counter
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from configurator import Refused, run
from corpora.tree import TEXTS, documents
from files import atomically, files_of_kind, parse_json, progress, read_json, read_lines, record, write_json
from locks import writing_in

RULES = {
    'words': (50, 100_000),
    'word_length': (3, 10),
    'symbols': (0, 0.1),
    'bullets': (0, 0.9),
    'top_2gram': (0, 0.2)
}
BULLETS = tuple('\u2022\u2023\u25b6\u25c0\u25e6\u25a0\u25a1\u25aa\u25ab\u2013')
NO_PUNCTUATION = str.maketrans('', '', string.punctuation)

@dataclass(frozen=True)
class Config:
    root: str = '' # folder of text, or one file
    out: str = '' # folder to fill; files that are complete are not made again

    def __post_init__(self):
        if not self.root or not self.out:
            raise Refused("expected --root=DIR and --out=DIR")

def utterances(root):
    raise Refused(f"{root}: text without audio; python -m corpora.redpajama filters it, corpora/spoken.py reads it out")

def signals(text):
    """{rule: value} of a text."""
    words = text.lower().translate(NO_PUNCTUATION).split()
    lines = text.split('\n')
    n_characters = sum(map(len, words))
    n_symbols = sum(map(text.count, ('#', '...', '…')))
    n_bullets = sum(line.lstrip().startswith(BULLETS) for line in lines)
    pair_counts = Counter(zip(words, words[1:]))
    pair, count = max(pair_counts.items(), key=lambda item: item[1], default=((), 0))
    return {
        'words': len(words),
        'word_length': n_characters / max(1, len(words)),
        'symbols': n_symbols / max(1, len(text.split())),
        'bullets': n_bullets / len(lines),
        'top_2gram': sum(map(len, pair)) * count / n_characters if count > 1 else 0.0
    }

def published(quality, place):
    """{rule: value} of a document's quality_signals, which are a dict or its JSON."""
    try:
        if isinstance(quality, str):
            quality = parse_json(quality)
        def value(name):
            return quality[name][0][2] or 0 # None if there are no words
        n_bullets = sum(line[2] for line in quality['rps_lines_start_with_bulletpoint'])
        return {
            'words': value('rps_doc_word_count'),
            'word_length': value('rps_doc_mean_word_length'),
            'symbols': value('rps_doc_symbol_to_word_ratio'),
            'bullets': n_bullets / max(1, value('ccnet_nlines')),
            'top_2gram': value('rps_doc_frac_chars_top_2gram')
        }
    except (KeyError, IndexError, TypeError, ValueError) as e:
        raise Refused(f"{place}: not the quality_signals of RedPajama V2 ({e!r})") from None

def broken_rule(values):
    """The first rule that a document breaks, or None."""
    return next((name for name, (low, high) in RULES.items() if not low <= values[name] <= high), None)

def judge(path):
    """Yields (id, text, the rule that it breaks or None, whether its signals are published) for each document."""
    above, folder, name = os.path.abspath(path).rpartition('/documents/')
    signal_path = f"{above}/quality_signals/{name.removesuffix('.json.gz')}.signals.json.gz"
    if not folder or not os.path.exists(signal_path):
        for id, text, line in documents(path):
            quality = line.get('quality_signals')
            values = published(quality, f'{path}: {id}') if quality else signals(text)
            yield id, text, broken_rule(values), bool(quality)
        return
    for document, signal in zip_longest(documents(path), read_lines(signal_path)):
        if document is None or signal is None or not isinstance(signal[1].get('id'), str):
            raise Refused(f"{signal_path}: not one line with an id for each of {path}; download both again")
        place, line = signal
        values = published(line.get('quality_signals'), place)
        yield line['id'], document[1], broken_rule(values), True

def output_names(cfg):
    """{name: path}: each input file, and the name of its output below OUT without .jsonl."""
    top = os.path.join(cfg.root, 'documents')
    if not os.path.isdir(top):
        top = cfg.root
    paths = [cfg.root] if os.path.isfile(cfg.root) else files_of_kind(top, TEXTS, cfg.out).values()
    paths = [path for path in paths if not path.endswith('.signals.json.gz')]
    if not paths:
        raise Refused(f"{cfg.root}: no text in it; expected {' '.join(TEXTS)} files")
    names = {}
    for path in paths:
        name = os.path.basename(path) if path == cfg.root else os.path.relpath(path, top)
        name = name.removesuffix('.gz').rpartition('.')[0]
        if name in names:
            raise Refused(f"{path}: {names[name]} would be {cfg.out}/{name}.jsonl too; rename one of them")
        names[name] = path
    return names

def main(cfg):
    names = output_names(cfg)
    with writing_in(cfg.out):
        filter_files(cfg, names)

def filter_files(cfg, names):
    total = Counter()
    for name, path in progress(names.items(), unit='file'):
        # The counts are written last: where they are, the file is complete.
        counts_path = Path(cfg.out, name + '.counts.json')
        if not counts_path.exists():
            counts = Counter()
            with atomically(Path(cfg.out, name + '.jsonl')) as tmp, open(tmp, 'w', encoding='ascii') as f:
                for id, text, rule, is_published in judge(path):
                    counts.update(documents=1, signals_published=int(is_published), **{rule or 'kept': 1})
                    if rule is None:
                        f.write(json.dumps({'id': id, 'text': text}) + '\n')
            write_json(counts_path, {'from': path, **counts})
        counts = read_json(counts_path.parent, counts_path.name, 'corpora.redpajama')
        source = counts.pop('from', None)
        if source != path:
            raise Refused(f"{counts_path}: was made from {source}, not from {path}; take another --out, or delete it")
        total.update(counts)
    write_json(Path(cfg.out, 'info.json'), {'files': len(names), **total, **record(cfg)})
    rejected = ', '.join(f'{total[rule]:,} {rule}' for rule in RULES)
    print(f"{cfg.out}: {total['kept']:,} of {total['documents']:,} documents; {rejected}; "
          f"{total['signals_published']:,} had published signals")

if __name__ == '__main__':
    run(main, Config)
