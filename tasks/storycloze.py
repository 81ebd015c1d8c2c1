"""
StoryCloze (Mostafazadeh et al. 2016): four sentences, a right and a wrong ending; spoken (Hassid et
al. 2023) or as text.

    ssc, tsc     ROOT/N_NAME.wav as distributed: file 2k is the right story k, file 2k+1 the wrong one
    storycloze   ROOT, or ROOT/*.csv: InputStoryid, InputSentence1..4, RandomFifthSentenceQuiz1 and 2, AnswerRightEnding
                 (in copies without InputStoryid an item's id is its line)

Pairs are matched by their numbers, never by their order in a listing: every number from 0 to an odd
one must be there once. Spoken stories are whole waves, without the place where the ending begins.
"""
from pathlib import Path

from configurator import Refused
from files import read_table, visible

SENTENCES = [f'InputSentence{i}' for i in range(1, 5)]
ENDINGS = ['RandomFifthSentenceQuiz1', 'RandomFifthSentenceQuiz2']
COLUMNS = [*SENTENCES, *ENDINGS, 'AnswerRightEnding']

def spoken(root):
    """Items of one folder of numbered waves."""
    for k, right, wrong in numbered_pairs(root):
        yield {'id': str(k), 'rows': ('',), 'right': {'joined': right}, 'wrong': {'joined': wrong}}

def numbered_pairs(folder):
    """Yields (k, path of file 2k, path of file 2k+1) for a folder of N_NAME.wav."""
    files = {}
    for path in visible(folder, '*.wav'):
        number = path.name.replace('+', '_').split('_')[0].split('.')[0]
        if not number.isdecimal():
            raise Refused(f"{path}: expected a name that begins with its number, as 0_story.wav")
        if int(number) in files:
            raise Refused(f"{path}: number {number} comes twice, in {files[int(number)].name} too")
        files[int(number)] = path
    if not files:
        raise Refused(f"{folder}: no .wav in it; expected 0_NAME.wav (right), 1_NAME.wav (wrong), ...")
    last = max(files) | 1
    if missing := [n for n in range(last + 1) if n not in files]:
        names = ', '.join(f'{n}_*.wav' for n in missing[:10])
        raise Refused(f"{folder}: {len(missing)} files of numbers 0..{last} are missing: {names}")
    for n in range(0, last, 2):
        right, wrong = files[n], files[n + 1]
        if any(word in right.name.lower() for word in ('incorrect', 'negative', 'wrong')):
            raise Refused(f"{right}: an even number is a right story, its name says otherwise")
        yield n // 2, right, wrong

def check_files(folder, names, source, pattern='*.wav'):
    """Refuses a folder whose files of the pattern are not exactly those of names (a set), and lists the differences."""
    files = {path.name for path in visible(folder, pattern)}
    if missing := sorted(names - files):
        raise Refused(f"{folder}: {len(missing)} files named in {source} and missing: {', '.join(missing[:10])}")
    if extra := sorted(files - names):
        raise Refused(f"{folder}: {len(extra)} files not named in {source}: {', '.join(extra[:10])}")

def text(root):
    """Items of the csv files, as text. If there are several files, `rows` is the name of the file."""
    root = Path(root)
    paths = [root] if root.is_file() else visible(root, '*.csv')
    if not paths:
        raise Refused(f"{root}: no .csv in it; expected StoryCloze's val and test csv with {', '.join(COLUMNS)}")
    for path in paths:
        rows = ('',) if len(paths) == 1 else (path.stem,)
        for line_number, line in _read_csv(path):
            prompt = ' '.join(line[column].strip() for column in SENTENCES)
            candidates = [{'prompt': (prompt, None), 'ending': (line[column].strip(), None)} for column in ENDINGS]
            answer = int(line['AnswerRightEnding']) - 1
            id = line.get('InputStoryid') or f'{path.stem}:{line_number}'
            yield {'id': id, 'rows': rows, 'right': candidates[answer], 'wrong': candidates[1 - answer]}

def _read_csv(path):
    """Yields (line number, {column: value}) of each line."""
    for place, line in read_table(path, COLUMNS):
        if line['AnswerRightEnding'] not in ('1', '2') or not all(line[column].strip() for column in COLUMNS):
            raise Refused(f"{place}: expected every column filled, AnswerRightEnding 1 or 2, "
                          f"got {line['AnswerRightEnding']!r}")
        yield place.rpartition(':')[2], line
