"""
The report of the papers' claims, from finished runs: verdicts as Markdown, a figure, every run as csv.

    python -m papers.report          -> out/papers/claims.{json,md,png} and runs.csv
"""
import csv
import os
from pathlib import Path

import numpy as np

from configurator import Refused, run
from files import atomically, read_json, record, write_json
from papers.claims import (
    ARMS,
    FINDINGS,
    LOSS,
    MIDDLE,
    ONE,
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

NAMES = {'interleaved': 'interleaved', 'textless': 'textless', 'speech': 'speech only', 'scratch': 'from random weights',
         'weak': 'interleaved, weak TextLM', 'weak-speech': 'speech only, weak TextLM'}

def draw(axis, runs, arms, metric, scale=1):
    """The best model of each budget against compute: mean over the seeds, and each seed as a dot."""
    try:
        grid = runs.grid(*arms) # the sizes that are compared
    except Refused:
        return
    for i, arm in enumerate(arms):
        C, Y = [C for C, _ in grid], scale * np.array([runs.curve(arm, grid, s, metric) for s in runs.seeds])
        style = style_of(i)
        axis.plot(C, Y.mean(0), label=NAMES[arm], **style)
        axis.plot(np.tile(C, len(Y)), Y.ravel(), linestyle='none', marker=style['marker'], markersize=3, alpha=0.5,
                  color=style['color'])
    axis.set_xscale('log')
    axis.set_xlabel('compute, FLOPs')
    axis.legend(frameon=False, fontsize=8)

def bars(axis, names, values):
    """Mean of each row of values as a bar, its seeds as dots."""
    for i, row in enumerate(values):
        axis.bar(i, np.mean(row), color=style_of(i)['color'], alpha=0.5, width=0.6)
        axis.plot([i] * len(row), row, 'k.', markersize=5)
    axis.set_xticks(range(len(names)), names)
    low, high = min(map(min, values)), max(map(max, values))
    axis.set_ylim(low - 0.3 * (high - low + 0.01), high + 0.2 * (high - low + 0.01))

def picture(runs, path):
    figure, axes = plt.subplots(3, 2, figsize=(9.5, 9.5), layout='constrained')
    axes = axes.ravel()
    for number, axis in enumerate(axes, 1):
        clean_axes(axis)
        axis.set_title(f"{number}. {FINDINGS[number - 1].title}?", fontsize=10, loc='left')
    draw(axes[0], runs, ('interleaved', 'textless'), LOSS)
    draw(axes[1], runs, ('interleaved', 'scratch'), LOSS)
    draw(axes[2], runs, ('speech', 'interleaved', 'weak-speech', 'weak'), TSC, 100)
    axes[2].axhline(50, color='#666', linestyle=':', linewidth=1)
    for axis, label in zip(axes[:3], ('loss, nats a unit; best size', f'loss, nats a unit; {ONE}', f'tSC in speech, %; {ONE}')):
        axis.set_ylabel(label)
    arms = ('synthetic', 'diverse', 'mixed')
    if all((arm, ONE, SMALL, s) in runs.results for arm in arms for s in runs.seeds):
        bars(axes[3], arms, [[runs.results[arm, ONE, SMALL, s].scores[UNSEEN] for s in runs.seeds] for arm in arms])
    axes[3].set_ylabel('loss in the unseen voice, nats a unit')
    for i, (arm, text) in enumerate({'interleaved': ONE, 'weak': 'weak', 'long': 'long', 'talk': 'talk'}.items()):
        found = [r.scores[LOSS] for s in runs.seeds if (r := runs.results.get((arm, ONE, MIDDLE, s)))]
        if found and text in runs.texts:
            name = {'interleaved': 'good', 'talk': 'other text'}.get(arm, arm)
            axes[4].plot([runs.texts[text]] * len(found), found, linestyle='none', label=name, **style_of(i))
    axes[4].set(xlabel="the TextLM's own loss on stories, nats a token", ylabel=f'loss, nats a unit; {ONE}, {MIDDLE:g} FLOPs')
    if axes[4].lines:
        axes[4].legend(frameon=False, fontsize=8)
    if runs.preferred:
        bars(axes[5], ('sSC before', 'after DPO', 'tSC before', 'after DPO'), [
            [100 * rows[name]['value'] for rows in of] for name in (SSC, TSC) for of in ([runs.before], runs.preferred)])
    else:
        axes[5].text(0.5, 0.5, 'not run', ha='center', transform=axes[5].transAxes)
    axes[5].set_ylabel('in speech, %')
    with atomically(path) as tmp:
        figure.savefig(tmp, dpi=150, format='png')
    plt.close(figure)

def said(part):
    """A line of claims.md."""
    if 'mean' not in part:
        return f"| {part['part']} | | | {part['verdict']}: {part['why']} |"
    return (f"| {part['part']} | {part['mean']:+.3g} {part['unit']} | {part['low']:+.3g} to {part['high']:+.3g} | "
            f"**{part['verdict']}** |")

def main(cfg):
    rows = slm_rows(cfg)
    texts = {name: read_json(f'{cfg.out}/text-{name}', 'eval.json', 'eval.py')['results']['loss/stories/text/text']['value']
             for name in TEXTS if (Path(cfg.out) / f'text-{name}' / 'eval.json').is_file()}
    runs = Runs(rows, texts)
    scores = lambda folder: read_json(folder, 'eval.json', 'eval.py')['results']
    folders = [Path(cfg.out) / f'dpo-{seed}' for seed in runs.seeds]
    runs.preferred = [scores(folder) for folder in folders if (folder / 'eval.json').is_file()]
    runs.before = scores(cfg.start)
    found = [{'finding': f.title, 'claim': f.claim, 'parts': [examine(part, runs) for part in f.parts]} for f in FINDINGS]
    feasible = [row for row in rows if not row['why_not']]
    summary = (f"{len(runs.results)} of {len(feasible)} runs are finished; {len(rows) - len(feasible)} would read some of the "
               f"data too often and are left out.")
    lines = [summary, '']
    for number, finding in enumerate(found, 1):
        lines += [f"### {number}. {finding['finding']}", '', f"> {finding['claim']}", '',
                  '| | difference | 95 % interval | verdict |', '|---|---|---|---|', *map(said, finding['parts']), '']
    out = Path(cfg.out)
    for arm in ARMS: # for scaling.fit and scaling.figures
        write_rows(out / arm, [row for row in rows if row['arm'] == arm])
    with atomically(out / 'claims.md') as tmp:
        tmp.write_text('\n'.join(lines), encoding='utf-8')
    commits = sorted({result.commit for result in runs.results.values()})
    write_json(out / 'claims.json', {'findings': found, 'runs': summary, 'commits of the runs': commits, 'text_loss': texts,
                                       'machine': f'{os.cpu_count()} cores, {cfg.gpu}', **record(cfg)})
    columns = (LOSS, UNSEEN, TSC, TSC_UNSEEN, SSC)
    with atomically(out / 'runs.csv') as tmp, open(tmp, 'w', newline='') as f:
        csv.writer(f).writerows([('arm', 'size', 'flops', 'seed', 'N', 'steps', *columns), *(
            (*key, r.N, r.steps, *(r.scores.get(name) and round(r.scores[name], 5) for name in columns))
            for key, r in runs.results.items())])
    picture(runs, out / 'claims.png')
    print(*lines, sep='\n')
    print(f"{out}/claims.md, claims.json, claims.png, runs.csv")

if __name__ == '__main__':
    run(main, Config)
