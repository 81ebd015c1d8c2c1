"""
The embedded corpus from audio to a talking model, speedrun.sh as it is, in a copy of the tree where nothing is done yet:

    python bench/runs.py [--dry]      --dry: makes the copy and asks bash whether it can read the script

The copy's .venv is a door to the Python that runs this, so nothing is installed. Where the script stops (without soundfile
it stops at the audio), the results say where and why, and keep what it had measured. Exit status 1 unless it ended well.

Writes bench/results/gpu-runs.json: seconds in all and of each stage, the evaluation, the last lines of a failure.
"""
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.common import ROOT, asked_dry, save

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

SECONDS = '500' # then it has failed, with status 124

def copy_of(tree, folder):
    """The tree in folder, set up as setup.sh leaves it."""
    skip = shutil.ignore_patterns('.git', '.venv', 'venv', 'out', 'data', '__pycache__')
    shutil.copytree(tree, folder, ignore=skip, symlinks=True)
    (folder / '.venv' / 'bin').mkdir(parents=True)
    shutil.copy(tree / 'requirements.txt', folder / '.venv' / 'installed')
    door = folder / '.venv' / 'bin' / 'python'
    more = os.environ.get('PYTHONPATH', '') # setup.sh sets its own
    door.write_text(f'#!/bin/sh\nPYTHONPATH="$PYTHONPATH:{more}" exec "{sys.executable}" "$@"\n')
    door.chmod(0o755)
    return folder

def run(folder, *command):
    """{'seconds', 'exit', 'stages', 'eval'}, and what it printed last where it failed."""
    begin = time.perf_counter() # timeout ends the children of the command too
    done = subprocess.run(['timeout', SECONDS, *command], cwd=folder, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT)
    found = {'seconds': round(time.perf_counter() - begin, 1), 'exit': done.returncode,
             'stages': {name.strip(): int(s) for s, name in re.findall(r'^ *(\d+) s  (.{,46})', done.stdout, re.M)}}
    scores = folder / 'out' / 'speedrun' / 'eval.json'
    found |= {'eval': json.loads(scores.read_text())} if scores.is_file() else {}
    return found | ({'failure': done.stdout.splitlines()[-6:]} if done.returncode else {})

def main():
    dry = asked_dry(__doc__)
    with tempfile.TemporaryDirectory() as tmp:
        found = run(copy_of(ROOT, Path(tmp) / 'tree'), *(('bash', '-n', 'speedrun.sh') if dry else ('./speedrun.sh',)))
    save('gpu-runs', dry, **found)
    print(json.dumps({name: value for name, value in found.items() if name != 'eval'}, indent=1))
    return int(found['exit'] != 0)

if __name__ == '__main__':
    raise SystemExit(main())
