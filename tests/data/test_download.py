"""Fetching and unpacking the archive, against a server on this machine."""
import gzip
import io
import logging
import os
import re
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from helpers.processes import largest_file
from helpers.web import CONFIRM_PAGE, DRIVE_ID, QUOTA_PAGE, send

from data.download import VOC_URL, fetch_voc
from utils.errors import UserError

PRETRAIN = Path(__file__).resolve().parents[2] / 'pretrain'
GOOD = {'VOCSegmentation/images/2007_000032.jpg': b'an image', 'VOCSegmentation/sets/train.txt': b'2007_000032\n'}

def member(name, content=b'', link=None):
    """A tar member and its content: a file, or with `link` a symbolic link."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    if link is not None:
        info.type, info.linkname = tarfile.SYMTYPE, link
    return info, content


def archive_of(*members, level=6):
    """The bytes of a .tgz with these members."""
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode='wb', compresslevel=level, mtime=0) as stream, \
            tarfile.open(fileobj=stream, mode='w') as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def good_archive(*more, level=6):
    return archive_of(*(member(name, content) for name, content in GOOD.items()), *more, level=level)


def below(folder):
    """Everything below `folder`, temporary files included, as relative names."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob('*')}


def contents(folder):
    return {path.relative_to(folder.parent).as_posix(): path.read_bytes()
            for path in folder.rglob('*') if path.is_file()}


def refusal(db_root, url):
    """The message of the UserError, which must be a single line."""
    with pytest.raises(UserError) as caught:
        fetch_voc(db_root, url)
    assert '\n' not in str(caught.value)
    return str(caught.value)


def test_fetches_and_unpacks_once(server, tmp_path, capsys, caplog):
    server.reply = send(good_archive())
    db_root = tmp_path / 'new' / 'db'
    logging.getLogger('maskcontrast').addHandler(caplog.handler)
    try:
        with caplog.at_level(logging.INFO, logger='maskcontrast'):
            folder = fetch_voc(db_root, server.url)
    finally:
        logging.getLogger('maskcontrast').removeHandler(caplog.handler)
    assert folder == db_root / 'VOCSegmentation'
    assert contents(folder) == GOOD
    assert {path.name for path in db_root.iterdir()} == {'VOCSegmentation'}
    assert f'downloading {server.url} to {db_root}/PASCAL_VOC.tgz' in caplog.messages
    assert f'unpacking {db_root}/PASCAL_VOC.tgz to {folder}' in caplog.messages
    assert capsys.readouterr().err == ''  # no bar where there is no terminal

    assert fetch_voc(db_root, server.url) == folder
    assert len(server.requests) == 1


def test_an_existing_folder_is_taken_as_it_is(server, tmp_path):
    (tmp_path / 'VOCSegmentation').mkdir()
    assert fetch_voc(tmp_path, server.url) == tmp_path / 'VOCSegmentation'
    assert server.requests == []


def test_an_archive_put_there_by_hand_is_used_and_kept(server, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, 'tempdir', '/nowhere')  # which may be another, smaller disk than db_root's
    (tmp_path / 'PASCAL_VOC.tgz').write_bytes(good_archive())
    assert contents(fetch_voc(tmp_path, server.url)) == GOOD
    assert server.requests == []
    assert {path.name for path in tmp_path.iterdir()} == {'VOCSegmentation', 'PASCAL_VOC.tgz'}
    assert (tmp_path / 'PASCAL_VOC.tgz').read_bytes() == good_archive()


def test_something_else_in_the_folders_place(server, tmp_path):
    (tmp_path / 'VOCSegmentation').symlink_to(tmp_path / 'gone')
    assert f'{tmp_path}/VOCSegmentation' in refusal(tmp_path, server.url)
    assert server.requests == []


@pytest.mark.parametrize(('reply', 'words'), [
    (send(b'\x1f\x8b' + bytes(2 ** 20), length=2 ** 21), ['received 1048576 bytes', 'announced 2097152', 'run again']),
    (send(b'nothing here', status=404), ['404', 'run again']),
    (send(QUOTA_PAGE.replace(b'this file', b'this\n  file'), kind='text/html'), ['Google Drive refuses', 'quota']),
    (send(b'\n<html>Log in to the hotel network</html>', kind='text/html'), ['a web page instead']),
    (send(b''), ['instead of a gzip archive']),
], ids=['broken off', '404', 'quota page', 'another page', 'empty'])
def test_a_failed_download_leaves_nothing(server, tmp_path, reply, words):
    server.reply = reply
    message = refusal(tmp_path, server.url)
    by_hand = f'open {server.url} in a browser, save the file as {tmp_path}/PASCAL_VOC.tgz and run again'
    for word in [*words, by_hand]:
        assert word in message
    assert ('quota' in message) == ('quota' in words)
    assert len(server.requests) == 1
    assert below(tmp_path) == set()


def test_nobody_answers(tmp_path):
    with socket.socket() as unused:  # bound, but not listening
        unused.bind(('127.0.0.1', 0))
        url = f'http://127.0.0.1:{unused.getsockname()[1]}/PASCAL_VOC.tgz'
        message = refusal(tmp_path, url)
    assert 'Connection refused' in message
    assert f'{tmp_path}/PASCAL_VOC.tgz' in message
    assert below(tmp_path) == set()


def test_drive_asks_to_confirm_a_large_file(drive, tmp_path):
    def reply(handler):
        path = urlsplit(handler.path)
        if path.path == '/download' and parse_qs(path.query) == {'id': [DRIVE_ID], 'confirm': ['t']}:
            send(good_archive(), Content_Disposition='attachment; filename="PASCAL_VOC.tgz"')(handler)
        else:
            send(CONFIRM_PAGE, kind='text/html; charset=utf-8')(handler)

    drive.reply = reply
    assert contents(fetch_voc(tmp_path)) == GOOD
    assert drive.requests[0] == f'/uc?id={DRIVE_ID}'
    assert len(drive.requests) == 2


def test_drive_refuses_because_of_its_quota(drive, tmp_path):
    drive.reply = send(QUOTA_PAGE, kind='text/html; charset=utf-8')
    message = refusal(tmp_path, VOC_URL)
    assert message == ('Google Drive refuses PASCAL_VOC.tgz for now because its download quota is used up: wait a day, '
                       f'or open {VOC_URL} in a browser, save the file as {tmp_path}/PASCAL_VOC.tgz and run again')
    assert len(drive.requests) == 1
    assert below(tmp_path) == set()


@pytest.mark.parametrize(('hostile', 'name'), [
    (lambda outside: member('../evil', b'x'), '../evil'),
    (lambda outside: member('VOCSegmentation/../../../evil', b'x'), 'evil'),
    (lambda outside: member(f'{outside}/evil', b'x'), 'evil'),
    (lambda outside: member('VOCSegmentation/link', link=str(outside)), 'VOCSegmentation/link'),
    (lambda outside: member('VOCSegmentation/link', link='../../..'), 'VOCSegmentation/link'),
], ids=['parent', 'parent inside', 'absolute', 'absolute link', 'relative link'])
def test_members_that_lead_outside_are_refused(server, tmp_path, hostile, name):
    db_root = tmp_path / 'db'
    server.reply = send(good_archive(hostile(tmp_path), member('VOCSegmentation/link/evil', b'x')))
    message = refusal(db_root, server.url)
    for word in (name, f'{db_root}/PASCAL_VOC.tgz', server.url, 'was deleted'):
        assert word in message
    assert below(tmp_path) == {'db'}


def flipped():
    """A good archive in which one bit of an image is wrong, which only gzip's checksum tells."""
    packed = bytearray(good_archive(level=0))
    packed[packed.index(GOOD['VOCSegmentation/images/2007_000032.jpg'])] ^= 1
    return bytes(packed)


@pytest.mark.parametrize(('packed', 'cause'), [
    (good_archive(member('VOCSegmentation/images/b.jpg', os.urandom(10 ** 5)))[:-5000], 'end-of-stream'),
    (good_archive()[:-4], 'end-of-stream'),
    (flipped(), 'CRC check failed'),
    (gzip.compress(b'no tar' * 1000), 'header'),
    (archive_of(member('images/a.jpg'), member('sets/train.txt')), r'no folder VOCSegmentation/\)'),
    (archive_of(member('VOCSegmentation', b'a file')), r'no folder VOCSegmentation/\)'),
    (archive_of(member('VOCSegmentation/sets/train.txt')), 'no folder VOCSegmentation/images/'),
    (archive_of(member('VOCSegmentation/images/a.jpg')), 'no folder VOCSegmentation/sets/'),
], ids=['cut in an image', 'cut in the checksum', 'flipped bit', 'not a tar', 'no folder', 'a file', 'no images',
        'no sets'])
@pytest.mark.parametrize('by_hand', [True, False], ids=['by hand', 'fetched'])
def test_a_bad_archive(server, tmp_path, packed, cause, by_hand):
    archive = tmp_path / 'PASCAL_VOC.tgz'
    if by_hand:
        archive.write_bytes(packed)
    else:
        server.reply = send(packed)
    message = refusal(tmp_path, server.url)
    assert str(archive) in message
    assert re.search(cause, message)
    if by_hand:
        assert 'delete it and run again' in message
        assert below(tmp_path) == {'PASCAL_VOC.tgz'}
        assert archive.read_bytes() == packed
        assert server.requests == []
    else:
        assert 'was deleted' in message
        assert server.url in message
        assert below(tmp_path) == set()


def test_no_room_for_the_archive(server, tmp_path):
    server.reply = send(good_archive(member('VOCSegmentation/images/b.jpg', os.urandom(2 ** 21))))
    with largest_file(2 ** 20):
        message = refusal(tmp_path, server.url)
    for word in (f'{tmp_path}/PASCAL_VOC.tgz could not be written', 'File too large', 'another db_root'):
        assert word in message
    assert below(tmp_path) == set()


def test_no_room_for_the_folder_keeps_the_archive(server, tmp_path):
    server.reply = send(good_archive(member('VOCSegmentation/images/b.jpg', bytes(2 ** 21))))
    with largest_file(2 ** 20):
        message = refusal(tmp_path, server.url)
    assert f'{tmp_path}/PASCAL_VOC.tgz could not be unpacked to {tmp_path}/VOCSegmentation' in message
    assert below(tmp_path) == {'PASCAL_VOC.tgz'}

    assert (fetch_voc(tmp_path, server.url) / 'images' / 'b.jpg').stat().st_size == 2 ** 21
    assert len(server.requests) == 1


def test_two_processes_at_once(server, tmp_path):
    both_wait = threading.Barrier(2, timeout=30)

    def reply(handler):
        both_wait.wait()
        send(good_archive())(handler)

    server.reply = reply
    code = 'import sys; from data.download import fetch_voc; print(fetch_voc(*sys.argv[1:]))'
    processes = [subprocess.Popen([sys.executable, '-c', code, str(tmp_path), server.url], text=True,
                                  cwd=PRETRAIN, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    for process in processes:
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out, err) == (0, f'{tmp_path}/VOCSegmentation\n', '')
    assert len(server.requests) == 2
    assert contents(tmp_path / 'VOCSegmentation') == GOOD
    assert {path.name for path in tmp_path.iterdir()} == {'VOCSegmentation'}


def test_another_process_was_faster(server, tmp_path):
    def reply(handler):
        (tmp_path / 'VOCSegmentation' / 'images').mkdir(parents=True)  # as it appears while this one still fetches
        send(good_archive())(handler)

    server.reply = reply
    assert fetch_voc(tmp_path, server.url) == tmp_path / 'VOCSegmentation'
    assert below(tmp_path) == {'VOCSegmentation', 'VOCSegmentation/images'}
