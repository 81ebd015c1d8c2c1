"""
Folders as people have them: links, hidden files, circles. Text and tables: what is not whole is refused by its line.
"""
import gzip
import os
import re
from pathlib import Path

import numpy as np
import pytest

from configurator import Refused
from files import files_of_kind, lines, mapped, name_some, read_array, read_json, read_table, walk


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root

# --------------------------------------------------------------------------------------------------
# folders

def test_links_are_followed_and_names_are_those_of_the_links(tmp_path):
    elsewhere = touch(tmp_path / 'elsewhere', 'x/1.wav', 'x/deep/2.wav', '3.wav')
    root = touch(tmp_path / 'root', 'own.wav')
    (root / 'speaker').symlink_to(elsewhere / 'x')
    (root / 'three.wav').symlink_to(elsewhere / '3.wav')
    paths = walk(root)
    assert list(paths) == ['own.wav', 'speaker/1.wav', 'speaker/deep/2.wav', 'three.wav']
    assert paths['speaker/deep/2.wav'] == str(root / 'speaker/deep/2.wav')

def test_nothing_is_read_twice_and_circles_end(tmp_path):
    elsewhere = touch(tmp_path / 'elsewhere', 'e.wav')
    (elsewhere / 'round').symlink_to(elsewhere)
    root = touch(tmp_path / 'root', 'z/a.wav', 'b.wav')
    (root / 'a_first').symlink_to(root / 'z') # what it leads to comes later, and is read there all the same
    (root / 'z' / 'up').symlink_to(root)
    (root / 'self').symlink_to(root / 'self')
    (root / 'again.wav').symlink_to(root / 'b.wav')
    (root / 'one').symlink_to(elsewhere)
    (root / 'two').symlink_to(elsewhere)
    (root / 'e.wav').symlink_to(elsewhere / 'e.wav')
    links = []
    assert list(walk(root, links=links)) == ['b.wav', 'one/e.wav', 'self', 'z/a.wav']
    assert links == ['a_first', 'again.wav', 'e.wav', 'one/round', 'two', 'z/up']

def test_hidden_files_and_what_the_caller_writes_are_left_out(tmp_path):
    touch(tmp_path, 'a.txt', '._a.txt', '.DS_Store', '.ipynb_checkpoints/a-checkpoint.txt', 'd/.git/x.txt', 'd/b.txt',
          '__MACOSX/._a.txt', 'out/c.txt')
    assert list(walk(tmp_path, out=tmp_path / 'out')) == ['a.txt', 'd/b.txt']
    assert list(walk(tmp_path / 'out', out=tmp_path / 'out')) == ['c.txt'] # otherwise nothing would be read
    assert list(walk(tmp_path, out=tmp_path / 'not_yet')) == ['a.txt', 'd/b.txt', 'out/c.txt']
    hidden = touch(tmp_path / '.cache', 'd.txt') # a root is taken as it is named
    assert list(walk(hidden)) == ['d.txt']
    assert walk(tmp_path / 'nowhere') == {}

def test_links_to_stored_blobs_are_files_of_their_own(tmp_path):
    """As the cache of the Hugging Face hub and git-annex keep files: two of equal content are links to one blob."""
    root = touch(tmp_path, '.git/annex/blob')
    (root / 'a.wav').symlink_to(root / '.git/annex/blob')
    (root / 'b.wav').symlink_to(root / '.git/annex/blob')
    assert list(walk(root)) == ['a.wav', 'b.wav']

def test_what_is_of_another_kind_is_counted_and_named(tmp_path, capsys):
    touch(tmp_path, 'a.txt', 'B.TXT', 'c.md', 'd.md', 'units/00000/units.npy', 'units/00000/x.txt', 'units/info.json')
    (tmp_path / 'loop').symlink_to(tmp_path)
    assert list(files_of_kind(tmp_path, ('.txt',))) == ['B.TXT', 'a.txt']
    assert capsys.readouterr().out == (f"{tmp_path}: left out, as not .txt: 2 .md (c.md, d.md)\n"
                                       f"{tmp_path}: left out, as links to what is read in its own place: loop\n")
    assert name_some(['1.a', '2.a', 'x/3.A', '4.a', 'b']) == '4 .a (1.a, 2.a, 4.a, ...), 1 without suffix (b)'

# --------------------------------------------------------------------------------------------------
# text and tables

def test_lines_are_those_of_line_feeds_alone(tmp_path):
    text = '\ufeffone\u2028still one\r\n \n\x0cthree\x85\n'
    (tmp_path / 'a.txt').write_bytes(text.encode())
    (tmp_path / 'a.txt.gz').write_bytes(gzip.compress(text.encode()))
    for name in ('a.txt', 'a.txt.gz'):
        path = tmp_path / name
        assert list(lines(path)) == [(f'{path}:1', 'one\u2028still one'), (f'{path}:3', '\x0cthree\x85')]
    (tmp_path / 'log.jsonl').write_bytes('{"text": "a\u2028b"}\n{"text": ""}\n'.encode())
    assert read_json(tmp_path, 'log.jsonl', 'x') == [{'text': 'a\u2028b'}, {'text': ''}]

@pytest.mark.parametrize('data, message', [
    ('a\nCafé\n'.encode('cp1252'), r'a.txt:2: not UTF-8 .* 0xe9\); iconv -f cp1252 -t utf-8'),
    ('Café'.encode('utf-16'), r'a.txt:1: not UTF-8 .*iconv -f utf-16 -t utf-8'),
    (None, 'a.txt: no such file')])
def test_text_that_cannot_be_read_says_how_it_can(tmp_path, data, message):
    if data:
        (tmp_path / 'a.txt').write_bytes(data)
    with pytest.raises(Refused, match=message):
        list(lines(tmp_path / 'a.txt'))

def test_a_table_gives_its_rows_with_their_lines(tmp_path):
    path = tmp_path / 'a.csv'
    path.write_bytes(b'\xef\xbb\xbfid,text,more\r\n1,"He said ""yes"", twice",\r\n\r\n2,a "b" c,x\r\n')
    assert list(read_table(path, ('text', 'id'))) == [
        (f'{path}:2', {'id': '1', 'text': 'He said "yes", twice', 'more': ''}),
        (f'{path}:4', {'id': '2', 'text': 'a "b" c', 'more': 'x'})]
    path.write_text('id\ttext\n1\t"as it is, \n')
    assert list(read_table(path, ('id',), '\t')) == [(f'{path}:2', {'id': '1', 'text': '"as it is, '})]

@pytest.mark.parametrize('rows, message', [
    ('id,text\n1,a\n2,"b\n3,c\n4,"d\n', ':3: a quotation mark does not close on its line'),
    ('id,text\n1,"a" b\n', ":2: ',' expected after"),
    ('id,text\n1,"a,b\n2",c\n', ':2: a quotation mark'),
    ('id,text\n1,a,b\n', ':2: 3 cells, the header has 2'),
    ('id,text\n1\n', ':2: 1 cells, the header has 2'),
    ('id,text\n1,' + 'x' * 140_000 + '\n', ':2: field larger than field limit'),
    ('id;text\n1;a\n', "no column id, text; expected id, text, separated by ',', got 'id;text'"),
    ('id,text,id\n', 'column id comes twice'), ('', 'no column id, text'),
    ('id,text\r1,a\r', 'new-line character')])
def test_a_table_that_is_not_whole_is_refused_by_its_line(tmp_path, rows, message):
    path = tmp_path / 'a.csv'
    path.write_text(rows, newline='')
    with pytest.raises(Refused, match=message):
        list(read_table(path, ('id', 'text')))

# --------------------------------------------------------------------------------------------------
# arrays in files

def descriptors():
    return set(os.listdir('/proc/self/fd'))

def test_an_array_in_a_file_is_read_without_a_descriptor(tmp_path):
    values = np.random.default_rng(0).integers(0, 2 ** 16, 5000, dtype=np.uint16)
    np.save(tmp_path / 'a.npy', values)
    before = descriptors()
    array = read_array(tmp_path / 'a.npy', np.uint16)
    assert descriptors() == before
    np.testing.assert_array_equal(array, values)
    assert not array.flags.writeable
    (tmp_path / 'a.npy').unlink()
    part = array[100:]
    del array
    np.testing.assert_array_equal(part, values[100:]) # what is in use stays
    def is_mapped():
        return str(tmp_path / 'a.npy') in Path('/proc/self/maps').read_text()
    assert is_mapped()
    del part
    assert not is_mapped()

def test_a_part_of_a_file_is_read_and_what_is_not_there_is_refused(tmp_path):
    (tmp_path / 'a').write_bytes(bytes(range(64)))
    assert mapped(tmp_path / 'a', np.uint8, 60).tolist() == [60, 61, 62, 63]
    assert mapped(tmp_path / 'a', '<u2', 2, 2).tolist() == [0x0302, 0x0504]
    assert mapped(tmp_path / 'a', '<u2', 64).tolist() == []
    for offset, n in ((60, 3), (64, 1), (80, 1)):
        with pytest.raises(ValueError):
            mapped(tmp_path / 'a', '<u2', offset, n)

@pytest.mark.parametrize('array, message', [
    (np.zeros(3, np.int32), "int32 of shape .*, expected one row of uint16"),
    (np.zeros((3, 1), np.uint16), "uint16 of shape .*, expected one row of uint16"),
    (np.array([None]), "not a whole .npy file"), (None, "not a whole .npy file")])
def test_an_array_of_another_kind_is_refused(tmp_path, array, message):
    np.save(tmp_path / 'a.npy', np.zeros(9, np.uint16) if array is None else array)
    if array is None:
        data = (tmp_path / 'a.npy').read_bytes()
        (tmp_path / 'a.npy').write_bytes(data[:-1])
    with pytest.raises(Refused, match=re.escape(f'{tmp_path}/a.npy: ') + f'.*{message}'):
        read_array(tmp_path / 'a.npy', np.uint16)
