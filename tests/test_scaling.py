"""The figure of runs: its numbers are those of log.jsonl and eval.json, and a run that lacks one is named."""
import csv
import json

import pytest

from configurator import Refused
from scaling import Config, loss_curve, main, scores


def make_run(folder, source='speech', losses=(3.0, 2.0)):
    folder.mkdir(parents=True)
    (folder / 'settings.json').write_text(json.dumps({'settings': {'batch_tokens': 1000}}))
    lines = [{'step': 1, 'loss': 9.0}, *({'step': 5 * (i + 1), 'val': {f'stories/{source}': {'loss': 7.0, 'speech': loss}, 'stories/text': {'loss': 1.0}}}
             for i, loss in enumerate(losses))]
    (folder / 'log.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
    row = {'value': 0.6, 'stderr': 0.1, 'n': 24}
    (folder / 'eval.json').write_text(json.dumps({'results': {
        'loss/stories/speech/all': row, 'tiny/main/tsc/S': row, 'tiny/main/ssc/S->T': row, 'tiny/unseen/tsc/S': {**row, 'value': 0.1}}}))
    return folder

@pytest.mark.parametrize('source', ['speech', 'textless'])
def test_the_curve_is_the_speech_loss_at_the_tokens_seen(tmp_path, source):
    assert loss_curve(make_run(tmp_path / 'a', source), 'stories') == [(5000, 3.0), (10000, 2.0)]

def test_scores_are_those_of_the_voice(tmp_path):
    found = scores(make_run(tmp_path / 'a'), 'main')
    assert found.keys() == {('tsc', 'S'), ('ssc', 'S->T')} and found['tsc', 'S']['value'] == 0.6
    assert scores(tmp_path / 'a', 'unseen')['tsc', 'S']['value'] == 0.1

def test_the_figure_is_a_picture_with_its_numbers_beside_it(tmp_path):
    runs = [make_run(tmp_path / 'a'), make_run(tmp_path / 'b', 'textless', (4.0,))]
    main(Config(runs=','.join(map(str, runs)), out=str(tmp_path / 'figure.png')))
    assert (tmp_path / 'figure.png').read_bytes()[:8] == b'\x89PNG\r\n\x1a\n'
    with open(tmp_path / 'figure.csv', newline='') as f:
        rows = list(csv.DictReader(f))
    assert [(r['run'], r['x'], r['value']) for r in rows if r['panel'] == 'loss'] == [
        ('a', '5000', '3.0'), ('a', '10000', '2.0'), ('b', '5000', '4.0')]
    assert {(r['run'], r['x'], r['value'], r['n']) for r in rows if r['panel'] == 'score'} == {
        (run, x, '0.6', '24') for run in 'ab' for x in ('tsc/S', 'ssc/S->T')}

@pytest.mark.parametrize('file, script', [('settings.json', 'train.py'), ('log.jsonl', 'train.py'), ('eval.json', 'eval.py')])
def test_a_run_that_lacks_a_file_is_named(tmp_path, file, script):
    run = make_run(tmp_path / 'a')
    (run / file).write_text('{"cut')
    with pytest.raises(Refused, match=f'a/{file}: not JSON'):
        main(Config(runs=str(run), out=str(tmp_path / 'figure.png')))
    (run / file).unlink()
    with pytest.raises(Refused, match=f'a/{file}: no such file; {script} writes it'):
        main(Config(runs=str(run), out=str(tmp_path / 'figure.png')))
    assert not (tmp_path / 'figure.png').exists()
