"""Two machines: network namespaces with hosts files as Debian writes them, in which a machine's own name is 127.0.1.1."""
import os
import shutil
import subprocess
import uuid
from pathlib import Path

import pytest
import torch
from helpers import warm
from helpers.processes import MAIN

pytestmark = [pytest.mark.slow, pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which('ip') or not shutil.which('unshare'),
    reason='network namespaces need root, iproute2 and unshare')]

ADDRESSES = {'alpha': '10.77.0.1', 'beta': '10.77.0.2'}
# A process that is on a machine, as `ip netns exec` has it, and of that machine's name
ELSEWHERE = '''
import ctypes, os, runpy, socket, subprocess, sys
space, name = sys.argv[1:3]
libc = ctypes.CDLL(None)
assert libc.setns(os.open(f'/var/run/netns/{space}', os.O_RDONLY), 0x40000000) == 0  # CLONE_NEWNET
assert libc.unshare(0x20000 | 0x4000000) == 0  # CLONE_NEWNS, CLONE_NEWUTS
subprocess.run(f'mount --make-rslave / && umount -l /sys && mount -t sysfs {space} /sys && '
               f'for file in hosts resolv.conf; do mount --bind /etc/netns/{space}/$file /etc/$file; done',
               shell=True, check=True)
socket.sethostname(name)
del sys.argv[:3]
sys.path[0] = os.path.dirname(sys.argv[0])
runpy.run_path(sys.argv[0], run_name='__main__')
'''
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
def machines(tmp_path):
    """Two namespaces that a cable connects. machines(name, script, arguments) starts a process on one of them."""
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
            hosts.with_name('resolv.conf').write_text('')  # otherwise each look-up waits for a name server outside
            hosts.write_text(f'127.0.0.1 localhost\n127.0.1.1 {name}\n{others}\n')

        (tmp_path / 'elsewhere.py').write_text(ELSEWHERE)

        def start(name, *words, **environment):
            started.append(warm.start(tmp_path / 'elsewhere.py', spaces[name], name, *words, out=tmp_path / f'{name}.log',
                                      **environment))
            return started[-1]
        yield start
    finally:
        for process in started:
            process.kill()
        for space in spaces.values():
            subprocess.run(['ip', 'netns', 'del', space], check=False)
            shutil.rmtree(Path('/etc/netns') / space, ignore_errors=True)


@pytest.mark.parametrize('host', ['10.77.0.1', 'alpha'])
def test_they_meet_and_know_their_places(machines, tmp_path, host):
    """Also where the first machine is named by its name, which on itself leads to 127.0.1.1. Neither has a LOCAL_RANK."""
    script = tmp_path / 'place.py'
    script.write_text(PLACE)
    processes = [machines(name, script, rank, f'tcp://{host}:29511') for rank, name in enumerate(ADDRESSES)]
    for rank, process in enumerate(processes):
        assert process.wait() == 0, process.printed()
        words = next(line for line in process.printed().splitlines() if line.startswith('place')).split()
        assert words[1:4] == [str(rank), '0', '1'] and words[4].startswith('mc')


def train(machines, experiment, roots, changes=None):
    """main.py on both machines, started by hand, each with an output folder of its own. Returns what they print and the exit
    codes."""
    processes = []
    for rank, (name, root) in enumerate(roots.items()):
        arguments = experiment({'epochs': 1, **(changes or {})})
        env = Path(arguments[1])
        own = env.with_name(f'env_{name}.yml')
        own.write_text(env.read_text().replace(str(env.parent / 'output'), str(root)))
        arguments[1] = str(own)
        processes.append(machines(name, MAIN, *arguments, '--amp', 'none', '--world-size', 2, '--rank', rank,
                                  '--dist-url', 'tcp://10.77.0.1:29512', LOCAL_RANK='7'))
    codes = [process.wait() for process in processes]
    return [process.printed() for process in processes], codes


def test_a_training_and_a_checkpoint_that_only_the_other_machine_has(machines, experiment, tmp_path):
    """Each has a disk of its own. LOCAL_RANK was left behind by another launcher: what was typed wins."""
    roots = {name: tmp_path / name for name in ADDRESSES}
    outputs, codes = train(machines, experiment, roots)
    assert codes == [0, 0], outputs
    checkpoint = roots['alpha'] / 'small' / 'checkpoint.pth.tar'
    assert torch.load(checkpoint, weights_only=True)['epoch'] == 1
    assert not (roots['beta'] / 'small' / 'checkpoint.pth.tar').exists()  # local output folders elsewhere are fine

    (roots['beta'] / 'small').mkdir(parents=True, exist_ok=True)
    shutil.move(checkpoint, roots['beta'] / 'small' / 'checkpoint.pth.tar')
    outputs, codes = train(machines, experiment, roots, {'epochs': 2})
    text = ''.join(outputs)
    assert codes == [2, 2]
    assert text.count('beta has a checkpoint after 1 epochs and 0 steps, rank 0 on alpha has none') == 1
    assert 'a shared folder' in text and 'copy the file' in text
    assert not checkpoint.exists()

    shutil.copy(roots['beta'] / 'small' / 'checkpoint.pth.tar', checkpoint)
    outputs, codes = train(machines, experiment, roots, {'epochs': 1})
    assert codes == [0, 0], outputs
