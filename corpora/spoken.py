"""
A text corpus read out by any text-to-speech command.

    python -m corpora.spoken --text=stories.txt --out=data/spoken --command='piper -m VOICE.onnx --output_file {wav}'
    python tokenize_speech.py --corpus=spoken --audio=data/spoken --out=...

The command is run once a document, which it gets at its standard input, or in place of {text} (one argument, whatever
is in it: there is no shell). It writes audio to {wav}; and, if it knows when each word is said, JSON to {words}:
[["Once", 0.05, 0.31], ...] in seconds. --text: .txt (a line is a document) or .jsonl ('text', 'id').

    DIR/00000/manifest.jsonl    a line an utterance, as corpora/folder.py has it, beside its audio 0000.wav, ...
    DIR/00000/failures.jsonl    {"id", "reason"}: what was not spoken
    DIR/settings.json           text and command; another run into DIR must have the same
    DIR/info.json               counts and how it was made; comes last

A shard holds shard_docs consecutive documents and appears when it is whole, so an interrupted run goes on.
"""
import json
import re
import shlex
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from configurator import Refused, run
from corpora import folder
from corpora.tree import documents
from files import atomically, progress, read_info, read_lines, record, sha256, shard_folders, write_json, write_lines
from speech.audio import BadAudio, load_audio


@dataclass(frozen=True)
class Config:
    text: str = '' # .txt or .jsonl
    command: str = '' # with {wav}, and perhaps {words} and {text}
    out: str = '' # folder to fill
    speaker: str | None = None # what the voice is called
    workers: int = 1 # commands at a time
    timeout: float = 600.0 # seconds that a command may take
    shard_docs: int = 1000 # documents in a shard
    max_fail_frac: float = 0.01 # share of documents not spoken above which the run stops

    def __post_init__(self):
        if not self.text or not self.out or '{wav}' not in self.command:
            raise Refused("expected --text=FILE, --out=DIR and --command='PROGRAM ... {wav}'")
        try:
            program = shlex.split(self.command)[0]
        except ValueError as e:
            raise Refused(f"command is {self.command}: {e}") from None
        if not shutil.which(program):
            raise Refused(f"command: no program '{program}' here")
        if not (self.workers > 0 and self.timeout > 0 and self.shard_docs > 0 and 0 <= self.max_fail_frac <= 1):
            raise Refused("expected workers, timeout and shard_docs above 0 and max_fail_frac from 0 to 1")

def utterances(root):
    read_info(root, 'python -m corpora.spoken') # or it is not complete
    yield from sorted((folder.from_line(u, where, str(shard)) for shard in shard_folders(root) # some may have none
                       for where, u in read_lines(shard / 'manifest.jsonl')), key=lambda u: u['id'])

def speak(cfg, text, wav, words):
    """Runs the command -> the line of the manifest but its id, or the reason why there is none."""
    fill = {'wav': str(wav), 'words': str(words), 'text': text}
    arguments = [re.sub(r'\{(wav|words|text)\}', lambda key: fill[key[1]], part) for part in shlex.split(cfg.command)]
    try:
        done = subprocess.run(arguments, input=text.encode(), capture_output=True, timeout=cfg.timeout)
        if done.returncode:
            last = done.stderr.decode(errors='replace').strip().splitlines()[-1:]
            return f"status {done.returncode}: {''.join(last)}"
        load_audio(wav)
        spoken = json.loads(words.read_text(encoding='utf-8')) if '{words}' in cfg.command else None
    except subprocess.TimeoutExpired:
        return f"not done after {cfg.timeout:g} s"
    except BadAudio as e:
        return f"{e.kind}: {e.why}"
    except (OSError, ValueError) as e: # not JSON, not there; a NUL in an argument
        return str(e)
    if spoken is not None and not (isinstance(spoken, list) and all(map(folder.is_word, spoken))):
        return f"words: {str(spoken)[:60]}, expected [[word, start, end], ...] in seconds"
    return {'audio': wav.name, 'text': text, 'speaker': cfg.speaker, 'words': spoken}

def write_shard(cfg, path, docs, pool):
    """docs: [(id, text)] -> the folder of a shard, whole."""
    with atomically(path) as tmp:
        tmp.mkdir()
        say = lambda i: speak(cfg, docs[i][1], tmp / f'{i:04d}.wav', tmp / f'{i:04d}.words')
        lines, failures = [], []
        for (id, _), said in zip(docs, pool.map(say, range(len(docs)))):
            if isinstance(said, dict):
                lines.append({'id': id, **said})
            else:
                failures.append({'id': id, 'reason': said})
        for left in set(tmp.iterdir()) - {tmp / line['audio'] for line in lines}: # word times, halves of failures
            left.unlink()
        write_lines(tmp / 'manifest.jsonl', lines)
        write_lines(tmp / 'failures.jsonl', failures)

def main(cfg):
    docs = [(id, text) for id, text, _ in documents(cfg.text) if text.strip()]
    settings = {'text': sha256(cfg.text), 'documents': len(docs), 'command': cfg.command, 'speaker': cfg.speaker,
                'shard_docs': cfg.shard_docs}
    out, said = Path(cfg.out), Path(cfg.out, 'settings.json')
    if not docs or len({id for id, _ in docs}) < len(docs):
        raise Refused(f"{cfg.text}: {len(docs)} documents with text; expected some, each with an id of its own")
    if said.exists() and json.loads(said.read_text(encoding='utf-8')) != settings:
        raise Refused(f"{out}: begun with another text or command, see {said}; take another --out, or delete it")
    if not said.exists():
        write_json(said, settings)
    failures, spoken = [], 0
    with ThreadPoolExecutor(cfg.workers) as pool, progress(total=len(docs), unit='doc') as bar:
        for s in range(-(-len(docs) // cfg.shard_docs)):
            shard, some = out / f'{s:05d}', docs[s * cfg.shard_docs:(s + 1) * cfg.shard_docs]
            if not shard.exists():
                write_shard(cfg, shard, some, pool)
            failures += [line for _, line in read_lines(shard / 'failures.jsonl')]
            spoken += sum(1 for _ in read_lines(shard / 'manifest.jsonl'))
            if len(failures) > cfg.max_fail_frac * len(docs):
                raise Refused(f"{shard}: {len(failures)} of {len(docs)} documents not spoken, the last because of "
                              f"{failures[-1]['reason']}; max_fail_frac is {cfg.max_fail_frac:g}; mend the command and "
                              f"delete {out}")
            bar.update(len(some))
    write_json(out / 'info.json', {'documents': spoken, 'failures': len(failures), **record(cfg)})
    print(f"{out}: {spoken:,} documents spoken, {len(failures)} not")

if __name__ == '__main__':
    run(main, Config)
