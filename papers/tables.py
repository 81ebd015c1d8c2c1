"""
The papers' tables as Markdown: published rows as printed, and rows of eval.json beside them.

    python -m papers.tables --models=out/a,out/b --orig=out/text --out=out/tables.md       SIMS Tables 1-3
"""
import json
from dataclasses import dataclass
from pathlib import Path

from configurator import run
from evaluation.results import in_percent, read_eval
from files import atomically, record

PUBLISHED = Path(__file__).with_name('published.json')

@dataclass(frozen=True)
class Config:
    models: str = 'out/tiny' # folders with eval.json, separated by commas
    orig: str = '' # the TextLM before training, for the column Orig. of Table 2; '' for none
    corpus: str = 'stories' # whose held-out speech is Val. CE
    out: str = 'out/tables.md'

NOTE = ("An empty cell was not reported. Rows marked (here) come from eval.json, with the standard error over items: accuracies in "
        "percent; sBLIMP is ZeroSpeech's official average on test, or dev where test was not measured (the papers average "
        "plainly over file pairs and do not name the split: eval.json has that mean as `plain`); Val. CE is nats a unit on the "
        "corpus given, not on the papers' data; Self-BLEU is what the papers call auto-BLEU-2 of prompt and continuation, "
        "times 100; in SIMS 2 the papers put a separator before S and T too (here --lead=separator) and join texts without a blank; "
        "Orig. is the TextLM before training.")

TITLES = {'SIMS 1': 'training data, interleaved Qwen2.5-0.5B, 20k steps', 'SIMS 2': 'across modalities, multi-speaker StoryCloze',
          'SIMS 3': 'beside other speech language models'}

ABOUT = {'SIMS 1': ('real', 'synthetic'), 'SIMS 2': ('params', 'flops'), 'SIMS 3': ('params', 'tokens')}

def columns(corpus):
    """{table: {column: (its name in papers/published.json, the rows of eval.json that may fill it, the first that is there)}}."""
    across = {}
    for task in ('sSC', 'tSC'):
        name = f'ms_{task.lower()}'
        for way in ('S', 'S->T', 'T->S', 'T'):
            across[f'{task} {way}'] = f'{name}/{way}', (f'cross_modal/{task}/{way}', *((f'{name}/all/S',) if way == 'S' else ()))
        across[f'{task} Orig.'] = f'{name}/T before', ()
    common = {'sBLIMP': ('sblimp', ('sblimp/test/S', 'sblimp/dev/S')), 'sSC': ('ssc', ('ssc/S',)), 'tSC': ('tsc', ('tsc/S',))}
    ce = tuple(f'loss/{corpus}/{source}/units' for source in ('speech', 'textless'))
    return {'SIMS 1': {'sBLIMP': common['sBLIMP'], 'sSC': common['sSC'], 'MS-sSC': ('ms_ssc', ('ms_ssc/all/S',)), 'tSC': common['tSC'],
                       'MS-tSC': ('ms_tsc', ('ms_tsc/all/S',)), 'Val. CE': ('val_ce', ce)},
            'SIMS 2': across,
            'SIMS 3': {**common, 'GenPPL': ('genppl', ('genppl/whole',)), 'Self-BLEU': ('self_bleu', ('auto_bleu2/whole',))}}

def published_cell(table, name, value):
    """A number as its table prints it; sizes short, yes and no."""
    if value is None or isinstance(value, bool):
        return '' if value is None else 'yes' if value else 'no'
    if name in ('params', 'tokens'):
        return f'{value / 1e9:g}B' if value >= 1e9 else f'{value / 1e6:g}M'
    return f'{value:g}' if name == 'flops' else f'{value:.2f}' if table != 'SIMS 3' and value > 10 else str(value)

def measured_cells(rows, orig, wanted):
    """One model's cells of a table, as text."""
    cells = []
    for name, (_, candidates) in wanted.items():
        found, source = rows, candidates
        if name.endswith('Orig.'): # the TextLM's own text number
            found, source = orig, (f'cross_modal/{name[:3]}/T',)
        at = next((c for c in source if c in found), None)
        if at is None:
            cells.append('')
            continue
        scale, digits = (100, 2) if in_percent(at) else (1, 3)
        error = found[at]['stderr']
        cells.append(f"{scale * found[at]['value']:.{digits}f}" + ('' if error is None else f" ± {scale * error:.{digits}f}"))
    return cells

def tables(models, orig, corpus):
    """SIMS Tables 1-3 as Markdown: published rows as printed, then ours with standard errors."""
    published = json.loads(PUBLISHED.read_text(encoding='utf-8'))
    found, text = {model: read_eval(model)['results'] for model in models}, read_eval(orig)['results'] if orig else {}
    row = lambda *cells: '| ' + ' | '.join(cells) + ' |'
    lines = ["# The papers' tables, and ours", '', NOTE, '']
    for table, wanted in columns(corpus).items():
        names = [*ABOUT[table], *(name for name, _ in wanted.values())]
        lines += [f"## {table.replace(' ', ' Table ')}: {TITLES[table]}", '', f"Source: {published['sources'][table[:4]]}.", '',
                  row('model', *ABOUT[table], *wanted), '|' + '---|' * (1 + len(names))]
        lines += [row(of.get('model', 'SIMS 0.5B'), *(published_cell(table, name, of.get(name)) for name in names))
                  for of in published['rows'] if of['table'] == table]
        for model, rows in found.items():
            lines.append(row(f'**{Path(model).name}** (here)', '', '', *measured_cells(rows, text, wanted)))
        lines.append('')
    return '\n'.join(lines)

def main(cfg):
    text = tables(cfg.models.split(','), cfg.orig, cfg.corpus)
    with atomically(cfg.out) as tmp:
        tmp.write_text(text + '\n' + f"`{record(cfg)['command']}`, commit {record(cfg)['commit']}.\n", encoding='utf-8')
    print(f"{cfg.out}: {len(cfg.models.split(','))} models")

if __name__ == '__main__':
    run(main, Config)
