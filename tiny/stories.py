"""
A seeded grammar of three-sentence stories in the style of TinyStories, for the embedded corpus.

    python -m tiny.stories --n=100000 --out=out/data/stories.txt     training stories, one a line
    python -m tiny.stories --items=2000                              word-overlap baselines of the evaluation items

The first two sentences of a story introduce two alternatives (two hiding animals, two owners, a
locked and an open way in) and select one of them. The third sentence is the ending. The wrong
ending is the same sentence with the alternatives exchanged: it contradicts the context, uses the
same names and words, and is the right ending of the mirrored story, which is drawn with the same
probability.

    context         A cat hid under the bed, and a frog hid behind the sofa. Anna looked
                    under the bed.
    right ending    Under the bed Anna found the cat.
    wrong ending    Under the bed Anna found the frog.

Every story has a tuple (character, object, place, event). One tuple in 20 is reserved for
evaluation. The choice is a hash of the tuple without the slot in which the right and the wrong
ending differ, so a story and its mirrored story always belong to the same split. Whatever the
seeds, no training story has the tuple of an evaluation story or of its wrong ending.

The topic ending of an item is the right ending of another evaluation story that shares no name,
object or place with it. Items 2i and 2i+1 use each other's right endings as topic endings, so the
endings alone give nothing away.
"""
import random
import re
import zlib
from dataclasses import dataclass

from configurator import Refused, run
from files import atomically

EVAL_ONE_IN = 20 # one tuple in 20 is for evaluation

def word_list(text):
    """The entries of a word list: separated by commas if there are any, otherwise by whitespace."""
    entries = text.split(',') if ',' in text else text.split()
    return tuple(' '.join(entry.split()) for entry in entries)

# --------------------------------------------------------------------------------------------------
# words: common ones with a single spelling; homophones are avoided

SHE = word_list('''Anna Lily Emma Clara Nora Ruth Molly Vera Tina Rosa Julia Helen Maria Paula Susan
    Linda Betty Wendy Amanda Monica Daisy Fiona Gloria Naomi Olivia Jessica Alice Martha Lucy
    Diana''')
HE = word_list('''Tom Ben Max Peter Oscar Hugo Leo Victor Frank Simon Daniel Henry George Robert
    David Felix Adam Walter Arthur Edward Samuel Jacob Bruno Kevin Nathan Marcus Patrick Ryan
    Vincent Andrew''')
LIST_TEXTS = {
    'NAME': ' '.join(SHE + HE),
    'COLOR': 'red blue yellow green purple orange pink silver golden white black brown gray',
    'METAL': 'golden silver iron copper wooden rusty bronze plastic glass crooked',
    'PLACE': '''farm lake market beach harbor station school museum library castle bakery park river
        circus zoo church hospital hotel theater factory airport stadium fair mill cottage palace
        temple office playground tower pond bridge cabin ranch restaurant campsite vineyard
        lighthouse fountain aquarium workshop cinema studio monument marina camp''',
    'SHOP': '''market bakery farm fair restaurant station harbor ranch hotel airport stadium zoo
        circus campsite theater beach cinema park museum store supermarket village kiosk festival
        camp''',
    'BUILDING': '''castle palace tower museum library school mill cottage factory theater hotel
        temple church mansion bakery prison warehouse fortress clinic tavern''',
    'WAY': '''gate window tunnel garage attic basement kitchen chimney balcony laundry pantry
        courtyard''',
    'NOOK': '''under the bed, behind the sofa, under the table, behind the curtain, in the closet,
        behind the stove, in the basket, under the bench, behind the piano, in the cupboard,
        under the blanket, behind the barrel, in the bathtub, under the wagon, behind the ladder,
        under the porch, behind the mirror, inside the boot, under the pillow, in the bucket,
        under the rug, behind the bookcase, in the suitcase, behind the lamp''',
    'PET': '''cat puppy rabbit mouse hamster turtle frog squirrel hedgehog duckling parrot lizard
        beetle spider snail crab owl snake cricket butterfly gecko piglet''',
    'SPOT': '''in the barn, by the river, near the bridge, on the hill, behind the mill,
        in the meadow, beside the lake, by the gate, near the forest, under the oak, in the stable,
        beside the fence, near the tower, in the valley, behind the cottage, by the fountain,
        in the orchard, near the cave, beside the pond, in the courtyard''',
    'BEAST': '''cow horse goat donkey pony fox wolf pig goose rooster turkey camel llama lamb bull
        peacock mule swan stork zebra''',
    'PETS': '''dogs horses goats cats rabbits ponies donkeys monkeys snakes lizards parrots turtles
        chickens pigeons camels spiders penguins''',
    'TOY': '''kite ball drum doll puppet robot whistle puzzle balloon scooter trumpet hat scarf
        umbrella lantern violin camera guitar necklace sweater jacket backpack wallet bracelet
        helmet racket teddy flag mask crown mug towel compass telescope magnet sponge ribbon
        tambourine marble badge''',
    'FOOD': '''soup bread cheese rice honey butter jam salad cake pudding pasta chicken fish bacon
        toast popcorn pizza chocolate spinach cabbage corn yogurt apples plums cherries grapes
        lemons oranges bananas peaches melons figs carrots onions beans potatoes tomatoes pumpkins
        mushrooms olives walnuts radishes mangoes cucumbers raspberries''',
    'DISH': '''soup bread pizza pudding salad pancakes waffles noodles muffins cookies dumplings
        popcorn sandwiches cheese yogurt curry stew porridge lasagna burgers jam''',
    'DAY': 'Monday Tuesday Wednesday Thursday Friday Saturday Sunday',
    'BOX': '''jar box drawer chest bag basket bucket trunk suitcase barrel cabinet purse crate pot
        vase envelope''',
    'GOODS': '''coins stamps buttons marbles pencils shells letters candles spoons nails photos
        ribbons feathers tickets brushes crayons needles diamonds medals pebbles gloves socks
        postcards peanuts acorns stickers dominoes magazines forks''',
    'LOCK': 'chest gate door closet shed cage garage attic cabinet trunk drawer piano locker',
    'FURNITURE': '''chair table bench door fence gate shelf ladder boat wagon desk stool cabinet
        mailbox birdhouse wall''',
    'GEAR': '''tent bag basket chair canoe sled umbrella cart boat raft backpack bike coat blanket
        helmet lamp''',
    'RIDE': 'bike horse sled canoe car truck boat pony camel tractor scooter wagon',
    'JOB': '''man woman boy girl guard farmer baker sailor nurse teacher waiter clown doctor painter
        driver singer pilot fisherman neighbor stranger gardener plumber dentist carpenter soldier
        hunter''',
    'SHOW': '''parade, concert, puppet show, ballet, opera, wedding, magician, clowns, acrobats,
        dancers, rockets, ships, fireworks, juggler, trains, statues, knights, pirates''',
    'SKILL': '''swim, dance, sing, whistle, juggle, cook, draw, knit, ski, skate, dive, climb,
        ride a horse, play chess, play the piano, speak Spanish, fly a kite, tie knots,
        drive a tractor, play tennis, paint, jump rope''',
    'SPORT': '''chess, tennis, piano, swimming, dancing, singing, cooking, drawing, skating,
        archery, soccer, spelling, running''',
    'FRUIT': '''apples cherries plums peaches lemons oranges figs olives nuts coconuts bananas
        apricots''',
    'LOAD': '''boxes barrels sacks crates logs stones chairs suitcases buckets pumpkins bricks
        tables baskets bags''',
    'LIGHT': 'balloon kite hat scarf umbrella flag map ticket letter ribbon newspaper poster',
    'SEAT': 'bench ladder shelf table chair wall bridge roof barrel swing stool platform box',
    'FETCH': '''tent guitar camera radio kite book map picnic basket telescope blanket lantern
        football''',
    # 'the answer's side/the other side'
    'WELL': '''felt fine/felt sick, had a ticket/had no ticket, was awake/was asleep,
        was free/was busy, was early/was late''',
    'SPEED': 'fast/slow, quick/slow, speedy/lazy, strong/weak, good/bad, great/terrible',
    'FEEL': 'loved/feared, liked/disliked, adored/hated, trusted/distrusted, enjoyed/avoided',
    'USE': '''new/broken, ready/broken, fine/ruined, clean/filthy, dry/soaked, light/too heavy,
        safe/dangerous''',
    'OPEN': 'open/locked, open/closed, free/blocked, open/shut',
    # 'clue/answer', two of which are drawn
    'TASK': '''dig a hole/shovel, paint a wall/brush, cut a rope/knife, write a letter/pencil,
        catch a fish/net, sweep the floor/broom, fix a fence/hammer, reach the roof/ladder,
        mend a shirt/needle, carry water/bucket, light a fire/match, take a photo/camera,
        open a lock/key, find the north/compass''',
    'WEATHER': 'raining/umbrella, windy/kite, very dark/lantern, snowing/sled, very hot/fan',
    # 'clue/answer/other clue/other answer'
    'WIND': '''held on to/kept/let go of/lost, tied down/kept/forgot to tie/lost,
        watched/kept/did not watch/lost, remembered/kept/forgot about/lost''',
    'HOLD': '''strong/held/weak/broke, solid/held/rotten/broke, new/held/cracked/broke,
        sturdy/held/shaky/broke''',
    'PRACTICE': '''practiced/won/never practiced/lost, was very good at/won/was very bad at/lost,
        worked hard at/won/was too lazy for/lost''',
    'OPENER': 'Then, Later, One day, That day, After lunch, At noon, That night, Soon, Next',
}
LISTS = {name: word_list(text) for name, text in LIST_TEXTS.items()}
# Words inside phrases that may occur in several slots of one story.
LINKERS = frozenset('''under behind in inside by near on beside a the to very too was had felt of
    did not'''.split())

# --------------------------------------------------------------------------------------------------
# kinds of story

@dataclass(frozen=True)
class Kind:
    """The slots of a kind of story and the templates of its three sentences.

    Slot x is the answer and y the other alternative. k and j are the clues that go with x and y.
    Templates also have x1, k1, x2 and k2, the two alternatives in the order of mention; t, an
    opener such as 'Then'; and He, the pronoun of n.
    """
    event: str          # kinds with the same endings share it
    slots: str          # 'slots:LIST ...' as _fill reads them
    first: tuple        # templates of the three sentences
    second: tuple
    end: tuple
    character: str      # the slot, or template, of each part of the tuple
    object: str
    place: str

def _kind(event, slots, first, second, end, character='n', object='x', place='w'):
    """A Kind from strings in which '|' separates alternative templates."""
    templates = [tuple(form.strip() for form in forms.split('|')) for forms in (first, second, end)]
    return Kind(event, slots, *templates, character, object, place)

KINDS = {
    'hide': _kind('find', 'xy:PET kj:NOOK n:NAME',
        'A {x1} hid {k1}, and a {x2} hid {k2}. | {k1} hid a {x1}, and {k2} hid a {x2}.',
        '{t} {n} looked {k}. | {n} heard a noise {k}.',
        '{k} {n} found the {x}. | {n} found the {x} {k}.',
        place='k'),
    'feed': _kind('feed', 'xy:BEAST kj:SPOT n:NAME',
        '{k1} stood a {x1}, and {k2} stood a {x2}. | A {x1} was {k1}, and a {x2} was {k2}.',
        '{n} went to the animal {k}. | {t} {n} had food for the animal {k}.',
        '{k} {n} fed the {x}. | {n} fed the {x} {k}.',
        place='k'),
    'lose': _kind('look for', 'xy:COLOR+TOY kj:NAME w:PLACE',
        '{k1} had a {x1}, and {k2} had a {x2}.',
        '{t} {k} lost something at the {w}. | At the {w} {k} lost something.',
        '{k} looked for the {x} at the {w}. | At the {w} {k} looked for the {x}.',
        character='k'),
    'race': _kind('win', 'xy:NAME kj/SPEED o:RIDE w:PLACE',
        '{x1} had a {k1} {o}, and {x2} had a {k2} {o}.',
        '{t} they raced to the {w}. | They both raced to the {w}.',
        '{x} won the {o} race to the {w} against {y}. | '
        'At the {w} {x} won the {o} race against {y}.',
        character='x', object='o'),
    'gone': _kind('buy', 'xy:FOOD n:NAME w:SHOP',
        '{n} wanted {x1} or {x2} from the {w}. | {n} went to the {w} for {x1} or {x2}.',
        'All the {y} had been sold. | Only the {x} looked good. | '
        'They had no more {y}. | They only had {x} left.',
        '{n} bought {x} at the {w}. | At the {w} {n} bought {x}. | '
        '{n} came home from the {w} with {x}.'),
    'want': _kind('buy', 'xy:FOOD n:NAME w:SHOP',
        '{n} loved {x} but hated {y}. | {n} hated {y} but loved {x}.',
        'The {w} sold {x1} and {x2}. | At the {w} they sold {x1} and {x2}.',
        '{n} bought {x} at the {w}. | At the {w} {n} bought {x}. | '
        '{n} came home from the {w} with {x}.'),
    'give': _kind('leave with', 'xy:COLOR+TOY n:NAME m:NAME w:PLACE',
        'At the {w} {m} had a {x1} and a {x2}.',
        '{t} {m} gave the {x} to {n}. | {t} {m} gave {n} the {x}.',
        '{n} left the {w} with the {x}. | {n} went home from the {w} with the {x}.'),
    'keep': _kind('leave with', 'xy:COLOR+TOY n:NAME m:NAME w:PLACE',
        'At the {w} {n} had a {x1} and a {x2}.',
        '{t} {n} gave the {y} to {m}. | {t} {n} gave {m} the {y}.',
        '{n} left the {w} with the {x}. | {n} went home from the {w} with the {x}.'),
    'enter': _kind('enter', 'xy:WAY kj/OPEN n:NAME w:BUILDING',
        '{n} wanted to get into the {w}. | {n} had to get into the {w}.',
        'The {x1} was {k1}, but the {x2} was {k2}.',
        '{n} got into the {w} through the {x}. | {n} entered the {w} through the {x}.'),
    'choose': _kind('use', 'xy:COLOR kj/USE o:GEAR n:NAME w:PLACE',
        'The {x1} {o} was {k1}, and the {x2} {o} was {k2}.',
        '{t} {n} needed a {o} at the {w}. | At the {w} {n} needed a {o}.',
        '{n} took the {x} {o} to the {w}. | At the {w} {n} used the {x} {o}.',
        object='{x} {o}'),
    'eat': _kind('eat', 'xy:FOOD kj:NAME w:PLACE',
        '{k1} liked {x1}, and {k2} liked {x2}.',
        '{t} {k} was hungry at the {w}. | At the {w} {k} was hungry.',
        'At the {w} {k} ate some {x}. | {k} ate some {x} at the {w}.',
        character='k'),
    'travel': _kind('go', 'xy:PLACE kj:NAME o:FETCH',
        '{k1} went to the {x1}, and {k2} went to the {x2}. | '
        '{k1} rode to the {x1}, and {k2} rode to the {x2}.',
        '{t} {k} unpacked the {o}. | {k} took a {o} along.',
        '{k} had the {o} at the {x}. | {k} came home from the {x} with the {o}.',
        character='k', object='o', place='x'),
    'miss': _kind('see', 'xy:NAME kj/WELL o:SHOW w:PLACE',
        '{x1} {k1}, but {x2} {k2}.',
        'They wanted to see the {o} at the {w}.',
        '{x} saw the {o} at the {w} without {y}. | At the {w} {x} saw the {o} without {y}.',
        character='x', object='o'),
    'weather': _kind('take', 'kxjy:WEATHER n:NAME w:PLACE',
        'It was {k} at the {w}. | {n} saw that it was {k} at the {w}.',
        '{n} had a {x1} and a {x2}. | {n} could take a {x1} or a {x2}.',
        '{n} went to the {w} with the {x}. | {n} took the {x} to the {w}.'),
    'tool': _kind('work', 'kxjy:TASK n:NAME w:PLACE',
        '{n} wanted to {k} at the {w}. | At the {w} {n} had to {k}.',
        '{He} had a {x1} and a {x2}. | There was a {x1} and a {x2}.',
        'At the {w} {n} used the {x}. | {n} used the {x} at the {w}.'),
    'hold': _kind('stand', 'kx,jy:HOLD o:SEAT n:NAME w:PLACE',
        'The {o} at the {w} was {k}. | At the {w} there was a {k} {o}.',
        '{t} {n} climbed on the {o}. | {n} stood on the {o}.',
        'At the {w} the {o} {x} under {n}. | The {o} at the {w} {x} under {n}.',
        object='o'),
    'contest': _kind('compete', 'kx,jy:PRACTICE o:SPORT n:NAME w:PLACE',
        '{n} {k} {o}.',
        'There was a {o} contest at the {w}. | {t} the {w} held a {o} contest.',
        'At the {w} {n} {x} the {o} contest. | {n} {x} the {o} contest at the {w}.',
        object='o'),
    'wind': _kind('hold', 'kx,jy:WIND o:LIGHT n:NAME w:PLACE',
        'At the {w} {n} {k} the {o}.',
        'A strong wind blew all day. | {t} a strong wind blew.',
        '{n} {x} the {o} at the {w}. | At the {w} {n} {x} the {o}.',
        object='o'),
    'wet paint': _kind('touch', 'xy:COLOR kj:FURNITURE n:NAME m:NAME w:PLACE',
        '{m} painted the {k1} {x1} and the {k2} {x2}.',
        'At the {w} {n} touched the {k}. | {t} {n} touched the {k} at the {w}.',
        '{n} left the {w} with {x} hands. | At the {w} {n} got {x} hands.'),
    'open': _kind('open', 'xy:GOODS kj:BOX n:NAME w:PLACE',
        'The {k1} was full of {x1}, and the {k2} of {x2}. | '
        'There were {x1} in the {k1} and {x2} in the {k2}.',
        '{t} {n} opened the {k} at the {w}. | At the {w} {n} opened the {k}.',
        'At the {w} {n} found the {x}. | {n} left the {w} with the {x}.'),
    'unlock': _kind('unlock', 'xy:METAL kj:LOCK n:NAME w:PLACE',
        'The {k1} had a {x1} key, and the {k2} had a {x2} key. | '
        'A {x1} key opened the {k1}, and a {x2} key the {k2}.',
        '{n} opened the {k} at the {w}. | At the {w} {n} opened the {k}.',
        'At the {w} {n} used the {x} key. | {n} used the {x} key at the {w}.',
        object='{x} key'),
    'visit': _kind('eat', 'xy:DISH kj:DAY n:NAME m:NAME w:PLACE',
        '{m} made {x1} on {k1} and {x2} on {k2}. | On {k1} {m} made {x1} and on {k2} {x2}.',
        '{n} came to the {w} on {k}. | On {k} {n} came to the {w}.',
        '{n} ate the {x} at the {w}. | On {k} {n} ate {x} at the {w}.'),
    'afraid': _kind('feed some', 'xy:NAME kj/FEEL o:PETS w:PLACE',
        '{x1} {k1} {o}, but {x2} {k2} them.',
        'They saw some {o} at the {w}. | {t} they met some {o} at the {w}.',
        'At the {w} {x} fed the {o} and {y} hid. | {x} fed the {o} at the {w} and {y} hid.',
        character='x', object='o'),
    'return': _kind('get back', 'xy:NAME kj:TOY p:JOB w:PLACE',
        '{x1} lost a {k1}, and {x2} lost a {k2}.',
        'A {p} found the {k} at the {w}. | At the {w} a {p} found the {k}.',
        'At the {w} the {p} gave the {k} to {x}. | The {p} at the {w} gave the {k} to {x}.',
        character='x', object='k'),
    'teach': _kind('teach', 'xy:NAME o:SKILL w:PLACE',
        '{x} could {o}, but {y} could not. | {y} could not {o}, but {x} could.',
        '{t} they met at the {w}. | They spent the day at the {w}.',
        'At the {w} {x} taught {y} to {o}. | {x} taught {y} to {o} at the {w}.',
        character='x', object='o'),
    'reach': _kind('pick', 'xy:NAME o:FRUIT w:PLACE',
        '{x} was tall, but {y} was short. | {y} was short, but {x} was tall.',
        'The {o} at the {w} hung very high.',
        '{x} picked the {o} at the {w} for {y}. | At the {w} {x} picked {o} for {y}.',
        character='x', object='o'),
    'carry': _kind('carry', 'xy:NAME o:LOAD w:PLACE',
        '{x} was strong, but {y} was weak. | {y} was weak, but {x} was strong.',
        'The {o} at the {w} were very heavy.',
        '{x} carried the {o} at the {w} for {y}. | At the {w} {x} carried {o} for {y}.',
        character='x', object='o'),
}
KIND_NAMES = tuple(KINDS)
_SLOT = re.compile(r'([a-z]+)([:/])([A-Z+]+)|([a-z]+),([a-z]+):([A-Z]+)')

# --------------------------------------------------------------------------------------------------
# drawing one story

@dataclass(frozen=True)
class Story:
    id: str
    kind: str
    sentences: tuple    # two of context, then the right ending
    wrong: str          # the ending of the mirrored story
    tuple: tuple        # (character, object, place, event)
    words: frozenset    # that fill its slots: names, objects, places, clues

    @property
    def text(self):
        return ' '.join(self.sentences)

@dataclass(frozen=True)
class Item:
    id: str
    kind: str
    context: tuple      # two sentences
    right: str
    wrong: str          # contradicts the context (sSC)
    topic: str          # the right ending of another story (tSC)

@dataclass(frozen=True)
class _Draft:
    """A drawn story that is not yet text."""
    kind: str
    phrases: dict       # slot -> phrase
    words: frozenset
    templates: tuple    # of the three sentences
    tuple: tuple
    held_out: bool      # for evaluation

def pick(rng, options):
    """A random option. Python promises the same numbers in all its versions only for random() itself."""
    return options[int(rng.random() * len(options))]

def _two(rng, options):
    """Two entries whose last words begin with different letters, so that they are easily told apart by ear."""
    while True:
        pair = [pick(rng, options) for _ in range(2)]
        initials = {re.split('[ /]', entry)[-1][0] for entry in pair}
        if len(initials) == 2:
            return pair

def _fill(rng, slots):
    """Fills the slots of a kind with one draw: {slot: phrase}. The words of the phrases need not be distinct yet."""
    phrases = {}
    for names, separator, source, *_, rows in _SLOT.findall(slots):
        if rows:
            # 'kx,jy:WIND': an entry has a clue, its answer, the other clue and its answer. Either
            # clue may be told.
            row = pick(rng, LISTS[rows]).split('/')
            phrases |= zip('kxjy', row if rng.random() < 0.5 else row[2:] + row[:2])
        elif separator == '/':
            # 'kj/SPEED': an entry has the answer's side and the other side.
            phrases |= zip(names, pick(rng, LISTS[source]).split('/'))
        elif len(names) == 4:
            # 'kxjy:TASK': two entries, each a clue and its answer.
            phrases |= zip(names, '/'.join(_two(rng, LISTS[source])).split('/'))
        elif len(names) == 2:
            # 'xy:COLOR+TOY': two phrases, each with one word of every list.
            words = [_two(rng, LISTS[part]) for part in source.split('+')]
            phrases |= zip(names, map(' '.join, zip(*words)))
        else:
            phrases[names] = pick(rng, LISTS[source])
    return phrases

def _distinct(phrases):
    """The words in the slots, or None if a word occurs twice or two names have the same initial."""
    words = [word for phrase in phrases.values() for word in phrase.split() if word not in LINKERS]
    initials = [word[0] for word in words if word[0].isupper()]
    if len(set(words)) < len(words) or len(set(initials)) < len(initials):
        return None
    return frozenset(words)

def _draw(seed, index):
    """The _Draft of a story, a pure function of (seed, index)."""
    rng = random.Random(seed << 32 | index)
    name = pick(rng, KIND_NAMES)
    kind = KINDS[name]
    words = None
    while words is None:
        phrases = _fill(rng, kind.slots)
        words = _distinct(phrases)
    order = 'xkyj' if rng.random() < 0.5 else 'yjxk' # of mention
    for slot, source in zip(('x1', 'k1', 'x2', 'k2'), order):
        if source in phrases:
            phrases[slot] = phrases[source]
    phrases['He'] = 'She' if phrases.get('n') in SHE else 'He'
    phrases['t'] = pick(rng, LISTS['OPENER'])

    slots = (kind.character, kind.object, kind.place)
    parts = [slot.format_map(phrases) if '{' in slot else phrases[slot] for slot in slots]
    event = f"{kind.event}: {phrases['x']}" if ',' in kind.slots else kind.event
    # The hash leaves out whatever contains x, so the mirrored story belongs to the same split.
    shared = [kind.event, *(part for part, slot in zip(parts, slots) if 'x' not in slot)]
    held_out = zlib.crc32('|'.join(shared).encode()) % EVAL_ONE_IN == 0
    templates = tuple(pick(rng, forms) for forms in (kind.first, kind.second, kind.end))
    return _Draft(name, phrases, words, templates, (*parts, event), held_out)

def sentence(text):
    """The text with 'an' in place of 'a' before a vowel, and with its first letter a capital."""
    text = re.sub(r'\b([Aa]) (?=[aeiou])', r'\1n ', text)
    return text[0].upper() + text[1:]

def _tell(draft, id):
    phrases = draft.phrases
    sentences = tuple(sentence(template.format_map(phrases)) for template in draft.templates)
    mirrored = phrases | {'x': phrases['y'], 'y': phrases['x']}
    wrong = sentence(draft.templates[2].format_map(mirrored))
    return Story(id, draft.kind, sentences, wrong, draft.tuple, draft.words)

# --------------------------------------------------------------------------------------------------
# drawing many

def stories(split, n, seed=1):
    """Yields the first n distinct stories of a split ('train' or 'eval'); Refused for any other.

    The stories of a smaller n are the first ones of a larger n.
    """
    if split not in ('train', 'eval'):
        raise Refused(f"stories: no split '{split}'; expected 'train' or 'eval'")
    texts = set()
    index = 0
    while len(texts) < n:
        draft = _draw(seed, index)
        index += 1
        if draft.held_out == (split == 'eval'):
            story = _tell(draft, f'{split[0]}{len(texts):06d}')
            if story.text not in texts:
                texts.add(story.text)
                yield story

def items(n, seed=1):
    """The first n evaluation items. 2i and 2i+1 are a pair: the topic ending of each is the other's right ending."""
    paired = []
    single = [] # stories without a partner so far: usually one story or none
    for story in stories('eval', 2 * n + 100, seed):
        partner = next((candidate for candidate in single if not candidate.words & story.words), None)
        if partner is None:
            single.append(story)
            continue
        single.remove(partner)
        for a, b in ((partner, story), (story, partner)):
            paired.append(Item(a.id, a.kind, a.sentences[:2], a.sentences[2], a.wrong, b.sentences[2]))
        if len(paired) >= n:
            break
    return paired[:n]

# --------------------------------------------------------------------------------------------------
# baseline: choosing endings by word overlap alone

STOP = frozenset('''a an the and but or of on in at to by for with from under behind near beside
    inside into through was were had have has did not no is be it he she they them his her him
    there that some all only then later one day after more both before without up down over very
    too could'''.split())

def tokens(text):
    return re.findall('[a-z]+', text.lower())

def overlap(context, ending, stop=frozenset(), weighted=False):
    """The number of distinct words of the ending that occur in the context, without those in stop.

    weighted: each of these words counts as often as it occurs in the context.
    """
    context_words = [word for word in tokens(context) if word not in stop]
    ending_words = set(tokens(ending))
    return sum(context_words.count(word) if weighted else word in context_words for word in ending_words)

def baseline(items, stop=frozenset(), weighted=False):
    """{'sSC', 'tSC'}: the share of items whose right ending overlaps more with the context. Ties count half."""
    score = {'sSC': 0.0, 'tSC': 0.0}
    for item in items:
        context = ' '.join(item.context)
        right, wrong, topic = (overlap(context, ending, stop, weighted)
                               for ending in (item.right, item.wrong, item.topic))
        score['sSC'] += ((right > wrong) + (right >= wrong)) / 2
        score['tSC'] += ((right > topic) + (right >= topic)) / 2
    return {task: value / len(items) for task, value in score.items()}

# --------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Config:
    n: int = 100000                     # training stories to write
    out: str = 'out/data/stories.txt'   # one a line
    items: int = 0                      # if above 0: write nothing, print the baselines of this many evaluation items
    seed: int = 1                       # another seed gives other stories and items

    def __post_init__(self):
        if self.n < 1 or self.items < 0 or self.seed < 0:
            raise Refused(f"n={self.n}, items={self.items}, seed={self.seed}: expected n >= 1, items and seed >= 0")

BASELINES = {
    'types': {},
    'types, no stop words': dict(stop=STOP),
    'tokens': dict(weighted=True),
    'tokens, no stop words': dict(stop=STOP, weighted=True),
}

def main(cfg):
    if cfg.items:
        eval_items = items(cfg.items, cfg.seed)
        print(f'| word overlap, {len(eval_items)} items | sSC | tSC |\n|---|---|---|')
        for name, options in BASELINES.items():
            score = baseline(eval_items, **options)
            print(f"| {name} | {score['sSC']:.3f} | {score['tSC']:.3f} |")
        return
    with atomically(cfg.out) as tmp, open(tmp, 'w', encoding='ascii', newline='\n') as file:
        file.writelines(story.text + '\n' for story in stories('train', cfg.n, cfg.seed))
    print(f'{cfg.n} stories in {cfg.out}')

if __name__ == '__main__':
    run(main, Config)
