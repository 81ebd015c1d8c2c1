"""
BLiMP by a real TextLM: eval.py's scores and accuracy beside a plain transformers loop (one sentence at a time), item by item.

    python bench/blimp.py MODEL BLIMP [ITEMS]     Hugging Face folder, folder of .jsonl, the first ITEMS of each set (15)

Both in float32, bos before each sentence. Where an item's two answers differ, or a score by more than 1e-5 of it, float64
decides which is nearer. Writes bench/results/blimp-MODEL.json.
"""
import sys
from pathlib import Path

import torch

from bench.common import save
from configurator import Refused
from eval import SIDES, score_pairs, without_audio
from evaluation.likelihood import load
from files import progress
from tasks.blimp import items

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def log_p(model, ids):
    """log p of ids 1.. of a transformers model, (n - 1,)."""
    ids = torch.tensor(ids)[None]
    with torch.inference_mode():
        return model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]

def beside(folder, found, row_tokens=2048):
    """Items -> (eval.py's row of all, and what the loop says: how many answers differ, the largest distance of a mean a token)."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    model, vocab, tokenizer, _ = load(str(folder), 'cpu')
    rows, samples = score_pairs(model, vocab, tokenizer, without_audio(found), 'T', row_tokens, [model.cfg.bos_token_id])
    theirs, words = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(folder)
    ids_of = lambda item, side: [theirs.config.bos_token_id, *words(item[side]['ending'][0], add_special_tokens=False).input_ids]
    sums, unclear, far, off = [], [], 0.0, 0.0
    for item, line in zip(progress(found, desc='transformers'), samples, strict=True):
        each = {side: log_p(theirs, ids_of(item, side)) for side in SIDES}
        sums.append([each[side].sum().item() for side in SIDES])
        for side in SIDES:
            mean, ours = each[side].mean().item(), line[f'{side}_mean']
            far = max(far, abs(mean - ours))
            if abs(mean - ours) > 1e-5 * abs(mean):
                unclear.append((item, side, ours, mean))
    differ = sum((a > b) != (line['right_sum'] > line['wrong_sum']) for (a, b), line in zip(sums, samples))
    theirs = theirs.double() if unclear else theirs
    for item, side, ours, mean in unclear:
        exact = log_p(theirs, ids_of(item, side)).mean().item()
        off = max(off, abs(ours - exact))
        if abs(ours - exact) > 2 * abs(mean - exact) + 1e-5:
            raise Refused(f"{item['id']}, {side}: ours {ours}, transformers {mean}, in float64 {exact}")
    return rows['all'], {'differ': differ, 'right_by_sum': sum(a > b for a, b in sums), 'largest_distance': far,
                         'decided_in_float64': len(unclear), 'largest_distance_from_float64': off}

def main(folder, blimp, most=15):
    counts, found = {}, []
    for item in items(blimp):
        counts[item['type']] = counts.get(item['type'], 0) + 1
        found += [item] if counts[item['type']] <= int(most) else []
    row, said = beside(folder, found)
    print(f"{row['n']} pairs: {100 * row['sum']:.1f} % by the sum, {100 * row['value']:.1f} +- {100 * row['stderr']:.1f} by the mean a token; {said}")
    save(f'blimp-{Path(folder).name}', False, pairs=row['n'], sum=row['sum'], mean=row['value'], stderr=row['stderr'], transformers=said,
         types=row['types'])

if __name__ == '__main__':
    main(*sys.argv[1:]) if 3 <= len(sys.argv) <= 4 else sys.exit(__doc__)
