# python train.py config/tiny_speech.py          speech alone, after config/tiny_text.py: about 130 s on 2 CPU cores
data = 'out/tokens/stories,out/tokens/talk'
sources = ('textless',)
vocab = 'speech' # Slam's: pad, bos = eos, units
init = 'out/tiny-text'
out = 'out/tiny-speech'

# The same values as in tiny_adamw.py, because the three are compared.
block_size = 512
batch_tokens = 8 * block_size
micro_batch = 8
lr = 2e-3
warmup = 0.03
max_steps = 220

eval_every = 110
eval_rows = 16
save_every = 110
