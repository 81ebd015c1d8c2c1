"""
Who reads a folder that we save, and what is equal there: logits, greedy ids, ids of texts, log-likelihoods, and what
other tools trained, back in our code.

    python bench/readers.py --model=tiny/slm,out/tiny-speech
    python bench/readers.py --model=random:gemma2,random:gpt_neox,random:llama --readers=ctranslate2,onnxruntime
    python bench/readers.py --model=out/x --readers=transformers --dry

Each reader gets an environment of its own in --envs, with the versions of PINS; torch, and all else that they need and
is there already, is that of the Python which runs this script. bench/reader_checks.py is what runs there. Weights and
compute are float32.

    transformers   logits, greedy ids, ids of texts, and these once more after it has saved model and tokenizer
    trl            SFT and DPO: the loss of three steps on one batch must fall
    peft           LoRA: the same, then the merge into the weights
    lm_eval        log-likelihoods of the endings of a local task
    ctranslate2    conversion, logits, greedy ids
    onnxruntime    export by torch.onnx, logits
    llama.cpp      greedy ids of the GGUF file of training/export.py, through xllamacpp
    vllm           is not run: NOT_RUN says why

Greedy ids are 24 after each of 3 prompts, of a joint model text, units, and both. Logits are equal if they differ by
less than 1e-4 of the largest one. What transformers, trl and peft save is read by our code, whose logits must equal
theirs. random:FAMILY is a small text model of random weights, in which all that the family has (a scaling of positions,
soft-caps, biases) changes the logits. Rows go to bench/results/readers.json, in place of those of the same model and
reader. --dry runs the readers in this Python: nothing is installed or written.
"""
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
from dataclasses import dataclass, fields
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench.common import ROOT, save, table
from bench.reader_checks import load_tensors, save_tensors
from configurator import Refused, run
from evaluation.likelihood import document_losses
from hub.families import FAMILIES, GPTConfig
from hub.folders import vocabulary
from hub.tokenizer import TextTokenizer
from model import GPT
from training import export

TRANSFORMERS = 'transformers==5.24.0'
PINS = {
    'transformers': (TRANSFORMERS,),
    'trl': (TRANSFORMERS, 'trl==1.16.0'),
    'peft': (TRANSFORMERS, 'peft==0.21.2'),
    'lm_eval': (TRANSFORMERS, 'lm_eval[hf]==0.4.13'),
    'ctranslate2': (TRANSFORMERS, 'ctranslate2==4.8.5'),
    'onnxruntime': (TRANSFORMERS, 'onnx==1.23.2', 'onnxscript==0.7.2', 'onnxruntime==1.32.0'),
    'llama.cpp': ('xllamacpp==2026.10.11549', 'gguf==0.19.0')}
NOT_RUN = {'vllm': "its wheel is built for CUDA and needs torch's for CUDA, gigabytes that a CPU has no use for"}
TIMEOUT = 1800 # seconds that the checks of a reader may take
COLUMNS = ('model', 'reader', 'version', 'check', 'ok', 'result')
SHAPES = { # of random models, beside those that all have
    'llama': {'n_kv_head': 2, 'rope_scaling': (32.0, 1.0, 4.0, 32)}, # of Llama 3, from 32 tokens instead of 8,192
    'gemma2': {'n_kv_head': 2, 'attn_softcap': 2.0, 'logit_softcap': 3.0, 'window': 8},
    'qwen3': {'n_kv_head': 2, 'head_dim': 32},
    'smollm3': {'n_kv_head': 2, 'rotated': (True, False, True)},
    'olmo2': {'n_kv_head': 2},
    'olmo3': {'n_kv_head': 2, 'windowed': (True, True, False), 'window': 8, 'yarn': (8.0, 32, 1.2, 32.0, 1.0)}}
RESULTS = ROOT / 'bench' / 'results' / 'readers.json'
UNITS = (3, 9, 17, 12, 5, 11, 2, 14)
N_NEW = 24

@dataclass(frozen=True)
class Config:
    model: str = 'tiny/slm' # folders that train.py or export.py wrote, or random:FAMILY, separated by commas
    readers: str = 'all' # keys of PINS and NOT_RUN, separated by commas
    envs: str = 'out/envs' # folder of the environments, made once
    dry: bool = False # with the packages of this Python; nothing is installed or written

    def __post_init__(self):
        unknown = [name for name in self.names if name not in {**PINS, **NOT_RUN}]
        if unknown:
            raise Refused(f"readers={self.readers}: no reader {unknown[0]!r}; "
                          f"one of {', '.join({**PINS, **NOT_RUN})}")
        for name in self.model.split(','):
            if name.startswith('random:') and name.removeprefix('random:') not in FAMILIES:
                raise Refused(f"model={name}: no such family; one of {', '.join(FAMILIES)}")

    @property
    def names(self):
        return [*PINS, *NOT_RUN] if self.readers == 'all' else self.readers.split(',')

# --------------------------------------------------------------------------------------------------
# environments

def environment(name, envs):
    """Makes the environment of a reader, unless it is there with the same pins -> its Python."""
    folder = Path(envs, name).absolute()
    python = folder / 'bin' / 'python'
    mark = folder / 'pins'
    pins = '\n'.join(PINS[name])
    if mark.is_file() and mark.read_text() == pins:
        return str(python)
    venv.create(folder, clear=True, symlinks=True)
    packages = sysconfig.get_path('purelib', vars={'base': str(folder), 'platbase': str(folder)})
    Path(packages, 'shared.pth').write_text(sysconfig.get_path('purelib') + '\n')
    command = [sys.executable, '-m', 'pip', '--python', str(python), 'install', '--quiet', '--no-compile', *PINS[name]]
    if subprocess.run(command).returncode:
        raise Refused(f"{name}: pip could not install {', '.join(PINS[name])} in {folder}; its message is above")
    mark.write_text(pins)
    return str(python)

# --------------------------------------------------------------------------------------------------
# what our code makes of a folder

def written(vocab, tokenizer, *parts):
    """(the parts as one string, their ids): '<speech>' or '<text>', other text, or a tuple of units."""
    string = ''
    ids = []
    for part in parts:
        if part in ('<speech>', '<text>'):
            string += part
            ids.append(vocab.speech if part == '<speech>' else vocab.text)
        elif isinstance(part, str):
            string += part
            ids += tokenizer.encode(part)
        else:
            string += ''.join(f'<Un{u}>' for u in part)
            ids += vocab.unit_to_token(part).tolist()
    return string, ids

def samples(vocab):
    """Parts of three texts, and of items (start, right, wrong), that a vocabulary has."""
    text = 'Tom had a red kite.'
    if vocab.kind == 'speech':
        texts = [[UNITS], [UNITS[3:]], [UNITS[::-1]]]
        items = [([UNITS[:3]], [UNITS[3:]], [UNITS[:2]]), ([UNITS[2:5]], [UNITS[:1]], [UNITS[5:]])]
    elif vocab.kind == 'text':
        texts = [[text], ["She'll count 1234 sheep before 5:30!"], ['It was  two\n\nold BARNS.']]
        items = [(['Tom had'], [' a red kite.'], [' a kite red.']),
                 (['She went'], [' to the park.'], [' the to park.'])]
    else:
        texts = [[text], ['<speech>', UNITS], [text, '<speech>', UNITS, '<text>', ' She went']]
        items = [(['Tom had'], [' a red kite.'], [' a kite red.']),
                 (['<speech>', UNITS[:3]], [UNITS[3:]], ['<text>', ' She went'])]
    return texts, items

@torch.no_grad()
def logits_of(model, prompts):
    """Logits (n, V) of each list of n ids."""
    return [model.logits(model(torch.tensor([ids])))[0, :, :model.cfg.vocab_size].float() for ids in prompts]

def random_model(family, folder):
    """Writes a text model of random weights, with tiny's tokenizer, to a folder -> its path."""
    name = str(ROOT / 'tiny' / 'tokenizer')
    tokenizer = TextTokenizer(name)
    torch.manual_seed(0)
    model = GPT(GPTConfig(
        family=family, vocab_size=tokenizer.size, n_layer=3, n_head=4, n_embd=64, n_positions=512,
        bos_token_id=tokenizer.eot, eos_token_id=tokenizer.eot, **SHAPES.get(family, {})))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    model.save_pretrained(folder, tokenizer.vocab, name)
    return str(folder)

def make_case(folder, case):
    """Writes case.json and logits.pt, what reader_checks.py compares with, to the folder `case`."""
    vocab, tokenizer = vocabulary(folder)
    model = GPT.from_pretrained(folder).eval()
    lead = [vocab.bos] if vocab.kind == 'speech' else tokenizer.first
    trail = [vocab.bos] if vocab.kind == 'speech' else []
    stop = {vocab.bos} if vocab.kind == 'speech' else {tokenizer.eot} - {None}
    texts, items = samples(vocab)
    pairs = [written(vocab, tokenizer, *parts) for parts in texts]
    prompts = [[*lead, *ids] for _, ids in pairs]
    log_likelihoods = []
    for start, *endings in items:
        n = len(written(vocab, tokenizer, *start)[1])
        for ending in endings:
            ids = written(vocab, tokenizer, *start, *ending)[1]
            losses = document_losses(model, [torch.tensor(ids).numpy()])[0]
            log_likelihoods.append(-float(losses[n - 1:].sum()))
    strings = [[written(vocab, tokenizer, *parts)[0] for parts in item] for item in items]
    save_tensors(logits_of(model, prompts), case / 'logits.safetensors')
    content = {
        'case': str(case), 'folder': str(Path(folder).absolute()), 'logits': str(case / 'logits.safetensors'),
        'gguf': str(case / 'model.gguf'), 'size': vocab.size,
        'texts': [text for text, _ in pairs], 'ids': [[*ids, *trail] for ids in prompts],
        'prompts': prompts, 'greedy': model.generate(prompts, N_NEW, temperature=0, stop=stop),
        'train': [text for text, _ in pairs],
        'pairs': [dict(zip(('prompt', 'chosen', 'rejected'), item)) for item in strings],
        'items': [dict(zip(('start', 'right', 'wrong'), item)) for item in strings],
        'log_likelihoods': log_likelihoods}
    (case / 'case.json').write_text(json.dumps(content))
    return content

def read_back(folder, case):
    """Reads what a reader saved with our code; its logits must equal the reader's."""
    theirs = load_tensors(f'{folder}.safetensors')
    try:
        vocab, _ = vocabulary(folder)
        ours = logits_of(GPT.from_pretrained(folder).eval(), case['prompts'])
    except Refused as e:
        return {'check': 'what it saved, in our code', 'ok': False, 'result': str(e)}
    distance = max((a - b).abs().max().item() for a, b in zip(ours, theirs))
    scale = max(b.abs().max().item() for b in theirs)
    return {'check': 'what it saved, in our code', 'ok': distance < 1e-4 * scale and vocab.size == case['size'],
            'result': f'logits: largest distance {distance:.1e}, largest logit {scale:.1f}'}

# --------------------------------------------------------------------------------------------------
# readers

def _last_line(text):
    lines = text.strip().splitlines()
    return lines[-1][:200] if lines else 'no message'

def run_reader(name, python, case):
    """Runs the checks of a reader by a Python -> (its version or None, rows)."""
    # ROOT is not on its path: bench/ has modules called model and training.
    variables = {key: value for key, value in os.environ.items() if key != 'PYTHONPATH'}
    variables['HF_HOME'] = f"{case['case']}/hf"
    if name == 'llama.cpp':
        command = [python, '-m', 'training.export', f"--model={case['folder']}", f"--gguf={case['gguf']}",
                   '--dtype=float32']
        done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)
        if done.returncode:
            return None, [{'check': 'training.export --gguf', 'ok': False, 'result': _last_line(done.stderr)}]
    path = Path(case['case'], f'{name}.json')
    command = [python, '-P', str(ROOT / 'bench' / 'reader_checks.py'), name, case['case']]
    try:
        done = subprocess.run(command, cwd=case['case'], env=variables, capture_output=True, text=True, timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        return None, [{'check': 'reading', 'ok': False, 'result': f'not done after {TIMEOUT} seconds'}]
    if not path.is_file():
        return None, [{'check': 'reading', 'ok': False, 'result': _last_line(done.stderr)}]
    answer = json.loads(path.read_text())
    return answer['version'], answer['rows']

def reader_rows(name, python, case):
    """The rows of a reader. ok is None where it was not run."""
    version = None
    if name in NOT_RUN:
        rows = [{'check': 'reading', 'ok': None, 'result': NOT_RUN[name]}]
    elif name == 'llama.cpp' and 'gguf' not in {field.name for field in fields(export.Config)}:
        rows = [{'check': 'reading', 'ok': None, 'result': "training.export --gguf is not there yet"}]
    else:
        version, rows = run_reader(name, python, case)
        saved = {'transformers': 'resaved', 'trl': 'trl', 'peft': 'peft'}.get(name)
        if saved and Path(case['case'], f'{saved}.safetensors').is_file():
            rows.append(read_back(Path(case['case'], saved), case))
    return [{'reader': name, 'version': version, **row} for row in rows]

def all_rows(cfg):
    for model in cfg.model.split(','):
        with tempfile.TemporaryDirectory() as tmp:
            folder = model
            if model.startswith('random:'):
                folder = random_model(model.removeprefix('random:'), Path(tmp, 'model'))
            case = make_case(folder, Path(tmp))
            for name in cfg.names:
                is_installed = cfg.dry or name in NOT_RUN
                python = sys.executable if is_installed else environment(name, cfg.envs)
                for row in reader_rows(name, python, case):
                    yield {'model': model, **row}

def main(cfg):
    torch.set_num_threads(1)
    def keep(rows):
        new = {(row['model'], row['reader']) for row in rows}
        old = json.loads(RESULTS.read_text())['rows'] if RESULTS.is_file() else []
        save('readers', cfg.dry, pins=PINS,
             rows=[*(row for row in old if (row['model'], row['reader']) not in new), *rows])
    rows = table(all_rows(cfg), *COLUMNS, on_row=keep)
    if any(row['ok'] is False for row in rows):
        print("\nrows with False are what does not work")
    return rows

if __name__ == '__main__':
    run(main, Config)
