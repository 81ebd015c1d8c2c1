"""
The model card (README.md) of an exported folder: what its files, and those that they name, say of the model.

Nothing is guessed: what no file on this disk says is marked FILL IN, which one searches for before publishing.
"""
import re
from pathlib import Path

from configurator import Refused
from evaluation.results import document_style, in_percent, read_eval
from files import read_json, sha256
from hub.shapes import SHAPES, is_downloaded

FILL_IN = '**FILL IN**'
PATTERN_OF_IDS = r'[\w.-]+/[\w.-]+'
KINDS = {
    'joint': "speech and text: {n_text:,} text ids, {n_units} units `<Un0>`.. , `<speech>`, `<text>`",
    'speech': "speech alone: `<PAD>`, `<S>`, {n_units} units `<Un0>`..",
    'text': "text alone: {n_text:,} ids"}

def runs_of(folder):
    """[(folder, its settings.json)] of a model and of the models that it was started from, as far as they are here."""
    runs = []
    seen = set()
    while folder not in seen and (Path(folder) / 'settings.json').is_file():
        seen.add(folder)
        runs.append((folder, read_json(folder, 'settings.json', 'train.py')))
        folder = str(runs[-1][1].get('settings', {}).get('init'))
    return runs

def base_of(runs):
    """(what the oldest known run started from, in words; its hub id, or None where that is not certain)."""
    init = runs and runs[-1][1].get('settings', {}).get('init')
    if not init:
        return FILL_IN, None
    if init == 'scratch':
        return 'none: random weights', None
    if init in SHAPES or re.fullmatch(PATTERN_OF_IDS, init) and not Path(init).exists() and is_downloaded(init):
        return f'`{init}`', init
    return f'`{init}`, a folder: its name on the hub, or what it is: {FILL_IN}', None

def _info(folder):
    """info.json of a folder of units or tokens; {} where it is not here or not readable."""
    try:
        return read_json(folder, 'info.json', 'tokenize_speech.py')
    except Refused:
        return {}

def data_of(runs):
    """The folders that the runs name as data, in the order of training."""
    names = []
    for _, run in reversed(runs):
        names += str(run.get('settings', {}).get('data', '')).split(',')
    return [name for name in dict.fromkeys(names) if name]

def encoder_of(vocab, data):
    """What made the units, in words: by the vocabulary, or by the units folders behind the data."""
    if '/' in vocab.units:
        return f'`{vocab.units}`'
    infos = []
    for folder in data:
        info = _info(folder) # of units, as DPO reads them, or of tokens
        units = str(info.get('settings', {}).get('units', '')) if 'units_hash' not in info else folder
        infos += [_info(name) for name in units.split(',') if name]
    for info in infos:
        if vocab.units and info.get('units_hash') == vocab.units:
            return f"`{info.get('encoder')}`, layer {info.get('layer')}, {info.get('frame_hz', 0):g} frames a second"
    return FILL_IN

def _tokens(folder):
    """', 1,234 tokens' of a token folder that is here."""
    written = _info(folder).get('written', {})
    trained = sum(counts.get('tokens', 0) for name, counts in written.items() if name.startswith('train/'))
    return f', {trained:,} tokens' if trained else ''

def facts(folder, model, vocab, dtype):
    """[(name, value)] of the card's first table."""
    runs = runs_of(folder)
    data = data_of(runs)
    rows = [('base model', base_of(runs)[0]),
            ('architecture', model.cfg.family),
            ('parameters', f'{model.num_params():,}, in {dtype}'),
            ('vocabulary', KINDS[vocab.kind].format(n_text=vocab.n_text, n_units=vocab.n_units))]
    if vocab.kind != 'text':
        rows += [('encoder of the units', encoder_of(vocab, data)), ('hash of the units', vocab.units or FILL_IN)]
    rows.append(('data', '; '.join(f'`{name}`{_tokens(name)}' for name in data) or FILL_IN))
    for run_folder, run in reversed(runs):
        counts = [f"{run[key]:,} {key}" for key in ('steps', 'tokens', 'pairs') if isinstance(run.get(key), int)]
        flops = [f"{run['flops']:.2e} FLOPs"] if run.get('flops') else []
        muon = ['Muon and AdamW'] if run.get('settings', {}).get('optimizer') == 'muon' else []
        rows.append((f'training of {Path(run_folder).name}',
                     f"`{run.get('command')}` at commit {run.get('commit')}: {', '.join(counts + flops + muon)}"))
    return rows

def _weights(folder):
    """{file: sha256}, as eval.json names the weights."""
    return {path.name: sha256(path) for path in sorted(Path(folder).glob('model*.safetensors'))}

def scores(folder, dtype):
    """The lines of the card's section of scores."""
    if not (Path(folder) / 'eval.json').is_file():
        return [f'None is measured: {FILL_IN}']
    try:
        evaluation = read_eval(folder)
    except Refused:
        return [f'eval.json is not what eval.py writes: {FILL_IN}']
    if evaluation.get('model') != _weights(folder):
        return [f'eval.json is of other weights than these: {FILL_IN}']
    lines = ['Measured by nanoSLM on the folder that this one was exported from, '
             f'whose weights may be finer than {dtype}.', '',
             '| task | value | standard error | n |', '|---|---|---|---|']
    for name, row in evaluation['results'].items():
        scale, digits = (100, 1) if in_percent(name) else (1, 3)
        error = '' if row.get('stderr') is None else f"{scale * row['stderr']:.{digits}f}"
        unit = ' %' if in_percent(name) else ''
        lines.append(f"| {name} | {scale * row['value']:.{digits}f}{unit} | {error} | {row['n']:,} |")
    styles = {task: document_style(evaluation, task) for task in evaluation.get('tasks', {})}
    lines += [''] + [f'Documents of {task}: written as in {style}.' for task, style in styles.items()
                     if style in ('training', 'slamkit')]
    return lines

def model_card(folder, name, model, vocab, dtype):
    """The text of README.md for the folder `name` that is made from the model in `folder`."""
    base = base_of(runs_of(folder))[1]
    head = ['---', 'library_name: transformers', 'tags:', '- nanoslm', '- speech-language-model',
            *([f'base_model: {base}'] if base else []),
            '# license: FILL IN, such as apache-2.0; those of the base model and of the data bind this model too',
            '# language: FILL IN', '---']
    if vocab.kind == 'text':
        head.remove('- speech-language-model')
    table = ['| | |', '|---|---|', *(f"| {key} | {value.replace('|', '/')} |" for key, value in
                                     facts(folder, model, vocab, dtype))]
    reading = []
    if vocab.kind != 'text':
        reading = ['', 'Speech is read and written as units (`<Un5>`): numbers of the clusters of an encoder, without '
                   'repeats. nanoSLM encodes audio, and speaks with a vocoder for these units.']
    return '\n'.join([*head, '', f'# {name}', '', *table, *reading, '', '## Scores', '', *scores(folder, dtype), '',
                      '## License', '', FILL_IN, ''])
