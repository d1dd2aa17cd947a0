"""convert_voc.py: archives and paths that it refuses, and a full disk."""
import gzip
import io
import tarfile

import pytest
from helpers.devkits import SBD, VOC, arguments, pack, without_record
from helpers.processes import largest_file

import convert_voc


def member(name, content=b'', kind=tarfile.REGTYPE, link=''):
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(content), kind, link
    return info, content


@pytest.mark.parametrize('hostile', [
    lambda outside: [member(f'{VOC}/../../../../evil', b'x')],
    lambda outside: [member('../evil', b'x')],
    lambda outside: [member(f'{outside}/evil', b'x')],
    lambda outside: [member(f'{VOC}/JPEGImages', kind=tarfile.SYMTYPE, link=str(outside)),
                     member(f'{VOC}/JPEGImages/evil.jpg', b'x')],
    lambda outside: [member(f'{VOC}/JPEGImages', kind=tarfile.SYMTYPE, link='../../../../..')],
    lambda outside: [member(f'{VOC}/JPEGImages/evil.jpg', kind=tarfile.LNKTYPE, link='../../../../evil')],
    lambda outside: [member(f'{VOC}/JPEGImages/evil.jpg', kind=tarfile.CHRTYPE)],
    lambda outside: [member('pipe', kind=tarfile.FIFOTYPE)],
], ids=['parent inside', 'parent', 'absolute', 'absolute link', 'relative link', 'hard link', 'device', 'pipe'])
def test_hostile_archives_are_refused(originals, tmp_path, user_error, hostile):
    voc = tmp_path / 'voc.tar'
    with tarfile.open(voc, 'w') as tar:
        for info, content in hostile(tmp_path):
            tar.addfile(info, io.BytesIO(content))
        tar.add(originals / 'VOCdevkit', 'VOCdevkit')
    arguments = ['--voc', str(voc), '--sbd', str(originals), '--out', str(tmp_path / 'db' / 'VOCSegmentation')]
    line = user_error(lambda: convert_voc.main(arguments))
    assert f'{voc} is not the official archive' in line
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob('*')} == {'voc.tar', 'db'}


def test_only_what_is_needed_is_unpacked(broken, converted, tmp_path):
    """A link inside the archive is harmless and not needed."""
    (broken / 'benchmark_RELEASE' / 'link').symlink_to('README')
    (broken / SBD / 'inst' / 'huge.mat').write_bytes(bytes(2 ** 21))
    (broken / SBD / 'img' / 'train_0003.jpg').write_bytes(bytes(2 ** 21))  # which VOC has
    voc, sbd = pack(broken, tmp_path)
    out = tmp_path / 'out'
    with largest_file(2 ** 20):
        convert_voc.main(['--voc', str(voc), '--sbd', str(sbd), '--out', str(out)])
    assert without_record(out) == without_record(converted)


def header_of_last_member(archive):
    """Where it begins. The last file is one that is not needed, so that its loss alone would go unnoticed."""
    with tarfile.open(archive) as tar:
        return tar.getmembers()[-1].offset


DAMAGES = {
    'cut in a file': lambda tar, at: tar[:at + 512 + 7],
    'cut in its padding': lambda tar, at: tar[:at + 512 + 100],
    'cut in a header': lambda tar, at: tar[:at + 100],
    'broken header': lambda tar, at: tar[:at] + b'?' * 512 + tar[at + 512:],
    'cut gzip': lambda tar, at: gzip.compress(tar)[:-5000],
    'cut checksum': lambda tar, at: gzip.compress(tar)[:-4],
    'wrong checksum': lambda tar, at: gzip.compress(tar)[:-8] + bytes(8),
    'empty': lambda tar, at: b'',
    'no tar': lambda tar, at: b'no tar' * 1000,
}


@pytest.mark.parametrize('damage', DAMAGES.values(), ids=DAMAGES.keys())
def test_broken_archives(originals, tmp_path, user_error, damage):
    voc, sbd = pack(originals, tmp_path)
    voc.write_bytes(damage(voc.read_bytes(), header_of_last_member(voc)))
    out = tmp_path / 'db' / 'VOCSegmentation'
    line = user_error(lambda: convert_voc.main(['--voc', str(voc), '--sbd', str(sbd), '--out', str(out)]))
    assert f'{voc} is truncated, damaged or not a tar archive' in line and 'download it again' in line
    assert list(out.parent.iterdir()) == []


def test_no_room(originals, tmp_path, user_error):
    voc, sbd = pack(originals, tmp_path)
    out = tmp_path / 'db' / 'VOCSegmentation'
    with largest_file(200):
        line = user_error(lambda: convert_voc.main(['--voc', str(voc), '--sbd', str(sbd), '--out', str(out)]))
        assert f'{voc} could not be unpacked to {out.parent} (File too large): make room' in line
        line = user_error(lambda: convert_voc.main(arguments(originals, out)))
        assert f'{out} could not be written (File too large): make room or choose another folder' in line
    assert list(out.parent.iterdir()) == []


def test_wrong_paths(originals, tmp_path, user_error):
    file = tmp_path / 'file'
    file.write_text('a file')

    def error(voc='VOCdevkit', sbd='benchmark_RELEASE', out='out'):
        return user_error(lambda: convert_voc.main(arguments(originals, tmp_path / out, voc, sbd)))

    assert f'--voc {originals}/none does not exist: give VOCtrainval_11-May-2012.tar' in error(voc='none')
    assert f'--sbd {file}/none does not exist: give benchmark.tgz' in error(sbd=file / 'none')
    assert f'--sbd {originals}/VOCdevkit does not hold cls/, train.txt, val.txt' in error(sbd='VOCdevkit')
    assert f'--voc {originals}/benchmark_RELEASE does not hold JPEGImages/, ' in error(voc='benchmark_RELEASE')
    assert f'the folder {file} could not be made (File exists): choose another --out' in error(out='file/out')
    assert 'required: --voc, --sbd, --out (see --help)' in user_error(lambda: convert_voc.main([]))
    assert [path.name for path in tmp_path.iterdir()] == ['file']


def test_an_archive_of_something_else(originals, tmp_path, user_error):
    voc, sbd = pack(originals, tmp_path)
    line = user_error(lambda: convert_voc.main(['--voc', str(sbd), '--sbd', str(voc), '--out', str(tmp_path / 'db' / 'out')]))
    assert f'--voc {sbd} does not hold JPEGImages/' in line
    assert list((tmp_path / 'db').iterdir()) == []
