"""
Words and their times -> a words folder, on the clock of the units.

    python align.py --units=out/units/mine                     the words that the corpus gave
    python align.py --units=out/units/mine --words=FILE        those of a file or folder: whisper's JSON,
                                  TextGrids, CTM, ... (speech/word_files.py lists the formats)
    python align.py --units=out/units/mine --ctc=facebook/wav2vec2-base-960h
                                  finds the known text in the audio
    python align.py --units=out/units/mine --whisper=openai/whisper-large-v3-turbo
                                  transcribes the audio, and finds the words in it

The last two read the audio again (speech/ctc.py, speech/whisper.py). The words folder
(speech/words.py) has the shards and the documents of the units folder; a document may have no
words. Under torchrun shard s belongs to rank s % world. The info.json of a shard has

    source                     a hash of all that its words depend on; a run must find the same
    refused                    [[id, reason], ...]: documents that keep their place, without words
    repaired_words             how many words had their times moved
    left_out_words             how many marks ([noise], <unk>) and words without letters were left out
    unlike_text                [[id, share of the words that differ from the text], ...]
    unheard_words              how many words of --whisper were left out, as no sound carries them

Times that are missing, outside the audio, reversed or overlapping are repaired if that moves them
by at most 50 ms (`repair`); else the document is refused. Where its text is known, words of the
same letters are spelled as in the text (`spelled`). Of the text's words, at most a share of
max_word_error may differ. What an aligner writes for a sound that is no word, [noise] or <unk>
(`marks`), becomes the text's word at its place; without a text, noise is left out, and a document
in which something unknown was said is refused (UNKNOWN_WORD).
"""
import hashlib
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from configurator import Refused, pick_device, ranks, refuse_unwritable, run
from files import (
    check_hashes,
    hash_of_shards,
    progress,
    read_info,
    read_lines,
    read_value,
    record,
    sha256,
    shard_folders,
    write_json,
)
from locks import remove_left_locks, writing_in
from speech.audio import RATE, BadAudio, file_of, load_audio
from speech.sources import is_unchanged, read_sources
from speech.word_files import StoredWords, word_files, words_of
from speech.words import REASONS, WordsShard, marks, repair, spelled, write_words_shard

POOL = 1800 # seconds of audio that a model gets at a time; bounds the memory

@dataclass(frozen=True)
class Config:
    units: str = '' # units folder, as tokenize_speech.py writes it
    words: str = '' # file or folder of words with times in seconds, matched by id; '': the corpus's own words
    ctc: str = '' # a transformers CTC model (wav2vec2, HuBERT), folder or hub id: aligns each document's text
    whisper: str = '' # a transformers Whisper, folder or hub id: transcribes and aligns
    language: str = '' # language of the speech, for Whisper ('en', 'de', ...); '': heard in each file's first 30 s
    min_score: float = -4.0 # --ctc refuses documents of a lower log probability a letter (0: the likeliest letters)
    max_word_error: float = 0.3 # share of a known text's words that may be left out, added or spelled otherwise
    out: str = '' # words folder to make; '': units/words, where interleave.py looks
    max_fail_frac: float = 0.05 # share of refused documents, among those with words, above which the run stops
    device: str = 'auto' # cpu, cuda, cuda:1, ...; auto: cuda:LOCAL_RANK if there is a GPU, in float16, else cpu
    workers: int = 4 # threads that decode audio; never changes the result

    def __post_init__(self):
        if not self.units:
            raise Refused("no units folder: give --units=DIR, as tokenize_speech.py writes it")
        if not (0 <= self.max_fail_frac <= 1 and self.max_word_error >= 0):
            raise Refused(f"max_fail_frac = {self.max_fail_frac}, max_word_error = {self.max_word_error}: "
                          "expected a share between 0 and 1, and 0 or more")
        if sum(map(bool, (self.words, self.ctc, self.whisper))) > 1:
            raise Refused("more than one of --words, --ctc and --whisper: expected one source of words")
        if self.workers < 1:
            raise Refused(f"workers = {self.workers}: expected 1 or more")

# --------------------------------------------------------------------------------------------------
# Sources of words: functions (shard, metas) -> [(words, starts, ends, reason)], one tuple for each
# document of the shard, times in samples. A document with a reason, such as NO_AUDIO, is refused.

NO_WORDS = ((), (), (), '')

def corpus_words(shard, metas):
    """The words of the shard's own words.jsonl, whose times are samples."""
    docs = {}
    for source, line in read_lines(shard / 'words.jsonl'):
        id = line.get('id')
        if id in docs:
            raise Refused(f"{source}: document '{id}' comes twice")
        docs[id] = (*words_of(source, id, line, 1), '')
    return [docs.get(meta['id'], NO_WORDS) for meta in metas]

def load(meta, sources):
    """The wave that the document's units were made from, or the reason why there is none.

    sources: {file: its line of audio.jsonl}, of those that the shard was made of
    """
    if meta.get('path') is None:
        return 'NO_AUDIO'
    source = sources.get(file_of(meta['path']))
    if source and not is_unchanged(source):
        return 'AUDIO_CHANGED'
    try:
        wave = load_audio(meta['path'], meta.get('start'), meta.get('end'))
    except BadAudio as e:
        return f'AUDIO_{e.kind}'
    # In units folders made of slamkit's files, `seconds` is rounded down to whole frames.
    if abs(len(wave) / RATE - meta['seconds']) >= 0.04:
        return 'AUDIO_CHANGED'
    return wave

def aligned_words(aligner, metas, workers, sources):
    """The words that a model finds in the audio.

    Which documents it gets together depends on the shard alone, not on ranks or threads.
    """
    docs = {meta['id']: NO_WORDS for meta in metas}
    todo = [meta for meta in metas if not aligner.needs_text or (meta.get('text') or '').strip()]
    group = np.floor(np.cumsum([meta['seconds'] for meta in todo]) / POOL)
    with ThreadPoolExecutor(workers) as pool:
        for g in np.unique(group):
            part = [todo[i] for i in np.flatnonzero(group == g)]
            readable = []
            waves = []
            for meta, wave in zip(part, pool.map(partial(load, sources=sources), part)):
                if isinstance(wave, str):
                    docs[meta['id']] = (), (), (), wave
                else:
                    readable.append(meta)
                    waves.append(wave)
            if not readable:
                continue
            texts = [[meta['text'] for meta in readable]] if aligner.needs_text else []
            for meta, doc in zip(readable, aligner.align(waves, *texts)):
                docs[meta['id']] = doc
            for meta, n in zip(readable, getattr(aligner, 'unheard', ())):
                meta['unheard_words'] = n
    return list(docs.values())

def make_aligner(cfg):
    """Whisper or CTC on this rank's device."""
    from speech.ctc import CTC
    from speech.whisper import Whisper
    device = pick_device(cfg.device)
    return CTC(cfg.ctc, device, cfg.min_score) if cfg.ctc else Whisper(cfg.whisper, device, cfg.language)

def all_metas(shards):
    """The lines of meta.jsonl of all shards."""
    for shard in shards:
        for _, meta in read_lines(shard / 'meta.jsonl'):
            yield meta

class Ids:
    """The ids of all documents of shards, read again each time; first[shard]: the number of its first document."""
    def __init__(self, shards):
        self.shards = shards
        self.first = {}

    def __iter__(self):
        n = 0
        for shard in self.shards:
            self.first[shard] = n
            for meta in all_metas([shard]):
                yield meta['id']
                n += 1

def model_source(cfg, shards):
    """What open_source returns for --ctc and --whisper."""
    if all(meta.get('path') is None for meta in all_metas(shards)):
        raise Refused(f"{cfg.units}: its meta.jsonl names no audio, which --ctc and --whisper need")
    if cfg.ctc and not any((meta.get('text') or '').strip() for meta in all_metas(shards)):
        raise Refused(f"{cfg.units}: no document has a text, which --ctc needs; "
                      "--whisper=MODEL transcribes the audio")
    aligner = make_aligner(cfg)

    def words(shard, metas):
        sources = {source['path']: source for source in read_sources(shard)}
        return aligned_words(aligner, metas, cfg.workers, sources)

    settings = [cfg.min_score] if cfg.ctc else [cfg.language, 'heard'] # the rule of what is heard
    return words, json.dumps([aligner.hash, aligner.device.type, *settings])

def file_source(cfg, shards):
    """What open_source returns for --words."""
    path = Path(cfg.words)
    if not path.exists():
        raise Refused(f"{cfg.words}: no such file or folder")
    ids = Ids(shards)
    docs = StoredWords(cfg.words, ids)

    def words(shard, metas):
        stored = [docs[ids.first[shard] + i] for i in range(len(metas))]
        return [NO_WORDS if doc is None else (*doc, '') for doc in stored]

    if path.is_dir():
        hashes = [[name, sha256(file)] for file, name in word_files(cfg.words)]
    else:
        hashes = sha256(path)
    return words, json.dumps(hashes)

def open_source(cfg, shards):
    """The source that cfg names, and a string that identifies all that it reads besides meta.jsonl.

    The string is None for the corpus's own words, of which each shard has a file. Raises Refused.
    """
    if cfg.ctc or cfg.whisper:
        return model_source(cfg, shards)
    if cfg.words:
        return file_source(cfg, shards)
    for shard in shards:
        if not (shard / 'words.jsonl').is_file():
            raise Refused(f"{shard}/words.jsonl: no such file: the corpus gave no words; give --words=FILE, "
                          "--ctc=MODEL (aligns the text) or --whisper=MODEL (transcribes the audio)")
    return corpus_words, None

# --------------------------------------------------------------------------------------------------
# the run

def checked_words(words, text, max_word_error):
    """-> words as they are trained on, remains (a bool for each input word), share of wrong words, reason."""
    n = len(words)
    if not all(word.strip() for word in words):
        return words, np.ones(n, bool), 0.0, 'EMPTY_WORD'
    if any('\ud800' <= c <= '\udfff' for word in words for c in word): # half of a surrogate pair
        return words, np.ones(n, bool), 0.0, 'NOT_UNICODE'
    words, remains, error = spelled(words, text)
    if error > max_word_error:
        return words, remains, error, 'WORDS_TEXT_MISMATCH'
    is_unknown = any(mark and word.strip() not in (text or '') for word, mark in zip(words, marks(words)))
    return words, remains, error, 'UNKNOWN_WORD' if is_unknown else ''

def align_shard(metas, docs, max_word_error=0.3):
    """docs: [(words, starts, ends, reason)] -> docs for write_words_shard, contents of info.json."""
    checked = [checked_words(words, meta.get('text'), max_word_error) for meta, (words, *_) in zip(metas, docs)]
    n_words = [int(remains.sum()) for _, remains, _, _ in checked]
    offsets = np.cumsum([0] + n_words)
    times = [np.array([starts, ends], np.float64)[:, remains]
             for (_, starts, ends, _), (_, remains, _, _) in zip(docs, checked)]
    raw_starts, raw_ends = np.concatenate([np.zeros((2, 0)), *times], 1)
    n_samples = [round(meta['seconds'] * RATE) for meta in metas]
    starts, ends, reasons = repair(raw_starts, raw_ends, offsets, n_samples)
    results = []
    refused = []
    unlike_text = []
    repaired = 0
    left_out = 0
    for i, (meta, (words, remains, error, fault)) in enumerate(zip(metas, checked)):
        part = np.arange(offsets[i], offsets[i + 1]) # the document's rows of starts and ends
        reason = docs[i][3] or REASONS[reasons[i]] or fault
        if reason:
            refused.append([meta['id'], reason])
            words = ()
            part = part[:0]
        else:
            left_out += len(remains) - len(part)
            if error:
                unlike_text.append([meta['id'], round(error, 3)])
        start_moved = np.rint(raw_starts[part]) != starts[part]
        end_moved = np.rint(raw_ends[part]) != ends[part]
        repaired += int((start_moved | end_moved).sum())
        results.append((meta['id'], words, starts[part], ends[part]))
    unheard = sum(meta.get('unheard_words', 0) for meta in metas)
    return results, {'refused': refused, 'repaired_words': repaired, 'left_out_words': left_out,
                     'unlike_text': unlike_text, 'unheard_words': unheard}

def shard_info(folder, origin, out):
    """The info.json of a shard of words. Raises Refused if the shard was not made from `origin`."""
    try:
        info = read_value(folder / 'info.json')
        source = info['source']
    except (OSError, KeyError, TypeError, ValueError) as e:
        raise Refused(f"{folder}: not a whole shard of words ({e!r}); remove it and run align.py again") from None
    if source != origin:
        raise Refused(f"{folder}: made from other words or units; remove {out} or give another --out")
    check_hashes(folder, 'align.py')
    return info

def finish(cfg, info, shards, out, origin):
    """Writes the folder's info.json from its shards. Too many refused documents raise Refused."""
    refused = Counter()
    totals = Counter()
    for shard in shards:
        part = shard_info(out / shard.name, origin(shard), out)
        words = WordsShard(out / shard.name)
        refused.update(reason for _, reason in part['refused'])
        with_words = int((np.diff(words.offsets) > 0).sum())
        totals.update(documents=len(words), with_words=with_words, words=len(words.word),
                      repaired_words=part['repaired_words'], left_out_words=part.get('left_out_words', 0),
                      unlike_text=len(part['unlike_text']), unheard_words=part.get('unheard_words', 0))
    n_refused = sum(refused.values())
    n = totals['with_words'] + n_refused
    refused = dict(sorted(refused.items()))
    counts = ', '.join(f'{reason} {count}' for reason, count in refused.items())
    if n_refused > cfg.max_fail_frac * n:
        hint = "; --ctc=MODEL finds the times of a text's words" if 'MISSING_TIME' in refused else ''
        raise Refused(f"{n_refused} of {n} documents with words refused ({counts}), more than "
                      f"max_fail_frac = {cfg.max_fail_frac}; the ids are in {out}/*/info.json{hint}")
    result = {'units_hash': info.get('units_hash'), **totals, 'refused': refused, 'content': hash_of_shards(out),
              **record(cfg)}
    write_json(out / 'info.json', result, f'.{ranks()[0]}') # several ranks may write it, each the same
    remove_left_locks(out)
    reasons = f" ({counts})" if counts else ""
    unlike = f", {totals['unlike_text']:,} with words unlike their text" if totals['unlike_text'] else ""
    if totals['unheard_words']:
        unlike += f", {totals['unheard_words']:,} words that no sound carries left out"
    left_out = f", {totals['left_out_words']:,} marks left out" if totals['left_out_words'] else ""
    print(f"{out}: {totals['words']:,} words of {totals['with_words']:,} of {totals['documents']:,} documents, "
          f"{totals['repaired_words']:,} times repaired{left_out}, "
          f"{n_refused:,} documents refused{reasons}{unlike}")

def main(cfg):
    out = Path(cfg.out or Path(cfg.units, 'words'))
    refuse_unwritable(out)
    read_info(cfg.units, 'tokenize_speech.py') # refused before a folder is made in its place
    with writing_in(out, ranks()[0]):
        align(cfg, Path(cfg.units), out)

def align(cfg, units, out):
    """Writes this rank's shards of the words folder; the last rank writes its info.json."""
    info = read_info(units, 'tokenize_speech.py')
    shards = shard_folders(units)
    if not shards:
        raise Refused(f"{units}: no shards (00000/, ...) in it; tokenize_speech.py makes them")
    words_of_shard, source = open_source(cfg, shards)

    def origin(shard):
        """A hash of all that the shard's words depend on."""
        words_id = source or sha256(shard / 'words.jsonl')
        inputs = [words_id, sha256(shard / 'meta.jsonl'), cfg.max_word_error]
        return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:16]

    rank, world = ranks()
    for shard in progress(shards[rank::world], desc='align', unit='shard'):
        folder = out / shard.name
        if folder.exists():
            shard_info(folder, origin(shard), out)
            continue
        metas = [meta for _, meta in read_lines(shard / 'meta.jsonl')]
        docs, counts = align_shard(metas, words_of_shard(shard, metas), cfg.max_word_error)
        n_missing = sum(reason == 'AUDIO_MISSING' for _, reason in counts['refused'])
        if n_missing > max(10, len(metas) / 2): # probably a disk that is not mounted
            raise Refused(f"{shard}: the audio of {n_missing} of its {len(metas)} documents is not there; "
                          "bring it back and run again")
        write_words_shard(out, int(shard.name), docs, {'source': origin(shard), **counts})
    if not all((out / shard.name).exists() for shard in shards):
        print(f"rank {rank} of {world}: its shards are there; the rank that ends last writes {out}/info.json")
        return
    finish(cfg, info, shards, out, origin)

if __name__ == '__main__':
    run(main, Config)
