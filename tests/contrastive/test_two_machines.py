"""Two machines: network namespaces with hosts files as Debian writes them, in which a machine's own name is 127.0.1.1."""
import os
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
import torch
from helpers.processes import MAIN, ONE_THREAD

pytestmark = [pytest.mark.slow, pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which('ip') or not shutil.which('unshare'),
    reason='network namespaces need root, iproute2 and unshare')]

ADDRESSES = {'alpha': '10.77.0.1', 'beta': '10.77.0.2'}
# What a process finds out about its place after it has joined
PLACE = f'''
import os, sys
sys.path.insert(0, {str(MAIN.parent)!r})
os.environ.update(RANK=sys.argv[1], WORLD_SIZE='2')
from utils.parallel import distributed, ranks
distributed.join('cpu', url=sys.argv[2])
print('place', ranks.rank(), ranks.local_rank(), ranks.local_world_size(), os.environ['GLOO_SOCKET_IFNAME'], flush=True)
distributed.leave()
'''


@pytest.fixture
def machines():
    """Two namespaces that a cable connects. machines(name, words) starts a process on one of them."""
    tag, started = uuid.uuid4().hex[:6], []
    spaces = {name: f'mc-{tag}-{name}' for name in ADDRESSES}

    def ip(*words):
        subprocess.run(['ip', *words], check=True)
    try:
        for space in spaces.values():
            ip('netns', 'add', space)
        cables = [f'mc{tag}{number}' for number in range(2)]
        ip('link', 'add', cables[0], 'type', 'veth', 'peer', 'name', cables[1])
        for (name, space), cable in zip(spaces.items(), cables, strict=True):
            ip('link', 'set', cable, 'netns', space)
            ip('-n', space, 'addr', 'add', f'{ADDRESSES[name]}/24', 'dev', cable)
            for device in ('lo', cable):
                ip('-n', space, 'link', 'set', device, 'up')
            hosts = Path('/etc/netns') / space / 'hosts'
            hosts.parent.mkdir(parents=True)
            others = '\n'.join(f'{address} {other}' for other, address in ADDRESSES.items() if other != name)
            hosts.with_name('resolv.conf').write_text('')  # else each look-up waits for a name server outside
            hosts.write_text(f'127.0.0.1 localhost\n127.0.1.1 {name}\n{others}\n')

        def start(name, *words, env=None):
            command = ['ip', 'netns', 'exec', spaces[name], 'unshare', '--uts', 'sh', '-c', f'hostname {name}; exec "$@"', 'sh']
            started.append(subprocess.Popen([*command, *map(str, words)], env=env or ONE_THREAD, text=True,
                                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
            return started[-1]
        yield start
    finally:
        for process in started:
            process.kill()
        for space in spaces.values():
            subprocess.run(['ip', 'netns', 'del', space], check=False)
            shutil.rmtree(Path('/etc/netns') / space, ignore_errors=True)


def finish(*processes):
    return [(process.communicate(timeout=120)[0], process.returncode) for process in processes]


@pytest.mark.parametrize('host', ['10.77.0.1', 'alpha'])
def test_they_meet_and_know_their_places(machines, tmp_path, host):
    """Also where the first machine is named by its name, which on itself leads to 127.0.1.1. Neither has a LOCAL_RANK."""
    script = tmp_path / 'place.py'
    script.write_text(PLACE)
    outputs = finish(*(machines(name, sys.executable, script, rank, f'tcp://{host}:29511')
                       for rank, name in enumerate(ADDRESSES)))
    for rank, (output, code) in enumerate(outputs):
        assert code == 0, output
        words = next(line for line in output.splitlines() if line.startswith('place')).split()
        assert words[1:4] == [str(rank), '0', '1'] and words[4].startswith('mc')


def train(machines, experiment, roots, changes=None):
    """main.py on both machines, started by hand, each with an output folder of its own."""
    processes = []
    for rank, (name, root) in enumerate(roots.items()):
        arguments = experiment({'epochs': 1, **(changes or {})})
        env = Path(arguments[1])
        own = env.with_name(f'env_{name}.yml')
        own.write_text(env.read_text().replace(str(env.parent / 'output'), str(root)))
        arguments[1] = str(own)
        processes.append(machines(name, sys.executable, MAIN, *arguments, '--amp', 'none', '--world-size', 2, '--rank', rank,
                                  '--dist-url', 'tcp://10.77.0.1:29512', env={**ONE_THREAD, 'LOCAL_RANK': '7'}))
    return finish(*processes)


def test_a_training_and_a_checkpoint_that_only_the_other_machine_has(machines, experiment, tmp_path):
    """Each has a disk of its own. LOCAL_RANK was left behind by another launcher: what was typed wins."""
    roots = {name: tmp_path / name for name in ADDRESSES}
    for output, code in train(machines, experiment, roots):
        assert code == 0, output
    checkpoint = roots['alpha'] / 'small' / 'checkpoint.pth.tar'
    assert torch.load(checkpoint, weights_only=True)['epoch'] == 1
    assert not (roots['beta'] / 'small' / 'checkpoint.pth.tar').exists()  # local output folders elsewhere are fine

    (roots['beta'] / 'small').mkdir(parents=True, exist_ok=True)
    shutil.move(checkpoint, roots['beta'] / 'small' / 'checkpoint.pth.tar')
    outputs = train(machines, experiment, roots, {'epochs': 2})
    assert [code for _, code in outputs] == [2, 2]
    text = ''.join(output for output, _ in outputs)
    assert text.count('beta has a checkpoint after 1 epochs and 0 steps, rank 0 on alpha has none') == 1
    assert 'a shared folder' in text and 'copy the file' in text
    assert not checkpoint.exists()

    shutil.copy(roots['beta'] / 'small' / 'checkpoint.pth.tar', checkpoint)
    for output, code in train(machines, experiment, roots, {'epochs': 1}):
        assert code == 0, output
