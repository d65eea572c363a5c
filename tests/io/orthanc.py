"""A real archive for tests: Orthanc with DICOMweb, on ports of its own, in a folder of its own."""

import json
import os
import socket
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
AE = "ORTHANC"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Orthanc:
    def __init__(self, folder: Path, ours: dict[str, int]):
        self.http, self.dicom = free_port(), free_port()
        self.web = f"http://127.0.0.1:{self.http}/dicom-web"
        self.dimse = f"dicom://{AE}@127.0.0.1:{self.dicom}"
        self.folder, self._process = folder, None
        folder.mkdir(parents=True, exist_ok=True)
        settings = {
            "Name": "test",
            # Everything that the package would put under /var or on the ports of the service it may have started.
            "StorageDirectory": str(folder / "store"),
            "IndexDirectory": str(folder / "store"),
            "HttpPort": self.http,
            "DicomPort": self.dicom,
            "DicomAet": AE,
            "DicomCheckCalledAet": True,
            # The folder would load every plugin that is installed; this is the one.
            "Plugins": [str(PLUGIN)],
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
            "DicomModalities": {
                title: {"AET": title, "Host": "127.0.0.1", "Port": port, "AllowStorageCommitment": True}
                for title, port in ours.items()
            },
        }
        (folder / "orthanc.json").write_text(json.dumps(settings))

    def start(self) -> "Orthanc":
        log = open(self.folder / "log.txt", "ab")
        with log:
            self._process = subprocess.Popen(["Orthanc", str(self.folder / "orthanc.json")], stdout=log, stderr=log)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                self.get("/system")
                return self
            except (URLError, ConnectionError):
                assert self._process.poll() is None, (self.folder / "log.txt").read_text()
                time.sleep(0.05)
        raise AssertionError("Orthanc did not start")

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(30)
            self._process = None

    def get(self, path: str):
        with urlopen(f"http://127.0.0.1:{self.http}{path}", timeout=20) as answer:
            return json.loads(answer.read())


@contextmanager
def orthanc(folder: Path, ours: dict[str, int] | None = None):
    server = Orthanc(folder, ours or {}).start()
    try:
        yield server
    finally:
        server.stop()


def listening() -> set[str]:
    """Local addresses that are listened on in this network namespace, as the kernel writes them."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return {line.split()[1] for line in lines if line.split()[3] == "0A"}


def in_namespace() -> bool:
    return os.environ.get("MEDSEQ_TEST_NAMESPACE") == "1"
