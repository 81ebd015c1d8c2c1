"""
The report of the papers' claims, from finished runs: verdicts as Markdown, a figure, every run as csv.

    python -m papers.report          -> out/papers/claims.{json,md,png} and runs.csv

What the verdicts mean is in papers/claims.py. Runs that are not finished leave parts undecided.
"""
import csv
import os
from pathlib import Path

import numpy as np

from configurator import Refused, run
from evaluation.results import document_style, read_eval
from files import atomically, read_json, record, write_json
from papers.claims import (
    ARMS,
    FINDINGS,
    LOSS,
    MIDDLE,
    ONE,
    SEEDS,
    SMALL,
    SSC,
    TEXTS,
    TSC,
    TSC_UNSEEN,
    UNSEEN,
    Config,
    Runs,
    examine,
    slm_rows,
)
from scaling.figures import clean_axes, plt, style_of
from scaling.plan import write_rows

NAMES = {
    'interleaved': 'interleaved',
    'textless': 'textless',
    'speech': 'speech only',
    'scratch': 'from random weights',
    'weak': 'interleaved, weak TextLM',
    'weak-speech': 'speech only, weak TextLM',
}

# --------------------------------------------------------------------------------------------------
# the picture

def draw_curves(axis, runs, arms, metric, label, scale=1):
    """The best model of each budget against compute: the mean over seeds, and each seed as a dot."""
    axis.set_ylabel(label)
    try:
        grid = runs.grid(*arms)
    except Refused:
        return
    C = [C for C, _ in grid]
    for i, arm in enumerate(arms):
        Y = scale * np.array([runs.curve(arm, grid, seed, metric) for seed in runs.seeds])
        style = style_of(i)
        axis.plot(C, Y.mean(0), label=NAMES[arm], **style)
        axis.plot(np.tile(C, len(Y)), Y.ravel(), linestyle='none', marker=style['marker'], markersize=3, alpha=0.5,
                  color=style['color'])
    axis.set_xscale('log')
    axis.set_xlabel('compute, FLOPs')
    axis.legend(frameon=False, fontsize=8)

def draw_bars(axis, names, values):
    """The mean of each row of values as a bar, its seeds as dots."""
    for i, row in enumerate(values):
        axis.bar(i, np.mean(row), color=style_of(i)['color'], alpha=0.5, width=0.6)
        axis.plot([i] * len(row), row, 'k.', markersize=5)
    axis.set_xticks(range(len(names)), names)
    low = min(map(min, values))
    high = max(map(max, values))
    margin = high - low + 0.01
    axis.set_ylim(low - 0.3 * margin, high + 0.2 * margin)

def draw_diversity(axis, runs):
    """The loss in the unseen voice after training on one voice, on several, and on both."""
    arms = ('synthetic', 'diverse', 'mixed')
    results = [[runs.results.get((arm, ONE, SMALL, seed)) for seed in runs.seeds] for arm in arms]
    if all(map(all, results)):
        draw_bars(axis, arms, [[result.scores[UNSEEN] for result in row] for row in results])
    axis.set_ylabel('loss in the unseen voice, nats a unit')

def draw_textlms(axis, runs):
    """The loss of speech models against that of the TextLMs they started from."""
    names = {'interleaved': 'good', 'weak': 'weak', 'long': 'long', 'talk': 'other text'}
    for i, (arm, name) in enumerate(names.items()):
        text = ONE if arm == 'interleaved' else arm
        results = [runs.results.get((arm, ONE, MIDDLE, seed)) for seed in runs.seeds]
        losses = [result.scores[LOSS] for result in results if result]
        if losses and text in runs.text_losses:
            x = [runs.text_losses[text]] * len(losses)
            axis.plot(x, losses, linestyle='none', label=name, **style_of(i))
    axis.set_xlabel("the TextLM's own loss on stories, nats a token")
    axis.set_ylabel(f'loss, nats a unit; {ONE}, {MIDDLE:g} FLOPs')
    if axis.lines:
        axis.legend(frameon=False, fontsize=8)

def draw_preferences(axis, runs):
    """sSC and tSC before and after training on preferences."""
    if runs.scores_after:
        values = []
        for metric in (SSC, TSC):
            for seeds in ([runs.scores_before], runs.scores_after):
                values.append([100 * rows[metric]['value'] for rows in seeds])
        draw_bars(axis, ('sSC before', 'after DPO', 'tSC before', 'after DPO'), values)
    else:
        axis.text(0.5, 0.5, 'not run', ha='center', transform=axis.transAxes)
    axis.set_ylabel('in speech, %')

def draw_picture(runs, path):
    """A panel for each finding."""
    figure, axes = plt.subplots(3, 2, figsize=(9.5, 9.5), layout='constrained')
    axes = axes.ravel()
    for number, (axis, finding) in enumerate(zip(axes, FINDINGS), 1):
        clean_axes(axis)
        axis.set_title(f"{number}. {finding.title}?", fontsize=10, loc='left')
    draw_curves(axes[0], runs, ('interleaved', 'textless'), LOSS, 'loss, nats a unit; best size')
    draw_curves(axes[1], runs, ('interleaved', 'scratch'), LOSS, f'loss, nats a unit; {ONE}')
    arms = ('speech', 'interleaved', 'weak-speech', 'weak')
    draw_curves(axes[2], runs, arms, TSC, f'tSC in speech, %; {ONE}', scale=100)
    axes[2].axhline(50, color='#666', linestyle=':', linewidth=1)
    draw_diversity(axes[3], runs)
    draw_textlms(axes[4], runs)
    draw_preferences(axes[5], runs)
    with atomically(path) as tmp:
        figure.savefig(tmp, dpi=150, format='png')
    plt.close(figure)

# --------------------------------------------------------------------------------------------------
# the text

def markdown_row(part):
    """A part of a finding as a line of claims.md."""
    if 'mean' not in part:
        return f"| {part['part']} | | | {part['verdict']}: {part['why']} |"
    return (f"| {part['part']} | {part['mean']:+.3g} {part['unit']} | {part['low']:+.3g} to {part['high']:+.3g} | "
            f"**{part['verdict']}** |")

def markdown(summary, findings):
    """claims.md as lines."""
    lines = [summary, '']
    for number, finding in enumerate(findings, 1):
        lines += [f"### {number}. {finding['finding']}",
                  '',
                  f"> {finding['claim']}",
                  '',
                  '| | difference | 95 % interval | verdict |',
                  '|---|---|---|---|',
                  *map(markdown_row, finding['parts']),
                  '']
    return lines

def write_csv(path, runs):
    """A line for each finished run."""
    columns = (LOSS, UNSEEN, TSC, TSC_UNSEEN, SSC)
    table = [('arm', 'size', 'flops', 'seed', 'N', 'steps', *columns)]
    for key, result in runs.results.items():
        values = [result.scores.get(name) for name in columns]
        rounded = [value and round(value, 5) for value in values]
        table.append((*key, result.N, result.steps, *rounded))
    with atomically(path) as tmp, open(tmp, 'w', newline='') as f:
        csv.writer(f).writerows(table)

def scores_in(folders):
    """The results of eval.json of those folders that have one."""
    finished = [folder for folder in folders if (Path(folder) / 'eval.json').is_file()]
    return [read_json(folder, 'eval.json', 'eval.py')['results'] for folder in finished]

def main(cfg):
    out = Path(cfg.out)
    rows = slm_rows(cfg)
    text_losses = {}
    for name in TEXTS:
        for scores in scores_in([out / f'text-{name}']):
            text_losses[name] = scores['loss/stories/text/text']['value']
    start = read_eval(cfg.start)
    if document_style(start, 'tiny/main/tsc/S') == 'slamkit':
        raise Refused(f"{cfg.start}/eval.json: scored on slamkit's documents, those after preferences on training's; "
                      f"measure it again: python eval.py --model={cfg.start} --data=")
    scores_before = start['results']
    scores_after = scores_in([out / f'dpo-{seed}' for seed in range(SEEDS)])
    runs = Runs(rows, text_losses, scores_before, scores_after)
    findings = []
    for finding in FINDINGS:
        parts = [examine(part, runs) for part in finding.parts]
        findings.append({'finding': finding.title, 'claim': finding.claim, 'parts': parts})
    n_feasible = sum(not row['why_not'] for row in rows)
    summary = (f"{len(runs.results)} of {n_feasible} runs are finished; {len(rows) - n_feasible} would read some "
               "of the data too often and are left out.")
    for arm in ARMS: # for scaling.fit and scaling.figures
        write_rows(out / arm, [row for row in rows if row['arm'] == arm])
    lines = markdown(summary, findings)
    with atomically(out / 'claims.md') as tmp:
        tmp.write_text('\n'.join(lines), encoding='utf-8')
    write_json(out / 'claims.json', {'findings': findings,
                                     'runs': summary,
                                     'commits of the runs': sorted({result.commit for result in runs.results.values()}),
                                     'text_loss': text_losses,
                                     'machine': f'{os.cpu_count()} cores, {cfg.gpu}',
                                     **record(cfg)})
    write_csv(out / 'runs.csv', runs)
    draw_picture(runs, out / 'claims.png')
    print(*lines, sep='\n')
    print(f"{out}/claims.md, claims.json, claims.png, runs.csv")

if __name__ == '__main__':
    run(main, Config)
