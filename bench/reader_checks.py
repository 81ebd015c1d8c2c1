"""
What bench/readers.py runs in the environment of each reader:

    ENV/bin/python bench/reader_checks.py READER CASE

CASE is a folder with case.json: the model's folder, what our code makes of it, and texts to train on. Each check of a
reader is a row {'check', 'ok', 'result'}; an exception of the reader is a row too. All rows are written to
CASE/READER.json. What a reader saves is left in CASE, with its logits in NAME.safetensors beside it, for our code.
"""
import json
import os
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

N_NEW = 24 # greedy tokens after each prompt
ROWS = []

def save_tensors(tensors, path):
    save_file({f'{i:03d}': tensor.contiguous() for i, tensor in enumerate(tensors)}, path)

def load_tensors(path):
    return [tensor for _, tensor in sorted(load_file(path).items())]

def first_line(error):
    return f'{type(error).__name__}: {error}'.strip().splitlines()[0][:200]

def checking(name, reader, *arguments):
    """Calls reader(*arguments) -> (whether it is equal or worked, what was seen), and keeps it as a row."""
    try:
        ok, result = reader(*arguments)
    except Exception as e: # whatever a reader raises is its result
        ok = False
        result = first_line(e)
    ROWS.append({'check': name, 'ok': bool(ok), 'result': result})

def compare_logits(case, compute):
    """compute(ids of a prompt) -> logits (n, V): the largest distance from ours over the prompts of a case."""
    ours = load_tensors(case['logits'])
    distance = max((compute(ids) - expected).abs().max().item() for ids, expected in zip(case['prompts'], ours))
    scale = max(expected.abs().max().item() for expected in ours)
    return distance < 1e-4 * scale, f'largest distance {distance:.1e}, largest logit {scale:.1f}'

def compare_ids(expected, ids):
    """Two lists of lists of ids: how many are equal, and where the first other one differs."""
    n_equal = sum(a == b for a, b in zip(expected, ids))
    result = f'{n_equal} of {len(expected)} equal'
    for a, b in zip(expected, ids):
        if a != b:
            at = next((i for i, pair in enumerate(zip(a, b)) if pair[0] != pair[1]), min(len(a), len(b)))
            return False, f'{result}; the first other one: {b[at:at + 3]} for {a[at:at + 3]} at place {at}'
    return n_equal == len(expected), result

def load(case, **options):
    from transformers import AutoModelForCausalLM, AutoTokenizer
    model = AutoModelForCausalLM.from_pretrained(
        case['folder'], dtype=torch.float32, trust_remote_code=False, **options).eval()
    return model, AutoTokenizer.from_pretrained(case['folder'], trust_remote_code=False)

@torch.no_grad()
def hf_logits(model, ids):
    return model(torch.tensor([ids])).logits[0].float()

def save_for_us(case, name, model, tokenizer):
    """Saves a model as CASE/NAME, and its logits of the prompts as CASE/NAME.pt."""
    folder = Path(case['case'], name)
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    save_tensors([hf_logits(model, ids) for ids in case['prompts']], f'{folder}.safetensors')

# --------------------------------------------------------------------------------------------------
# one function for each reader

def transformers(case):
    model, tokenizer = load(case)
    checking('logits', compare_logits, case, lambda ids: hf_logits(model, ids))

    def generate():
        new = []
        for ids in case['prompts']:
            out = model.generate(torch.tensor([ids]), max_new_tokens=N_NEW, do_sample=False, repetition_penalty=1.0)
            new.append(out[0, len(ids):].tolist())
        return compare_ids(case['greedy'], new)
    checking(f'{N_NEW} greedy tokens', generate)

    def tokenize(reader):
        ok, result = compare_ids(case['ids'], [reader(text).input_ids for text in case['texts']])
        return ok and len(reader) == case['size'], f'{result}; len {len(reader)} for {case["size"]}'
    checking('ids of texts', tokenize, tokenizer)

    def save_tokenizer():
        from transformers import AutoTokenizer
        save_for_us(case, 'resaved', model, tokenizer)
        return tokenize(AutoTokenizer.from_pretrained(Path(case['case'], 'resaved'), trust_remote_code=False))
    checking('ids of texts after save_pretrained', save_tokenizer)

def _losses(trainer):
    """Trains -> the losses of the steps; ok: the last is lower than the first."""
    trainer.train()
    losses = [entry['loss'] for entry in trainer.state.log_history if 'loss' in entry]
    return losses[-1] < losses[0], ' -> '.join(f'{loss:.4f}' for loss in losses)

def trl(case):
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer
    options = {'report_to': [], 'use_cpu': True, 'bf16': False, 'max_steps': 3, 'logging_steps': 1,
               'learning_rate': 1e-4, 'lr_scheduler_type': 'constant', 'per_device_train_batch_size': 2,
               'save_strategy': 'no'}

    def sft():
        model, tokenizer = load(case)
        data = Dataset.from_list([{'text': text} for text in case['train'][:2]])
        config = SFTConfig(f"{case['case']}/sft", **options)
        trainer = SFTTrainer(model, config, train_dataset=data, processing_class=tokenizer)
        ok, result = _losses(trainer)
        save_for_us(case, 'trl', trainer.model, tokenizer)
        return ok, result
    checking('SFT, loss of 3 steps on one batch', sft)

    def dpo():
        model, tokenizer = load(case)
        data = Dataset.from_list(case['pairs'])
        config = DPOConfig(f"{case['case']}/dpo", **options)
        return _losses(DPOTrainer(model, None, config, train_dataset=data, processing_class=tokenizer))
    checking('DPO, loss of 3 steps on one batch', dpo)

def peft(case):
    from peft import LoraConfig, get_peft_model
    torch.manual_seed(0)
    model, tokenizer = load(case)
    model = get_peft_model(model, LoraConfig(r=4, target_modules='all-linear', task_type='CAUSAL_LM'))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    batch = torch.tensor([tokenizer(case['train'][0]).input_ids])

    def train():
        losses = []
        for _ in range(3):
            loss = model(input_ids=batch, labels=batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        return losses[-1] < losses[0], ' -> '.join(f'{loss:.4f}' for loss in losses)
    checking('LoRA, loss of 3 steps on one batch', train)

    def merge():
        before = hf_logits(model.eval(), case['prompts'][0])
        merged = model.merge_and_unload()
        save_for_us(case, 'peft', merged, tokenizer)
        distance = (hf_logits(merged, case['prompts'][0]) - before).abs().max().item()
        return distance < 1e-3, f'largest distance of logits {distance:.1e}'
    checking('merge_and_unload', merge)

TASK = """task: readers
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{start}}}}"
doc_to_target: 0
doc_to_choice: "{{{{[right, wrong]}}}}"
target_delimiter: ""
metric_list: [{{metric: acc}}]
"""

def lm_eval(case):
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager
    folder = Path(case['case'], 'task')
    folder.mkdir(exist_ok=True)
    data = folder / 'items.jsonl'
    data.write_text(''.join(json.dumps(item) + '\n' for item in case['items']))
    (folder / 'readers.yaml').write_text(TASK.format(data=data))

    def evaluate(options=''):
        results = simple_evaluate(
            model='hf', model_args=f"pretrained={case['folder']},dtype=float32{options}", tasks=['readers'],
            device='cpu', batch_size=2, task_manager=TaskManager(include_path=str(folder)), log_samples=True)
        samples = sorted(results['samples']['readers'], key=lambda sample: sample['doc_id'])
        values = [float(response[0]) for sample in samples for response in sample['filtered_resps']]
        distance = max(abs(a - b) for a, b in zip(values, case['log_likelihoods'], strict=True))
        return distance < 1e-3, f'{len(values)} endings, largest distance {distance:.1e} nats'
    checking('log-likelihoods of a local task', evaluate)
    checking('the same with add_bos_token=False', evaluate, ',add_bos_token=False')

def ctranslate2(case):
    import numpy as np
    from ctranslate2 import Generator
    from ctranslate2.converters import TransformersConverter
    from transformers import AutoTokenizer
    tokenizer = AutoTokenizer.from_pretrained(case['folder'], trust_remote_code=False)
    folder = Path(case['case'], 'ctranslate2')

    def convert():
        TransformersConverter(case['folder']).convert(str(folder), force=True)
        path = folder / 'config.json'
        config = json.loads(path.read_text())
        absent = [name for name, value in config.items() if name.endswith('_token') and value is None]
        if absent: # Generator would end with "type must be string, but is null"
            path.write_text(json.dumps(config | dict.fromkeys(absent, '')))
        return True, f'done, with "" for null in its config.json: {", ".join(absent)}' if absent else 'done'
    checking('conversion', convert)
    if not ROWS[-1]['ok']:
        return
    generator = Generator(str(folder), device='cpu', compute_type='float32', intra_threads=1)
    prompts = [tokenizer.convert_ids_to_tokens(ids) for ids in case['prompts']]

    def logits(ids):
        output = generator.forward_batch([tokenizer.convert_ids_to_tokens(ids)])
        return torch.from_numpy(np.array(output)[0, :len(ids)])
    checking('logits', compare_logits, case, logits)

    def generate():
        outputs = generator.generate_batch(
            prompts, max_length=N_NEW, sampling_topk=1, include_prompt_in_result=False, return_end_token=True)
        return compare_ids(case['greedy'], [output.sequences_ids[0] for output in outputs])
    checking(f'{N_NEW} greedy tokens', generate)

def onnxruntime(case):
    import onnxruntime as ort
    model, _ = load(case, attn_implementation='eager')
    path = str(Path(case['case'], 'model.onnx'))

    class Logits(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, ids):
            return self.model(input_ids=ids, use_cache=False).logits

    def export():
        ids = torch.tensor([case['prompts'][0]])
        length = torch.export.Dim('length', min=2, max=1024)
        torch.onnx.export(Logits(), (ids,), path, dynamo=True, input_names=['ids'], output_names=['logits'],
                          dynamic_shapes={'ids': {1: length}}, verbose=False)
        return True, 'done'
    checking('export by torch.onnx', export)
    if not ROWS[-1]['ok']:
        return
    session = ort.InferenceSession(path)

    def logits(ids):
        return torch.from_numpy(session.run(None, {'ids': torch.tensor([ids]).numpy()})[0][0])
    checking('logits', compare_logits, case, logits)

def llama_cpp(case):
    from urllib.request import Request, urlopen

    import xllamacpp
    params = xllamacpp.CommonParams()
    params.model.path = case['gguf']
    params.n_ctx = 512
    params.warmup = False
    params.verbosity = -1
    params.port = 0
    params.ui = False
    params.fit_params = False
    params.cpuparams.n_threads = 1
    params.cpuparams_batch.n_threads = 1
    # The keys and values of the cache are float16 unless told otherwise.
    params.cache_type_k = xllamacpp.ggml_type.GGML_TYPE_F32
    params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    server = xllamacpp.Server(params)

    def generate():
        new = []
        for ids in case['prompts']:
            body = {'prompt': ids, 'n_predict': N_NEW, 'temperature': 0, 'return_tokens': True, 'cache_prompt': False}
            request = Request(f'{server.listening_address}/completion', json.dumps(body).encode(),
                              {'Content-Type': 'application/json'})
            with urlopen(request) as answer:
                new.append(json.load(answer)['tokens'])
        return compare_ids(case['greedy'], new)
    checking(f'{N_NEW} greedy tokens', generate)

READERS = {'transformers': transformers, 'trl': trl, 'peft': peft, 'lm_eval': lm_eval, 'ctranslate2': ctranslate2,
           'onnxruntime': onnxruntime, 'llama.cpp': llama_cpp}

def main(reader, folder):
    os.environ['HF_HUB_OFFLINE'] = '1' # before a reader is imported
    os.environ['TOKENIZERS_PARALLELISM'] = 'false'
    torch.set_num_threads(1)
    case = json.loads(Path(folder, 'case.json').read_text())
    try:
        READERS[reader](case)
    except Exception as e: # as in checking
        ROWS.append({'check': 'reading', 'ok': False, 'result': first_line(e)})
    package = 'xllamacpp' if reader == 'llama.cpp' else reader
    Path(folder, f'{reader}.json').write_text(json.dumps({'version': version(package), 'rows': ROWS}))

if __name__ == '__main__':
    main(*sys.argv[1:])
