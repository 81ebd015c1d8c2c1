# torchrun --nproc_per_node=2 dpo.py config/slam-scaled_dpo.py          3.9e16 FLOPs: 0.03 h on 2 A100 at 50 % MFU
#
# The second stage of Slam scaled [Slam Table 3]: config/slam_dpo.py for 2 epochs, 9M tokens of prompts and chosen
# completions, from config/slam-scaled.py. The paper does not say which batch two GPUs had.
# Weights and moments are float32, as by default in the papers' code; dtype = 'pure_bfloat16' has both in bf16.
data = 'out/units/spokenswag'
init = 'out/slam-scaled'
out = 'out/slam-scaled-dpo'

beta = 0.1
max_auto_bleu = 0.3
block_size = 1024
skip_long = True
batch = 64
micro_batch = 8
lr = 5e-5
schedule = 'inverse_sqrt'
warmup = 100 / 1469 # 100 steps of about 1,469, as in the papers' code
clip = 0.5
max_epochs = 2

eval_every = 1000
save_every = 200
