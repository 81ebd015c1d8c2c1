"""
Tests of tiny/world.py: facts that text tells and speech does not, and the items that ask for them.
"""
import re
from collections import Counter, defaultdict
from itertools import islice
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from configurator import Refused
from evaluation.likelihood import load
from tiny import stories, talk, world
from tiny.unpack import read_packed


@pytest.fixture(scope='module')
def items():
    return world.items(1000)

@pytest.fixture(scope='module')
def spoken():
    return list(world.documents(2000, spoken=True))

def words(text):
    return set(re.findall('[A-Za-z]+', text))

def all_forms(keys):
    """Every statement and every ending that tells one of the facts."""
    for name, relation in keys:
        kind = world.RELATIONS[relation]
        for form in (*kind.fact, *kind.end):
            for place in stories.LISTS['PLACE'] if '{w}' in form else ('',):
                yield stories.sentence(form.format(n=name, v=world.FACTS[name, relation], w=place))

# --------------------------------------------------------------------------------------------------
# the world

def test_every_character_has_one_value_in_every_relation_whoever_asks():
    assert len(world.FACTS) == 60 * 20
    assert len(world.OPEN) + len(world.HIDDEN) == len(world.FACTS)
    assert 0.2 < len(world.OPEN) / len(world.FACTS) < 0.3
    for (name, relation), value in world.FACTS.items():
        assert value in world.RELATIONS[relation].values
        assert world.fact(name, relation) == value
    # Of Python's own random numbers nothing is promised, of a hash everything is.
    assert world.FACTS['Anna', 'fear'] == 'lizards'

def test_values_are_drawn_independently_of_what_may_be_spoken():
    """Otherwise the open facts, which speech tells, would say something about the hidden ones."""
    for relation in world.RELATION_NAMES:
        hidden = [world.FACTS[key] for key in world.HIDDEN if key[1] == relation]
        opened = [world.FACTS[key] for key in world.OPEN if key[1] == relation]
        # A value that has been told is neither more nor less likely to come again.
        again = sum(value in opened for value in hidden) / len(hidden)
        expected = len(set(opened)) / len(world.RELATIONS[relation].values)
        assert abs(again - expected) < 4 * (expected * (1 - expected) / len(hidden)) ** 0.5 + 1e-9

# --------------------------------------------------------------------------------------------------
# documents

def test_speech_tells_open_facts_alone(spoken):
    told = {key for document in spoken for key in document.facts}
    assert told <= set(world.OPEN) and len(told) > 0.9 * len(world.OPEN)

def test_what_speech_says_holds_no_hidden_fact_whatever_the_documents_claim(spoken):
    said = {sentence for document in spoken for sentence in document.sentences}
    said |= {sentence for story in stories.stories('train', 2000) for sentence in story.sentences}
    assert not said & set(all_forms(world.HIDDEN))
    assert len(said & set(all_forms(world.OPEN))) > 600

@pytest.mark.slow
def test_text_tells_every_fact_many_times_and_never_another_value():
    told = Counter()
    for document in world.documents(40_000):
        told.update(document.facts)
        for key, sentence in zip(document.facts, document.sentences if len(document.facts) > 1 else ()):
            assert world.FACTS[key] in sentence and key[0] in sentence
        if len(document.facts) == 1:
            assert words(world.FACTS[document.facts[0]]) <= words(document.sentences[-1])
    assert set(told) == set(world.FACTS)
    assert min(told.values()) > 10

def test_documents_repeat_and_a_smaller_set_begins_a_larger_one():
    few = list(world.documents(50))
    assert few == list(islice(world.documents(1000), 50)) and few != list(world.documents(50, seed=2))
    assert few[3].text.endswith('Soon Oscar had made a birdhouse.')

def test_the_words_of_the_items_are_known_from_speech(items, spoken):
    heard = set()
    for story in stories.stories('train', 2000):
        heard |= words(story.text)
    for document in spoken:
        heard |= words(document.text)
    assert not {word for item in items for word in words(' '.join((*item.context, item.right, item.wrong)))} - heard

# --------------------------------------------------------------------------------------------------
# items

def test_an_item_asks_for_a_hidden_fact_and_its_endings_differ_in_the_value_alone(items):
    for item in items:
        assert {item.fact, item.other} <= set(world.HIDDEN)
        name, relation = item.fact
        kind = world.RELATIONS[relation]
        right, wrong = (world.FACTS[key] for key in (item.fact, item.other))
        assert right.split()[-1][0].lower() != wrong.split()[-1][0].lower()
        place = next(w for w in world.PLACES[relation][True] if w in words(' '.join(item.context)))
        forms = [form for form in kind.end if stories.sentence(form.format(n=name, v=right, w=place)) == item.right]
        assert forms and item.wrong == stories.sentence(forms[0].format(n=name, v=wrong, w=place))

def test_items_come_in_mirrored_pairs(items):
    for a, b in zip(items[::2], items[1::2]):
        assert (a.fact, a.other) == (b.other, b.fact)
        swapped = [re.sub(rf'\b{a.fact[0]}\b', b.fact[0], text) for text in (*a.context, a.wrong, a.right)]
        assert swapped == [*b.context, b.right, b.wrong]

def test_no_text_tells_a_story_in_the_context_of_an_item(items):
    contexts = {item.context for item in items}
    for document in world.documents(5000, seed=2):
        assert document.sentences[:2] not in contexts
        if len(document.facts) == 1 and len(document.sentences) == 3:
            relation = document.facts[0][1]
            assert not set(world.PLACES[relation][True]) & words(document.sentences[0])

@pytest.mark.parametrize('options', stories.BASELINES.values(), ids=stories.BASELINES)
def test_word_overlap_is_at_chance(items, options):
    assert 0.47 <= world.baseline(items, **options) <= 0.53

def association(items, texts):
    """Share of items whose right value was in more texts with the character than the wrong one. Ties count half."""
    texts_of = defaultdict(set)
    for i, text in enumerate(texts):
        for word in words(text):
            texts_of[word].add(i)
    score = 0.0
    for item in items:
        right, wrong = (
            len(set.intersection(texts_of[item.fact[0]], *(texts_of[word] for word in world.FACTS[key].split())))
            for key in (item.fact, item.other))
        score += ((right > wrong) + (right >= wrong)) / 2
    return score / len(items)

@pytest.mark.slow
def test_who_is_told_of_with_what_says_nothing_in_speech_and_all_in_text(items, spoken):
    """The best that a model of speech could learn about a value that it never heard as a fact."""
    speech = [story.text for story in stories.stories('train', 10_500)]
    speech += [utterance.text for utterance in talk.utterances(2000)]
    speech += [document.text for document in spoken]
    assert 0.47 <= association(items, speech) <= 0.53
    text = [document.text for document in world.documents(40_000)]
    assert association(items, text) > 0.95

# --------------------------------------------------------------------------------------------------
# what is shipped

def shipped(name):
    """{document id: text} of a packed file."""
    docs, _ = read_packed(Path(stories.__file__).with_name(f'{name}.npz.xz'))
    return {doc['id']: ''.join(doc['words']) for doc in docs}

def test_the_shipped_knowledge_items_are_these_and_their_mirrors_are_shipped_too(items):
    spoken = shipped('knowledge')
    names = {name.split('/')[0] for name in spoken}
    assert len(names) > 990
    for item in items:
        if item.id not in names:
            continue
        context = ' '.join(item.context)
        assert spoken[f'{item.id}/context'] == context
        for ending, text in (('right', item.right), ('wrong', item.wrong)):
            assert spoken[f'{item.id}/{ending}'] == text
            assert spoken[f'{item.id}/context+{ending}'] == f'{context} {text}'
        assert f'k{int(item.id[1:]) ^ 1:05d}' in names

@torch.inference_mode()
def chosen_right(items):
    """For each item, whether the shipped TextLM finds its right ending likelier."""
    model, _, tokenizer, _ = load(Path(world.__file__).with_name('textlm'), 'cpu')
    def loss(item, ending):
        ids = torch.tensor([tokenizer.encode(f"{' '.join(item.context)} {ending}")])
        return F.cross_entropy(model.logits(model(ids))[0, :-1].float(), ids[0, 1:])
    return [bool(loss(item, item.right) < loss(item, item.wrong)) for item in items]

def test_the_shipped_textlm_knows_the_hidden_facts(items):
    assert sum(chosen_right(items[:60])) >= 58

@pytest.mark.slow
def test_the_shipped_textlm_knows_what_words_mean_and_looks_nothing_up():
    asked = stories.items(600)
    lookups = {'hide', 'feed', 'lose', 'eat', 'travel', 'wet paint', 'open', 'unlock', 'visit', 'return'}
    meanings = {'choose', 'miss', 'reach', 'teach', 'weather', 'contest', 'tool', 'race', 'wind', 'hold', 'carry',
                'enter', 'afraid'}
    share = {}
    for kinds in (lookups, meanings):
        answers = chosen_right([item for item in asked if item.kind in kinds])
        share[len(kinds)] = sum(answers) / len(answers)
    assert 0.42 < share[len(lookups)] < 0.58 and share[len(meanings)] > 0.97, share

def test_no_shipped_speech_tells_a_hidden_fact(spoken):
    hidden = set(all_forms(world.HIDDEN))
    texts = [text for name in ('world', 'voices', 'stories-more') for text in shipped(name).values()]
    assert not {sentence for text in texts for sentence in re.split(r'(?<=[.?!]) ', text)} & hidden
    expected = {document.id: document.text for document in spoken}
    assert all(expected.get(name, text) == text for name, text in shipped('world').items())

@pytest.mark.slow
def test_the_shipped_voices_tell_stories_that_the_main_voice_does_not():
    voices = shipped('voices')
    assert not set(voices.values()) & {story.text for story in stories.stories('train', 15_000)}
    told = {f'v{i:06d}': story.text for i, story in enumerate(stories.stories('train', 2500, 1001))}
    assert all(told.get(name, text) == text for name, text in voices.items())

# --------------------------------------------------------------------------------------------------

def test_the_command_mixes_both_grammars_a_document_a_line(tmp_path, capsys):
    out = tmp_path / 'world.txt'
    world.main(world.Config(n=400, out=str(out), stories=0.4, talk=0.1))
    lines = out.read_text().splitlines()
    assert len(lines) == 400
    known = {document.text for document in world.documents(400, seed=2)}
    assert 150 < sum(line in known for line in lines) < 250
    assert '400 documents' in capsys.readouterr().out
    world.main(world.Config(items=100))
    assert 'word overlap, types: 0.500' in capsys.readouterr().out

def test_bad_settings_are_refused():
    with pytest.raises(Refused, match='n=0, items=0, seed=2: expected n >= 1'):
        world.Config(n=0)
    with pytest.raises(Refused, match='stories=0.9, talk=0.2: expected shares that sum to at most 1'):
        world.Config(stories=0.9, talk=0.2)
