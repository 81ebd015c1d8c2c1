"""Which GPUs run the Triton kernels, and whose tiles attention takes on them."""
import torch

try:
    import triton
except ImportError: # e.g. macOS
    triton = None

def tiles_of(sm):
    """The architecture whose tiles of attention an NVIDIA GPU of sm takes, 80 or 90, or None.

    sm_100 to sm_110 have none yet: their tensor cores keep sums in a memory of their own, and with
    Hopper's tiles the forward of 64 channels spills 288 bytes. sm_120 has Ampere's instructions.
    """
    if sm < 80 or 100 <= sm < 120:
        return None
    return 90 if sm == 90 else 80

def sm_of(device):
    """10 x the compute capability of an NVIDIA GPU; 0 for others: ROCm's capabilities are of AMD."""
    if device.type != 'cuda' or torch.version.hip:
        return 0
    properties = torch.cuda.get_device_properties(device) # torch.compile folds this, and not get_device_capability
    return 10 * properties.major + properties.minor

def runs_triton(device):
    """Whether Triton is installed and compiles for a device, in bf16 too."""
    return triton is not None and sm_of(device) >= 80

def architecture(device):
    """tiles_of a device, and 90 for the interpreter on a CPU; None where attention has no kernel."""
    if triton is None:
        return None
    return 90 if device.type == 'cpu' else tiles_of(sm_of(device))
