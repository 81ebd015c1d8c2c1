"""
Measures what a model says: continuations of spoken prompts, transcribed and judged as text.
Rows go to MODEL/eval.json.

    python -m evaluation.generation --model=out/x --prompts=bench/ssc          the papers' GenPPL and auto-BLEU
    python -m evaluation.generation --model=out/x --prompts=bench/ssc \\
        --judge=https://api.openai.com/v1 --judge_model=gpt-4o                 and an LLM's marks
    python -m evaluation.generation --model=out/x --prompts= --speech=FOLDER   word error rate of resynthesis

Prompts are the first `seconds` of the right stories of spoken StoryCloze (N_NAME.wav with an even
N, in order of N), or of every audio file of another folder, in order of path. The vocoder speaks a
continuation's units twice: after the prompt's units, as the papers measure it (rows /whole), and
alone (rows /continuation). Scores of the transcripts:

    genppl       exp(mean over texts of the mean over a text's tokens of -log p), p by the language
                 model. It puts its bos first where its tokenizer does, and never predicts a text's
                 first token (SIMS A.3; Slam 3; slamkit).
    auto_bleu2   share of a text's bigrams (places) that occur in it again; mean over texts (Lakhotia
                 et al. 2021, 4.2; the papers' "Auto-BLEU" and "Self-BLEU")
    self_bleu2   mean BLEU-2 of each text with all others as references (Zhu et al. 2018, 2.3)
    judge        mean mark, 1 to 5, that a chat model gives the continuation
    wer          (substitutions + insertions + deletions) / words of --speech's texts: of the recording
                 (/original), and after audio -> units -> vocoder (/resynthesis). Letter case and
                 punctuation do not count.

A text of fewer than two tokens has no perplexity, one of fewer than two words no BLEU: such texts
are left out of those means and counted in `empty` (auto_bleu2 takes them as 0, as slamkit does).
`repeated` counts the texts of which every bigram occurs again. samples_generation.jsonl has
prompts, units, transcripts, each score and the judge's words.
"""
import math
import os
import re
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import requests
import torch

from configurator import Refused, pick_device, refuse_library, run
from corpora.folder import utterances
from evaluation.likelihood import load
from evaluation.results import folder_of, store, table
from evaluation.scores import mean_and_stderr, ratio_and_stderr
from evaluation.text_scores import auto_bleu2, bigrams, plain_words, self_bleu2, word_errors
from files import progress, record
from speech.audio import RATE, load_audio
from speech.unit_cache import load_encoder, wave_for
from speech.units import deduplicate, refuse_foreign_units
from speech.vocoder import load_vocoder
from speech.whisper import Whisper
from tasks.storycloze import numbered_pairs
from vocab import UNITS, allowed_ids, prompt_ids


@dataclass(frozen=True)
class Config:
    model: str = 'out/tiny' # folder that train.py wrote
    prompts: str = 'out/bench/ssc' # folder of spoken StoryCloze or of any audio to continue; '' for none
    speech: str = '' # folder of audio with texts, for the word error rate of resynthesis; '' for none
    n: int = 1000 # number of prompts, and of utterances of speech, to take from the beginning
    seconds: float = 3.0 # length of a prompt in seconds
    max_new_tokens: int = 150 # length of a continuation in tokens, at most
    temperature: float = 0.8 # sampling temperature; 0: greedy
    top_k: int = 25 # number of the likeliest tokens to sample from
    repetition_penalty: float = 1.1 # factor against tokens already there (Slam Table 6; slamkit's later settings: 1)
    seed: int = 0 # seed of the sampling
    batch: int = 16 # number of prompts continued together
    encoder: str = 'tiny/hubert' # encoder of the model's units
    layer: int = 4 # layer of the encoder that the units come from
    kmeans: str | None = None # file of the units' centroids; None: kmeans.safetensors in the encoder's folder
    vocoder: str = 'tiny/vocoder' # folder of the vocoder that speaks the units
    asr: str = 'openai/whisper-large-v3-turbo' # Whisper that transcribes the speech, a folder or hub id
    llm: str = 'meta-llama/Llama-3.2-1B' # language model of GenPPL, a folder or hub id; '' for no GenPPL
    judge: str = '' # URL of an OpenAI-compatible endpoint, up to /v1; '' for no judge
    judge_model: str = 'gpt-4o' # name of the judge's model at the endpoint
    judge_key: str = 'OPENAI_API_KEY' # environment variable that holds the endpoint's key, if it wants one
    device: str = 'auto' # cpu or cuda; auto: cuda where there is a GPU

    def __post_init__(self):
        if not (self.prompts or self.speech):
            raise Refused("prompts and speech are both empty: nothing to measure")
        for key in ('n', 'seconds', 'max_new_tokens', 'top_k', 'repetition_penalty', 'batch'):
            if not getattr(self, key) > 0:
                raise Refused(f"{key} is {getattr(self, key)}, must be above 0")
        if self.temperature < 0:
            raise Refused(f"temperature is {self.temperature}, must be 0 (greedy) or more")

# --------------------------------------------------------------------------------------------------
# other people's models

def _pretrained(Class, name, **options):
    import transformers  # here and below, because it takes seconds
    # Without this, transformers warns of each option that replaces a default of the model.
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        return Class.from_pretrained(name, **options)
    except (ImportError, OSError, ValueError, KeyError, RuntimeError) as e:
        refuse_library(e)
        reason = str(e).splitlines()[0]
        raise Refused(f"llm {name}: cannot be loaded: {reason}; give a local folder or a hub id") from None

def load_asr(name, device):
    """A function from float32 waves at 16 kHz to their transcripts."""
    return Whisper(name, device).transcribe

def load_llm(name, device):
    """A function from texts to [(mean -log p per predicted token or None, predicted tokens)], by a causal LM.

    Each text gets a blank before it, as Whisper writes texts and slamkit hands them on.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    tokenizer = _pretrained(AutoTokenizer, name)
    dtype = torch.bfloat16 if device.startswith('cuda') else torch.float32
    model = _pretrained(AutoModelForCausalLM, name, dtype=dtype).to(device).eval()
    @torch.inference_mode()
    def mean_losses(texts):
        out = []
        for text in progress(texts, desc='perplexity', leave=False):
            ids = torch.tensor([tokenizer(' ' + text).input_ids], dtype=torch.long, device=device)
            if not text.strip() or ids.shape[1] < 2:
                out.append((None, 0))
                continue
            logits = model(ids).logits[0, :-1].float()
            loss = torch.nn.functional.cross_entropy(logits, ids[0, 1:])
            out.append((loss.item(), ids.shape[1] - 1))
        return out
    return mean_losses

RUBRIC = """\
You will read two transcripts. The first is of a short piece of speech; the second is of what a machine said to
go on from it. Speech recognition made both, so overlook spelling, punctuation and a word cut off at either edge. \
Ask only how
good the second is as a continuation of the first: does it make sense, is it grammatical, does it stay on the matter?

1  no continuation: nonsense, or about something else altogether
2  a few words fit, the whole does not make sense
3  one can follow it, with clear breaks in sense, grammar or topic
4  a sensible continuation with small faults
5  what a person might well have said: fluent, coherent, on the matter

First: {prompt}
Second: {continuation}

Give a sentence of reasons, then, on a line of its own, "Score: " and one whole number from 1 to 5."""

def ask_judge(cfg, prompt, continuation, wait=1.0):
    """The judge's (mark, answer); the mark is None where the answer has none.

    Tries 5 times, waiting `wait` seconds after the first and twice as long after each further try.
    Raises Refused when the endpoint gives no answer.
    """
    key = os.environ.get(cfg.judge_key)
    message = {'role': 'user', 'content': RUBRIC.format(prompt=prompt, continuation=continuation)}
    body = {'model': cfg.judge_model, 'temperature': 0, 'messages': [message]}
    headers = {'Authorization': f'Bearer {key}'} if key else {}
    url = cfg.judge.rstrip('/') + '/chat/completions'
    for attempt in range(5):
        try:
            reply = requests.post(url, json=body, headers=headers, timeout=120)
            why = f'status {reply.status_code}'
            if reply.status_code == 200:
                answer = reply.json()['choices'][0]['message']['content']
                marks = re.findall(r'(?im)^\W*score\W*([1-5])\b(?![.,]\d)', answer)
                return (int(marks[-1]) if marks else None), answer
            if reply.status_code not in (408, 429) and reply.status_code < 500:
                break # asking again does not help
        except (requests.RequestException, ValueError, KeyError, IndexError, TypeError) as e:
            why = type(e).__name__
        time.sleep(wait * 2 ** attempt)
    raise Refused(f"{url}: {why}; expected an OpenAI-compatible endpoint, its key in ${cfg.judge_key} if it wants one")

# --------------------------------------------------------------------------------------------------
# continuations

def prompt_files(folder, n):
    """(id, path) of the first n prompts: right stories by number, or audio files by path."""
    folder = Path(folder)
    if not folder.is_dir():
        raise Refused(f"{folder}: no such folder; expected spoken StoryCloze (N_NAME.wav) or a folder of audio")
    names = sorted(path.name for path in folder.glob('*.wav'))
    if names and re.match(r'\d+[_+.]', names[0]):
        files = [(path.stem, path) for _, path, _ in numbered_pairs(folder)]
    else:
        files = [(utterance['id'], Path(utterance['path'])) for utterance in utterances(folder)]
    return files[:n]

def continuations(cfg, model, vocab, tokenizer, prompts, device):
    """The new units that continue each prompt, as arrays.

    Prompts of like length share a batch; all batches share one seeded generator.
    """
    allowed, stop = allowed_ids(vocab, tokenizer, 'speech')
    allowed = allowed.to(device)
    ids = [prompt_ids([{'kind': UNITS, 'units': units}], 'speech', vocab, tokenizer) for units in prompts]
    generator = torch.Generator(device).manual_seed(cfg.seed)
    by_length = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    out = [None] * len(ids)
    for start in progress(range(0, len(ids), cfg.batch), desc='continue', leave=False):
        batch = by_length[start:start + cfg.batch]
        new = model.generate([ids[i] for i in batch], cfg.max_new_tokens, cfg.temperature, cfg.top_k,
                             cfg.repetition_penalty, allowed, stop, generator)
        for i, tokens in zip(batch, new):
            out[i] = vocab.token_to_unit([token for token in tokens if token not in stop])
    return out

def mean_of_texts(name, part, lines, values):
    """The row of a score of the transcripts lines[i][part]; each line gets its own value.

    values: a number of each line, or None where its transcript is too short. {} where all are None.
    """
    present = [value for value in values if value is not None]
    if not present:
        print(f"{name}/{part}: not one of {len(values)} transcripts has enough words")
        return {}
    for line, value in zip(lines, values):
        line[f'{name}_{part}'] = value
    mean, stderr = mean_and_stderr(present)
    return {'value': mean, 'stderr': stderr, 'n': len(present), 'empty': len(values) - len(present)}

def measure_texts(lines, part, llm):
    """{row name: row} of the transcripts lines[i][part]; each line gets its own scores."""
    texts = [line[part] for line in lines]
    repetition = [auto_bleu2(text) for text in texts]
    rows = {}
    if llm:
        losses = llm(texts)
        row = mean_of_texts('genppl', part, lines, [loss for loss, _ in losses])
        if row:
            # The error of exp(mean) by the delta method: exp(mean) times the error of the mean.
            perplexity = math.exp(row['value'])
            row['value'] = perplexity
            row['stderr'] = row['stderr'] and perplexity * row['stderr']
            row['repeated'] = sum(share == 1 for share in repetition)
            row['tokens'] = sum(n for _, n in losses)
        rows['genppl'] = row
    rows['auto_bleu2'] = mean_of_texts('auto_bleu2', part, lines, repetition)
    if rows['auto_bleu2']:
        rows['auto_bleu2']['empty'] = sum(not bigrams(text) for text in texts)
    rows['self_bleu2'] = mean_of_texts('self_bleu2', part, lines, self_bleu2(texts))
    return {f'{name}/{part}': row for name, row in rows.items() if row}

def judge_continuations(cfg, lines):
    """The row of the judge's marks; each line gets its mark and the judge's answer."""
    for line in progress(lines, desc='judge', leave=False):
        line['mark'], line['answer'] = ask_judge(cfg, line['prompt'], line['continuation'])
    marks = [line['mark'] for line in lines if line['mark'] is not None]
    if not marks:
        raise Refused(f"{cfg.judge}: none of {len(lines)} answers of {cfg.judge_model} holds 'Score: N', 1 to 5; "
                      f"the first is {lines[0]['answer'][:80]!r}")
    mean, stderr = mean_and_stderr(marks)
    return {'value': mean, 'stderr': stderr, 'n': len(marks), 'unparsed': len(lines) - len(marks)}

def measure_continuations(cfg, model, vocab, tokenizer, encoder, vocoder, asr, device):
    """({row name: row}, a line of the samples file for each prompt) of --prompts."""
    files = prompt_files(cfg.prompts, cfg.n)
    # Loaded before the slow part, so that a wrong name is refused at once.
    llm = load_llm(cfg.llm, device) if cfg.llm else None
    waves = [load_audio(path)[:round(cfg.seconds * RATE)] for _, path in files]
    frames = encoder.encode([wave_for(encoder, path, seconds=cfg.seconds) for _, path in files])
    prompts = [deduplicate(units)[0] for units in frames]
    new = continuations(cfg, model, vocab, tokenizer, prompts, device)
    prompts_and_new = [np.concatenate(pair) for pair in zip(prompts, new)]
    transcripts = {'prompt': asr(waves)}
    transcripts['whole'] = asr(vocoder.speak(prompts_and_new, units_hash=vocab.units))
    transcripts['continuation'] = asr(vocoder.speak(new, units_hash=vocab.units))
    lines = []
    for i, (name, path) in enumerate(files):
        line = {'id': name, 'path': str(path), 'prompt_units': prompts[i].tolist(), 'units': new[i].tolist()}
        lines.append(line | {part: texts[i] for part, texts in transcripts.items()})
    rows = {}
    for part in ('whole', 'continuation'):
        rows |= measure_texts(lines, part, llm)
    if cfg.judge:
        rows['judge/continuation'] = judge_continuations(cfg, lines)
    return rows, lines

# --------------------------------------------------------------------------------------------------
# resynthesis

def measure_resynthesis(cfg, vocab, encoder, vocoder, asr):
    """({row name: row}, a line of the samples file for each utterance) of --speech: the share of wrong words."""
    all_speech = list(utterances(cfg.speech))
    speech = [utterance for utterance in all_speech if utterance['text'] and plain_words(utterance['text'])][:cfg.n]
    if not speech:
        raise Refused(f"{cfg.speech}: none of {len(all_speech)} utterances has a text; "
                      "expected NAME.txt beside NAME.wav, or a manifest")
    spans = [(utterance['path'], utterance['start'], utterance['end']) for utterance in speech]
    waves = [load_audio(*span) for span in spans]
    frames = encoder.encode([wave_for(encoder, *span) for span in spans])
    units, runs = zip(*map(deduplicate, frames))
    transcripts = {'original': asr(waves), 'resynthesis': asr(vocoder.speak(units, runs, units_hash=vocab.units))}
    lines = []
    for i, utterance in enumerate(speech):
        line = {'id': utterance['id'], 'text': utterance['text']}
        lines.append(line | {part: texts[i] for part, texts in transcripts.items()})
    rows = {}
    for part in transcripts:
        counts = np.array([word_errors(line['text'], line[part]) for line in lines], dtype=np.float64)
        errors, n_words = counts.T
        value, stderr = ratio_and_stderr(errors, n_words)
        stderr = stderr if len(lines) > 1 else None
        rows[f'wer/{part}'] = {'value': value, 'stderr': stderr, 'n': len(lines), 'words': int(n_words.sum())}
    return rows, lines

# --------------------------------------------------------------------------------------------------
# the run

def main(cfg):
    device = pick_device(cfg.device)
    model, vocab, tokenizer, weights = load(cfg.model, device)
    if vocab.kind == 'text':
        raise Refused(f"{cfg.model}: a text-only model generates no units; measure it with eval.py")
    encoder = load_encoder(cfg.encoder, cfg.layer, cfg.kmeans, device, vocab)
    vocab = replace(vocab, units=encoder.hash)
    vocoder = load_vocoder(cfg.vocoder).to(device)
    # Before the slow part, so that a vocoder of other units is refused at once.
    refuse_foreign_units([], vocab.n_units, vocab.units, vocoder.cfg.units_hash)
    asr = load_asr(cfg.asr, device)
    rows = {}
    samples = {}
    if cfg.prompts:
        rows, samples['generation'] = measure_continuations(cfg, model, vocab, tokenizer, encoder, vocoder, asr, device)
    if cfg.speech:
        word_error_rows, samples['resynthesis'] = measure_resynthesis(cfg, vocab, encoder, vocoder, asr)
        rows |= word_error_rows
    tasks = {name.split('/')[0]: {} for name in rows}
    store(cfg.model, weights, rows, samples, tasks, record(cfg))
    print(table({cfg.model: rows}))
    names = ['eval.json', *(f'samples_{name}.jsonl' for name in samples)]
    print('; '.join(f'{folder_of(cfg.model)}/{name}' for name in names))

if __name__ == '__main__':
    run(main, Config)
