"""lm-evaluation-harness on a folder that train.py leaves: its log-likelihoods are ours. A local task, no network."""
import json

import pytest
import torch
from small import make_model, make_tokenizer

PAIRS = [('Tom had a red kite.', 'Tom had a kite red.'), ('She went to the park.', 'She went the to park.')]
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

@pytest.mark.parametrize('kind', ['text', 'joint'])
def test_the_harness_finds_our_log_likelihoods(tmp_path, monkeypatch, kind):
    pytest.importorskip('lm_eval', reason="lm_eval is not here: pip install lm_eval")
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    tokenizer = make_tokenizer(tmp_path / 'tokenizer')
    model, vocab = make_model(tmp_path / 'model', tmp_path / 'tokenizer', kind)
    (tmp_path / 'task').mkdir()
    (tmp_path / 'pairs.jsonl').write_text(''.join(json.dumps({'start': a[:3], 'good': a[3:], 'bad': b[3:]}) + '\n' for a, b in PAIRS))
    (tmp_path / 'task' / 'made.yaml').write_text(TASK.format(data=tmp_path / 'pairs.jsonl'))
    found = simple_evaluate(model='hf', model_args=f'pretrained={tmp_path}/model,dtype=float32', tasks=['made_pairs'], device='cpu',
                            batch_size=2, task_manager=TaskManager(include_path=str(tmp_path / 'task')), bootstrap_iters=0)
    for (good, bad), sample in zip(PAIRS, sorted(found['samples']['made_pairs'], key=lambda s: s['doc_id'])):
        for text, ((theirs, _),) in zip((good, bad), sample['resps']):
            ids, start = torch.tensor([tokenizer.encode(text)]), len(tokenizer.encode(text[:3]))
            with torch.no_grad():
                losses = model.losses(ids[:, :-1], None, ids[:, 1:])
            assert theirs == pytest.approx(-losses[start - 1:].sum().item(), abs=1e-4)
