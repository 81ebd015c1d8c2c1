# python train.py config/slam-diverse.py          4.70e18 FLOPs: 23.5 h on an A5000 at 50 % of its 111 TFLOP/s
#
# Slam's ablation of diversity [Slam Table 1]: config/slam.py with more kinds of speech, which did not help it.
# Weights and moments are float32 here and bf16 in the papers' code: for that, dtype = 'pure_bfloat16'.
data = ('out/tokens/librilight,out/tokens/librispeech,out/tokens/stinystories,out/tokens/swc,out/tokens/tedlium,'
        'out/tokens/peoples_speech,out/tokens/voxpopuli')
sources = ('textless',)
vocab = 'speech'
init = 'Qwen/Qwen2.5-0.5B'
rope_theta = 10000
out = 'out/slam-diverse'

block_size = 1024
batch_tokens = 128 * block_size
micro_batch = 8
lr = 1e-3
max_seconds = 23.5 * 3600 # or the paper's tokens or steps, as in config/slam.py
