"""What must never lose a run, over several processes; and nothing in the tree that runs what a file says.

case                                                        outcome
2    3,000 shards of units and of tokens, ulimit -n 256     go through: test_interleave.py
3    data that changed behind a run                         test_changed_data.py
4, 6 model folders that are not whole, or want code         test_pretrained.py
12a  damaged lines in log.jsonl                             moved away by number, the run goes on: test_log.py
12b  MANIFEST.json nested deeply                            the older checkpoint is used: test_checkpoint.py
12c  dpo.py gets SIGTERM before its reference is whole      its parts are saved, status 0: test_dpo.py
12d  two equal runs of dpo.py                               equal bytes: test_dpo.py
17   memory of the lists at millions of utterances          test_memory.py
"""
# ruff: noqa: F401, F811 (fixtures of test_train)
import ast
import json
import os
import signal
from pathlib import Path

import pytest
from test_house import tracked
from test_train import (
    ROOT,
    before_each_fetch,
    config,
    corpus,
    interrupted_after,
    on_ranks,
    rows_of,
)

import train
from training import checkpoint

MODULES = {'pickle', 'cPickle', 'dill', 'joblib', 'shelve', 'marshal'}
CALLS = {'exec', 'eval', 'compile', '__import__', 'torch.load', 'os.system', 'os.popen'}
METHODS = {'extractall', 'unpack_archive'}
KEYWORDS = {'trust_remote_code', 'allow_pickle', 'shell'}

def dangers(source):
    """What of a source could run the content of a file: [(line, name)]."""
    uses = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                uses += [(node.lineno, name.name) for name in names if name.name.split('.')[0] in MODULES]
            case ast.ImportFrom(module=module):
                if (module or '').split('.')[0] in MODULES:
                    uses.append((node.lineno, module))
            case ast.Call(func=func, keywords=keywords):
                name = ast.unparse(func)
                if name in CALLS or name.rsplit('.', 1)[-1] in METHODS:
                    uses.append((node.lineno, name))
                uses += [(node.lineno, keyword.arg) for keyword in keywords if is_dangerous(keyword)]
    return uses

def is_dangerous(keyword):
    """Is it one of KEYWORDS, with anything but a false constant?"""
    is_false = isinstance(keyword.value, ast.Constant) and not keyword.value.value
    return keyword.arg in KEYWORDS and not is_false

def test_nothing_in_the_tree_runs_what_a_file_says():
    foreign = {'.venv', 'venv', 'out', 'data'}
    files = [path for path in ROOT.rglob('*.py') if not foreign & set(path.relative_to(ROOT).parts)]
    assert len(files) > 50
    uses = {str(path.relative_to(ROOT)): dangers(path.read_text(encoding='utf-8')) for path in files}
    [(_, module)] = uses.pop('tests/test_convert.py') # makes hostile files, which are refused
    [(_, function)] = uses.pop('speech/convert.py') # with weights_only, see the test below
    assert (module, function) == ('pickle', 'torch.load')
    uses.pop('tests/gluon_model.py') # executes the source of a kernel of this tree
    assert {name: lines for name, lines in uses.items() if lines} == {}

def test_the_one_torch_load_reads_tensors_only():
    tree = ast.parse((ROOT / 'speech/convert.py').read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    [load] = [call for call in calls if ast.unparse(call.func) == 'torch.load']
    keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in load.keywords}
    assert keywords['weights_only'] == 'True'

@pytest.mark.parametrize('source', [
    'import pickle', 'from joblib import load', 'torch.load(f)', 'eval("1")', 'exec(s)', 'os.system("ls")',
    'tar.extractall()', 'np.load(f, allow_pickle=True)', 'AutoModel.from_pretrained(x, trust_remote_code=True)',
    'subprocess.run(c, shell=True)'])
def test_such_a_thing_would_be_found(source):
    assert dangers(source)

def may_ask(source):
    """Where a source lets transformers read a folder without trust_remote_code=False: [line].

    from_pretrained of model.py's own GPT, and of nothing else, needs none.
    """
    tree = ast.parse(source)
    harmless = {id(call.func) for call in ast.walk(tree) if isinstance(call, ast.Call) and any(
        keyword.arg == 'trust_remote_code' and ast.unparse(keyword.value) == 'False' for keyword in call.keywords)}
    return [node.lineno for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and node.attr in ('from_pretrained', 'from_config', 'pipeline')
            and ast.unparse(node.value) != 'GPT' and id(node) not in harmless]

def test_nothing_that_transformers_reads_may_ask_to_run_code():
    paths = [path for path in tracked('*.py') if path.parts[0] != 'tests']
    sources = {str(path): (ROOT / path).read_text(encoding='utf-8') for path in paths}
    assert {path: lines for path, source in sources.items() if (lines := may_ask(source))} == {}
    loaders = {path for path, source in sources.items() if 'trust_remote_code=False' in source}
    elsewhere = {path for path in loaders if not path.startswith(('bench/', 'tiny/build/'))}
    assert elsewhere == {'speech/pretrained.py', 'hub/tokenizer.py'}

@pytest.mark.parametrize('source', [
    'AutoModel.from_pretrained(x)', 'AutoModel.from_pretrained(x, trust_remote_code=asked)',
    'load = transformers.AutoModel.from_pretrained', "getattr(transformers, name).from_pretrained(x, dtype=y)",
    'AutoModel.from_config(x)', "transformers.pipeline('text-generation', x)"])
def test_a_call_that_may_ask_would_be_found(source):
    assert may_ask(source)

def without_times(rows):
    return [{key: value for key, value in row.items() if key not in ('ms', 'tok_s', 'data')} for row in rows]

@pytest.mark.parametrize('parallel', ['ddp', 'fsdp'])
def test_sigterm_to_one_rank_saves_once_and_ends_all_with_0(config, tmp_path, parallel):
    cut, uncut = (config(out=str(tmp_path / name), micro_batch=3, parallel=parallel) for name in ('cut', 'uncut'))
    def work(rank):
        if rank == 1:
            with interrupted_after(9):
                train.main(cut)
        else:
            train.main(cut)
    assert on_ranks(2, work) == [0, 0]
    [folder] = checkpoint.folders(cut.out)
    assert checkpoint.why_unusable(folder) is None and not Path(cut.out, 'settings.json').exists()
    for cfg in (cut, uncut):
        assert on_ranks(2, lambda rank, cfg=cfg: train.main(cfg)) == [0, 0]
    assert without_times(rows_of(cut.out)) == without_times(rows_of(uncut.out))

@pytest.mark.parametrize('number', [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)])
def test_a_rank_that_dies_or_hangs_ends_the_others_within_the_timeout(config, tmp_path, number):
    """Rank 1 gets the signal as it begins step 6. Rank 0, when it has ended, kills rank 1, which may only be stopped.

    The timeout is far longer than any step, so that a busy machine does not end the ranks before.
    """
    cfg = config(micro_batch=3, timeout=40.0)
    pid = tmp_path / 'pid'
    def lose(step):
        if step == 6:
            pid.write_text(str(os.getpid()))
            os.kill(os.getpid(), number)
    def work(rank):
        if rank == 1:
            with before_each_fetch(lose):
                return train.main(cfg)
        try:
            train.main(cfg)
        finally:
            os.kill(int(pid.read_text()), signal.SIGKILL)
    first, second = on_ranks(2, work)
    assert first not in (0, None, -signal.SIGKILL) # rank 0 ended by itself
    assert second == -signal.SIGKILL
    assert all(json.loads(line) for line in Path(cfg.out, 'log.jsonl').read_text().splitlines())
