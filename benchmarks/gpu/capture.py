"""The whole step with fewer launches: as a CUDA graph, and with compiled networks. A gain of 5% or more would be adopted."""
import torch

from gpu.common import Meter, report_time, skip
from gpu.steps import make


def graphed(settings):
    """A function that replays a step, with the batch that it was captured with."""
    made, stream = make(settings, loss='gathered'), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            made.whole()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    made.optimizer.zero_grad(set_to_none=True)
    with torch.cuda.graph(graph):
        made.whole()
    return lambda: graph.replay() or made  # which has to live as long


def compiled(settings):
    made = make(settings, loss='gathered')
    for network in (made.model.model_q, made.model.model_k):
        network.grid = torch.compile(network.grid, backend='aot_eager' if settings.small else 'inductor')
    return made.whole


def run(settings):
    meter = Meter(settings.device, settings.steps)
    eager, peak = meter.time(make(settings, loss='gathered').whole)
    report_time('eager', eager, peak)
    if settings.on_gpu:
        seconds, peak = meter.time(graphed(settings))
        report_time('CUDA graph', seconds, peak, f'{eager / seconds - 1:+.1%} steps a second', gain=eager / seconds - 1)
    else:
        skip('CUDA graph', 'needs a GPU')
    seconds, peak = meter.time(compiled(settings))
    report_time('compiled networks', seconds, peak, f'{eager / seconds - 1:+.1%} steps a second', gain=eager / seconds - 1)
