"""
Spoken Wikipedia Corpora, English (https://nats.gitlab.io/swc): articles read by volunteers, partly with word times;
395 h (SIMS Table 4: 750).

    python -m corpora.swc --download --root=data --subset=en
    python tokenize_speech.py --corpus=swc --audio=data/english --out=...

    english/ARTICLE/aligned.swc     XML: <article> ... <prop key="reader.name" value="..."/> ... sentences of
                                    <t>Word<n pronunciation="word" start="1230" end="1540"/></t> <t>.</t>
                                    times in ms from the beginning of the audio; an <n> without them was not found there
    english/ARTICLE/audio.ogg       or audio1.ogg, audio2.ogg, ...: the times continue from part to part

A recording is divided into runs of words that have times, in pieces of at most a minute with text
and words, and the audio before, between and after them, which is yielded without text if it is
longer than a second (an article that is not read as written is still speech). A token's punctuation
belongs to the word before it.
"""
import os
import re
from xml.etree import ElementTree

from configurator import Refused
from corpora.download import script
from corpora.tree import files, pieces, utterance
from speech.audio import BadAudio, seconds_and_rate

SUBSET = "the corpus's folder english"
URL = ('https://corpora.uni-hamburg.de/hzsk/de/islandora/object/file:swc-2.0_en-with-audio/datastream/TAR/'
       'en-with-audio.tar')
SUBSETS = {'en': ((URL, '', None),)}
SILENCE = 1.0 # seconds; audio without words up to this length is taken for silence

def utterances(root):
    articles = {} # {article: paths of its audio}
    for name, path in files(root, '.ogg', 'ARTICLE/audio', SUBSET).items():
        if not re.fullmatch(r'audio\d*', os.path.basename(name)):
            raise Refused(f"{path}: expected audio.ogg, or audio1.ogg and so on; move it away")
        articles.setdefault(os.path.dirname(name), []).append(path)
    aligned = {os.path.dirname(name): path for name, path in files(root, '.swc', 'ARTICLE/aligned', SUBSET).items()}
    for article in sorted({*articles, *aligned}, key=lambda name: name + '/'):
        runs, speaker = _words(aligned[article]) if article in aligned else ([], None)
        parts = articles.get(article, [os.path.join(root, article, 'audio.ogg')])
        offset = 0.0 # where the part begins, on the clock of the article's times
        for p, path in enumerate(sorted(parts, key=_part_number)):
            seconds = _seconds(path, is_last=p + 1 == len(parts))
            part_end = float('inf') if seconds is None else offset + seconds
            part_runs = [[(start - offset, end - offset, word) for start, end, word in run
                          if offset <= start < part_end] for run in runs]
            for i, (start, end, words) in enumerate(_divide(part_runs, seconds)):
                text = ' '.join(word for word, _, _ in words) if words else None
                yield utterance(f'{article}/{p}/{i:05d}', path, start, end, text, speaker, words)
            offset += seconds or 0

def _part_number(path):
    return int(re.search(r'(\d*)\.ogg$', path)[1] or 0)

def _seconds(path, is_last):
    """Seconds of a part; None for a last part that cannot be used, which tokenize_speech.py counts as a failure."""
    try:
        return seconds_and_rate(path)[0]
    except BadAudio as e:
        if is_last:
            return None
        raise Refused(f"{path}: cannot be used ({e.kind}: {e.why}), so the times in the parts after it are unknown; "
                      "unpack it again, or move its article away") from None

def _divide(runs, seconds):
    """Yields (start, end, words) of all of a recording but silence.

    words: [[word, start, end]], in seconds from start, or None.
    """
    covered = 0.0 # seconds of the recording that are dealt with
    for run in runs:
        for piece in pieces(run):
            start, end = piece[0][0], piece[-1][1]
            if start - covered > SILENCE:
                yield covered, start, None
            yield start, end, [[word, round(a - start, 3), round(b - start, 3)] for a, b, word in piece]
            covered = max(covered, end)
    if seconds is not None and seconds - covered > SILENCE:
        yield covered, None, None

def _words(path):
    """-> (runs of words that have times, [[(start, end, word), ...], ...] in seconds; the reader's name or None)."""
    try:
        article = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, OSError) as e:
        raise Refused(f"{path}: expected XML ({e}); unpack the archive again") from None
    tokens = list(article.iter('t'))
    if article.tag != 'article' or not tokens:
        raise Refused(f"{path}: expected <article> with tokens <t>, got <{article.tag}> with {len(tokens)}")
    runs = [[]]
    for token in tokens:
        text = ''.join(token.itertext()).strip()
        spoken = list(token.iter('n')) # the spoken words of the token: two for 1990
        try:
            times = [(int(n.get('start')) / 1000, int(n.get('end')) / 1000) for n in spoken
                     if 'start' in n.attrib or 'end' in n.attrib]
        except (TypeError, ValueError): # TypeError: one of the two is missing
            raise Refused(f"{path}: '{text}' has no start and end in ms: {[n.attrib for n in spoken]}") from None
        if spoken and len(times) == len(spoken) and text:
            runs[-1].append((times[0][0], times[-1][1], text))
        elif spoken or any(map(str.isalnum, text)): # a word without times
            runs.append([])
        elif runs[-1]: # punctuation
            start, end, word = runs[-1][-1]
            runs[-1][-1] = (start, end, word + text)
    readers = [prop.get('value') for prop in article.iter('prop') if prop.get('key') == 'reader.name']
    return runs, readers[0] if readers else None

if __name__ == '__main__':
    script(utterances, SUBSETS)
