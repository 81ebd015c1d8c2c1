"""
How long one who spoke waits for an answer on the page of `sample.py --serve`, with the shipped model.

    python bench/talk.py              answers of about 4 and 10 seconds to a spoken prompt, seven of each
    python bench/talk.py --dry        once, nothing written

Two ways take turns: speech that is heard while the rest is generated, as the page does it, and speech
that is heard when all is generated. The time runs from the end of the prompt, which is a file on this
machine, and includes reading and encoding it; the browser's part is not in it. `sound` is when the
first sound is there, `all` when the last is, `speech` how long the answer lasts, all in seconds.

Writes bench/results/talk.json.
"""
import statistics
import sys
from functools import partial
from pathlib import Path
from time import perf_counter

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench.common import save, table
from listening.page import joined_waves
from listening.speaker import Speaker
from listening.talk import read_prompt
from sample import Config
from speech.audio import RATE

PROMPT = 'tiny/audio/m00000.context.flac'

def seconds_until(answer, speaker):
    """(seconds until the first sound, until the last, of speech) of an answer; answer(prompt) yields its spans."""
    begin = perf_counter()
    first = None
    for spans in answer(read_prompt(speaker, PROMPT, '')):
        wave = joined_waves(spans)
        if first is None and len(wave):
            first = perf_counter() - begin
    return first, perf_counter() - begin, len(wave) / RATE

def rows(repeats):
    speaker = Speaker(Config(serve=1, output='free', device='cpu'), hears=True)

    def while_generated(prompt, cfg):
        return speaker.grow(cfg, prompt, {'generate': 0.0, 'speak': 0.0}, may_end=False)

    def when_all_is_generated(prompt, cfg):
        spans, = speaker.generate(cfg, [prompt], may_end=False)
        speaker.speak(spans)
        yield spans

    ways = {'while it is generated': while_generated, 'when all is generated': when_all_is_generated}
    for tokens in (100, 250):
        times = {way: [] for way in ways}
        for seed in range(repeats + 1):
            cfg = Config(serve=1, max_new_tokens=tokens, seed=seed)
            for way, answer in ways.items():
                times[way].append(seconds_until(partial(answer, cfg=cfg), speaker))
        for way, taken in times.items():
            sound, everything, speech = (statistics.median(column) for column in zip(*taken[1:])) # the first warms up
            yield {'tokens': tokens, 'heard': way, 'sound': sound, 'all': everything, 'speech': speech,
                   'all / speech': everything / speech}

if __name__ == '__main__':
    if sys.argv[1:] not in ([], ['--dry']):
        raise SystemExit(__doc__)
    dry = '--dry' in sys.argv
    done = table(rows(1 if dry else 7), 'tokens', 'heard', 'sound', 'all', 'speech', 'all / speech')
    save('talk', dry, rows=done)
