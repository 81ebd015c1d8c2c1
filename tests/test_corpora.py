"""corpora/: miniature trees in each corpus's layout, made here."""
import json
import os
from pathlib import Path

import pytest

from configurator import Refused
from corpora.folder import utterances

LIBRISPEECH = Path(__file__).parents[2] / 'shared/data/librispeech_mini'

def test_a_folder_gives_its_audio_sorted_by_relative_path_with_the_text_beside_it(tmp_path):
    for name in ('b/two.FLAC', 'b/one.wav', 'a.ogg', 'c.d.mp3', 'notes.txt', 'cover.jpg', 'b/one.json'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / 'b/one.txt').write_text('\ufeff Grüße \n', encoding='utf-8')
    found = list(utterances(tmp_path))
    assert [u['id'] for u in found] == ['a', 'b/one', 'b/two', 'c.d']
    assert found[1] == {'id': 'b/one', 'path': str(tmp_path / 'b/one.wav'), 'start': None, 'end': None, 'text': 'Grüße',
                        'speaker': None, 'words': None}
    assert found[0]['text'] is None

def test_pipes_dangling_links_and_link_loops_are_passed_over(tmp_path):
    os.mkfifo(tmp_path / 'pipe.wav')
    (tmp_path / 'nowhere.wav').symlink_to(tmp_path / 'gone')
    (tmp_path / 'self.wav').symlink_to(tmp_path / 'self.wav')
    (tmp_path / 'again').symlink_to(tmp_path)
    (tmp_path / 'folder.wav').mkdir()
    (tmp_path / 'real.wav').touch()
    (tmp_path / 'link.wav').symlink_to(tmp_path / 'real.wav')
    assert [u['id'] for u in utterances(tmp_path)] == ['link', 'real']

@pytest.mark.parametrize('as_folder', [True, False])
def test_a_manifest_gives_its_lines_sorted_by_id(tmp_path, as_folder):
    words = [['so', 0, 0.5], ['what', None, 1.25]]
    lines = [{'id': 'z', 'audio': 'x/z.wav', 'text': 'so what', 'speaker': 's1', 'words': words, 'chapter': 7},
             {'id': 'a', 'audio': '/abs/a.wav', 'text': None}]
    (tmp_path / 'manifest.jsonl').write_text('\n\n'.join(map(json.dumps, lines)))
    (tmp_path / 'other.wav').touch() # the manifest alone decides
    a, z = utterances(tmp_path if as_folder else tmp_path / 'manifest.jsonl')
    rest = {'start': None, 'end': None}
    assert a == {'id': 'a', 'path': '/abs/a.wav', 'text': None, 'speaker': None, 'words': None} | rest
    assert z == {'id': 'z', 'path': str(tmp_path / 'x/z.wav'), 'text': 'so what', 'speaker': 's1',
                 'words': words} | rest

@pytest.mark.parametrize('line, message', [
    ('{"id": "a"', 'not a line of JSON'),
    (b'{"id": "\xff"}', 'not a line of JSON'),
    ('[1, 2]', 'expected a JSON object, got [1, 2]'),
    ('{"audio": "a.wav"}', "'id' must be a non-empty string, got None"),
    ('{"id": 7, "audio": "a.wav"}', "'id' must be a non-empty string, got 7"),
    ('{"id": "a"}', "'audio' must be a non-empty string"),
    ('{"id": "a", "audio": "a\\u0000b"}', "'audio' must be a non-empty string"),
    ('{"id": "a", "audio": "a.wav", "text": 5}', "'text' must be a string or null, got 5"),
    ('{"id": "a", "audio": "a.wav", "speaker": []}', "'speaker' must be a string or null"),
    ('{"id": "a", "audio": "a.wav", "words": "so what"}', "'words' must be a list of [word, start, end]"),
    ('{"id": "a", "audio": "a.wav", "words": [["so", 1]]}', "'words' must be a list of [word, start, end]"),
    ('{"id": "a", "audio": "a.wav", "words": [["so", NaN, 1]]}', "'words' must be a list of [word, start, end]"),
    ('{"id": "a", "audio": "a.wav", "words": [["so", "0", 1]]}', "'words' must be a list of [word, start, end]"),
])
def test_a_malformed_line_is_refused_by_file_and_line(tmp_path, line, message):
    path = tmp_path / 'list.jsonl'
    line = line if isinstance(line, bytes) else line.encode()
    path.write_bytes(b'{"id": "ok", "audio": "ok.wav"}\n\n' + line + b'\n')
    with pytest.raises(Refused) as e:
        list(utterances(path))
    assert f'{path}:3: ' in str(e.value) and message in str(e.value) and '\n' not in str(e.value)

def test_what_is_no_corpus_is_refused(tmp_path):
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'a.wav').touch()
    (tmp_path / 'none.jsonl').touch()
    for path, message in (('gone', 'no such file or folder'), ('empty', 'no utterance in it; expected .wav'),
                          ('none.jsonl', 'no utterance in it'), ('a.wav', 'expected a folder of audio or a .jsonl')):
        with pytest.raises(Refused) as e:
            list(utterances(tmp_path / path))
        assert message in str(e.value) and str(tmp_path / path) in str(e.value)
    (tmp_path / 'a.txt').write_bytes(b'\xff\xfe\xff')
    with pytest.raises(Refused, match='a.txt: expected UTF-8 text'):
        list(utterances(tmp_path))

@pytest.mark.skipif(not LIBRISPEECH.is_dir(), reason='librispeech_mini is not here')
def test_librispeech_mini_reads_as_it_is():
    found = list(utterances(LIBRISPEECH))
    assert len(found) == 134 and [u['id'] for u in found] == sorted(u['id'] for u in found)
    assert all(os.path.isfile(u['path']) and u['text'] and u['words'] for u in found)
    assert all(u['speaker'] == u['id'].split('-')[0] for u in found)
