"""
The tokens of a shard's words, of which interleave.py makes the texts of millions of documents without tokenizing each.
"""
import re

import numpy as np


class WordTable:
    """Tokens of a shard's distinct words, each tokenized once. A text has the tokens of its words if

    1. no token has a space after another character, so that none covers parts of two words (splits_at_spaces);
    2. the words meet at a space: the right one is ' ' and a character that is no space, the left one ends in none; and
    3. this was found true of one pair with the same (last character, first two characters) where they meet: what a
       pre-tokenizer or normalizer does at the boundary depends only on those.
    A document with a pair of words that breaks a condition is `exact`: its texts are joined and tokenized one by one.
    .tokens, .first, .count: word w has tokens[first[w]:first[w] + count[w]]; .bare[w]: w without leading space.
    """
    def __init__(self, shard, tokenizer, splits):
        index = {word: i for i, word in enumerate(shard.table)}
        self.bare = np.array([index.setdefault(word.lstrip(), len(index)) for word in shard.table], np.int64)
        self.strings = list(index)
        encoded = tokenizer.encode_batch(self.strings) if self.strings else []
        self.count = np.array([len(ids) for ids in encoded], np.int64)
        self.first = np.cumsum(self.count) - self.count
        self.tokens = np.array([i for ids in encoded for i in ids], np.int32)
        self.exact = self._exact(shard, tokenizer, encoded, splits)

    def _exact(self, shard, tokenizer, encoded, splits):
        words = np.asarray(shard.word)
        doc = np.repeat(np.arange(len(shard.offsets) - 1), np.diff(shard.offsets))
        exact = np.zeros(len(shard.offsets) - 1, bool)
        # A word that ends in a space breaks condition 2, and strip() would change it as a last word.
        ends_in_space = np.array([word[-1:].isspace() for word in shard.table], bool)
        exact[doc[ends_in_space[words]]] = True
        pair_start = np.flatnonzero(doc[1:] == doc[:-1]) # words that another one of their document follows
        if not len(pair_start):
            return exact
        spaced = np.array([w[:1] == ' ' and len(w) > 1 and not w[1].isspace() for w in shard.table], bool)
        endings, beginnings = {}, {}
        ending = np.array([endings.setdefault(w[-1:], len(endings)) for w in shard.table], np.int64)
        beginning = np.array([beginnings.setdefault(w[:2], len(beginnings)) for w in shard.table], np.int64)
        boundary = ending[words[pair_start]] * len(beginnings) + beginning[words[pair_start + 1]]
        _, sample, kind = np.unique(boundary, return_index=True, return_inverse=True)
        pairs = [(words[i], words[i + 1]) for i in pair_start[sample]]
        joined = tokenizer.encode_batch([self.strings[a] + self.strings[b] for a, b in pairs])
        holds = np.array([splits and list(ids) == [*encoded[a], *encoded[b]] for ids, (a, b) in zip(joined, pairs)])
        exact[doc[pair_start[~(holds[kind] & spaced[words[pair_start + 1]])]]] = True
        return exact

def splits_at_spaces(tokenizer):
    """True if no token spells a space after another character: then no token can cover parts of two words."""
    return not any(re.search(r'\S ', tokenizer.decode([i])) for i in range(tokenizer.size))
