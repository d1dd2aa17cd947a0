"""A real browser without a window, driven over its debugging pipe (the Chrome DevTools protocol): no package is needed."""
import base64
import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BROWSERS = ('chromium-headless-shell', 'chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable')


class Browser:
    """One page of the browser at `executable`. profile: a folder of its own. Downloads go to `downloads`."""

    def __init__(self, executable, profile, downloads):
        commands, answers = _pipe(), _pipe()
        # The browser reads file 3 and writes file 4, which only a process of its own can make of these.
        begin = f'import os, sys; os.dup2({commands[0]}, 3); os.dup2({answers[1]}, 4); os.execv(sys.argv[1], sys.argv[1:])'
        flags = ['--headless', '--no-sandbox', '--disable-gpu', '--remote-debugging-pipe', f'--user-data-dir={profile}',
                 '--window-size=1500,900', 'about:blank']
        self.process = subprocess.Popen([sys.executable, '-c', begin, executable, *flags], pass_fds=(commands[0], answers[1]),
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(commands[0])
        os.close(answers[1])
        self.input, self.output = os.fdopen(commands[1], 'wb'), os.fdopen(answers[0], 'rb')
        self.number, self.session, self.events, self.rest = 0, None, [], b''
        target = self('Target.createTarget', url='about:blank')['targetId']
        self.session = self('Target.attachToTarget', targetId=target, flatten=True)['sessionId']
        for domain in 'Page', 'Runtime', 'Network', 'Log':
            self(f'{domain}.enable')
        self('Browser.setDownloadBehavior', behavior='allow', downloadPath=str(downloads), eventsEnabled=True)

    def __call__(self, method, **parameters):
        """The result of a command."""
        self.number += 1
        message = {'id': self.number, 'method': method, 'params': parameters}
        if self.session and not method.startswith('Browser.'):
            message['sessionId'] = self.session
        self.input.write(json.dumps(message).encode() + b'\0')
        self.input.flush()
        while (answer := self._read()).get('id') != self.number:
            self.events.append(answer)
        assert 'error' not in answer, answer
        return answer['result']

    def _read(self):
        while b'\0' not in self.rest:
            part = os.read(self.output.fileno(), 1 << 20)
            assert part, 'the browser has ended'
            self.rest += part
        message, _, self.rest = self.rest.partition(b'\0')
        return json.loads(message)

    def wait_for(self, method, **values):
        """The next event of this name with these values, of those not yet waited for."""
        while True:
            for position, event in enumerate(self.events):
                if event.get('method') == method and values.items() <= event['params'].items():
                    del self.events[position]
                    return event['params']
            self.events.append(self._read())

    def open(self, path):
        self('Page.navigate', url=Path(path).as_uri())
        self.wait_for('Page.loadEventFired')

    def run(self, expression):
        """The value of a JavaScript expression, as JSON has it."""
        result = self('Runtime.evaluate', expression=expression, returnByValue=True, awaitPromise=True, userGesture=True)
        assert 'exceptionDetails' not in result, result
        return result['result'].get('value')

    def type(self, selector, text):
        """What the user's keyboard does in a field, whose content it replaces."""
        self.run(f'document.querySelector({json.dumps(selector)}).focus(), '
                 f'document.querySelector({json.dumps(selector)}).select()')
        self('Input.insertText', text=text)

    def click(self, selector):
        """What the user's mouse does."""
        box = self.run(f'(b => [b.x + b.width / 2, b.y + b.height / 2])'
                       f'(document.querySelector({json.dumps(selector)}).getBoundingClientRect())')
        for kind in 'mousePressed', 'mouseReleased':
            self('Input.dispatchMouseEvent', type=kind, x=box[0], y=box[1], button='left', clickCount=1)

    def screenshot(self, path):
        Path(path).write_bytes(base64.b64decode(self('Page.captureScreenshot')['data']))

    def close(self):
        self.input.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.output.close()


def _pipe():
    """A pipe whose ends are above file 4, so that neither is overwritten."""
    low = os.pipe()
    high = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 5) for end in low]
    for end in low:
        os.close(end)
    return high


@pytest.fixture
def browser(tmp_path):
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    if not executable:
        pytest.skip(f'needs a browser, one of {", ".join(BROWSERS)} (Debian: apt-get install chromium-headless-shell)')
    (tmp_path / 'downloads').mkdir()
    browser = Browser(executable, tmp_path / 'profile', tmp_path / 'downloads')
    yield browser
    browser.close()
