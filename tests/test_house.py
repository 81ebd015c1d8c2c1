"""
The order of the repository: what is at the top level, which folder may import which, how wide a line and how long the
README may be.
"""
import ast
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# What one runs, in the data's order.
STAGES = {'tokenize_speech', 'align', 'interleave', 'train', 'dpo', 'eval', 'sample'}
READ_FIRST = {'model', 'data', 'vocab', 'configurator', 'files', 'locks'}
TOP_FILES = {f'{name}.py' for name in STAGES | READ_FIRST} | {
    'README.md', 'setup.sh', 'speedrun.sh', 'test.sh', 'requirements.txt', 'pyproject.toml'}
ROOMS = {'kernels', 'speech', 'hub', 'training', 'evaluation', 'listening', 'scaling', 'papers', 'corpora', 'tasks',
         'tiny', 'bench'}
OTHER_FOLDERS = {'config', 'docs', 'tests', 'findings'}

GROUND = {'configurator', 'files', 'locks'}
SOUND = GROUND | {'vocab'}
BELOW_STAGES = SOUND | {'kernels', 'speech', 'hub', 'data', 'model', 'corpora', 'tasks', 'training', 'evaluation',
                        'listening'}
ANY = BELOW_STAGES | STAGES | ROOMS
MAY_IMPORT = { # a room may always import itself
    'configurator': set(), 'locks': {'configurator'}, 'files': {'configurator', 'locks'},
    'kernels': GROUND, 'vocab': GROUND,
    'speech': SOUND, 'hub': SOUND, 'data': SOUND, 'model': SOUND | {'kernels', 'hub'},
    'corpora': GROUND | {'speech'}, 'tasks': GROUND | {'speech'}, 'tiny': GROUND | {'speech'},
    'training': BELOW_STAGES, 'evaluation': BELOW_STAGES, 'listening': SOUND | {'speech', 'hub', 'model'},
    **dict.fromkeys(STAGES, BELOW_STAGES),
    'scaling': BELOW_STAGES, 'papers': BELOW_STAGES | {'scaling'}, 'tiny.build': ANY, 'bench': ANY}
EXCEPTIONS = { # a module and what it may import besides
    'corpora.table': {'data', 'vocab'},          # counts the tokens of shards
    'dpo': {'train'},                            # borrows the loop
    'scaling.plan': {'train', 'eval'},           # starts them, and checks their settings first
    'papers.slamkit': {'interleave'},            # borrows its writer of shards
    'papers.lens': {'interleave'},               # reads the documents that it holds out
    'bench.which_tokenizer': {'tiny.build'}}     # reads the speech that it speaks

def tracked(pattern):
    listed = subprocess.run(['git', '-C', ROOT, 'ls-files', '--cached', '--others', '--exclude-standard', pattern],
                            capture_output=True, text=True, check=True)
    return [Path(line) for line in listed.stdout.splitlines() if (ROOT / line).is_file()]

def modules():
    """{dotted name: path} of the Python files outside tests/ and config/."""
    paths = [path for path in tracked('*.py') if path.parts[0] not in ('tests', 'config')]
    return {'.'.join(path.with_suffix('').parts): path for path in paths}

def imported(path, known):
    """The modules of this repository that a file imports, at its top or inside a function."""
    names = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding='utf-8'))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f'{node.module}.{alias.name}' for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names & known

def room_of(module):
    return 'tiny.build' if module.startswith('tiny.build.') else module.split('.')[0]

def test_the_top_level_holds_the_stages_what_one_reads_first_and_the_rooms():
    paths = tracked('*')
    files = {path.name for path in paths if len(path.parts) == 1 and not path.name.startswith('.')}
    folders = {path.parts[0] for path in paths if len(path.parts) > 1 and not path.parts[0].startswith('.')}
    assert files == TOP_FILES
    assert folders == ROOMS | OTHER_FOLDERS

def test_rooms_import_only_what_is_below_them():
    known = modules()
    wrong = []
    for module, path in known.items():
        room = room_of(module)
        allowed = MAY_IMPORT[room] | EXCEPTIONS.get(module, set()) | {room}
        for target in imported(path, known.keys()):
            if room_of(target) not in allowed:
                wrong.append(f'{module} imports {target}')
    assert not wrong, wrong

def test_the_import_rule_would_see_a_violation(tmp_path):
    (tmp_path / 'x.py').write_text('def f():\n    from hub.folders import read_config\n')
    assert imported(tmp_path / 'x.py', modules().keys()) == {'hub.folders'}
    assert 'hub' not in MAY_IMPORT['speech']
    assert 'model' not in MAY_IMPORT['data']
    assert 'train' not in MAY_IMPORT['training']

@pytest.mark.parametrize('room', sorted(ROOMS | {'tiny/build'}))
def test_a_room_says_what_it_holds_and_what_it_may_import(room):
    tree = ast.parse((ROOT / room / '__init__.py').read_text(encoding='utf-8'))
    assert len(tree.body) == 1 and 'May import' in ast.get_docstring(tree)

def prose(lines):
    """Numbered lines of Markdown without tables, quotes and fenced blocks, which show what was printed or written."""
    fenced = False
    for number, line in enumerate(lines, 1):
        if line.startswith('```'):
            fenced = not fenced
        elif not fenced and not line.startswith(('|', '>')):
            yield number, line

@pytest.mark.parametrize('pattern', ['*.py', '*.sh', '*.md'])
def test_no_line_is_over_120_columns(pattern):
    wide = []
    for path in tracked(pattern):
        lines = (ROOT / path).read_text(encoding='utf-8').splitlines()
        whole_file = path.suffix != '.md' or path == Path('README.md')
        numbered = enumerate(lines, 1) if whole_file else prose(lines)
        wide += [f'{path}:{number}' for number, line in numbered if len(line) > 120]
    assert not wide, wide

def test_the_readme_is_a_way_in_and_not_a_manual():
    text = (ROOT / 'README.md').read_text(encoding='utf-8')
    lines = text.splitlines()
    assert len(lines) <= 250 and len(text.encode()) <= 16_400
    first = next(number for number, line in enumerate(lines, 1) if './speedrun.sh' in line)
    assert first <= 12 and any('python sample.py' in line for line in lines[:12])

def test_nobody_reads_more_than_an_afternoon_from_audio_to_loss():
    """README's reading path, file by file."""
    text = (ROOT / 'README.md').read_text(encoding='utf-8')
    path = ['tokenize_speech.py', 'interleave.py', 'data.py', 'vocab.py', 'model.py', 'train.py']
    assert ', '.join(f'`{name}`' for name in path[:-1]) in ' '.join(text.split())
    assert sum(len((ROOT / name).read_text(encoding='utf-8').splitlines()) for name in path) <= 3000
