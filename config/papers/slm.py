# python train.py config/papers/slm.py          2 min on 2 CPU cores
#
# The SLMs of papers/claims.py, which sets size, start, budget, seed and, for textless ones, sources.
# As config/tiny_adamw.py, but with half its batch, so that small budgets have enough steps.
data = 'out/tokens/stories,out/tokens/talk'
sources = ('text', 'speech', 'interleaved') # as many rows of each
tokenizer = 'tiny/tokenizer'
init = 'out/papers/text-1M'
new_rows = 'normal'
out = 'out/papers/slm'

block_size = 512
batch_tokens = 4 * block_size
micro_batch = 4
lr = 2e-3
warmup = 0.03
max_flops = 1e13

eval_every = 100_000 # only at the end
eval_rows = 32
save_every = 1000
