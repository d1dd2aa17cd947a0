"""A training that is killed and resumed ends like one that was never disturbed."""
import json
import signal
import tempfile
import time

from gpu.common import report
from gpu.shapes import PRETRAINING, Runs, difference

FAR = 1e-3  # relative: on a GPU some sums have another order each time
PRECISIONS = ('none', 'auto')


def kill_at_first_checkpoint(runs, command, path):
    process = runs.start(*command)
    while not path.exists() and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    if process.returncode != -signal.SIGKILL:
        raise RuntimeError(f'main.py ended with {process.returncode} before it could be killed')


def first_loss(runs, name):
    """Of the first epoch: later ones amplify the rounding."""
    return json.loads((runs.output(name) / 'metrics.jsonl').read_text().splitlines()[0])['loss']


def run(settings):
    device = settings.device.type
    with tempfile.TemporaryDirectory() as folder:
        runs = Runs(folder, device)
        for precision in PRECISIONS if settings.on_gpu else PRECISIONS[:1]:
            flags = '--world-size', '1', '--amp', precision, *(['--deterministic'] if settings.on_gpu else [])
            whole, killed = f'whole_{precision}', f'killed_{precision}'
            runs.run(*runs.command('pretrain/main.py', whole, PRETRAINING, *flags))
            command = runs.command('pretrain/main.py', killed, {**PRETRAINING, 'checkpoint_every': 1}, *flags)
            kill_at_first_checkpoint(runs, command, runs.output(killed) / 'checkpoint.pth.tar')
            said = runs.run(*command)
            want, got = runs.checkpoint(whole), runs.checkpoint(killed)
            off = difference(got['model'], want['model'])
            went_on = 'Resuming from' in said and got['epoch'] == want['epoch'] == PRETRAINING['epochs']
            report(f'killed and resumed, --amp {precision}', ok=went_on and off <= (FAR if settings.on_gpu else 0),
                   detail='equal bit for bit' if off == 0 else f'weights off by {off:.1e}')
        for form in ('fused', 'gathered'):
            runs.run(*runs.command('pretrain/main.py', form, {**PRETRAINING, 'moco_kwargs': {
                **PRETRAINING['moco_kwargs'], 'loss': form}}, '--world-size', '1', '--amp', 'none'))
        off = abs(first_loss(runs, 'gathered') / first_loss(runs, 'fused') - 1)
        report('trained with gathered losses', ok=off < 1e-2, detail=f'first loss off that of the fused ones by {off:.1e}')
