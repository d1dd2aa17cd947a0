"""Each evaluation on Shapes; on a GPU compared with the CPU, except for K-means."""
import tempfile

from gpu.common import report
from gpu.shapes import EVALUATION, LINEAR, PRETRAINING, Runs

NEAR = 1.0  # points of mIoU, where rounding may turn single pixels or neighbours


def run(settings):
    with tempfile.TemporaryDirectory() as folder:
        runs = Runs(folder, settings.device.type)
        runs.run(*runs.command('pretrain/main.py', 'pretraining', PRETRAINING, '--world-size', '1'))
        weights = {'pretraining': str(runs.output('pretraining') / 'checkpoint.pth.tar')}
        best = str(runs.output('linear') / 'best_model.pth.tar')
        runs.run(*runs.command('segmentation/linear_finetune.py', 'linear', LINEAR | weights))
        found = runs.results('linear')['mIoU']
        report('linear_finetune.py', ok=0 < found <= 100, detail=f'mIoU {found:.2f}')
        for script, experiment, flags, bound in (('kmeans', EVALUATION | weights, ['--num_seeds', '2'], None),
                                                 ('retrieval', EVALUATION | weights, [], NEAR),
                                                 ('eval', LINEAR | weights, ['--state-dict', best], NEAR)):
            found = {}
            for device in dict.fromkeys((settings.device.type, 'cpu')):
                runs.device, name = device, f'{script}_{device}'
                runs.run(*runs.command(f'segmentation/{script}.py', name, experiment, *flags))
                path = next(runs.output(name).rglob('results.json')).relative_to(runs.folder / 'output').parent
                found[device] = runs.results(path)['mIoU']
            near = bound is None or max(found.values()) - min(found.values()) <= bound
            report(f'{script}.py', ok=all(0 < value <= 100 for value in found.values()) and near,
                   detail='mIoU ' + ', '.join(f'{value:.2f} ({device})' for device, value in found.items()))
