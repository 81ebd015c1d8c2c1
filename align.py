"""
Words and their times -> a words folder, on the clock of the units.

    python align.py --units=out/units/mine                       words the corpus gave (tokenize_speech.py kept them)
    python align.py --units=out/units/mine --words=FILE          what a file or folder has: JSON of whisper or WhisperX,
                                                                 TextGrids, slamkit's, our own (speech/word_files.py)
    python align.py --units=out/units/mine --ctc=facebook/wav2vec2-base-960h       where the known text was said
    python align.py --units=out/units/mine --whisper=openai/whisper-large-v3-turbo             what was said, and when

The last two hear the audio again (speech/ctc.py, speech/whisper.py). Under torchrun shard s belongs to rank s % world. A words folder mirrors
its units folder, shard by shard, document by document (a document without words has none):

    words/info.json             documents, words, refused by reason, settings
    words/00000/words.json      the distinct words, first seen first, each with the leading space it has in the text
                word.npy        int32, indices into words.json
                start.npy end.npy   int32, samples at 16 kHz (where units begin on whole samples: ties are exact)
                offsets.npy     int64 (n+1): words offsets[i] to offsets[i+1] are those of document i
                ids.json        document ids
                info.json       hash of what it was made from, refused [[id, reason], ...], words repaired, unlike_text

Times that are missing, outside the audio, reversed or overlapping are repaired within 50 ms (`repair`), else the
document is refused: it keeps its place, without words. Where a text is known, words of the same letters are spelled as
there (`spelled`); of other words at most max_word_error of the text may differ, and such documents are counted.
"""
import hashlib
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from configurator import Refused, ranks, run
from files import progress, read_info, read_lines, record, sha256, shard_folders, write_json
from speech.audio import RATE, BadAudio, load_audio
from speech.word_files import read_words, word_files, words_of
from speech.words import REASONS, WordsShard, repair, spelled, write_words_shard

HEARD = 1800 # seconds of audio in memory for a model

@dataclass(frozen=True)
class Config:
    units: str = '' # units folder, as tokenize_speech.py writes it
    words: str = '' # file or folder of words in seconds, matched by id; '': the words.jsonl of each shard of units
    ctc: str = '' # a transformers CTC model (wav2vec2, HuBERT), folder or hub id: align each document's own text
    whisper: str = '' # a transformers Whisper, folder or hub id: transcribe and align
    language: str = '' # of the speech, for Whisper ('en', 'de', ...); '': heard in the first 30 s of each file
    min_score: float = -4.0 # of a text under --ctc, nats a letter worse than the likeliest letters: below, it was not said
    max_word_error: float = 0.3 # share of a known text's words that the words may leave out, add or spell otherwise
    out: str = '' # '': units/words, where interleave.py looks
    max_fail_frac: float = 0.05 # stop when a larger share of the documents with words is refused
    device: str = 'auto' # cpu, cuda, cuda:1, ...; auto: cuda where there is one (in float16)
    workers: int = 4 # threads that decode audio; never changes the result

    def __post_init__(self):
        if not self.units:
            raise Refused("no units folder: give --units=DIR, as tokenize_speech.py writes it")
        if not (0 <= self.max_fail_frac <= 1 and self.max_word_error >= 0):
            raise Refused(f"max_fail_frac = {self.max_fail_frac}, max_word_error = {self.max_word_error}: expected a share "
                          "between 0 and 1, and 0 or more")
        if sum(map(bool, (self.words, self.ctc, self.whisper))) > 1:
            raise Refused("more than one of --words, --ctc and --whisper: expected one source of words")
        if self.workers < 1:
            raise Refused(f"workers = {self.workers}: expected 1 or more")

# ----------------------------------------------------------------------------------------------------------------

# sources of words: what each gives is [(words, starts, ends, reason)] of a shard's documents

NO_WORDS = ((), (), (), '')

def corpus_words(shard, metas):
    """Of the shard's own words.jsonl, whose times are samples."""
    found = {}
    for where, line in read_lines(shard / 'words.jsonl'):
        if line.get('id') in found:
            raise Refused(f"{where}: document '{line['id']}' comes twice")
        found[line.get('id')] = (*words_of(where, line.get('id'), line, 1), '')
    return [found.get(meta['id'], NO_WORDS) for meta in metas]

def load(meta):
    """The wave that the document's units were made from, or why it cannot be had."""
    if meta.get('path') is None:
        return 'NO_AUDIO'
    try:
        wave = load_audio(meta['path'], meta.get('start'), meta.get('end'))
    except BadAudio as e:
        return f'AUDIO_{e.kind}'
    return wave if abs(len(wave) / RATE - meta['seconds']) < 0.04 else 'AUDIO_CHANGED' # slamkit counts whole frames

def heard_words(aligner, metas, workers):
    """Of an aligner. What is heard together depends on the shard alone, never on ranks or threads."""
    out = {meta['id']: NO_WORDS for meta in metas}
    todo = [meta for meta in metas if not aligner.needs_text or (meta.get('text') or '').strip()]
    group = np.floor(np.cumsum([meta['seconds'] for meta in todo]) / HEARD) # bounds the memory
    with ThreadPoolExecutor(workers) as pool:
        for g in np.unique(group):
            part = [meta for meta, mine in zip(todo, group) if mine == g]
            good, waves = [], []
            for meta, wave in zip(part, pool.map(load, part)):
                if isinstance(wave, str):
                    out[meta['id']] = (), (), (), wave
                else:
                    good.append(meta), waves.append(wave)
            texts = [[meta['text'] for meta in good]] if aligner.needs_text else []
            if good:
                out.update(zip([meta['id'] for meta in good], aligner.align(waves, *texts)))
    return list(out.values())

def make_aligner(cfg):
    """Whisper or CTC on this rank's device."""
    from configurator import pick_device
    from speech.ctc import CTC
    from speech.whisper import Whisper
    device = pick_device(cfg.device)
    return CTC(cfg.ctc, device, cfg.min_score) if cfg.ctc else Whisper(cfg.whisper, device, cfg.language)

def open_source(cfg, shards):
    """words(shard, metas), and hash(shard): what those words are a function of, besides meta.jsonl. Raises Refused."""
    metas = lambda: (meta for shard in shards for _, meta in read_lines(shard / 'meta.jsonl'))
    if cfg.ctc or cfg.whisper:
        if all(meta.get('path') is None for meta in metas()):
            raise Refused(f"{cfg.units}: its meta.jsonl names no audio; --ctc and --whisper hear the audio again")
        if cfg.ctc and not any((meta.get('text') or '').strip() for meta in metas()):
            raise Refused(f"{cfg.units}: no document has a text, which --ctc aligns; --whisper=MODEL hears the words")
        aligner = make_aligner(cfg)
        made_by = json.dumps([aligner.hash, aligner.device.type, cfg.min_score if cfg.ctc else cfg.language])
        return lambda shard, metas: heard_words(aligner, metas, cfg.workers), lambda shard: made_by
    if cfg.words:
        if not Path(cfg.words).exists():
            raise Refused(f"{cfg.words}: no such file or folder")
        given = read_words(cfg.words, [meta['id'] for meta in metas()])
        made_by = json.dumps([[name, sha256(file)] for file, name in word_files(cfg.words)] if Path(cfg.words).is_dir()
                             else sha256(cfg.words))
        return (lambda shard, metas: [(*given[meta['id']], '') if meta['id'] in given else NO_WORDS for meta in metas],
                lambda shard: made_by)
    for shard in shards:
        if not (shard / 'words.jsonl').is_file():
            raise Refused(f"{shard}/words.jsonl: no such file: the corpus gave no words; give --words=FILE, --ctc=MODEL "
                          "(aligns the text) or --whisper=MODEL (hears the words)")
    return corpus_words, lambda shard: sha256(shard / 'words.jsonl')

# ----------------------------------------------------------------------------------------------------------------
# the run

def align_shard(metas, docs, max_word_error=0.3):
    """docs: [(words, starts, ends, reason)] -> docs for write_words_shard, and what its info.json says of them."""
    offsets = np.cumsum([0] + [len(doc[0]) for doc in docs])
    raw = [np.array([t for doc in docs for t in doc[column]], dtype=np.float64) for column in (1, 2)]
    starts, ends, reasons = repair(*raw, offsets, [round(meta['seconds'] * RATE) for meta in metas])
    out, refused, repaired, unlike = [], [], 0, []
    for i, (meta, (words, _, _, reason)) in enumerate(zip(metas, docs)):
        part = np.arange(offsets[i], offsets[i + 1])
        reason = reason or REASONS[reasons[i]]
        if not all(word.strip() for word in words):
            reason = 'EMPTY_WORD'
        elif any('\ud800' <= c <= '\udfff' for word in words for c in word):
            reason = 'NOT_UNICODE' # half of a surrogate pair
        elif words:
            words, kept, error = spelled(words, meta.get('text'))
            part = part[kept]
            reason = reason or ('WORDS_TEXT_MISMATCH' if error > max_word_error else '')
            unlike += [[meta['id'], round(error, 3)]] if error and not reason else []
        if reason:
            refused.append([meta['id'], reason])
            words, part = (), part[:0]
        moved = (np.rint(raw[0][part]) != starts[part]) | (np.rint(raw[1][part]) != ends[part])
        repaired += int(moved.sum())
        out.append((meta['id'], words, starts[part], ends[part]))
    return out, {'refused': refused, 'repaired_words': repaired, 'unlike_text': unlike}

def finish(cfg, info, shards, out, origin, rank):
    """info.json of the folder, from its shards. Raises Refused if too many documents were refused."""
    refused, totals = Counter(), Counter()
    for shard in shards:
        part = shard_info(out / shard.name, origin(shard), out)
        made = WordsShard(out / shard.name)
        refused.update(reason for _, reason in part['refused'])
        totals.update(documents=len(made), with_words=int((np.diff(made.offsets) > 0).sum()), words=len(made.word),
                      repaired_words=part['repaired_words'], unlike_text=len(part['unlike_text']))
    failed, n = sum(refused.values()), totals['with_words'] + sum(refused.values())
    counts = ', '.join(f'{reason} {n}' for reason, n in sorted(refused.items()))
    if failed > cfg.max_fail_frac * n:
        raise Refused(f"{failed} of {n} documents with words refused ({counts}), more than "
                      f"max_fail_frac = {cfg.max_fail_frac}; the ids are in {out}/*/info.json")
    write_json(out / 'info.json', {'units_hash': info.get('units_hash'), **totals, 'refused': dict(sorted(refused.items())),
                                   **record(cfg)}, f'.{rank}') # two ranks may end at once: the same bytes
    print(f"{out}: {totals['words']:,} words of {totals['with_words']:,} of {totals['documents']:,} documents, "
          f"{totals['repaired_words']:,} times repaired, {failed:,} documents refused" + (f" ({counts})" if counts else "")
          + (f", {totals['unlike_text']:,} with words unlike their text" if totals['unlike_text'] else ""))

def shard_info(done, origin, out):
    """A finished shard's info.json, if it was made from the same as this run makes."""
    try:
        part = json.loads((done / 'info.json').read_text(encoding='utf-8'))
        if part['source'] != origin:
            raise Refused(f"{done}: made from other words or units; remove {out} or give another --out")
        return part
    except (OSError, KeyError, TypeError, json.JSONDecodeError) as e:
        raise Refused(f"{done}: not a whole shard of words ({e!r}); remove it and run align.py again") from None

def main(cfg):
    units = Path(cfg.units)
    info, shards, out = read_info(units, 'tokenize_speech.py'), shard_folders(units), Path(cfg.out or units / 'words')
    if not shards:
        raise Refused(f"{units}: no shards (00000/, ...) in it; tokenize_speech.py makes them")
    words, made_by = open_source(cfg, shards)
    origin = lambda shard: hashlib.sha256(json.dumps(
        [made_by(shard), sha256(shard / 'meta.jsonl'), cfg.max_word_error]).encode()).hexdigest()[:16]
    rank, world = ranks()
    for shard in progress(shards[rank::world], desc='align', unit='shard'): # shard s belongs to rank s % world
        done = out / shard.name
        if done.exists():
            shard_info(done, origin(shard), out)
            continue
        metas = [meta for _, meta in read_lines(shard / 'meta.jsonl')]
        docs, counts = align_shard(metas, words(shard, metas), cfg.max_word_error)
        gone = sum(reason == 'AUDIO_MISSING' for _, reason in counts['refused'])
        if gone > max(10, len(metas) / 2): # not written: a disk is away, and may come back
            raise Refused(f"{shard}: the audio of {gone} of its {len(metas)} documents is not there; bring it back and run again")
        write_words_shard(out, int(shard.name), docs, {'source': origin(shard), **counts})
    if not all((out / shard.name).exists() for shard in shards):
        return print(f"rank {rank} of {world}: its shards are there; the rank that ends last writes {out}/info.json")
    finish(cfg, info, shards, out, origin, rank)

if __name__ == '__main__':
    run(main, Config)
