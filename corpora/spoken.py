"""
A text corpus read out by any text-to-speech command.

    python -m corpora.spoken --text=stories.txt --out=data/spoken --command='piper -m VOICE.onnx --output_file {wav}'
    python tokenize_speech.py --corpus=spoken --audio=data/spoken --out=...

The command is run once per document. It gets the text at its standard input, or in place of {text}
(as one argument, whatever it contains: there is no shell). It writes audio to {wav} and, if it
knows when each word is spoken, JSON to {words}: [["Once", 0.05, 0.31], ...] in seconds. --text:
.txt (a document per line) or .jsonl ('text', 'id').

    DIR/00000/manifest.jsonl    a line per utterance, as in corpora/folder.py, beside its audio 0000.wav, ...
    DIR/00000/failures.jsonl    {"id", "reason"}: documents that were not spoken
    DIR/settings.json           text and command; another run into DIR must have the same
    DIR/info.json               counts and how it was made; written last

A shard holds shard_docs consecutive documents and appears when it is complete, so an interrupted run can be resumed.
"""
import re
import shlex
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from configurator import Refused, run
from corpora import folder
from corpora.tree import by_id, documents
from files import (
    atomically,
    progress,
    read_info,
    read_json,
    read_lines,
    read_value,
    record,
    sha256,
    shard_folders,
    write_json,
    write_lines,
)
from locks import writing_in
from speech.audio import BadAudio, load_audio


@dataclass(frozen=True)
class Config:
    text: str = '' # .txt with a document per line, or .jsonl with 'text' and perhaps 'id'
    command: str = '' # 'PROGRAM ... {wav}', which speaks a document; it may have {words} and {text} too
    out: str = '' # folder to fill
    speaker: str | None = None # name of the voice, for the manifest
    workers: int = 1 # commands that run at a time
    timeout: float = 600.0 # seconds that a command may take
    shard_docs: int = 1000 # documents in a shard
    max_fail_frac: float = 0.01 # the run stops when a larger share of the documents could not be spoken

    def __post_init__(self):
        if not self.text or not self.out or '{wav}' not in self.command:
            raise Refused("expected --text=FILE, --out=DIR and --command='PROGRAM ... {wav}'")
        try:
            program = shlex.split(self.command)[0]
        except ValueError as e:
            raise Refused(f"command is {self.command}: {e}") from None
        if not shutil.which(program):
            raise Refused(f"command: no program '{program}' on this machine")
        if not (self.workers > 0 and self.timeout > 0 and self.shard_docs > 0 and 0 <= self.max_fail_frac <= 1):
            raise Refused("expected workers, timeout and shard_docs above 0 and max_fail_frac from 0 to 1")

def utterances(root):
    read_info(root, 'python -m corpora.spoken') # refused if the folder is not complete
    docs = []
    for shard in shard_folders(root):
        docs += [folder.from_line(line, place, str(shard)) for place, line in read_lines(shard / 'manifest.jsonl')]
    yield from by_id(docs)

def speak(cfg, text, wav, words):
    """Runs the command -> the manifest's line without id, or the reason why there is none, as a string."""
    fill = {'wav': str(wav), 'words': str(words), 'text': text}
    arguments = [re.sub(r'\{(wav|words|text)\}', lambda key: fill[key[1]], part) for part in shlex.split(cfg.command)]
    try:
        process = subprocess.run(arguments, input=text.encode(), capture_output=True, timeout=cfg.timeout)
        if process.returncode:
            last_line = process.stderr.decode(errors='replace').strip().splitlines()[-1:]
            return f"status {process.returncode}: {''.join(last_line)}"
        load_audio(wav)
        word_times = read_value(words) if '{words}' in cfg.command else None
    except subprocess.TimeoutExpired:
        return f"not done after {cfg.timeout:g} s"
    except BadAudio as e:
        return f"{e.kind}: {e.why}"
    except (OSError, ValueError) as e: # no file, no JSON, or a NUL in an argument
        return str(e)
    if word_times is not None and not (isinstance(word_times, list) and all(map(folder.is_word, word_times))):
        return f"words: {str(word_times)[:60]}, expected [[word, start, end], ...] in seconds"
    return {'audio': wav.name, 'text': text, 'speaker': cfg.speaker, 'words': word_times}

def write_shard(cfg, path, docs, pool):
    """Speaks docs, [(id, text)], into a shard's folder, which appears when it is complete."""
    with atomically(path) as tmp:
        tmp.mkdir()
        def speak_doc(i):
            return speak(cfg, docs[i][1], tmp / f'{i:04d}.wav', tmp / f'{i:04d}.words')
        lines = []
        failures = []
        for (id, _), result in zip(docs, pool.map(speak_doc, range(len(docs)))):
            if isinstance(result, dict):
                lines.append({'id': id, **result})
            else:
                failures.append({'id': id, 'reason': result})
        # Remove word times, and what failed commands wrote.
        for file in set(tmp.iterdir()) - {tmp / line['audio'] for line in lines}:
            file.unlink()
        write_lines(tmp / 'manifest.jsonl', lines)
        write_lines(tmp / 'failures.jsonl', failures)

def main(cfg):
    docs = [(id, text) for id, text, _ in documents(cfg.text) if text.strip()]
    settings = {'text': sha256(cfg.text), 'documents': len(docs), 'command': cfg.command, 'speaker': cfg.speaker,
                'shard_docs': cfg.shard_docs}
    out = Path(cfg.out)
    if not docs or len({id for id, _ in docs}) < len(docs):
        raise Refused(f"{cfg.text}: {len(docs)} documents with text; expected some, each with an id of its own")
    with writing_in(out):
        settings_path = out / 'settings.json'
        if not settings_path.exists():
            write_json(settings_path, settings)
        elif read_json(out, 'settings.json', 'corpora.spoken') != settings:
            raise Refused(f"{out}: begun with another text or command (see {settings_path}); take another --out")
        speak_all(cfg, docs, out)

def speak_all(cfg, docs, out):
    """Speaks the shards that are missing, and writes info.json."""
    failures = []
    n_spoken = 0
    with ThreadPoolExecutor(cfg.workers) as pool, progress(total=len(docs), unit='doc') as bar:
        for first in range(0, len(docs), cfg.shard_docs):
            shard = out / f'{first // cfg.shard_docs:05d}'
            shard_docs = docs[first:first + cfg.shard_docs]
            if not shard.exists():
                write_shard(cfg, shard, shard_docs, pool)
            failures += [line for _, line in read_lines(shard / 'failures.jsonl')]
            n_spoken += sum(1 for _ in read_lines(shard / 'manifest.jsonl'))
            if len(failures) > cfg.max_fail_frac * len(docs):
                raise Refused(f"{shard}: {len(failures)} of {len(docs)} documents not spoken, more than max_fail_frac "
                              f"{cfg.max_fail_frac:g}, the last because of {failures[-1]['reason']}; "
                              f"mend the command and delete {out}")
            bar.update(len(shard_docs))
    write_json(out / 'info.json', {'documents': n_spoken, 'failures': len(failures), **record(cfg)})
    print(f"{out}: {n_spoken:,} documents spoken, {len(failures)} not")

if __name__ == '__main__':
    run(main, Config)
