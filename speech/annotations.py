"""
Words and their times in the files of annotation tools that are not JSON, read as segments.

    TextGrid         Praat, MFA, WebMAUS: long, short, chronological, or a collection of several
    ELAN             .eaf, whose XML may have no DTD
    CTM              Kaldi, NeMo: recording, channel, begin, duration, word; any number of recordings
    SRT, WebVTT      a cue is a segment; times inside it (<00:01.500>) are times of words
    labels           Audacity: start, end and label, separated by tabs; start, end, text in ms of whisper's .tsv

The tier of words of a TextGrid or of ELAN is named words, word, NAME - words, ORT or ORT-MAU. All
times become seconds.
"""
import html
import re
from typing import NamedTuple
from xml.etree import ElementTree

from configurator import Refused


class Segment(NamedTuple):
    """A part of a recording."""
    start: float | None # seconds; None where unknown
    end: float | None
    text: str | None # with the spaces that its words have
    words: list | None # [(word, start, end)]; None where the text alone is known

# --------------------------------------------------------------------------------------------------
# tiers

def words_tier(source, tiers):
    """The one tier of words as a segment. tiers: [(name, [(start, end, label)] or None for points)]."""
    rows = [rows for name, rows in tiers
            if rows is not None and re.fullmatch(r'(.* - )?words?|ort(-mau)?', str(name).strip().casefold())]
    if len(rows) != 1:
        names = ', '.join(repr(name) for name, _ in tiers) or 'none'
        raise Refused(f"{source}: expected one tier 'words' (or 'NAME - words'), its tiers are {names}")
    return Segment(None, None, None, [(label.strip(), start, end) for start, end, label in rows[0] if label.strip()])

# All forms of a TextGrid hold the same values. Praat reads the free-standing numbers, the strings
# and the <flags>, and takes all other text as comment.
TEXTGRID = re.compile(r'"((?:[^"]|"")*)"|(?<!\S)([-+]?\d[^\s]*)(?!\S)|(?<!\S)(<\w+>)|!.*')
N_FIELDS = {'IntervalTier': 3, 'TextTier': 2} # of an item: its times, then its text

def _textgrid_tokens(text):
    """The values of a TextGrid in order: numbers as float, strings and flags as str."""
    tokens = []
    for match in TEXTGRID.finditer(text):
        if match.group().startswith('!'): # a comment
            continue
        string, number, flag = match.groups('')
        tokens.append(float(number) if number else flag or string.replace('""', '"'))
    return tokens

def _row(tokens, i, kind):
    """The item of a tier that begins at token i: (start, end, label) or (time, mark)."""
    row = tokens[i:i + N_FIELDS[kind]]
    if [type(x) for x in row] != [float] * (N_FIELDS[kind] - 1) + [str]:
        raise ValueError
    return row

def _tiers(tokens, i):
    """-> tiers that begin at token i with xmin, xmax, <exists> and their number; the token behind them."""
    tiers = []
    n_tiers = int(tokens[i + 3])
    i += 4
    for _ in range(n_tiers):
        kind, name, _, _, size = tokens[i:i + 5]
        end = i + 5 + int(size) * N_FIELDS[kind]
        if end > len(tokens):
            raise ValueError
        rows = [_row(tokens, j, kind) for j in range(i + 5, end, N_FIELDS[kind])]
        tiers.append((name, rows if kind == 'IntervalTier' else None))
        i = end
    return tiers, i

def _chronological_tiers(tokens):
    """Tiers of a file that lists the items of all tiers by time, each after the number of its tier."""
    i = 4 + 4 * int(tokens[3])
    kinds = tokens[4:i:4]
    rows = [[] if kind == 'IntervalTier' else None for kind in kinds]
    while i < len(tokens):
        tier = int(tokens[i]) - 1
        if tier < 0:
            raise ValueError
        row = _row(tokens, i + 1, kinds[tier])
        if rows[tier] is not None:
            rows[tier].append(row)
        i += 1 + len(row)
    return list(zip(tokens[5::4], rows))

def textgrid(source, text):
    grids = []
    try:
        tokens = _textgrid_tokens(text)
        if tokens[0] == 'ooTextFile' and tokens[1] == 'Collection':
            i = 3
            for _ in range(int(tokens[2])):
                kind, name = tokens[i:i + 2]
                if kind != 'TextGrid':
                    raise ValueError
                tiers, i = _tiers(tokens, i + 2)
                grids.append((str(name), tiers))
        elif tokens[0].startswith('ooTextFile'):
            grids.append((None, _tiers(tokens, 2)[0]))
        else:
            grids.append((None, _chronological_tiers(tokens)))
    except (IndexError, ValueError, KeyError, TypeError, OverflowError, AttributeError):
        raise Refused(f"{source}: not a whole TextGrid, or a collection of anything else") from None
    for name, tiers in grids:
        yield name, [words_tier(source, tiers)]

def elan(source, text):
    if '<!DOCTYPE' in text or '<!ENTITY' in text:
        raise Refused(f"{source}: XML with a DTD, which ELAN does not write; it is not read")
    try:
        root = ElementTree.fromstring(text)
        slots = {slot.get('TIME_SLOT_ID'): slot.get('TIME_VALUE') for slot in root.iter('TIME_SLOT')}
        seconds = {name: None if ms is None else int(ms) / 1000 for name, ms in slots.items()}
        tiers = []
        for tier in root.iter('TIER'):
            # An annotation that refers to one of another tier has no times of its own.
            rows = [(seconds.get(item.get('TIME_SLOT_REF1')), seconds.get(item.get('TIME_SLOT_REF2')),
                     item.findtext('ANNOTATION_VALUE') or '') for item in tier.iterfind('ANNOTATION/*')]
            tiers.append((tier.get('TIER_ID'), rows))
    except (ElementTree.ParseError, ValueError) as e:
        raise Refused(f"{source}: not a whole file of ELAN ({e!r})") from None
    yield None, [words_tier(source, tiers)]

# --------------------------------------------------------------------------------------------------
# lines

def ctm(source, text):
    recordings = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith(';;'): # a comment
            continue
        try:
            name, channel, start, duration, word = line.split()[:5]
            row = word.replace('<space>', ' '), float(start), float(start) + float(duration)
        except ValueError:
            raise Refused(f"{source}:{number}: expected RECORDING CHANNEL BEGIN DURATION WORD, "
                          f"got {line[:40]}") from None
        recordings.setdefault((name, channel), []).append(row)
    for (name, _), words in recordings.items():
        yield name, [Segment(None, None, None, words)]

def labels(source, text):
    lines = text.splitlines()
    units_a_second = 1
    if lines[0].startswith('start'):
        units_a_second = 1000
        lines[0] = ''
    segments = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith('\\'): # the frequencies of the label before it
            continue
        try:
            start, end, label = line.split('\t', 2)
            times = [float(time.replace(',', '.')) / units_a_second for time in (start, end)]
        except ValueError:
            raise Refused(f"{source}:{number}: expected START, END, TEXT with tabs between, got {line[:40]}") from None
        if label.startswith('"') and '""' in label: # as csv.writer quotes it
            label = label[1:-1].replace('""', '"')
        label = re.sub(r'^\[\[[^]]*\]\]', '', label) # WhisperX puts the speaker first
        segments.append(Segment(*times, label, None))
    yield None, segments

# --------------------------------------------------------------------------------------------------
# subtitles

STAMP = r'\d[\d:]*[.,]\d+'
CUE = re.compile(rf'({STAMP})[ \t]*-->[ \t]*({STAMP})[^\n]*\n((?:[^\n]+\n?)*)')

def _seconds(stamp):
    """'1:02:03,5' or '02:03.5' -> seconds."""
    seconds = 0
    for part in stamp.replace(',', '.').split(':'):
        seconds = 60 * seconds + float(part)
    return seconds

def _without_tags(text):
    return html.unescape(re.sub(r'<[^>]*>|\{\\[^}]*\}', '', text)).replace('\n', ' ')

def subtitles(source, text):
    has_word_times = re.search(f'<{STAMP}>', text)
    segments = []
    last_line = ''
    for start, end, content in CUE.findall('\n'.join(text.splitlines())):
        lines = [line for line in content.split('\n') if line.strip()]
        plain = [_without_tags(line).strip() for line in lines]
        if has_word_times and plain[:1] == [last_line]: # captions that roll up show each line again
            lines = lines[1:]
        last_line = plain[-1] if plain else last_line
        pieces = re.split(f'<({STAMP})>', '\n'.join(lines)) # words, stamp, words, ...
        try:
            edges = [_seconds(stamp) for stamp in (start, *pieces[1::2], end)]
        except ValueError:
            raise Refused(f"{source}: no time of a subtitle: {start} --> {end}") from None
        texts = list(map(_without_tags, pieces[::2]))
        words = [word for word in zip(texts, edges, edges[1:]) if word[0].strip()]
        segments.append(Segment(edges[0], edges[-1], ''.join(texts), words if len(edges) > 2 else None))
    yield None, segments

# What a file begins with, by format, and its reader: (source, text) -> (recording's name or None, segments), ...
FORMATS = {
    'TextGrid': (r'File type|"Praat chronological', textgrid),
    'ELAN': (r'<\?xml|<ANNOTATION_DOCUMENT', elan),
    'SRT or WebVTT': (r'WEBVTT|(\d+\s*\n)?\d+:\d+[\d:]*[.,]\d+[ \t]*-->', subtitles),
    'labels': (r'start\tend\ttext|[\d.,]+\t[\d.,]+\t[^\t\n]*(\n|$)', labels),
    'CTM': (r'(;;.*\n)*\S+[ \t]+\S+[ \t]+[\d.]+[ \t]+[\d.]+[ \t]+\S', ctm),
}
