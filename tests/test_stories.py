"""
The corpus grammars: sizes and forms of the texts, the split, the items, and that no shortcut answers the items.

    python -m pytest tests/test_stories.py
"""
import hashlib
import math
import re
from collections import Counter

import pytest

from tiny import stories as grammar
from tiny import talk

N = 100_000
PLAIN = re.compile(r'[A-Z][A-Za-z]*(,? [A-Za-z]+)*[.]') # a sentence: words, commas, a period

@pytest.fixture(scope='module')
def train():
    return list(grammar.stories('train', N, seed=1))

@pytest.fixture(scope='module')
def items():
    return grammar.items(2000, seed=1)

def words(text):
    return re.findall('[a-z]+', text.lower())

# --------------------------------------------------------------------------------------------------
# size

@pytest.mark.slow
def test_100000_stories_are_distinct_with_600_word_types(train):
    assert len({story.text for story in train}) == N
    types = {word for story in train for word in words(story.text)}
    assert len(types) >= 600, len(types)
    assert len({story.kind for story in train}) >= 8

def test_stories_have_20_to_25_words_and_short_plain_sentences(train):
    mean = sum(len(words(story.text)) for story in train) / N
    assert 20 <= mean <= 25, mean
    for story in train:
        for sentence in (*story.sentences, story.wrong):
            assert PLAIN.fullmatch(sentence), sentence
            assert 3 <= len(sentence.split()) <= 13, sentence

def test_articles_agree_with_what_follows(train):
    for story in train:
        assert not re.search(r'\b[Aa] [aeiou]|\b[Aa]n [^aeiou]', story.text), story.text

# --------------------------------------------------------------------------------------------------
# draws and the split

def test_draws_repeat_and_a_smaller_set_begins_a_larger_one(train, items):
    assert list(grammar.stories('train', 500, seed=1)) == train[:500]
    assert grammar.items(101, seed=1) == items[:101]
    other_seed = {story.text for story in grammar.stories('train', 500, seed=2)}
    assert len(other_seed & {story.text for story in train}) < 5

def digest(documents):
    text = ''.join(document.text for document in documents[:2000])
    return hashlib.sha256(text.encode()).hexdigest()[:12]

def test_the_shipped_corpus_is_drawn_again_on_every_python(train, talked):
    """tiny/*.npz.xz hold the speech of these very texts. If they change, the speech must be synthesized again."""
    assert digest(train) == '00670361860f'
    assert digest(talked) == '4143b6e449bf'

@pytest.mark.slow
def test_evaluation_shares_no_tuple_and_no_ending_with_training(train):
    held_out = list(grammar.stories('eval', 4000, seed=1)) + list(grammar.stories('eval', 1000, seed=7))
    assert not {story.tuple for story in held_out} & {story.tuple for story in train}
    assert all(len(story.tuple) == 4 and all(story.tuple) for story in held_out)
    endings = {story.sentences[2] for story in train} | {story.wrong for story in train}
    shared = [story for story in held_out if {story.sentences[2], story.wrong} & endings]
    assert not shared, shared[:3]

def test_one_story_in_twenty_is_for_evaluation():
    share = sum(grammar._draw(3, index).held_out for index in range(20_000)) / 20_000
    assert abs(share - 1 / 20) < 0.01, share

def test_an_unknown_split_is_refused():
    with pytest.raises(grammar.Refused, match="no split 'test'"):
        next(grammar.stories('test', 1))

# --------------------------------------------------------------------------------------------------
# endings

def test_each_ending_names_who_what_and_where_of_its_tuple(train):
    for story in train[:20_000]:
        missing = set(words(' '.join(story.tuple[:3]))) - set(words(story.sentences[2]))
        assert not missing, (missing, story)

def test_right_and_wrong_are_one_sentence_with_the_alternatives_exchanged(items):
    for item in items:
        right = words(item.right)
        wrong = words(item.wrong)
        context = words(' '.join(item.context))
        assert item.right != item.wrong and abs(len(right) - len(wrong)) <= 1, item
        # The context does not tell the outcomes.
        known = set(context) | {'held', 'broke', 'kept', 'lost', 'won'}
        assert set(right) ^ set(wrong) <= known, item
        assert set(right[:1]) <= known or right[0] in ('the', 'on', 'at'), item

def test_wrong_endings_are_right_endings_of_other_stories(train):
    """The mirrored stories are drawn too. In a kind with few endings, each wrong one is also a right one."""
    weather = [story for story in train if story.kind == 'weather']
    def without_name(ending):
        return ending.split(' ', 1)[1]
    right = {without_name(story.sentences[2]) for story in weather}
    share = sum(without_name(story.wrong) in right for story in weather) / len(weather)
    assert share > 0.95, share

def test_topic_endings_come_in_pairs_of_stories_without_a_common_name_object_or_place(items):
    for a, b in zip(items[::2], items[1::2]):
        assert a.topic == b.right and b.topic == a.right
    stop = grammar.STOP | set('''got came went home left bought found used saw took ate fed looked gave picked carried
        taught lost kept won contest race key hands entered held broke hid'''.split())
    for item in items:
        context = set(words(' '.join(item.context)))
        shared = set(words(item.topic)) & context - stop
        assert not shared, (shared, item)

# --------------------------------------------------------------------------------------------------
# shortcuts

@pytest.mark.parametrize('stop', [frozenset(), grammar.STOP], ids=['all words', 'no stop words'])
@pytest.mark.parametrize('weighted', [False, True], ids=['types', 'tokens'])
def test_word_overlap_is_at_chance_on_wrong_endings_and_solves_topic_endings(items, stop, weighted):
    score = grammar.baseline(items, stop, weighted)
    assert abs(score['sSC'] - 0.5) <= 0.03 and score['tSC'] > 0.95, score

def test_baseline_counts_ties_half_and_sees_a_planted_hint():
    def baseline(right, wrong):
        item = grammar.Item('', '', ('Tom had a cat.', 'It ran.'), right, wrong, topic='No dog swam.')
        return grammar.baseline([item])
    assert baseline('A cat ran.', 'A dog ran.') == dict(sSC=1.0, tSC=1.0)
    assert baseline('A cat ran.', 'A cat ran.')['sSC'] == 0.5
    assert baseline('A pig ran.', 'A cat ran.')['sSC'] == 0.0

def grams(text):
    """The unigrams and bigrams of a text; '<' and '>' stand for its beginning and end."""
    unigrams = words(text)
    bigrams = zip(['<'] + unigrams, unigrams + ['>'])
    return unigrams + list(bigrams)

def naive_bayes(pairs):
    """score(text): log odds of right against wrong under unigram and bigram counts with add-one smoothing."""
    right = Counter(gram for pair in pairs for gram in grams(pair[0]))
    wrong = Counter(gram for pair in pairs for gram in grams(pair[1]))
    types = len(right | wrong)
    n_right = right.total() + types
    n_wrong = wrong.total() + types
    def score(text):
        return sum(math.log((right[gram] + 1) / n_right * n_wrong / (wrong[gram] + 1)) for gram in grams(text))
    return score

def share_right(pairs, score):
    """The share of (right, wrong) pairs whose right text scores higher. Ties count half."""
    points = 0
    for right, wrong in pairs:
        margin = score(right) - score(wrong)
        points += (margin > 0) / 2 + (margin >= 0) / 2
    return points / len(pairs)

def test_endings_alone_do_not_tell_right_from_wrong(train):
    score = naive_bayes([(story.sentences[2], story.wrong) for story in train[:30_000]])
    share = share_right([(item.right, item.wrong) for item in grammar.items(4000, seed=1)], score)
    assert abs(share - 0.5) <= 0.03, share # standard error: 0.008

def test_that_classifier_finds_a_word_that_only_wrong_endings_have(train, items):
    def spoil(ending):
        return ending.replace(' the ', ' no ')
    score = naive_bayes([(story.sentences[2], spoil(story.sentences[2])) for story in train[:500]])
    assert share_right([(item.right, spoil(item.right)) for item in items], score) > 0.9

def test_the_last_or_first_mentioned_alternative_is_right_half_the_time(items):
    right_is_last = 0
    total = 0
    for item in items:
        first = words(item.context[0])
        in_right = set(words(item.right))
        in_wrong = set(words(item.wrong))
        right = in_right - in_wrong
        wrong = in_wrong - in_right
        if len(right) == len(wrong) == 1 and right | wrong <= set(first):
            total += 1
            right_is_last += first.index(*right) > first.index(*wrong)
    assert total > 500
    standard_error = 0.5 / math.sqrt(total)
    assert abs(right_is_last / total - 0.5) <= 4 * standard_error, (right_is_last, total)

# --------------------------------------------------------------------------------------------------
# talk

@pytest.fixture(scope='module')
def talked():
    return list(talk.utterances(20_000, seed=1))

def test_20000_utterances_are_distinct_with_700_word_types_of_their_own(talked, train):
    assert len({utterance.text for utterance in talked}) == 20_000
    types = {word for utterance in talked for word in words(utterance.text)}
    common = types & {word for story in train for word in words(story.text)}
    assert len(types) >= 700 and 100 < len(common) < len(types) / 2, (len(types), len(common))

def test_utterances_are_one_to_three_sentences_of_6_to_14_plain_words(talked):
    for utterance in talked:
        assert 1 <= len(utterance.sentences) <= 3
        for sentence in utterance.sentences:
            assert PLAIN.fullmatch(sentence.replace('?', '.')), sentence
            assert 6 <= len(sentence.split()) <= 14, sentence
            assert not re.search(r'\b[Aa] [aeiou]|\b[Aa]n [^aeiou]', sentence), sentence

def test_utterances_repeat_and_a_smaller_set_begins_a_larger_one(talked):
    assert list(talk.utterances(300, seed=1)) == talked[:300]
    assert {utterance.kind for utterance in talked} == set(talk.KINDS)

@pytest.mark.parametrize('n, name', [(0, 'zero'), (13, 'thirteen'), (40, 'forty'), (99, 'ninety nine'),
                                     (100, 'one hundred'), (215, 'two hundred fifteen'),
                                     (8050, 'eight thousand fifty')])
def test_numbers_in_words(n, name):
    assert talk.number(n) == name

# --------------------------------------------------------------------------------------------------
# commands

def test_each_command_writes_one_text_a_line(tmp_path, talked, train, capsys):
    grammar.main(grammar.Config(n=50, out=str(tmp_path / 'stories.txt')))
    talk.main(talk.Config(n=50, out=str(tmp_path / 'talk.txt')))
    assert (tmp_path / 'stories.txt').read_text() == ''.join(story.text + '\n' for story in train[:50])
    assert (tmp_path / 'talk.txt').read_text() == ''.join(utterance.text + '\n' for utterance in talked[:50])
    grammar.main(grammar.Config(items=50))
    assert '| types | 0.500 | 1.000 |' in capsys.readouterr().out
    with pytest.raises(grammar.Refused, match='expected n >= 1'):
        grammar.Config(n=0)
