"""bench/which_tokenizer.py: what its table and figure say of runs, and the commands that a tokenizer becomes."""
import pytest

from bench import which_tokenizer as bench
from configurator import Refused


def runs_of(tokenizer, budget, bits, tsc):
    rows = []
    for seed, (b, t) in enumerate(zip(bits, tsc)):
        row = {'tokenizer': tokenizer, 'budget': budget, 'seed': seed}
        row |= {'bits a second': {'value': 1, 'bits_per_second': b}, 'tSC, %': {'value': t}}
        rows.append(row | {'sSC, %': {'value': .5}})
    return rows

def test_means_and_spreads_over_seeds_are_tabled_and_drawn(tmp_path):
    rows = []
    for budget in bench.BUDGETS:
        rows += runs_of('units', budget, (60, 62, 64), (.5, .6, .7)) + runs_of('syllables', budget, (20,), (.55,))
    facts = {'units': {'tokens_per_second': 21.53, 'steps': {'compute': 9, 'seconds': 9}, 'wer': None},
             'syllables': {'tokens_per_second': 6.25, 'steps': {'compute': 9, 'seconds': 3},
                           'wer': {'value': .25, 'stderr': .031}}}
    groups = bench.summary(rows)
    assert groups['units', 'compute']['tSC, %'] == (pytest.approx(60), pytest.approx(10))
    assert groups['syllables', 'seconds']['bits a second'] == (20, None)
    bench.write_table(tmp_path / 'x.md', facts, groups)
    lines = (tmp_path / 'x.md').read_text().splitlines()
    assert '| units | 21.5 | compute | 9 | 62.0 ± 2.0 | 60.0 ± 10.0 | 50.0 ± 0.0 | not measured |' in lines
    assert '| syllables | 6.2 | seconds | 3 | 20.0 | 55.0 | 50.0 | 25.0 ± 3.1 |' in lines
    bench.draw(tmp_path / 'x.png', facts, groups)
    assert (tmp_path / 'x.png').stat().st_size > 10_000

def test_each_tokenizer_is_its_settings_of_tokenize_speech(tmp_path, monkeypatch):
    commands = []
    monkeypatch.setattr(bench, 'command', lambda *arguments: commands.append(arguments))
    cfg = bench.Config(speech='S', mimi='M', codebooks=3, rate=5.0, syllables=90)
    settings = bench.tokenizers(cfg, tmp_path)
    assert settings['units'] == ['--encoder=tiny/hubert', '--layer=4']
    assert {'--segment=syllables', '--rate=5.0'} <= set(settings['syllables'])
    assert settings['mimi x 3'] == ['--encoder=M', '--codebooks=3']
    [fit] = commands
    assert fit[0] == 'tokenize_speech.py' and '--fit_kmeans=90' in fit
    with pytest.raises(Refused, match='expected --speech=FOLDER'):
        bench.Config()
