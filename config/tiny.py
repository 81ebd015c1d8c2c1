# python train.py config/tiny.py        interleaved, after config/tiny_text.py: about 130 s on 2 CPU cores
data = 'out/tokens/stories,out/tokens/talk'
sources = ('text', 'speech', 'interleaved') # as many rows of each, as in SIMS
init = 'out/tiny-text' # TWIST: its text rows are kept, 502 rows for units and separators are added
new_rows = 'normal' # the papers' 'hf' starts all units at one point, which a run this short does not leave
out = 'out/tiny'

block_size = 512
batch_tokens = 8 * block_size
micro_batch = 8
lr = 2e-3
warmup = 0.03
max_steps = 220 # 0.9M tokens; tiny_speech and tiny_scratch have the same budget

eval_every = 110
eval_rows = 16
save_every = 110
