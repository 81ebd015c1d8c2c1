"""
The embedded benchmark: spoken items of tiny/stories.py and tiny/world.py, as units folders (tiny/unpack.py makes them).

A story's context is two sentences. A model should find its right ending more likely than a wrong one:
    ssc         the wrong ending contradicts the context, with the same names and words
    tsc         the wrong ending is the right one of another story (topic)
    knowledge   the wrong ending contradicts a fact that text alone states (tiny/world.py); these items have no topic
Items m00000.. and k00000.. are in the voice of the stories, u00000.. in a voice that no training data has. Documents:
    ITEM/context, ITEM/right, ITEM/wrong, ITEM/topic                       each segment alone: across modalities
    ITEM/context+right, ITEM/context+wrong, ITEM/context+topic             the joined wave: speech to speech
"""
from configurator import Refused

VOICES = {'m': 'main', 'k': 'main', 'u': 'unseen'}

def pairs(corpus):
    """Yields the pairs of sSC and tSC as _pairs does, each in the row VOICE/TASK."""
    for pair in _pairs(corpus, {'ssc': 'wrong', 'tsc': 'topic'}):
        yield {**pair, 'rows': (f"{pair['voice']}/{pair['task']}",)}

def knowledge(corpus):
    """Yields the pairs of the knowledge items as _pairs does, each in the row of its voice."""
    for pair in _pairs(corpus, {'knowledge': 'wrong'}):
        yield {**pair, 'rows': (pair['voice'],)}

def _pairs(corpus, tasks):
    """Yields {id, task, voice, right, wrong} for each item and task. corpus: the Units of the items.

    tasks: {task: the ending that is wrong in it}.

    right and wrong are candidates: {'prompt': (text, units), 'ending': (text, units),
    'joined': (units, index of the ending's first unit)}. Raises Refused if an item lacks a document:
    pairs are matched by name, never by position.
    """
    documents = {meta['id']: i for i, meta in enumerate(corpus.meta)}
    items = sorted({name.split('/')[0] for name in documents})
    if not items:
        raise Refused("tasks/tiny: no items; `python -m tiny.unpack --parts=items,knowledge` writes them to out/data")
    def read(name):
        if name not in documents:
            endings = ['right', *tasks.values()]
            expected = ', '.join(['context', *endings, *(f'context+{ending}' for ending in endings)])
            raise Refused(f"tasks/tiny: document '{name}' is missing; every item has {expected}")
        i = documents[name]
        units, runs = corpus[i]
        return corpus.meta[i]['text'], units, runs
    def candidate(item, ending):
        prompt_text, prompt_units, prompt_runs = read(f'{item}/context')
        ending_text, ending_units, _ = read(f'{item}/{ending}')
        _, units, runs = read(f'{item}/context+{ending}')
        # The ending begins with the run that holds the first frame after the context.
        begin = int((runs.cumsum() <= prompt_runs.sum()).sum())
        return {'prompt': (prompt_text, prompt_units), 'ending': (ending_text, ending_units), 'joined': (units, begin)}
    for item in items:
        voice = VOICES[item[0]]
        right = candidate(item, 'right')
        for task, ending in tasks.items():
            yield {'id': item, 'task': task, 'voice': voice, 'right': right, 'wrong': candidate(item, ending)}
