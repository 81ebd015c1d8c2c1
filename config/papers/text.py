# python train.py config/papers/text.py          1 min on 2 CPU cores
#
# The TextLMs of papers/claims.py, which sets size and tokens. As config/tiny_text.py, but with the
# batch of the SLMs.
data = 'out/tokens/stories,out/tokens/talk'
sources = ('text',)
vocab = 'text'
tokenizer = 'tiny/tokenizer'
init = 'scratch'
n_layer = 4
n_head = 4
n_kv_head = 2
n_embd = 128
head_dim = 32
n_ffn = 336
out = 'out/papers/text-1M'

block_size = 512
batch_tokens = 4 * block_size
micro_batch = 4
lr = 2e-3
warmup = 0.03
max_tokens = 900_000

eval_every = 100_000 # only at the end
eval_rows = 64
save_every = 1000
