"""Archives as input: what is in them is computed, what would harm is refused before a byte is outside."""

import io
import stat
import tarfile
import zipfile

import pytest

from medseq.errors import FormatError, InputError
from medseq.inference.run import predict_folder
from medseq.inference.unpack import ArchiveLimits, is_archive, unpacked


def zipped(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path


def tarred(path, members):
    with tarfile.open(path, "w:gz") as archive:
        for member, data in members:
            info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz"])
def test_an_archive_is_computed_like_its_folder_and_resumes(make, mr_bundle, tmp_path, rng, suffix):
    for name in ("a/x.nii", "b/y.nii.gz"):
        make.nifti(tmp_path / "in" / name, make.head(rng, 2))
    files = [(p.relative_to(tmp_path / "in").as_posix(), p.read_bytes()) for p in (tmp_path / "in").rglob("*.nii*")]
    source = (zipped if suffix == ".zip" else tarred)(tmp_path / f"study{suffix}", files)
    words = {"modality": "MR", "created_utc": make.created}
    predict_folder(mr_bundle, tmp_path / "in", tmp_path / "plain", **words)
    summary = predict_folder(mr_bundle, source, tmp_path / "out", **words)
    assert (summary.exit_code, summary.processed) == (0, 2)
    assert make.tree(tmp_path / "out") == make.tree(tmp_path / "plain")
    assert not (tmp_path / "out" / ".input").exists()
    assert predict_folder(mr_bundle, source, tmp_path / "out", **words).processed == 0


def link(name, kind=tarfile.SYMTYPE):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    return info


def zip_link(path):
    with zipfile.ZipFile(path, "w") as archive:
        info = zipfile.ZipInfo("link")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    return path


ESCAPES = ("../evil", "/evil", "a/../../evil", "..\\evil", "C:/evil", "a/./../../evil")


@pytest.mark.parametrize("name", ESCAPES)
@pytest.mark.parametrize("pack", [zipped, tarred])
def test_names_that_lead_outside_are_refused(tmp_path, name, pack):
    out = tmp_path / "out"
    out.mkdir()
    source = pack(tmp_path / ("x.zip" if pack is zipped else "x.tgz"), [("good.nii", b"1"), (name, b"evil")])
    with pytest.raises(InputError, match="a name in the archive leads outside of it") as caught, unpacked(source, out):
        pass
    assert "evil" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.rglob("*")) == sorted(["out", source.name])


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_are_refused(tmp_path, kind):
    source = tarred(tmp_path / "x.tar.gz", [(link("link", kind), b"")])
    with pytest.raises(InputError, match="the archive holds a link or a device"), unpacked(source, tmp_path):
        pass
    with pytest.raises(InputError, match="link or a device"), unpacked(zip_link(tmp_path / "x.zip"), tmp_path):
        pass
    assert not (tmp_path / ".input").exists()


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (ArchiveLimits(members=2, ratio=1e9), "more than 2 members"),
        (ArchiveLimits(bytes=1000), "more than 1000 bytes"),
        (ArchiveLimits(ratio=20), "more than 20 times its size"),
        (ArchiveLimits(reserve=1 << 60), "by the free space"),
    ],
)
@pytest.mark.parametrize("pack", [zipped, tarred])
def test_bombs_are_refused_by_what_they_unpack_to(tmp_path, limits, message, pack):
    # 66 MB of zeros in 66 kB.
    members = [("a", b"\0" * (66 << 20)), ("b", b"1"), ("c", b"2")]
    source = pack(tmp_path / ("x.zip" if pack is zipped else "x.tgz"), members)
    with pytest.raises(InputError, match=message), unpacked(source, tmp_path, limits):
        pass
    assert not (tmp_path / ".input").exists()


def test_double_names_passwords_and_damage(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate name"):
        source = zipped(tmp_path / "x.zip", [("a", b"1"), ("a", b"2")])
    with pytest.raises(InputError, match="two members of the archive have the same name"), unpacked(source, tmp_path):
        pass
    good = zipped(tmp_path / "y.zip", [("a", bytes(range(256)) * 99)]).read_bytes()
    for number, data in enumerate((good[:-30], good[:40] + b"\xff" * 30 + good[70:], b"PK", b"")):
        path = tmp_path / f"bad{number}.zip"
        path.write_bytes(data)
        with pytest.raises(FormatError, match="the archive is damaged"), unpacked(path, tmp_path):
            pass
    (tmp_path / "cut.tgz").write_bytes(tarred(tmp_path / "z.tgz", [("a", bytes(range(256)) * 99)]).read_bytes()[:60])
    with pytest.raises(FormatError, match="the archive is damaged"), unpacked(tmp_path / "cut.tgz", tmp_path):
        pass
    locked = bytearray(good)
    # The flag of encryption, in the local header and in the directory.
    locked[6] |= 1
    locked[good.rindex(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "locked.zip").write_bytes(locked)
    with pytest.raises(InputError, match="the archive has a password"), unpacked(tmp_path / "locked.zip", tmp_path):
        pass


def test_a_folder_and_other_files_are_left_as_they_are(tmp_path):
    with unpacked(tmp_path, tmp_path / "out") as place:
        assert place == tmp_path
    assert not is_archive(tmp_path / "x.nii.gz")
