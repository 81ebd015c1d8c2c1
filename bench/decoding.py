"""
Cached decoding of a random Qwen2.5-0.5B in bf16 on a GPU, beside transformers with its weights, in tokens a second.

    python bench/decoding.py [--dry]      --dry: a tiny model, nothing written, also without a GPU

Greedy, prompts of 64 tokens, 64 new ones, batches of 1 and 32. `of floor` is the time of a step beside reading each
weight once at the rate of a copy, measured in the same run; `of ours` is a way's time divided by ours.

Writes bench/results/gpu-decoding.json.
"""
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import torch
import transformers

from bench.common import DEVICE, ceilings, measure, parse_dry, save, table
from bench.kernel_speed import OURS
from bench.training import SHAPES
from hub.families import GPTConfig
from model import GPT

# {way: what GPT.generate is given for it}; by itself it takes a CUDA graph on a GPU.
WAYS = {OURS: {}, f'{OURS}, without a graph': {'decode': 'eager'}}
COLUMNS = ('batch', 'of', 'tokens/s', 'ms', 'least', 'most', 'of ours', 'ms a step', 'of floor')

def models(dry):
    """-> ours and that of transformers, with the same weights"""
    shape, _, _ = SHAPES['tiny' if dry else 'Qwen2.5-0.5B']
    torch.manual_seed(0)
    dtype = torch.float32 if DEVICE == 'cpu' else torch.bfloat16
    model = GPT(GPTConfig(vocab_size=512 if dry else 152_064, **shape)).to(DEVICE, dtype).eval()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, dtype=dtype)
        hf_model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation='sdpa', trust_remote_code=False)
    return model, hf_model.to(DEVICE).eval()

def calls_of(model, hf_model, B, n_prompt, n_new):
    """{way: a function that decodes n_new tokens for each of B prompts}"""
    prompts = torch.randint(model.cfg.vocab_size, (B, n_prompt), device=DEVICE)
    rows = prompts.tolist()
    calls = {way: lambda settings=settings: model.generate(rows, n_new, temperature=0, **settings)
             for way, settings in WAYS.items()}

    def hf_generate():
        return hf_model.generate(prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=n_new,
                                 min_new_tokens=n_new, do_sample=False, pad_token_id=0)

    return calls | {'transformers, dynamic cache': hf_generate}

def rows_of(dry, limits):
    """Yields a row for each batch size and way."""
    model, hf_model = models(dry)
    n_prompt, n_new, repeats = (4, 3, 1) if dry else (64, 64, 3)
    weights = sum(p.nbytes for p in model.parameters())
    floor = weights / limits['gbs'] / 1e6 # ms a step
    for B in (1, 2 if dry else 32):
        measured = measure(calls_of(model, hf_model, B, n_prompt, n_new), repeats)
        ours = measured[OURS].get('ms')
        for way, row in measured.items():
            if 'ms' in row:
                row |= {'tokens/s': round(B * n_new / row['ms'] * 1e3, 1),
                        'ms a step': round(row['ms'] / n_new, 3),
                        'of floor': round(row['ms'] / n_new / floor, 2)}
                if ours:
                    row['of ours'] = round(row['ms'] / ours, 3)
            yield {'batch': B, 'of': way, **row}

def main():
    dry = parse_dry(__doc__)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    limits = ceilings(dry)
    rows = table(rows_of(dry, limits), *COLUMNS,
                 on_row=lambda rows: save('gpu-decoding', dry, ceilings=limits, rows=rows))
    return int(any('error' in row for row in rows if row['of'].startswith(OURS)))

if __name__ == '__main__':
    raise SystemExit(main())
