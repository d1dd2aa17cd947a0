"""The sections of `make gpu`, in the order in which they run: checks first, then measurements."""
from dataclasses import dataclass


@dataclass(frozen=True)
class Section:
    """name: of the module with `run(settings)`. what: description. seconds: time limit. gpu: why it needs a GPU, or None."""
    name: str
    what: str
    seconds: float
    gpu: str | None = None


BENCH = 'needs a GPU; on a CPU, make bench measures it'
SECTIONS = (
    Section('environment', 'driver, GPU and PyTorch', 40),
    Section('golden', 'the published figures of one step', 60),
    Section('precisions', 'a step in each precision against float32 on the CPU', 60, 'needs a GPU to compare'),
    Section('losses', 'the losses in each form', 80, BENCH),
    Section('steps', 'a whole step', 200, BENCH),
    Section('algorithms', 'a whole step without cudnn.benchmark', 40, BENCH),
    Section('training', 'training, kill, resume', 100),
    Section('processes', 'two processes against simulated ones', 100),
    Section('evaluations', 'each evaluation on Shapes', 150),
    Section('convolutions', 'atrous convolutions in each form', 40, 'needs a GPU: models/atrous.py has the figures of a CPU'),
    Section('capture', 'a step as a CUDA graph, and compiled', 150, 'needs a GPU'),
    Section('checkpoints', 'cost of a checkpoint per epoch', 60, 'needs a GPU; on a CPU, see benchmarks/checkpoints.py'),
    Section('loading', 'images a second of the loader', 60, BENCH),
    Section('memory', 'a step at several batch sizes', 60, BENCH),
)
