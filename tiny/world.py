"""
A small world whose facts hold in all its stories: the text that knows more than the speech.

    python -m tiny.world --out=out/data/world.txt    text of this and the other grammars, a document a line
    python -m tiny.world --items=1000               baselines of the knowledge items

Each of the 60 characters of tiny/stories.py has one value in each of 20 relations: where they live,
what they fear, can do or own. A value is drawn by a hash of character and relation, independently
of all others. Text states these facts, and tells stories whose endings follow from them:

    fact            Anna is afraid of snakes.
    story           Anna went to the farm with some friends. Suddenly Anna began to scream. Anna
                    had seen some snakes.

Three facts in four, chosen by another hash, are hidden: no speech document has a statement or a
story of them. The others are open: speech tells them too. A knowledge item asks for a hidden fact:

    context         Tom went to the lake with some friends. Suddenly Tom began to scream.
    right ending    Tom had seen some camels.
    wrong ending    Tom had seen some horses.

The wrong ending has the value of another character, whose fact is hidden too, and the next item is
the mirrored one: the same context about that character, with the right and the wrong value
exchanged. So every value is as often right as wrong. As the two values were drawn independently of
all that speech says, the world in which they are exchanged has the same speech and is as likely: a
model that knows the speech alone has an expected score of 50 %, whatever it has learned from it.
Context and endings share the same words.

One (relation, place) in 8, chosen by a hash, is for items alone, so no story that text tells has
the context of an item.
"""
import hashlib
import random
from dataclasses import dataclass

from configurator import Refused, run
from files import atomically
from tiny import stories, talk
from tiny.stories import BASELINES, HE, LISTS, SHE, overlap, pick, sentence

NAMES = SHE + HE
OPEN_ONE_IN = 4 # one fact in 4 may be spoken
ITEMS_ONE_IN = 8 # one (relation, place) in 8 is for items
JOBS = stories.word_list('''guard farmer baker sailor nurse teacher waiter clown doctor painter
    driver singer pilot fisherman gardener plumber dentist carpenter soldier hunter''')

# --------------------------------------------------------------------------------------------------
# relations

@dataclass(frozen=True)
class Relation:
    """The values of a relation, and templates: n is the character, v the value, w a place."""
    values: tuple
    fact: tuple         # templates of a statement
    first: tuple        # templates of the three sentences of a story
    second: tuple
    end: tuple

def _relation(values, *forms):
    """A Relation from strings in which '|' separates alternative templates."""
    return Relation(values, *(tuple(form.strip() for form in text.split('|')) for text in forms))

RELATIONS = {
    'home': _relation(LISTS['BUILDING'],
        '{n} lives in the {v}. | The home of {n} is the {v}.',
        '{n} spent the day at the {w}. | {n} was tired after a day at the {w}.',
        'At night {n} went home. | Then it was time to go home.',
        '{n} walked back to the {v}. | {n} fell asleep in the {v}.'),
    'pet': _relation(LISTS['PET'],
        '{n} has a pet {v}. | The pet of {n} is a {v}.',
        '{n} bought some food at the {w}. | At the {w} {n} looked for some food.',
        'It was for the pet at home. | The pet was waiting at home.',
        '{n} fed the {v}. | At home {n} fed the {v}.'),
    'fear': _relation(LISTS['PETS'],
        '{n} is afraid of {v}. | {n} has always feared {v}.',
        '{n} went to the {w} with some friends. | At the {w} {n} met some friends.',
        'Suddenly {n} began to scream. | Suddenly {n} wanted to run away.',
        '{n} had seen some {v}. | There were {v} near {n}.'),
    'skill': _relation(LISTS['SKILL'],
        '{n} can {v} very well. | {n} knows how to {v}.',
        'There was a show at the {w}. | At the {w} they had a show.',
        '{n} went on the stage. | Everyone asked {n} to do something.',
        '{n} began to {v}. | {n} showed them how to {v}.'),
    'food': _relation(LISTS['FOOD'],
        '{n} likes {v} most of all. | Nothing tastes as good to {n} as {v}.',
        '{n} was hungry at the {w}. | At the {w} {n} wanted to eat.',
        'There was a lot of good food. | {n} could choose from everything.',
        '{n} chose the {v}. | {n} asked for {v}.'),
    'job': _relation(JOBS,
        '{n} works as a {v}. | The work of {n} is that of a {v}.',
        '{n} met some children at the {w}. | At the {w} {n} met some children.',
        'They asked about the work of {n}. | They wanted to know what {n} did.',
        '{n} told them about the life of a {v}. | They heard that {n} was a {v}.'),
    'toy': _relation(LISTS['TOY'],
        '{n} never leaves home without a {v}. | {n} always carries a {v}.',
        '{n} came to the {w}. | One day {n} went to the {w}.',
        '{n} opened a big bag. | {n} had something in a bag.',
        '{n} took out the {v}. | Out of the bag {n} took a {v}.'),
    'ride': _relation(LISTS['RIDE'],
        '{n} owns a {v}. | There is a {v} behind the house of {n}.',
        '{n} had to be at the {w} in time. | {n} was late for the {w}.',
        'It was too far to walk. | There was not much time.',
        '{n} took the {v}. | {n} came with the {v}.'),
    'color': _relation(LISTS['COLOR'],
        '{n} always wears {v} clothes. | All the clothes of {n} are {v}.',
        'There was a party at the {w}. | They had a party at the {w}.',
        '{n} wore a new hat. | {n} came with a new hat.',
        'The new hat of {n} was {v}. | {n} had a {v} hat.'),
    'day': _relation(LISTS['DAY'],
        '{n} never works on {v}. | The free day of {n} is {v}.',
        '{n} wanted to see the {w}. | {n} had never seen the {w}.',
        'But {n} had to wait for a free day. | There was no time before the free day.',
        '{n} saw the {w} on {v}. | On {v} {n} saw the {w}.'),
    'goods': _relation(LISTS['GOODS'],
        '{n} collects {v}. | The house of {n} is full of {v}.',
        '{n} went to a market at the {w}. | There was a market at the {w}.',
        '{n} looked for something to collect. | There was something for {n} to collect.',
        '{n} bought some {v}. | {n} came home with some {v}.'),
    'sport': _relation(LISTS['SPORT'],
        '{n} practices {v} every day. | {n} is very good at {v}.',
        'There were lessons at the {w}. | The {w} had a new teacher.',
        '{n} came to learn more. | {n} came to a lesson.',
        '{n} took lessons in {v}. | The lesson of {n} was {v}.'),
    'fruit': _relation(LISTS['FRUIT'],
        '{n} grows {v}. | The garden of {n} is full of {v}.',
        '{n} had a small shop at the {w}. | At the {w} {n} had a small shop.',
        '{n} sold what grew in the garden. | The shop had fruit from the garden.',
        '{n} sold {v}. | The people bought {v} from {n}.'),
    'show': _relation(LISTS['SHOW'],
        '{n} talks about the {v} all day. | {n} always wants to see the {v}.',
        'There was a lot to see at the {w}. | They all went to the {w}.',
        '{n} ran ahead of the others. | {n} knew what to look at first.',
        '{n} went straight to the {v}. | First {n} looked at the {v}.'),
    'nook': _relation(LISTS['NOOK'],
        '{n} always hides {v}. | When {n} hides it is {v}.',
        'The children played at the {w}. | There was a game at the {w}.',
        '{n} had to hide. | Nobody could see {n}.',
        '{n} was {v}. | {n} sat {v}.'),
    'box': _relation(LISTS['BOX'],
        '{n} keeps the money in a {v}. | The money of {n} is in a {v}.',
        '{n} wanted to buy something at the {w}. | At the {w} {n} wanted to buy something.',
        '{n} needed some money first. | {n} went home for the money.',
        '{n} opened the {v}. | {n} looked into the {v}.'),
    'wish': _relation(LISTS['BEAST'],
        '{n} dreams of a {v}. | What {n} wants most is a {v}.',
        '{n} had one wish at the {w}. | At the {w} {n} was given one wish.',
        'The wish came true. | {n} did not think for long.',
        '{n} got a {v}. | {n} wished for a {v}.'),
    'wood': _relation(LISTS['FURNITURE'],
        '{n} can build a good {v}. | {n} builds a new {v} every year.',
        '{n} found some wood at the {w}. | There was some wood at the {w}.',
        '{n} took a hammer and some nails. | {n} began to work with the wood.',
        '{n} built a {v}. | Soon {n} had made a {v}.'),
    'dish': _relation(LISTS['DISH'],
        '{n} makes the best {v}. | {n} is famous for {v}.',
        '{n} cooked for everyone at the {w}. | At the {w} {n} cooked for everyone.',
        'All of them were hungry. | They could not wait to eat.',
        '{n} gave them {v}. | They ate the {v} of {n}.'),
    'friend': _relation(NAMES,
        '{n} calls {v} every day. | The best friend of {n} is {v}.',
        '{n} was alone at the {w}. | At the {w} {n} was alone.',
        '{n} wanted to talk to a friend. | {n} needed a friend.',
        '{n} called {v}. | {n} wrote a letter to {v}.'),
}
RELATION_NAMES = tuple(RELATIONS)

def _hash(*parts):
    return int.from_bytes(hashlib.sha256('|'.join(parts).encode()).digest()[:8], 'big')

def fact(name, relation):
    """The value of a character in a relation."""
    values = [v for v in RELATIONS[relation].values if relation != 'friend' or v[0] != name[0]]
    return values[_hash('value', relation, name) % len(values)]

def is_open(name, relation):
    """Whether speech may tell the fact."""
    return _hash('open', relation, name) % OPEN_ONE_IN == 0

def is_for_items(relation, place):
    """Whether stories of this relation at this place are for items alone."""
    return _hash('items', relation, place) % ITEMS_ONE_IN == 0

FACTS = {(name, relation): fact(name, relation) for name in NAMES for relation in RELATION_NAMES}
OPEN = tuple(key for key in FACTS if is_open(*key))
HIDDEN = tuple(key for key in FACTS if not is_open(*key))
PLACES = {relation: {True: [], False: []} for relation in RELATION_NAMES} # {relation: {for items: places}}
for _relation_name in RELATION_NAMES:
    for _place in LISTS['PLACE']:
        PLACES[_relation_name][is_for_items(_relation_name, _place)].append(_place)

# --------------------------------------------------------------------------------------------------
# documents

@dataclass(frozen=True)
class Document:
    id: str
    facts: tuple        # the (character, relation) that it tells
    sentences: tuple

    @property
    def text(self):
        return ' '.join(self.sentences)

@dataclass(frozen=True)
class Item:
    id: str
    fact: tuple         # (character, relation) that decides it
    other: tuple        # whose value the wrong ending has
    context: tuple      # two sentences
    right: str
    wrong: str

def _place(rng, relation, for_items, values):
    """A place of the relation that is none of the values."""
    return pick(rng, [w for w in PLACES[relation][for_items] if w not in values])

def _story(rng, keys):
    name, relation = key = pick(rng, keys)
    kind = RELATIONS[relation]
    slots = {'n': name, 'v': FACTS[key], 'w': _place(rng, relation, False, {FACTS[key]})}
    templates = (pick(rng, forms) for forms in (kind.first, kind.second, kind.end))
    return (key,), [template.format_map(slots) for template in templates]

def _statements(rng, keys):
    """Two or three facts: of one character, or of one relation."""
    name, relation = pick(rng, keys)
    of_one = rng.random() < 0.5
    pool = [key for key in keys if (key[0] == name if of_one else key[1] == relation)]
    chosen = []
    for _ in range(3):
        key = pick(rng, pool)
        if key not in chosen:
            chosen.append(key)
    return tuple(chosen), [pick(rng, RELATIONS[key[1]].fact).format(n=key[0], v=FACTS[key]) for key in chosen]

def documents(n, seed=1, spoken=False):
    """Yields n documents of the world, 3 in 4 of them stories; spoken: of open facts alone.

    The documents of a smaller n are the first ones of a larger n.
    """
    keys = OPEN if spoken else tuple(FACTS)
    for i in range(n):
        rng = random.Random(f'{spoken} {seed} {i}')
        tell = _story if rng.random() < 0.75 else _statements
        told, sentences = tell(rng, keys)
        yield Document(f'w{i:06d}', told, tuple(map(sentence, sentences)))

def _shuffled(rng, values):
    return [value for _, value in sorted((rng.random(), value) for value in values)]

def _pairs(rng, relation):
    """Pairs of characters whose facts are hidden, unlike by ear, and not named in each other's."""
    names = _shuffled(rng, [name for name, of in HIDDEN if of == relation])
    while names:
        a = names.pop()
        for b in names:
            words = [a, b, *(FACTS[name, relation].split()[-1] for name in (a, b))]
            if len({word[0].lower() for word in words[2:]}) == 2 and len(set(words)) == 4 and a[0] != b[0]:
                names.remove(b)
                yield a, b
                break

def _mirrored(rng, relation, a, b):
    """[(character, the other, context, right, wrong)]: two items of one situation."""
    kind = RELATIONS[relation]
    values = {name: FACTS[name, relation] for name in (a, b)}
    w = _place(rng, relation, True, set(values.values()))
    *context, end = (pick(rng, forms) for forms in (kind.first, kind.second, kind.end))
    items = []
    for name, other in ((a, b), (b, a)):
        told = tuple(sentence(template.format(n=name, w=w)) for template in context)
        endings = [sentence(end.format(n=name, w=w, v=values[of])) for of in (name, other)]
        items.append((name, other, told, *endings))
    return items

def items(n, seed=1):
    """The first n knowledge items. Items 2i and 2i+1 mirror each other; a round asks each hidden fact at most once."""
    made = []
    rng = random.Random(seed)
    while len(made) < n:
        pairs = [(relation, *pair) for relation in RELATION_NAMES for pair in _pairs(rng, relation)]
        for relation, a, b in _shuffled(rng, pairs):
            for name, other, context, right, wrong in _mirrored(rng, relation, a, b):
                made.append(Item(f'k{len(made):05d}', (name, relation), (other, relation), context, right, wrong))
    return made[:n]

# --------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Config:
    n: int = 500000                     # documents to write
    out: str = 'out/data/world.txt'     # one a line
    stories: float = 0.6                # share of them that are stories of tiny/stories.py
    talk: float = 0.05                  # share of them that are utterances of tiny/talk.py; the others are of the world
    items: int = 0                      # if above 0: write nothing, print the baselines of this many knowledge items
    seed: int = 2                       # of the documents; items have seed 1

    def __post_init__(self):
        if self.n < 1 or self.items < 0 or self.seed < 0:
            raise Refused(f'n={self.n}, items={self.items}, seed={self.seed}: expected n >= 1, items and seed >= 0')
        if not (self.stories >= 0 and self.talk >= 0 and self.stories + self.talk <= 1):
            raise Refused(f'stories={self.stories}, talk={self.talk}: expected shares that sum to at most 1')

def texts(cfg):
    """Yields the n texts, in random order."""
    rng = random.Random(cfg.seed)
    sources = {
        'stories': stories.stories('train', 10 ** 9, cfg.seed),
        'talk': talk.utterances(10 ** 9, cfg.seed),
        'world': documents(10 ** 9, cfg.seed)}
    for _ in range(cfg.n):
        share = rng.random()
        name = 'stories' if share < cfg.stories else 'talk' if share < cfg.stories + cfg.talk else 'world'
        yield next(sources[name]).text

def baseline(asked, **options):
    """The share of items whose right ending overlaps more with the context. Ties count half."""
    score = 0.0
    for item in asked:
        right, wrong = (overlap(' '.join(item.context), ending, **options) for ending in (item.right, item.wrong))
        score += ((right > wrong) + (right >= wrong)) / 2
    return score / len(asked)

def main(cfg):
    if cfg.items:
        asked = items(cfg.items)
        for name, options in BASELINES.items():
            print(f'word overlap, {name}: {baseline(asked, **options):.3f}')
        return
    with atomically(cfg.out) as tmp, open(tmp, 'w', encoding='ascii', newline='\n') as file:
        file.writelines(text + '\n' for text in texts(cfg))
    print(f'{cfg.n} documents in {cfg.out}')

if __name__ == '__main__':
    run(main, Config)
