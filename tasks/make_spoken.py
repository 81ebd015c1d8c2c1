"""
Speaks a set of text pairs by any speech synthesizer: SIMS's multi-speaker StoryCloze, and the like.

    python -m tasks.make_spoken --set=storycloze --source=val.csv --out=out/bench/cross_modal/sSC
    python -m tasks.make_spoken --set=blimp --source=blimp/data --out=out/bench/sblimp_mine --tts='say.sh {text} {out}'

Sets: storycloze (its csv), copa (per line {"query", "choices", "gold"}), swag (its csv: the right
ending against each wrong one), blimp. tts is a command that is run once for each piece of text,
without a shell. It holds {text} and {out}, a .wav to write, and optionally {voice}. The default is
Kokoro's own command with the papers' four voices (SIMS A.3).

    OUT/VOICE/NAME_mutual.wav .txt,      context and endings apart, as the task cross_modal reads them
              NAME_correct.wav .txt,
              NAME_incorrect.wav .txt
    OUT/VOICE/N_NAME_correct.wav,        pairs without a context (blimp), as ms_ssc and ssc read them: even N is right
              N_NAME_incorrect.wav
    OUT/manifest.jsonl                   {"file", "voice", "text", "sha256", "seconds"} per line; written last
    OUT/settings.json                    written first

A piece that exists and can be read is not spoken again, so an interrupted run can be resumed.
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
from files import atomically, progress, read_lines, record, sha256, write_json, write_lines, writing_in
from speech.audio import RATE, BadAudio, load_audio


@dataclass(frozen=True)
class Config:
    set: str = 'storycloze' # storycloze, copa, swag or blimp
    source: str = '' # the set's file or folder
    out: str = '' # folder to fill
    voices: str = 'af_bella,bf_emma,am_puck,bm_george' # values of {voice}, comma-separated
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

def _pairs(items):
    """Yields (id, context or None, right, wrong) as text, for a task's items."""
    for item in items:
        context = item['right'].get('prompt', (None, None))[0]
        yield item['id'], context or None, item['right']['ending'][0], item['wrong']['ending'][0]

def storycloze(source):
    return _pairs(tasks.storycloze.text(source))

def blimp(source):
    return _pairs(tasks.blimp.items(source))

def copa(source):
    """Pairs of mosaicml's copa.jsonl; the query is the context."""
    for n, (place, line) in enumerate(read_lines(source)):
        query, choices, gold = (line.get(key) for key in ('query', 'choices', 'gold'))
        if not (isinstance(query, str) and isinstance(choices, list) and len(choices) == 2 and gold in (0, 1)):
            raise Refused(f"{place}: expected \"query\", two \"choices\" and \"gold\" 0 or 1")
        yield str(n), query, choices[gold], choices[1 - gold]

def swag(source):
    """Pairs of SWAG's csv (Zellers et al. 2018), three per line."""
    endings = ['ending0', 'ending1', 'ending2', 'ending3']
    columns = ['startphrase', *endings, 'label']
    with open(source, newline='', encoding='utf-8') as f:
        reader = csv.DictReader(f)
        if missing := [column for column in columns if column not in (reader.fieldnames or ())]:
            raise Refused(f"{source}: no column {', '.join(missing)}; expected {', '.join(columns)}")
        for n, row in enumerate(reader):
            if row['label'] not in ('0', '1', '2', '3'):
                raise Refused(f"{source}:{reader.line_num}: label is {row['label']!r}, expected 0 to 3")
            right = f"ending{row['label']}"
            for wrong in endings:
                if wrong != right:
                    yield f'{n}-{wrong[-1]}', row['startphrase'], row[right], row[wrong]

SETS = {'storycloze': storycloze, 'copa': copa, 'swag': swag, 'blimp': blimp}

def pieces_of(cfg):
    """[(file name without .wav, text)] of every piece, in order; the same for each voice."""
    pieces = []
    names = set()
    for k, (id, context, right, wrong) in enumerate(SETS[cfg.set](cfg.source)):
        if cfg.max_items is not None and k >= cfg.max_items:
            break
        name = re.sub(r'[^\w-]', '-', id)
        if name in names:
            raise Refused(f"{cfg.source}: two items would be called '{name}'")
        names.add(name)
        if context is None:
            pieces += [(f'{2 * k}_{name}_correct', right), (f'{2 * k + 1}_{name}_incorrect', wrong)]
        else:
            pieces += [(f'{name}_mutual', context), (f'{name}_correct', right), (f'{name}_incorrect', wrong)]
    if not pieces:
        raise Refused(f"{cfg.source}: no items")
    return [(name, ' '.join(text.split())) for name, text in pieces]

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

def speak(cfg, voice, name, text):
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
    return {'file': f'{voice}/{name}.wav', 'voice': voice, 'text': text, 'sha256': sha256(path),
            'seconds': round(seconds, 3)}

def check_settings(cfg, pieces):
    """Writes OUT/settings.json, or refuses to go on in a folder that was begun with other settings or texts."""
    path = Path(cfg.out) / 'settings.json'
    texts_hash = hashlib.sha256(json.dumps(pieces).encode()).hexdigest()[:16]
    if not path.is_file():
        write_json(path, {**record(cfg), 'texts': texts_hash})
        return
    earlier = json.loads(path.read_text(encoding='utf-8'))
    keys = ('set', 'tts', 'voices', 'max_items')
    differing = [key for key in keys if earlier['settings'].get(key) != getattr(cfg, key)]
    if earlier['texts'] != texts_hash:
        differing.append('texts')
    if differing:
        raise Refused(f"{cfg.out}: begun with other {', '.join(differing)}; take another --out, or delete it")

def main(cfg):
    pieces = pieces_of(cfg)
    with writing_in(cfg.out):
        speak_all(cfg, pieces)

def speak_all(cfg, pieces):
    """Speaks the pieces in every voice, and writes the manifest."""
    voices = [voice.strip() for voice in cfg.voices.split(',') if voice.strip()]
    check_settings(cfg, pieces)
    jobs = [(cfg, voice, *piece) for voice in voices for piece in pieces]
    with ThreadPoolExecutor(cfg.workers) as pool:
        try:
            lines = list(progress(pool.map(speak, *zip(*jobs)), total=len(jobs), unit='piece'))
        except BaseException:
            pool.shutdown(cancel_futures=True) # otherwise all the others would be spoken first
            raise
    with atomically(Path(cfg.out) / 'manifest.jsonl') as tmp:
        write_lines(tmp, lines)
    hours = sum(line['seconds'] for line in lines) / 3600
    print(f"{cfg.out}: {len(pieces)} pieces in {len(voices)} voices, {hours:.2f} h")

if __name__ == '__main__':
    run(main, Config)
