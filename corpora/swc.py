"""
Spoken Wikipedia Corpora, English (https://nats.gitlab.io/swc): articles read by volunteers, partly with word times.

    python -m corpora.swc --download --root=data --subset=en
    python tokenize_speech.py --corpus=swc --audio=data/english --out=...

    english/ARTICLE/aligned.swc     XML: <article> ... <prop key="reader.name" value="..."/> ... sentences of
                                    <t>Word<n pronunciation="word" start="1230" end="1540"/></t> <t>.</t>
                                    times in ms from the beginning of the audio; an <n> without them was not found there
    english/ARTICLE/audio.ogg       or audio1.ogg, audio2.ogg, ...: the times go on from part to part

A recording is divided: runs of words with times, in pieces of at most a minute, are yielded with text and words; what
lies between, before and behind them, where it is longer than a second, without (an article that is not read as it is
written is still speech). A token's punctuation belongs to the word before it.
"""
import os
import re
from xml.etree import ElementTree

import soundfile

from configurator import Refused
from corpora.download import script
from corpora.tree import files, pieces, utterance

SUBSET = "the corpus's folder english"
SUBSETS = {'en': (('https://corpora.uni-hamburg.de/hzsk/de/islandora/object/file:swc-2.0_en-with-audio/datastream/TAR/'
                   'en-with-audio.tar', '', None),)}
SILENCE = 1.0 # seconds that need not hold speech

def utterances(root):
    articles = {}
    for name, path in files(root, '.ogg', 'ARTICLE/audio', SUBSET).items():
        if not re.fullmatch(r'audio\d*', os.path.basename(name)):
            raise Refused(f"{path}: expected audio.ogg, or audio1.ogg and so on; move it away")
        articles.setdefault(os.path.dirname(name), []).append(path)
    aligned = {os.path.dirname(name): path for name, path in files(root, '.swc', 'ARTICLE/aligned', SUBSET).items()}
    for article in sorted({*articles, *aligned}, key=lambda name: name + '/'):
        runs, speaker = _words(aligned[article]) if article in aligned else ([], None)
        parts = sorted(articles.get(article, [os.path.join(root, article, 'audio.ogg')]), key=_number)
        offset = 0.0
        for p, path in enumerate(parts):
            seconds = _seconds(path, last=p + 1 == len(parts))
            inside = [[(start - offset, end - offset, word) for start, end, word in run
                       if offset <= start and (seconds is None or start < offset + seconds)] for run in runs]
            for i, (start, end, words) in enumerate(_divided(inside, seconds)):
                text = ' '.join(word for word, _, _ in words) if words else None
                yield utterance(f'{article}/{p}/{i:05d}', path, start, end, text, speaker, words)
            offset += seconds or 0

def _number(path):
    return int(re.search(r'(\d*)\.ogg$', path)[1] or 0)

def _seconds(path, last):
    try:
        return soundfile.info(path).duration
    except soundfile.LibsndfileError as e:
        if last: # tokenize_speech.py will say so too
            return None
        raise Refused(f"{path}: cannot be opened ({e.error_string}), so the times in the parts behind it are unknown; "
                      "unpack it again, or move its article away") from None

def _divided(runs, seconds):
    """(start, end, [[word, start, end]] from start on or None), all of the recording but silence."""
    at = 0.0
    for piece in (piece for run in runs for piece in pieces(run)):
        start, end = piece[0][0], piece[-1][1]
        if start - at > SILENCE:
            yield at, start, None
        yield start, end, [[word, round(a - start, 3), round(b - start, 3)] for a, b, word in piece]
        at = max(at, end)
    if seconds is not None and seconds - at > SILENCE:
        yield at, None, None

def _words(path):
    """[[(start, end, word), ...], ...] in seconds: runs of words that all have times; and who reads."""
    try:
        article = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, OSError) as e:
        raise Refused(f"{path}: expected XML ({e}); unpack the archive again") from None
    tokens = list(article.iter('t'))
    if article.tag != 'article' or not tokens:
        raise Refused(f"{path}: expected <article> with tokens <t>, got <{article.tag}> with {len(tokens)}")
    runs = [[]]
    for token in tokens:
        text, said = ''.join(token.itertext()).strip(), list(token.iter('n')) # 1990 is said in two
        try:
            times = [(int(n.get('start')) / 1000, int(n.get('end')) / 1000) for n in said
                     if 'start' in n.attrib or 'end' in n.attrib]
        except (TypeError, ValueError): # None: one of the two is missing
            raise Refused(f"{path}: '{text}' has no start and end in ms: {[n.attrib for n in said]}") from None
        if said and len(times) == len(said) and text:
            runs[-1].append((times[0][0], times[-1][1], text))
        elif said or any(map(str.isalnum, text)): # somewhere, or not said at all
            runs.append([])
        elif runs[-1]: # punctuation
            start, end, word = runs[-1][-1]
            runs[-1][-1] = start, end, word + text
    readers = [prop.get('value') for prop in article.iter('prop') if prop.get('key') == 'reader.name']
    return runs, readers[0] if readers else None

if __name__ == '__main__':
    script(utterances, SUBSETS)
