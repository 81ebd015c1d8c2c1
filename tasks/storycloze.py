"""
StoryCloze (Mostafazadeh et al. 2016): four sentences, the right ending and a wrong one; spoken (Hassid et al. 2023), or text.

    ssc, tsc     ROOT/N_NAME.wav as distributed: file 2k is the right story k, file 2k+1 the wrong one
    storycloze   ROOT, or ROOT/*.csv: InputStoryid, InputSentence1..4, RandomFifthSentenceQuiz1 and 2, AnswerRightEnding
                 (in copies without InputStoryid an item is known by its line)

Pairs are matched by the number, never by position in a listing: every number from 0 to an odd one must be there once.
Spoken stories are whole waves, so nothing is said of where the ending begins.
"""
import csv
from pathlib import Path

from configurator import Refused

SENTENCES, ENDINGS = [f'InputSentence{i}' for i in range(1, 5)], [f'RandomFifthSentenceQuiz{i}' for i in (1, 2)]
COLUMNS = [*SENTENCES, *ENDINGS, 'AnswerRightEnding']

def spoken(root):
    """Items of one folder of numbered waves."""
    for k, right, wrong in numbered_pairs(root):
        yield {'id': str(k), 'rows': ('',), 'right': {'joined': right}, 'wrong': {'joined': wrong}}

def numbered_pairs(folder):
    """(k, path of file 2k, path of file 2k+1) of a folder of N_NAME.wav."""
    files = {}
    for path in sorted(Path(folder).glob('*.wav')):
        number = path.name.replace('+', '_').split('_')[0].split('.')[0]
        if not number.isdecimal():
            raise Refused(f"{path}: expected a name that begins with its number, as 0_story.wav")
        if int(number) in files:
            raise Refused(f"{path}: number {number} is there twice, in {files[int(number)].name} too")
        files[int(number)] = path
    if not files:
        raise Refused(f"{folder}: no .wav in it; expected 0_NAME.wav (right), 1_NAME.wav (wrong), ...")
    last = max(files) | 1
    if missing := [n for n in range(last + 1) if n not in files]:
        raise Refused(f"{folder}: {len(missing)} files of numbers 0..{last} are missing: "
                      + ', '.join(f'{n}_*.wav' for n in missing[:10]))
    for n in range(0, last, 2):
        right, wrong = files[n], files[n + 1]
        if any(word in right.name.lower() for word in ('incorrect', 'negative', 'wrong')):
            raise Refused(f"{right}: an even number is a right story, its name says otherwise")
        yield n // 2, right, wrong

def check_files(folder, wanted, by, pattern='*.wav'):
    """Refuses a folder whose files of the pattern are not just those wanted (names), and lists which."""
    there = {path.name for path in Path(folder).glob(pattern)}
    for names, what in ((wanted - there, f"named in {by} and missing"), (there - wanted, f"not named in {by}")):
        if names:
            raise Refused(f"{folder}: {len(names)} files {what}: {', '.join(sorted(names)[:10])}")

def text(root):
    """Items of the csv, as text; `rows` is one file's name where there are several."""
    root = Path(root)
    paths = [root] if root.is_file() else sorted(root.glob('*.csv'))
    if not paths:
        raise Refused(f"{root}: no .csv in it; expected StoryCloze's val and test csv with {', '.join(COLUMNS)}")
    for path in paths:
        with open(path, newline='', encoding='utf-8-sig') as f:
            reader = csv.DictReader(f)
            if missing := [c for c in COLUMNS if c not in (reader.fieldnames or ())]:
                raise Refused(f"{path}: no column {', '.join(missing)}; expected {', '.join(COLUMNS)}")
            for row in reader:
                if row['AnswerRightEnding'] not in ('1', '2') or not all(row[c] for c in COLUMNS):
                    raise Refused(f"{path}:{reader.line_num}: expected every column filled, AnswerRightEnding 1 or 2, "
                                  f"got {row['AnswerRightEnding']!r}")
                prompt, right = ' '.join(row[c].strip() for c in SENTENCES), int(row['AnswerRightEnding']) - 1
                side = lambda i: {'prompt': (prompt, None), 'ending': (row[ENDINGS[i]].strip(), None)}
                yield {'id': row.get('InputStoryid') or f'{path.stem}:{reader.line_num}', 'rows': ('' if len(paths) == 1 else path.stem,),
                       'right': side(right), 'wrong': side(1 - right)}
