# python train.py config/slam-diverse.py          4.97e18 FLOPs: 24.9 h on an A5000 at 50 % of its 111 TFLOP/s
#
# Slam's ablation of diversity: config/slam.py with more kinds of speech, which did not help it.
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
max_steps = 17625
