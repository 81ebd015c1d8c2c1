# torchrun --nproc_per_node=2 train.py config/slam-scaled.py          5.39e19 FLOPs: 48.0 h on 2 A100 at 50 % MFU
#
# Slam scaled [Slam Table 3]: config/slam.py on 2 A100 for 48 h, with twice the batch: 16.7B tokens, at the 48.3k
# tokens a second on each GPU that the paper had.
# Weights and moments are float32 here and bf16 in the papers' code: for that, dtype = 'pure_bfloat16'.
data = 'out/tokens/librilight,out/tokens/librispeech,out/tokens/stinystories'
sources = ('textless',)
vocab = 'speech'
init = 'Qwen/Qwen2.5-0.5B'
rope_theta = 10000
out = 'out/slam-scaled'

block_size = 1024
batch_tokens = 256 * block_size
micro_batch = 32
lr = 1e-3
max_seconds = 48 * 3600 # the schedule ends with the time
