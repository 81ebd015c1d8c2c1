"""Spoken pairs from text pairs, with a synthesizer of six lines: the layout that the tasks read, resume, refusals."""
import json
import sys

import pytest
from test_tasks import make_blimp, make_storycloze, write_csv

import tasks.multispeaker
import tasks.storycloze
from configurator import Refused
from tasks.make_spoken import Config, main

TTS = '''import sys, wave
voice, text, out = sys.argv[1:]
if text == 'FAIL':
    sys.exit('no such word')
with wave.open(out, 'wb') as f:
    f.setparams((1, 2, 24000, 0, 'NONE', ''))
    f.writeframes(bytes([len(voice), 1]) * (2400 + 10 * len(text)))
open(sys.argv[0] + '.log', 'a').write(text + '\\n')
'''

@pytest.fixture
def tts(tmp_path):
    (tmp_path / 'tts.py').write_text(TTS)
    return f'{sys.executable} {tmp_path}/tts.py {{voice}} {{text}} {{out}}'

def calls(tmp_path):
    return len((tmp_path / 'tts.py.log').read_text().splitlines())

def test_contexts_and_endings_apart_as_cross_modal_reads_them_and_nothing_twice(tmp_path, tts):
    (tmp_path / 'text').mkdir()
    source = make_storycloze(tmp_path / 'text') / 'val.csv'
    out = tmp_path / 'cm' / 'sSC'
    cfg = Config(source=str(source), out=str(out), tts=tts, voices='a,bb', workers=2)
    main(cfg)
    items = list(tasks.multispeaker.cross_modal(tmp_path / 'cm'))
    assert len(items) == 6
    assert items[0]['rows'] == ('sSC', 'sSC/a')
    assert calls(tmp_path) == 18
    assert items[1]['right']['ending'][0] == 'Two 1.'
    assert items[1]['right']['prompt'][0] == 'A b. C d. E f. G 1.'
    manifest = (out / 'manifest.jsonl').read_bytes()
    assert len(manifest.splitlines()) == 18
    (out / 'bb' / 'id1_mutual.wav').unlink()
    main(cfg)
    assert calls(tmp_path) == 19
    assert (out / 'manifest.jsonl').read_bytes() == manifest
    source.write_text(source.read_text().replace('Two 1.', 'Three 1.'))
    with pytest.raises(Refused, match='begun with other texts'):
        main(cfg)
    make_storycloze(tmp_path / 'text')
    with pytest.raises(Refused, match='begun with other voices'):
        main(Config(**{**cfg.__dict__, 'voices': 'a'}))

def test_pairs_without_a_context_are_numbered_as_spoken_storycloze(tmp_path, tts):
    source = make_blimp(tmp_path / 'blimp', n=1)
    main(Config(set='blimp', source=str(source), out=str(tmp_path / 'out'), tts=tts, voices='a'))
    items = list(tasks.storycloze.spoken(tmp_path / 'out' / 'a'))
    assert len(items) == 3
    assert items[1]['right']['joined'].name == '2_plurals-0_correct.wav'
    assert items[1]['wrong']['joined'].name == '3_plurals-0_incorrect.wav'
    assert (tmp_path / 'out' / 'a' / '2_plurals-0_correct.txt').read_text() == 'Good plurals 0.\n'

def test_copa_and_swag(tmp_path, tts):
    line = {'query': 'It rained, so', 'choices': ['he slept.', 'he got wet.'], 'gold': 1}
    (tmp_path / 'copa.jsonl').write_text(json.dumps(line) + '\n')
    main(Config(set='copa', source=str(tmp_path / 'copa.jsonl'), out=str(tmp_path / 'c'), tts=tts, voices='a'))
    assert (tmp_path / 'c' / 'a' / '0_correct.txt').read_text() == 'he got wet.\n'
    columns = ['startphrase', 'ending0', 'ending1', 'ending2', 'ending3', 'label']
    write_csv(tmp_path / 'swag.csv', columns, [('He', 'a', 'b', 'c', 'd', 2)])
    main(Config(set='swag', source=str(tmp_path / 'swag.csv'), out=str(tmp_path / 's'), tts=tts, voices='a'))
    endings = [(item['right']['ending'][0], item['wrong']['ending'][0])
               for item in tasks.multispeaker.cross_modal(tmp_path / 's')]
    assert endings == [('c', 'a'), ('c', 'b'), ('c', 'd')]

def test_a_synthesizer_that_fails_is_one_line_and_leaves_no_half_file(tmp_path, tts):
    (tmp_path / 'copa.jsonl').write_text(json.dumps({'query': 'FAIL', 'choices': ['x', 'y'], 'gold': 0}) + '\n')
    settings = dict(set='copa', source=str(tmp_path / 'copa.jsonl'), out=str(tmp_path / 'c'), voices='a')
    with pytest.raises(Refused, match=r'failed on 0_mutual in a \(exit 1\): no such word'):
        main(Config(**settings, tts=tts))
    for path in (tmp_path / 'c').rglob('*'):
        assert '.part' not in path.name
        assert not path.name.startswith(('0_mutual', 'manifest'))
    with pytest.raises(Refused, match='/no/such: No such file'):
        main(Config(**{**settings, 'out': str(tmp_path / 'd')}, tts='/no/such {text} {out}'))

@pytest.mark.parametrize('settings, message', [
    ({'source': ''}, 'expected --source'),
    ({'set': 'x'}, "set is 'x', expected one of storycloze, copa"),
    ({'tts': 'say {text}'}, r'\{out\} must stand in it')])
def test_bad_settings_are_one_line(settings, message):
    with pytest.raises(Refused, match=message):
        Config(**{'source': 's', 'out': 'o', **settings})
