# python train.py config/tiny_long.py          tiny_adamw.py for longer, from the same TextLM: 0.5 h on 2 CPU cores
data = 'out/tokens/stories,out/tokens/talk'
sources = ('text', 'speech', 'interleaved')
init = 'out/tiny-text'
new_rows = 'normal'
out = 'out/tiny-long'

block_size = 512
batch_tokens = 16 * block_size
micro_batch = 16
lr = 2e-3
max_steps = 1600 # 13M tokens

eval_every = 400
eval_rows = 16
save_every = 400
