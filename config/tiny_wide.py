# python train.py config/tiny_wide.py          on the wide corpus, from tiny/textlm: 0.6 h on 2 CPU cores
data = 'out/tokens/wide,out/tokens/wide-talk' # wide_text and wide_corpus of tiny/jobs.sh make them
sources = ('text', 'speech', 'interleaved')
weights = (0.2, 0.4, 0.4) # the TextLM has read the text already
init = 'tiny/textlm'
new_rows = 'normal'
out = 'out/tiny-wide'

block_size = 512
batch_tokens = 8 * block_size
micro_batch = 8
optimizer = 'muon'
schedule = 'wsd'
decay = 0.5
lr = 2e-3
warmup = 0.03
max_steps = 4500 # 18.4M tokens
dtype = 'bfloat16'

eval_every = 1000
eval_rows = 16
save_every = 500
