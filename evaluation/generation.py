"""
Measure what a model says: continuations of spoken prompts, transcribed and judged as text. Rows go to MODEL/eval.json.

    python -m evaluation.generation --model=out/x --prompts=bench/ssc                               the papers' GenPPL and auto-BLEU
    python -m evaluation.generation --model=out/x --prompts=bench/ssc --judge=https://api.openai.com/v1 --judge_model=gpt-4o
    python -m evaluation.generation --model=out/x --speech=FOLDER --prompts=                        word error rate of resynthesis

Prompts are the first `seconds` of the right stories of spoken StoryCloze (N_NAME.wav with an even N, in order of N), or
of every audio file of another folder, in order of path. The continuation's units are spoken by the vocoder twice: after
the prompt's units, as the papers measure it (rows /whole), and alone (rows /continuation). Then, of the transcripts,

    genppl       exp(mean over texts of the mean over a text's tokens of -log p), p by the language model, which puts its
                 bos first where its tokenizer does and never predicts a text's first token    (SIMS A.3; Slam 3; slamkit)
    auto_bleu2   share of a text's bigrams (places) that occur in it again; mean over texts    (Lakhotia et al. 2021, 4.2;
                 the papers' "Auto-BLEU" and "Self-BLEU")
    self_bleu2   mean BLEU-2 of each text with all others as references                        (Zhu et al. 2018, 2.3)
    judge        mean mark, 1 to 5, that a chat model gives the continuation
    wer          (substitutions + insertions + deletions) / words of --speech's texts: heard as recorded (/original), and
                 after audio -> units -> vocoder (/resynthesis); letter case and punctuation do not count

A text of fewer than two tokens has no perplexity, one of fewer than two words no BLEU: such texts are left out of those
means (auto_bleu2 takes them as 0, as slamkit does) and counted in `empty`; `repeated` counts texts of which every bigram
occurs again. samples_generation.jsonl has it all: prompts, units, transcripts, each score, the judge's words.
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

from configurator import Refused, pick_device, run
from corpora.folder import utterances
from evaluation.likelihood import load
from evaluation.results import folder_of, store, table
from evaluation.scores import mean_and_stderr
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
    model: str = 'out/tiny' # a folder that train.py wrote
    prompts: str = 'out/bench/ssc' # spoken StoryCloze, or any folder of audio; '' for none
    speech: str = '' # audio with texts (corpora/folder.py) for the word error rate of resynthesis; '' for none
    n: int = 1000 # the first so many prompts, and utterances of speech
    seconds: float = 3.0 # of a prompt that are used
    max_new_tokens: int = 150
    temperature: float = 0.8
    top_k: int = 25
    repetition_penalty: float = 1.1 # Slam Table 6; slamkit's later settings have 1
    seed: int = 0
    batch: int = 16 # prompts that are continued together
    encoder: str = 'tiny/hubert'
    layer: int = 4
    kmeans: str | None = None # None: kmeans.safetensors in the encoder's folder
    vocoder: str = 'tiny/vocoder'
    asr: str = 'openai/whisper-large-v3-turbo' # Whisper, a folder or hub id
    llm: str = 'meta-llama/Llama-3.2-1B' # a causal LM, a folder or hub id; '' for no GenPPL
    judge: str = '' # an OpenAI-compatible endpoint up to /v1; '' for none
    judge_model: str = 'gpt-4o'
    judge_key: str = 'OPENAI_API_KEY' # the environment variable that holds the key, if the endpoint wants one
    device: str = 'auto' # cpu, cuda; auto: cuda where there is one

    def __post_init__(self):
        if not (self.prompts or self.speech):
            raise Refused("prompts and speech are both empty: nothing to measure")
        for key in ('n', 'seconds', 'max_new_tokens', 'top_k', 'repetition_penalty', 'batch'):
            if not getattr(self, key) > 0:
                raise Refused(f"{key} is {getattr(self, key)}, must be above 0")
        if self.temperature < 0:
            raise Refused(f"temperature is {self.temperature}, must be 0 (greedy) or more")

# ----------------------------------------------------------------------------------------------------------------
# other people's models

def _pretrained(Class, name, **how):
    import transformers  # here and below, because it takes seconds
    transformers.utils.logging.set_verbosity_error() # defaults that give way to ours are no news
    transformers.utils.logging.disable_progress_bar()
    try:
        return Class.from_pretrained(name, **how)
    except (OSError, ValueError, KeyError) as e:
        raise Refused(f"llm {name}: not to be had: {str(e).splitlines()[0]}; give a local folder or a hub id") from None

def load_asr(name, device):
    """A function from float32 waves at 16 kHz to their transcripts."""
    return Whisper(name, device).transcribe

def load_llm(name, device):
    """A function from texts to (mean -log p a predicted token or None, predicted tokens), by a causal LM. It reads them with a
    blank before, as Whisper writes them and slamkit hands them on."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    tokenizer = _pretrained(AutoTokenizer, name)
    dtype = torch.bfloat16 if device.startswith('cuda') else torch.float32
    model = _pretrained(AutoModelForCausalLM, name, dtype=dtype).to(device).eval()
    @torch.inference_mode()
    def mean_loss(texts):
        out = []
        for text in progress(texts, desc='perplexity', leave=False):
            ids = torch.tensor([tokenizer(' ' + text).input_ids], dtype=torch.long, device=device)
            if not text.strip() or ids.shape[1] < 2:
                out.append((None, 0))
                continue
            logits = model(ids).logits[0, :-1].float()
            out.append((torch.nn.functional.cross_entropy(logits, ids[0, 1:]).item(), ids.shape[1] - 1))
        return out
    return mean_loss

RUBRIC = """You will read two transcripts. The first is of a short piece of speech; the second is of what a machine said to
go on from it. Speech recognition made both, so overlook spelling, punctuation and a word cut off at either edge. Ask only how
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
    """(mark or None where the answer has none, the answer). Raises Refused when the endpoint does not answer in 5 tries."""
    key = os.environ.get(cfg.judge_key)
    body = {'model': cfg.judge_model, 'temperature': 0,
            'messages': [{'role': 'user', 'content': RUBRIC.format(prompt=prompt, continuation=continuation)}]}
    url = cfg.judge.rstrip('/') + '/chat/completions'
    for attempt in range(5):
        try:
            reply = requests.post(url, json=body, headers={'Authorization': f'Bearer {key}'} if key else {}, timeout=120)
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

# ----------------------------------------------------------------------------------------------------------------
# the run

def prompt_files(folder, n):
    """(id, path) of the first n prompts: right stories by number, or audio files by path."""
    if not Path(folder).is_dir():
        raise Refused(f"{folder}: no such folder; expected spoken StoryCloze (N_NAME.wav) or a folder of audio")
    if re.match(r'\d+[_+.]', next((p.name for p in sorted(Path(folder).glob('*.wav'))), '')):
        return [(path.stem, path) for _, path, _ in numbered_pairs(folder)][:n]
    return [(u['id'], Path(u['path'])) for u in utterances(folder)][:n]

def continuations(cfg, model, vocab, tokenizer, prompts, device):
    """New units of each prompt (arrays of units), batches of like length together, by one seeded generator."""
    allowed, stop = allowed_ids(vocab, tokenizer, 'speech')
    ids = [prompt_ids([{'kind': UNITS, 'units': units}], 'speech', vocab, tokenizer) for units in prompts]
    generator, out = torch.Generator(device).manual_seed(cfg.seed), [None] * len(ids)
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    for at in progress(range(0, len(order), cfg.batch), desc='continue', leave=False):
        batch = order[at:at + cfg.batch]
        new = model.generate([ids[i] for i in batch], cfg.max_new_tokens, cfg.temperature, cfg.top_k,
                             cfg.repetition_penalty, allowed.to(device), stop, generator)
        for i, tokens in zip(batch, new):
            out[i] = vocab.token_to_unit([t for t in tokens if t not in stop])
    return out

def measure_texts(lines, part, llm):
    """{row: ...} of the transcripts lines[i][part]; each line gets its own scores."""
    texts, rows = [line[part] for line in lines], {}
    def row(name, values, transform=lambda mean, error: (mean, error), **more):
        there = [v for v in values if v is not None]
        if not there:
            print(f"{name}/{part}: not one of {len(values)} transcripts has enough words")
            return
        value, stderr = transform(*mean_and_stderr(there))
        rows[f'{name}/{part}'] = {'value': value, 'stderr': stderr, 'n': len(there),
                                 **{'empty': len(values) - len(there), **more}}
        for line, v in zip(lines, values):
            line[f'{name}_{part}'] = v
    auto = [auto_bleu2(text) for text in texts]
    if llm:
        losses = llm(texts)
        row('genppl', [loss for loss, _ in losses], lambda mean, error: (math.exp(mean), error and math.exp(mean) * error),
            repeated=sum(a == 1 for a in auto), tokens=sum(n for _, n in losses)) # the error by the delta method
    row('auto_bleu2', auto, empty=sum(not bigrams(text) for text in texts))
    row('self_bleu2', self_bleu2(texts))
    return rows

def measure_continuations(cfg, model, vocab, tokenizer, encoder, vocoder, asr, device):
    """(rows, a dict a prompt) of --prompts."""
    files = prompt_files(cfg.prompts, cfg.n)
    llm = load_llm(cfg.llm, device) if cfg.llm else None
    waves = [load_audio(path)[:round(cfg.seconds * RATE)] for _, path in files]
    prompts = [deduplicate(frames)[0] for frames in encoder.encode([wave_for(encoder, path, seconds=cfg.seconds) for _, path in files])]
    new = continuations(cfg, model, vocab, tokenizer, prompts, device)
    speak = lambda units: vocoder.speak(units, units_hash=vocab.units)
    lines = [{'id': name, 'path': str(path), 'prompt_units': units.tolist(), 'units': more.tolist()}
             for (name, path), units, more in zip(files, prompts, new)]
    for part, texts in (('prompt', asr(waves)), ('whole', asr(speak([np.concatenate(p) for p in zip(prompts, new)]))),
                        ('continuation', asr(speak(new)))):
        for line, text in zip(lines, texts):
            line[part] = text
    rows = {name: row for part in ('whole', 'continuation') for name, row in measure_texts(lines, part, llm).items()}
    if cfg.judge:
        for line in progress(lines, desc='judge', leave=False):
            line['mark'], line['answer'] = ask_judge(cfg, line['prompt'], line['continuation'])
        marks = [line['mark'] for line in lines if line['mark'] is not None]
        if not marks:
            raise Refused(f"{cfg.judge}: none of {len(lines)} answers of {cfg.judge_model} holds 'Score: N', 1 to 5; "
                          f"the first is {lines[0]['answer'][:80]!r}")
        value, stderr = mean_and_stderr(marks)
        rows['judge/continuation'] = {'value': value, 'stderr': stderr, 'n': len(marks), 'unparsed': len(lines) - len(marks)}
    return rows, lines

def measure_resynthesis(cfg, vocab, encoder, vocoder, asr):
    """(rows, a dict an utterance) of --speech: the share of wrong words, its error over utterances."""
    found = list(utterances(cfg.speech))
    spoken = [u for u in found if u['text'] and plain_words(u['text'])][:cfg.n]
    if not spoken:
        raise Refused(f"{cfg.speech}: none of {len(found)} utterances has a text; expected NAME.txt beside NAME.wav, or a manifest")
    waves = [load_audio(u['path'], u['start'], u['end']) for u in spoken]
    units, runs = zip(*map(deduplicate, encoder.encode([wave_for(encoder, u['path'], u['start'], u['end']) for u in spoken])))
    heard = {'original': asr(waves), 'resynthesis': asr(vocoder.speak(units, runs, units_hash=vocab.units))}
    lines, rows = [{'id': u['id'], 'text': u['text'], **{k: v[i] for k, v in heard.items()}} for i, u in enumerate(spoken)], {}
    for part in heard:
        counts = np.array([word_errors(line['text'], line[part]) for line in lines], dtype=np.float64)
        (errors, total), n = counts.sum(0), len(counts)
        rest = counts[:, 0] - errors / total * counts[:, 1] # a ratio of sums: its error by the residuals
        stderr = float(math.sqrt((rest ** 2).sum() * n / (n - 1)) / total) if n > 1 else None
        rows[f'wer/{part}'] = {'value': float(errors / total), 'stderr': stderr, 'n': n, 'words': int(total)}
    return rows, lines

def main(cfg):
    device = pick_device(cfg.device)
    model, vocab, tokenizer, weights = load(cfg.model, device)
    if vocab.kind == 'text':
        raise Refused(f"{cfg.model}: a text-only model says nothing in units; eval.py measures it")
    encoder = load_encoder(cfg.encoder, cfg.layer, cfg.kmeans, device, vocab)
    vocab = replace(vocab, units=encoder.hash)
    vocoder = load_vocoder(cfg.vocoder).to(device)
    refuse_foreign_units([], vocab.n_units, vocab.units, vocoder.cfg.units_hash) # now, not when all has been generated
    asr = load_asr(cfg.asr, device)
    rows, samples = {}, {}
    if cfg.prompts:
        rows, samples['generation'] = measure_continuations(cfg, model, vocab, tokenizer, encoder, vocoder, asr, device)
    if cfg.speech:
        more, samples['resynthesis'] = measure_resynthesis(cfg, vocab, encoder, vocoder, asr)
        rows |= more
    store(cfg.model, weights, rows, samples, {name.split('/')[0]: {} for name in rows}, record(cfg))
    print(table({cfg.model: rows}))
    print('; '.join(f'{folder_of(cfg.model)}/{name}' for name in ('eval.json', *(f'samples_{name}.jsonl' for name in samples))))

if __name__ == '__main__':
    run(main, Config)
