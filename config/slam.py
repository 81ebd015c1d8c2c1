# python train.py config/slam.py          4.97e18 FLOPs: 24.9 h on an A5000 at 50 % of its 111 TFLOP/s
#
# Slam [Tables 4-6, A]: a speech-only model from Qwen2.5-0.5B in a day on one GPU. On 8 GPUs:
# torchrun --nproc_per_node=8 train.py config/slam.py. The paper's 17,625 steps saw 1.4B tokens, as its rows held 621
# tokens on average; ours are full.
data = 'out/tokens/librilight,out/tokens/librispeech,out/tokens/stinystories'
sources = ('textless',)
vocab = 'speech' # 502 ids, which leave 358M parameters
init = 'Qwen/Qwen2.5-0.5B'
rope_theta = 10000
out = 'out/slam'

block_size = 1024
batch_tokens = 128 * block_size
micro_batch = 8
lr = 1e-3
min_lr = 5e-5
schedule = 'cosine'
warmup = 0.01
clip = 0.5
max_steps = 17625

eval_every = 1000
save_every = 500
