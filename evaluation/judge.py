"""
A chat model's mark, 1 to 5, of a spoken continuation: the papers' GPTScore (Slam 3), and a rubric of our own.

    rubric = read_rubric('papers')                          or 'ours', or the file of another one
    mark = rubric.mark(ask(cfg, rubric.fill(prompt, continuation)))

Three rubrics:

    papers   the papers' question (how likely and how relevant is the continuation?) and their form of answer
             (\\boxed{x} after a short analysis), in our words: another judge than theirs, near it at most
    FILE     a text, or a .yaml whose `instruction` is one, with [prompt_audio_transcription] and
             [generated_audio_transcription] where the transcripts go. With slamkit's config/metric/llm_as_judge.yaml
             the judge is the papers' own, to the letter
    ours     asks for sense, grammar and topic; answers "Score: x"

A mark is the whole number in the first match of the rubric's form of answer. slamkit takes any number
there; here a number that is not 1 to 5 is no mark. Transcripts begin with a blank, as Whisper writes
them and slamkit hands them on.
"""
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

import requests

from configurator import Refused

PROMPT = '[prompt_audio_transcription]'
CONTINUATION = '[generated_audio_transcription]'
BOXED = r'\\boxed\{(\d+)\}'
SCORE = r'(?im)^\W*score\W*(\d+)\b(?![.,]\d)'

PAPERS = """\
Below are two texts: a prompt, and what a model predicted to come after it. Judge the prediction by two things: is it \
probable as the next words, and has it to do with the prompt? Ask yourself also whether it means anything sensible.

Prompt:"[prompt_audio_transcription]"
Prediction:"[generated_audio_transcription]"

Give one mark for all of this:
1 - hardly anyone would go on like this, and it is about something else
2 - improbable, with little to do with the prompt
3 - neither probable nor improbable, and partly to do with the prompt
4 - probable, and to do with the prompt
5 - just what one would expect, and closely tied to the prompt

Start with a few words that weigh the prediction by these marks. Then end with exactly this sentence, with your mark \
in place of x: "The final answer is $\\boxed{x}$"."""

OURS = """\
You will read two transcripts. The first is of a short piece of speech; the second is of what a machine said to
go on from it. Speech recognition made both, so overlook spelling, punctuation and a word cut off at either edge. \
Ask only \
how good the second is as a continuation of the first: does it make sense, is it grammatical, does it stay on the \
matter?

1  no continuation: nonsense, or about something else altogether
2  a few words fit, the whole does not make sense
3  one can follow it, with clear breaks in sense, grammar or topic
4  a sensible continuation with small faults
5  what a person might well have said: fluent, coherent, on the matter

First:[prompt_audio_transcription]
Second:[generated_audio_transcription]

Give a sentence of reasons, then, on a line of its own, "Score: " and one whole number from 1 to 5."""

@dataclass(frozen=True)
class Rubric:
    """instruction: a text with PROMPT and CONTINUATION in it; answer: a pattern whose group 1 is the mark."""
    instruction: str
    answer: str

    def fill(self, prompt, continuation):
        """The message of two transcripts."""
        texts = {PROMPT: prompt, CONTINUATION: continuation}

        def transcript(match):
            text = texts[match.group()]
            return f' {text}' if text else ''

        return re.sub('|'.join(map(re.escape, texts)), transcript, self.instruction)

    def mark(self, text):
        """The mark in a judge's answer, an int from 1 to 5, or None."""
        match = re.search(self.answer, text)
        mark = match and match.group(1)
        return int(mark) if mark in ('1', '2', '3', '4', '5') else None

def read_rubric(name, answer=''):
    """'papers', 'ours' or a file -> Rubric. answer: its form of answer; '': the papers', or that of 'ours'."""
    if name in ('papers', 'ours'):
        instruction = PAPERS if name == 'papers' else OURS
    else:
        instruction = _read_instruction(Path(name))
    if missing := [field for field in (PROMPT, CONTINUATION) if field not in instruction]:
        raise Refused(f"rubric {name}: no {' and no '.join(missing)} in it, where a transcript goes")
    answer = answer or (SCORE if name == 'ours' else BOXED)
    try:
        n_groups = re.compile(answer).groups
    except re.error as e:
        raise Refused(f"answer is {answer!r}: not a regular expression ({e})") from None
    if n_groups != 1:
        raise Refused(f"answer is {answer!r}: {n_groups} groups, expected one, which holds the mark")
    return Rubric(instruction, answer)

def _read_instruction(path):
    """The text of a file, or the `instruction` of a .yaml."""
    try:
        text = path.read_text(encoding='utf-8')
    except (OSError, UnicodeDecodeError) as e:
        raise Refused(f"rubric {path}: cannot be read ({e}); expected papers, ours or a file") from None
    if path.suffix not in ('.yaml', '.yml'):
        return text
    import yaml  # comes with transformers
    try:
        settings = yaml.safe_load(text)
    except yaml.YAMLError as e:
        reason = ' '.join(str(e).split())
        raise Refused(f"rubric {path}: not YAML ({reason})") from None
    instruction = settings.get('instruction') if isinstance(settings, dict) else None
    if not isinstance(instruction, str):
        raise Refused(f"rubric {path}: no text `instruction: ...` in it")
    return instruction

def ask(cfg, message, wait=1.0):
    """The answer, a text, of cfg.judge_model at cfg.judge to one message of a user (generation.py's Config).

    Tries 5 times, waiting `wait` seconds after the first and twice as long after each further try.
    Raises Refused when the endpoint gives no answer.
    """
    key = os.environ.get(cfg.judge_key)
    body = {'model': cfg.judge_model, 'messages': [{'role': 'user', 'content': message}]}
    if cfg.judge_temperature is not None:
        body['temperature'] = cfg.judge_temperature
    headers = {'Authorization': f'Bearer {key}'} if key else {}
    url = cfg.judge.rstrip('/') + '/chat/completions'
    for attempt in range(5):
        try:
            reply = requests.post(url, json=body, headers=headers, timeout=120)
            why = f'status {reply.status_code}'
            if reply.status_code == 200:
                return reply.json()['choices'][0]['message']['content'] + ''
            if reply.status_code not in (408, 429) and reply.status_code < 500:
                break # asking again does not help
        except (requests.RequestException, ValueError, KeyError, IndexError, TypeError) as e:
            why = type(e).__name__
        time.sleep(wait * 2 ** attempt)
    raise Refused(f"{url}: {why}; expected an OpenAI-compatible endpoint, its key in ${cfg.judge_key} if it wants one")
