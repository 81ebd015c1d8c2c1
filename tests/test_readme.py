"""Every command of README.md and docs/ has settings that its script knows, and the files they name are there; the shell
scripts parse; a set-up that failed is not taken for a finished one."""
import ast
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import corpora.download
from configurator import configure, run

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]
TEXT = {page.name: page.read_text(encoding='utf-8') for page in PAGES}
COMMAND = re.compile(r'(\$ )?(python|torchrun)\b')

def commands(text):
    """The lines of fenced blocks that start a Python script, with continued lines joined."""
    for kind, block in re.findall(r'^```(\w*)\n(.*?)^```$', text, re.M | re.S):
        if not kind:
            for line in block.replace('\\\n', ' ').splitlines():
                if COMMAND.match(line):
                    yield line.removeprefix('$ ')

LINES = [line for text in TEXT.values() for line in commands(text)]

def docstring_commands():
    """The complete commands in the first lines of scripts; those of bench/ and kernels/ take no settings."""
    for path in sorted(ROOT.glob('**/*.py')):
        name = path.relative_to(ROOT).as_posix()
        if name.startswith(('bench/', 'kernels/', 'config/', 'tests/', 'out/', '.')) or path.name == '__init__.py':
            continue
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding='utf-8'))) or ''
        for line in docstring.replace('\\\n', ' ').splitlines():
            command = re.split(r'\s{3,}(?!\s|--)|\s+#|\s+->', line.strip())[0]
            if COMMAND.match(command) and not re.search(r'\.\.\.|\[|=STAGE', command):
                yield command
NEW = ('--n_layr=4', '--tasks=order', '--corpus=speakers', 'piper') # a mistake, what the reader adds, what is not ours
SCRIPTS = ['setup.sh', 'test.sh', 'speedrun.sh', 'papers/claims.sh', 'papers/turn.sh', 'tiny/jobs.sh',
           'tiny/build/build.sh', 'bench/gpu.sh']

def config_of(argv):
    """(the Config of a command, its arguments)."""
    if argv[0] == '-m':
        module, arguments = importlib.import_module(argv[1]), argv[2:]
    else:
        module, arguments = importlib.import_module(argv[0].removesuffix('.py').replace('/', '.')), argv[1:]
    return getattr(module, 'Config', corpora.download.Config), arguments # readers of corpora share that one

@pytest.mark.parametrize('line', [line for line in (*LINES, *docstring_commands())
                                  if not any(word in line for word in NEW)])
def test_every_command_has_the_settings_it_names(line, monkeypatch):
    monkeypatch.chdir(ROOT) # where config/ is
    for command in line.partition(' # ')[0].split('&&'):
        words = [word for word in shlex.split(command) if not word.endswith('...')]
        script = next(i for i, word in enumerate(words) if word == '-m' or word.endswith('.py'))
        Config, arguments = config_of(words[script:])
        configure(Config, arguments)

def writers():
    """{script: its arguments} of all with a setting `out`, with the arguments of a command that is documented."""
    arguments = {}
    for line in (*LINES, *docstring_commands()):
        words = shlex.split(line.partition(' # ')[0].partition('&&')[0].partition(' (')[0])
        script = next((i for i, word in enumerate(words) if word == '-m' or word.endswith('.py')), None)
        if script is not None and not any(word in line for word in (*NEW, '--show', '...')):
            name = words[script + 1] if words[script] == '-m' else words[script].removesuffix('.py')
            arguments.setdefault(name.replace('/', '.'), words[script + 1 + (words[script] == '-m'):])
    scripts = {}
    for path in sorted(ROOT.glob('**/*.py')):
        name = path.relative_to(ROOT).with_suffix('').as_posix().replace('/', '.')
        if not name.startswith(('tests.', 'config.', 'out.', '.')):
            source = path.read_text(encoding='utf-8')
            if re.search('^    out: str', source, re.M) and 'run(main, Config)' in source:
                scripts[name] = arguments.get(name)
    return scripts

WRITERS = writers()
OTHERS = { # what their documented commands leave open
    'corpora.spoken': ['--text=x', '--command=true {wav}'], 'training.export': ['--model=x'],
    'papers.slamkit': ['--features=x'], 'tiny.build.train_tokenizer': [],
    'tiny.build.speak': [], 'tiny.build.train_encoder': [], 'papers.claims': [], 'scaling.compare': [],
    'bench.speedrun': []}

@pytest.mark.parametrize('script', WRITERS)
def test_an_output_that_cannot_be_written_is_refused_before_anything_is_done(script, tmp_path, monkeypatch):
    (tmp_path / 'file').write_text('x')
    module = importlib.import_module(script)
    monkeypatch.chdir(ROOT) # where config/ is
    for out, folder in ((f'{tmp_path}/file/x/y', f'{tmp_path}/file'), ('/proc/x', '/proc')):
        arguments = WRITERS[script] if WRITERS[script] is not None else OTHERS[script]
        monkeypatch.setattr(sys, 'argv', [script, *arguments, f'--out={out}'])
        with pytest.raises(SystemExit, match=f'{out}: cannot be written, nothing new can be made in {folder} '):
            run(lambda cfg: pytest.fail('it began'), module.Config)

def test_the_scripts_that_write_are_known():
    assert {'tokenize_speech', 'interleave', 'train', 'dpo', 'eval', 'sample', 'align', 'training.vocoder',
            'tasks.make_spoken', 'corpora.spoken', 'corpora.redpajama', 'corpora.spokenswag', 'scaling.plan',
            'tiny.unpack', 'speech.convert', 'papers.tables'} <= set(WRITERS)

def test_there_are_commands_and_their_files():
    assert len(LINES) > 40
    folders = '|'.join(path.name for path in ROOT.iterdir() if path.is_dir() and path.name not in ('out', 'data'))
    named = set(re.findall(rf'`((?:{folders})/[\w./-]+)`', ' '.join(TEXT.values())))
    missing = {name for name in named if not (ROOT / name).exists()}
    yours = {'tasks/order.py', 'corpora/speakers.py'} # the reader's own
    yours |= {f'{room}/NAME.py' for room in ('corpora', 'tasks', 'config', 'kernels')}
    assert len(named) > 10 and missing <= yours, missing

@pytest.mark.parametrize('script', SCRIPTS)
def test_scripts_parse(script):
    subprocess.run(['bash', '-n', ROOT / script], check=True)

@pytest.mark.parametrize('fails', ['venv', 'pip'])
def test_a_failed_set_up_is_not_taken_for_done(tmp_path, fails):
    for name in ('setup.sh', 'requirements.txt'):
        shutil.copy(ROOT / name, tmp_path)
    python = tmp_path / 'python' # a stand-in: venv copies it, and what is named fails
    python.write_text(f"""#!/bin/sh
case "$*" in
  *'-m {fails}'*) exit 1 ;;
  *'-m venv'*) mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
esac
""")
    python.chmod(0o755)
    for _ in range(2): # again: still not done
        done = subprocess.run(['bash', 'setup.sh'], cwd=tmp_path, capture_output=True, text=True,
                              env={**os.environ, 'PYTHON': str(python)})
        assert done.returncode and 'FAILED  set-up' in done.stdout and not (tmp_path / '.venv' / 'installed').exists()

def test_a_python_without_the_corrections_of_tarfile_is_named():
    [code] = re.findall(r"-c '(import sys; .*\b13: 4\b.*)'", (ROOT / 'setup.sh').read_text())
    for version, is_old in (((3, 11, 12), 1), ((3, 11, 13), 0), ((3, 12, 10), 1), ((3, 12, 11), 0), ((3, 13, 3), 1),
                            ((3, 13, 4), 0), ((3, 13, 12), 0)):
        command = [sys.executable, '-c', f'import sys; sys.version_info = {version}; {code}']
        assert subprocess.run(command).returncode == is_old, version
