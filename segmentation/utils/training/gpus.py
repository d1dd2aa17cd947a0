"""Whether the GPUs of this machine can be used: driver, kernels, and that no two processes take the same one."""
import re
from collections.abc import Iterable
from pathlib import Path

import torch

from utils.errors import UserError

# The least driver for each CUDA (https://docs.nvidia.com/cuda/cuda-toolkit-release-notes/)
LEAST_DRIVER = {'11': '450.80.02', '12': '525.60.13', '13': '580.65.06'}
DRIVER_FILE = Path('/proc/driver/nvidia/version')
# The last CUDA whose PyTorch has kernels for GPUs before Turing (V100, P100, GTX 10), and where such builds are
LAST_OLD_CUDA, BUILDS = (12, 6), 'pip install torch torchvision --index-url https://download.pytorch.org/whl/cu126'
TURING = (7, 5)


def count_gpus() -> int:
    """How many GPUs this process sees and can use. Raises `UserError` if there are some that the driver can't serve."""
    count = torch.cuda.device_count()  # which asks NVML: it counts under any driver
    if not count or torch.cuda.is_available():
        return count
    needed = torch.version.cuda or ''
    least = LEAST_DRIVER.get(needed.partition('.')[0])
    wanted = f'{least} or newer' if least else 'a newer one'
    raise UserError(f'this machine has {count} GPUs that PyTorch {torch.__version__} cannot use: its driver is {_driver()}, '
                    f'and CUDA {needed} needs {wanted}: update the driver, install a PyTorch for an older CUDA '
                    '(https://pytorch.org/get-started/previous-versions), or give --device cpu')


def check_kernels(index: int) -> None:
    """Raise a `UserError` if this PyTorch has no kernels for GPU number `index`."""
    capability, built = torch.cuda.get_device_capability(index), torch.cuda.get_arch_list()
    if not built or any(_runs_on(arch, capability) for arch in built):
        return
    name, number = torch.cuda.get_device_name(index), '{}.{}'.format(*capability)
    advice = (f'a build for CUDA {LAST_OLD_CUDA[0]}.{LAST_OLD_CUDA[1]} has them: {BUILDS}' if capability < TURING
              else 'install a newer PyTorch')
    raise UserError(f'PyTorch {torch.__version__} (CUDA {torch.version.cuda}) has no kernels for {name} (capability {number}; '
                    f'it has {", ".join(built)}): {advice}; or give --device cpu')


def shared_gpus(gpus: Iterable[tuple[str, str | None]]) -> dict[tuple[str, str], list[int]]:
    """The GPUs that several processes have taken, with their ranks. gpus: (host, UUID) of each rank; None: not known."""
    taken: dict[tuple[str, str], list[int]] = {}
    for rank, (host, uuid) in enumerate(gpus):
        if uuid is not None:
            taken.setdefault((host, uuid), []).append(rank)
    return {gpu: ranks for gpu, ranks in taken.items() if len(ranks) > 1}


def gpu_uuid(device: torch.device) -> str | None:
    """The UUID of a GPU, the same in every process that sees it, or None where PyTorch doesn't tell."""
    uuid = getattr(torch.cuda.get_device_properties(device), 'uuid', None)
    return None if uuid is None else str(uuid)


def _runs_on(arch: str, capability: tuple[int, int]):
    """Whether kernels of `arch` run: sm_80 from capability 8.0 to below 9, compute_80, compiled when needed, from 8.0 on."""
    found = re.fullmatch(r'(sm|compute)_(\d+)[a-z]*', arch)
    if not found:
        return False
    major, minor = divmod(int(found[2]), 10)
    if found[1] == 'compute':
        return (major, minor) <= tuple(capability)
    return major == capability[0] and minor <= capability[1]


def _driver():
    """The driver's version in words."""
    try:
        found = re.search(r'Kernel Module[^\d]*([\d.]+)', DRIVER_FILE.read_text())
        if found:
            return found[1]
    except OSError:
        pass
    version = getattr(torch._C, '_cuda_getDriverVersion', lambda: 0)()
    return f'one for CUDA {version // 1000}.{version % 1000 // 10}' if version else 'of an unknown version'
