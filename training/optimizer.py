"""
The optimizers of train.py: AdamW, with which the papers train, or Muon for the matrices of the layers.

    B <- 0.95 B + 0.05 G     W <- W - lr 0.2 sqrt(max(rows, columns)) O(0.95 B + 0.05 G)

O makes all singular values of a matrix about 1, by five steps of Newton and Schulz in bfloat16 (Jordan et al. 2024,
https://kellerjordan.github.io/posts/muon). The factor makes an update about as large as one of AdamW (Liu et al.
2025, arXiv 2502.16982), so that both take one rate. Muon is torch's own. The projections that a layer stacks in one
matrix (q | k | v, gate | up) are one matrix to it. With FSDP the products of O run over the ranks, which sum or
gather 11 (tall matrices) to 16 (wide ones) times a matrix and step.
"""
import torch


def adamw(parameters, lr):
    """AdamW, fused: three times as fast, on a CPU too, and able to skip a step by `found_inf`."""
    return torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, fused=True)

class Muon:
    """Muon for the layers' matrices and AdamW for all else (embeddings, head, norms, biases), as one optimizer."""

    def __init__(self, model, lr):
        matrices = {p: None for p in model.layers.parameters() if p.ndim == 2} # a dict keeps their order
        self.muon = torch.optim.Muon(list(matrices), lr=lr, weight_decay=0.0, adjust_lr_fn='match_rms_adamw')
        self.adamw = adamw([p for p in model.parameters() if p not in matrices], lr)
        self.state = self.muon.state = self.adamw.state
        self.param_groups = self.muon.param_groups + self.adamw.param_groups
        self.found_inf = torch.tensor(0.0) # 1: the next step is skipped

    def step(self):
        if not self.found_inf.item(): # torch's Muon cannot skip, so the host waits for the gradients here
            self.muon.step()
            self.adamw.step()

    def zero_grad(self, set_to_none=True):
        self.muon.zero_grad(set_to_none)
        self.adamw.zero_grad(set_to_none)

def make_optimizer(model, lr, name='adamw'):
    """The optimizer called 'adamw' or 'muon' of all parameters of a model."""
    return Muon(model, lr) if name == 'muon' else adamw(model.parameters(), lr)
