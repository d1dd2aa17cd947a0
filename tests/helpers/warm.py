"""Real processes of scripts without the seconds of a start: forked from one with the large packages, but none of ours.

Importing PyTorch and its companions takes longer than the work of most tests. Tests of how a script starts, and of what it
imports when, start it with Python itself.
"""
import atexit
import functools
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

# Without threads of their own, which a fork would lose; OMP_NUM_THREADS is 1
PACKAGES = ('torch', 'torchvision', 'timm', 'torch._dynamo', 'torch.utils.tensorboard', 'cv2', 'scipy.optimize', 'scipy.stats',
            'sklearn.cluster', 'sklearn.decomposition', 'sklearn.metrics')
LARGEST = 1 << 17  # bytes of a request


class Process:
    """A running script. Like a `subprocess.Popen`, but what it prints is in the files `out` and `err`, which may be one."""

    def __init__(self, pid, channel, out, err):
        self.pid, self.channel, self.out, self.err, self.returncode = pid, channel, out, err, None

    def poll(self):
        """The exit code, or the negative number of the signal that ended it; None while it runs."""
        return self._status(0)

    def wait(self, timeout=120):
        if self._status(timeout) is None:
            raise subprocess.TimeoutExpired(str(self.out), timeout, self.out.read_bytes())
        return self.returncode

    def _status(self, timeout):
        if self.returncode is None and select.select([self.channel], [], [], timeout)[0]:
            self.returncode = json.loads(self.channel.recv(LARGEST))
            self.channel.close()
        return self.returncode

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)
        self.wait()

    def printed(self):
        return self.out.read_text()

    def errors(self):
        return self.err.read_text()


def start(script, *arguments, out, err=None, cwd='/', **environment):
    """Start a script, which prints into the new file `out`, its errors too if `err` is None. environment: how it differs from
    this process's; None removes a variable."""
    out, err = Path(out), Path(err or out)
    env = {key: value for key, value in {**os.environ, 'OMP_NUM_THREADS': '1', **environment}.items() if value is not None}
    channel, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with other, open(out, 'wb') as output, open(err, 'ab') as errors:
        request = json.dumps({'argv': [str(script), *map(str, arguments)], 'cwd': str(cwd), 'env': env}).encode()
        assert len(request) < LARGEST
        socket.send_fds(_server(), [request], [other.fileno(), output.fileno(), errors.fileno()])
    return Process(json.loads(channel.recv(LARGEST)), channel, out, err)


def run(script, *arguments, **options):
    """Start a script and wait for its end."""
    process = start(script, *arguments, **options)
    process.wait()
    return process


@functools.cache
def _server():
    """The channel to the process that forks, which ends when it is closed."""
    channel, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with other:
        server = subprocess.Popen([sys.executable, __file__, str(other.fileno())], pass_fds=[other.fileno()],
                                  start_new_session=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})

    def stop():
        channel.close()
        server.wait()
    atexit.register(stop)
    return channel


def _serve(channel):
    """Fork for each request, and say how the processes end. Returns the request in a forked process, otherwise None."""
    running = {}  # by a file descriptor of the process: its number, and the channel of who has started it
    while True:
        for ready in select.select([channel, *running], [], [])[0]:
            if ready is not channel:
                pid, other = running.pop(ready)
                os.close(ready)
                with other:  # whose other end may be gone
                    other.send(json.dumps(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])).encode(), socket.MSG_NOSIGNAL)
                continue
            data, files, _, _ = socket.recv_fds(channel, LARGEST, 3)
            if not data:
                return None
            pid = os.fork()
            if pid == 0:
                os.dup2(files[1], 1)
                os.dup2(files[2], 2)
                for file in (*files, *running, channel.detach(), *(other.detach() for _, other in running.values())):
                    os.close(file)
                return json.loads(data)
            other = socket.socket(fileno=files[0])
            other.send(json.dumps(pid).encode())
            running[os.pidfd_open(pid)] = pid, other
            for file in files[1:]:
                os.close(file)


def _become(argv, cwd, env):
    """Act as a Python that was started with these arguments. It ends as processes of multiprocessing do: the memory is left to
    the system, where Python by itself would visit each object of the packages for a second."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.argv[:] = argv
    sys.path[:1] = [str(Path(argv[0]).resolve().parent), *filter(None, env.get('PYTHONPATH', '').split(os.pathsep))]
    code = 0
    try:
        runpy.run_path(argv[0], run_name='__main__')
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if not isinstance(end.code, int | None):
            print(end.code, file=sys.stderr)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == '__main__':
    for package in PACKAGES:
        __import__(package)
    gc.collect()
    gc.freeze()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    request = _serve(socket.socket(fileno=int(sys.argv[1])))
    if request:
        _become(**request)
