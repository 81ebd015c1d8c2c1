"""
A second seeded grammar, for the diverse part of the embedded corpus, which stands for the papers'
real speech.

    python -m tiny.talk --n=20000 --out=out/data/talk.txt     utterances, one a line

Its kinds are descriptions, talk, instructions, recipes, weather, times, prices, counts, directions,
opinions, work, nature, health and news. An utterance is one to three sentences of 6-14 words. Words
and syntax differ from the stories' (present and future tense, questions, orders, relative clauses,
reported speech, numbers in words); the two grammars share only common words.

In a template, '|' separates sentences. [LIST] is a random entry of a list and [LIST 2] a different
entry of it; the same name stands for the same entry wherever it returns. [one/two] is one of the
alternatives. A sentence ends with a period or a question mark.
"""
import random
import re
from dataclasses import dataclass

from configurator import Refused, run
from files import atomically
from tiny.stories import pick, sentence, word_list

# --------------------------------------------------------------------------------------------------
# numbers in words

ONES = word_list('''zero one two three four five six seven eight nine ten eleven twelve thirteen
    fourteen fifteen sixteen seventeen eighteen nineteen''')
TENS = word_list('twenty thirty forty fifty sixty seventy eighty ninety')

def number(n):
    """0 <= n < 1,000,000 in words."""
    if n < 20:
        return ONES[n]
    if n < 100:
        return TENS[n // 10 - 2] + (' ' + ONES[n % 10] if n % 10 else '')
    size, name = (100, 'hundred') if n < 1000 else (1000, 'thousand')
    return f'{number(n // size)} {name}' + (' ' + number(n % size) if n % size else '')

def _clock():
    for hour in ONES[1:13]:
        for part in ('half past', 'quarter past', 'quarter to', 'ten past', 'twenty to'):
            yield f'{part} {hour}'
        yield f'{hour} in the morning'

def _price():
    for dollars in range(2, 60):
        yield f'{number(dollars)} dollars'
        yield f'{number(dollars)} dollars and {number(5 + dollars * 7 % 19 * 5)} cents'

# --------------------------------------------------------------------------------------------------
# lists and templates

LIST_TEXTS = {
    'PERSON': '''my brother, my sister, my uncle, my cousin, my father, my mother, our neighbor,
        the doctor, the captain, the manager, the professor, my grandmother, my grandfather,
        the landlord, our teacher, the mechanic, the lawyer, the librarian, my roommate, the coach,
        the chef, the reporter, my nephew, the engineer, the mayor''',
    'ROOM': '''kitchen, bedroom, bathroom, living room, hallway, attic, basement, garage, office,
        dining room, library, balcony, laundry room, guest room, workshop''',
    'THING': '''clock painting carpet armchair vase mirror bookshelf fireplace lamp calendar radio
        telephone typewriter fan cupboard couch globe aquarium statue heater keyboard printer drawer
        candle curtain''',
    'SIDE': '''next to the window, above the door, in the corner, near the entrance,
        against the wall, under the shelf, beside the sofa, in the middle, on the left side,
        on the right side''',
    'STYLE': '''small large round heavy narrow tall ancient modern elegant simple expensive cheap
        dusty shiny strange beautiful broken antique colorful handmade secondhand''',
    'CITY': '''Paris, London, Boston, Chicago, Denver, Madrid, Berlin, Vienna, Dublin, Lisbon,
        Tokyo, Toronto, Oslo, Sydney, Moscow, Cairo, Athens, Dallas, Prague, Geneva, Seattle,
        Houston, Amsterdam, Barcelona, Singapore''',
    'MONTH': '''January February March April May June July August September October November
        December''',
    'DAY': 'Monday Tuesday Wednesday Thursday Friday Saturday Sunday',
    'WHEN': '''this morning, this afternoon, tonight, tomorrow, next week, on Monday, on Friday,
        this weekend, next month, at the end of the year, in two hours, before lunch, after work,
        by the end of the day''',
    'AGO': '''yesterday, last night, last week, two days ago, last summer, a month ago,
        last Tuesday, many years ago''',
    'SKY': '''sunny, cloudy, foggy, stormy, windy, humid, rainy, dry, snowy, mostly clear,
        partly cloudy, unusually warm''',
    'FALL': '''light rain, heavy rain, snow, thunderstorms, strong winds, thick fog, showers,
        clear skies, frost, hail''',
    'LAND': '''coast, mountains, northern valleys, southern islands, western plains, eastern hills,
        capital, lake district, desert, river delta, countryside, lowlands''',
    'VEG': '''garlic, onions, carrots, mushrooms, peppers, spinach, potatoes, tomatoes, celery,
        broccoli, zucchini, beans, cabbage, pumpkin, eggplant''',
    'SPICE': '''salt, pepper, cinnamon, ginger, basil, parsley, nutmeg, vanilla, paprika, oregano,
        mustard, turmeric, mint''',
    'MEAL': '''soup, stew, omelet, salad, sandwich, pie, curry, sauce, casserole, risotto, lasagna,
        chowder, cake, pizza, pudding''',
    'POT': 'pan, bowl, pot, dish, skillet, saucepan, kettle, tray',
    'LIQUID': '''water, milk, cream, olive oil, lemon juice, vinegar, vegetable broth, orange juice,
        melted butter''',
    'MINUTES': '''two, three, five, seven, eight, ten, twelve, fifteen, twenty, twenty five, thirty,
        forty, forty five''',
    'DEVICE': '''printer, washing machine, computer, camera, heater, engine, coffee machine,
        telephone, scanner, vacuum cleaner, dishwasher, radio, projector, generator, microwave,
        sewing machine''',
    'PART': '''cover, cable, filter, battery, handle, switch, lid, button, plug, panel, screw, hose,
        lever, lens, cartridge, belt''',
    'STREET': '''the bank, the post office, the pharmacy, the town hall, the police station,
        the university, the bus stop, the cathedral, the supermarket, the bookstore,
        the parking lot, the art gallery, the subway, the gas station''',
    'TURN': '''left, right, left at the traffic light, right at the corner, left after the bridge,
        right behind the church''',
    'SUBJECT': '''history, biology, geography, chemistry, physics, mathematics, grammar, music,
        economics, philosophy, astronomy, literature, medicine, law''',
    'WORK': '''report, contract, invoice, budget, schedule, presentation, proposal, survey,
        newsletter, application, summary, translation, agenda, database, website''',
    'HOBBY': '''hiking, painting, gardening, cycling, photography, reading novels, baking bread,
        playing cards, fishing, watching movies, collecting stamps, running marathons,
        learning languages, building models, playing the guitar''',
    'GOOD': '''interesting, wonderful, useful, relaxing, exciting, important, delightful,
        challenging, surprising, fascinating''',
    'BAD': '''boring, difficult, overrated, dangerous, expensive, confusing, awful, tiring,
        annoying, pointless''',
    'PRO': '''it keeps the mind active, it brings people together, it costs almost nothing,
        you always learn something, it is good for your health, everyone can take part,
        nobody is ever too old for it, it makes you think''',
    'CON': '''it takes too much time, nobody explains it well, the results are never certain,
        the equipment is so expensive, few people really understand it,
        there is too much to remember, you need a lot of patience''',
    'ANIMAL': '''elephant, whale, eagle, penguin, dolphin, crocodile, tiger, giraffe, bat, octopus,
        salmon, tortoise, gorilla, kangaroo, leopard, falcon, beaver, otter, shark, walrus, rhino,
        hyena, raccoon''',
    'HABITAT': '''rivers, forests, deserts, oceans, caves, grasslands, swamps, mountains,
        tropical jungles, cold regions, shallow waters, open fields, narrow streams''',
    'DIET': '''fish, leaves, insects, fruit, grass, roots, small animals, seeds, plants, eggs,
        shellfish, berries, worms''',
    'PLANT': '''roses, tulips, ferns, sunflowers, oak trees, pine trees, lavender, ivy, orchids,
        cactus plants, daffodils, maple trees, strawberries, herbs, vines''',
    'TRANSPORT': 'train, bus, ferry, flight, tram, shuttle, express train, night bus',
    'GOODS': '''tickets, books, shirts, shoes, bottles, chairs, batteries, notebooks, lamps,
        blankets, envelopes, glasses, jackets, towels, plates, pillows, umbrellas, toys, plants,
        magazines''',
    'BODY': 'shoulder, knee, back, ankle, elbow, wrist, stomach, throat, ear, neck, finger, foot',
    'CURE': '''drink plenty of water, rest for a few days, take this medicine twice a day,
        avoid heavy lifting, put some ice on it, do gentle exercises, call me if it gets worse,
        sleep with an extra pillow, stay away from work''',
    'EVENT': '''meeting, concert, wedding, lecture, conference, festival, exhibition, interview,
        dinner, workshop, party, football match, election, ceremony, rehearsal, auction''',
    'TASK': '''water the plants, lock the back door, feed the cat, call the office, buy some milk,
        clean the windows, send the letter, charge the battery, return the library books,
        take out the garbage, pay the electricity bill, book a table, pick up the children,
        turn off the lights, sign the form, wash the dishes, check the mailbox,
        pack the suitcases''',
    'SOON': '''next week, next month, this year, next spring, by the end of the year,
        as soon as possible, in March''',
    'FEEL': '''happy, nervous, tired, proud, worried, surprised, angry, hopeful, confused, grateful,
        lonely, excited''',
    'CRAFT': '''wool, leather, clay, silk, cotton, marble, paper, bamboo, metal, velvet, plastic,
        stone''',
    'FIRM': '''company, airline, hospital, museum, government, university, orchestra, factory,
        committee, city council, publisher, laboratory, railway, insurance office''',
    'PLAN': '''open a new branch, hire more people, raise its prices, close for repairs,
        change its name, publish the results, move to a larger building, offer free courses,
        build a second bridge, replace the old machines, cut its budget, start a new program,
        plant more trees, sell its old offices''',
}
LISTS = {name: word_list(text) for name, text in LIST_TEXTS.items()}
LISTS |= {
    'OPINION': LISTS['GOOD'] + LISTS['BAD'],
    'CLOCK': tuple(_clock()),
    'PRICE': tuple(_price()),
    'COUNT': tuple(map(number, range(3, 100))),
    'MANY': tuple(map(number, range(150, 9000, 50)))}

TEMPLATE_TEXTS = {
    'description': '''
        There is a [STYLE] [THING] [SIDE] of the [ROOM].
        The [ROOM] is [bright/dark/cold/warm/empty/tidy] and quiet. | A [STYLE] [THING] stands [SIDE].
        In the [ROOM] you can see a [STYLE] [THING] and a [STYLE 2] [THING 2].
        The [vase/statue/curtain/drawer/armchair/lampshade/box] in our [ROOM] is made of [CRAFT] and looks [STYLE].
        Nobody knows who put the [STYLE] [THING] [SIDE]. | It once belonged to [PERSON], I think.
        This [THING] is too [large/heavy/dark/modern/ugly] for the [ROOM]. | I would rather put it in the [ROOM 2].''',
    'talk': '''
        Could you please [TASK] before you leave? | I will [TASK 2] [WHEN].
        Did [PERSON] remember to [TASK]? | I think we forgot it [AGO].
        [PERSON] asked me whether you could [TASK] [WHEN].
        I am sorry, but I cannot [TASK] [WHEN]. | Maybe [PERSON] has some time for it.
        Why are you so [FEEL] today? | I heard that [PERSON] called [AGO].
        If you [TASK], I will [TASK 2]. | Then we can both relax a little.
        Have you spoken to [PERSON] since the [EVENT] [AGO]?
        Tell [PERSON] that I am [FEEL] about the [EVENT] [WHEN].
        Do not forget to [TASK]. | [PERSON] would be very [FEEL] otherwise.''',
    'instruction': '''
        First remove the [PART] of the [DEVICE]. | Then clean the [PART 2] with a soft cloth.
        Press the [PART] for [MINUTES] seconds until the [DEVICE] starts.
        If the [DEVICE] makes a noise, check the [PART] and the [PART 2].
        Before you use the [DEVICE], make sure that the [PART] is dry.
        Never touch the [PART] while the [DEVICE] is running.
        To replace the [PART], unplug the [DEVICE] and wait [MINUTES] minutes.
        Push the [PART] gently and turn the [PART 2] to the [left/right]. | After that the [DEVICE] should stop.''',
    'recipe': '''
        Chop the [VEG] and fry everything in a hot [pan/skillet/saucepan] with [SPICE].
        Add [COUNT] grams of [VEG] and a pinch of [SPICE]. | Let it all cook for [MINUTES] minutes.
        For this [MEAL] you need [VEG], [VEG 2] and a little [SPICE].
        Pour the [LIQUID] into the [POT] and stir it slowly for [MINUTES] minutes.
        Mix the [VEG] with [LIQUID], then season the [MEAL] with [SPICE] and [SPICE 2].
        Let the [MEAL] rest for [MINUTES] minutes before you add the [SPICE].
        Put the [MEAL] into the oven. | Take it out after [MINUTES] minutes and serve it with [VEG].''',
    'weather': '''
        It will be [SKY] near the [LAND] [WHEN], with [FALL] later.
        Expect [FALL] near the [LAND] and [FALL 2] around the [LAND 2].
        The weather in [CITY] will be [SKY] and [SKY 2] in [MONTH].
        Temperatures near the [LAND] may reach [COUNT] degrees [WHEN].
        A warning of [FALL] is in effect for the [LAND]. | Please drive carefully and keep your distance.
        In [CITY] it was [SKY] [AGO]. | Now there is a risk of [FALL].''',
    'time': '''
        The [EVENT] begins at [CLOCK] on [DAY] and lasts [MINUTES] hours.
        What time does the [TRANSPORT] to [CITY] leave? | It always leaves at [CLOCK].
        The [TRANSPORT] from [CITY] arrives at [CLOCK], [MINUTES] minutes late.
        My appointment with [PERSON] is on [DAY] at [CLOCK].
        The next [TRANSPORT] goes at [CLOCK]. | After that you must wait until [CLOCK 2].
        We are open from [CLOCK] every day except [DAY].''',
    'price': '''
        The [STYLE] [GOODS] cost [PRICE]. | All the others here are much [cheaper/nicer/smaller/better].
        How much are the [GOODS] over there? | Today they are only [PRICE] each.
        A ticket for the [EVENT] in [CITY] costs [PRICE].
        We sold [COUNT] [GOODS] [AGO] for [PRICE] each.
        I paid [PRICE] for [COUNT] [GOODS]. | That seems [rather expensive/quite cheap/fair enough/far too much] to me.
        The old price was [PRICE]. | Now they are asking [PRICE 2] for the [GOODS].''',
    'count': '''
        There are [COUNT] [GOODS] in the [ROOM] and [COUNT 2] [GOODS 2] in the [ROOM 2].
        About [MANY] people came to the [EVENT] in [CITY].
        The [museum/hospital/hotel/library/cinema] in [CITY] has [MANY] visitors a day.
        Please order [COUNT] [GOODS] and [COUNT 2] [GOODS 2] for the [EVENT].
        Chapter [COUNT] of the book is about [SUBJECT]. | The answers are on page [MANY].
        We counted [COUNT] [GOODS], but the list says [COUNT 2].''',
    'direction': '''
        To get to [STREET], turn [TURN] and walk for [MINUTES] minutes.
        Excuse me, how do I get from [STREET] to [STREET 2]? | Just go straight on and then turn [TURN].
        Go past [STREET] and turn [TURN]. | You will see [STREET 2] in front of you.
        [STREET] is between [STREET 2] and [STREET 3], on the [left/right].
        Take the [TRANSPORT] to [STREET] and get off at the [second/third/fourth/last] stop.
        You cannot park near [STREET]. | Leave the car behind [STREET 2].''',
    'opinion': '''
        I think [HOBBY] is [GOOD], because [PRO].
        I think [HOBBY] is [BAD], because [CON].
        Many people find [SUBJECT] [GOOD], although [CON].
        My friends find [SUBJECT] [BAD], even if [PRO].
        In my opinion [HOBBY] is more [OPINION] than [HOBBY 2].
        [PERSON] says that [SUBJECT] is [OPINION]. | I do not agree at all.
        Living in [CITY] can be [OPINION], especially in [MONTH].
        I have always preferred [HOBBY] to [HOBBY 2]. | It is usually less [OPINION] than people think.
        What do you like about [HOBBY]? | For me it is simply [OPINION].''',
    'work': '''
        The [WORK] must be finished [WHEN]. | [PERSON] will check it again.
        We need a new [WORK] for the [EVENT] in [MONTH].
        I have sent the [WORK] to [PERSON], who will read it [WHEN].
        [PERSON] studies [SUBJECT] in [CITY] and works on a [WORK].
        Is the [WORK] ready to be sent? | The [FIRM] has been waiting since [DAY].
        The [EVENT] about [SUBJECT] has been moved to [MONTH].
        There is a mistake on page [COUNT] of the [WORK]. | Please correct it [WHEN].''',
    'nature': '''
        The [ANIMAL] lives in [HABITAT] and feeds on [DIET] and [DIET 2].
        A young [ANIMAL] weighs about [COUNT] pounds and eats mostly [DIET].
        Unlike the [ANIMAL], the [ANIMAL 2] is rarely found in [HABITAT].
        [PLANT] grow best in [spring/summer/autumn/late summer], when the ground is still [wet/warm/soft/cool].
        If your [PLANT] turn brown, give them less water in [MONTH].
        Scientists in [CITY] study how the [ANIMAL] survives in [HABITAT].
        The [ANIMAL] can live for [COUNT] years. | It looks for [DIET] at night.''',
    'health': '''
        My [BODY] has been hurting since [DAY]. | What do you think I should do?
        If your [BODY] hurts, [CURE]. | I hope you will feel better [WHEN].
        [PERSON] hurt a [BODY] while [HOBBY] [AGO].
        The doctor told me to [CURE] because of my [BODY].
        You should [CURE]. | Your [BODY] needs at least [MINUTES] days.''',
    'news': '''
        The [FIRM] in [CITY] has decided to [PLAN] [SOON].
        According to [PERSON], the [FIRM] will [PLAN] in [MONTH].
        The [FIRM] wants to [PLAN], but [COUNT] people are against it.
        After the [EVENT] in [CITY], the [FIRM] promised to [PLAN].
        More than [MANY] people signed a letter against the [FIRM].
        The [FIRM] did not [PLAN] this year. | Most of the workers were very [FEEL].''',
}
KINDS = {kind: tuple(map(str.strip, text.strip().splitlines())) for kind, text in TEMPLATE_TEXTS.items()}
KIND_NAMES = tuple(KINDS)
_SLOT = re.compile(r'\[([^\]]+)\]')

# --------------------------------------------------------------------------------------------------
# drawing utterances

@dataclass(frozen=True)
class Utterance:
    id: str
    kind: str
    sentences: tuple

    @property
    def text(self):
        return ' '.join(self.sentences)

def _draw(seed, index):
    """-> kind, sentences; a pure function of (seed, index)."""
    rng = random.Random(seed << 32 | index)
    kind = pick(rng, KIND_NAMES)
    phrases = {} # slot -> phrase
    def fill(match):
        name = match[1]
        if name not in phrases:
            options = LISTS.get(name.split()[0]) or name.split('/')
            phrase = pick(rng, options)
            # No phrase fills two slots.
            while phrase in phrases.values():
                phrase = pick(rng, options)
            phrases[name] = phrase
        return phrases[name]
    text = _SLOT.sub(fill, pick(rng, KINDS[kind]))
    return kind, tuple(map(sentence, text.split(' | ')))

def utterances(n, seed=1):
    """Yields the first n distinct utterances whose sentences have 6-14 words.

    The utterances of a smaller n are the first ones of a larger n.
    """
    seen = set()
    index = 0
    while len(seen) < n:
        kind, sentences = _draw(seed, index)
        index += 1
        if sentences not in seen and all(6 <= len(text.split()) <= 14 for text in sentences):
            yield Utterance(f'u{len(seen):06d}', kind, sentences)
            seen.add(sentences)

# --------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Config:
    n: int = 20000                   # utterances to write
    out: str = 'out/data/talk.txt'   # one a line
    seed: int = 1                    # another seed gives other utterances

    def __post_init__(self):
        if self.n < 1 or self.seed < 0:
            raise Refused(f'n={self.n}, seed={self.seed}: expected n >= 1 and seed >= 0')

def main(cfg):
    with atomically(cfg.out) as tmp, open(tmp, 'w', encoding='ascii', newline='\n') as file:
        file.writelines(utterance.text + '\n' for utterance in utterances(cfg.n, cfg.seed))
    print(f'{cfg.n} utterances in {cfg.out}')

if __name__ == '__main__':
    run(main, Config)
