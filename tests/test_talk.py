"""
The page to talk to a model: the shipped one answers, without a browser and in one.
"""
import re
import shutil
import socket
import sys
import threading
from dataclasses import replace
from pathlib import Path
from time import sleep

import numpy as np
import pytest
import soundfile

from configurator import Refused
from listening import talk
from listening.page import joined_waves
from listening.speaker import Speaker
from sample import Config
from speech.audio import RATE
from vocab import TEXT, UNITS

PROMPT = 'tiny/audio/m00000.context.flac'

@pytest.fixture(scope='module')
def speaker():
    return Speaker(Config(serve=7860, output='free', device='cpu'), hears=True)

@pytest.fixture
def cfg():
    return Config(serve=7860, device='cpu')

def times():
    return {'generate': 0.0, 'speak': 0.0}

def answer(speaker, cfg, kind='new', path=PROMPT, text='', output='speech', seconds=4, seed=0, state=None):
    return list(talk.talk(speaker, cfg, kind, path, text, output, seconds, 0.8, seed, state or {}))

def test_what_is_spoken_while_it_is_generated_is_what_is_spoken_at_the_end(speaker, cfg):
    prompt = [speaker.read_audio(PROMPT)]
    request = replace(cfg, max_new_tokens=200)
    steps = list(speaker.grow(request, prompt, times(), may_end=False))
    units = steps[-1][0]['units']
    assert len(units) == 200 and len(steps) > 3
    wave, = speaker.vocoder.speak([units])
    pieces = [joined_waves(spans) for spans in steps]
    assert len(pieces[0]) >= 0.4 * RATE # the first piece is worth hearing
    for piece, longer in zip(pieces, pieces[1:]):
        assert len(piece) < len(longer)
        np.testing.assert_allclose(piece, wave[:len(piece)], atol=1e-3) # 60 dB below full scale
    assert len(pieces[-1]) == len(wave)

def test_by_pieces_or_at_once_a_seed_gives_the_same_units(speaker, cfg):
    prompt = [speaker.read_audio(PROMPT)]
    request = replace(cfg, seed=3)
    [whole], = speaker.generate(request, [prompt])
    *_, [grown] = speaker.grow(request, prompt, times())
    assert grown['units'] == whole['units']

def test_a_free_continuation_has_text_and_speech(speaker, cfg):
    prompt = [speaker.read_audio(PROMPT), {'kind': TEXT, 'text': 'to see the'}]
    for seed in range(5):
        *_, spans = speaker.grow(replace(cfg, output='free', seed=seed), prompt, times())
        if {span['kind'] for span in spans} == {TEXT, UNITS}:
            break
    else:
        pytest.fail("five continuations are of one modality each")
    wave = joined_waves(spans)
    assert len(wave) == sum(round(span['seconds'] * RATE) for span in spans if span['kind'] == UNITS)

def test_a_prompt_is_encoded_once(speaker, cfg, monkeypatch):
    *_, (sound, shown, seed, state) = answer(speaker, cfg)
    assert seed == 0 and shown.count('<audio') == 2 and 'units/s' in shown and re.search(r'generate \d+\.\d\d s', shown)
    monkeypatch.setattr(speaker, 'encoder', None)
    *_, (_, _, seed, again) = answer(speaker, cfg, 'again', path=None, state=state)
    assert seed == 1 and again['prompt'] == state['prompt']
    assert again['spans'][0]['units'] != state['spans'][0]['units']
    *_, (_, _, seed, more) = answer(speaker, cfg, 'more', path=None, state=again)
    assert more['prompt'] == again['prompt'] + again['spans'] and len(more['spans'][0]['units']) == 100

def test_an_end_is_shown_and_can_be_talked_past(speaker, cfg, monkeypatch):
    def ends(prompts, n, temperature, top_k, penalty, allowed, stop, generator):
        [end] = stop
        for _ in range(1 if allowed[end] else n):
            yield [end if allowed[end] else 2048]
    monkeypatch.setattr(speaker.model, 'stream', ends)
    *_, (_, shown, _, state) = answer(speaker, cfg)
    assert '(ended at once)' in shown and state['spans'] == []
    *_, (_, shown, _, state) = answer(speaker, cfg, 'more', state=state)
    assert '(ended at once)' not in shown and set(state['spans'][0]['units']) == {0}

@pytest.mark.parametrize('path, text, line', [
    (None, ' ', "nothing to continue: record something, drop a file of audio, or type some words"),
    ('long.wav', '', "a recording of 61 s: at most 60 s are taken; cut it"),
    ('text.wav', '', "text.wav: NOT_AUDIO"),
    ('short.wav', '', "short.wav: 639 samples at 16000 Hz, one unit takes 640"),
    ('<b>.wav', '', "&lt;b&gt;.wav: MISSING")])
def test_what_cannot_be_continued_is_answered_in_one_line(speaker, cfg, path, text, line, tmp_path, monkeypatch):
    root = Path.cwd()
    monkeypatch.chdir(tmp_path)
    soundfile.write('long.wav', np.zeros(61 * 8000), 8000)
    soundfile.write('short.wav', np.zeros(639), 16000)
    Path('text.wav').write_text('once')
    state = {'prompt': [], 'spans': []}
    [((_, data), shown, _, after)] = answer(speaker, cfg, path=path, text=text, state=state)
    assert line in shown and shown.count('\n') == 0 and data == '' and after is state
    monkeypatch.chdir(root)

def test_what_is_typed_is_shown_as_text(speaker, cfg):
    *_, (_, shown, _, _) = answer(speaker, cfg, path=None, text='<script>alert(1)</script>', output='text')
    assert '<script' not in shown and '&lt;script&gt;' in shown

def test_a_page_needs_gradio_a_model_that_speaks_and_a_port(monkeypatch, tmp_path):
    monkeypatch.setattr(talk, 'Speaker', lambda cfg, hears: text_model)
    text_model = type('TextModel', (), {'vocab': type('Vocab', (), {'kind': 'text'})})
    with pytest.raises(Refused, match="a text-only model can neither hear nor speak"):
        talk.serve(Config(serve=7860, out=str(tmp_path)))
    text_model.vocab.kind = 'joint'
    monkeypatch.setitem(sys.modules, 'gradio', None)
    with pytest.raises(Refused, match=r"--serve needs Gradio.*pip install gradio=="):
        talk.serve(Config(serve=7860, out=str(tmp_path)))
    with pytest.raises(Refused, match="leave --prompt and --prompts out"):
        Config(serve=7860, prompt='a')

# --------------------------------------------------------------------------------------------------
# in a browser

WAIT = 120 # seconds, until a page is taken to hang

STEPS = 50

class SlowSpeaker:
    """A Speaker that speaks five seconds, a tenth of a second at a time, each when it is told to."""
    def __init__(self, speaker):
        self.speaker = speaker
        self.vocab = speaker.vocab
        self.vocoder = speaker.vocoder
        self.go = threading.Semaphore(0)
        self.begun = threading.Semaphore(0)
        self.closed = threading.Event()

    def __getattr__(self, name):
        return getattr(self.speaker, name)

    def grow(self, *args, **options):
        self.begun.release()
        try:
            for step in range(1, STEPS + 1):
                self.go.acquire()
                wave = np.full(RATE * step // 10, 0.1, np.float32)
                yield [{'kind': UNITS, 'units': [0] * step, 'seconds': step / 10, 'wave': wave}]
        finally:
            self.closed.set()

@pytest.fixture(scope='module')
def browser():
    webdriver = pytest.importorskip('selenium.webdriver')
    pytest.importorskip('gradio')
    driver = shutil.which('chromedriver')
    if driver is None:
        pytest.skip("no chromedriver (Debian: chromium-driver)")
    options = webdriver.ChromeOptions()
    # Whatever is not on this machine cannot be reached.
    for argument in ('headless=new', 'no-sandbox', 'host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1'):
        options.add_argument(f'--{argument}')
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield chrome
    chrome.quit()

@pytest.fixture
def open_page(browser, speaker, tmp_path, monkeypatch):
    """Serves the page of a Speaker and opens it -> its address."""
    pages = []
    def serve(speaker):
        with socket.socket() as free:
            free.bind(('127.0.0.1', 0))
            port = free.getsockname()[1]
        monkeypatch.setattr(talk, 'Speaker', lambda cfg, hears: speaker)
        monkeypatch.setattr(talk, 'build', lambda *args, build=talk.build: pages.append(build(*args)) or pages[-1])
        talk.serve(Config(serve=port, out=str(tmp_path / 'out'), device='cpu'), prevent_thread_lock=True, quiet=True)
        browser.get(f'http://127.0.0.1:{port}')
        until(lambda: browser.find_elements('id', 'new'))
        browser.execute_script(
            "window.sounds = []; const play = hear; hear = sound => { sounds.push(sound[1].length); play(sound) }")
        return f'http://127.0.0.1:{port}'
    yield serve
    for page in pages:
        page.close()

def until(condition):
    for _ in range(10 * WAIT):
        value = condition()
        if value:
            return value
        sleep(0.1)
    raise TimeoutError

def press(browser, name):
    browser.find_element('id', name).click()

def drop(browser, path):
    until(lambda: browser.find_elements('css selector', 'button[aria-label="Upload file"]'))[0].click()
    until(lambda: browser.find_elements('css selector', 'input[type=file]'))[0].send_keys(str(Path(path).resolve()))
    until(lambda: not browser.find_elements('css selector', 'input[type=file]'))

def shown(browser):
    return browser.find_element('id', 'shown').text

def durations(browser):
    return browser.execute_script("return [...document.querySelectorAll('#shown audio')].map(audio => audio.duration)")

@pytest.mark.slow
def test_in_a_browser_one_drops_a_file_and_hears_and_reads_the_answer(browser, speaker, open_page, tmp_path):
    before = set(Path.cwd().iterdir())
    address = open_page(speaker)
    drop(browser, PROMPT)
    press(browser, 'new')
    until(lambda: 'of the time' in shown(browser))
    prompt, continuation = until(lambda: all(durations(browser)) and durations(browser))
    info = soundfile.info(PROMPT)
    assert prompt == pytest.approx(info.frames / info.samplerate, abs=0.01)
    assert continuation > 1 and f'{continuation:.1f} s' in shown(browser)
    sounds = browser.execute_script('return sounds')
    assert len(sounds) >= 2 and sounds[0] < sounds[-1] # it was heard before it was whole
    (tmp_path / 'text.wav').write_text('once')
    browser.refresh()
    until(lambda: browser.find_elements('id', 'new'))
    assert shown(browser) == ''
    drop(browser, tmp_path / 'text.wav')
    press(browser, 'new')
    until(lambda: 'text.wav: NOT_AUDIO' in shown(browser))
    assert set(Path.cwd().iterdir()) == before and (tmp_path / 'out' / 'uploads').is_dir()
    assert address in browser.current_url

@pytest.mark.slow
def test_in_a_browser_two_visitors_take_turns_and_one_who_leaves_is_not_worked_for(browser, speaker, open_page):
    slow = SlowSpeaker(speaker)
    address = open_page(slow)
    first = browser.current_window_handle
    text = browser.find_element('css selector', '#text textarea')
    text.send_keys('Tom had a kite')
    press(browser, 'new')
    assert slow.begun.acquire(timeout=WAIT)
    browser.switch_to.new_window('tab')
    second = browser.current_window_handle
    browser.get(address)
    until(lambda: browser.find_elements('css selector', '#text textarea'))[0].send_keys('Anna had a drum')
    press(browser, 'new')
    until(lambda: 'queue' in browser.find_element('tag name', 'body').text)
    assert not slow.begun.acquire(timeout=1) # one at a time
    browser.switch_to.window(first)
    browser.close()
    for step in range(STEPS - 1): # not to the end
        slow.go.release()
        if slow.closed.wait(1):
            break
    assert slow.closed.is_set() and step < STEPS - 2
    browser.switch_to.window(second)
    assert slow.begun.acquire(timeout=WAIT)
    slow.go.release(STEPS)
    until(lambda: durations(browser) == [5])
