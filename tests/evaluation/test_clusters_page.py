"""clusters.html in a real browser: what it shows, what is typed into it, and the names.yml that it saves."""
import html.parser
import json

import numpy as np
import pytest
from helpers.browser import browser  # noqa: F401 - a fixture

from evaluation.cluster_names import one_label, read_names, tidy, write_names
from evaluation.visualization.clusters_page import Row, save_clusters_page, thumbnail_jpeg, typical_and_doubtful

FILES = ['a.jpg', '"><img src=x onerror=alert(1)>.jpg', "it's </script><script>window.hacked=1</script>.jpg",
         '$script & ${x}', 'umlaut äöü 犬 \U0001f415.jpg', 'a\udcffb.jpg', 'g.jpg', 'h.jpg']
HOSTILE = ['plain', 'with "quotes" and \\ and \'one\'', '</script><script>window.hacked=1</script>', 'true', 'null: [a, {b',
           '# c', 'Größe 犬 \U0001f415', '  two   spaces \t tab ', '- 1', '0x1F', '&amp; <b>', '%TAG ! x', 'a: b', '1e3', '---']

def page(path, rows, names=FILES, clustering='0123456789ab'):
    def thumbnail(index, row):
        image = np.full((60, 40 + 10 * index, 3), 30 * index, np.uint8)
        mask = np.zeros(image.shape[:2], np.uint8)
        mask[10:40, 10:30] = 1
        return thumbnail_jpeg(image, mask, row.colour)
    save_clusters_page(path, 'mine <&"', clustering, rows, names, thumbnail, 'make mine NAMES="x"')
    return path

def row(number, name='', typical=(0, 1), doubtful=(2,)):
    return Row(number, name, (255, 128, 0), 7, list(typical), list(doubtful))

@pytest.mark.slow
def test_names_are_typed_and_saved(browser, tmp_path):  # noqa: F811
    browser.open(page(tmp_path / 'clusters.html', [row(number, 'before' if number == 3 else '')
                                                   for number in range(1, len(HOSTILE) + 3)]))
    assert browser.run('document.querySelectorAll("section").length') == len(HOSTILE) + 2
    loaded = 'Promise.all([...document.images].map(image => (image.loading = "eager", image.decode()))).then(() => true)'
    assert browser.run(loaded) is True and browser.run('[...document.images].every(image => image.naturalHeight === 160)')
    assert browser.run('document.getElementById("state").textContent') == f'1 of {len(HOSTILE) + 2} named'
    for number, name in enumerate(HOSTILE, start=1):
        browser.type(f'input[data-cluster="{number}"]', name)
    browser.type(f'input[data-cluster="{len(HOSTILE) + 2}"]', 'plain ')
    same = 'document.querySelectorAll("section")[{}].querySelector(".same").textContent'
    assert browser.run(same.format(0)) == f'one with cluster {len(HOSTILE) + 2}'
    assert browser.run(same.format(len(HOSTILE) + 1)) == 'one with cluster 1' and browser.run(same.format(1)) == ''
    assert browser.run('document.getElementById("state").textContent') == (
        f'{len(HOSTILE) + 1} of {len(HOSTILE) + 2} named, not saved')
    browser.click('#save')
    started = browser.wait_for('Browser.downloadWillBegin')
    assert started['suggestedFilename'] == 'names.yml'
    browser.wait_for('Browser.downloadProgress', state='completed')
    saved = tmp_path / 'downloads' / 'names.yml'
    assert saved.read_bytes().isascii()
    expected = {number: ' '.join(name.split()) for number, name in enumerate(HOSTILE, start=1)}
    assert read_names(saved) == ('0123456789ab', {**expected, len(HOSTILE) + 2: 'plain'})
    assert browser.run('document.getElementById("state").textContent').endswith('named')
    assert browser.run('window.hacked') is None
    # The names that were read are what the next page shows.
    browser.open(page(tmp_path / 'again.html', [row(number, name) for number, name in read_names(saved)[1].items()]))
    assert browser.run('[...document.querySelectorAll("section input")].map(field => field.value)') == [
        *expected.values(), 'plain']
    assert browser.run('window.hacked') is None

@pytest.mark.slow
def test_a_hundred_clusters_and_hostile_file_names(browser, tmp_path):  # noqa: F811
    rows = [row(number, typical=range(8), doubtful=()) for number in range(1, 101)]
    browser.open(page(tmp_path / 'clusters.html', rows))
    assert browser.run('document.querySelectorAll("section").length') == 100
    titles = browser.run('[...document.querySelectorAll("section")[99].querySelectorAll("img")].map(image => image.title)')
    assert titles == [name.encode(errors='backslashreplace').decode() for name in FILES]
    assert browser.run('[window.hacked, document.scripts.length, document.querySelectorAll("img").length]') == [None, 1, 800]
    # Nothing is asked of a network, and the page's own policy stops nothing of it.
    wanted = [event['params']['request']['url'] for event in browser.events if event['method'] == 'Network.requestWillBeSent']
    assert wanted and all(url.startswith(('file:', 'data:')) for url in wanted)
    assert not [event for event in browser.events if event['method'] in ('Log.entryAdded', 'Runtime.exceptionThrown')]
    assert 'Content Security Policy' not in json.dumps(browser.events)
    evil = 'document.body.appendChild(Object.assign(document.createElement("script"), {textContent: "window.hacked = 1"}))'
    browser.run(f'{evil}, 0')
    assert browser.run('window.hacked') is None

def test_the_page_is_one_file_that_asks_for_nothing(tmp_path):
    class Attributes(html.parser.HTMLParser):
        def handle_starttag(self, tag, attrs):
            found.extend((tag, name, value) for name, value in attrs if name in ('src', 'href', 'srcset', 'action', 'style'))
            found.extend((tag, name, value) for name, value in attrs if name.startswith('on'))
    found = []
    text = page(tmp_path / 'clusters.html', [row(1, '"><b onclick=x>', typical=range(8))]).read_text()
    Attributes().feed(text)
    assert len(found) == 9 and all(name == 'src' and value.startswith('data:image/jpeg;base64,') for _, name, value in found)
    assert text.count('<script') == 1 and '@import' not in text and 'url(' not in text

def test_typical_first_then_the_doubtful():
    distances = np.array([[0.1 * i, 1.0] for i in range(1, 21)] + [[9, 1.0]] * 3)
    distances[12, 1] = 1.2  # closer to the border than any other: a ratio of 1.08
    distances[19, 1] = 5  # far from its own centre, but farther from the other
    clusters = np.array([0] * 20 + [1] * 3)
    typical, doubtful = typical_and_doubtful(distances, clusters, 0)
    assert typical == list(range(8))
    ratio = distances[:, 0] / distances[:, 1]
    assert doubtful == sorted(set(range(8, 20)), key=lambda i: ratio[i])[-4:] and 19 not in doubtful
    assert typical_and_doubtful(distances, clusters, 1) == ([20, 21, 22], [])
    assert typical_and_doubtful(distances[:, :1], np.zeros(23, int), 0)[0] == list(range(8))  # no other cluster

def test_names_files(tmp_path):
    path = tmp_path / 'names.yml'
    names = {number: tidy(name) for number, name in enumerate(HOSTILE, start=1)}
    write_names(path, '0123', names)
    assert read_names(path) == ('0123', names)
    text = path.read_text(encoding='utf-8')
    for encoding in ('utf-8-sig', 'utf-16'):  # as Windows editors save it
        path.write_text(text, encoding=encoding)
        assert read_names(path) == ('0123', names)
    write_names(path, '0123', {})
    assert read_names(path) == ('0123', {})
    assert one_label({1: 'a', 2: 'b', 4: 'a', 5: 'b'}, 6).tolist() == [0, 1, 2, 0, 1, 5]
    assert tidy('a\x00b\u2028c' + 'd' * 90) == ('a b c' + 'd' * 90)[:60]

UNREADABLE = 'the names of clusters could not be read'


@pytest.mark.parametrize('content, words', [
    ('', UNREADABLE), ('names: [1, 2]', UNREADABLE), ('names: {1: dog}', "the key 'clustering' is missing"),
    ('clustering: a\nnames: {dog: 1}', 'dog is not the number of a cluster'), ('a: [', 'not valid YAML in line 1'),
    ('clustering: a\nnames: {1: [x]}', 'the name of cluster 1 is not a text: write it in quotes'), (b'\xff\xfe', UNREADABLE),
    ('clustering: a\nnames: {1: no}', 'the name of cluster 1 is not a text: write it in quotes'),
    ('clustering: a\nnames:\n  1: dog\n  1: cat', "the key '1' appears twice, in line 3 and in line 4")])
def test_other_files_are_no_names(content, words, tmp_path):
    from utils.errors import UserError
    path = tmp_path / 'names.yml'
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as caught:
        read_names(path)
    assert str(path) in str(caught.value)
    assert words in str(caught.value)
