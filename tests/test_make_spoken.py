"""Spoken pairs from text pairs, with a synthesizer of ten lines: the layout that the tasks read, resume, refusals."""
import collections
import itertools
import json
import sys
from pathlib import Path

import pytest
from test_tasks import make_blimp, make_storycloze, write_csv

import dpo
import tasks.multispeaker
import tasks.storycloze
import tokenize_speech
from configurator import Refused
from corpora.folder import utterances
from tasks.make_spoken import Config, main, pieces_of, split_stories

ROOT = Path(__file__).parents[1]

TTS = '''import random, struct, sys, wave
voice, text, out = sys.argv[1:]
if text == 'FAIL':
    sys.exit('no such word')
noise = random.Random(voice + text) # so that different texts have different units
samples = []
for letter in text:
    level = noise.randrange(2000, 20000)
    samples += [noise.randrange(-level, level) for _ in range(600)]
with wave.open(out, 'wb') as f:
    f.setparams((1, 2, 24000, 0, 'NONE', ''))
    f.writeframes(struct.pack(f'<{len(samples)}h', *samples))
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
    spoken = {u['id']: (u['text'], u['speaker']) for u in utterances(out)} # what tokenize_speech.py reads
    assert spoken['bb/id1_mutual'] == ('A b. C d. E f. G 1.', 'bb') and len(spoken) == 18
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

def test_copa(tmp_path, tts):
    line = {'query': 'It rained, so', 'choices': ['he slept.', 'he got wet.'], 'gold': 1}
    (tmp_path / 'copa.jsonl').write_text(json.dumps(line) + '\n')
    main(Config(set='copa', source=str(tmp_path / 'copa.jsonl'), out=str(tmp_path / 'c'), tts=tts, voices='a'))
    assert (tmp_path / 'c' / 'a' / '0_correct.txt').read_text() == 'he got wet.\n'
    item, = tasks.multispeaker.cross_modal(tmp_path / 'c')
    assert item['wrong']['ending'][0] == 'he slept.'

def texts_of(**settings):
    """[(item, {part: text})] of the pieces of a set."""
    parts = {}
    for _, _, name, text in pieces_of(Config(out='o', **{'voices': 'a', **settings})):
        item, _, part = name.rpartition('_')
        parts.setdefault(item, {})[part] = text
    return parts

def make_stories(path, endings):
    """StoryCloze's csv with these right endings."""
    rows = [(f'id{i}', 'A b.', 'C d.', 'E f.', f'G {i}.', ending, f'Not {i}.', 1) for i, ending in enumerate(endings)]
    write_csv(path, ['InputStoryid', *tasks.storycloze.COLUMNS], rows)
    return str(path)

def test_topic_endings_are_those_of_other_stories_each_used_once(tmp_path):
    endings = [f'End {i}.' for i in range(40)]
    source = make_stories(tmp_path / 'val.csv', endings)
    stories = texts_of(set='topic_storycloze', source=source)
    for i in range(40):
        assert stories[f'id{i}']['mutual'] == f'A b. C d. E f. G {i}.'
        assert stories[f'id{i}']['correct'] == endings[i]
        assert stories[f'id{i}']['incorrect'] != endings[i]
    wrong = [story['incorrect'] for story in stories.values()]
    assert sorted(wrong) == sorted(endings) and wrong != endings[1:] + endings[:1]
    assert texts_of(set='topic_storycloze', source=source) == stories
    assert texts_of(set='topic_storycloze', source=source, seed=1) != stories
    few = texts_of(set='topic_storycloze', source=source, max_items=5)
    assert few == dict(itertools.islice(stories.items(), 5)) # drawn among all stories

@pytest.mark.parametrize('seed', range(20))
def test_a_story_never_gets_an_ending_like_its_own(tmp_path, seed):
    source = make_stories(tmp_path / 'val.csv', ['He ran.', 'He ran.', 'He ran.', 'She slept.', 'It rained.'])
    for story in texts_of(set='topic_storycloze', source=source, seed=seed).values():
        assert story['correct'] != story['incorrect']

def test_one_ending_makes_no_topic_storycloze(tmp_path):
    source = make_stories(tmp_path / 'val.csv', ['He ran.', 'He ran.'])
    with pytest.raises(Refused, match='one ending in all'):
        texts_of(set='topic_storycloze', source=source)

def test_published_pairings_are_taken_from_the_hubs_files(tmp_path, tts):
    pyarrow = pytest.importorskip('pyarrow')
    parquet = pytest.importorskip('pyarrow.parquet')
    contexts = ['Tom ran. He met Mr. Hall.', 'Ann cooked. It burned!', 'Bo fell. "Ouch." He stood up.']
    right = ['Mr. Hall smiled.', 'She ate it.', 'He went on.']
    wrong = {'sSC': ['Mr. Hall died.', 'She won.', 'He flew.'],
             'tSC': ['He went on.', 'Mr. Hall smiled.', 'She ate it.']}
    for task, voice in itertools.product(wrong, ('af_bella', 'am_puck')):
        rows = [{'id': 7 + i, 'correct_text': f'{contexts[i]} {right[i]}', 'correct_audio': {'bytes': b'', 'path': ''},
                 'negative_text': f'{contexts[i]} {wrong[task][i]}', 'negative_audio': {'bytes': b'', 'path': ''}}
                for i in range(3)]
        folder = tmp_path / 'hub' / f'{task}_{voice}'
        folder.mkdir(parents=True)
        parquet.write_table(pyarrow.Table.from_pylist(rows), folder / 'test-00000.parquet')
    hub = str(tmp_path / 'hub')
    for set, task in (('storycloze', 'sSC'), ('topic_storycloze', 'tSC')):
        expected = {str(7 + i): {'mutual': contexts[i], 'correct': right[i], 'incorrect': wrong[task][i]}
                    for i in range(3)}
        assert texts_of(set=set, source=hub) == expected
        assert texts_of(set=set, source=f'{hub}/{task}_am_puck/test-00000.parquet') == expected
    with pytest.raises(Refused, match='no .parquet of tsc in it'):
        texts_of(set='topic_storycloze', source=f'{hub}/sSC_am_puck/test-00000.parquet')
    main(Config(set='topic_storycloze', source=hub, out=str(tmp_path / 'cm' / 'tSC'), tts=tts, voices='a', max_items=1))
    item, = tasks.multispeaker.cross_modal(tmp_path / 'cm')
    assert item['rows'] == ('tSC', 'tSC/a') and item['wrong']['ending'][0] == 'He went on.'

@pytest.mark.parametrize('right, wrong', [
    ('A b. C d.', 'A b. C d.'), ('Tom ran.', 'Ann ran.'), ('Mr. A ran.', 'Mr. B ran.'), ('A b. C d.', 'A b. C d. E.')])
def test_stories_that_share_no_sentence_or_do_not_differ_are_one_line(right, wrong):
    with pytest.raises(Refused, match='story x: expected two stories that begin with the same sentences'):
        split_stories('x', right, wrong)

# --------------------------------------------------------------------------------------------------
# SpokenSwag

SWAG = ['', 'video-id', 'fold-ind', 'startphrase', 'sent1', 'sent2', 'gold-source', 'ending0', 'ending1', 'ending2',
        'ending3', 'label']

def make_swag(path, n):
    """SWAG's csv: n gold items, the right ending is number i % 4; every third has an item besides that is not gold."""
    rows = []
    for i in range(n):
        sent1 = f'Someone walks in {i}.'
        sent2 = 'He'
        endings = [f'sits down {i}.', f'eats a chair {i}.', f'is green {i}.', f'flies {i}.']
        rows.append((i, f'lsmdc{i % 2}', 100 + i, f'{sent1} {sent2}', sent1, sent2, 'gold', *endings, i % 4))
        if i % 3 == 0:
            rows.append((i, f'lsmdc{i % 2}', 900 + i, f'{sent1} {sent2}', sent1, sent2, 'gen', *endings, 0))
    write_csv(path, SWAG, rows)
    return str(path)

def test_spokenswag_pairs_are_those_of_the_papers_code(tmp_path):
    source = make_swag(tmp_path / 'train.csv', 200)
    cfg = Config(set='spokenswag', source=source, out='o', voices='af_heart,am_fenrir,bf_emma,bm_george')
    pieces = pieces_of(cfg)
    assert len(pieces) == 600
    voices = collections.Counter()
    wrong_places = collections.Counter()
    for i in range(200):
        (voice, *prompt), (voice2, *chosen), (voice3, *rejected) = pieces[3 * i:3 * i + 3]
        name = f'lsmdc{i % 2}_{100 + i}'
        endings = [f'He sits down {i}.', f'He eats a chair {i}.', f'He is green {i}.', f'He flies {i}.']
        assert prompt == [f'{name}/prompt', f'{name}_prompt', f'Someone walks in {i}.']
        assert chosen == [f'{name}/chosen', f'{name}_chosen', endings[i % 4]]
        assert rejected[:2] == [f'{name}/rejected', f'{name}_rejected']
        assert voice == voice2 == voice3
        assert rejected[2] in endings and rejected[2] != chosen[2]
        voices[voice] += 1
        wrong_places[(endings.index(rejected[2]) - i) % 4] += 1
    # Shares of 1/4 and 1/3, three standard errors.
    assert set(voices) == {'af_heart', 'am_fenrir', 'bf_emma', 'bm_george'} and max(voices.values()) < 50 + 3 * 6.1
    assert set(wrong_places) == {1, 2, 3} and max(wrong_places.values()) < 66.7 + 3 * 6.7
    assert pieces_of(cfg) == pieces
    few = pieces_of(Config(**{**cfg.__dict__, 'max_items': 7}))
    assert few == pieces[:21] # an item's draws are its own
    assert pieces_of(Config(**{**cfg.__dict__, 'seed': 1})) != pieces

def test_swag_as_parquet_gives_the_same_pairs(tmp_path):
    parquet = pytest.importorskip('pyarrow.parquet')
    tables = pytest.importorskip('pyarrow.csv')
    source = make_swag(tmp_path / 'train.csv', 5)
    parquet.write_table(tables.read_csv(source), tmp_path / 'train.parquet')
    from_csv, from_parquet = (pieces_of(Config(set='spokenswag', source=str(tmp_path / name), out='o', voices='a,b'))
                              for name in ('train.csv', 'train.parquet'))
    assert from_csv == from_parquet

def test_from_swag_to_two_steps_of_dpo(tmp_path, tts):
    """make_spoken -> tokenize_speech -> dpo.py on the shipped model, with the shipped encoder."""
    source = make_swag(tmp_path / 'train.csv', 4)
    audio = tmp_path / 'spokenswag'
    cfg = Config(set='spokenswag', source=source, out=str(audio), tts=tts)
    main(cfg)
    assert calls(tmp_path) == 12
    main(cfg)
    assert calls(tmp_path) == 12
    spoken = {u['id']: u for u in utterances(audio)}
    assert len(spoken) == 12
    for i in range(4):
        item = f'lsmdc{i % 2}_{100 + i}'
        speaker, = {spoken[f'{item}/{part}']['speaker'] for part in dpo.PARTS}
        assert speaker in ('af_heart', 'am_fenrir', 'bf_emma', 'bm_george')
        assert spoken[f'{item}/prompt']['text'] == f'Someone walks in {i}.'
    tokenize_speech.main(tokenize_speech.Config(audio=str(audio), out=str(tmp_path / 'units'), device='cpu'))
    dpo.main(dpo.Config(
        data=str(tmp_path / 'units'), init=str(ROOT / 'tiny/slm'), out=str(tmp_path / 'dpo'), eot=True, batch=2,
        micro_batch=2, block_size=256, max_steps=2, dtype='float32', device='cpu', warmup=0.5))
    log = [json.loads(line) for line in (tmp_path / 'dpo' / 'log.jsonl').read_text().splitlines()]
    losses = [line['loss'] for line in log if 'margin' in line]
    assert len(losses) == 2 and losses[0] == pytest.approx(0.6931, abs=1e-3) # ln 2: the start is the reference
    dropped = tmp_path / 'dpo' / 'dropped.jsonl'
    assert not dropped.exists() or not dropped.read_text()

@pytest.mark.parametrize('change, message', [
    (('gold,', 'silver,'), 'no items'), ((',label', ',labels'), 'no column label; expected'),
    (('.,0\n', '.,5\n'), "train.csv:2: label is '5', expected 0 to 3"),
    (('Someone walks in 0.', ''), 'item lsmdc0_100 has no text for prompt'),
    (('lsmdc0,102', 'lsmdc0,100'), "two items would be called 'lsmdc0_100'")])
def test_a_damaged_swag_is_one_line(tmp_path, change, message):
    source = tmp_path / 'train.csv'
    make_swag(source, 3)
    text = source.read_bytes().decode().replace('\r\n', '\n')
    source.write_text(text.replace(*change))
    with pytest.raises(Refused, match=message):
        pieces_of(Config(set='spokenswag', source=str(source), out='o', voices='a'))

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
    ({'set': 'x'}, "set is 'x', expected one of storycloze, topic_storycloze, copa"),
    ({'tts': 'say {text}'}, r'\{out\} must stand in it')])
def test_bad_settings_are_one_line(settings, message):
    with pytest.raises(Refused, match=message):
        Config(**{'source': 's', 'out': 'o', **settings})
