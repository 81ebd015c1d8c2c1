# python train.py config/tiny_textlm.py          a TextLM that knows the world of tiny/world.py: 0.5 h on 2 CPU cores
data = 'out/tokens/world' # wide_text of tiny/jobs.sh makes it
sources = ('text',)
vocab = 'text'
tokenizer = 'tiny/tokenizer'
out = 'out/tiny-textlm'

# shape: that of tiny_text.py
init = 'scratch'
n_layer = 6
n_head = 6
n_kv_head = 2
n_embd = 192
head_dim = 32
n_ffn = 512

block_size = 512
batch_tokens = 8 * block_size
micro_batch = 8
optimizer = 'muon'
schedule = 'wsd'
decay = 0.3
lr = 4e-3
warmup = 0.03
max_steps = 3000 # 12.3M tokens, of 14.5M
dtype = 'bfloat16'

eval_every = 500
eval_rows = 16
save_every = 250
