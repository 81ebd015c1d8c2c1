# torchrun --nproc_per_node=8 train.py config/qwen7b.py          6.85e20 FLOPs: 48.1 h on 8 H200 at 50 % MFU
#
# SIMS 7B [SIMS 4.1, 5.1, A.2]: Qwen2.5-7B on 15B tokens of text, speech and both interleaved, a third of the rows each.
# Sharded by FSDP, a run takes 50 GB on each of 8 GPUs (--memory=8); as copies (--parallel=ddp) it would take 169.
# Weights and moments are float32 here and bf16 in the papers' code: for that, dtype = 'pure_bfloat16'.
data = ('out/tokens/librilight,out/tokens/librispeech,out/tokens/swc,out/tokens/tedlium,out/tokens/peoples_speech,'
        'out/tokens/voxpopuli,out/tokens/stinystories,out/tokens/redpajama') # 84k h real, 30k h synthetic, text
sources = ('text', 'speech', 'interleaved')
init = 'Qwen/Qwen2.5-7B'
out = 'out/qwen7b'

block_size = 2048
batch_tokens = 72 * block_size # 147,456; 5k steps are 737M tokens, the papers' 720M to 2.4 %
micro_batch = 3
parallel = 'fsdp'
lr = 3e-4 # 5e-4 below 2e20 FLOPs
min_lr = 5e-5
schedule = 'cosine'
warmup = 0.01
clip = 0.5
max_tokens = 15e9 # 101,725 steps

eval_every = 1000
save_every = 2000 # about once an hour: a checkpoint has 91 GB and takes minutes to write
