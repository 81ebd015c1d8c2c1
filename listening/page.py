"""
samples.html and what the talk page shows: players, a strip of spans over time, and the words of each span.
"""
import base64
import html
import io

import numpy as np
import soundfile

from speech.audio import RATE
from vocab import TEXT, UNITS

NAMES = {UNITS: 'speech', TEXT: 'text'}
STYLE = """
 .about { color: #666 } p { margin: .25rem 0; overflow-wrap: anywhere }
 audio { width: 100%; height: 2.5rem }
 .strip { display: flex; gap: 2px; margin: .35rem 0; font-size: .8rem; line-height: 1.6rem }
 .strip span { min-width: 2px; padding: 0 .3rem; overflow: hidden; white-space: nowrap;
               text-overflow: ellipsis; border-radius: 3px }
 .strip .speech { background: #0072B2; color: #fff } .strip .text { background: #F0C870; color: #222 }
 mark { background: none; color: inherit; border-bottom: 3px solid #F0C870 } mark.speech { border-color: #0072B2 }
"""
PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
 body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem;
         color: #222; background: #fff }}
 article {{ border-top: 1px solid #ddd; padding: .75rem 0 1rem }}
 h1 {{ font-size: 1.4rem }} h2 {{ font-size: 1rem; margin: .25rem 0 }}{style}</style>
<h1>{title}</h1><p class="about">{about}</p>
{body}</html>
"""
SECONDS_A_WORD = 0.35 # the width of a written word in the strip, about what saying it takes

def text_of_span(span):
    """A span's text, or what Whisper heard in its speech, or what is known to be said; None if nothing is."""
    return span['text'] if span['kind'] == TEXT else span.get('heard', span.get('transcript'))

def strip(spans):
    """The spans as bars over time, as wide as they last, or as reading them aloud would last."""
    bars = []
    for span in spans:
        if span['kind'] == UNITS:
            seconds = span['seconds']
            label = f"{seconds:.1f} s"
            if seconds:
                label += f", {len(span['units']) / seconds:.0f} units/s"
        else:
            seconds = SECONDS_A_WORD * len(span['text'].split())
            label = html.escape(span['text'])
        bars.append(f'<span class="{NAMES[span["kind"]]}" style="flex:{100 * max(seconds, 0.05):.0f} 1 0" '
                    f'title="{html.escape(text_of_span(span) or label)}">{label}</span>')
    return f'<div class="strip">{"".join(bars)}</div>'

def marked_words(spans):
    """The words of the spans, each span underlined in the color of its modality."""
    marks = [f'<mark class="{NAMES[span["kind"]]}">{html.escape(text_of_span(span)) or "(nothing)"}</mark>'
             for span in spans if text_of_span(span) is not None]
    return f'<p>{" ".join(marks)}</p>' if marks else ''

def speech_of(spans):
    return [span for span in spans if span['kind'] == UNITS]

def joined_waves(spans):
    """The speech of all spans as one wave; None if there is none."""
    waves = [span['wave'] for span in speech_of(spans)]
    return np.concatenate(waves) if waves else None

def wav_bytes(wave):
    data = io.BytesIO()
    soundfile.write(data, wave, RATE, format='WAV', subtype='PCM_16')
    return data.getvalue()

def player(spans):
    """The audio of the spans; nothing if they have none."""
    wave = joined_waves(spans)
    if wave is None:
        return ''
    data = base64.b64encode(wav_bytes(wave)).decode()
    return f'<audio controls src="data:audio/wav;base64,{data}"></audio>'

def section(heading, spans):
    if not spans:
        return f'<h2>{heading}</h2><p class="about">(ended at once)</p>'
    return f'<h2>{heading}</h2>{strip(spans)}{marked_words(spans)}{player(spans)}'

def page(samples, cfg):
    """samples.html: strip, words and player of each prompt and continuation, with their audio."""
    articles = []
    for sample in samples:
        prompt = section(f"{sample['name']} prompt", sample['prompt'])
        continuation = section('continuation', sample['spans'])
        articles.append(f'<article>{prompt}{continuation}</article>')
    about = (f"{html.escape(cfg.model)}, temperature {cfg.temperature:g}, top-k {cfg.top_k}, "
             f"seed {cfg.seed}. Audio is 16 kHz; continuations are spoken by "
             f"{html.escape(cfg.vocoder)} from generated units. Blue is speech, yellow text.")
    if cfg.asr:
        about += f" The words of speech are what {html.escape(cfg.asr)} heard."
    else:
        about += " The words of spoken prompts are those of their text files; of spoken continuations, none are known."
    return PAGE.format(title="nanoSLM samples", style=STYLE, about=about, body='\n'.join(articles))
