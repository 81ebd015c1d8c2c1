"""
Which tokenizer? One corpus through several, one model each, and what comes out on one axis: tokens a second.

    python bench/which_tokenizer.py --speech=out/build/speech                       25 Hz units, syllables
    python bench/which_tokenizer.py --speech=out/build/speech --mimi=kyutai/mimi    and flat Mimi
    python bench/which_tokenizer.py --speech=out/build/speech --encoder=slprl/mhubert-base-25hz --layer=11 \
        --kmeans=km500.safetensors --vocoder=out/hifigan                            with real weights

SPEECH holds the parts `stories` and `items-main` as tiny/build/speak.py writes them. For each tokenizer
and seed a speech model (pad, bos, units; random weights) is trained twice:

    compute    as many tokens as the 25 Hz units get in --steps: equal FLOPs, but for the embeddings
    seconds    as many seconds of speech as these tokens are

Measured are held-out bits a second (eval.py), tSC and sSC in direction S, and with --asr the word
errors after audio -> units -> audio. Syllables need a vocoder for that, which is trained for
--vocoder_minutes; Mimi speaks itself.

What is done is not done again. bench/results/which_tokenizer.json has a row for each run, .md the
table and .png the figure, of means over seeds.
"""
import json
import math
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import soundfile
from matplotlib.ticker import NullLocator

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench.common import ROOT, save
from configurator import Refused, run
from eval import units_per_second
from files import atomically, read_json
from scaling.figures import clean_axes, style_of
from speech.audio import RATE
from tiny.build.pack import with_joined
from tiny.build.speak import documents

NAME = 'which_tokenizer'
BUDGETS = ('compute', 'seconds')
SCORES = {'bits a second': 'loss/tokens/textless/units', 'tSC, %': 'tiny/main/tsc/S', 'sSC, %': 'tiny/main/ssc/S'}

@dataclass(frozen=True)
class Config:
    speech: str = '' # folder with the parts stories and items-main, as tiny/build/speak.py writes them
    out: str = 'out/tokenizers' # folder for units, tokens and models
    encoder: str = 'tiny/hubert' # of the units and the syllables
    layer: int = 4
    kmeans: str = '' # of the units; '': kmeans.safetensors in the encoder's folder
    vocoder: str = 'tiny/vocoder' # of the units
    syllables: int = 500 # number of syllable-like units
    rate: float = 6.25 # of them, a second
    mimi: str = '' # folder or hub id of a Mimi; '': none
    codebooks: int = 8 # of Mimi
    seeds: tuple = (0, 1, 2)
    steps: int = 220 # of the 25 Hz units; the others' follow from the budgets
    n_layer: int = 4
    n_embd: int = 128
    batch_tokens: int = 4096
    items: int = 1000 # of items-main, at most
    asr: str = '' # Whisper, for word errors of resynthesis; '': not measured
    asr_items: int = 60 # documents of the items for that
    vocoder_minutes: float = 20.0 # of training, for syllables, if there is an asr
    pause: float = 0.25 # as for tiny/build/pack.py
    edge: float = 0.1

    def __post_init__(self):
        if not self.speech:
            raise Refused("expected --speech=FOLDER, with the parts stories and items-main of tiny/build/speak.py")

# --------------------------------------------------------------------------------------------------
# stages

def command(*arguments):
    """Runs a script of this repository; its output is shown. Raises Refused where it fails."""
    print('+', ' '.join(arguments), flush=True)
    if subprocess.run([sys.executable, *arguments], cwd=ROOT).returncode:
        raise Refused(f"this failed: {' '.join(arguments)}")

def write_items(cfg, folder):
    """The items as a folder of audio: contexts, endings, and both joined, as tasks/tiny.py reads their units."""
    with atomically(folder) as tmp:
        tmp.mkdir(parents=True)
        lines = []
        for line, wave in with_joined(documents(Path(cfg.speech) / 'items-main'), cfg):
            if int(line['id'][1:6]) >= cfg.items:
                continue
            audio = line['id'].replace('/', '.') + '.flac'
            soundfile.write(tmp / audio, wave, RATE, subtype='PCM_16')
            text = ''.join(word for word, _, _ in line['words'])
            lines.append({'id': line['id'], 'audio': audio, 'text': text, 'speaker': line['speaker']})
        (tmp / 'manifest.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines), encoding='utf-8')

def tokenizers(cfg, out):
    """{name: settings of tokenize_speech.py}; the k-means of the syllables is fitted if it is not there."""
    hubert = [f'--encoder={cfg.encoder}', f'--layer={cfg.layer}']
    kmeans = [f'--kmeans={cfg.kmeans}'] if cfg.kmeans else []
    path = out / 'syllables.safetensors'
    syllables = [*hubert, '--segment=syllables', f'--rate={cfg.rate}', f'--kmeans={path}']
    if not path.exists():
        command('tokenize_speech.py', '--corpus=tiny', f'--audio={cfg.speech}/stories', *syllables,
                f'--fit_kmeans={cfg.syllables}')
    settings = {'units': [*hubert, *kmeans], 'syllables': syllables}
    if cfg.mimi:
        settings[f'mimi x {cfg.codebooks}'] = [f'--encoder={cfg.mimi}', f'--codebooks={cfg.codebooks}']
    return settings

def prepare(cfg, out, settings):
    """A tokenizer's units of stories and items, and its tokens, in the folder `out`."""
    for name, source in (('stories', ['--corpus=tiny', f'--audio={cfg.speech}/stories']),
                         ('items', [f'--audio={out.parent}/items'])):
        if not (out / name / 'info.json').exists():
            command('tokenize_speech.py', *source, *settings, f'--out={out / name}')
    if not (out / 'tokens' / 'info.json').exists():
        command('interleave.py', f'--units={out}/stories', '--sources=textless', '--val_frac=0.05',
                f'--out={out}/tokens')

def train(cfg, out, budget, seed, steps):
    """Trains and measures one model -> {score: row of eval.json}."""
    model = out / f'{budget}-{seed}'
    if not (model / 'eval.json').exists():
        command('train.py', 'config/tiny_text.py', f'--data={out}/tokens', '--sources=textless', '--vocab=speech',
                f'--out={model}', f'--seed={seed}', f'--max_steps={steps}', f'--n_layer={cfg.n_layer}', '--n_head=4',
                '--n_kv_head=2', f'--n_embd={cfg.n_embd}', f'--n_ffn={3 * cfg.n_embd}',
                f'--batch_tokens={cfg.batch_tokens}', f'--eval_every={steps}', f'--save_every={steps}')
        command('eval.py', f'--model={model}', f'--items={out}/items', f'--data={out}/tokens')
    rows = read_json(model, 'eval.json', 'eval.py')['results']
    return {score: rows[name] for score, name in SCORES.items()}

def word_errors(cfg, out, name, settings):
    """The row of the word error rate after resynthesis of the items' stories, None where it is not measured."""
    if not cfg.asr:
        return None
    is_mimi = '--segment=syllables' not in settings and name != 'units'
    vocoder = {'units': cfg.vocoder}.get(name, cfg.mimi if is_mimi else f'{out}/vocoder')
    if name == 'syllables' and not Path(vocoder, 'config.json').exists():
        command('-m', 'training.vocoder', '--corpus=tiny', f'--audio={cfg.speech}/stories', f'--units={out}/stories',
                f'--out={vocoder}', f'--minutes={cfg.vocoder_minutes}')
    model = out / f'compute-{cfg.seeds[0]}'
    kept = ('--encoder', '--layer', '--kmeans')
    command('-m', 'evaluation.generation', f'--model={model}', '--prompts=', f'--speech={out.parent}/items',
            f'--n={cfg.asr_items}', f'--asr={cfg.asr}', f'--vocoder={vocoder}',
            *(setting for setting in settings if setting.startswith(kept)))
    return read_json(model, 'eval.json', 'evaluation.generation')['results']['wer/resynthesis']

# --------------------------------------------------------------------------------------------------
# results

def mean_and_spread(values):
    """(mean, standard deviation over seeds, None of a single one)"""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None

def summary(rows):
    """{(tokenizer, budget): {score: (mean, spread)}}; shares in percent."""
    groups = {}
    for row in rows:
        groups.setdefault((row['tokenizer'], row['budget']), []).append(row)
    result = {}
    for key, group in groups.items():
        result[key] = {}
        for score in SCORES:
            field = 'bits_per_second' if score == 'bits a second' else 'value'
            scale = 100 if '%' in score else 1
            result[key][score] = mean_and_spread([scale * row[score][field] for row in group])
    return result

def shown(value):
    mean, spread = value
    return f'{mean:.1f}' if spread is None else f'{mean:.1f} ± {spread:.1f}'

def write_table(path, facts, groups):
    lines = [f"| tokenizer | tokens a second | budget | steps | {' | '.join(SCORES)} | word errors, % |",
             '|---' * (5 + len(SCORES)) + '|']
    for (name, budget), scores in groups.items():
        fact = facts[name]
        wer = fact['wer']
        errors = f"{100 * wer['value']:.1f} ± {100 * wer['stderr']:.1f}" if wer else 'not measured'
        cells = [name, f"{fact['tokens_per_second']:.1f}", budget, fact['steps'][budget],
                 *map(shown, scores.values()), errors]
        lines.append('| ' + ' | '.join(map(str, cells)) + ' |')
    with atomically(path) as tmp:
        tmp.write_text('\n'.join(lines) + '\n', encoding='utf-8')

def draw(path, facts, groups):
    figure, axes = plt.subplots(1, len(SCORES), figsize=(11, 3.8), layout='constrained')
    for axis, score in zip(axes, SCORES):
        clean_axes(axis)
        for i, budget in enumerate(BUDGETS):
            names = sorted((n for n, b in groups if b == budget), key=lambda name: facts[name]['tokens_per_second'])
            x = [facts[name]['tokens_per_second'] for name in names]
            means, spreads = zip(*(groups[name, budget][score] for name in names))
            label = 'equal compute' if budget == 'compute' else 'equal seconds of speech'
            axis.errorbar(x, means, [spread or 0 for spread in spreads], capsize=3, label=label, **style_of(i))
        axis.set(xscale='log', xlabel='tokens a second of speech', ylabel=score)
        axis.set_xticks(x, [f'{rate:.1f}\n{name}' for name, rate in zip(names, x)])
        axis.xaxis.set_minor_locator(NullLocator())
        axis.margins(0.25)
        if '%' in score:
            axis.axhline(50, color='#666', linestyle=':', linewidth=1)
    axes[0].legend(frameon=False)
    with atomically(path) as tmp:
        figure.savefig(tmp, dpi=150, format='png')
    plt.close(figure)

def main(cfg):
    out = Path(cfg.out).resolve()
    if not (out / 'items' / 'manifest.jsonl').exists():
        write_items(cfg, out / 'items')
    all_settings = tokenizers(cfg, out)
    rows = []
    facts = {}
    for name, settings in all_settings.items():
        folder = out / name.replace(' ', '')
        prepare(cfg, folder, settings)
        rate = units_per_second(folder / 'tokens', 'textless')
        facts[name] = {'tokens_per_second': rate}
    for name in all_settings:
        ratio = facts[name]['tokens_per_second'] / facts['units']['tokens_per_second']
        facts[name]['steps'] = {'compute': cfg.steps, 'seconds': max(1, math.ceil(cfg.steps * ratio))}
    for seed in cfg.seeds:
        for name, settings in all_settings.items():
            folder = out / name.replace(' ', '')
            for budget, steps in facts[name]['steps'].items():
                if name == 'units' and budget == 'seconds': # the same run
                    scores = train(cfg, folder, 'compute', seed, steps)
                else:
                    scores = train(cfg, folder, budget, seed, steps)
                rows.append({'tokenizer': name, 'budget': budget, 'seed': seed, 'steps': steps, **scores})
        for name, settings in all_settings.items():
            facts[name].setdefault('wer', word_errors(cfg, out / name.replace(' ', ''), name, settings))
        write_results(facts, rows)

def write_results(facts, rows):
    groups = summary(rows)
    path = ROOT / 'bench' / 'results' / NAME
    save(NAME, False, tokenizers=facts, runs=rows)
    write_table(path.with_suffix('.md'), facts, groups)
    draw(path.with_suffix('.png'), facts, groups)
    print(f"{path}.json, .md, .png: {len(rows)} runs")

if __name__ == '__main__':
    run(main, Config)
