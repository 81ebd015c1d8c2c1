"""
A page on which one speaks to a model, hears what it says next, and reads it: `python sample.py --serve=7860`.

It is built with Gradio, which the demos of this field use. The page needs no network: speech is played by the browser
while the rest is still being generated, and what is shown is made by listening/page.py. One continuation is generated
at a time; other visitors see their place in the queue. What a page sends lies in OUT/uploads while the page is open.
"""
import base64
import html
import os
from dataclasses import replace
from functools import partial
from time import perf_counter, time_ns

from configurator import Refused
from listening.page import STYLE, joined_waves, marked_words, section, strip
from listening.speaker import Speaker
from speech.audio import RATE, seconds_and_rate
from vocab import TEXT

LONGEST = 60 # seconds of a recording
LARGEST = '10mb' # of a file

# Plays what is new in a wave that grows. A wave with another number is a new one; number 0 is silence.
PLAYER = """<script>
let heard = {}
window.hear = ([number, data]) => {
  if (number !== heard.number) {
    heard.audio?.close()
    heard = {number, samples: 0, time: 0, audio: new AudioContext()}
  }
  const wave = new Int16Array(Uint8Array.from(atob(data), c => c.charCodeAt(0)).buffer).slice(heard.samples)
  if (!wave.length) return
  const buffer = heard.audio.createBuffer(1, wave.length, RATE)
  buffer.copyToChannel(Float32Array.from(wave, x => x / 32768), 0)
  const source = new AudioBufferSourceNode(heard.audio, {buffer})
  source.connect(heard.audio.destination)
  heard.time = Math.max(heard.time, heard.audio.currentTime)
  source.start(heard.time)
  heard.samples += wave.length
  heard.time += buffer.duration
}
</script>""".replace('RATE', str(RATE))

def read_prompt(speaker, path, text):
    """The spans of a recording and of a text, one of which may be missing. Raises Refused."""
    spans = []
    if path:
        seconds, _ = seconds_and_rate(path)
        if seconds > LONGEST:
            raise Refused(f"a recording of {seconds:.0f} s: at most {LONGEST} s are taken; cut it")
        spans.append(speaker.read_audio(path))
    if text.strip():
        spans.append({'kind': TEXT, 'text': text.strip()})
    if not spans:
        raise Refused("nothing to continue: record something, drop a file of audio, or type some words")
    return spans

def as_sound(number, spans):
    """What the player takes: the number of a continuation, its speech so far as base64 of int16 samples."""
    wave = joined_waves(spans)
    samples = b'' if wave is None else (wave.clip(-1, 1) * 32767).astype('<i2').tobytes()
    return [number, base64.b64encode(samples).decode()]

def times_taken(times, spans):
    """A line of what each part took, and the real-time factor of the speech."""
    parts = ', '.join(f'{name} {seconds:.2f} s' for name, seconds in times.items() if seconds)
    wave = joined_waves(spans)
    if wave is not None and len(wave):
        until_spoken = sum(times.values()) - times['transcribe']
        parts += f'; until all was spoken, {until_spoken * RATE / len(wave):.2f} of the time that it lasts'
    return f'<p class="about">{parts}</p>'

def talk(speaker, cfg, kind, path, text, output, seconds, temperature, seed, state):
    """Answers a visitor. Yields (what is heard so far, html, seed, state), more each time.

    kind: 'new' reads recording and text, 'again' continues the same prompt with the next seed, 'more' goes
    on from the continuation, also where the model would end. state: {'prompt': spans, 'spans': spans}.
    """
    times = dict.fromkeys(('encode', 'generate', 'speak', 'transcribe'), 0.0)
    number = str(time_ns())
    begin = perf_counter()
    try:
        if kind == 'new' or not state:
            prompt = read_prompt(speaker, path, text)
        elif kind == 'more':
            prompt = state['prompt'] + state['spans']
        else:
            prompt = state['prompt']
            seed += 1
        times['encode'] = perf_counter() - begin
        request = replace(cfg, output=output, temperature=temperature, seed=seed,
                          max_new_tokens=round(seconds * RATE / speaker.vocoder.hop))
        for spans in speaker.grow(request, prompt, times, may_end=kind != 'more'):
            yield as_sound(number, spans), strip(prompt + spans) + marked_words(prompt + spans), seed, state
        begin = perf_counter()
        speaker.transcribe(prompt + spans)
        times['transcribe'] = perf_counter() - begin
        shown = section('prompt', prompt) + section('continuation', spans) + times_taken(times, spans)
        yield as_sound(number, spans), shown, seed, {'prompt': prompt, 'spans': spans}
    except Refused as e:
        yield [number, ''], f'<p class="refused">{html.escape(str(e))}</p>', seed, state

def build(speaker, cfg):
    """The page of a Speaker, not served yet."""
    import gradio as gr  # takes seconds, and is not needed elsewhere
    outputs = ('speech', 'text', 'free') if speaker.vocab.kind == 'joint' else ('speech',)
    with gr.Blocks(title="Talk to nanoSLM", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown(f"# Talk to nanoSLM\nSay or type a beginning; {html.escape(cfg.model)} goes on from it.")
        audio = gr.Audio(sources=['microphone', 'upload'], type='filepath', buttons=[],
                         label="say it, or drop a file")
        text = gr.Textbox(label="or type it; after the recording, if there is one", elem_id='text')
        with gr.Row():
            output = gr.Radio(outputs, value='speech', label="what comes back")
            seconds = gr.Slider(1, 20, 4, step=1, label="seconds, at least")
            temperature = gr.Slider(0, 1.5, cfg.temperature, label="temperature")
            seed = gr.Number(cfg.seed, precision=0, minimum=0, maximum=2 ** 31, label="seed")
        sound = gr.JSON(visible='hidden')
        shown = gr.HTML(elem_id='shown', render=False)
        state = gr.State({})
        answers = []
        with gr.Row():
            for kind, label in (('new', "Continue"), ('again', "Again"), ('more', "Say more")):
                answers.append(gr.Button(label, elem_id=kind, min_width=140).click(
                    partial(talk, speaker, cfg, kind), [audio, text, output, seconds, temperature, seed, state],
                    [sound, shown, seed, state], concurrency_id='model', concurrency_limit=1, show_progress_on=shown))
            gr.Button("Stop", elem_id='stop', min_width=140).click(None, cancels=answers)
        shown.render()
        sound.change(None, sound, js='hear')
    return page

def serve(cfg, **options):
    """Serves the page until Ctrl-C. Raises Refused: no Gradio, a text-only model, a port that is taken."""
    os.environ['GRADIO_TEMP_DIR'] = os.path.abspath(f'{cfg.out}/uploads')
    speaker = Speaker(replace(cfg, output='free'), hears=True)
    if speaker.vocab.kind == 'text':
        raise Refused(f"{cfg.model}: a text-only model can neither hear nor speak; give a speech model")
    try:
        build(speaker, cfg).launch(server_name=cfg.host, server_port=cfg.serve, max_file_size=LARGEST, css=STYLE,
                                   head=PLAYER, share=False, footer_links=[], **options)
    except ImportError as e:
        raise Refused(f"--serve needs Gradio, which cannot be imported ({e}): pip install gradio==6.31.0") from None
    except OSError as e:
        raise Refused(f"--serve={cfg.serve}: {e}; take another port") from None
