"""
The embedded benchmark: spoken StoryCloze items of tiny/stories.py, as a units folder (tiny/unpack.py makes it).

A story's context is two sentences. A model should find its right ending more likely than a wrong one:
    ssc  the wrong ending contradicts the context, with the same names and words
    tsc  the wrong ending is the right one of another story (topic)
Items m00000.. are in the voice of the training stories, u00000.. in a voice that no training data has. Documents:
    ITEM/context, ITEM/right, ITEM/wrong, ITEM/topic                       each segment alone: across modalities
    ITEM/context+right, ITEM/context+wrong, ITEM/context+topic             the joined wave: speech to speech
"""
from configurator import Refused

VOICES = {'m': 'main', 'u': 'unseen'}

def pairs(corpus):
    """Yields {id, task, voice, rows, right, wrong} for each item and task. corpus: the Units of the items.

    right and wrong are candidates: {'prompt': (text, units), 'ending': (text, units),
    'joined': (units, index of the ending's first unit)}. Raises Refused if an item lacks a document:
    pairs are matched by name, never by position.
    """
    documents = {meta['id']: i for i, meta in enumerate(corpus.meta)}
    items = sorted({name.split('/')[0] for name in documents})
    if not items:
        raise Refused("tasks/tiny: no items; `python -m tiny.unpack` writes them to out/data/items")
    def read(name):
        if name not in documents:
            raise Refused(f"tasks/tiny: document '{name}' is missing; every item has context, right, wrong, topic and "
                          "context+right, context+wrong, context+topic")
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
        for task, ending in (('ssc', 'wrong'), ('tsc', 'topic')):
            yield {'id': item, 'task': task, 'voice': voice, 'rows': (f'{voice}/{task}',), 'right': right,
                   'wrong': candidate(item, ending)}
