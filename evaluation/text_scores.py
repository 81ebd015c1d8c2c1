"""
Scores of texts: auto-BLEU and self-BLEU of bigrams with the tokenization of the papers' code, and errors of words
and characters.
"""
import math
import re
from collections import Counter

from speech.words import edit_distance, plain_words, with_spaces

# Punctuation that is always a word of its own; commas and colons are where no digit follows.
PUNCTUATION = re.compile(r'[;@#$%&*?!\[\](){}<>«»“”‘’„\u2012-\u2015]|``|--|\.{2,}|[:,](?!\d)')

# Endings that are split off a word: 's, 'll, n't, ...
CLITIC = re.compile(r"(?<=[^'])('[smd]|'ll|'re|'ve|n't|')$", re.I)

# Two words that are written as one.
CONTRACTIONS = [re.compile(rf'\b({first})({second})', re.I) for first, second in (
    ('can', r'not\b'), ('d', r"'ye\b"), ('gim', r'me\b'), ('gon', r'na\b'),
    ('got', r'ta\b'), ('lem', r'me\b'), ('more', r"'n\b"), ('wan', r'na(?=\s)'))]

def words(text):
    """Words of English text, cut as NLTK's NLTKWordTokenizer does (Penn Treebank): what auto-BLEU is defined on.

    A period is a word of its own only where the text ends: "It's a dog. It's" gives It 's a dog. It 's
    """
    text = re.sub(r'(^|[ (\[{<])("|\'\')', r'\1 `` ', text.strip()) # opening quotes
    text = re.sub(r"(?<!\.)\.(?=[\])}>\"'»”’ ]*$)", ' . ', text)
    text = re.sub(r'"|\'\'', " '' ", text) # the other quotes close
    text = PUNCTUATION.sub(r' \g<0> ', text)
    out = []
    for word in text.split():
        # A quote that opens a word is not an ending.
        if re.match(r"`\w|'(?!(re|ve|ll|[mtsdn])\b)\w", word, re.I):
            out.append(word[0])
            word = word[1:]
        endings = []
        while (match := CLITIC.search(word)) and word != "''":
            endings.insert(0, match[1])
            word = word[:match.start()]
        out += [word, *endings]
    text = f" {' '.join(out)} "
    for contraction in CONTRACTIONS:
        text = contraction.sub(r' \1 \2 ', text)
    return text.split()

def bigrams(text):
    tokens = words(text)
    return list(zip(tokens, tokens[1:]))

def auto_bleu2(text):
    """Share of bigrams that occur more than once in the text; 0 where it has none (slamkit)."""
    pairs = bigrams(text)
    counts = Counter(pairs)
    return sum(counts[pair] > 1 for pair in pairs) / len(pairs) if pairs else 0.0

def _highest_counts(counters):
    """{k-gram: (its highest count in a text, the index of that text, its second highest count)}."""
    highest = {}
    for i, counter in enumerate(counters):
        for gram, count in counter.items():
            top, text, second = highest.get(gram, (0, None, 0))
            if count > top:
                highest[gram] = (count, i, top)
            else:
                highest[gram] = (top, text, max(second, count))
    return highest

def _precision(i, counter, highest):
    """p_k of self_bleu2 for text i, whose k-grams `counter` counts."""
    hits = 0
    for gram, count in counter.items():
        top, text, second = highest[gram]
        hits += min(count, second if text == i else top)
    return hits / counter.total()

def self_bleu2(texts):
    """For each text its BLEU-2 with all others as references, without smoothing; None where it has no bigram.

    BLEU-2 = brevity * sqrt(p_1 p_2). p_k: share of its k-grams that the references have, each
    counted at most as often as in the one reference that has it most. brevity = exp(min(0, 1 - r /
    c)), where c is the text's length and r the reference length nearest to c, the shorter of two.
    """
    tokens = [words(text) for text in texts]
    unigrams = [Counter(t) for t in tokens]
    pairs = [Counter(zip(t, t[1:])) for t in tokens]
    # The k-grams of all texts are counted once, not once for each text.
    highest_unigrams = _highest_counts(unigrams)
    highest_pairs = _highest_counts(pairs)
    lengths = Counter(map(len, tokens))
    scores = []
    for i, t in enumerate(tokens):
        c = len(t)
        if c < 2 or len(texts) < 2:
            scores.append(None)
            continue
        p1 = _precision(i, unigrams[i], highest_unigrams)
        p2 = _precision(i, pairs[i], highest_pairs)
        reference_lengths = [n for n in lengths if n != c or lengths[n] > 1]
        r = min(reference_lengths, key=lambda n: (abs(n - c), n))
        scores.append(math.exp(min(0.0, 1 - r / c)) * math.sqrt(p1 * p2))
    return scores

def word_errors(reference, heard, cut=plain_words):
    """(errors, words of the reference): the least number of words to replace, add and leave out.

    cut: what makes a list of words of a text. By default a letter of Chinese, Thai or another script
    without spaces is a word.
    """
    reference = cut(reference)
    return edit_distance(reference, cut(heard)), len(reference)

def character_errors(reference, heard, cut=plain_words):
    """(errors, characters of the reference) of the same words, with a blank between two that are written with one."""
    def characters(text):
        return list(''.join(with_spaces(cut(text))))
    return word_errors(reference, heard, characters)
