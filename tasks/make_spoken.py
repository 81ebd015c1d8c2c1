"""
Speaks a set of texts by any speech synthesizer: SIMS's multi-speaker StoryCloze, and Slam's SpokenSwag.

    python -m tasks.make_spoken --set=storycloze --source=val.csv --out=out/bench/cross_modal/sSC
    python -m tasks.make_spoken --set=topic_storycloze --source=PARQUET --out=out/bench/cross_modal/tSC
    python -m tasks.make_spoken --set=spokenswag --source=train.csv --out=data/spokenswag
    python -m tasks.make_spoken --set=blimp --source=blimp/data --out=out/bench/sblimp_mine --tts='say.sh {text} {out}'

tts is a command that is run once for each piece of text, without a shell. It holds {text} and {out},
a .wav to write, and optionally {voice}. The default is Kokoro's own command. Benchmarks are spoken
in each of the voices (SIMS A.3 names the four):

    storycloze        a context, its right and its wrong ending (sSC): StoryCloze's csv, or the hub's
                      slprl/multispeaker-storycloze, a folder or a file of .parquet
    topic_storycloze  the wrong ending is that of another story (tSC). Hassid et al. (2023) drew it at random, and
                      which story got which is known from their stories alone: the parquet files of tSC have them.
                      From StoryCloze's csv `seed` draws another pairing, in which each ending is the wrong one of one
                      other story (as far as no two endings are equal)
    copa              per line {"query", "choices", "gold"}
    blimp             sentences without a context

A parquet file has whole stories; the context is the sentences with which right and wrong story begin.
spokenswag makes preference pairs of SWAG's csv or parquet (Zellers et al. 2018) for dpo.py, as the papers'
code does: of the items whose gold-source is 'gold', the prompt is sent1, chosen is sent2 and the right ending,
rejected is sent2 and one of the three others, all in one voice. `seed` draws ending and voice; those of the
published SpokenSwag were drawn without a seed (corpora/spokenswag.py reads it).

    OUT/VOICE/NAME_mutual.wav .txt,      context and endings apart, as the task cross_modal reads them
              NAME_correct.wav .txt,
              NAME_incorrect.wav .txt
    OUT/VOICE/N_NAME_correct.wav,        pairs without a context (blimp), as ms_ssc and ssc read them: even N is right
              N_NAME_incorrect.wav
    OUT/VOICE/NAME_prompt.wav .txt, NAME_chosen.wav .txt, NAME_rejected.wav .txt      spokenswag
    OUT/manifest.jsonl                   {"id", "audio", "text", "speaker", "sha256", "seconds"} per line, as
                                         tokenize_speech.py --audio=OUT reads it; written last. id is VOICE/NAME_PART,
                                         in spokenswag NAME/PART
    OUT/settings.json                    written first

A piece that exists and can be read is not spoken again, so an interrupted run can be resumed.
"""
import hashlib
import json
import os
import re
import shlex
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import tasks.blimp
import tasks.multispeaker
import tasks.storycloze
from configurator import Refused, run
from files import (
    atomically,
    progress,
    read_json,
    read_lines,
    read_table,
    record,
    sha256,
    walk,
    write_json,
    write_lines,
)
from locks import writing_in
from speech.audio import RATE, BadAudio, load_audio, open_parquet

BENCHMARK_VOICES = 'af_bella,bf_emma,am_puck,bm_george' # SIMS A.3
PAIR_VOICES = 'af_heart,am_fenrir,bf_emma,bm_george' # SpokenSwag's
# A full stop after these ends no sentence.
ABBREVIATIONS = ('Mr', 'Mrs', 'Ms', 'Dr', 'St', 'Jr', 'Sr')

@dataclass(frozen=True)
class Config:
    set: str = 'storycloze' # storycloze, topic_storycloze, copa, blimp or spokenswag
    source: str = '' # the set's file or folder
    out: str = '' # folder to fill
    voices: str = '' # values of {voice}, comma-separated; '': the papers' four of the set
    seed: int = 0 # of the endings that topic_storycloze draws, and of spokenswag's endings and voices
    tts: str = 'python -m kokoro --voice {voice} --text {text} --output-file {out}' # a command, without a shell
    max_items: int | None = None # only the first so many; None: all
    workers: int = 1 # commands that run at a time; does not change the result

    def __post_init__(self):
        if not self.source or not self.out:
            raise Refused("expected --source=FILE_OR_FOLDER and --out=DIR")
        if self.set not in SETS:
            raise Refused(f"set is {self.set!r}, expected one of {', '.join(SETS)}")
        if missing := [field for field in ('{text}', '{out}') if field not in self.tts]:
            raise Refused(f"tts is {self.tts!r}: {' and '.join(missing)} must stand in it; {{voice}} may")

# --------------------------------------------------------------------------------------------------
# sets: functions that yield (id, context or None, right, wrong), all texts

def _pairs(items):
    """The same of a task's items."""
    for item in items:
        context = item['right'].get('prompt', (None, None))[0]
        yield item['id'], context or None, item['right']['ending'][0], item['wrong']['ending'][0]

def _from_parquet(source):
    source = Path(source)
    return source.suffix == '.parquet' or source.is_dir() and any(name.endswith('.parquet') for name in walk(source))

def split_stories(id, right, wrong):
    """Two stories -> (the sentences with which both begin, the rest of each)."""
    right, wrong = (' '.join(text.split()) for text in (right, wrong))
    n_shared = len(os.path.commonprefix([right, wrong]))
    ends = []
    for match in re.finditer(r'(\w*)[.!?]+["\')\u2019\u201d]* ', right[:n_shared]):
        if match.group(1) not in ABBREVIATIONS:
            ends.append(match.end())
    if not ends or n_shared in (len(right), len(wrong)):
        raise Refused(f"story {id}: expected two stories that begin with the same sentences and end differently, "
                      f"got {right[:40]!r} and {wrong[:40]!r}")
    return right[:ends[-1]].rstrip(), right[ends[-1]:], wrong[ends[-1]:]

def _published(source, task):
    stories = tasks.multispeaker.texts(source, task)
    if not stories:
        raise Refused(f"{source}: no .parquet of {task} in it; expected slprl/multispeaker-storycloze")
    for id, (right, wrong) in stories.items():
        yield id, *split_stories(id, right, wrong)

def _draw(seed, key):
    """A large number that depends on seed and key alone."""
    return int.from_bytes(hashlib.sha256(f'{seed}/{key}'.encode()).digest()[:8])

def storycloze(cfg):
    if _from_parquet(cfg.source):
        return _published(cfg.source, 'ssc')
    return _pairs(tasks.storycloze.text(cfg.source))

def topic_storycloze(cfg):
    if _from_parquet(cfg.source):
        yield from _published(cfg.source, 'tsc')
        return
    stories = [(id, context, ending) for id, context, ending, _ in _pairs(tasks.storycloze.text(cfg.source))]
    endings = {id: ending for id, _, ending in stories}
    if len(set(endings.values())) < 2:
        raise Refused(f"{cfg.source}: one ending in all; expected stories with different endings")
    # A circle of all stories: each takes the next ending that is not its own.
    circle = sorted(endings, key=lambda id: _draw(cfg.seed, id))
    place = {id: n for n, id in enumerate(circle)}
    for id, context, ending in stories:
        n = place[id] + 1
        while endings[circle[n % len(circle)]] == ending:
            n += 1
        yield id, context, ending, endings[circle[n % len(circle)]]

def blimp(cfg):
    return _pairs(tasks.blimp.items(cfg.source))

def copa(cfg):
    """Pairs of mosaicml's copa.jsonl; the query is the context."""
    for n, (place, line) in enumerate(read_lines(cfg.source)):
        query, choices, gold = (line.get(key) for key in ('query', 'choices', 'gold'))
        if not (isinstance(query, str) and isinstance(choices, list) and len(choices) == 2 and gold in (0, 1)):
            raise Refused(f"{place}: expected \"query\", two \"choices\" and \"gold\" 0 or 1")
        yield str(n), query, choices[gold], choices[1 - gold]

SWAG = ('video-id', 'fold-ind', 'sent1', 'sent2', 'gold-source', 'label', 'ending0', 'ending1', 'ending2', 'ending3')

def _parquet_rows(path):
    """Yields (place, {column: text}) of a parquet file with SWAG's columns."""
    table = open_parquet(path)
    if missing := [column for column in SWAG if column not in table.schema_arrow.names]:
        raise Refused(f"{path}: no column {', '.join(missing)}; expected SWAG's {', '.join(SWAG)}")
    for n, row in enumerate(table.read(list(SWAG)).to_pylist()):
        yield f'{path}#{n}', {column: None if value is None else str(value) for column, value in row.items()}

def spokenswag(cfg):
    """Preference pairs of SWAG's items whose gold-source is 'gold'."""
    rows = _parquet_rows(cfg.source) if cfg.source.endswith('.parquet') else read_table(cfg.source, SWAG)
    for place, row in rows:
        if row['gold-source'] != 'gold':
            continue
        if row['label'] not in ('0', '1', '2', '3'):
            raise Refused(f"{place}: label is {row['label']!r}, expected 0 to 3")
        if missing := [column for column in SWAG if row[column] is None]:
            raise Refused(f"{place}: no {', '.join(missing)}")
        id = f"{row['video-id']}_{row['fold-ind']}"
        right = row[f"ending{row['label']}"]
        others = [row[f'ending{i}'] for i in range(4) if str(i) != row['label']]
        wrong = others[_draw(cfg.seed, f'{id}/ending') % 3]
        yield id, row['sent1'], f"{row['sent2']} {right}", f"{row['sent2']} {wrong}"

SETS = {'storycloze': storycloze, 'topic_storycloze': topic_storycloze, 'copa': copa, 'blimp': blimp,
        'spokenswag': spokenswag}

# --------------------------------------------------------------------------------------------------
# pieces

def pieces_of(cfg):
    """[(voice or None for each of them, id, file name without .wav, text)] of every piece, in order."""
    pieces = []
    names = set()
    voices = cfg.voices.split(',')
    pairs = cfg.set == 'spokenswag'
    parts = ('prompt', 'chosen', 'rejected') if pairs else ('mutual', 'correct', 'incorrect')
    for k, (item, *texts) in enumerate(SETS[cfg.set](cfg)):
        if cfg.max_items is not None and k >= cfg.max_items:
            break
        name = re.sub(r'[^\w-]', '-', item)
        if name in names:
            raise Refused(f"{cfg.source}: two items would be called '{name}'")
        names.add(name)
        voice = voices[_draw(cfg.seed, f'{item}/voice') % len(voices)] if pairs else None
        for i, (part, text) in enumerate(zip(parts, texts)):
            if text is None: # no context
                continue
            text = ' '.join(text.split())
            if not text:
                raise Refused(f"{cfg.source}: item {item} has no text for {part}")
            number = f'{2 * k + i - 1}_' if texts[0] is None else ''
            id = f'{name}/{part}' if pairs else f'{number}{name}_{part}'
            pieces.append((voice, id, f'{number}{name}_{part}', text))
    if not pieces:
        raise Refused(f"{cfg.source}: no items")
    return pieces

def run_tts(cfg, voice, name, text, wav):
    """Runs the command, which writes wav."""
    fields = (('{voice}', voice), ('{out}', str(wav)), ('{text}', text))
    command = []
    for argument in shlex.split(cfg.tts):
        for field, value in fields:
            argument = argument.replace(field, value)
        command.append(argument)
    try:
        process = subprocess.run(command, capture_output=True, text=True, errors='replace')
    except OSError as e:
        raise Refused(f"tts: {command[0]}: {e.strerror}; give one that writes a .wav, as {Config.tts!r}") from None
    if process.returncode or not wav.is_file():
        wav.unlink(missing_ok=True)
        last_line = (process.stderr.strip().splitlines() or ['nothing written'])[-1][:200]
        raise Refused(f"tts: {command[0]} failed on {name} in {voice} (exit {process.returncode}): {last_line}")

def speak(cfg, voice, id, name, text):
    """Makes OUT/VOICE/NAME.wav and .txt unless they exist -> the line of the manifest."""
    path = Path(cfg.out) / voice / f'{name}.wav'
    if not path.is_file():
        part = path.with_name(f'{name}.part')
        with atomically(part) as tmp:
            wav = tmp.with_suffix('.wav') # TTS programs look at the file's extension
            run_tts(cfg, voice, name, text, wav)
            wav.rename(tmp)
        path.with_suffix('.txt').write_text(text + '\n', encoding='utf-8')
        part.rename(path) # the wave comes last: where it is, the text is too
    try:
        seconds = len(load_audio(path)) / RATE
    except BadAudio as e:
        raise Refused(f"{e}; remove it and run again") from None
    return {'id': id, 'audio': f'{voice}/{name}.wav', 'text': text, 'speaker': voice, 'sha256': sha256(path),
            'seconds': round(seconds, 3)}

def check_settings(cfg, pieces):
    """Writes OUT/settings.json, or refuses to go on in a folder that was begun with other settings or texts."""
    path = Path(cfg.out) / 'settings.json'
    texts = [(name, text) for _, _, name, text in pieces]
    texts_hash = hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]
    if not path.is_file():
        write_json(path, {**record(cfg), 'texts': texts_hash})
        return
    earlier = read_json(cfg.out, path.name, 'tasks.make_spoken')
    settings = earlier.get('settings')
    if not isinstance(settings, dict):
        raise Refused(f"{path}: not of this script, it has no settings; take another --out")
    keys = ('set', 'tts', 'voices', 'seed', 'max_items')
    differing = [key for key in keys if settings.get(key, getattr(Config, key)) != getattr(cfg, key)]
    if earlier.get('texts') != texts_hash:
        differing.append('texts')
    if differing:
        raise Refused(f"{cfg.out}: begun with other {', '.join(differing)}; take another --out, or delete it")

def main(cfg):
    voices = cfg.voices or (PAIR_VOICES if cfg.set == 'spokenswag' else BENCHMARK_VOICES)
    voices = [voice.strip() for voice in voices.split(',') if voice.strip()]
    if not voices:
        raise Refused(f"voices is {cfg.voices!r}: expected names, comma-separated")
    cfg = replace(cfg, voices=','.join(voices))
    pieces = pieces_of(cfg)
    with writing_in(cfg.out):
        speak_all(cfg, voices, pieces)

def speak_all(cfg, voices, pieces):
    """Speaks the pieces, in every voice where they have none of their own, and writes the manifest."""
    check_settings(cfg, pieces)
    if cfg.set == 'spokenswag':
        jobs = [(cfg, *piece) for piece in pieces]
    else:
        jobs = [(cfg, voice, f'{voice}/{id}', name, text) for voice in voices for _, id, name, text in pieces]
    with ThreadPoolExecutor(cfg.workers) as pool:
        try:
            lines = list(progress(pool.map(speak, *zip(*jobs)), total=len(jobs), unit='piece'))
        except BaseException:
            pool.shutdown(cancel_futures=True) # otherwise all the others would be spoken first
            raise
    with atomically(Path(cfg.out) / 'manifest.jsonl') as tmp:
        write_lines(tmp, lines)
    hours = sum(line['seconds'] for line in lines) / 3600
    print(f"{cfg.out}: {len(pieces):,} pieces, {len(voices)} voices, {hours:.2f} h")

if __name__ == '__main__':
    run(main, Config)
