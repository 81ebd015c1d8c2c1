# python train.py config/tiny_text.py          the TextLM that the tiny models start from: about 130 s on 2 CPU cores
data = 'out/tokens/stories,out/tokens/talk'
sources = ('text',)
vocab = 'text'
tokenizer = 'tiny/tokenizer'
out = 'out/tiny-text'

# shape: Qwen2.5 in small, 2.8M parameters of which 0.4M are the table of 2,048 ids
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
lr = 2e-3 # small models bear more than the papers' 5e-4
warmup = 0.03
max_steps = 220 # 0.9M tokens

eval_every = 110
eval_rows = 16
save_every = 110
