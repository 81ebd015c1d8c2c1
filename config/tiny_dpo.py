# python dpo.py config/tiny_dpo.py          tiny/slm, after `python -m tiny.preferences`: about 4 min on 2 CPU cores
data = 'out/data/pairs/train' # pairs of training stories (tiny/preferences.py); no evaluation story is among them
val_data = 'out/data/pairs/val'
directions = ('S',)
eot = True # the speech documents that tiny/slm learned end with <|endoftext|>
init = 'tiny/slm'
out = 'out/tiny-dpo'

block_size = 512
batch = 32 # pairs
micro_batch = 16
beta = 0.1
lr = 5e-5 # the paper's; ten times that drove the loss above ln 2 within 25 steps
warmup = 0.1
max_steps = 100 # 3,200 of 18,165 pairs, 1.1M tokens
dtype = 'float32'

eval_every = 50
eval_rows = 128
save_every = 50
