"""
A spoken version of a set of text pairs, by any speech synthesizer: SIMS's multi-speaker StoryCloze, and the like.

    python -m tasks.make_spoken --set=storycloze --source=val.csv --out=out/bench/cross_modal/sSC
    python -m tasks.make_spoken --set=blimp --source=blimp/data --out=out/bench/sblimp_mine --tts="say.sh {voice} {text} {out}"

sets: storycloze (its csv), copa ({"query", "choices", "gold"} a line), swag (its csv: the right ending against each wrong
one), blimp. tts is a command, run without a shell once for each piece of text; {text}, {voice} and {out} (a .wav to write)
stand in it. The default is Kokoro's own command with the papers' four voices (SIMS A.3).

    OUT/VOICE/NAME_mutual.wav .txt, NAME_correct.wav .txt, NAME_incorrect.wav .txt    context and endings apart, as the task
                                                                                      cross_modal reads them
    OUT/VOICE/N_NAME_correct.wav, N_NAME_incorrect.wav                                pairs without a context (blimp): read
                                                                                      by ms_ssc, ssc (even N is right)
    OUT/manifest.jsonl    {"file", "voice", "text", "sha256", "seconds"} a line, last; OUT/settings.json comes first

A piece that is there and can be read is not spoken again, so a run that was interrupted goes on where it stopped.
"""
import csv
import hashlib
import json
import re
import shlex
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import tasks.storycloze
from configurator import Refused, run
from files import atomically, progress, read_lines, record, sha256, write_json, write_lines
from speech.audio import RATE, BadAudio, load_audio


@dataclass(frozen=True)
class Config:
    set: str = 'storycloze' # storycloze, copa, swag, blimp
    source: str = '' # the set's file or folder
    out: str = ''
    voices: str = 'af_bella,bf_emma,am_puck,bm_george' # what stands for {voice}, separated by commas
    tts: str = 'python -m kokoro --voice {voice} --text {text} --output-file {out}' # a command, without a shell
    max_items: int | None = None # the first so many; None: all
    workers: int = 1 # commands at a time; never changes the result

    def __post_init__(self):
        if not self.source or not self.out:
            raise Refused("expected --source=FILE_OR_FOLDER and --out=DIR")
        if self.set not in SETS:
            raise Refused(f"set is {self.set!r}, expected one of {', '.join(SETS)}")
        if missing := [place for place in ('{text}', '{out}') if place not in self.tts]:
            raise Refused(f"tts is {self.tts!r}: {' and '.join(missing)} must stand in it, and may be joined by {{voice}}")

def _pairs(items):
    """(id, context or None, right, wrong) as text, of a task's items."""
    for item in items:
        prompt = item['right'].get('prompt', (None, None))[0]
        yield item['id'], prompt or None, item['right']['ending'][0], item['wrong']['ending'][0]

def copa(source):
    """Of mosaicml's copa.jsonl: the query is the context."""
    for n, (where, line) in enumerate(read_lines(source)):
        query, choices, gold = (line.get(key) for key in ('query', 'choices', 'gold'))
        if not (isinstance(query, str) and isinstance(choices, list) and len(choices) == 2 and gold in (0, 1)):
            raise Refused(f"{where}: expected \"query\", two \"choices\" and \"gold\" 0 or 1")
        yield str(n), query, choices[gold], choices[1 - gold]

def swag(source):
    """Of SWAG's csv (Zellers et al. 2018): three pairs a line."""
    with open(source, newline='', encoding='utf-8') as f:
        reader = csv.DictReader(f)
        columns = ['startphrase', 'ending0', 'ending1', 'ending2', 'ending3', 'label']
        if missing := [c for c in columns if c not in (reader.fieldnames or ())]:
            raise Refused(f"{source}: no column {', '.join(missing)}; expected {', '.join(columns)}")
        for n, row in enumerate(reader):
            if row['label'] not in ('0', '1', '2', '3'):
                raise Refused(f"{source}:{reader.line_num}: label is {row['label']!r}, expected 0 to 3")
            right = f"ending{row['label']}"
            for wrong in sorted(set(columns[1:5]) - {right}):
                yield f'{n}-{wrong[-1]}', row['startphrase'], row[right], row[wrong]

SETS = {'storycloze': lambda source: _pairs(tasks.storycloze.text(source)), 'copa': copa, 'swag': swag,
        'blimp': lambda source: _pairs(tasks.blimp.items(source))}

def pieces_of(cfg):
    """[(file name without .wav, text)] of every piece, in order, the same for each voice."""
    out, seen = [], set()
    for k, (name, context, right, wrong) in enumerate(SETS[cfg.set](cfg.source)):
        if cfg.max_items is not None and k >= cfg.max_items:
            break
        name = re.sub(r'[^\w-]', '-', name)
        if name in seen:
            raise Refused(f"{cfg.source}: two items would be called '{name}'")
        seen.add(name)
        if context is None:
            out += [(f'{2 * k}_{name}_correct', right), (f'{2 * k + 1}_{name}_incorrect', wrong)]
        else:
            out += [(f'{name}_mutual', context), (f'{name}_correct', right), (f'{name}_incorrect', wrong)]
    if not out:
        raise Refused(f"{cfg.source}: no items")
    return [(name, ' '.join(text.split())) for name, text in out]

def speak(cfg, voice, name, text):
    """OUT/VOICE/NAME.wav and .txt, unless they are there; the line of the manifest."""
    path = Path(cfg.out) / voice / f'{name}.wav'
    if not path.is_file():
        with atomically(path.with_name(f'{name}.part')) as tmp: # TTS programs look at the name's ending
            spoken = tmp.with_suffix('.wav')
            fill = lambda part: part.replace('{voice}', voice).replace('{out}', str(spoken)).replace('{text}', text)
            command = [fill(part) for part in shlex.split(cfg.tts)]
            try:
                done = subprocess.run(command, capture_output=True, text=True, errors='replace')
            except OSError as e:
                raise Refused(f"tts: {command[0]}: {e.strerror}; give a command that writes a .wav, as "
                              f"{Config.tts!r}") from None
            if done.returncode or not spoken.is_file():
                last = (done.stderr.strip().splitlines() or ['nothing written'])[-1]
                spoken.unlink(missing_ok=True)
                raise Refused(f"tts: {command[0]} failed on {name} in {voice} (exit {done.returncode}): {last[:200]}")
            spoken.rename(tmp)
        path.with_suffix('.txt').write_text(text + '\n', encoding='utf-8')
        path.with_name(f'{name}.part').rename(path) # the text is there before the wave
    try:
        seconds = len(load_audio(path)) / RATE
    except BadAudio as e:
        raise Refused(f"{e}; remove it and run again") from None
    return {'file': f'{voice}/{name}.wav', 'voice': voice, 'text': text, 'sha256': sha256(path), 'seconds': round(seconds, 3)}

def main(cfg):
    pieces, voices = pieces_of(cfg), [v.strip() for v in cfg.voices.split(',') if v.strip()]
    made = {**record(cfg), 'texts': hashlib.sha256(json.dumps(pieces).encode()).hexdigest()[:16]}
    settings, decides = Path(cfg.out) / 'settings.json', ('set', 'tts', 'voices', 'max_items')
    if settings.is_file():
        was = json.loads(settings.read_text(encoding='utf-8'))
        other = [key for key in decides if was['settings'].get(key) != getattr(cfg, key)] + ['texts'] * (was['texts'] != made['texts'])
        if other:
            raise Refused(f"{cfg.out}: begun with other {', '.join(other)}; take another --out, or delete it")
    else:
        write_json(settings, made)
    jobs = [(cfg, voice, *piece) for voice in voices for piece in pieces]
    with ThreadPoolExecutor(cfg.workers) as pool:
        try:
            lines = list(progress(pool.map(lambda job: speak(*job), jobs), total=len(jobs), unit='piece'))
        except BaseException:
            pool.shutdown(cancel_futures=True) # else all the others would be spoken first
            raise
    with atomically(Path(cfg.out) / 'manifest.jsonl') as tmp:
        write_lines(tmp, lines)
    print(f"{cfg.out}: {len(pieces)} pieces in {len(voices)} voices, {sum(line['seconds'] for line in lines) / 3600:.2f} h")

if __name__ == '__main__':
    run(main, Config)
