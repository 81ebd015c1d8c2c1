"""
lm-evaluation-harness loads a folder that train.py leaves, and finds our log-likelihoods. The task is
a local one, so no network is needed.
"""
import json

import pytest
import torch
from small import make_model, make_tokenizer

PAIRS = [('Tom had a red kite.', 'Tom had a kite red.'),
         ('She went to the park.', 'She went the to park.')]
TASK = """task: made_pairs
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{start}}}}"
doc_to_target: 0
doc_to_choice: "{{{{[good, bad]}}}}"
target_delimiter: ""
metric_list: [{{metric: acc}}]
"""
N_CONTEXT = 3 # the first characters of a sentence, which are the context of both choices

def write_task(folder):
    """Writes PAIRS and a task of the harness to folder, each choice a sentence without its context."""
    folder.mkdir()
    data = folder / 'pairs.jsonl'
    lines = []
    for right, wrong in PAIRS:
        line = {'start': right[:N_CONTEXT], 'good': right[N_CONTEXT:], 'bad': wrong[N_CONTEXT:]}
        lines.append(json.dumps(line) + '\n')
    data.write_text(''.join(lines))
    (folder / 'made.yaml').write_text(TASK.format(data=data))

def log_likelihood(model, tokenizer, sentence):
    """log p of a sentence after its first N_CONTEXT characters, given these."""
    ids = torch.tensor([tokenizer.encode(sentence)])
    n_context = len(tokenizer.encode(sentence[:N_CONTEXT]))
    with torch.no_grad():
        losses = model.losses(ids[:, :-1], None, ids[:, 1:])
    return -losses[n_context - 1:].sum().item()

@pytest.mark.parametrize('kind', ['text', 'joint'])
def test_the_harness_finds_our_log_likelihoods(tmp_path, monkeypatch, kind):
    for package in ('lm_eval', 'accelerate'): # the second is in the extra that its model 'hf' needs
        pytest.importorskip(package, reason=f"{package} is not installed: pip install 'lm_eval[hf]'")
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    tokenizer = make_tokenizer(tmp_path / 'tokenizer')
    model, _ = make_model(tmp_path / 'model', tmp_path / 'tokenizer', kind)
    write_task(tmp_path / 'task')
    results = simple_evaluate(
        model='hf',
        model_args=f'pretrained={tmp_path}/model,dtype=float32',
        tasks=['made_pairs'],
        device='cpu',
        batch_size=2,
        task_manager=TaskManager(include_path=str(tmp_path / 'task')),
        bootstrap_iters=0)
    samples = sorted(results['samples']['made_pairs'], key=lambda sample: sample['doc_id'])
    assert len(samples) == len(PAIRS)
    for sentences, sample in zip(PAIRS, samples):
        for sentence, [(harness_value, _)] in zip(sentences, sample['resps']):
            expected = log_likelihood(model, tokenizer, sentence)
            assert harness_value == pytest.approx(expected, abs=1e-4)
