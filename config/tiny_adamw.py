# python train.py config/tiny_adamw.py          tiny.py in short, as the papers train: 130 s on 2 CPU cores
data = 'out/tokens/stories,out/tokens/talk'
sources = ('text', 'speech', 'interleaved')
init = 'out/tiny-text'
new_rows = 'normal'
out = 'out/tiny-adamw'

# The same values as in tiny_speech.py and tiny_scratch.py, because the three are compared.
block_size = 512
batch_tokens = 8 * block_size
micro_batch = 8
lr = 2e-3
warmup = 0.03
max_steps = 220

eval_every = 110
eval_rows = 16
save_every = 110
