"""
The embedded benchmark: spoken StoryCloze items of tiny/stories.py, as a units folder (tiny/unpack.py makes it).

A story's context is two sentences; a model should find its right ending more likely than a wrong one:
    ssc  the wrong ending contradicts the context, with the same names and words
    tsc  the wrong ending is the right one of another story (topic)
Items m00000.. are in the voice of the training stories, u00000.. in a voice that no training data has. Documents:
    ITEM/context, ITEM/right, ITEM/wrong, ITEM/topic                       each segment alone: across modalities
    ITEM/context+right, ITEM/context+wrong, ITEM/context+topic             the joined wave: speech to speech
"""
from configurator import Refused

VOICES = {'m': 'main', 'u': 'unseen'}

def pairs(corpus):
    """corpus: Units of the items. Yields {id, task, voice, rows, right, wrong}; right and wrong hold what a candidate is:

    {'prompt': (text, units), 'ending': (text, units), 'joined': (units, where the ending begins)}
    Raises Refused when an item lacks a document: pairs are matched by name, never by position.
    """
    documents = {meta['id']: i for i, meta in enumerate(corpus.meta)}
    items = sorted({name.split('/')[0] for name in documents})
    if not items:
        raise Refused("tasks/tiny: no items; `python -m tiny.unpack` writes them to out/data/items")
    def get(name):
        if name not in documents:
            raise Refused(f"tasks/tiny: document '{name}' is missing; every item has context, right, wrong, topic and "
                          "context+right, context+wrong, context+topic")
        i = documents[name]
        return corpus.meta[i], *corpus[i]
    def candidate(item, which):
        context, prompt_units, prompt_runs = get(f'{item}/context')
        ending, ending_units, _ = get(f'{item}/{which}')
        _, units, runs = get(f'{item}/context+{which}')
        begin = int((runs.cumsum() <= prompt_runs.sum()).sum()) # the run that holds the first frame after the context
        return {'prompt': (context['text'], prompt_units), 'ending': (ending['text'], ending_units),
                'joined': (units, begin)}
    for item in items:
        right = candidate(item, 'right')
        for task, which in (('ssc', 'wrong'), ('tsc', 'topic')):
            voice = VOICES[item[0]]
            yield {'id': item, 'task': task, 'voice': voice, 'rows': (f'{voice}/{task}',), 'right': right,
                   'wrong': candidate(item, which)}
