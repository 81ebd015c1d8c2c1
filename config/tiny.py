# python train.py config/tiny.py        interleaved, after config/tiny_text.py: about 8 min on 2 CPU cores
data = 'out/tokens/stories,out/tokens/talk'
sources = ('text', 'speech', 'interleaved') # as many rows of each, as in SIMS
init = 'out/tiny-text' # TWIST: its text rows are kept, 502 rows for units and separators are added
new_rows = 'normal' # the papers' 'hf' starts all units at one point, which a run this short does not leave
out = 'out/tiny'

block_size = 512
batch_tokens = 8 * block_size
micro_batch = 8
optimizer = 'muon' # with the schedule, the most in minutes (docs/evaluation.md); the papers' is in tiny_adamw.py
schedule = 'wsd'
decay = 0.5
lr = 2e-3
warmup = 0.03
max_steps = 1000 # 4.1M tokens

eval_every = 250
eval_rows = 16
save_every = 250
