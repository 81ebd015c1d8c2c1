# python dpo.py config/slam_dpo.py          2.1e16 FLOPs: 0.11 h on an A5000 at 50 % of its 111 TFLOP/s
#
# Slam's second stage [Slam Tables 4-6, A]: 813 steps of 64 pairs of SpokenSwag, the last half hour of the paper's day,
# from config/slam.py. The paper's schedule is the inverse square root; the default of its code is a constant now.
# Pairs: python -m corpora.spokenswag --parquet=FOLDER --out=data/spokenswag, then tokenize_speech.py with Slam's
# encoder, --audio=data/spokenswag --out=out/units/spokenswag.
# Weights and moments are float32, as by default in the papers' code; dtype = 'pure_bfloat16' has both in bf16.
data = 'out/units/spokenswag'
init = 'out/slam'
out = 'out/slam-dpo'

beta = 0.1
max_auto_bleu = 0.3
block_size = 1024
skip_long = True
batch = 64
micro_batch = 8 # pairs of about 200 tokens each, packed without padding; so at most 8 GPUs share the batch
lr = 5e-5
schedule = 'inverse_sqrt'
warmup = 100 / 813 # 100 steps, as in the papers' code
clip = 0.5
max_steps = 813

eval_every = 813
save_every = 200
