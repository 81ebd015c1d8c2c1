"""
BLiMP with a real text model: eval.py's scores and accuracy beside a plain transformers loop, item by item.

    python bench/blimp.py MODEL BLIMP [ITEMS]

MODEL is a Hugging Face folder, BLIMP a folder of .jsonl files; the first ITEMS of each set are
scored (15 by default). Both sides compute in float32 and put bos before each sentence; the loop
scores one sentence at a time. Where a mean log-likelihood per token differs by more than 1e-5 of
its size, both are compared with the loop's in float64: the script fails if eval.py is off by more
than twice the loop's own error plus 1e-5.

Writes bench/results/blimp-MODEL.json.
"""
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench.common import save
from configurator import Refused
from eval import SIDES, score_pairs, without_audio
from evaluation.likelihood import load
from files import progress
from tasks.blimp import items


def token_log_probs(model, ids):
    """log p of each id after the first, by a transformers model: ids, a list of n -> (n - 1,)."""
    ids = torch.tensor(ids)[None]
    with torch.inference_mode():
        log_probs = model(ids).logits[0, :-1].log_softmax(-1)
        return log_probs.gather(1, ids[0, 1:, None])[:, 0]

def beside(folder, pairs, row_tokens=2048):
    """Scores items of tasks/blimp.py with eval.py and with transformers -> (eval.py's row, a dict).

    The dict compares them: 'differ' is the number of items whose answers (which side has the larger
    sum) are not the same, 'largest_distance' that of the mean log-likelihoods per token. Raises
    Refused if float64 shows that a score of eval.py is wrong.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    model, vocab, tokenizer, _ = load(str(folder), 'cpu')
    rows, samples = score_pairs(
        model, vocab, tokenizer, without_audio(pairs), 'T', row_tokens, lead=[model.cfg.bos_token_id])
    hf_model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False).eval()
    hf_tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)

    def hf_log_probs(item, side):
        sentence = item[side]['ending'][0]
        ids = hf_tokenizer(sentence, add_special_tokens=False).input_ids
        return token_log_probs(hf_model, [hf_model.config.bos_token_id, *ids])

    n_differ = n_right = 0
    unclear = []
    largest_distance = largest_error = 0.0
    for item, sample in zip(progress(pairs, desc='transformers'), samples, strict=True):
        sums = []
        for side in SIDES:
            log_probs = hf_log_probs(item, side)
            sums.append(log_probs.sum().item())
            hf_mean = log_probs.mean().item()
            mean = sample[f'{side}_mean']
            largest_distance = max(largest_distance, abs(hf_mean - mean))
            if abs(hf_mean - mean) > 1e-5 * abs(hf_mean):
                unclear.append((item, side, mean, hf_mean))
        right, wrong = sums
        n_right += right > wrong
        n_differ += (right > wrong) != (sample['right_sum'] > sample['wrong_sum'])
    if unclear:
        hf_model.double()
    for item, side, mean, hf_mean in unclear:
        exact = hf_log_probs(item, side).mean().item()
        error = abs(mean - exact)
        largest_error = max(largest_error, error)
        if error > 2 * abs(hf_mean - exact) + 1e-5:
            raise Refused(f"{item['id']}, {side}: eval.py gives {mean}, transformers {hf_mean}, "
                          f"but float64 {exact}")
    return rows['all'], {'differ': n_differ,
                         'right_by_sum': n_right,
                         'largest_distance': largest_distance,
                         'decided_in_float64': len(unclear),
                         'largest_distance_from_float64': largest_error}

def main(folder, blimp, n_items=15):
    counts = {}
    pairs = []
    for item in items(blimp):
        counts[item['type']] = counts.get(item['type'], 0) + 1
        if counts[item['type']] <= int(n_items):
            pairs.append(item)
    row, comparison = beside(folder, pairs)
    print(f"{row['n']} pairs: {100 * row['sum']:.1f} % by the sum, "
          f"{100 * row['value']:.1f} +- {100 * row['stderr']:.1f} by the mean a token; {comparison}")
    save(f'blimp-{Path(folder).name}', False, pairs=row['n'], sum=row['sum'], mean=row['value'],
         stderr=row['stderr'], transformers=comparison, types=row['types'])

if __name__ == '__main__':
    if not 3 <= len(sys.argv) <= 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
