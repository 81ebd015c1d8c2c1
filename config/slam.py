# python train.py config/slam.py          4.70e18 FLOPs: 23.5 h on an A5000 at 50 % of its 111 TFLOP/s
#
# Slam [Tables 4-6, A]: a speech-only model from Qwen2.5-0.5B in a day on one GPU, the last half hour of which is for
# config/slam_dpo.py. The paper fixes the day, so that is the budget here, and a faster GPU gets more out of it. In that
# day the paper made 17,625 steps of 1.4B tokens in all, as its rows held 621 tokens on average; ours are full. So its
# tokens and its steps are two other budgets; take the first to compare with the paper's scores on another GPU:
#     --max_seconds=None --max_tokens=1.4e9     10,681 steps
#     --max_seconds=None --max_steps=17625      2.31B tokens: 38.8 h at the paper's 16.5k tokens a second
# Weights and moments are float32 here and bf16 in the papers' code: for that, dtype = 'pure_bfloat16'.
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
max_seconds = 23.5 * 3600 # the schedule ends with the time

eval_every = 1000
save_every = 500
