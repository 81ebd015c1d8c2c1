"""
Scores of texts: auto-BLEU and self-BLEU of bigrams with the tokenization of the papers' code, and word errors.
"""
import math
import re
from collections import Counter

from speech.words import edit_distance

ALWAYS = re.compile(r'[;@#$%&*?!\[\](){}<>«»“”‘’„\u2012-\u2015]|``|--|\.{2,}|[:,](?!\d)') # apart wherever they stand

CLITIC = re.compile(r"(?<=[^'])('[smd]|'ll|'re|'ve|n't|')$", re.I) # what a word may end in

JOINED = [re.compile(rf'\b({a})({b})', re.I) for a, b in ( # two words written as one
    ('can', r'not\b'), ('d', r"'ye\b"), ('gim', r'me\b'), ('gon', r'na\b'), ('got', r'ta\b'), ('lem', r'me\b'), ('more', r"'n\b"),
    ('wan', r'na(?=\s)'))]

def words(text):
    """Words of English text, cut as NLTK's NLTKWordTokenizer does (Penn Treebank): what auto-BLEU is defined on.

    A period is a word of its own only where the text ends: "It's a dog. It's" gives It 's a dog. It 's
    """
    text = re.sub(r'(^|[ (\[{<])("|\'\')', r'\1 `` ', text.strip()) # quotes that open, then those that close
    text = re.sub(r"(?<!\.)\.(?=[\])}>\"'»”’ ]*$)", ' . ', text)
    text = ALWAYS.sub(r' \g<0> ', re.sub(r'"|\'\'', " '' ", text))
    out = []
    for word in text.split():
        if re.match(r"`\w|'(?!(re|ve|ll|[mtsdn])\b)\w", word, re.I): # a quote that opens
            out.append(word[0])
            word = word[1:]
        ends = []
        while (cut := CLITIC.search(word)) and word != "''":
            ends.insert(0, cut[1])
            word = word[:cut.start()]
        out += [word, *ends]
    text = f" {' '.join(out)} "
    for pair in JOINED:
        text = pair.sub(r' \1 \2 ', text)
    return text.split()

def bigrams(text):
    tokens = words(text)
    return list(zip(tokens, tokens[1:]))

def auto_bleu2(text):
    """Share of bigrams that occur more than once in the text; 0 where it has none (slamkit)."""
    found = bigrams(text)
    counts = Counter(found)
    return sum(counts[b] > 1 for b in found) / len(found) if found else 0.0

def self_bleu2(texts):
    """For each text its BLEU-2 with all others as references, without smoothing; None where it has no bigram.

    BLEU-2 = brevity * sqrt(p1 p2); p_k: share of its k-grams, each counted at most as often as one reference has it.
    brevity = exp(min(0, 1 - r / c)), c its length, r the reference length nearest to c (the shorter of two).
    """
    tokens = [words(text) for text in texts]
    grams = [[Counter(t), Counter(zip(t, t[1:]))] for t in tokens]
    top = [{}, {}] # of each gram: the two highest counts in a text, and whose the highest is
    for i, pair in enumerate(grams):
        for order, counter in enumerate(pair):
            for gram, count in counter.items():
                most, whose, second = top[order].get(gram, (0, None, 0))
                top[order][gram] = (count, i, most) if count > most else (most, whose, max(second, count))
    lengths, out = Counter(map(len, tokens)), []
    for i, (t, pair) in enumerate(zip(tokens, grams)):
        if len(t) < 2 or len(texts) < 2:
            out.append(None)
            continue
        shares = []
        for order, counter in enumerate(pair):
            in_another = {gram: top[order][gram][0] if top[order][gram][1] != i else top[order][gram][2] for gram in counter}
            shares.append(sum(min(n, in_another[gram]) for gram, n in counter.items()) / counter.total())
        others = [n for n in lengths if n != len(t) or lengths[n] > 1]
        nearest = min(others, key=lambda n: (abs(n - len(t)), n))
        out.append(math.exp(min(0.0, 1 - nearest / len(t))) * math.sqrt(shares[0] * shares[1]))
    return out

def plain_words(text):
    """Lower case, letters, digits and apostrophes inside words."""
    return re.findall(r"[^\W_]+(?:'[^\W_]+)*", text.lower().replace('’', "'"))

def word_errors(reference, heard):
    """(errors, words of the reference): the least number of words to replace, add and leave out."""
    a, b = plain_words(reference), plain_words(heard)
    return edit_distance(a, b), len(a)
