# python train.py config/papers/wide.py          the SLMs of papers/turn.py: 4 min on 2 CPU cores
#
# papers/turn.py sets size, start, budget, seed and sources. The recipe is that of config/tiny.py.
data = 'out/tokens/wide,out/tokens/wide-talk'
sources = ('text', 'speech', 'interleaved') # as many rows of each
tokenizer = 'tiny/tokenizer'
init = 'out/turn/text-2.8M'
new_rows = 'normal'
out = 'out/papers/wide'

block_size = 512
batch_tokens = 8 * block_size
micro_batch = 8
optimizer = 'muon'
schedule = 'wsd'
decay = 0.5
lr = 2e-3
warmup = 0.03
dtype = 'bfloat16'
max_flops = 3e13

eval_every = 100_000 # only at the end
eval_rows = 64
save_every = 1000
