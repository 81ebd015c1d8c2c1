"""Which GPUs run the Triton kernels, and whose tiles they take."""
import torch

try:
    import triton
except ImportError: # e.g. macOS
    triton = None

def tiles_of(sm):
    """The architecture whose tiles an NVIDIA GPU of sm takes: 90 or 80; None where it is too old.

    Server Blackwell (sm_100) has Hopper's TMA and shared memory, other GPUs what Ampere has.
    """
    if sm < 80:
        return None
    return 90 if 90 <= sm < 110 else 80

def architecture(device):
    """tiles_of a device, that of the interpreter on a CPU; None where the Triton kernels do not run."""
    if triton is None:
        return None
    if device.type == 'cpu':
        return 90
    if device.type != 'cuda' or torch.version.hip: # ROCm has capabilities too, but of AMD's GPUs
        return None
    major, minor = torch.cuda.get_device_capability(device)
    return tiles_of(10 * major + minor)
