"""
Runs speedrun.sh, from audio to a talking model, in a fresh copy of this tree:

    python bench/runs.py [--dry]      --dry: only makes the copy and checks the script's syntax

Nothing is installed: the copy's .venv/bin/python starts the Python that runs this. If the script
stops (without soundfile it stops at the audio), the results say where and why, and keep what was
measured until then. The exit status is 1 unless the script succeeds.

Writes bench/results/gpu-runs.json: seconds in all and of each stage, the evaluation, and the last
lines of the output of a script that failed.
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

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench.common import ROOT, parse_dry, save

TIMEOUT = '500' # seconds; `timeout` then ends the script and exits with status 124

def copy_tree(tree, folder):
    """Copies the tree to folder without its outputs, with a .venv as setup.sh leaves it -> folder."""
    skip = shutil.ignore_patterns('.git', '.venv', 'venv', 'out', 'data', '__pycache__')
    shutil.copytree(tree, folder, ignore=skip, symlinks=True)
    venv = folder / '.venv'
    python = venv / 'bin' / 'python'
    python.parent.mkdir(parents=True)
    shutil.copy(tree / 'requirements.txt', venv / 'installed')
    # setup.sh sets a PYTHONPATH of its own, so that of this process is appended to it.
    path = os.environ.get('PYTHONPATH', '')
    python.write_text(f'#!/bin/sh\nPYTHONPATH="$PYTHONPATH:{path}" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return folder

def run(folder, *command, timeout=TIMEOUT, **options):
    """Runs a command in folder -> {'seconds', 'exit', 'stages', 'eval', 'failure'}. options: of subprocess.run.

    eval: the contents of eval.json, if it was written; failure: the last lines of a failed command.
    """
    begin = time.perf_counter()
    done = subprocess.run(
        ['timeout', timeout, *command], # which also ends the children of the command
        cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
    seconds = time.perf_counter() - begin
    stages = re.findall(r'^ *(\d+) s  (.{,46})', done.stdout, re.M)
    results = {'seconds': round(seconds, 1),
               'exit': done.returncode,
               'stages': {name.strip(): int(s) for s, name in stages}}
    scores = folder / 'out' / 'speedrun' / 'eval.json'
    if scores.is_file():
        results['eval'] = json.loads(scores.read_text())
    if done.returncode:
        results['failure'] = done.stdout.splitlines()[-6:]
    return results

def main():
    dry = parse_dry(__doc__)
    command = ('bash', '-n', 'speedrun.sh') if dry else ('./speedrun.sh',)
    with tempfile.TemporaryDirectory() as tmp:
        results = run(copy_tree(ROOT, Path(tmp) / 'tree'), *command)
    save('gpu-runs', dry, **results)
    results.pop('eval', None)
    print(json.dumps(results, indent=1))
    return int(results['exit'] != 0)

if __name__ == '__main__':
    raise SystemExit(main())
