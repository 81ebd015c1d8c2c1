"""
The papers' tables as Markdown: published rows as printed, and rows of eval.json beside them.

    python -m papers.tables --models=out/a,out/b --orig=out/text --out=out/tables.md      SIMS Tables 1-3
"""
import json
from dataclasses import dataclass
from pathlib import Path

from configurator import run
from evaluation.results import SAME, document_style, in_percent, read_eval
from files import atomically, record

PUBLISHED = Path(__file__).with_name('published.json')

@dataclass(frozen=True)
class Config:
    models: str = 'out/tiny' # folders with eval.json, separated by commas
    orig: str = '' # the TextLM before training, for the column Orig. of Table 2; '' for none
    corpus: str = 'stories' # corpus whose held-out speech is the column Val. CE
    out: str = 'out/tables.md' # Markdown file to write

NOTE = (
    "An empty cell was not reported. Rows marked (here) come from eval.json, with the standard error over items: "
    "accuracies in percent; sBLIMP is ZeroSpeech's official average on test, or dev where test was not measured (the "
    "papers average plainly over file pairs and do not name the split: eval.json has that mean as `plain`); Val. CE is "
    "nats a unit on the corpus given, not on the papers' data; Self-BLEU is what the papers call auto-BLEU-2 of prompt "
    "and continuation, times 100; in SIMS 2 the documents are written as slamkit writes them, and a cell of eval.py "
    "--documents=training says so; Orig. is the TextLM before training; SpiritLM is its official weights, trained for "
    "75 % longer than its paper says (footnote of SIMS Table 2).")

TITLES = {
    'SIMS 1': 'training data, interleaved Qwen2.5-0.5B, 20k steps',
    'SIMS 2': 'across modalities, multi-speaker StoryCloze',
    'SIMS 3': 'beside other speech language models',
}

ABOUT = { # what describes a model in each table
    'SIMS 1': ('real', 'synthetic'),
    'SIMS 2': ('params', 'flops'),
    'SIMS 3': ('params', 'tokens'),
}

def columns(corpus):
    """{table: {column: (name, candidates)}}.

    name: the column's key in papers/published.json. candidates: the rows of eval.json that may fill
    it; the first that exists does.
    """
    sblimp = ('sblimp', ('sblimp/test/S', 'sblimp/dev/S'))
    ssc = ('ssc', ('ssc/S',))
    tsc = ('tsc', ('tsc/S',))
    val_ce = ('val_ce', (f'loss/{corpus}/speech/units', f'loss/{corpus}/textless/units'))
    across = {}
    for task in ('sSC', 'tSC'):
        name = f'ms_{task.lower()}'
        for direction in ('S', 'S->T', 'T->S', 'T'):
            candidates = [f'cross_modal/{task}/{direction}']
            if direction == 'S':
                candidates.append(f'{name}/all/S')
            across[f'{task} {direction}'] = (f'{name}/{direction}', tuple(candidates))
        across[f'{task} Orig.'] = (f'{name}/T before', ())
    return {
        'SIMS 1': {'sBLIMP': sblimp,
                   'sSC': ssc,
                   'MS-sSC': ('ms_ssc', ('ms_ssc/all/S',)),
                   'tSC': tsc,
                   'MS-tSC': ('ms_tsc', ('ms_tsc/all/S',)),
                   'Val. CE': val_ce},
        'SIMS 2': across,
        'SIMS 3': {'sBLIMP': sblimp,
                   'sSC': ssc,
                   'tSC': tsc,
                   'GenPPL': ('genppl', ('genppl/whole',)),
                   'Self-BLEU': ('self_bleu', ('auto_bleu2/whole',))},
    }

def published_cell(table, name, value):
    """A number as its table prints it; sizes are abbreviated, and booleans are yes and no."""
    if value is None:
        return ''
    if isinstance(value, bool):
        return 'yes' if value else 'no'
    if name in ('params', 'tokens'):
        return f'{value / 1e9:g}B' if value >= 1e9 else f'{value / 1e6:g}M'
    if name == 'flops':
        return f'{value:g}'
    return f'{value:.2f}' if table != 'SIMS 3' and value > 10 else str(value)

def measured_cell(evaluation, name):
    """A row of eval.json as text: with its standard error and, in SIMS 2, the style of documents unlike slamkit's."""
    results = evaluation['results']
    scale, digits = (100, 2) if in_percent(name) else (1, 3)
    cell = f"{scale * results[name]['value']:.{digits}f}"
    error = results[name]['stderr']
    if error is not None:
        cell += f" ± {scale * error:.{digits}f}"
    style = document_style(evaluation, name)
    if name.startswith('cross_modal/') and style not in ('slamkit', SAME): # the other tasks have whole waves
        cell += f" (documents: {style or 'unknown'})"
    return cell

def measured_cells(evaluation, orig, table_columns):
    """The cells of one model in a table, as text."""
    cells = []
    for column, (_, candidates) in table_columns.items():
        source = evaluation
        if column.endswith('Orig.'): # the TextLM's own text score
            source = orig
            candidates = (f'cross_modal/{column[:3]}/T',)
        name = next((name for name in candidates if name in source['results']), None)
        cells.append('' if name is None else measured_cell(source, name))
    return cells

def markdown_row(*cells):
    return '| ' + ' | '.join(cells) + ' |'

def tables(models, orig, corpus):
    """SIMS Tables 1-3 as Markdown: published rows as printed, then ours with standard errors."""
    published = json.loads(PUBLISHED.read_text(encoding='utf-8'))
    evaluations = {model: read_eval(model) for model in models}
    orig_evaluation = read_eval(orig) if orig else {'results': {}}
    lines = ["# The papers' tables, and ours", '', NOTE, '']
    for table, table_columns in columns(corpus).items():
        names = [*ABOUT[table], *(name for name, _ in table_columns.values())]
        lines += [f"## {table.replace(' ', ' Table ')}: {TITLES[table]}",
                  '',
                  f"Source: {published['sources'][table[:4]]}.",
                  '',
                  markdown_row('model', *ABOUT[table], *table_columns),
                  '|' + '---|' * (1 + len(names))]
        for row in published['rows']:
            if row['table'] == table:
                cells = [published_cell(table, name, row.get(name)) for name in names]
                lines.append(markdown_row(row.get('model', 'SIMS 0.5B'), *cells))
        for model, evaluation in evaluations.items():
            cells = measured_cells(evaluation, orig_evaluation, table_columns)
            lines.append(markdown_row(f'**{Path(model).name}** (here)', '', '', *cells))
        lines.append('')
    return '\n'.join(lines)

def main(cfg):
    models = cfg.models.split(',')
    text = tables(models, cfg.orig, cfg.corpus)
    origin = record(cfg)
    with atomically(cfg.out) as tmp:
        tmp.write_text(f"{text}\n`{origin['command']}`, commit {origin['commit']}.\n", encoding='utf-8')
    print(f"{cfg.out}: {len(models)} models")

if __name__ == '__main__':
    run(main, Config)
